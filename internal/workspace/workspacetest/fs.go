// Package workspacetest says what trees of files have to do, as tests: FS of a
// workspace.FS by its methods, All of a mounted folder by system calls.
//
// It knows no tree of its own, and does not test what keeps a guest in.
package workspacetest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/matchlock/matchlock/internal/workspace"
)

// Guest is who makes files in the tests.
var Guest = workspace.Owner{UID: 1000, GID: 1001}

// The flags and numbers of Linux that package syscall does not have everywhere.
const (
	keepSize  = 1
	punchHole = 2
	seekData  = 3
	seekHole  = 4
)

// FS is what each tree does that can be written to, one behaviour each. The tree is
// empty, belongs to Guest and has room for some MiB.
var FS = map[string]func(t *testing.T, fs workspace.FS){
	"ReadWrite":    readWrite,
	"Append":       appendAtEnd,
	"Sparse":       sparse,
	"Truncate":     truncate,
	"Allocate":     allocate,
	"Exists":       exists,
	"Missing":      missing,
	"WrongTypes":   wrongTypes,
	"Names":        names,
	"Root":         root,
	"Rename":       rename,
	"RenameFlags":  renameFlags,
	"RenameFolder": renameFolder,
	"Links":        links,
	"Unlinked":     unlinked,
	"Symlinks":     symlinks,
	"Fifos":        fifos,
	"Attributes":   attributes,
	"Times":        times,
	"Xattrs":       xattrs,
	"Identity":     identity,
	"ManyNames":    manyNames,
	"ReadOnlyFile": readOnlyFile,
	"Space":        space,
	"AtOnce":       atOnce,
}

// RunFS runs FS on trees that open makes.
func RunFS(t *testing.T, open func(t *testing.T) workspace.FS) {
	for _, name := range slices.Sorted(maps.Keys(FS)) {
		t.Run(name, func(t *testing.T) { FS[name](t, open(t)) })
	}
}

// must fails the test when any of the steps did.
func must(t *testing.T, steps ...error) {
	t.Helper()
	if err := errors.Join(steps...); err != nil {
		t.Fatal(err)
	}
}

// want reports an error that is none of those wanted.
func want(t *testing.T, what string, err error, wanted ...syscall.Errno) {
	t.Helper()
	for _, errno := range wanted {
		if errors.Is(err, errno) {
			return
		}
	}
	t.Errorf("%s: error %v, want %v", what, err, wanted)
}

func second[T any](_ T, err error) error { return err }

func create(t *testing.T, fs workspace.FS, path string) workspace.File {
	t.Helper()
	f, err := fs.Create(path, 0o644, Guest)
	must(t, err)
	t.Cleanup(func() { f.Close() })
	return f
}

func put(t *testing.T, fs workspace.FS, path, content string) {
	t.Helper()
	f, err := fs.Create(path, 0o644, Guest)
	must(t, err)
	_, err = f.WriteAt([]byte(content), 0)
	must(t, err, f.Close())
}

func get(t *testing.T, fs workspace.FS, path string) string {
	t.Helper()
	f, err := fs.Open(path, false)
	must(t, err)
	defer f.Close()
	return content(t, f)
}

func content(t *testing.T, f workspace.File) string {
	t.Helper()
	b, err := io.ReadAll(io.NewSectionReader(f, 0, 64<<20))
	must(t, err)
	return string(b)
}

func wantContent(t *testing.T, fs workspace.FS, path, want string) {
	t.Helper()
	if got := get(t, fs, path); got != want {
		t.Errorf("%s holds %.50q, want %.50q", path, got, want)
	}
}

func stat(t *testing.T, fs workspace.FS, path string) workspace.Attr {
	t.Helper()
	a, err := fs.Stat(path)
	must(t, err)
	return a
}

// list is a folder's names, in order.
func list(t *testing.T, fs workspace.FS, path string) string {
	t.Helper()
	entries, err := fs.ReadDir(path)
	must(t, err)
	var names []string
	for _, e := range entries {
		names = append(names, e.Name)
	}
	slices.Sort(names)
	return strings.Join(names, " ")
}

func readWrite(t *testing.T, fs workspace.FS) {
	f := create(t, fs, "file")
	data := bytes.Repeat([]byte("0123456789abcdef"), 20_000) // of no size that is round
	n, err := f.WriteAt(data, 0)
	if must(t, err); n != len(data) {
		t.Errorf("%d bytes of %d were written", n, len(data))
	}
	_, err = f.WriteAt([]byte("xyz"), 100_000)
	must(t, err, f.Sync(), fs.SyncDir(""))
	copy(data[100_000:], "xyz")
	wantContent(t, fs, "file", string(data))

	buf := make([]byte, 10)
	if n, err := f.ReadAt(buf, int64(len(data))-4); n != 4 || err != io.EOF {
		t.Errorf("read %d bytes (%v) at the end, want 4 and EOF", n, err)
	}
	if n, err := f.ReadAt(buf, 1<<40); n != 0 || err != io.EOF {
		t.Errorf("read %d bytes (%v) past the end, want 0 and EOF", n, err)
	}
	if a, err := f.Stat(); err != nil || a.Size != int64(len(data)) || a.Mode != syscall.S_IFREG|0o644 || a.Owner != Guest || a.Links != 1 || a.Blocks*512 < a.Size/2 {
		t.Errorf("the file is %+v (%v)", a, err)
	}
	want(t, "write at 2^63", second(f.WriteAt([]byte("xx"), 1<<63-1)), syscall.EFBIG, syscall.EINVAL)
}

func appendAtEnd(t *testing.T, fs workspace.FS) {
	f := create(t, fs, "log")
	for i := range 100 {
		a, err := f.Stat()
		must(t, err)
		_, err = fmt.Fprintf(io.NewOffsetWriter(f, a.Size), "%02d\n", i)
		must(t, err)
	}
	if got := get(t, fs, "log"); len(got) != 300 || !strings.HasSuffix(got, "\n98\n99\n") {
		t.Errorf("the log has %d bytes, and ends with %q", len(got), got[max(0, len(got)-9):])
	}
}

func sparse(t *testing.T, fs workspace.FS) {
	f := create(t, fs, "file")
	const end = 1 << 34
	_, err := f.WriteAt([]byte("end"), end)
	must(t, err)
	a, err := f.Stat()
	must(t, err)
	if a.Size != end+3 || a.Blocks*512 > 1<<20 {
		t.Errorf("size %d and %d blocks, want %d and few", a.Size, a.Blocks, end+3)
	}
	buf := []byte("what was there before")
	if n, err := f.ReadAt(buf, 1<<30); n != len(buf) || err != nil || strings.Trim(string(buf), "\x00") != "" {
		t.Errorf("in the hole are %q (%v)", buf[:n], err)
	}
	if at, err := f.SeekData(0, seekHole); at != 0 || err != nil {
		t.Errorf("the first hole is at %d (%v)", at, err)
	}
	if at, err := f.SeekData(0, seekData); err != nil || at > end || at < end-1<<20 {
		t.Errorf("data begins at %d (%v), want about %d", at, err, end)
	}
	if at, err := f.SeekData(end+1, seekHole); at != end+3 || err != nil {
		t.Errorf("the last hole is at %d (%v), want %d", at, err, end+3)
	}
	want(t, "data past the end", second(f.SeekData(end+3, seekData)), syscall.ENXIO)
}

func truncate(t *testing.T, fs workspace.FS) {
	f := create(t, fs, "file")
	_, err := f.WriteAt([]byte("0123456789"), 0)
	must(t, err, f.Truncate(4), f.Truncate(8))
	wantContent(t, fs, "file", "0123\x00\x00\x00\x00")
	size := int64(2)
	a, err := fs.SetAttr("file", workspace.Change{Size: &size})
	if must(t, err); a.Size != 2 {
		t.Errorf("SetAttr returned a size of %d", a.Size)
	}
	wantContent(t, fs, "file", "01")
	must(t, fs.Mkdir("dir", 0o755, Guest))
	want(t, "of a folder", second(fs.SetAttr("dir", workspace.Change{Size: &size})), syscall.EISDIR)
	want(t, "to a negative size", f.Truncate(-1), syscall.EINVAL)
}

func allocate(t *testing.T, fs workspace.FS) {
	f := create(t, fs, "file")
	err := f.Allocate(0, 0, 1<<20)
	if errors.Is(err, syscall.EOPNOTSUPP) {
		t.Skip("the file system does not allocate")
	}
	must(t, err, f.Allocate(keepSize, 1<<20, 1<<16))
	a, err := f.Stat()
	if must(t, err); a.Size != 1<<20 || a.Blocks*512 < 1<<20 {
		t.Errorf("size %d and %d blocks, want %d and all of them", a.Size, a.Blocks, 1<<20)
	}
	_, err = f.WriteAt(bytes.Repeat([]byte("x"), 1<<20), 0)
	must(t, err, f.Allocate(punchHole|keepSize, 100_000, 500_000))
	got := get(t, fs, "file")
	if strings.Count(got, "\x00") != 500_000 || strings.Trim(got[100_000:600_000], "\x00") != "" {
		t.Errorf("%d zeros in %d bytes, want 500000 of %d", strings.Count(got, "\x00"), len(got), 1<<20)
	}
	if a, err := f.Stat(); err != nil || a.Blocks*512 > 800_000 {
		t.Errorf("%d blocks with a hole of 500000 bytes (%v)", a.Blocks, err)
	}
	want(t, "nothing", f.Allocate(0, 0, 0), syscall.EINVAL)
	want(t, "too much", f.Allocate(0, 1<<62, 1<<62), syscall.EFBIG)
	want(t, "an unknown mode", f.Allocate(1<<20, 0, 1), syscall.EOPNOTSUPP)
}

func exists(t *testing.T, fs workspace.FS) {
	put(t, fs, "file", "x")
	must(t, fs.Mkdir("dir", 0o755, Guest), fs.Symlink("nowhere", "link", Guest))
	for _, path := range []string{"file", "dir", "link"} {
		want(t, "create "+path, second(fs.Create(path, 0o644, Guest)), syscall.EEXIST)
		want(t, "mkdir "+path, fs.Mkdir(path, 0o755, Guest), syscall.EEXIST)
		want(t, "symlink "+path, fs.Symlink("x", path, Guest), syscall.EEXIST)
		want(t, "mknod "+path, fs.Mknod(path, syscall.S_IFIFO|0o600, Guest), syscall.EEXIST)
		want(t, "link "+path, fs.Link("file", path), syscall.EEXIST)
	}
	wantContent(t, fs, "file", "x")
}

func missing(t *testing.T, fs workspace.FS) {
	must(t, fs.Mkdir("dir", 0o755, Guest))
	mode := uint32(0o600)
	for _, path := range []string{"no", "dir/no", "no/no", "dir/no/no"} {
		for what, err := range map[string]error{
			"stat":     second(fs.Stat(path)),
			"open":     second(fs.Open(path, false)),
			"write":    second(fs.Open(path, true)),
			"list":     second(fs.ReadDir(path)),
			"readlink": second(fs.Readlink(path)),
			"unlink":   fs.Unlink(path),
			"rmdir":    fs.Rmdir(path),
			"rename":   fs.Rename(path, "new", 0),
			"link":     fs.Link(path, "new"),
			"chmod":    second(fs.SetAttr(path, workspace.Change{Mode: &mode})),
			"getxattr": second(fs.Getxattr(path, "user.x")),
			"setxattr": fs.Setxattr(path, "user.x", nil, 0),
		} {
			want(t, what+" "+path, err, syscall.ENOENT)
		}
	}
	want(t, "create", second(fs.Create("no/new", 0o644, Guest)), syscall.ENOENT)
	want(t, "mkdir", fs.Mkdir("no/new", 0o755, Guest), syscall.ENOENT)
	if got := list(t, fs, ""); got != "dir" {
		t.Errorf("the root has %q", got)
	}
}

func wrongTypes(t *testing.T, fs workspace.FS) {
	put(t, fs, "file", "x")
	must(t, fs.Mkdir("dir", 0o755, Guest), fs.Mkdir("dir/sub", 0o755, Guest))
	want(t, "stat below a file", second(fs.Stat("file/x")), syscall.ENOTDIR)
	want(t, "create below a file", second(fs.Create("file/x", 0o644, Guest)), syscall.ENOTDIR)
	want(t, "list a file", second(fs.ReadDir("file")), syscall.ENOTDIR)
	want(t, "rmdir a file", fs.Rmdir("file"), syscall.ENOTDIR)
	want(t, "readlink a file", second(fs.Readlink("file")), syscall.EINVAL)
	want(t, "open a folder", second(fs.Open("dir", false)), syscall.EISDIR)
	want(t, "unlink a folder", fs.Unlink("dir"), syscall.EISDIR, syscall.EPERM)
	want(t, "rmdir a full folder", fs.Rmdir("dir"), syscall.ENOTEMPTY)
	want(t, "link a folder", fs.Link("dir", "dir2"), syscall.EPERM)
	must(t, fs.Rmdir("dir/sub"), fs.Rmdir("dir"))
}

func names(t *testing.T, fs workspace.FS) {
	long := strings.Repeat("ü", 127) + "x" // 255 bytes
	for _, name := range []string{long, " ", "...", "a\nb", "\xff\xfe", ".wh.x", ".wh..wh..opq", "-rf", "*"} {
		put(t, fs, name, name)
		wantContent(t, fs, name, name)
		if got := list(t, fs, ""); got != name {
			t.Errorf("the root has %q, want %q", got, name)
		}
		must(t, fs.Unlink(name))
	}
	want(t, "256 bytes", second(fs.Create(long+"x", 0o644, Guest)), syscall.ENAMETOOLONG)
	want(t, "256 bytes", second(fs.Stat(long+"x")), syscall.ENAMETOOLONG)
	for _, path := range []string{".", "..", "a/../b", "../x", "a//b", "/", "a/", "a\x00b"} {
		want(t, path, second(fs.Create(path, 0o644, Guest)), syscall.EINVAL)
		want(t, path, second(fs.Stat(path)), syscall.EINVAL)
		want(t, path, fs.Rename("x", path, 0), syscall.EINVAL, syscall.ENOENT)
	}
	path := "d"
	for range 100 {
		must(t, fs.Mkdir(path, 0o755, Guest))
		path += "/d"
	}
	put(t, fs, path, "deep")
	wantContent(t, fs, path, "deep")
}

func root(t *testing.T, fs workspace.FS) {
	if a := stat(t, fs, ""); a.Mode&syscall.S_IFMT != syscall.S_IFDIR || a.Owner != Guest {
		t.Errorf("the root is %+v", a)
	}
	want(t, "unlink", fs.Unlink(""), syscall.EBUSY, syscall.EISDIR)
	want(t, "rmdir", fs.Rmdir(""), syscall.EBUSY)
	must(t, fs.Mkdir("dir", 0o755, Guest))
	want(t, "rename", fs.Rename("", "dir/x", 0), syscall.EBUSY, syscall.EINVAL)
	want(t, "rename over", fs.Rename("dir", "", 0), syscall.EBUSY, syscall.ENOTEMPTY)
	mode := uint32(0o750)
	a, err := fs.SetAttr("", workspace.Change{Mode: &mode})
	if must(t, err); a.Mode != syscall.S_IFDIR|mode {
		t.Errorf("the root has mode %o", a.Mode)
	}
}

func rename(t *testing.T, fs workspace.FS) {
	put(t, fs, "a", "A")
	put(t, fs, "b", "B")
	must(t, fs.Mkdir("dir", 0o755, Guest), fs.Mkdir("dir/sub", 0o755, Guest), fs.Mkdir("empty", 0o755, Guest))
	id := stat(t, fs, "a").ID
	must(t, fs.Rename("a", "b", 0))
	wantContent(t, fs, "b", "A")
	if got := stat(t, fs, "b").ID; got != id {
		t.Errorf("a renamed file is %v, was %v", got, id)
	}
	must(t, fs.Rename("b", "dir/b", 0))
	if got := list(t, fs, "") + ", " + list(t, fs, "dir"); got != "dir empty, b sub" {
		t.Errorf("there are %s", got)
	}
	put(t, fs, "c", "C")
	want(t, "a file over a folder", fs.Rename("c", "empty", 0), syscall.EISDIR)
	want(t, "a folder over a file", fs.Rename("empty", "c", 0), syscall.ENOTDIR)
	want(t, "a folder over a full one", fs.Rename("empty", "dir", 0), syscall.ENOTEMPTY, syscall.EEXIST)
	want(t, "a folder into itself", fs.Rename("dir", "dir/sub/x", 0), syscall.EINVAL)
	want(t, "a folder over what it is in", fs.Rename("dir/sub", "dir", 0), syscall.ENOTEMPTY, syscall.EEXIST)
	must(t, fs.Rename("c", "c", 0), fs.Rename("dir", "dir", 0))
	must(t, fs.Rename("dir", "empty", 0)) // over one that is empty
	if got := list(t, fs, "") + ", " + list(t, fs, "empty"); got != "c empty, b sub" {
		t.Errorf("there are %s", got)
	}
	// Two names of one file stay two names.
	must(t, fs.Link("c", "d"), fs.Rename("c", "d", 0))
	if got := list(t, fs, ""); got != "c d empty" {
		t.Errorf("there are %s", got)
	}
}

func renameFlags(t *testing.T, fs workspace.FS) {
	put(t, fs, "a", "A")
	put(t, fs, "b", "B")
	must(t, fs.Mkdir("dir", 0o755, Guest))
	put(t, fs, "dir/x", "X")
	err := fs.Rename("a", "c", workspace.RenameNoReplace)
	if errors.Is(err, syscall.EINVAL) {
		t.Skip("the file system knows no flags")
	}
	must(t, err)
	want(t, "over another", fs.Rename("c", "b", workspace.RenameNoReplace), syscall.EEXIST)
	must(t, fs.Rename("c", "b", workspace.RenameExchange))
	wantContent(t, fs, "b", "A")
	wantContent(t, fs, "c", "B")
	must(t, fs.Rename("b", "dir", workspace.RenameExchange))
	wantContent(t, fs, "dir", "A")
	wantContent(t, fs, "b/x", "X")
	must(t, fs.Rename("dir", "b/x", workspace.RenameExchange)) // between folders
	wantContent(t, fs, "dir", "X")
	wantContent(t, fs, "b/x", "A")
	want(t, "with nothing", fs.Rename("dir", "no", workspace.RenameExchange), syscall.ENOENT)
	want(t, "with a folder above", fs.Rename("b/x", "b", workspace.RenameExchange), syscall.EINVAL, syscall.ENOTEMPTY)
	want(t, "with a file below", fs.Rename("b", "b/x", workspace.RenameExchange), syscall.EINVAL)
	want(t, "both", fs.Rename("b", "dir", 3), syscall.EINVAL)
	want(t, "an unknown flag", fs.Rename("b", "new", 4), syscall.EINVAL)
}

func renameFolder(t *testing.T, fs workspace.FS) {
	must(t, fs.Mkdir("a", 0o755, Guest), fs.Mkdir("a/b", 0o700, Guest), fs.Mkdir("to", 0o755, Guest))
	put(t, fs, "a/b/file", "x")
	f, err := fs.Open("a/b/file", true)
	must(t, err)
	defer f.Close()
	must(t, fs.Rename("a", "to/c", 0))
	wantContent(t, fs, "to/c/b/file", "x")
	want(t, "the old path", second(fs.Stat("a/b/file")), syscall.ENOENT)
	must(t, fs.Mkdir("a", 0o755, Guest))
	if got := list(t, fs, "a"); got != "" {
		t.Errorf("a new folder has %s", got)
	}
	_, err = f.WriteAt([]byte("y"), 0)
	must(t, err)
	wantContent(t, fs, "to/c/b/file", "y")
	if got := stat(t, fs, "to/c/b").Mode; got != syscall.S_IFDIR|0o700 {
		t.Errorf("mode %o", got)
	}
}

func links(t *testing.T, fs workspace.FS) {
	put(t, fs, "a", "one")
	must(t, fs.Mkdir("dir", 0o755, Guest), fs.Link("a", "dir/b"))
	a, b := stat(t, fs, "a"), stat(t, fs, "dir/b")
	if a.Links != 2 || b.Links != 2 || a.ID != b.ID {
		t.Errorf("two names of one file are %+v and %+v", a, b)
	}
	f, err := fs.Open("dir/b", true)
	must(t, err)
	_, err = f.WriteAt([]byte("two"), 0)
	must(t, err, f.Close())
	wantContent(t, fs, "a", "two")
	mode := uint32(0o640)
	must(t, second(fs.SetAttr("a", workspace.Change{Mode: &mode})))
	if got := stat(t, fs, "dir/b").Mode; got != syscall.S_IFREG|mode {
		t.Errorf("the other name has mode %o", got)
	}
	must(t, fs.Unlink("a"))
	if got := stat(t, fs, "dir/b"); got.Links != 1 || got.ID != a.ID {
		t.Errorf("the last name is of %+v", got)
	}
	wantContent(t, fs, "dir/b", "two")
}

func unlinked(t *testing.T, fs workspace.FS) {
	f := create(t, fs, "file")
	_, err := f.WriteAt([]byte("still"), 0)
	must(t, err, fs.Unlink("file"))
	_, err = f.WriteAt([]byte(" here"), 5)
	must(t, err)
	if got := content(t, f); got != "still here" {
		t.Errorf("the file holds %q", got)
	}
	if a, err := f.Stat(); err != nil || a.Links != 0 || a.Size != 10 {
		t.Errorf("the file is %+v (%v)", a, err)
	}
	put(t, fs, "file", "another")
	put(t, fs, "third", "third")
	must(t, fs.Rename("third", "file", 0), f.Truncate(3))
	wantContent(t, fs, "file", "third")
	must(t, f.Close())
	if f.Close() == nil {
		t.Error("closed twice")
	}
}

func symlinks(t *testing.T, fs workspace.FS) {
	must(t, fs.Mkdir("dir", 0o755, Guest))
	put(t, fs, "dir/file", "x")
	long := strings.Repeat("x", 4095)
	for path, target := range map[string]string{"rel": "dir", "abs": "/etc/passwd", "up": "../../x", "odd": "a\nb\xff", "long": long} {
		must(t, fs.Symlink(target, path, Guest))
		if got, err := fs.Readlink(path); err != nil || got != target {
			t.Errorf("%s leads to %.50q (%v), want %.50q", path, got, err, target)
		}
		if a := stat(t, fs, path); a.Mode != syscall.S_IFLNK|0o777 || a.Size != int64(len(target)) {
			t.Errorf("%s is %+v", path, a)
		}
		want(t, "open "+path, second(fs.Open(path, false)), syscall.ELOOP)
		want(t, "list "+path, second(fs.ReadDir(path)), syscall.ENOTDIR, syscall.ELOOP)
		want(t, "stat through "+path, second(fs.Stat(path+"/file")), syscall.ENOTDIR, syscall.ELOOP)
	}
	want(t, "a target of 4096 bytes", fs.Symlink(long+"x", "x", Guest), syscall.ENAMETOOLONG)
	want(t, "no target", fs.Symlink("", "x", Guest), syscall.ENOENT)
	mode, uid := uint32(0o600), uint32(7)
	want(t, "chmod", second(fs.SetAttr("rel", workspace.Change{Mode: &mode})), syscall.EOPNOTSUPP)
	if a, err := fs.SetAttr("rel", workspace.Change{UID: &uid}); err != nil || a.Owner.UID != 7 {
		t.Errorf("chown of a link: %+v (%v)", a, err)
	}
	if a := stat(t, fs, "dir"); a.Owner != Guest {
		t.Errorf("chown of a link went through it: %+v", a)
	}
	must(t, fs.Link("rel", "rel2"), fs.Unlink("rel"))
	if got, err := fs.Readlink("rel2"); err != nil || got != "dir" {
		t.Errorf("a link's other name leads to %q (%v)", got, err)
	}
}

func fifos(t *testing.T, fs workspace.FS) {
	must(t, fs.Mknod("fifo", syscall.S_IFIFO|0o640, Guest), fs.Mknod("sock", syscall.S_IFSOCK|0o600, Guest))
	if a := stat(t, fs, "fifo"); a.Mode != syscall.S_IFIFO|0o640 || a.Owner != Guest {
		t.Errorf("the fifo is %+v", a)
	}
	for _, path := range []string{"fifo", "sock"} {
		want(t, "open "+path, second(fs.Open(path, true)), syscall.ENXIO)
	}
	for _, mode := range []uint32{syscall.S_IFCHR, syscall.S_IFBLK, syscall.S_IFREG, syscall.S_IFDIR, 0} {
		want(t, fmt.Sprintf("mknod %o", mode), fs.Mknod("x", mode|0o600, Guest), syscall.EPERM)
	}
	must(t, fs.Rename("fifo", "sock", 0), fs.Unlink("sock"))
}

func attributes(t *testing.T, fs workspace.FS) {
	put(t, fs, "file", "x")
	must(t, fs.Mkdir("dir", 0o1775, workspace.Owner{UID: 5, GID: 6}))
	if a := stat(t, fs, "dir"); a.Mode != syscall.S_IFDIR|0o1775 || a.Owner != (workspace.Owner{UID: 5, GID: 6}) {
		t.Errorf("the folder is %+v", a)
	}
	for _, mode := range []uint32{0, 0o111, 0o444, 0o777, 0o4755, 0o2070, 0o7777, 0o644} {
		a, err := fs.SetAttr("file", workspace.Change{Mode: &mode})
		if must(t, err); a.Mode != syscall.S_IFREG|mode || a != stat(t, fs, "file") {
			t.Errorf("mode %o is %o, then %o", mode, a.Mode, stat(t, fs, "file").Mode)
		}
		wantContent(t, fs, "file", "x") // whatever the mode: who may, the guest's kernel knows
	}
	uid, gid := uint32(0), uint32(1<<32-2)
	must(t, second(fs.SetAttr("file", workspace.Change{UID: &uid})))
	a, err := fs.SetAttr("file", workspace.Change{GID: &gid})
	if must(t, err); a.Owner != (workspace.Owner{UID: uid, GID: gid}) || a != stat(t, fs, "file") {
		t.Errorf("the owner is %+v", a.Owner)
	}
	uid, gid = Guest.UID, Guest.GID
	a, err = fs.SetAttr("file", workspace.Change{UID: &uid, GID: &gid})
	if must(t, err); a.Owner != Guest || a.Mode != syscall.S_IFREG|0o644 {
		t.Errorf("back: %+v", a)
	}
	f := create(t, fs, "odd")
	if a, err := f.Stat(); err != nil || a.Mode != syscall.S_IFREG|0o644 {
		t.Errorf("an open file is %+v (%v)", a, err)
	}
}

func times(t *testing.T, fs workspace.FS) {
	put(t, fs, "file", "x")
	must(t, fs.Mkdir("dir", 0o755, Guest), fs.Symlink("x", "link", Guest))
	at, mt := time.Unix(1_000_000_000, 123456789), time.Unix(1, 1)
	for _, path := range []string{"file", "dir", "link"} {
		must(t, second(fs.SetAttr(path, workspace.Change{Atime: &at, Mtime: &mt})))
		a := stat(t, fs, path)
		if !a.Atime.Equal(at) || !a.Mtime.Equal(mt) {
			t.Errorf("%s: times %v and %v, want %v and %v", path, a.Atime, a.Mtime, at, mt)
		}
		if age := time.Since(a.Ctime); age < -time.Minute || age > time.Minute {
			t.Errorf("%s: ctime %v", path, a.Ctime)
		}
		must(t, second(fs.SetAttr(path, workspace.Change{Now: [2]bool{false, true}})))
		a = stat(t, fs, path)
		if !a.Atime.Equal(at) || time.Since(a.Mtime) > time.Minute {
			t.Errorf("%s: times %v and %v, want %v and the present", path, a.Atime, a.Mtime, at)
		}
		must(t, second(fs.SetAttr(path, workspace.Change{Mtime: &mt})))
	}
	// What changes a file changes its time, and what changes names the folder's.
	f, err := fs.Open("file", true)
	must(t, err)
	_, err = f.WriteAt([]byte("y"), 0)
	must(t, err, f.Close())
	put(t, fs, "dir/new", "")
	for _, path := range []string{"file", "dir"} {
		if a := stat(t, fs, path); time.Since(a.Mtime) > time.Minute {
			t.Errorf("%s was changed, and its time is %v", path, a.Mtime)
		}
	}
}

func xattrs(t *testing.T, fs workspace.FS) {
	put(t, fs, "file", "x")
	must(t, fs.Mkdir("dir", 0o755, Guest))
	err := fs.Setxattr("file", "user.a", []byte("1\x00\xff"), 0)
	if errors.Is(err, syscall.EOPNOTSUPP) {
		t.Skip("the file system has no xattrs")
	}
	must(t, err, fs.Setxattr("file", "user.b", nil, 0), fs.Setxattr("dir", "user.c", []byte("x"), 1))
	for name, want := range map[string]string{"user.a": "1\x00\xff", "user.b": ""} {
		if got, err := fs.Getxattr("file", name); err != nil || string(got) != want {
			t.Errorf("%s is %q (%v), want %q", name, got, err, want)
		}
	}
	names, err := fs.Listxattr("file")
	slices.Sort(names)
	if must(t, err); !slices.Equal(names, []string{"user.a", "user.b"}) {
		t.Errorf("xattrs are %q", names)
	}
	const enodata = syscall.Errno(61)
	want(t, "make one that is there", fs.Setxattr("file", "user.a", nil, 1), syscall.EEXIST)
	want(t, "replace none", fs.Setxattr("file", "user.n", nil, 2), enodata)
	want(t, "get none", second(fs.Getxattr("file", "user.n")), enodata)
	want(t, "remove none", fs.Removexattr("file", "user.n"), enodata)
	want(t, "too long", fs.Setxattr("file", "user.l", make([]byte, 70_000), 0), syscall.E2BIG, syscall.ENOSPC)
	for _, name := range []string{"security.capability", "trusted.x", "system.posix_acl_access", "user.matchlock", "user.", "x"} {
		want(t, "set "+name, fs.Setxattr("file", name, []byte("x"), 0), syscall.EOPNOTSUPP)
		want(t, "get "+name, second(fs.Getxattr("file", name)), enodata)
		want(t, "remove "+name, fs.Removexattr("file", name), syscall.EOPNOTSUPP)
	}
	must(t, fs.Removexattr("file", "user.a"), fs.Rename("file", "dir/file", 0))
	if names, err := fs.Listxattr("dir/file"); err != nil || !slices.Equal(names, []string{"user.b"}) {
		t.Errorf("xattrs are %q (%v)", names, err)
	}
}

func identity(t *testing.T, fs workspace.FS) {
	ids := map[workspace.ID]string{}
	for _, path := range []string{"a", "b", "c"} {
		put(t, fs, path, path)
	}
	must(t, fs.Mkdir("dir", 0o755, Guest), fs.Symlink("x", "link", Guest))
	for _, path := range []string{"", "a", "b", "c", "dir", "link"} {
		id := stat(t, fs, path).ID
		if other, ok := ids[id]; ok {
			t.Errorf("%q and %q are both %+v", path, other, id)
		}
		ids[id] = path
	}
	id := stat(t, fs, "a").ID
	f, err := fs.Open("a", true)
	must(t, err)
	_, err = f.WriteAt([]byte("more"), 0)
	must(t, err)
	if a, err := f.Stat(); err != nil || a.ID != id {
		t.Errorf("the open file is %+v (%v), was %+v", a.ID, err, id)
	}
	mode := uint32(0o600)
	must(t, f.Close(), second(fs.SetAttr("a", workspace.Change{Mode: &mode})), fs.Rename("a", "dir/a", 0))
	if got := stat(t, fs, "dir/a").ID; got != id {
		t.Errorf("the file is %+v, was %+v", got, id)
	}
}

func manyNames(t *testing.T, fs workspace.FS) {
	must(t, fs.Mkdir("dir", 0o755, Guest))
	for i := range 1500 {
		must(t, fs.Symlink("x", fmt.Sprintf("dir/%04d", i), Guest))
	}
	for i := range 1500 {
		if i%100 == 0 {
			entries, err := fs.ReadDir("dir")
			if must(t, err); len(entries) != 1500-i {
				t.Fatalf("%d names, want %d", len(entries), 1500-i)
			}
			for _, e := range entries {
				if e.Type != syscall.S_IFLNK && e.Type != 0 {
					t.Fatalf("%s has type %o", e.Name, e.Type)
				}
			}
		}
		must(t, fs.Unlink(fmt.Sprintf("dir/%04d", i)))
	}
	must(t, fs.Rmdir("dir"))
}

func readOnlyFile(t *testing.T, fs workspace.FS) {
	put(t, fs, "file", "x")
	f, err := fs.Open("file", false)
	must(t, err)
	defer f.Close()
	want(t, "write", second(f.WriteAt([]byte("y"), 0)), syscall.EBADF)
	want(t, "truncate", f.Truncate(0), syscall.EBADF, syscall.EINVAL)
	want(t, "allocate", f.Allocate(0, 0, 1), syscall.EBADF)
	wantContent(t, fs, "file", "x")
}

func space(t *testing.T, fs workspace.FS) {
	s, err := fs.Statfs("")
	must(t, err)
	if s.BlockSize <= 0 || s.Blocks == 0 || s.Free > s.Blocks || s.Avail > s.Blocks {
		t.Errorf("statfs says %+v", s)
	}
}

func atOnce(t *testing.T, fs workspace.FS) {
	must(t, fs.Mkdir("dir", 0o755, Guest))
	shared := create(t, fs, "shared")
	var all sync.WaitGroup
	for i := range 4 {
		all.Go(func() {
			for j := range 50 {
				path := fmt.Sprintf("dir/%d-%d", i, j)
				f, err := fs.Create(path, 0o644, Guest)
				if err != nil {
					t.Error(err)
					return
				}
				f.WriteAt([]byte(path), 0)
				f.Close()
				shared.WriteAt([]byte{byte(i)}, int64(i*50+j))
				fs.ReadDir("dir")
				if err := fs.Rename(path, path+"x", 0); err != nil {
					t.Error(err)
				}
				if j%2 == 0 {
					if err := fs.Unlink(path + "x"); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	all.Wait()
	if n := len(strings.Fields(list(t, fs, "dir"))); n != 100 {
		t.Errorf("%d files are left, want 100", n)
	}
	if n := len(get(t, fs, "shared")); n != 200 {
		t.Errorf("the file has %d bytes, want 200", n)
	}
}
