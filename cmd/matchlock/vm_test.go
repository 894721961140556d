package main

import (
	"archive/tar"
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/matchlock/matchlock/internal/hostfs"
)

// The tests of this file run the program that make build left, from outside: what
// it says when it cannot do what it is asked to, and what it leaves.

// installed is the program with a home of its own.
type installed struct {
	program, home string
	patience      time.Duration // 0: patienceVM
}

// install skips without MATCHLOCK_TEST_VM; with it, what is missing is a failure.
// The home has the image busybox, and its caches are those of
// MATCHLOCK_TEST_HOME.
func install(t *testing.T) *installed {
	t.Helper()
	if os.Getenv("MATCHLOCK_TEST_VM") == "" {
		t.Skip("boots VMs: set MATCHLOCK_TEST_VM=1 (make test does)")
	}
	shared := os.Getenv("MATCHLOCK_TEST_HOME")
	if shared == "" {
		t.Fatal("MATCHLOCK_TEST_HOME is not set: run scripts/test-vm.sh")
	}
	program, err := filepath.Abs("../../bin/matchlock")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(program); err != nil {
		t.Fatalf("%v: run make build", err)
	}
	m := &installed{program: program, home: emptyHome(t, t.TempDir())}
	m.mustRun(t, "image", "import", "busybox", filepath.Join(shared, "images", "busybox.tar"))
	return m
}

// emptyHome makes home a home with nothing in it but the shared caches.
func emptyHome(t *testing.T, home string) string {
	t.Helper()
	cache := filepath.Join(os.Getenv("MATCHLOCK_TEST_HOME"), "home", "cache")
	if err := hostfs.Private(cache); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(home, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(cache, filepath.Join(home, "cache")); err != nil {
		t.Fatal(err)
	}
	return home
}

// apart is the same program with sandboxes of its own, so that what one call
// leaves can be told from what another does that runs at the same time.
func (m *installed) apart(t *testing.T) *installed {
	t.Helper()
	home := emptyHome(t, t.TempDir())
	if err := os.Symlink(filepath.Join(m.home, "data"), filepath.Join(home, "data")); err != nil {
		t.Fatal(err)
	}
	return &installed{m.program, home, m.patience}
}

// patienceVM is how long a run may take that boots a VM on a busy host.
const patienceVM = 2 * time.Minute

// command prepares a call. It is killed when it has not ended in time, which is
// a failure of whatever test that is.
func (m *installed) command(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), cmp.Or(m.patience, patienceVM))
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, m.program, args...)
	cmd.Env = append(slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "MATCHLOCK_") }), "MATCHLOCK_HOME="+m.home)
	return cmd
}

// result is what became of a call.
type result struct {
	status         int
	stdout, stderr string
	took           time.Duration
	call           string // for a person to make it again
}

// run makes a call with more variables in its environment.
func (m *installed) run(t *testing.T, env []string, args ...string) result {
	t.Helper()
	cmd := m.command(t, args...)
	cmd.Env = append(cmd.Env, env...)
	return ended(t, cmd)
}

// ended runs a prepared call to its end, which must be one of its own.
func ended(t *testing.T, cmd *exec.Cmd) result {
	t.Helper()
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	began := time.Now()
	err := cmd.Run()
	r := result{stdout: stdout.String(), stderr: stderr.String(), took: time.Since(began), call: byHand(cmd)}
	if exit, ok := errors.AsType[*exec.ExitError](err); ok && exit.Exited() {
		r.status, err = exit.ExitCode(), nil
	}
	if err != nil {
		t.Fatalf("%v after %v\nstandard error:\n%s\n%s", err, r.took, r.stderr, r.call)
	}
	return r
}

// byHand is how a person makes the same call.
func byHand(cmd *exec.Cmd) string {
	var b strings.Builder
	b.WriteString("by hand:")
	for _, v := range cmd.Env {
		if strings.HasPrefix(v, "MATCHLOCK_") {
			fmt.Fprintf(&b, " %s", v)
		}
	}
	fmt.Fprintf(&b, " %s", cmd.Path)
	for _, arg := range cmd.Args[1:] {
		fmt.Fprintf(&b, " %q", arg)
	}
	return b.String()
}

func (m *installed) mustRun(t *testing.T, args ...string) {
	t.Helper()
	if r := m.run(t, nil, args...); r.status != 0 {
		t.Fatalf("status %d\n%s\n%s", r.status, r.stderr, r.call)
	}
}

// leavesNothing makes sure that nothing is left of m's sandboxes, nor of what
// came in half.
func (m *installed) leavesNothing(t *testing.T) {
	t.Helper()
	if err := remains(m.home); err != nil {
		t.Error(err)
	}
	half, err := filepath.Glob(filepath.Join(m.home, "data", "images", "tmp", "*"))
	if err != nil {
		t.Fatal(err)
	}
	if len(half) > 0 {
		t.Errorf("left behind: %q", half)
	}
}

// refuses makes a call that cannot be carried out: status 125, nothing but one
// error of the form and maybe a hint, and nothing left.
func (m *installed) refuses(t *testing.T, env []string, want, hint string, args ...string) {
	t.Helper()
	r := m.run(t, env, args...)
	if r.status != 125 || r.stdout != "" {
		t.Errorf("status %d, standard output %q; want 125 and none", r.status, r.stdout)
	}
	lines := strings.Split(strings.TrimSuffix(r.stderr, "\n"), "\n")
	if text, ok := strings.CutPrefix(lines[0], "matchlock: error: "); !ok || !strings.Contains(text, want) {
		t.Errorf("error is   %s\nwant in it: %s", r.stderr, want)
	}
	switch {
	case hint == "" && len(lines) > 1, len(lines) > 2:
		t.Errorf("more is said than wanted:\n%s", r.stderr)
	case hint != "" && (len(lines) < 2 || !strings.HasPrefix(lines[1], "matchlock: hint: ") || !strings.Contains(lines[1], hint)):
		t.Errorf("no hint with %q:\n%s", hint, r.stderr)
	}
	if err := remains(m.home); err != nil {
		t.Error(err)
	}
	t.Logf("%v: %s", r.took.Round(time.Millisecond), strings.TrimSpace(r.stderr))
	if t.Failed() {
		t.Log(r.call)
	}
}

func TestVMRefusals(t *testing.T) {
	m := install(t)
	dir := t.TempDir()
	images := filepath.Join(os.Getenv("MATCHLOCK_TEST_HOME"), "images")
	busybox, err := os.ReadFile(filepath.Join(images, "busybox.tar"))
	if err != nil {
		t.Fatal(err)
	}
	write := func(name string, content []byte, mode fs.FileMode) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, content, mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	qemu := func(name, script string) []string {
		const answer = "[ \"$1\" = --version ] && { echo QEMU emulator version 7.2.0; exit; }\n"
		if !strings.HasPrefix(name, "version") {
			script = answer + script
		}
		return []string{"MATCHLOCK_QEMU=" + write("qemu-"+name, []byte("#!/bin/sh\n"+script+"\n"), 0o755)}
	}
	packed, err := exec.Command("gzip", "-c", filepath.Join(images, "busybox.tar")).Output()
	if err != nil {
		t.Fatal(err)
	}
	foreign := write("arm64.tar", dockerSave(t, "arm64", busybox), 0o600)
	m.mustRun(t, "image", "import", "--platform", "linux/arm64", "foreign", foreign)

	tests := []struct {
		name       string
		env        []string
		args       []string
		want, hint string
	}{
		{"unknown image", nil, []string{"run", "--pull", "never", "busybos", "true"}, `image "busybos" not found`, `did you mean "busybox"?`},
		{"registry that is not there", nil, []string{"run", "127.0.0.1:1/x", "true"}, "connection refused", ""},
		{"image for another processor", nil, []string{"run", "--pull", "never", "foreign", "true"}, "it offers linux/arm64", "pull --platform linux/" + runtime.GOARCH},
		{"import for another processor", nil, []string{"image", "import", "x", foreign}, "it offers linux/arm64", ""},
		{"corrupt tar", nil, []string{"image", "import", "x", write("corrupt.tar", damaged(busybox), 0o600)}, "invalid tar header", ""},
		{"half a tar", nil, []string{"image", "import", "x", write("half.tar", busybox[:len(busybox)/2], 0o600)}, "unexpected EOF", ""},
		{"half a gzip", nil, []string{"image", "import", "x", write("half.tar.gz", packed[:len(packed)/2], 0o600)}, "unexpected EOF", ""},
		{"no archive", nil, []string{"image", "import", "x", "/etc/passwd"}, "tar", ""},

		{"little memory", nil, []string{"run", "-m", "111", "busybox", "true"}, "memory 111 MiB: a guest needs at least 112 MiB to boot", ""},
		{"more memory than there is", nil, []string{"run", "-m", "100000g", "busybox", "true"}, "the host has", ""},
		{"no number of CPUs", nil, []string{"run", "--cpus", "abc", "busybox", "true"}, `--cpus "abc": not a positive number`, "run --help"},
		{"negative CPUs", nil, []string{"run", "--cpus", "-1", "busybox", "true"}, `--cpus "-1": not a positive number`, "run --help"},
		{"NaN CPUs", nil, []string{"run", "--cpus", "NaN", "busybox", "true"}, `--cpus "NaN": not a positive number`, "run --help"},
		{"infinite CPUs", nil, []string{"run", "--cpus", "Inf", "busybox", "true"}, "the host has", ""},
		{"more CPUs than there are", nil, []string{"run", "--cpus", strconv.Itoa(runtime.NumCPU() + 1), "busybox", "true"}, "the host has", ""},

		{"kernel that is none", []string{"MATCHLOCK_KERNEL=/etc/passwd"}, []string{"run", "busybox", "true"}, `kernel "/etc/passwd": not a Linux kernel image`, ""},
		{"kernel that is missing", []string{"MATCHLOCK_KERNEL=" + dir + "/none"}, []string{"run", "busybox", "true"}, "no such file or directory", ""},
		{"half a kernel", []string{"MATCHLOCK_KERNEL=" + write("half-vmlinux", halfKernel(t), 0o600)}, []string{"run", "busybox", "true"}, "the file is cut short", ""},

		{"QEMU that is missing", []string{"MATCHLOCK_QEMU=" + dir + "/none"}, []string{"run", "busybox", "true"}, "QEMU not found", "apt-get install qemu-system-x86"},
		{"QEMU that is too old", qemu("version-5.2", "echo 'QEMU emulator version 5.2.0 (Debian 1:5.2+dfsg-11)'"), []string{"run", "busybox", "true"}, "QEMU 5.2 is too old, 7.2 or later is needed", "install QEMU 7.2 or later"},
		{"QEMU without a version", qemu("version-none", "sleep 1000"), []string{"run", "busybox", "true"}, "--version: no answer within 10s", ""},
		{"QEMU that fails", qemu("fails", "echo no accelerator today >&2; exit 1"), []string{"run", "--no-jail", "busybox", "true"}, "qemu ended: exit status 1; it said last: no accelerator today", ""},
		{"QEMU that hangs", qemu("hangs", "sleep 1000"), []string{"run", "--no-jail", "busybox", "true"}, "qemu did not start: qmp greeting: no answer within 20s", ""},
		{"QEMU that is a script", qemu("script", "exit 1"), []string{"run", "busybox", "true"}, "the hypervisor cannot be confined here", "--no-jail"},
	}
	t.Run("all", func(t *testing.T) {
		for _, tt := range tests {
			t.Run(tt.name, func(t *testing.T) {
				t.Parallel() // some do nothing but wait
				m.apart(t).refuses(t, tt.env, tt.want, tt.hint, tt.args...)
			})
		}
	})
	m.leavesNothing(t)
	if pids := processesNaming(t, dir); len(pids) > 0 {
		t.Errorf("processes %v live on", pids)
	}
}

// A disk that is full, in each step that writes to it.
func TestVMFullDisk(t *testing.T) {
	m := install(t)
	const noSpace, hint = "no space left on device", "MATCHLOCK_HOME"
	archive := filepath.Join(os.Getenv("MATCHLOCK_TEST_HOME"), "images", "busybox.tar")
	for _, size := range []string{"64k", "1m", "3m"} {
		t.Run("import on "+size, func(t *testing.T) {
			small := &installed{program: m.program, home: emptyHome(t, mountTmpfs(t, size))}
			small.refuses(t, nil, noSpace, hint, "image", "import", "busybox", archive)
			small.leavesNothing(t)
			for _, dir := range []string{"blobs/sha256", "layers"} {
				left, err := os.ReadDir(filepath.Join(small.home, "data", "images", dir))
				if err != nil && !errors.Is(err, fs.ErrNotExist) || len(left) > 0 {
					t.Errorf("%s has %v, %v", dir, left, err)
				}
			}
			if out, err := exec.Command("mount", "-o", "remount,size=16m", small.home).CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			small.mustRun(t, "image", "import", "busybox", archive)
		})
	}
	small := &installed{program: m.program, home: emptyHome(t, mountTmpfs(t, "16m"))}
	small.mustRun(t, "image", "import", "busybox", archive)
	for _, free := range []int64{0, 8 << 10, 64 << 10} {
		t.Run(fmt.Sprintf("scratch disk with %d bytes", free), func(t *testing.T) {
			defer fill(t, small.home, free)()
			small.refuses(t, nil, noSpace, hint, "run", "--pull", "never", "busybox", "true")
		})
	}
	t.Run("guest writes", func(t *testing.T) {
		defer fill(t, small.home, 1<<20)()
		r := small.run(t, nil, "run", "--pull", "never", "busybox", "sh", "-c", "dd if=/dev/urandom of=/big bs=1M count=8 conv=fsync; echo status $?; echo small > /dev/shm/file && cat /dev/shm/file")
		if r.status != 0 || r.stdout != "status 1\nsmall\n" || !strings.Contains(r.stderr, "I/O error") && !strings.Contains(r.stderr, "Input/output error") {
			t.Errorf("status %d, %q", r.status, r.stdout)
		}
		// Inside nobody can know why.
		if !strings.Contains(r.stderr, "a disk of the guest fails on the host") || !strings.Contains(strings.ToLower(r.stderr), noSpace) {
			t.Errorf("the host's fault is not told")
		}
		t.Logf("%v\n%s%s", r.took, r.stdout, r.stderr)
	})
	t.Run("copies", func(t *testing.T) {
		small.mustRun(t, "run", "-d", "--pull", "never", "--name", "box", "busybox", "sleep", "1000")
		full := func(args ...string) {
			t.Helper()
			if r := small.run(t, nil, args...); r.status != 125 || !strings.Contains(r.stderr, noSpace) {
				t.Errorf("%q: status %d\n%s", args, r.status, r.stderr)
			}
		}
		empty := fill(t, small.home, 0)
		full("fork", "box")
		full("snapshot", "create", "box", "kept")
		empty()
		full("snapshot", "create", "box", "kept") // its memory is larger than the disk
		small.mustRun(t, "fork", "--name", "twin", "box")
		small.mustRun(t, "exec", "twin", "true")
		small.mustRun(t, "exec", "box", "true")
		small.mustRun(t, "rm", "-f", "box", "twin")
		if left, err := os.ReadDir(filepath.Join(small.home, "data", "snapshots")); err != nil || len(left) > 0 {
			t.Errorf("snapshots has %v, %v", left, err)
		}
	})
	small.leavesNothing(t)
}

// mountTmpfs mounts an empty file system of that size for as long as the test runs.
func mountTmpfs(t *testing.T, size string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", "mode=0700,size="+size, "matchlock-test", dir).CombinedOutput(); err != nil {
		t.Fatalf("mount: %v: %s", err, out)
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", dir).CombinedOutput(); err != nil {
			t.Errorf("umount: %v: %s", err, out) // somebody still has a file open there
		}
	})
	return dir
}

// fill leaves so many bytes free in the file system of dir, until empty is called.
func fill(t *testing.T, dir string, free int64) (empty func()) {
	t.Helper()
	var statfs syscall.Statfs_t
	if err := syscall.Statfs(dir, &statfs); err != nil {
		t.Fatal(err)
	}
	filler := filepath.Join(dir, "filler")
	if err := os.WriteFile(filler, make([]byte, int64(statfs.Bavail)*int64(statfs.Bsize)-free), 0o600); err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := os.Remove(filler); err != nil {
			t.Error(err)
		}
	}
}

// A signal that comes before the command runs ends the start, whatever it is at,
// and leaves nothing.
func TestVMSignalWhileStarting(t *testing.T) {
	m := install(t)
	for _, tt := range []struct {
		signal syscall.Signal
		after  time.Duration
	}{
		{syscall.SIGINT, 100 * time.Millisecond},
		{syscall.SIGTERM, time.Second},
		{syscall.SIGINT, 2 * time.Second},
		{syscall.SIGHUP, 3 * time.Second},
	} {
		t.Run(fmt.Sprintf("%v after %v", tt.signal, tt.after), func(t *testing.T) {
			t.Parallel()
			m := m.apart(t)
			cmd := m.command(t, "run", "busybox", "sleep", "1000")
			sent := make(chan time.Time, 1)
			timer := time.AfterFunc(tt.after, func() { sent <- time.Now(); cmd.Process.Signal(tt.signal) })
			defer timer.Stop()
			r := ended(t, cmd)
			if r.status != 128+int(tt.signal) {
				t.Errorf("status %d, want %d\n%s", r.status, 128+int(tt.signal), r.stderr)
			}
			m.leavesNothing(t)
			select {
			case at := <-sent:
				if took := time.Since(at); took > 3*time.Second {
					t.Errorf("it took %v", took)
				}
			default:
				t.Errorf("it ended by itself:\n%s", r.stderr)
			}
		})
	}
}

// damaged is a tar with a header overwritten.
func damaged(archive []byte) []byte {
	archive = slices.Clone(archive)
	copy(archive[148:], "damaged!") // the checksum
	return archive
}

// halfKernel is the beginning of a kernel that boots.
func halfKernel(t *testing.T) []byte {
	t.Helper()
	kernels, err := filepath.Glob(filepath.Join(os.Getenv("MATCHLOCK_TEST_HOME"), "home", "cache", "kernels", "*", "vmlinux"))
	if err != nil || len(kernels) == 0 {
		t.Fatalf("no kernel in the cache, %v: run scripts/test-vm.sh once", err)
	}
	kernel, err := os.ReadFile(kernels[0])
	if err != nil {
		t.Fatal(err)
	}
	return kernel[:len(kernel)/2]
}

// dockerSave is an image of one layer as docker save writes it.
func dockerSave(t *testing.T, arch string, layer []byte) []byte {
	t.Helper()
	encode := func(v any) []byte {
		data, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	for _, file := range []struct {
		name    string
		content []byte
	}{
		{"manifest.json", encode([]map[string]any{{"Config": "config.json", "RepoTags": []string{"x:latest"}, "Layers": []string{"layer.tar"}}})},
		{"config.json", encode(map[string]any{"os": "linux", "architecture": arch, "rootfs": map[string]any{"type": "layers", "diff_ids": []string{fmt.Sprintf("sha256:%x", sha256.Sum256(layer))}}})},
		{"layer.tar", layer},
	} {
		if err := w.WriteHeader(&tar.Header{Name: file.name, Mode: 0o644, Size: int64(len(file.content)), Typeflag: tar.TypeReg}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(file.content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return archive.Bytes()
}

// processesNaming lists the processes whose command line has text in it.
func processesNaming(t *testing.T, text string) (pids []string) {
	t.Helper()
	lines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range lines {
		if line, err := os.ReadFile(path); err == nil && bytes.Contains(line, []byte(text)) {
			pids = append(pids, strings.Split(path, "/")[2])
		}
	}
	return pids
}
