package workspacetest

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// All is what programs expect of a folder that a tree is mounted at, one behaviour each.
// Root is empty and belongs to who runs the test. What only root may do is left out
// where that is another.
var All = map[string]func(t *testing.T, root string){
	"Append":          posixAppend,
	"Exclusive":       posixExclusive,
	"Sparse":          posixSparse,
	"Truncate":        posixTruncate,
	"TruncateOnOpen":  posixTruncateOnOpen,
	"Rename":          posixRename,
	"RenameFlags":     posixRenameFlags,
	"RenameFolder":    posixRenameFolder,
	"RenameWhileOpen": posixRenameWhileOpen,
	"Unlinked":        posixUnlinked,
	"Links":           posixLinks,
	"Symlinks":        posixSymlinks,
	"SymlinkLoop":     posixSymlinkLoop,
	"Modes":           posixModes,
	"Owners":          posixOwners,
	"Times":           posixTimes,
	"Xattrs":          posixXattrs,
	"Allocate":        posixAllocate,
	"Holes":           posixHoles,
	"Statfs":          posixStatfs,
	"Sync":            posixSync,
	"Flock":           posixFlock,
	"RecordLocks":     posixRecordLocks,
	"Mmap":            posixMmap,
	"ReadDirChanging": posixReadDirChanging,
	"Names":           posixNames,
	"Errors":          posixErrors,
	"Inodes":          posixInodes,
	"Fifo":            posixFifo,
	"Run":             posixRun,
	"Writers":         posixWriters,
	"Deep":            posixDeep,
	"Random":          posixRandom,
}

func write(t *testing.T, path, content string) {
	t.Helper()
	must(t, os.WriteFile(path, []byte(content), 0o644))
}

func wantFile(t *testing.T, path, want string) {
	t.Helper()
	if got, err := os.ReadFile(path); err != nil || string(got) != want {
		t.Errorf("%s holds %.50q (%v), want %.50q", path, got, err, want)
	}
}

func lstat(t *testing.T, path string) unix.Stat_t {
	t.Helper()
	var st unix.Stat_t
	must(t, unix.Lstat(path, &st))
	return st
}

func openFile(t *testing.T, path string, flags int) *os.File {
	t.Helper()
	f, err := os.OpenFile(path, flags, 0o644)
	must(t, err)
	t.Cleanup(func() { f.Close() })
	return f
}

func dirNames(t *testing.T, path string) string {
	t.Helper()
	entries, err := os.ReadDir(path)
	must(t, err)
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return strings.Join(names, " ")
}

// posixAppend has two who append find each the other's end.
func posixAppend(t *testing.T, root string) {
	path := filepath.Join(root, "log")
	a, b := openFile(t, path, os.O_WRONLY|os.O_CREATE|os.O_APPEND), openFile(t, path, os.O_WRONLY|os.O_APPEND)
	for range 100 {
		must(t, second(a.WriteString("a\n")), second(b.WriteString("b\n")))
	}
	wantFile(t, path, strings.Repeat("a\nb\n", 100))
}

func posixExclusive(t *testing.T, root string) {
	path := filepath.Join(root, "lock")
	var wins sync.Map
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
			if err == nil {
				wins.Store(i, true)
				f.Close()
			} else if !errors.Is(err, syscall.EEXIST) {
				t.Error(err)
			}
		})
	}
	all.Wait()
	n := 0
	wins.Range(func(any, any) bool { n++; return true })
	if n != 1 {
		t.Errorf("%d made the file, want 1", n)
	}
	must(t, os.Symlink("nowhere", path+"2"))
	_, err := os.OpenFile(path+"2", os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	want(t, "through a link", err, syscall.EEXIST)
}

func posixSparse(t *testing.T, root string) {
	f := openFile(t, filepath.Join(root, "file"), os.O_RDWR|os.O_CREATE)
	const end = 1 << 32
	must(t, second(f.WriteAt([]byte("end"), end)))
	buf := []byte("before")
	must(t, second(f.ReadAt(buf, 1<<31)))
	if string(buf) != "\x00\x00\x00\x00\x00\x00" {
		t.Errorf("in the hole are %q", buf)
	}
	must(t, f.Sync())
	if st := lstat(t, f.Name()); st.Size != end+3 || st.Blocks*512 > 1<<20 {
		t.Errorf("size %d and %d blocks", st.Size, st.Blocks)
	}
}

func posixTruncate(t *testing.T, root string) {
	path := filepath.Join(root, "file")
	write(t, path, "0123456789")
	f := openFile(t, path, os.O_RDWR)
	must(t, f.Truncate(4), os.Truncate(path, 8))
	wantFile(t, path, "0123\x00\x00\x00\x00")
	must(t, second(f.WriteAt([]byte("x"), 6)), f.Truncate(7))
	wantFile(t, path, "0123\x00\x00x")
	if st := lstat(t, path); st.Size != 7 {
		t.Errorf("size %d", st.Size)
	}
}

func posixTruncateOnOpen(t *testing.T, root string) {
	path := filepath.Join(root, "file")
	write(t, path, strings.Repeat("long", 10_000))
	reader := openFile(t, path, os.O_RDONLY)
	write(t, path, "short")
	buf := make([]byte, 100)
	if n, _ := reader.Read(buf); string(buf[:n]) != "short" {
		t.Errorf("who has it open reads %q", buf[:n])
	}
}

func posixRename(t *testing.T, root string) {
	a, b, dir := filepath.Join(root, "a"), filepath.Join(root, "b"), filepath.Join(root, "dir")
	write(t, a, "A")
	write(t, b, "B")
	must(t, os.Mkdir(dir, 0o755), os.Rename(a, b))
	wantFile(t, b, "A")
	if got := dirNames(t, root); got != "b dir" {
		t.Errorf("there are %s", got)
	}
	must(t, os.Rename(b, filepath.Join(dir, "c")))
	wantFile(t, filepath.Join(dir, "c"), "A")
	write(t, a, "A")
	want(t, "a file over a folder", syscall.Rename(a, dir), syscall.EISDIR)
	want(t, "a folder over a file", syscall.Rename(dir, a), syscall.ENOTDIR)
	want(t, "a folder into itself", syscall.Rename(dir, filepath.Join(dir, "x")), syscall.EINVAL)
	want(t, "what is not there", syscall.Rename(b, a), syscall.ENOENT)
	// Whoever looks finds the old file or the new one.
	stop, done := make(chan struct{}), make(chan error)
	go func() {
		for {
			select {
			case <-stop:
				done <- nil
				return
			default:
			}
			if content, err := os.ReadFile(a); err != nil || len(content) != 1 {
				done <- fmt.Errorf("read %q: %w", content, err)
				return
			}
		}
	}()
	for i := range 50 {
		write(t, b, fmt.Sprint(i%10))
		must(t, os.Rename(b, a))
	}
	close(stop)
	must(t, <-done)
}

func posixRenameFlags(t *testing.T, root string) {
	a, b := filepath.Join(root, "a"), filepath.Join(root, "b")
	rename := func(flags uint) error { return unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, flags) }
	write(t, a, "A")
	write(t, b, "B")
	want(t, "over another", rename(unix.RENAME_NOREPLACE), syscall.EEXIST)
	must(t, rename(unix.RENAME_EXCHANGE))
	wantFile(t, a, "B")
	wantFile(t, b, "A")
	must(t, os.Remove(b))
	want(t, "with nothing", rename(unix.RENAME_EXCHANGE), syscall.ENOENT)
	must(t, rename(unix.RENAME_NOREPLACE))
	wantFile(t, b, "B")
}

func posixRenameFolder(t *testing.T, root string) {
	must(t, os.MkdirAll(filepath.Join(root, "a/b/c"), 0o755), os.Mkdir(filepath.Join(root, "d"), 0o755))
	write(t, filepath.Join(root, "a/b/c/file"), "x")
	cwd, err := os.Open(filepath.Join(root, "a/b"))
	must(t, err)
	defer cwd.Close()
	must(t, os.Rename(filepath.Join(root, "a"), filepath.Join(root, "d/a")))
	wantFile(t, filepath.Join(root, "d/a/b/c/file"), "x")
	if _, err := os.Stat(filepath.Join(root, "a/b")); !errors.Is(err, syscall.ENOENT) {
		t.Errorf("the old path: %v", err)
	}
	// Who is in it stays in it.
	fd, err := unix.Openat(int(cwd.Fd()), "c/file", unix.O_RDONLY, 0)
	if must(t, err); err == nil {
		unix.Close(fd)
	}
	fd, err = unix.Openat(int(cwd.Fd()), "new", unix.O_WRONLY|unix.O_CREAT, 0o644)
	must(t, err, unix.Close(fd))
	wantFile(t, filepath.Join(root, "d/a/b/new"), "")
}

func posixRenameWhileOpen(t *testing.T, root string) {
	a, b := filepath.Join(root, "a"), filepath.Join(root, "b")
	f := openFile(t, a, os.O_RDWR|os.O_CREATE)
	must(t, second(f.WriteString("one")), os.Rename(a, b), second(f.WriteString("two")))
	wantFile(t, b, "onetwo")
	// The one that it replaces goes on for who has it.
	old := openFile(t, b, os.O_RDWR)
	write(t, a, "new")
	must(t, os.Rename(a, b), second(old.WriteAt([]byte("ONE"), 0)))
	wantFile(t, b, "new")
	buf := make([]byte, 6)
	must(t, second(f.ReadAt(buf, 0)))
	if string(buf) != "ONEtwo" {
		t.Errorf("the open file holds %q", buf)
	}
}

func posixUnlinked(t *testing.T, root string) {
	path := filepath.Join(root, "file")
	f := openFile(t, path, os.O_RDWR|os.O_CREATE)
	must(t, second(f.WriteString("still")), os.Remove(path), second(f.WriteString(" here")))
	write(t, path, "another")
	buf := make([]byte, 20)
	if n, _ := f.ReadAt(buf, 0); string(buf[:n]) != "still here" {
		t.Errorf("the file holds %q", buf[:n])
	}
	if info, err := f.Stat(); err != nil || info.Size() != 10 {
		t.Errorf("the file is %v (%v)", info, err)
	}
	must(t, f.Truncate(2), f.Chmod(0o600), f.Sync())
	wantFile(t, path, "another")
	must(t, os.Remove(path))
	if got := dirNames(t, root); got != "" {
		t.Errorf("there are %s", got)
	}
}

func posixLinks(t *testing.T, root string) {
	a, b := filepath.Join(root, "a"), filepath.Join(root, "b")
	write(t, a, "one")
	must(t, os.Link(a, b))
	if x, y := lstat(t, a), lstat(t, b); x.Ino != y.Ino || x.Nlink != 2 || y.Nlink != 2 {
		t.Errorf("inodes %d and %d, with %d and %d links", x.Ino, y.Ino, x.Nlink, y.Nlink)
	}
	write(t, b, "two")
	wantFile(t, a, "two")
	must(t, os.Chmod(b, 0o600))
	if st := lstat(t, a); st.Mode&0o777 != 0o600 {
		t.Errorf("mode %o", st.Mode)
	}
	want(t, "over another", os.Link(a, b), syscall.EEXIST)
	want(t, "of a folder", os.Link(root, filepath.Join(root, "dir")), syscall.EPERM)
	must(t, os.Remove(a))
	if st := lstat(t, b); st.Nlink != 1 {
		t.Errorf("%d links", st.Nlink)
	}
	wantFile(t, b, "two")
}

func posixSymlinks(t *testing.T, root string) {
	must(t, os.Mkdir(filepath.Join(root, "dir"), 0o755), os.Symlink("dir", filepath.Join(root, "link")), os.Symlink("no/where", filepath.Join(root, "dangling")))
	write(t, filepath.Join(root, "link/file"), "x")
	wantFile(t, filepath.Join(root, "dir/file"), "x")
	if target, err := os.Readlink(filepath.Join(root, "dangling")); err != nil || target != "no/where" {
		t.Errorf("it leads to %q (%v)", target, err)
	}
	_, err := os.Stat(filepath.Join(root, "dangling"))
	want(t, "a link to nothing", err, syscall.ENOENT)
	long := filepath.Join(root, "long")
	must(t, os.Symlink(strings.Repeat("x", 4095), long))
	if target, err := os.Readlink(long); err != nil || len(target) != 4095 {
		t.Errorf("a long link has %d bytes (%v)", len(target), err)
	}
	_, err = os.OpenFile(filepath.Join(root, "link"), os.O_RDONLY|unix.O_NOFOLLOW, 0)
	want(t, "with O_NOFOLLOW", err, syscall.ELOOP)
	// A program that writes through a link to an absolute path stays in the mount.
	must(t, os.Symlink(filepath.Join(root, "target"), filepath.Join(root, "absolute")))
	write(t, filepath.Join(root, "absolute"), "y")
	wantFile(t, filepath.Join(root, "target"), "y")
	must(t, os.Remove(filepath.Join(root, "link")))
	wantFile(t, filepath.Join(root, "dir/file"), "x")
}

func posixSymlinkLoop(t *testing.T, root string) {
	must(t, os.Symlink("b", filepath.Join(root, "a")), os.Symlink("a", filepath.Join(root, "b")))
	_, err := os.Open(filepath.Join(root, "a"))
	want(t, "a loop", err, syscall.ELOOP)
}

func posixModes(t *testing.T, root string) {
	path, dir := filepath.Join(root, "file"), filepath.Join(root, "dir")
	write(t, path, "x")
	must(t, os.Mkdir(dir, 0o755))
	for _, mode := range []uint32{0o600, 0o444, 0o111, 0o777, 0o4755, 0o1777, 0} {
		must(t, unix.Chmod(path, mode))
		if st := lstat(t, path); st.Mode != unix.S_IFREG|mode {
			t.Errorf("mode %o, want %o", st.Mode, mode)
		}
		must(t, unix.Chmod(dir, mode))
		if st := lstat(t, dir); st.Mode != unix.S_IFDIR|mode {
			t.Errorf("the folder has mode %o, want %o", st.Mode, mode)
		}
	}
	must(t, unix.Chmod(dir, 0o755))
	f := openFile(t, filepath.Join(dir, "new"), os.O_RDWR|os.O_CREATE)
	must(t, unix.Fchmod(int(f.Fd()), 0))
	must(t, second(f.WriteString("x"))) // who has it open may go on
	if st := lstat(t, f.Name()); st.Mode != unix.S_IFREG {
		t.Errorf("mode %o", st.Mode)
	}
}

func posixOwners(t *testing.T, root string) {
	path := filepath.Join(root, "file")
	write(t, path, "x")
	if st := lstat(t, path); int(st.Uid) != os.Geteuid() || int(st.Gid) != os.Getegid() {
		t.Errorf("a new file belongs to %d:%d", st.Uid, st.Gid)
	}
	if os.Geteuid() != 0 {
		return
	}
	must(t, os.Symlink("file", path+"link"), os.Chown(path, 1234, 5678), os.Lchown(path+"link", 7, 8), os.Chown(path, -1, 99))
	if st := lstat(t, path); st.Uid != 1234 || st.Gid != 99 {
		t.Errorf("the file belongs to %d:%d", st.Uid, st.Gid)
	}
	if st := lstat(t, path+"link"); st.Uid != 7 || st.Gid != 8 {
		t.Errorf("the link belongs to %d:%d", st.Uid, st.Gid)
	}
}

func posixTimes(t *testing.T, root string) {
	path := filepath.Join(root, "file")
	write(t, path, "x")
	must(t, os.Mkdir(filepath.Join(root, "dir"), 0o755), os.Symlink("file", filepath.Join(root, "link")))
	for _, name := range []string{"file", "dir", "link"} {
		path := filepath.Join(root, name)
		times := []unix.Timespec{{Sec: 1_000_000_000, Nsec: 123456789}, {Sec: 1_500_000_000, Nsec: 1}}
		must(t, unix.UtimesNanoAt(unix.AT_FDCWD, path, times, unix.AT_SYMLINK_NOFOLLOW))
		if st := lstat(t, path); st.Atim != times[0] || st.Mtim != times[1] {
			t.Errorf("%s: times %v and %v", name, st.Atim, st.Mtim)
		}
		times = []unix.Timespec{{Nsec: unix.UTIME_OMIT}, {Nsec: unix.UTIME_NOW}}
		must(t, unix.UtimesNanoAt(unix.AT_FDCWD, path, times, unix.AT_SYMLINK_NOFOLLOW))
		st := lstat(t, path)
		if age := time.Since(time.Unix(st.Mtim.Unix())); st.Atim.Sec != 1_000_000_000 || age < -time.Minute || age > time.Minute {
			t.Errorf("%s: times %v and %v", name, st.Atim, st.Mtim)
		}
	}
	old := time.Unix(1, 0)
	must(t, os.Chtimes(path, old, old), os.Chtimes(root, old, old))
	write(t, path, "yy")
	if st := lstat(t, path); st.Mtim.Sec == 1 {
		t.Error("a write has left the file's time")
	}
	if st := lstat(t, root); st.Mtim.Sec != 1 {
		t.Error("a write to a file has changed the folder's time")
	}
	must(t, os.Remove(path))
	if st := lstat(t, root); st.Mtim.Sec == 1 {
		t.Error("a name is gone, and the folder's time is what it was")
	}
}

func posixXattrs(t *testing.T, root string) {
	path := filepath.Join(root, "file")
	write(t, path, "x")
	err := unix.Setxattr(path, "user.a", []byte("1\x00"), 0)
	if errors.Is(err, syscall.EOPNOTSUPP) {
		t.Skip("the file system has no xattrs")
	}
	must(t, err, unix.Setxattr(root, "user.b", nil, unix.XATTR_CREATE))
	buf := make([]byte, 1000)
	n, err := unix.Getxattr(path, "user.a", buf)
	if must(t, err); string(buf[:n]) != "1\x00" {
		t.Errorf("the xattr is %q", buf[:n])
	}
	if n, err := unix.Getxattr(path, "user.a", nil); n != 2 || err != nil {
		t.Errorf("its size is %d (%v)", n, err)
	}
	n, err = unix.Listxattr(path, buf)
	if must(t, err); !slices.Contains(strings.Split(string(buf[:n]), "\x00"), "user.a") {
		t.Errorf("xattrs are %q", buf[:n])
	}
	want(t, "make one that is there", unix.Setxattr(path, "user.a", nil, unix.XATTR_CREATE), syscall.EEXIST)
	want(t, "replace none", unix.Setxattr(path, "user.n", nil, unix.XATTR_REPLACE), syscall.ENODATA)
	want(t, "get none", second(unix.Getxattr(path, "user.n", buf)), syscall.ENODATA)
	want(t, "too short a buffer", second(unix.Getxattr(path, "user.a", buf[:1])), syscall.ERANGE)
	must(t, unix.Removexattr(path, "user.a"))
	want(t, "get what was removed", second(unix.Getxattr(path, "user.a", buf)), syscall.ENODATA)
}

func posixAllocate(t *testing.T, root string) {
	f := openFile(t, filepath.Join(root, "file"), os.O_RDWR|os.O_CREATE)
	err := unix.Fallocate(int(f.Fd()), 0, 0, 1<<20)
	if errors.Is(err, syscall.EOPNOTSUPP) {
		t.Skip("the file system does not allocate")
	}
	must(t, err, unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE, 1<<20, 1<<16))
	if st := lstat(t, f.Name()); st.Size != 1<<20 || st.Blocks*512 < 1<<20 {
		t.Errorf("size %d and %d blocks", st.Size, st.Blocks)
	}
	must(t, second(f.WriteAt(bytes.Repeat([]byte("x"), 1<<20), 0)))
	must(t, unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 1<<18, 1<<18))
	content, err := os.ReadFile(f.Name())
	if must(t, err); bytes.Count(content, []byte{0}) != 1<<18 || len(content) != 1<<20 {
		t.Errorf("%d zeros in %d bytes", bytes.Count(content, []byte{0}), len(content))
	}
}

func posixHoles(t *testing.T, root string) {
	f := openFile(t, filepath.Join(root, "file"), os.O_RDWR|os.O_CREATE)
	must(t, second(f.WriteAt([]byte("data"), 1<<20)), f.Truncate(4<<20), f.Sync())
	data, err := unix.Seek(int(f.Fd()), 0, unix.SEEK_DATA)
	if must(t, err); data > 1<<20 {
		t.Errorf("data begins at %d", data)
	}
	hole, err := unix.Seek(int(f.Fd()), 1<<20, unix.SEEK_HOLE)
	if must(t, err); hole <= 1<<20 || hole > 4<<20 {
		t.Errorf("a hole begins at %d", hole)
	}
	want(t, "past the end", second(unix.Seek(int(f.Fd()), 5<<20, unix.SEEK_DATA)), syscall.ENXIO)
}

func posixStatfs(t *testing.T, root string) {
	var s unix.Statfs_t
	if must(t, unix.Statfs(root, &s)); s.Bsize <= 0 || s.Blocks == 0 || s.Bavail > s.Blocks || s.Namelen < 255 {
		t.Errorf("statfs says %+v", s)
	}
}

func posixSync(t *testing.T, root string) {
	f := openFile(t, filepath.Join(root, "file"), os.O_RDWR|os.O_CREATE)
	must(t, second(f.WriteString("x")), f.Sync(), unix.Fdatasync(int(f.Fd())))
	dir, err := os.Open(root)
	must(t, err)
	defer dir.Close()
	must(t, dir.Sync(), unix.Syncfs(int(dir.Fd())))
	o := openFile(t, filepath.Join(root, "direct"), os.O_RDWR|os.O_CREATE|os.O_SYNC)
	must(t, second(o.WriteString("x")))
	wantFile(t, o.Name(), "x")
}

func posixFlock(t *testing.T, root string) {
	path := filepath.Join(root, "file")
	a, b := openFile(t, path, os.O_RDWR|os.O_CREATE), openFile(t, path, os.O_RDWR)
	must(t, unix.Flock(int(a.Fd()), unix.LOCK_EX))
	want(t, "a second lock", unix.Flock(int(b.Fd()), unix.LOCK_SH|unix.LOCK_NB), syscall.EWOULDBLOCK)
	locked := make(chan error)
	go func() { locked <- unix.Flock(int(b.Fd()), unix.LOCK_EX) }()
	must(t, unix.Flock(int(a.Fd()), unix.LOCK_UN), <-locked)
	want(t, "the other way round", unix.Flock(int(a.Fd()), unix.LOCK_EX|unix.LOCK_NB), syscall.EWOULDBLOCK)
	must(t, b.Close(), unix.Flock(int(a.Fd()), unix.LOCK_EX|unix.LOCK_NB))
}

// posixRecordLocks uses locks of open files (F_OFD_SETLK): those of processes take two.
func posixRecordLocks(t *testing.T, root string) {
	path := filepath.Join(root, "file")
	a, b := openFile(t, path, os.O_RDWR|os.O_CREATE), openFile(t, path, os.O_RDWR)
	lock := func(f *os.File, typ int16, start, length int64) error {
		return unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: typ, Start: start, Len: length})
	}
	must(t, lock(a, unix.F_WRLCK, 0, 10), lock(b, unix.F_WRLCK, 10, 10))
	want(t, "what overlaps", lock(b, unix.F_RDLCK, 5, 1), syscall.EAGAIN, syscall.EACCES)
	must(t, lock(a, unix.F_UNLCK, 0, 10), lock(b, unix.F_RDLCK, 5, 1), lock(a, unix.F_RDLCK, 5, 1))
	want(t, "to write what another reads", lock(a, unix.F_WRLCK, 5, 1), syscall.EAGAIN, syscall.EACCES)
}

func posixMmap(t *testing.T, root string) {
	path := filepath.Join(root, "file")
	write(t, path, strings.Repeat("x", 10_000))
	f := openFile(t, path, os.O_RDWR)
	a, err := unix.Mmap(int(f.Fd()), 0, 10_000, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	must(t, err)
	b, err := unix.Mmap(int(f.Fd()), 0, 10_000, unix.PROT_READ, unix.MAP_SHARED)
	must(t, err)
	copy(a[5000:], "mapped")
	if string(b[5000:5006]) != "mapped" {
		t.Errorf("the other mapping has %q", b[5000:5006])
	}
	must(t, second(f.WriteAt([]byte("written"), 100)))
	if string(a[100:107]) != "written" {
		t.Errorf("the mapping has %q", a[100:107])
	}
	must(t, unix.Msync(a, unix.MS_SYNC), unix.Munmap(a), unix.Munmap(b), f.Close())
	content, err := os.ReadFile(path)
	if must(t, err); string(content[5000:5006]) != "mapped" || len(content) != 10_000 {
		t.Errorf("the file has %q", content[5000:5006])
	}
}

// posixReadDirChanging lists 1,000 names while others come and go: those that were there
// all the time are there, once.
func posixReadDirChanging(t *testing.T, root string) {
	for i := range 1000 {
		must(t, os.Mkdir(filepath.Join(root, fmt.Sprintf("stays-%04d", i)), 0o755))
	}
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			path := filepath.Join(root, fmt.Sprintf("comes-%d", i%100))
			if os.Mkdir(path, 0o755) == nil && i%2 == 0 {
				os.Remove(path)
			}
		}
	}()
	for range 3 {
		dir, err := os.Open(root)
		must(t, err)
		seen := map[string]int{}
		for {
			names, err := dir.Readdirnames(100)
			for _, name := range names {
				if seen[name]++; seen[name] > 1 && strings.HasPrefix(name, "stays") {
					t.Errorf("%s is listed twice", name)
				}
			}
			if err != nil {
				break
			}
		}
		dir.Close()
		n := 0
		for name := range seen {
			if strings.HasPrefix(name, "stays") {
				n++
			}
		}
		if n != 1000 {
			t.Errorf("%d names of 1000 that stay were listed", n)
		}
	}
	close(stop)
	<-done
	entries, err := os.ReadDir(root)
	must(t, err)
	for _, e := range entries {
		must(t, os.Remove(filepath.Join(root, e.Name())))
	}
}

func posixNames(t *testing.T, root string) {
	for _, name := range []string{strings.Repeat("n", 255), "a b", "a\nb", "\xff\xfe", "ü", ".hidden", "-", "*"} {
		write(t, filepath.Join(root, name), "x")
		if got := dirNames(t, root); got != name {
			t.Errorf("there is %q, want %q", got, name)
		}
		must(t, os.Remove(filepath.Join(root, name)))
	}
	long := filepath.Join(root, strings.Repeat("n", 256))
	want(t, "create", os.WriteFile(long, nil, 0o644), syscall.ENAMETOOLONG)
	want(t, "mkdir", os.Mkdir(long, 0o755), syscall.ENAMETOOLONG)
	write(t, filepath.Join(root, "A"), "upper")
	write(t, filepath.Join(root, "a"), "lower")
	wantFile(t, filepath.Join(root, "A"), "upper")
}

func posixErrors(t *testing.T, root string) {
	file, dir := filepath.Join(root, "file"), filepath.Join(root, "dir")
	write(t, file, "x")
	must(t, os.Mkdir(dir, 0o755), os.Mkdir(filepath.Join(dir, "sub"), 0o755))
	want(t, "rmdir a full folder", unix.Rmdir(dir), syscall.ENOTEMPTY)
	want(t, "rmdir a file", unix.Rmdir(file), syscall.ENOTDIR)
	want(t, "unlink a folder", unix.Unlink(dir), syscall.EISDIR, syscall.EPERM)
	want(t, "below a file", os.WriteFile(filepath.Join(file, "x"), nil, 0o644), syscall.ENOTDIR)
	want(t, "below nothing", os.WriteFile(filepath.Join(root, "no/x"), nil, 0o644), syscall.ENOENT)
	want(t, "write a folder", second(os.OpenFile(dir, os.O_WRONLY, 0)), syscall.EISDIR)
	want(t, "list a file", second(os.Open(file+"/")), syscall.ENOTDIR)
	want(t, "mkdir again", unix.Mkdir(dir, 0o755), syscall.EEXIST)
	want(t, "readlink a file", second(os.Readlink(file)), syscall.EINVAL)
	want(t, "rename out of the mount", unix.Rename(file, "/proc/self/x"), syscall.EXDEV, syscall.EPERM)
}

func posixInodes(t *testing.T, root string) {
	inodes := map[uint64]string{}
	for i := range 50 {
		path := filepath.Join(root, fmt.Sprint(i))
		write(t, path, "x")
		st := lstat(t, path)
		if other, ok := inodes[st.Ino]; ok {
			t.Errorf("%s has the inode of %s", path, other)
		}
		inodes[st.Ino] = path
	}
	a := filepath.Join(root, "0")
	before := lstat(t, a)
	write(t, a, "changed")
	must(t, os.Chmod(a, 0o600), os.Rename(a, a+"moved"))
	if after := lstat(t, a+"moved"); after.Ino != before.Ino || after.Dev != before.Dev {
		t.Errorf("inode %d, was %d", after.Ino, before.Ino)
	}
	entries, err := os.ReadDir(root)
	must(t, err)
	for _, e := range entries {
		if info, err := e.Info(); err != nil || !info.Mode().IsRegular() || !e.Type().IsRegular() {
			t.Errorf("%s is %v (%v)", e.Name(), e.Type(), err)
		}
	}
}

func posixFifo(t *testing.T, root string) {
	path := filepath.Join(root, "fifo")
	must(t, unix.Mkfifo(path, 0o600))
	read := make(chan string)
	go func() {
		content, _ := os.ReadFile(path)
		read <- string(content)
	}()
	must(t, os.WriteFile(path, []byte("through"), 0))
	if got := <-read; got != "through" {
		t.Errorf("read %q", got)
	}
}

func posixRun(t *testing.T, root string) {
	path := filepath.Join(root, "script")
	must(t, os.WriteFile(path, []byte("#!/bin/sh\necho ran $1\n"), 0o755))
	// Another goroutine's fork may hold what was just written open for a moment.
	var out []byte
	var err error
	for range 100 {
		out, err = exec.Command(path, "it").Output()
		if !errors.Is(err, syscall.ETXTBSY) {
			break
		}
	}
	if must(t, err); string(out) != "ran it\n" {
		t.Errorf("it said %q", out)
	}
}

func posixWriters(t *testing.T, root string) {
	path := filepath.Join(root, "file")
	write(t, path, "")
	var all sync.WaitGroup
	for i := range 4 {
		all.Go(func() {
			f, err := os.OpenFile(path, os.O_RDWR, 0)
			if err != nil {
				t.Error(err)
				return
			}
			defer f.Close()
			block := bytes.Repeat([]byte{byte('a' + i)}, 1000)
			for j := range 50 {
				if _, err := f.WriteAt(block, int64(j*4+i)*1000); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	content, err := os.ReadFile(path)
	must(t, err)
	for i := range 200 {
		if part := content[i*1000 : (i+1)*1000]; bytes.Count(part, []byte{byte('a' + i%4)}) != 1000 {
			t.Fatalf("block %d is %q…", i, part[:10])
		}
	}
}

func posixDeep(t *testing.T, root string) {
	path := filepath.Join(root, strings.Repeat("d/", 60)+"d")
	must(t, os.MkdirAll(path, 0o755))
	write(t, filepath.Join(path, "file"), "deep")
	wantFile(t, filepath.Join(path, "file"), "deep")
	must(t, os.RemoveAll(filepath.Join(root, "d")))
	if got := dirNames(t, root); got != "" {
		t.Errorf("there is %s", got)
	}
}
