package workspace

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func openHost(t *testing.T, dir string, o HostOptions) *host {
	t.Helper()
	if o.Owner == (Owner{}) {
		o.Owner = guestUser
	}
	fs, err := OpenHost(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { fs.Close() })
	return fs.(*host)
}

// TestHostRecords has set-id bits, owners and permissions that we cannot do with kept
// beside the host's file, where they outlive the tree.
func TestHostRecords(t *testing.T) {
	dir := t.TempDir()
	fs := openHost(t, dir, HostOptions{})
	writeFile(t, fs, "file", "x")
	must(t, fs.Mkdir("folder", 0o1777, Owner{0, 0}))
	must(t, fs.Symlink("nowhere", "link", Owner{5, 6}))
	must(t, fs.Mknod("fifo", unix.S_IFIFO|0o4600, guestUser))
	mode, uid := uint32(0o6111), uint32(0)
	a, err := fs.SetAttr("file", Change{Mode: &mode, UID: &uid})
	must(t, err)
	if want := (Owner{0, guestUser.GID}); a.Mode != unix.S_IFREG|mode || a.Owner != want {
		t.Errorf("SetAttr returned mode %o and owner %v, want %o and %v", a.Mode, a.Owner, unix.S_IFREG|mode, want)
	}
	for _, fs := range []FS{fs, openHost(t, dir, HostOptions{})} { // and opened anew
		for path, want := range map[string]Attr{
			"file":   {Mode: unix.S_IFREG | mode, Owner: Owner{0, guestUser.GID}},
			"folder": {Mode: unix.S_IFDIR | 0o1777, Owner: Owner{0, 0}},
		} {
			if a, err := fs.Stat(path); err != nil || a.Mode != want.Mode || a.Owner != want.Owner {
				t.Errorf("%s has mode %o and owner %v (%v), want %o and %v", path, a.Mode, a.Owner, err, want.Mode, want.Owner)
			}
		}
		if names, err := fs.Listxattr("file"); err != nil || len(names) > 0 {
			t.Errorf("the guest sees xattrs %q (%v)", names, err)
		}
		_, err := fs.Getxattr("file", recordName)
		wantErrno(t, "getxattr of ours", err, syscall.ENODATA)
		wantErrno(t, "setxattr of ours", fs.Setxattr("file", recordName, []byte("mode=777"), 0), syscall.EOPNOTSUPP)
	}
	if a, err := fs.Stat("link"); err != nil || a.Owner != (Owner{5, 6}) {
		t.Errorf("link belongs to %v (%v)", a.Owner, err)
	}
	wantHarmless(t, dir)

	// Who changes the host's file changes what the guest sees.
	must(t, os.Chmod(filepath.Join(dir, "file"), 0o640))
	if a, err := fs.Stat("file"); err != nil || a.Mode != unix.S_IFREG|0o640 {
		t.Errorf("changed on the host: mode %o (%v)", a.Mode, err)
	}
	// A record goes with its file.
	writeFile(t, fs, "other", "y")
	must(t, fs.Rename("other", "file", 0))
	if a, err := fs.Stat("file"); err != nil || a.Owner != guestUser {
		t.Errorf("a file that replaces another: owner %v (%v)", a.Owner, err)
	}
	must(t, fs.Unlink("link"))
	if n := len(fs.records); n != 1 { // the fifo's
		t.Errorf("%d records are in memory, want 1: %v", n, fs.records)
	}
}

// wantHarmless fails when anything in dir is a device, has a set-id bit or another owner
// than us.
func wantHarmless(t *testing.T, dir string) {
	t.Helper()
	must(t, filepath.WalkDir(dir, func(path string, entry os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		if info.Mode()&(os.ModeDevice|os.ModeSetuid|os.ModeSetgid|os.ModeSticky) != 0 {
			t.Errorf("%s has mode %v on the host", path, info.Mode())
		}
		if st := info.Sys().(*syscall.Stat_t); int(st.Uid) != os.Geteuid() {
			t.Errorf("%s belongs to %d on the host", path, st.Uid)
		}
		return nil
	}))
}

func TestHostReadOnly(t *testing.T) {
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "file"), []byte("x"), 0o644), os.Mkdir(filepath.Join(dir, "folder"), 0o755))
	fs := openHost(t, dir, HostOptions{ReadOnly: true})
	if got := readFile(t, fs, "file"); got != "x" {
		t.Errorf("read %q", got)
	}
	size := int64(0)
	for what, err := range map[string]error{
		"Open":        second(fs.Open("file", true)),
		"Create":      second(fs.Create("new", 0o644, guestUser)),
		"Mkdir":       fs.Mkdir("new", 0o755, guestUser),
		"Mknod":       fs.Mknod("new", unix.S_IFIFO, guestUser),
		"Symlink":     fs.Symlink("x", "new", guestUser),
		"Link":        fs.Link("file", "new"),
		"Unlink":      fs.Unlink("file"),
		"Rmdir":       fs.Rmdir("folder"),
		"Rename":      fs.Rename("file", "new", 0),
		"SetAttr":     second(fs.SetAttr("file", Change{Size: &size})),
		"Setxattr":    fs.Setxattr("file", "user.x", nil, 0),
		"Removexattr": fs.Removexattr("file", "user.x"),
	} {
		wantErrno(t, what, err, syscall.EROFS)
	}
	f, err := fs.Open("file", false)
	must(t, err)
	defer f.Close()
	wantErrno(t, "WriteAt", second(f.WriteAt([]byte("y"), 0)), syscall.EBADF)
	wantErrno(t, "Truncate", f.Truncate(0), syscall.EBADF, syscall.EINVAL)
	wantErrno(t, "Allocate", f.Allocate(0, 0, 1), syscall.EBADF)
}

// TestHostOneFile offers a single file, which is looked for by its name: editors replace
// files.
func TestHostOneFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "file")
	must(t, os.WriteFile(path, []byte("one"), 0o644), os.WriteFile(path+"2", []byte("two"), 0o644), os.Symlink("file", path+"3"))
	fs := openHost(t, path+"3", HostOptions{})
	if a, err := fs.Stat(""); err != nil || a.Mode != unix.S_IFREG|0o644 {
		t.Errorf("the root has mode %o (%v)", a.Mode, err)
	}
	must(t, os.Rename(path+"2", path))
	if got := readFile(t, fs, ""); got != "two" {
		t.Errorf("read %q", got)
	}
	writeFile(t, fs, "", "three")
	wantErrno(t, "Stat below", second(fs.Stat("file2")), syscall.ENOTDIR)
	wantErrno(t, "Stat beside", second(fs.Stat("../file2")), syscall.ENOTDIR, syscall.EINVAL)
	wantErrno(t, "ReadDir", second(fs.ReadDir("")), syscall.ENOTDIR)
	wantErrno(t, "Unlink", fs.Unlink(""), syscall.EBUSY)
	wantErrno(t, "Rename", fs.Rename("", "", 0), syscall.EBUSY)
	must(t, os.Remove(path), os.Symlink("/etc/passwd", path))
	wantErrno(t, "Open of a link", second(fs.Open("", false)), syscall.ELOOP)
}

// TestHostOpensFiles opens regular files alone: a fifo would hold it up.
func TestHostOpensFiles(t *testing.T) {
	dir := t.TempDir()
	must(t, unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600), os.Symlink("fifo", filepath.Join(dir, "link")))
	fs := openHost(t, dir, HostOptions{})
	wantErrno(t, "fifo", second(fs.Open("fifo", true)), syscall.ENXIO)
	wantErrno(t, "link", second(fs.Open("link", false)), syscall.ELOOP)
	wantErrno(t, "folder", second(fs.Open("", false)), syscall.EISDIR)
	size := int64(1)
	wantErrno(t, "truncate", second(fs.SetAttr("fifo", Change{Size: &size})), syscall.ENXIO)
	wantErrno(t, "device", fs.Mknod("null", unix.S_IFCHR|0o666, guestUser), syscall.EPERM)
	for _, path := range []string{"..", "../x", "a/../b", "/etc", "a//b", ".", "a\x00b"} {
		wantErrno(t, path, second(fs.Stat(path)), syscall.EINVAL)
	}
	wantErrno(t, "long", second(fs.Stat(strings.Repeat("x", 256))), syscall.ENAMETOOLONG)
	// A link on the way, whatever it leads to.
	must(t, os.Mkdir(filepath.Join(dir, "folder"), 0o755), os.Symlink("folder", filepath.Join(dir, "there")))
	wantErrno(t, "through a link", second(fs.Create("there/x", 0o644, guestUser)), syscall.ELOOP, syscall.ENOTDIR)
	wantErrno(t, "list a link", second(fs.ReadDir("there")), syscall.ELOOP, syscall.ENOTDIR)
}

// Set-id bits of the host's own files go when the guest may write them, who else would
// choose what others run as their owner.
func TestHostDropsSetID(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "tool")
	must(t, os.WriteFile(path, []byte("x"), 0o755), os.Chmod(path, 0o755|os.ModeSetuid|os.ModeSetgid))
	writeFile(t, openHost(t, dir, HostOptions{}), "tool", "evil")
	wantHarmless(t, dir)
}

// Folders take room, too: a quota in bytes bounds how many there can be.
func TestQuotaOfFolders(t *testing.T) {
	overlay, err := OpenOverlay(openHost(t, t.TempDir(), HostOptions{ReadOnly: true}), filepath.Join(t.TempDir(), "o"), OverlayOptions{Quota: 4 << 20})
	must(t, err)
	defer overlay.Close()
	for name, fs := range map[string]FS{"host": openHost(t, t.TempDir(), HostOptions{Quota: 4 << 20}), "overlay": overlay} {
		made := 0
		for err = nil; err == nil && made < 5000; made++ {
			err = fs.Mkdir(strconv.Itoa(made), 0o755, guestUser)
		}
		if err != syscall.EDQUOT || made != 1025 {
			t.Errorf("%s: folder %d: %v, want EDQUOT at 1025", name, made, err)
		}
	}
}

func TestHostQuota(t *testing.T) {
	const mib = 1 << 20
	dir := t.TempDir()
	fs := openHost(t, dir, HostOptions{Quota: 4 * mib, Files: 3})
	data := make([]byte, mib)
	f, err := fs.Create("a", 0o644, guestUser)
	must(t, err)
	fill := func() (n int) {
		for n = range 10 {
			if _, err := f.WriteAt(data, int64(n)*mib); err != nil {
				wantErrno(t, "write", err, syscall.EDQUOT)
				return n
			}
		}
		return 10
	}
	if n := fill(); n != 3 && n != 4 {
		t.Errorf("%d MiB of 4 were written", n)
	}
	if _, err := f.WriteAt(data, 0); err != nil {
		t.Errorf("what is there cannot be written again: %v", err)
	}
	wantErrno(t, "fallocate", f.Allocate(0, 0, 1<<40), syscall.EDQUOT)
	if s, err := fs.Statfs(""); err != nil || s.Avail*uint64(s.BlockSize) > 4*mib || s.FilesFree > 2 {
		t.Errorf("statfs says %+v (%v)", s, err)
	}
	// An open file keeps its bytes when it has no name any more.
	must(t, fs.Unlink("a"))
	g, err := fs.Create("b", 0o644, guestUser)
	must(t, err)
	wantErrno(t, "write beside an unlinked file", second(g.WriteAt(make([]byte, 2*mib), 0)), syscall.EDQUOT)
	must(t, f.Close())
	_, err = g.WriteAt(make([]byte, 2*mib), 0)
	must(t, err)

	must(t, fs.Mkdir("c", 0o755, guestUser), fs.Symlink("x", "d", guestUser))
	wantErrno(t, "a fourth name", fs.Link("b", "e"), syscall.EDQUOT)
	must(t, fs.Rename("d", "b", 0), fs.Symlink("x", "d", guestUser))
	wantErrno(t, "a fourth name", fs.Symlink("x", "e", guestUser), syscall.EDQUOT)
	must(t, g.Close())
	if fs.quota.used != 0 || len(fs.quota.open) != 0 {
		t.Errorf("%d bytes are counted, and %d open files, when nothing is left", fs.quota.used, len(fs.quota.open))
	}
}

// TestHostWalk opens as kernels without openat2 have it.
func TestHostWalk(t *testing.T) {
	dir := t.TempDir()
	fs := openHost(t, dir, HostOptions{})
	must(t, fs.Mkdir("a", 0o755, guestUser), fs.Mkdir("a/b", 0o755, guestUser), os.Symlink("a", filepath.Join(dir, "link")))
	fs.openat2 = false
	writeFile(t, fs, "a/b/c", "x")
	if got := readFile(t, fs, "a/b/c"); got != "x" {
		t.Errorf("read %q", got)
	}
	wantErrno(t, "link", second(fs.Stat("link/b")), syscall.ENOTDIR, syscall.ELOOP)
	wantErrno(t, "file", second(fs.Stat("a/b/c/d")), syscall.ENOTDIR)
	if a, err := fs.Stat("link"); err != nil || a.Mode&unix.S_IFMT != unix.S_IFLNK {
		t.Errorf("the link itself: mode %o (%v)", a.Mode, err)
	}
}

// TestHostSwaps has somebody of the host put links out of the tree where files and
// folders were, all the time. What lies outside is never read, changed or described.
func TestHostSwaps(t *testing.T) {
	for _, openat2 := range []bool{true, false} {
		outside, dir := t.TempDir(), t.TempDir()
		canary := filepath.Join(outside, "canary")
		must(t, os.WriteFile(canary, []byte("canary"), 0o600))
		must(t, os.Mkdir(filepath.Join(dir, "folder"), 0o755), os.WriteFile(filepath.Join(dir, "folder", "file"), []byte("inside"), 0o644))
		must(t, os.Symlink(outside, filepath.Join(dir, "link")), os.Symlink(canary, filepath.Join(dir, "filelink")), os.Symlink("canary", filepath.Join(outside, "file")))
		before, err := os.Stat(canary)
		must(t, err)
		inode := before.Sys().(*syscall.Stat_t).Ino
		fs := openHost(t, dir, HostOptions{})
		fs.openat2 = fs.openat2 && openat2

		stop := make(chan struct{})
		var swaps sync.WaitGroup
		swaps.Go(func() {
			folder, link := filepath.Join(dir, "folder"), filepath.Join(dir, "link")
			file, filelink := filepath.Join(dir, "folder", "file"), filepath.Join(dir, "filelink")
			for {
				select {
				case <-stop:
					return
				default:
				}
				unix.Renameat2(unix.AT_FDCWD, folder, unix.AT_FDCWD, link, unix.RENAME_EXCHANGE)
				unix.Renameat2(unix.AT_FDCWD, folder, unix.AT_FDCWD, link, unix.RENAME_EXCHANGE)
				unix.Renameat2(unix.AT_FDCWD, file, unix.AT_FDCWD, filelink, unix.RENAME_EXCHANGE)
				unix.Renameat2(unix.AT_FDCWD, file, unix.AT_FDCWD, filelink, unix.RENAME_EXCHANGE)
			}
		})
		mode, uid, size := uint32(0o4777), uint32(0), int64(3)
		now := time.Now()
		opened := 0
		for deadline := now.Add(time.Second); time.Now().Before(deadline); {
			for _, path := range []string{"folder/file", "link/file", "filelink"} {
				if a, err := fs.Stat(path); err == nil && a.ID.Inode == inode {
					t.Fatalf("%s is the canary", path)
				}
				if f, err := fs.Open(path, true); err == nil {
					opened++
					buf := make([]byte, 6)
					n, _ := f.ReadAt(buf, 0)
					if strings.HasPrefix(string(buf[:n]), "can") {
						t.Fatalf("%s: read the canary", path)
					}
					f.WriteAt([]byte("hacked"), 0)
					f.Close()
				}
				fs.SetAttr(path, Change{Mode: &mode, UID: &uid, Size: &size, Mtime: &now})
				fs.Setxattr(path, "user.x", []byte("y"), 0)
				dir, _ := splitPath(path)
				fs.Link(path, "stolen")
				fs.Unlink("stolen")
				if f, err := fs.Create(joinPath(dir, "new"), 0o644, guestUser); err == nil {
					f.Close()
				}
				fs.Unlink(joinPath(dir, "new"))
				fs.Mkdir(joinPath(dir, "sub"), 0o755, guestUser)
				fs.Rmdir(joinPath(dir, "sub"))
				fs.Symlink("x", joinPath(dir, "sym"), guestUser)
				fs.Rename(joinPath(dir, "sym"), joinPath(dir, "sym2"), 0)
				fs.Unlink(joinPath(dir, "sym2"))
				if entries, err := fs.ReadDir(dir); err == nil && slices.ContainsFunc(entries, func(e DirEntry) bool { return e.Name == "canary" }) {
					t.Fatal("listed what is outside")
				}
			}
		}
		close(stop)
		swaps.Wait()
		if opened == 0 {
			t.Error("nothing was opened: the test shows nothing")
		}
		after, err := os.Stat(canary)
		must(t, err)
		content, err := os.ReadFile(canary)
		must(t, err)
		if string(content) != "canary" || after.Mode() != before.Mode() || !after.ModTime().Equal(before.ModTime()) {
			t.Errorf("the canary holds %q, mode %v, of %v; it was of %v", content, after.Mode(), after.ModTime(), before.ModTime())
		}
		if entries, err := os.ReadDir(outside); err != nil || len(entries) != 2 {
			t.Errorf("outside are %v (%v)", entries, err)
		}
		wantHarmless(t, dir)
	}
}

func FuzzRecord(f *testing.F) {
	f.Add("mode=4755 owner=0:0")
	f.Add("owner=1:4294967295")
	f.Add("mode=777 mode=777")
	f.Fuzz(func(t *testing.T, text string) {
		r, ok := parseRecord(text)
		if !ok {
			return
		}
		if again, ok := parseRecord(r.String()); !ok || again != r {
			t.Errorf("%q is %+v, which is written %q", text, r, r.String())
		}
		if n := len(r.String()); n > maxRecord {
			t.Errorf("%q takes %d bytes", r, n)
		}
	})
}
