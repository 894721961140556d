package qemu

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
)

// TestSavingFails fails at each step of what a pause needs: that is an error, and what was
// made is gone.
func TestSavingFails(t *testing.T) {
	memory, err := os.Create(filepath.Join(t.TempDir(), "memory"))
	if err != nil {
		t.Fatal(err)
	}
	defer memory.Close()
	if err := memory.Truncate(1 << 20); err != nil {
		t.Fatal(err)
	}
	full := func(dst, src *os.File) error { return syscall.ENOSPC }
	if m, err := newMemoryImage(memory, full); err != syscall.ENOSPC || m != nil {
		t.Errorf("copy to a full disk: %v, %v", m, err)
	}

	ended := exec.Command("true")
	if err := ended.Run(); err != nil {
		t.Fatal(err)
	}
	i := &instance{process: &process{os: ended.Process}}
	if s, err := (&hypervisor{memory: memory}).beginSaving(t.Context(), i); !errors.Is(err, os.ErrProcessDone) || s != nil {
		t.Errorf("of a process that has ended: %v, %v", s, err)
	}
}
