package qemu_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/matchlock/matchlock/internal/machine"
	"github.com/matchlock/matchlock/internal/qemu"
	"github.com/matchlock/matchlock/internal/saved"
	"github.com/matchlock/matchlock/vm"
)

// The hypervisor of a machine that goes on from files that others share: nothing of
// the host is there for it, and none of them can be written to by what it holds.
func TestVMJail(t *testing.T) {
	config := overlayConfig(t, "original")
	folder := filepath.Join(t.TempDir(), "saved")
	if err := saved.Make(t.Context(), folder, "one", snapshotOf(t, started(t, backendOptions(t), config)), nil); err != nil {
		t.Fatal(err)
	}
	kept, err := saved.Open(t.Context(), filepath.Join(folder, "one"), nil)
	if err != nil {
		t.Fatal(err)
	}
	m, _ := copyOf(t, kept, config, "copy")
	memory, err := kept.Memory.Stat()
	if err != nil {
		t.Fatal(err)
	}
	kept.Close()
	applied, missing := m.(*machine.Machine).Jail()
	t.Logf("held by %v, missing %v", applied, missing)

	proc := filepath.Join("/proc", fmt.Sprint(m.PID()))
	status := make(map[string]string)
	text, err := os.ReadFile(filepath.Join(proc, "status"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		name, value, _ := strings.Cut(line, ":")
		status[name] = strings.Join(strings.Fields(value), " ")
	}
	for name, want := range map[string]string{"CapPrm": "0000000000000000", "CapBnd": "0000000000000000", "NoNewPrivs": "1", "Seccomp": "2", "Groups": ""} {
		if got := status[name]; got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	if os.Geteuid() == 0 && strings.HasPrefix(status["Uid"], "0 ") {
		t.Error("it is root")
	}
	for _, kind := range []string{"user", "mnt", "pid", "ipc", "uts", "net"} {
		ours, _ := os.Readlink("/proc/self/ns/" + kind)
		if its, err := os.Readlink(filepath.Join(proc, "ns", kind)); err != nil || its == ours {
			t.Errorf("namespace %s: %s, and ours is %s (%v)", kind, its, ours, err)
		}
	}
	for _, gone := range []string{"home", "root", "tmp", "dev", "sys", "bin/sh", "etc/passwd", "proc/1", "proc/self/exe"} {
		if _, err := os.Lstat(filepath.Join(proc, "root", gone)); err == nil {
			t.Errorf("/%s is there", gone)
		}
	}
	fds, err := filepath.Glob(filepath.Join(proc, "fdinfo", "*"))
	if err != nil {
		t.Fatal(err)
	}
	shared := 0
	for _, info := range fds {
		// By what it is: a file of a mount of its own has no name.
		held, err := os.Stat(filepath.Join(proc, "fd", filepath.Base(info)))
		if err != nil || !os.SameFile(held, memory) {
			continue
		}
		shared++
		var position, flags int
		text, err := os.ReadFile(info)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := fmt.Sscanf(string(text), "pos: %d\nflags: %o", &position, &flags); err != nil || flags&(os.O_RDWR|os.O_WRONLY) != 0 {
			t.Errorf("it holds the memory that is shared with flags %o (%v)", flags, err)
		}
	}
	if shared < 2 { // what it was given, and what it opened
		t.Errorf("it holds the memory that is shared %d times", shared)
	}
}

// What cannot be confined does not run.
func TestNotConfined(t *testing.T) {
	program := filepath.Join(t.TempDir(), "qemu")
	if err := os.WriteFile(program, []byte("#!/bin/sh\necho 'QEMU emulator version 7.2.0'\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("MATCHLOCK_QEMU", program)
	_, err := qemu.New(qemu.Options{Accel: "tcg"}).Create(context.Background(), &vm.VMConfig{ID: "never", PrebuiltRootfs: program, NoNetwork: true})
	if !errors.Is(err, qemu.ErrUnconfined) && !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("got %v, want %v", err, qemu.ErrUnconfined)
	}
}
