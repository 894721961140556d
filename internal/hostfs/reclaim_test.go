package hostfs

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestReclaim(t *testing.T) {
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "data"), nil, 0o666), os.Chmod(dir, 0o777|os.ModeSetgid))
	ours := func(name string) bool { return name == "data" }
	if changed, err := Reclaim(dir, ours); !changed || err != nil {
		t.Errorf("Reclaim = %v, %v", changed, err)
	}
	if info, err := os.Stat(dir); err != nil || info.Mode() != os.ModeDir|os.ModeSetgid|0o755 {
		t.Errorf("it has mode %v, %v", info.Mode(), err)
	}
	if err := Private(dir); err != nil {
		t.Errorf("Private: %v", err)
	}
	for _, path := range []string{dir, filepath.Join(dir, "missing"), filepath.Join(dir, "data")} { // there is nothing to do
		if changed, err := Reclaim(path, nil); changed || err != nil {
			t.Errorf("Reclaim(%s) = %v, %v", path, changed, err)
		}
	}
}

// What others may have used stays as it is.
func TestReclaimRefuses(t *testing.T) {
	for _, tt := range []struct {
		name, want string
		spoil      func(t *testing.T, dir string)
	}{
		{"like /tmp", "is meant to be", chmod(0o777 | os.ModeSticky)},
		{"with another's file", `"planted" in it belongs to user 4321`, func(t *testing.T, dir string) {
			planted := filepath.Join(dir, "planted")
			must(t, os.WriteFile(planted, nil, 0o600), os.Chmod(dir, 0o777))
			if err := os.Lchown(planted, 4321, 4321); err != nil {
				t.Skip("only root can give files away:", err)
			}
		}},
		{"not for us alone", `has "src" in it, which is not matchlock's`, func(t *testing.T, dir string) {
			must(t, os.Mkdir(filepath.Join(dir, "src"), 0o700), os.Chmod(dir, 0o777))
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			tt.spoil(t, dir)
			before, err := os.Stat(dir)
			must(t, err)
			changed, err := Reclaim(dir, func(name string) bool { return name == "planted" })
			var fault *FolderError
			if changed || !errors.As(err, &fault) || !strings.Contains(fault.Error(), tt.want) {
				t.Errorf("Reclaim = %v, %v; want %q", changed, err, tt.want)
			}
			if after, err := os.Stat(dir); err != nil || after.Mode() != before.Mode() {
				t.Errorf("its mode is %v now, and was %v", after.Mode(), before.Mode())
			}
		})
	}
	// A link is followed by nobody.
	elsewhere, link := t.TempDir(), filepath.Join(t.TempDir(), "link")
	must(t, os.Chmod(elsewhere, 0o777), os.Symlink(elsewhere, link))
	if changed, err := Reclaim(link, nil); changed || err != nil {
		t.Errorf("of a link: %v, %v", changed, err)
	}
	if err := Private(link); err == nil {
		t.Error("a folder behind a link was changed")
	}
}
