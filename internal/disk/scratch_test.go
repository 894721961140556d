package disk

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/matchlock/matchlock/internal/hostfs"
	"golang.org/x/sys/unix"
)

// needVM skips tests that need root and tools of the host, unless they are asked for; then what is missing is a failure.
func needVM(t *testing.T) {
	t.Helper()
	if os.Getenv("MATCHLOCK_TEST_VM") != "1" {
		t.Skip("needs root and tools of the host: set MATCHLOCK_TEST_VM=1")
	}
}

// command runs a tool and returns what it says.
func command(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
	return string(out)
}

// blocks returns the bytes that a file takes on the disk.
func blocks(t *testing.T, path string) int64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Blocks * 512
}

func TestCreateScratch(t *testing.T) {
	needVM(t)
	cache, dir := t.TempDir(), t.TempDir()
	const size = 2 << 30

	// The rest of a crash is no hindrance.
	if err := os.WriteFile(filepath.Join(cache, "ext4-v1-2147483648.img.part"), []byte("half a disk"), 0o600); err != nil {
		t.Fatal(err)
	}
	// At once, as several processes would. The lock is per open file, so goroutines exclude one another as well.
	var wg sync.WaitGroup
	for _, name := range []string{"a", "b", "c", "d"} {
		wg.Go(func() {
			if err := CreateScratch(t.Context(), filepath.Join(dir, name), size, cache); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for _, name := range []string{"a", "b", "c", "d"} {
		path := filepath.Join(dir, name)
		command(t, "e2fsck", "-fn", path)
		if fi, err := os.Stat(path); err != nil || fi.Size() != size {
			t.Errorf("size %v, %v, want %d", fi.Size(), err, size)
		}
		if n := blocks(t, path); n > 1<<20 {
			t.Errorf("takes %d bytes on the disk", n)
		}
	}
	entries, err := os.ReadDir(cache)
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) != 2 { // the image and the lock
		t.Errorf("left in the cache: %v", entries)
	}

	mnt := t.TempDir()
	command(t, "mount", "-o", "loop,noinit_itable", filepath.Join(dir, "a"), mnt)
	defer command(t, "umount", mnt)
	if err := os.WriteFile(filepath.Join(mnt, "file"), bytes.Repeat([]byte("x"), 1<<20), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestCreateScratchRefuses(t *testing.T) {
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	t.Run("sizes", func(t *testing.T) {
		for _, size := range []int64{-1, 0, MinScratch - blockSize, MinScratch + 1} {
			if err := CreateScratch(t.Context(), filepath.Join(t.TempDir(), "disk"), size, t.TempDir()); err == nil {
				t.Errorf("%d bytes: no error", size)
			}
		}
	})
	t.Run("locked and canceled", func(t *testing.T) {
		cache := t.TempDir()
		lock, err := hostfs.Lock(t.Context(), filepath.Join(cache, "ext4.lock"), os.O_RDWR|os.O_CREATE, syscall.LOCK_EX)
		if err != nil {
			t.Fatal(err)
		}
		defer lock.Close()
		path := filepath.Join(t.TempDir(), "disk")
		if err := CreateScratch(canceled, path, MinScratch, cache); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v, want %v", err, context.Canceled)
		}
		if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("left behind: %v", err)
		}
	})
}

func TestFindTool(t *testing.T) {
	_, err := findTool("mkfs.nosuchfs", "nosuchfs-tools")
	var missing *MissingToolError
	if !errors.As(err, &missing) || missing.Package != "nosuchfs-tools" || !errors.Is(err, exec.ErrNotFound) {
		t.Errorf("got %v, want the package to install", err)
	}
}

// A volume is whole to its checker, has checksums, and takes next to nothing.
func TestCreateVolume(t *testing.T) {
	needVM(t)
	file, err := os.Create(filepath.Join(t.TempDir(), "volume"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if err := CreateVolume(t.Context(), file, 10<<30); err != nil {
		t.Fatal(err)
	}
	command(t, "/usr/sbin/e2fsck", "-fn", file.Name())
	if features := command(t, "/usr/sbin/dumpe2fs", "-h", file.Name()); !strings.Contains(features, " metadata_csum") || !strings.Contains(features, " has_journal") {
		t.Errorf("its superblock is\n%s", features)
	}
	if info, err := file.Stat(); err != nil || info.Size() != 10<<30 || blocks(t, file.Name()) > 4<<20 {
		t.Errorf("it has %d bytes and takes %d: %v", info.Size(), blocks(t, file.Name()), err)
	}
	for _, size := range []int64{0, MinScratch - blockSize, MinScratch + 1} {
		if err := CreateVolume(t.Context(), file, size); err == nil {
			t.Errorf("a volume of %d bytes is made", size)
		}
	}
}
