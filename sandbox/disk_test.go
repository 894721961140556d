package sandbox

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/matchlock/matchlock/api"
	"github.com/matchlock/matchlock/internal/saved"
	"github.com/matchlock/matchlock/internal/state"
)

// ext4File makes a file that looks like ext4 as far as userDisk.check looks.
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

func TestDiskLocks(t *testing.T) {
	path := ext4File(t)
	rw, ro := userDisk{path: path}, userDisk{path: path, readOnly: true}
	lock := func(d userDisk) *os.File {
		t.Helper()
		file, err := d.open(t.Context(), state.Home{}, "")
		if err != nil {
			t.Fatal(err)
		}
		return file
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel() // else it would wait for a hypervisor to be gone
	busy := func(d userDisk) {
		t.Helper()
		if _, err := d.open(ctx, state.Home{}, ""); !errors.Is(err, context.Canceled) {
			t.Errorf("a second sandbox: %v, want it to wait", err)
		}
	}
	file := lock(rw)
	busy(rw)
	busy(ro)
	file.Close()
	one, two := lock(ro), lock(ro)
	busy(rw)
	one.Close()
	busy(rw)
	two.Close()
	lock(rw).Close()

	// The lock is the file's, wherever it is open: as a hypervisor has it.
	file = lock(rw)
	again, err := syscall.Dup(int(file.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	file.Close()
	busy(ro)
	syscall.Close(again)
	lock(ro).Close()
}

// Whoever has a disk for longer than it takes to be gone is told of.
func TestDiskInUse(t *testing.T) {
	d := userDisk{path: ext4File(t), volume: "data"}
	file, err := d.open(t.Context(), state.Home{}, "")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if _, err := d.open(t.Context(), state.Home{}, ""); !errors.Is(err, ErrDiskInUse) || err.Error() != `volume "data": in use by a sandbox` {
		t.Errorf("a second sandbox: %v, want ErrDiskInUse", err)
	}
}

// A file that loses its name while somebody waits for its lock is not had.
func TestDiskRemoved(t *testing.T) {
	d := userDisk{path: ext4File(t)}
	file, err := d.open(t.Context(), state.Home{}, "")
	if err != nil {
		t.Fatal(err)
	}
	result := make(chan error)
	go func() {
		_, err := d.open(t.Context(), state.Home{}, "")
		result <- err
	}()
	if err := os.Remove(d.path); err != nil {
		t.Fatal(err)
	}
	file.Close()
	if err := <-result; !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("open = %v, want fs.ErrNotExist", err)
	}
}

func TestDiskRefuses(t *testing.T) {
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
		if _, err := (userDisk{path: path}).open(t.Context(), state.Home{}, ""); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "disk ") {
			t.Errorf("open of %s: %v, want %q in it", path, err, want)
		}
	}
}

// What was not unmounted is recovered by whoever may write to it, and not read before.
func TestDiskNeedsRecovery(t *testing.T) {
	path := ext4File(t)
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := file.WriteAt([]byte{ext4NeedsRecovery}, ext4IncompatOffset); err != nil {
		t.Fatal(err)
	}
	file.Close()
	for _, d := range []userDisk{{path: path}, {path: path, readOnly: true}} {
		file, err := d.open(t.Context(), state.Home{}, "")
		if err == nil {
			file.Close()
		}
		if (err != nil) != d.readOnly {
			t.Errorf("to be only read (%v): %v", d.readOnly, err)
		}
	}
}

func TestUserDisks(t *testing.T) {
	home, err := state.At("/home")
	if err != nil {
		t.Fatal(err)
	}
	got := userDisks(home, &api.Config{
		Disks: []api.Disk{{File: "/img/z", Mount: "/data/sub/"}, {File: "/img/a", Mount: "/opt", ReadOnly: true}},
		Mounts: []api.Mount{
			{Source: "/host", Target: "/h", Mode: api.MountReadWrite},
			{Source: "v", Target: "/data", Mode: api.MountReadOnly},
			{Target: "/m", Mode: api.MountMemory},
		},
	})
	want := []userDisk{
		{"/home/data/volumes/v.ext4", "v", "/data", true},
		{"/img/z", "", "/data/sub", false},
		{"/img/a", "", "/opt", true},
	}
	if !slices.Equal(got, want) {
		t.Errorf("userDisks = %v, want %v", got, want)
	}
}

// A mark tells each write after it, one at the same moment too, and a sum what is in
// a file, wherever that is.
func TestDiskMark(t *testing.T) {
	d := userDisk{path: ext4File(t), mount: "/d"}
	file, err := d.open(t.Context(), state.Home{}, "")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	write := func(text string) {
		t.Helper()
		if _, err := file.WriteAt([]byte(text), 4096); err != nil {
			t.Fatal(err)
		}
	}
	write("one")
	mark, err := (&heldDisk{d, file}).mark()
	if err != nil {
		t.Fatal(err)
	}
	if err := mark.check(t.Context(), file); err != nil {
		t.Errorf("check of what is as it was: %v", err)
	}
	sum, err := saved.Sum(t.Context(), file)
	if err != nil {
		t.Fatal(err)
	}
	elsewhere := diskMark{Mount: "/d", Size: mark.Size, Sum: sum}
	write("one") // the same, but a write
	if err := mark.check(t.Context(), file); err == nil {
		t.Error("a write was not noticed")
	}
	if err := elsewhere.check(t.Context(), file); err != nil {
		t.Errorf("check by sum of what is as it was: %v", err)
	}
	write("two")
	if err := elsewhere.check(t.Context(), file); err == nil {
		t.Error("another content was not noticed")
	}
}
