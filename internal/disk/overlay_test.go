package disk_test

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
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
