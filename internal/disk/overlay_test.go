package disk_test

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/matchlock/matchlock/internal/disk"
)

// qemu-img finds no fault with an overlay, and the size that was asked for.
func TestCreateOverlay(t *testing.T) {
	for _, size := range []int64{4096, 64 << 20, 5 << 30, 512<<20 + 4096, disk.MaxOverlay} {
		dir := t.TempDir()
		path := filepath.Join(dir, "overlay")
		f, err := disk.CreateOverlay(path, size)
		if err != nil {
			t.Fatal(err)
		}
		if err := disk.CheckOverlay(f, size); err != nil {
			t.Errorf("%d bytes: %v", size, err)
		}
		f.Close()
		if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
			t.Errorf("%d bytes: folder has %v, %v", size, entries, err)
		}
		if out, err := exec.Command("qemu-img", "check", "-f", "qcow2", path).CombinedOutput(); err != nil {
			t.Errorf("%d bytes: %v\n%s (Debian package qemu-utils)", size, err, out)
		}
		out, err := exec.Command("qemu-img", "info", "-f", "qcow2", "--output=json", path).Output()
		if err != nil {
			t.Fatal(err)
		}
		var info struct {
			Size    int64  `json:"virtual-size"`
			Backing string `json:"backing-filename"`
		}
		if err := json.Unmarshal(out, &info); err != nil {
			t.Fatal(err)
		}
		if info.Size != size || info.Backing != "" {
			t.Errorf("got %+v, want %d bytes over nothing", info, size)
		}
	}
}

func TestCreateOverlayRefuses(t *testing.T) {
	dir := t.TempDir()
	for _, size := range []int64{0, -4096, disk.MaxOverlay + 1} {
		if _, err := disk.CreateOverlay(filepath.Join(dir, "overlay"), size); err == nil {
			t.Errorf("%d bytes: no error", size)
		}
	}
	there := filepath.Join(dir, "there")
	if err := os.WriteFile(there, []byte("kept"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := disk.CreateOverlay(there, 4096); !errors.Is(err, fs.ErrExist) {
		t.Errorf("got %v, want that it exists", err)
	}
	if content, err := os.ReadFile(there); err != nil || string(content) != "kept" {
		t.Errorf("the file there holds %q, %v", content, err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("folder has %v, %v", entries, err)
	}
}

// What could have QEMU open another file, or is not what was made here, is found.
func TestCheckOverlay(t *testing.T) {
	const size = 64 << 20
	for name, damage := range map[string]struct {
		at   int64
		with string
		want string
	}{
		"another format":    {0, "QFJ", "not in the form"},
		"version 2":         {7, "\x02", "not in the form"},
		"other clusters":    {23, "\x0c", "not in the form"},
		"a header cut":      {103, "\x48", "not in the form"},
		"over a file":       {15, "\x70\x00\x00\x00\x05", "names a file"},
		"another size":      {28, "\x01", "not of 67108864"},
		"encrypted":         {35, "\x01", "encrypted"},
		"damaged":           {79, "\x02", "features 0x2"},
		"data in elsewhere": {79, "\x04", "features 0x4"},
	} {
		t.Run(name, func(t *testing.T) {
			f, err := disk.CreateOverlay(filepath.Join(t.TempDir(), "overlay"), size)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if _, err := f.WriteAt([]byte(damage.with), damage.at); err != nil {
				t.Fatal(err)
			}
			var fault *disk.OverlayError
			if err := disk.CheckOverlay(f, size); !errors.As(err, &fault) || !strings.Contains(err.Error(), damage.want) {
				t.Errorf("got %v, want %q", err, damage.want)
			}
			if err := f.Truncate(50); err != nil {
				t.Fatal(err)
			}
			if err := disk.CheckOverlay(f, size); !errors.As(err, &fault) || !strings.Contains(err.Error(), "too short") {
				t.Errorf("got %v, want that it is too short", err)
			}
		})
	}
}

// FuzzCheckOverlay changes a header, which who wrote to an overlay may have done: what passes
// names no file, whatever bytes say so.
func FuzzCheckOverlay(f *testing.F) {
	const size = 1 << 30
	made, err := disk.CreateOverlay(filepath.Join(f.TempDir(), "overlay"), size)
	if err != nil {
		f.Fatal(err)
	}
	defer made.Close()
	header := make([]byte, 512)
	if _, err := made.ReadAt(header, 0); err != nil {
		f.Fatal(err)
	}
	f.Add(header)
	f.Add(header[:50])
	path := filepath.Join(f.TempDir(), "changed")
	f.Fuzz(func(t *testing.T, header []byte) {
		if err := os.WriteFile(path, header, 0o600); err != nil {
			t.Fatal(err)
		}
		changed, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer changed.Close()
		if disk.CheckOverlay(changed, size) != nil {
			return
		}
		offset, length := binary.BigEndian.Uint64(header[8:]), binary.BigEndian.Uint32(header[16:])
		if offset != 0 && length != 0 || string(header[:4]) != "QFI\xfb" || binary.BigEndian.Uint64(header[72:]) != 0 {
			t.Errorf("%x passes", header)
		}
	})
}
