package fuse

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/matchlock/matchlock/internal/workspace"
)

func init() {
	trees["Host"] = func(t testing.TB) workspace.FS { return hostTree(t, t.TempDir()) }
}

func hostTree(t testing.TB, dir string) workspace.FS {
	t.Helper()
	tree, err := workspace.OpenHost(dir, workspace.HostOptions{Owner: workspace.Owner{UID: workspace.AnyOwner, GID: workspace.AnyOwner}})
	must(t, err)
	return tree
}

// TestHostChanges has the host exchange files and folders under a kernel that knows
// them: it is told, and nothing is done to another file than the one that it means.
func TestHostChanges(t *testing.T) {
	have := have(t)
	dir := t.TempDir()
	at := func(names ...string) string { return filepath.Join(append([]string{dir}, names...)...) }
	put := func(name, content string) {
		t.Helper()
		must(t, os.WriteFile(at(name), []byte(content), 0o644))
	}
	holds := func(name, want string) {
		t.Helper()
		if got, err := os.ReadFile(at(name)); err != nil || string(got) != want {
			t.Errorf("%s holds %q (%v), want %q", name, got, err, want)
		}
	}
	s := newServer(t, hostTree(t, dir), Options{})
	g := newGuest(t, s, false)

	put("file", "old")
	file := have(g.lookup(rootID, "file")).node
	ok(t, g.open(file, syscall.O_RDWR))
	put("new", "new content")
	must(t, os.Rename(at("new"), at("file")))
	if a := have(g.setattr(file, setattr{valid: setSize, size: 1})); a.size != 1 {
		t.Errorf("truncated it is %+v", a)
	}
	ok(t, errnoIn(g.write(file, 1, "!")))
	have(g.setattr(file, setattr{valid: setMode, mode: 0}))
	if got, errno := g.read(file, 0, 10); errno != 0 || got != "o!" {
		t.Errorf("the open file holds %q (%v)", got, errno)
	}
	holds("file", "new content")
	ok(t, g.release(file, syscall.O_RDWR))
	// Closed, it is found no more, and what has its name is another node.
	want(t, "open to read", g.open(file, syscall.O_RDONLY), syscall.ESTALE)
	want(t, "open to write", g.open(file, syscall.O_WRONLY), syscall.ESTALE)
	want(t, "getattr", errnoIn(g.getattr(file)), syscall.ESTALE)
	now := have(g.lookup(rootID, "file"))
	if now.node == file || now.mode != syscall.S_IFREG|0o644 {
		t.Errorf("found %+v, and %d was another", now, file)
	}
	ok(t, g.open(now.node, syscall.O_WRONLY))
	ok(t, g.release(now.node, syscall.O_WRONLY))

	// Of another type.
	must(t, os.Remove(at("file")), os.Mkdir(at("file"), 0o755))
	want(t, "getattr of what is a folder now", errnoIn(g.getattr(now.node)), syscall.ESTALE)
	folder := have(g.lookup(rootID, "file"))
	if folder.mode != syscall.S_IFDIR|0o755 || folder.node == now.node {
		t.Errorf("found %+v", folder)
	}

	// Moved, it is the same node; and the table is no circle when it is moved into what
	// lay in it.
	must(t, os.Mkdir(at("file", "sub"), 0o755))
	sub := have(g.lookup(folder.node, "sub"))
	must(t, os.Rename(at("file", "sub"), at("sub")), os.Rename(at("file"), at("sub", "file")))
	want(t, "look in what was moved", errnoIn(g.lookup(folder.node, "sub")), syscall.ENOENT)
	if a := have(g.lookup(rootID, "sub")); a.node != sub.node {
		t.Errorf("moved it is %+v", a)
	}
	if a := have(g.lookup(sub.node, "file")); a.node != folder.node {
		t.Errorf("moved it is %+v", a)
	}
	must(t, s.check())

	// Who makes a file without asking for a new one takes the one that the host has made.
	put("made", "by the host")
	made := have(g.create(rootID, "made", syscall.O_RDWR)).node
	if got, errno := g.read(made, 0, 100); errno != 0 || got != "by the host" {
		t.Errorf("it holds %q (%v)", got, errno)
	}
	have(g.create(rootID, "made", syscall.O_WRONLY|syscall.O_TRUNC))
	holds("made", "")
	want(t, "a new one", errnoIn(g.create(rootID, "made", syscall.O_WRONLY|syscall.O_EXCL)), syscall.EEXIST)
	must(t, os.Symlink("/etc/passwd", at("link")))
	want(t, "through a link", errnoIn(g.create(rootID, "link", syscall.O_RDWR)), syscall.ELOOP)
	ok(t, g.release(made, syscall.O_RDWR))
	ok(t, g.release(made, syscall.O_WRONLY))
}

// moved is a tree whose folder "a" is at "x/a" by the time that its path is used.
type moved struct{ workspace.FS }

func (f moved) Stat(path string) (workspace.Attr, error) {
	if path == "a/x" {
		path = "a"
	}
	return f.FS.Stat(path)
}

// TestCircle has a host move a folder into itself, as it looks when it is quick enough.
func TestCircle(t *testing.T) {
	tree := memoryTree()
	must(t, tree.Mkdir("a", 0o755, workspace.Owner{}))
	s := newServer(t, moved{tree}, Options{})
	g := newGuest(t, s, false)
	a := have(t)(g.lookup(rootID, "a"))
	want(t, "itself", errnoIn(g.lookup(a.node, "x")), syscall.ESTALE)
}

// canary is what lies beside a tree, and no guest may see or change.
const canary = "the canary sings"

// TestCanary has the host exchange folders for links to another folder, while guests
// do all that they can do with names in them.
func TestCanary(t *testing.T) {
	dir := t.TempDir()
	root, outside := filepath.Join(dir, "root"), filepath.Join(dir, "outside")
	must(t, os.Mkdir(root, 0o755), os.Mkdir(outside, 0o755), os.Mkdir(filepath.Join(outside, "sub"), 0o755))
	for _, name := range []string{"file", "sub/file"} {
		must(t, os.WriteFile(filepath.Join(outside, name), []byte(canary), 0o644))
	}
	before := picture(t, outside)
	s := newServer(t, hostTree(t, root), Options{})
	g := newGuest(t, s, false)

	stop := make(chan struct{})
	var swapping, all sync.WaitGroup
	swapping.Go(func() {
		at := filepath.Join(root, "dir")
		for {
			select {
			case <-stop:
				return
			default:
			}
			// Errors are what the guests do. They may keep a link by another name, so
			// nothing is written by a name that they know.
			os.MkdirAll(at+"/sub", 0o755)
			for _, at := range []string{at + "/file", at + "/sub/file", at + "/sub", at} {
				if strings.HasSuffix(at, "file") {
					os.WriteFile(at+".new", []byte("harmless"), 0o644)
					os.Rename(at+".new", at)
				}
				os.Rename(at, at+".away")
				for _, target := range []string{outside, "../outside", outside + "/file", "/", "."} {
					os.Symlink(target, at)
					os.Remove(at)
				}
				os.Rename(at+".away", at)
			}
		}
	})
	for range 4 {
		all.Go(func() {
			for range 150 {
				dir, _ := g.lookup(rootID, "dir")
				sub, _ := g.lookup(dir.node, "sub")
				for _, folder := range []uint64{dir.node, sub.node} {
					a, errno := g.lookup(folder, "file")
					if errno == 0 && g.open(a.node, syscall.O_RDWR) == 0 {
						g.release(a.node, syscall.O_RDWR)
					}
					if got, _ := g.read(a.node, 0, 100); got == canary {
						t.Error("the canary was heard")
					}
					g.write(a.node, 0, "harmless")
					g.setattr(a.node, setattr{valid: setMode | setSize, mode: 0o777})
					g.call(opSetxattr, a.node, 1, 0, "user.x", []byte("x"))
					if made, errno := g.create(folder, "made", syscall.O_RDWR); errno == 0 {
						g.release(made.node, syscall.O_RDWR)
					}
					g.mkdir(folder, "folder")
					g.link(a.node, folder, "link")
					g.rename(folder, "link", folder, "file", 0)
					g.rename(folder, "made", rootID, "made", workspace.RenameExchange)
					list, _ := g.readdir(opReaddirplus, folder, 0, 4096)
					for _, e := range list {
						if e.node != 0 && e.size == uint64(len(canary)) && e.mode&syscall.S_IFMT == syscall.S_IFREG {
							t.Errorf("the canary was seen as %+v", e)
						}
					}
					g.unlink(folder, "file")
					g.rmdir(folder, "folder")
					g.unlink(folder, "made")
				}
			}
		})
	}
	all.Wait()
	close(stop)
	swapping.Wait()
	if after := picture(t, outside); after != before {
		t.Errorf("outside is\n%s, was\n%s", after, before)
	}
}

// picture is all that is known of a folder and what is in it.
func picture(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	must(t, filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := os.Lstat(path)
		if err != nil {
			return err
		}
		st := info.Sys().(*syscall.Stat_t)
		fmt.Fprintln(&b, path, info.Mode(), info.Size(), info.ModTime(), st.Nlink, st.Uid, st.Gid, st.Ctim)
		if info.Mode().IsRegular() {
			content, err := os.ReadFile(path)
			must(t, err)
			fmt.Fprintf(&b, "%q\n", content)
		}
		return nil
	}))
	return b.String()
}

// TestHarmless has a guest try for all that would be of use to it on the host: nothing
// there is a device, belongs to another, has a set-id bit or an xattr of the system. As
// root it could be.
func TestHarmless(t *testing.T) {
	have := have(t)
	dir := t.TempDir()
	s := newServer(t, hostTree(t, dir), Options{})
	g := newGuest(t, s, false)
	for _, mode := range []uint32{syscall.S_IFCHR, syscall.S_IFBLK, syscall.S_IFDIR, syscall.S_IFLNK, 0, 0o170000} {
		_, errno := entry(g.call(opMknod, rootID, mode|0o6777, 1<<8|3, 0, 0, "device"))
		want(t, fmt.Sprintf("mknod %o", mode), errno, syscall.EPERM)
	}
	all := setattr{valid: setMode | setUID | setGID, mode: 0o7777, uid: 12345, gid: 54321}
	var nodes []uint64
	for _, typ := range []uint32{syscall.S_IFREG, syscall.S_IFIFO, syscall.S_IFSOCK} {
		nodes = append(nodes, have(g.mknod(rootID, fmt.Sprintf("mknod %o", typ), typ|0o6777)).node)
	}
	nodes = append(nodes, have(entry(g.call(opMkdir, rootID, 0o7777, 0, "dir"))).node)
	nodes = append(nodes, have(entry(g.call(opCreate, nodes[3], syscall.O_RDWR, 0o7777, 0, 0, "file"))).node)
	for _, node := range nodes {
		if a := have(g.setattr(node, all)); a.mode&0o7777 != 0o7777 || a.uid != 12345 || a.gid != 54321 {
			t.Errorf("to the guest it is %+v", a)
		}
		for _, name := range []string{"trusted.x", "security.capability", "security.selinux", "system.posix_acl_access", "user.matchlock", "user."} {
			value := []byte("mode=4777 owner=0:0")
			if errnoIn(g.call(opSetxattr, node, len(value), 0, name, value)) == 0 {
				t.Errorf("%s of node %d was set", name, node)
			}
			if value, errno := g.call(opGetxattr, node, 100, 0, name); errno == 0 {
				t.Errorf("%s of node %d is %q", name, node, value)
			}
			if errnoIn(g.call(opRemovexattr, node, name)) == 0 {
				t.Errorf("%s of node %d was removed", name, node)
			}
		}
	}
	// With content, the bits stay where they are.
	ok(t, errnoIn(g.write(nodes[4], 0, "#!/bin/sh\n")))
	ok(t, g.release(nodes[4], syscall.O_RDWR))
	have(g.link(nodes[4], rootID, "link"))
	have(g.symlink(rootID, "symlink", "/etc/passwd"))
	found := 0
	must(t, filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		found++
		info, err := os.Lstat(path)
		if err != nil {
			return err
		}
		if info.Mode()&(os.ModeDevice|os.ModeCharDevice|os.ModeSetuid|os.ModeSetgid|os.ModeSticky) != 0 {
			t.Errorf("%s is %v", path, info.Mode())
		}
		if st := info.Sys().(*syscall.Stat_t); int(st.Uid) != os.Geteuid() || int(st.Gid) != os.Getegid() {
			t.Errorf("%s belongs to %d:%d", path, st.Uid, st.Gid)
		}
		buf := make([]byte, 4096)
		n, err := unix.Llistxattr(path, buf)
		for name := range strings.SplitSeq(strings.Trim(string(buf[:max(n, 0)]), "\x00"), "\x00") {
			if name != "" && name != "user.matchlock" && name != "security.selinux" {
				t.Errorf("%s has %s", path, name)
			}
		}
		if err == unix.EOPNOTSUPP {
			err = nil
		}
		return err
	}))
	if found != 8 {
		t.Errorf("%d files are there, want 8", found)
	}
}

// TestNothingIsLeft has a guest leave with all that it had open and known: no goroutine
// and no descriptor is left.
func TestNothingIsLeft(t *testing.T) {
	descriptors := func() int {
		entries, err := os.ReadDir("/proc/self/fd")
		must(t, err)
		return len(entries)
	}
	goroutines, before := runtime.NumGoroutine(), descriptors()
	for _, slots := range []bool{false, true} {
		s := NewServer(hostTree(t, t.TempDir()), Options{})
		g := newGuest(t, s, slots)
		for i := range 100 {
			a := have(t)(g.create(rootID, fmt.Sprint(i), uint32(i%3)))
			ok(t, g.open(a.node, syscall.O_RDWR))
			ok(t, errnoIn(g.write(a.node, 0, strings.Repeat("x", 9000))))
			ok(t, errnoIn(g.readdir(opReaddirplus, rootID, 0, 4096)))
			switch i % 4 {
			case 1:
				ok(t, g.unlink(rootID, fmt.Sprint(i)))
			case 2:
				g.forget(a.node, 1<<40)
			}
		}
		if n := descriptors(); n < before+100 {
			t.Errorf("%d descriptors are open, of them %d before", n, before)
		}
		g.close(t)
		must(t, s.check(), s.Close())
	}
	settle(t, func() bool { return descriptors() <= before && runtime.NumGoroutine() <= goroutines })
}
