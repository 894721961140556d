package disk

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

func TestAdopt(t *testing.T) {
	dir := t.TempDir()
	file, err := os.Create(filepath.Join(dir, "file"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if _, err := file.WriteAt([]byte("data"), 1<<20); err != nil {
		t.Fatal(err)
	}
	adopted := func(name string) fs.FileInfo {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := Adopt(path, file); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(path)
		if err != nil || len(got) != 1<<20+4 || string(got[1<<20:]) != "data" {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		return info
	}
	info, err := file.Stat()
	if err != nil {
		t.Fatal(err)
	}
	if written := adopted("written"); os.SameFile(written, info) || written.Mode().Perm() != 0o400 {
		t.Errorf("of one that may be written: the same file or mode %v", written.Mode())
	}
	if err := file.Chmod(0o400); err != nil {
		t.Fatal(err)
	}
	if !os.SameFile(adopted("linked"), info) {
		t.Error("it could have been the same file")
	}
	if err := Adopt(file.Name(), file); !errors.Is(err, fs.ErrExist) {
		t.Errorf("in the place of another: %v", err)
	}
	// One without any name cannot get one again.
	for _, name := range []string{"file", "linked"} {
		if err := os.Remove(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	if copied := adopted("copied"); os.SameFile(copied, info) || copied.Mode().Perm() != 0o400 {
		t.Errorf("copied: the same file or mode %v", copied.Mode())
	}
}
