package state

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestFind(t *testing.T) {
	for _, tt := range []struct {
		name string
		env  map[string]string
		want Home
	}{
		{
			"matchlock home", map[string]string{"MATCHLOCK_HOME": "/m", "XDG_DATA_HOME": "/d", "HOME": "/h"},
			Home{Data: "/m/data", Cache: "/m/cache", State: "/m/state", root: "/m"},
		},
		{
			"defaults of XDG", map[string]string{"HOME": "/h"},
			Home{Data: "/h/.local/share/matchlock", Cache: "/h/.cache/matchlock", State: "/h/.local/state/matchlock"},
		},
		{
			"XDG, relative ones ignored", map[string]string{"HOME": "/h", "XDG_DATA_HOME": "/d", "XDG_CACHE_HOME": "c", "XDG_STATE_HOME": "/s"},
			Home{Data: "/d/matchlock", Cache: "/h/.cache/matchlock", State: "/s/matchlock"},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Find(func(name string) string { return tt.env[name] })
			if err != nil {
				t.Fatal(err)
			}
			if got != tt.want {
				t.Errorf("Find = %+v, want %+v", got, tt.want)
			}
		})
	}
}

func TestFindNowhere(t *testing.T) {
	_, err := Find(func(string) string { return "" })
	var fault *HomeError
	if !errors.As(err, &fault) || !strings.Contains(fault.Hint(), "MATCHLOCK_HOME") {
		t.Errorf("Find without HOME = %v, want a HomeError whose hint names MATCHLOCK_HOME", err)
	}
}

func TestOpenMakesPrivateFolders(t *testing.T) {
	root := filepath.Join(t.TempDir(), "new")
	home, err := At(root)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // made, then found
		if err := home.Open(); err != nil {
			t.Fatal(err)
		}
	}
	for _, dir := range []string{root, home.Data, home.Cache, home.State} {
		info, err := os.Stat(dir)
		if err != nil {
			t.Fatal(err)
		}
		if got := info.Mode(); got != os.ModeDir|0o700 {
			t.Errorf("%s has mode %v, want drwx------", dir, got)
		}
	}
}

func TestOpenRefuses(t *testing.T) {
	for _, tt := range []struct {
		name  string
		spoil func(t *testing.T, root string)
		want  string // in the error
		hint  string // in the hint
	}{
		{"others may write", func(t *testing.T, root string) { chmod(t, root, 0o777) }, "may be written by others (mode 0777)", "chmod go-w"},
		{"others may write to the cache", func(t *testing.T, root string) {
			mkdir(t, filepath.Join(root, "cache"))
			chmod(t, filepath.Join(root, "cache"), 0o770)
		}, "cache may be written by others", "chmod go-w"},
		{"a file in the way", func(t *testing.T, root string) {
			if err := os.WriteFile(filepath.Join(root, "state"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}, "state is not a folder", "move it away"},
		{"of another user", func(t *testing.T, root string) {
			// As root anybody's will do; else root's.
			if os.Geteuid() == 0 {
				mkdir(t, filepath.Join(root, "data"))
				if err := os.Chown(filepath.Join(root, "data"), 12345, 12345); err != nil {
					t.Fatal(err)
				}
			} else if err := os.Symlink("/etc", filepath.Join(root, "data")); err != nil {
				t.Fatal(err)
			}
		}, "belongs to user", "MATCHLOCK_HOME"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			root := t.TempDir()
			chmod(t, root, 0o700)
			tt.spoil(t, root)
			home, err := At(root)
			if err != nil {
				t.Fatal(err)
			}
			err = home.Open()
			var fault *HomeError
			if !errors.As(err, &fault) {
				t.Fatalf("Open = %v, want a HomeError", err)
			}
			if !strings.Contains(err.Error(), tt.want) || !strings.Contains(fault.Hint(), tt.hint) {
				t.Errorf("Open = %q, hint %q; want %q and %q in them", err, fault.Hint(), tt.want, tt.hint)
			}
		})
	}
}

func mkdir(t *testing.T, path string) {
	t.Helper()
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
}

func chmod(t *testing.T, path string, mode os.FileMode) {
	t.Helper()
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}
