package hostfs

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestPrivate(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new", "newer")
	for range 2 { // made, then found
		if err := Private(dir); err != nil {
			t.Fatal(err)
		}
	}
	for _, dir := range []string{filepath.Dir(dir), dir} {
		info, err := os.Stat(dir)
		if err != nil {
			t.Fatal(err)
		}
		if got := info.Mode(); got != os.ModeDir|0o700 {
			t.Errorf("%s has mode %v, want drwx------", dir, got)
		}
	}
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(dir, link); err != nil {
		t.Fatal(err)
	}
	if err := Private(link); err != nil {
		t.Errorf("a link to a private folder: %v", err)
	}
}

func TestPrivateRefuses(t *testing.T) {
	for _, tt := range []struct {
		name  string
		spoil func(t *testing.T, dir string)
		want  string // in the error
		hint  string // in the hint
	}{
		{"all may write", chmod(0o777), "ours may be written by others (mode 0777)", "chmod go-w"},
		{"the group may write", chmod(0o770), "ours may be written by others (mode 0770)", "chmod go-w"},
		{"others may write", chmod(0o702), "ours may be written by others (mode 0702)", "chmod go-w"},
		{"a file in the way", func(t *testing.T, dir string) {
			must(t, os.Remove(dir), os.WriteFile(dir, nil, 0o600))
		}, "ours is not a folder", "move it away"},
		{"of another user", func(t *testing.T, dir string) {
			if os.Geteuid() == 0 {
				must(t, os.Chown(dir, 12345, 12345))
			} else {
				must(t, os.Remove(dir), os.Symlink("/etc", dir)) // root's
			}
		}, "belongs to user", "MATCHLOCK_HOME"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "ours")
			must(t, os.Mkdir(dir, 0o700))
			tt.spoil(t, dir)
			err := Private(dir)
			var fault *FolderError
			if !errors.As(err, &fault) {
				t.Fatalf("Private = %v, want a FolderError", err)
			}
			if fault.Path != dir || !strings.Contains(err.Error(), tt.want) || !strings.Contains(fault.Hint(), tt.hint) {
				t.Errorf("Private = %q, path %s, hint %q; want %q and %q in them", err, fault.Path, fault.Hint(), tt.want, tt.hint)
			}
		})
	}
}

func chmod(mode os.FileMode) func(*testing.T, string) {
	return func(t *testing.T, dir string) {
		t.Helper()
		must(t, os.Chmod(dir, mode))
	}
}

// must fails the test when any of the steps did.
func must(t *testing.T, steps ...error) {
	t.Helper()
	if err := errors.Join(steps...); err != nil {
		t.Fatal(err)
	}
}
