package workspace

import (
	"errors"
	"io"
	"syscall"
	"testing"
)

var guestUser = Owner{1000, 1001}

// must fails the test when any of the steps did.
func must(t *testing.T, steps ...error) {
	t.Helper()
	if err := errors.Join(steps...); err != nil {
		t.Fatal(err)
	}
}

func wantErrno(t *testing.T, what string, err error, want ...syscall.Errno) {
	t.Helper()
	for _, errno := range want {
		if errors.Is(err, errno) {
			return
		}
	}
	t.Errorf("%s: error %v, want %v", what, err, want)
}

func writeFile(t *testing.T, fs FS, path, content string) {
	t.Helper()
	f, err := fs.Open(path, true)
	if err == nil {
		err = f.Truncate(0)
	} else if errors.Is(err, syscall.ENOENT) {
		f, err = fs.Create(path, 0o644, guestUser)
	}
	must(t, err)
	_, err = f.WriteAt([]byte(content), 0)
	must(t, err, f.Close())
}

func readFile(t *testing.T, fs FS, path string) string {
	t.Helper()
	f, err := fs.Open(path, false)
	must(t, err)
	defer f.Close()
	content, err := io.ReadAll(io.NewSectionReader(f, 0, 1<<30))
	must(t, err)
	return string(content)
}

func second[T any](_ T, err error) error { return err }
