package state

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/matchlock/matchlock/internal/hostfs"
)

func TestFind(t *testing.T) {
	for _, tt := range []struct {
		name string
		env  map[string]string
		want Home
	}{
		{
			"matchlock home", map[string]string{"MATCHLOCK_HOME": "/m", "XDG_DATA_HOME": "/d", "HOME": "/h"},
			Home{Data: "/m/data", Cache: "/m/cache", State: "/m/state", Config: "/m/config", root: "/m"},
		},
		{
			"defaults of XDG", map[string]string{"HOME": "/h"},
			Home{Data: "/h/.local/share/matchlock", Cache: "/h/.cache/matchlock", State: "/h/.local/state/matchlock", Config: "/h/.config/matchlock"},
		},
		{
			"XDG, relative ones ignored", map[string]string{"HOME": "/h", "XDG_DATA_HOME": "/d", "XDG_CACHE_HOME": "c", "XDG_STATE_HOME": "/s"},
			Home{Data: "/d/matchlock", Cache: "/h/.cache/matchlock", State: "/s/matchlock", Config: "/h/.config/matchlock"},
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
	var fault *hostfs.FolderError
	if !errors.As(err, &fault) || !strings.Contains(fault.Hint(), "MATCHLOCK_HOME") {
		t.Errorf("Find without HOME = %v, want a FolderError whose hint names MATCHLOCK_HOME", err)
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

// Each of the folders is checked, as hostfs.Private does.
func TestOpenRefuses(t *testing.T) {
	for _, spoilt := range []string{"", "data", "cache", "state"} {
		t.Run("home/"+spoilt, func(t *testing.T) {
			root := t.TempDir()
			chmod(t, root, 0o700)
			home, err := At(root)
			if err != nil {
				t.Fatal(err)
			}
			if err := home.Open(); err != nil {
				t.Fatal(err)
			}
			chmod(t, filepath.Join(root, spoilt), 0o770)
			err = home.Open()
			var fault *hostfs.FolderError
			if !errors.As(err, &fault) || fault.Path != filepath.Join(root, spoilt) {
				t.Errorf("Open = %v, want a FolderError of %q", err, filepath.Join(root, spoilt))
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
