package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// podman is the host's, with storage of its own and the image busybox in it. It is
// run by a shell that is there before: what has to be done for it to run at all
// is not measured.
type podman struct {
	shell    *exec.Cmd
	orders   io.WriteCloser
	statuses *bufio.Reader
	log      string // of the last order
	flags    string // of podman run
	runRoot  string // not in the place's folder: podman wants its path short
}

// podmanShell imports an archive, then runs a container of it each time that it
// reads a line, with the flags in that, and writes the exit status of each. On hosts with both versions
// of control groups podman takes the mount of the second for the one that
// counts, so that is hidden from it; nor can it go above its own limits where it
// may not raise them.
const podmanShell = `
	umount /sys/fs/cgroup/unified 2>/dev/null
	log=$0 archive=$1
	shift
	"$@" import "$archive" localhost/busybox >"$log" 2>&1
	echo $?
	while read -r flags; do
		"$@" run --rm $flags --ulimit nofile=1024:1024 --ulimit nproc=1024:1024 localhost/busybox true </dev/null >"$log" 2>&1
		echo $?
	done`

// newPodman returns an error where podman cannot run, by which it is no fault.
func newPodman(ctx context.Context, p *place, flags string) (_ *podman, err error) {
	program, err := exec.LookPath("podman")
	if err != nil {
		return nil, errors.New("podman is not installed")
	}
	dir, err := os.MkdirTemp(p.dir, "podman-")
	if err != nil {
		return nil, err
	}
	pod := &podman{log: filepath.Join(dir, "log"), flags: flags}
	if pod.runRoot, err = os.MkdirTemp("", "podman-"); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			pod.close() // it has said enough
		}
	}()
	args := []string{"sh", "-c", podmanShell, pod.log, p.busybox,
		program, "--root", filepath.Join(dir, "root"), "--runroot", pod.runRoot, "--cgroup-manager", "cgroupfs"}
	if os.Geteuid() == 0 {
		// What is mounted goes with the shell, and so does the bridge.
		args = append([]string{"unshare", "--mount", "--net"}, args...)
	}
	shell := exec.CommandContext(ctx, args[0], args[1:]...)
	if pod.orders, err = shell.StdinPipe(); err != nil {
		return nil, err
	}
	statuses, err := shell.StdoutPipe()
	if err != nil {
		return nil, err
	}
	pod.statuses = bufio.NewReader(statuses)
	if err := shell.Start(); err != nil {
		return nil, err
	}
	pod.shell = shell
	if err := pod.await(); err != nil {
		return nil, err
	}
	if err := pod.run(); err != nil {
		return nil, err
	}
	return pod, nil
}

// run runs a container.
func (pod *podman) run() error {
	if _, err := io.WriteString(pod.orders, pod.flags+"\n"); err != nil {
		return err
	}
	return pod.await()
}

// await waits for an order to be done.
func (pod *podman) await() error {
	status, err := pod.statuses.ReadString('\n')
	if err != nil {
		return fmt.Errorf("podman's shell: %w", err)
	}
	if status = strings.TrimSpace(status); status == "0" {
		return nil
	}
	said, _ := os.ReadFile(pod.log) // that there is none tells too
	said = bytes.TrimSpace(said)
	return fmt.Errorf("podman: exit status %s: %s", status, said[bytes.LastIndexByte(said, '\n')+1:])
}

// close ends the shell, and with it all that was mounted.
func (pod *podman) close() error {
	var err error
	if pod.shell != nil {
		pod.orders.Close()
		err = pod.shell.Wait()
	}
	return errors.Join(err, os.RemoveAll(pod.runRoot))
}
