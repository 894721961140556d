package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// start measures a whole `matchlock run` beside podman's, which has no machine to
// start, and beside its own when that has to boot. Podman's network is the one that
// it has by itself.
func start(ctx context.Context, p *place, m *meter) error {
	return startBeside(ctx, p, m, "", []string{"run", "busybox", "true"}, []string{"run", "--cold", "busybox", "true"})
}

// startNone measures the same of sandboxes and containers without a network.
func startNone(ctx context.Context, p *place, m *meter) error {
	return startBeside(ctx, p, m, "--network none", []string{"run", "--no-network", "busybox", "true"}, []string{"run", "--no-network", "--no-jail", "busybox", "true"})
}

// startBeside measures one of our commands, podman with flags, and our others.
func startBeside(ctx context.Context, p *place, m *meter, podmanFlags string, first []string, others ...[]string) (err error) {
	pod, err := newPodman(ctx, p, podmanFlags)
	if err != nil {
		if ctx.Err() != nil {
			return err
		}
		m.skip(1, err)
	} else {
		defer func() { err = errors.Join(err, pod.close()) }()
	}
	for m.loop() {
		if err := m.time(0, func() error { return run(ctx, p.matchlock, first...) }); err != nil {
			return err
		}
		if pod != nil {
			if err := m.time(1, pod.run); err != nil {
				return err
			}
		}
		for i, command := range others {
			if err := m.time(2+i, func() error { return run(ctx, p.matchlock, command...) }); err != nil {
				return err
			}
		}
	}
	return nil
}

// cold measures a `matchlock run` that boots beside the least that boots.
func cold(ctx context.Context, p *place, m *meter) error {
	initramfs, err := bareInitramfs(ctx, p.dir)
	if err != nil {
		return err
	}
	bare, err := newBareMachine(ctx, p)
	if err != nil {
		return err
	}
	bare.args = append(bare.args, "-initrd", initramfs)
	for m.loop() {
		if err := m.time(0, func() error { return run(ctx, p.matchlock, "run", "--cold", "busybox", "true") }); err != nil {
			return err
		}
		took, err := bare.boot(ctx)
		if err != nil {
			return err
		}
		m.record(1, milliseconds(took))
	}
	return nil
}

// A bareMachine is matchlock's without what is matchlock's: the same QEMU,
// accelerator, machine, memory, processors, kernel and kernel arguments; no disk,
// no network, no channel. What it runs is an initramfs.
type bareMachine struct {
	qemu    string
	args    []string
	modules string // the kernel's, a folder
	release string // of the kernel
}

// up is what the bare machine prints when it is up.
const up = "the bare machine is up"

const bootDeadline = 2 * time.Minute

// newBareMachine learns from a sandbox what a machine of ours is made of.
func newBareMachine(ctx context.Context, p *place) (*bareMachine, error) {
	idle, err := p.idle(ctx, "--cold", "--log-level", "debug", "--log-format", "json")
	if err != nil {
		return nil, err
	}
	qemu, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", idle.qemu))
	if err := errors.Join(err, idle.close()); err != nil {
		return nil, err
	}
	args, err := bareArgs(idle.stderr)
	if err != nil {
		return nil, err
	}
	// QEMU is given a copy of it.
	kernels, err := filepath.Glob(filepath.Join(p.kernels, idle.release+"-*", "vmlinux"))
	if err != nil || len(kernels) != 1 {
		return nil, fmt.Errorf("%s: %d kernels %s, want 1", p.kernels, len(kernels), idle.release)
	}
	return &bareMachine{qemu, append(args, "-kernel", kernels[0]), filepath.Join(filepath.Dir(kernels[0]), "modules"), idle.release}, nil
}

// bareArgs finds in a log how QEMU was told to boot a kernel, and takes of that
// what says which machine it was.
func bareArgs(log io.Reader) ([]string, error) {
	var entry struct{ Msg, Args string }
	for entries := json.NewDecoder(log); entry.Msg != "starting qemu" || !strings.Contains(entry.Args, " -kernel "); {
		if err := entries.Decode(&entry); err != nil {
			return nil, fmt.Errorf("no boot in matchlock's log: %w", err)
		}
	}
	bare := []string{"-no-user-config", "-nodefaults", "-display", "none", "-no-reboot", "-serial", "stdio"}
	for option := range strings.SplitSeq(" "+entry.Args, " -") {
		name, value, _ := strings.Cut(option, " ")
		switch name {
		case "M":
			properties := slices.DeleteFunc(strings.Split(value, ","), func(p string) bool {
				return strings.HasPrefix(p, "memory-backend=") // names an -object
			})
			bare = append(bare, "-M", strings.Join(properties, ","))
		case "m", "smp", "accel", "cpu", "append":
			bare = append(bare, "-"+name, value)
		}
	}
	return bare, nil
}

// bareInitramfs makes an initramfs of busybox and an /init that says that the machine is up.
func bareInitramfs(ctx context.Context, dir string) (string, error) {
	path := filepath.Join(dir, "bare.cpio")
	return path, run(ctx, "sh", "-ec", `
		mkdir -p "$0/bare/bin"
		cd "$0/bare"
		cp "$(command -v busybox)" bin/busybox
		printf '#!/bin/busybox sh\necho "%s"\nexec /bin/busybox sleep 1000\n' "$2" >init
		chmod 0755 init
		find . | cpio --quiet --create --format=newc --owner=0:0 >"$1"`, dir, path, up)
}

// boot returns how long it took until the machine was up.
func (b *bareMachine) boot(ctx context.Context) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, bootDeadline)
	defer cancel()
	var stderr bytes.Buffer
	qemu := exec.CommandContext(ctx, b.qemu, b.args...)
	qemu.Stderr = &stderr
	console, err := qemu.StdoutPipe()
	if err != nil {
		return 0, err
	}
	began := time.Now()
	if err := qemu.Start(); err != nil {
		return 0, err
	}
	lines := bufio.NewScanner(console)
	for lines.Scan() {
		if strings.Contains(lines.Text(), up) {
			took := time.Since(began)
			qemu.Process.Kill()
			qemu.Wait() // it was killed
			return took, nil
		}
	}
	return 0, fmt.Errorf("the bare machine did not come up: %v: %s", qemu.Wait(), bytes.TrimSpace(stderr.Bytes()))
}
