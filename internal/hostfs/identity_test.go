package hostfs

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

func TestIdentify(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	if _, err := Identify(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("of nothing: %v", err)
	}
	identify := func() FileID {
		t.Helper()
		id, err := Identify(path)
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	if err := os.WriteFile(path, []byte("one"), 0o600); err != nil {
		t.Fatal(err)
	}
	first := identify()
	if first != identify() {
		t.Error("a file that nobody touches has two identities")
	}
	if err := os.WriteFile(path+"2", []byte("two"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+"2", path); err != nil {
		t.Fatal(err)
	}
	if second := identify(); second == first || second.Size != first.Size {
		t.Errorf("another file of the same size: %+v and %+v", first, second)
	}
}
