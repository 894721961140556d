package sandbox

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/matchlock/matchlock/api"
)

// ext4File makes a file that looks like ext4 as far as lockDisk looks.
func ext4File(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.ext4")
	content := make([]byte, 64<<10)
	copy(content[ext4MagicOffset:], []byte{0x53, 0xef})
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestLockDisk(t *testing.T) {
	path := ext4File(t)
	rw, ro := api.Disk{File: path, Mount: "/d"}, api.Disk{File: path, Mount: "/d", ReadOnly: true}
	lock := func(d api.Disk) func() error {
		t.Helper()
		release, err := lockDisk(d)
		if err != nil {
			t.Fatal(err)
		}
		return release
	}
	busy := func(d api.Disk) {
		t.Helper()
		if _, err := lockDisk(d); !errors.Is(err, ErrDiskInUse) {
			t.Errorf("a second sandbox: %v, want ErrDiskInUse", err)
		}
	}
	release := lock(rw)
	busy(rw)
	busy(ro)
	release()
	one, two := lock(ro), lock(ro)
	busy(rw)
	one()
	busy(rw)
	two()
	lock(rw)()
}

func TestLockDiskRefuses(t *testing.T) {
	dir := t.TempDir()
	text := filepath.Join(dir, "text")
	if err := os.WriteFile(text, []byte("text"), 0o600); err != nil {
		t.Fatal(err)
	}
	fifo := filepath.Join(dir, "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		text:                         "not an ext4 file system",
		dir:                          "directory",
		fifo:                         "not a regular file",
		filepath.Join(dir, "nosuch"): "no such file",
	} {
		if _, err := lockDisk(api.Disk{File: path, Mount: "/d"}); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "disk ") {
			t.Errorf("lockDisk(%s) = %v, want %q in it", path, err, want)
		}
	}
}
