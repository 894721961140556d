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

// populate makes some files in a tree.
func populate(t testing.TB, fs FS) {
	steps := []error{
		fs.Mkdir("a", 0o755, guestUser), fs.Mkdir("a/b", 0o755, guestUser), fs.Mkdir("c", 0o700, guestUser),
		fs.Symlink("b", "a/c", guestUser), fs.Mknod("b", syscall.S_IFIFO|0o600, guestUser),
	}
	for _, path := range []string{"a/a", "a/b/a", "a/b/b", "c/b"} {
		f, err := fs.Create(path, 0o644, guestUser)
		if err == nil {
			_, err = f.WriteAt([]byte("content of "+path), 0)
			f.Close()
		}
		steps = append(steps, err)
	}
	if err := errors.Join(steps...); err != nil {
		t.Fatal(err)
	}
}
