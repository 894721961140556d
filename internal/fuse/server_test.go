package fuse

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/matchlock/matchlock/internal/workspace"
)

// trees are made anew for each test. Others add to them.
var trees = map[string]func(t testing.TB) workspace.FS{
	"Memory": func(testing.TB) workspace.FS { return memoryTree() },
}

func memoryTree() workspace.FS {
	return workspace.NewMemory(workspace.MemoryOptions{Owner: workspace.Owner{UID: workspace.AnyOwner, GID: workspace.AnyOwner}})
}

// newServer serves a tree until the test ends, and then looks at what it knows.
func newServer(t testing.TB, tree workspace.FS, o Options) *Server {
	t.Helper()
	if o.Valid == 0 {
		o.Valid = time.Second
	}
	s := NewServer(tree, o)
	t.Cleanup(func() { must(t, s.check(), s.Close()) })
	return s
}

// each runs a test on all trees, with slots and without.
func each(t *testing.T, test func(t *testing.T, s *Server, g *guest)) {
	for name, tree := range trees {
		for _, slots := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/slots=%v", name, slots), func(t *testing.T) {
				s := newServer(t, tree(t), Options{})
				test(t, s, newGuest(t, s, slots))
			})
		}
	}
}

// known is how many nodes a server knows, without the root.
func (s *Server) known() int {
	s.nodes.mu.Lock()
	defer s.nodes.mu.Unlock()
	return len(s.nodes.byID) - 1
}

// settle waits until what was asked before has been done: requests without answers
// are done at any time.
func settle(t *testing.T, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it does not come to pass")
		}
	}
}

func TestInit(t *testing.T) {
	each(t, func(t *testing.T, s *Server, g *guest) {
		body, errno := g.call(opInit, 0, 7, 38, 1<<20, ^uint32(0), make([]byte, 48))
		ok(t, errno)
		d := decoder{rest: body}
		major, minor, readahead, flags := d.uint32(), d.uint32(), d.uint32(), d.uint32()
		d.skip(4)
		if maxWrite := d.uint32(); len(body) != 64 || major != 7 || minor != 38 || readahead > 2*MaxIO || flags != wanted || maxWrite != MaxIO {
			t.Errorf("INIT: %d bytes, version %d.%d, readahead %d, flags %x, writes %d", len(body), major, minor, readahead, flags, maxWrite)
		}
		want(t, "an old kernel", errnoIn(g.call(opInit, 0, 7, 30, 0, 0)), syscall.EPROTO)
		want(t, "another protocol", errnoIn(g.call(opInit, 0, 8, 0, 0, 0)), syscall.EPROTO)
		want(t, "half of it", errnoIn(g.call(opInit, 0, 7, 38)), syscall.EINVAL)
		for _, op := range []uint32{0, opDestroy + 1, 25, 27, 36, 1000} { // FLUSH, OPENDIR, INTERRUPT and what is none
			want(t, fmt.Sprint("operation ", op), errnoIn(g.call(op, rootID, make([]byte, 64))), syscall.ENOSYS)
		}
	})
}

func TestFiles(t *testing.T) {
	each(t, func(t *testing.T, s *Server, g *guest) {
		have := have(t)
		file := have(g.create(rootID, "file", syscall.O_RDWR))
		if file.mode != syscall.S_IFREG|0o644 || file.uid != owner.UID || file.gid != owner.GID || file.links != 1 || file.valid != 1 {
			t.Errorf("the file is %+v", file)
		}
		want(t, "create again", errnoIn(g.create(rootID, "file", syscall.O_RDWR|syscall.O_EXCL)), syscall.EEXIST)
		want(t, "mknod again", errnoIn(g.mknod(rootID, "file", syscall.S_IFREG|0o600)), syscall.EEXIST)
		data := strings.Repeat("0123456789abcdef", MaxIO/16)
		n, errno := g.write(file.node, 5, data)
		if ok(t, errno); int(n) != len(data) {
			t.Errorf("%d bytes of %d were written", n, len(data))
		}
		got, errno := g.read(file.node, 0, MaxIO)
		if ok(t, errno); got != "\x00\x00\x00\x00\x00"+data[:MaxIO-5] {
			t.Errorf("read %d bytes, not those that were written", len(got))
		}
		if got, errno := g.read(file.node, MaxIO, MaxIO); errno != 0 || got != data[MaxIO-5:] {
			t.Errorf("at the end are %q (%v)", got, errno)
		}
		if got, errno := g.read(file.node, 1<<62, 10); errno != 0 || got != "" {
			t.Errorf("past the end are %q (%v)", got, errno)
		}
		if a := have(g.getattr(file.node)); a.size != MaxIO+5 || a.ino != file.ino {
			t.Errorf("the file is %+v", a)
		}
		ok(t, errnoIn(g.call(opFsync, file.node, uint64(0), 0, 0)))
		ok(t, errnoIn(g.call(opFallocate, file.node, uint64(0), uint64(0), uint64(2*MaxIO), 1, 0))) // keep the size
		if a := have(g.setattr(file.node, setattr{valid: setSize, size: 3})); a.size != 3 {
			t.Errorf("truncated to %d", a.size)
		}
		body, errno := g.call(opLseek, file.node, uint64(0), uint64(0), 4, 0) // SEEK_HOLE
		ok(t, errno)
		if d := (decoder{rest: body}); d.uint64() != 3 {
			t.Errorf("the hole is at %x", body)
		}
		want(t, "seek past the end", errnoIn(g.call(opLseek, file.node, uint64(0), uint64(10), 3, 0)), syscall.ENXIO)
		ok(t, g.release(file.node, syscall.O_RDWR))
		if a := have(g.lookup(rootID, "file")); a.node != file.node || a.size != 3 {
			t.Errorf("found %+v", a)
		}
		want(t, "write too much", errnoIn(g.write(file.node, 0, data+"x")), syscall.EINVAL)
		want(t, "write at 2^63-1", errnoIn(g.write(file.node, 1<<63-1, "x")), syscall.EINVAL)
		want(t, "write at -1", errnoIn(g.write(file.node, 1<<64-1, "x")), syscall.EINVAL)
		want(t, "read too much", errnoIn(g.read(file.node, 0, MaxIO+1)), syscall.EINVAL)
		want(t, "read at -1", errnoIn(g.read(file.node, 1<<64-1, 1)), syscall.EINVAL)
		want(t, "a size of -1", errnoIn(g.setattr(file.node, setattr{valid: setSize, size: 1<<64 - 1})), syscall.EINVAL)
		want(t, "read a folder", errnoIn(g.read(rootID, 0, 1)), syscall.EISDIR)
		want(t, "open a folder", g.open(rootID, syscall.O_RDWR), syscall.EISDIR)
		want(t, "open nothing", g.open(1000, syscall.O_RDWR), syscall.ESTALE)
	})
	// Whatever was open is closed by who closes the server.
	s := NewServer(memoryTree(), Options{})
	g := newGuest(t, s, false)
	have(t)(g.create(rootID, "file", syscall.O_RDWR))
	g.close(t)
	must(t, s.Close())
}

func TestFolders(t *testing.T) {
	each(t, func(t *testing.T, s *Server, g *guest) {
		have := have(t)
		dir := have(g.mkdir(rootID, "dir"))
		sub := have(g.mkdir(dir.node, "sub"))
		if dir.mode != syscall.S_IFDIR|0o755 || dir.ino == sub.ino || dir.node == sub.node {
			t.Errorf("folders are %+v and %+v", dir, sub)
		}
		link := have(g.symlink(dir.node, "link", "../nowhere"))
		if target, errno := g.call(opReadlink, link.node); errno != 0 || string(target) != "../nowhere" {
			t.Errorf("the link leads to %q (%v)", target, errno)
		}
		fifo := have(g.mknod(dir.node, "fifo", syscall.S_IFIFO|0o600))
		want(t, "open a fifo", g.open(fifo.node, syscall.O_RDONLY), syscall.ENXIO)
		want(t, "open a link", g.open(link.node, syscall.O_RDONLY), syscall.ELOOP)
		want(t, "remove a full folder", g.rmdir(rootID, "dir"), syscall.ENOTEMPTY)
		want(t, "remove a folder as a file", g.unlink(rootID, "dir"), syscall.EISDIR)
		want(t, "remove nothing", g.unlink(rootID, "nothing"), syscall.ENOENT)
		want(t, "look for nothing", errnoIn(g.lookup(dir.node, "nothing")), syscall.ENOENT)
		want(t, "look in a file", errnoIn(g.lookup(fifo.node, "x")), syscall.ENOTDIR)
		ok(t, errnoIn(g.call(opFsyncdir, dir.node, uint64(0), 0, 0)))
		ok(t, errnoIn(g.call(opDestroy, 0)))

		// Renamed, it takes what is in it with it.
		ok(t, g.rename(rootID, "dir", rootID, "other", 0))
		want(t, "the old name", errnoIn(g.lookup(rootID, "dir")), syscall.ENOENT)
		have(g.mkdir(sub.node, "deep"))
		if a := have(g.lookup(rootID, "other")); a.node != dir.node || !there(s, "other/sub/deep") {
			t.Errorf("renamed it is %+v", a)
		}
	})
}

func there(s *Server, path string) bool {
	_, err := s.tree.Stat(path)
	return err == nil
}

// TestNames has a server refuse what is no name, in each operation that takes one.
func TestNames(t *testing.T) {
	each(t, func(t *testing.T, s *Server, g *guest) {
		file := have(t)(g.create(rootID, "file", syscall.O_RDWR))
		ok(t, g.release(file.node, syscall.O_RDWR))
		for name, errno := range map[string]syscall.Errno{
			"": syscall.EINVAL, ".": syscall.EINVAL, "..": syscall.EINVAL, "/": syscall.EINVAL, "a/b": syscall.EINVAL,
			"../file": syscall.EINVAL, "/etc/passwd": syscall.EINVAL, strings.Repeat("x", 256): syscall.ENAMETOOLONG,
		} {
			for what, got := range map[string]syscall.Errno{
				"lookup":      errnoIn(g.lookup(rootID, name)),
				"mkdir":       errnoIn(g.mkdir(rootID, name)),
				"mknod":       errnoIn(g.mknod(rootID, name, syscall.S_IFIFO)),
				"symlink":     errnoIn(g.symlink(rootID, name, "x")),
				"link":        errnoIn(g.link(file.node, rootID, name)),
				"create":      errnoIn(g.create(rootID, name, 0)),
				"unlink":      g.unlink(rootID, name),
				"rmdir":       g.rmdir(rootID, name),
				"rename":      g.rename(rootID, name, rootID, "new", 0),
				"rename to":   g.rename(rootID, "file", rootID, name, 0),
				"rename(2)":   errnoIn(g.call(opRename, rootID, uint64(rootID), name, "new")),
				"rename(2) 2": errnoIn(g.call(opRename, rootID, uint64(rootID), "file", name)),
			} {
				want(t, fmt.Sprintf("%s %.20q", what, name), got, errno)
			}
		}
		// A name ends with NUL.
		for _, op := range []uint32{opLookup, opUnlink, opRmdir, opSymlink} {
			want(t, fmt.Sprint("operation ", op), errnoIn(g.call(op, rootID, []byte("file"))), syscall.EINVAL)
		}
		want(t, "a link without target", errnoIn(g.call(opSymlink, rootID, "link")), syscall.EINVAL)
		want(t, "a target of 4096 bytes", errnoIn(g.symlink(rootID, "link", strings.Repeat("x", 4096))), syscall.ENAMETOOLONG)
		long := strings.Repeat("x", 255)
		if a := have(t)(g.symlink(rootID, long, strings.Repeat("x", 4095))); a.size != 4095 {
			t.Errorf("the link is %+v", a)
		}
		ok(t, g.unlink(rootID, long))
	})
}

// TestShort cuts each request at every length: it is an error, and no more.
func TestShort(t *testing.T) {
	each(t, func(t *testing.T, s *Server, g *guest) {
		have(t)(g.create(rootID, "file", syscall.O_RDWR))
		for op := range uint32(60) {
			if op == opForget || op == opBatchForget || op == opDestroy {
				continue
			}
			for length := range 130 {
				g.call(op, rootID, make([]byte, length))
				g.call(op, rootID, slices.Repeat([]byte{0xff}, length))
			}
		}
	})
}

func TestAttributes(t *testing.T) {
	each(t, func(t *testing.T, s *Server, g *guest) {
		have := have(t)
		file := have(g.create(rootID, "file", syscall.O_RDWR))
		a := have(g.setattr(file.node, setattr{valid: setMode | setUID | setGID | setAtime | setMtime, mode: 0o4750, uid: 7, gid: owner.GID, at: 5, mt: 6}))
		if a != have(g.getattr(file.node)).without() || a.mode != syscall.S_IFREG|0o4750 || a.uid != 7 || a.gid != owner.GID || a.mtime != 6 {
			t.Errorf("the file is %+v, then %+v", a, have(g.getattr(file.node)))
		}
		if a := have(g.setattr(file.node, setattr{valid: setMtime | setMtimeNow})); time.Since(time.Unix(int64(a.mtime), 0)) > time.Minute {
			t.Errorf("the present is %v", a.mtime)
		}
		// Who writes as another takes the set-id bits.
		if _, errno := g.writeFlags(file.node, 0, "x", writeKillSUIDGID); errno != 0 || have(g.getattr(file.node)).mode != syscall.S_IFREG|0o750 {
			t.Errorf("after a write (%v) it is %+v", errno, have(g.getattr(file.node)))
		}
		have(g.setattr(file.node, setattr{valid: setMode, mode: 0o6745}))
		if a := have(g.setattr(file.node, setattr{valid: setSize | setKillSUIDGID, size: 1})); a.mode != syscall.S_IFREG|0o2745 {
			t.Errorf("after a truncate it is %+v", a) // set-group-id without execution is no such thing
		}
		ok(t, g.release(file.node, syscall.O_RDWR))
		if a := have(g.setattr(file.node, setattr{valid: setUID | setKillSUIDGID, uid: owner.UID})); a.uid != owner.UID {
			t.Errorf("after a chown it is %+v", a)
		}
		body, errno := g.call(opStatfs, file.node)
		ok(t, errno)
		if d := (decoder{rest: body}); len(body) != 80 || d.uint64() == 0 {
			t.Errorf("STATFS says %x", body)
		}
		want(t, "of what is not known", errnoIn(g.setattr(1000, setattr{})), syscall.ESTALE)
	})
}

// without is what is in the answer to SETATTR, too.
func (a attributes) without() attributes {
	a.valid = 0
	return a
}

func TestXattrs(t *testing.T) {
	each(t, func(t *testing.T, s *Server, g *guest) {
		file := have(t)(g.create(rootID, "file", syscall.O_RDWR)).node
		set := func(name, value string, flags int) syscall.Errno {
			return errnoIn(g.call(opSetxattr, file, len(value), flags, name, []byte(value)))
		}
		if errno := set("user.a", "value", 0); errno == syscall.EOPNOTSUPP {
			t.Skip("the host's file system has none")
		} else {
			ok(t, errno)
		}
		want(t, "make it again", set("user.a", "", 1), syscall.EEXIST)
		want(t, "a value that is too long", set("user.b", strings.Repeat("x", maxXattr+1), 0), syscall.E2BIG)
		want(t, "a value that is not there", errnoIn(g.call(opSetxattr, file, 100, 0, "user.b", []byte("x"))), syscall.EINVAL)
		want(t, "a value of 2^32-1", errnoIn(g.call(opSetxattr, file, ^uint32(0), 0, "user.b", []byte("x"))), syscall.E2BIG)
		for _, name := range []string{"trusted.x", "security.capability", "system.posix_acl_access", "user.matchlock"} {
			want(t, "set "+name, set(name, "x", 0), syscall.EOPNOTSUPP)
		}
		get := func(op uint32, size int, name ...any) ([]byte, syscall.Errno) {
			return g.call(op, file, append([]any{size, 0}, name...)...)
		}
		if value, errno := get(opGetxattr, 100, "user.a"); errno != 0 || string(value) != "value" {
			t.Errorf("it is %q (%v)", value, errno)
		}
		if value, errno := get(opGetxattr, 0, "user.a"); errno != 0 || len(value) != 8 || value[0] != 5 && value[3] != 5 {
			t.Errorf("its length is %x (%v)", value, errno)
		}
		want(t, "with little room", errnoIn(get(opGetxattr, 4, "user.a")), syscall.ERANGE)
		if names, errno := get(opListxattr, 100); errno != 0 || string(names) != "user.a\x00" {
			t.Errorf("there are %q (%v)", names, errno)
		}
		ok(t, errnoIn(g.call(opRemovexattr, file, "user.a")))
		want(t, "remove it again", errnoIn(g.call(opRemovexattr, file, "user.a")), syscall.Errno(61))
		ok(t, g.release(file, syscall.O_RDWR))
	})
}

// TestRename follows nodes through what becomes of their names.
func TestRename(t *testing.T) {
	each(t, func(t *testing.T, s *Server, g *guest) {
		have := have(t)
		make := func(name, content string) uint64 {
			a := have(g.create(rootID, name, syscall.O_RDWR))
			ok(t, errnoIn(g.write(a.node, 0, content)))
			ok(t, g.release(a.node, syscall.O_RDWR))
			return a.node
		}
		holds := func(node uint64, want string) {
			t.Helper()
			if got, errno := g.read(node, 0, 100); errno != 0 || got != want {
				t.Errorf("node %d holds %q (%v), want %q", node, got, errno, want)
			}
		}
		a, b := make("a", "A"), make("b", "B")
		dir := have(g.mkdir(rootID, "dir")).node
		sub := have(g.mkdir(dir, "sub")).node
		ok(t, g.rename(rootID, "a", sub, "a", 0))
		holds(a, "A")
		ok(t, g.rename(rootID, "dir", rootID, "dir2", 0))
		holds(a, "A")
		ok(t, g.rename(sub, "a", rootID, "b", workspace.RenameExchange))
		holds(a, "A")
		holds(b, "B")
		if x, y := have(g.lookup(rootID, "b")), have(g.lookup(sub, "a")); x.node != a || y.node != b {
			t.Errorf("exchanged are %d and %d, want %d and %d", x.node, y.node, a, b)
		}
		ok(t, g.rename(rootID, "dir2", rootID, "b", workspace.RenameExchange)) // a folder and a file
		holds(b, "B")
		holds(a, "A")
		want(t, "without replacing", g.rename(rootID, "dir2", rootID, "b", workspace.RenameNoReplace), syscall.EEXIST)
		want(t, "a flag that is none", g.rename(rootID, "dir2", rootID, "b", 4), syscall.EINVAL)
		want(t, "both flags", g.rename(rootID, "dir2", rootID, "b", 3), syscall.EINVAL)
		want(t, "into itself", g.rename(rootID, "b", sub, "b", 0), syscall.EINVAL)
		want(t, "into nothing", g.rename(rootID, "b", 1000, "b", 0), syscall.ESTALE)
		ok(t, errnoIn(g.call(opRename, rootID, uint64(rootID), "dir2", "a")))
		holds(a, "A")

		// Over a file that is open: who has it goes on with it.
		ok(t, g.open(a, syscall.O_RDWR))
		c := make("c", "C")
		ok(t, g.rename(rootID, "c", rootID, "a", 0))
		holds(a, "A")
		holds(c, "C")
		if x := have(g.getattr(a)); x.links != 0 || x.size != 1 {
			t.Errorf("the file that was replaced is %+v", x)
		}
		ok(t, errnoIn(g.write(a, 1, "more")))
		if x := have(g.setattr(a, setattr{valid: setSize, size: 3})); x.size != 3 {
			t.Errorf("truncated it is %+v", x)
		}
		holds(a, "Amo")
		ok(t, g.release(a, syscall.O_RDWR))
		holds(c, "C")
	})
}

// TestReplaced has who has found a file, that another one takes the name of, open it
// still: either file is there at any time, as for who reads what is written by a rename.
func TestReplaced(t *testing.T) {
	each(t, func(t *testing.T, s *Server, g *guest) {
		have := have(t)
		const files = maxHeld + 10
		var nodes []uint64
		for i := range files + 1 {
			a := have(g.create(rootID, "new", syscall.O_RDWR))
			ok(t, errnoIn(g.write(a.node, 0, fmt.Sprint(i))))
			ok(t, g.release(a.node, syscall.O_RDWR))
			ok(t, g.rename(rootID, "new", rootID, "file", 0))
			nodes = append(nodes, a.node)
		}
		must(t, s.check())
		for i, node := range nodes {
			errno := g.open(node, syscall.O_RDONLY)
			if i < files-maxHeld {
				want(t, "the oldest", errno, syscall.ESTALE)
				want(t, "the oldest", errnoIn(g.getattr(node)), syscall.ESTALE)
				continue
			}
			ok(t, errno)
			if got, errno := g.read(node, 0, 100); errno != 0 || got != fmt.Sprint(i) {
				t.Errorf("file %d holds %q (%v)", i, got, errno)
			}
			ok(t, g.release(node, syscall.O_RDONLY))
			ok(t, g.open(node, syscall.O_RDONLY)) // again, before the kernel forgets it
			ok(t, g.release(node, syscall.O_RDONLY))
		}
		a, b := have(g.mknod(rootID, "a", syscall.S_IFREG|0o600)), have(g.mknod(rootID, "b", syscall.S_IFREG|0o600))
		ok(t, g.rename(rootID, "a", rootID, "b", 0))
		want(t, "to write", g.open(b.node, syscall.O_WRONLY), syscall.ESTALE)
		have(g.getattr(b.node))
		g.forget(b.node, 1)
		settle(t, func() bool { return errnoIn(g.getattr(b.node)) == syscall.ESTALE })
		have(g.getattr(a.node))
		// What is not renamed is not held.
		want(t, "without replacing", g.rename(rootID, "a", rootID, "file", workspace.RenameNoReplace), syscall.ENOENT)
		want(t, "nothing", g.rename(rootID, "a", rootID, "file", 0), syscall.ENOENT)
	})
}

// TestLinks has files with several names.
func TestLinks(t *testing.T) {
	each(t, func(t *testing.T, s *Server, g *guest) {
		have := have(t)
		file := have(g.create(rootID, "0", syscall.O_RDWR)).node
		ok(t, g.release(file, syscall.O_RDWR))
		const names = 3 * maxLinks
		for i := 1; i < names; i++ {
			if a := have(g.link(file, rootID, fmt.Sprint(i))); a.node != file || int(a.links) != i+1 {
				t.Fatalf("the name %d is %+v", i, a)
			}
		}
		must(t, s.check())
		ok(t, g.rename(rootID, fmt.Sprint(names-1), rootID, fmt.Sprint(names-2), 0)) // which does nothing
		for i := range names {
			if i != names-1 {
				ok(t, g.unlink(rootID, fmt.Sprint(i)))
			}
			a, errno := g.getattr(file)
			if errno == syscall.ESTALE { // none of those that are left is known
				a, errno = g.lookup(rootID, fmt.Sprint(names-1))
			}
			if ok(t, errno); int(a.links) != names-1-min(i, names-2) {
				t.Fatalf("without the name %d it is %+v", i, a)
			}
		}
		want(t, "link to nothing", errnoIn(g.link(1000, rootID, "x")), syscall.ESTALE)
	})
}

// TestUnlinked has files that lose their names while they are known, and while they
// are open.
func TestUnlinked(t *testing.T) {
	each(t, func(t *testing.T, s *Server, g *guest) {
		have := have(t)
		file := have(g.create(rootID, "file", syscall.O_RDWR)).node
		ok(t, errnoIn(g.write(file, 0, "still")))
		ok(t, g.unlink(rootID, "file"))
		ok(t, errnoIn(g.write(file, 5, " here")))
		if got, errno := g.read(file, 0, 100); errno != 0 || got != "still here" {
			t.Errorf("it holds %q (%v)", got, errno)
		}
		have(g.setattr(file, setattr{valid: setMode | setMtime, mode: 0o600})) // no matter, but no error
		// Another of the name is another file.
		other := have(g.create(rootID, "file", syscall.O_RDONLY)).node
		if a := have(g.getattr(file)); other == file || a.size != 10 || a.links != 0 {
			t.Errorf("nodes %d and %d, the first is %+v", file, other, a)
		}
		want(t, "link without a name", errnoIn(g.link(file, rootID, "again")), syscall.ESTALE)
		ok(t, g.release(file, syscall.O_RDWR))
		want(t, "read of what is gone", errnoIn(g.read(file, 0, 1)), syscall.ESTALE)
		g.forget(file, 1)
		ok(t, g.release(other, syscall.O_RDONLY))
		ok(t, g.unlink(rootID, "file")) // which is not open
		want(t, "getattr of what is gone", errnoIn(g.getattr(other)), syscall.ESTALE)
		g.forget(other, 1)

		// A folder that is gone, of which something is still known.
		dir := have(g.mkdir(rootID, "dir")).node
		sub := have(g.mkdir(dir, "sub")).node
		ok(t, g.rmdir(dir, "sub"))
		ok(t, g.rmdir(rootID, "dir"))
		want(t, "list what is gone", errnoIn(g.readdir(opReaddirplus, sub, 0, 4096)), syscall.ESTALE)
		want(t, "make in what is gone", errnoIn(g.mkdir(sub, "x")), syscall.ESTALE)
		g.forget(dir, 1)
		g.forget(sub, 1)
		settle(t, func() bool { return s.known() == 0 })
	})
}

// TestOpen counts how often a file is open.
func TestOpen(t *testing.T) {
	each(t, func(t *testing.T, s *Server, g *guest) {
		have := have(t)
		opened := func() int {
			s.nodes.mu.Lock()
			defer s.nodes.mu.Unlock()
			return s.nodes.opened
		}
		// Made to be read alone, it is released as such.
		file := have(g.create(rootID, "file", syscall.O_RDONLY)).node
		ok(t, g.release(file, syscall.O_RDONLY))
		if n := opened(); n != 0 {
			t.Errorf("%d are open", n)
		}
		for range 3 {
			ok(t, g.open(file, syscall.O_RDONLY))
			ok(t, g.open(file, syscall.O_WRONLY))
		}
		for _, flags := range []uint32{syscall.O_RDONLY, syscall.O_RDWR} {
			for i := range 5 { // more often than it was opened
				ok(t, g.release(file, flags))
				if n := opened(); flags == syscall.O_RDWR && n != max(0, 2-i) {
					t.Errorf("%d are open", n)
				}
			}
		}
		ok(t, g.open(file, syscall.O_RDWR))
		g.forget(file, 1) // which no kernel would
		settle(t, func() bool { return s.known() == 0 && opened() == 0 })
		ok(t, g.release(file, syscall.O_RDWR))
		if n := opened(); n != 0 {
			t.Errorf("%d are open", n)
		}
	})
}

// TestForget has nodes known as long as the kernel knows them, or something in them.
func TestForget(t *testing.T) {
	each(t, func(t *testing.T, s *Server, g *guest) {
		have := have(t)
		dir := have(g.mkdir(rootID, "dir")).node
		file := have(g.create(dir, "file", syscall.O_RDWR)).node
		ok(t, g.release(file, syscall.O_RDWR))
		for range 4 {
			have(g.lookup(dir, "file"))
		}
		g.forget(dir, 1) // before what is in it
		g.forget(rootID, 1000)
		settle(t, func() bool { return errnoIn(g.getattr(dir)) == syscall.ESTALE })
		ok(t, errnoIn(g.read(file, 0, 1))) // whose path leads through it
		want(t, "look in what is forgotten", errnoIn(g.lookup(dir, "file")), syscall.ESTALE)
		want(t, "make in what is forgotten", errnoIn(g.mkdir(dir, "x")), syscall.ESTALE)
		want(t, "rename to what is forgotten", g.rename(rootID, "dir", dir, "x", 0), syscall.ESTALE)
		if a := have(g.lookup(rootID, "dir")); a.node != dir {
			t.Errorf("found again as %d, was %d", a.node, dir)
		}
		g.ask(true, opBatchForget, 0, 3, 0, file, uint64(4), dir, uint64(1), uint64(1000), uint64(1))
		ok(t, errnoIn(g.read(file, 0, 1)))
		g.ask(true, opBatchForget, 0, 2, 0, file, uint64(1<<63)) // of which one is missing
		settle(t, func() bool { return s.known() == 0 })
		if a := have(g.lookup(rootID, "dir")); a.node == dir {
			t.Errorf("the number %d was used again", dir)
		}
	})
}

func TestReaddir(t *testing.T) {
	each(t, func(t *testing.T, s *Server, g *guest) {
		dir := have(t)(g.mkdir(rootID, "dir")).node
		wanted := []string{".", ".."}
		for i := range 300 {
			name := fmt.Sprintf("%03d%s", i, strings.Repeat("x", i%200))
			wanted = append(wanted, name)
			if a := have(t)(g.symlink(dir, name, "x")); i%3 == 0 {
				g.forget(a.node, 1)
			}
		}
		for _, op := range []uint32{opReaddir, opReaddirplus} {
			for _, size := range []uint32{500, 4096, MaxIO, ^uint32(0)} {
				var names []string
				given := map[uint64]uint64{}
				for offset := uint64(0); ; {
					list, errno := g.readdir(op, dir, offset, size)
					ok(t, errno)
					if len(list) == 0 {
						break
					}
					for _, e := range list {
						if names = append(names, e.name); e.node != 0 {
							given[e.node]++
						}
						if offset = e.offset; len(names) > 2 && e.typ != syscall.S_IFLNK || int64(offset) <= 0 {
							t.Fatalf("an entry is %+v", e)
						}
					}
				}
				if !slices.Equal(names, wanted) {
					t.Fatalf("operation %d by %d bytes lists %d names, want %d", op, size, len(names), len(wanted))
				}
				if plus := op == opReaddirplus; len(given) != map[bool]int{true: 300}[plus] {
					t.Errorf("operation %d by %d bytes makes %d nodes known", op, size, len(given))
				}
				for node, lookups := range given {
					g.forget(node, lookups)
				}
			}
		}
		if list, errno := g.readdir(opReaddirplus, dir, 0, 100); errno != 0 || len(list) != 0 {
			t.Errorf("in 100 bytes are %+v (%v)", list, errno)
		}
		// Offsets that no answer has given.
		for _, offset := range []uint64{1, 5000, 77<<32 | 3, 1<<63 | 2, ^uint64(0)} {
			_, errno := g.readdir(opReaddir, dir, offset, 4096)
			ok(t, errno)
		}
		want(t, "list a file", errnoIn(g.readdir(opReaddir, have(t)(g.lookup(dir, "000")).node, 0, 4096)), syscall.ENOTDIR)
		// In the middle of a list, one that is gone is left out and the others stay.
		list, errno := g.readdir(opReaddirplus, dir, 0, 1000)
		ok(t, errno)
		ok(t, g.unlink(dir, wanted[len(list)]))
		rest, errno := g.readdir(opReaddirplus, dir, list[len(list)-1].offset, 1000)
		if ok(t, errno); len(rest) == 0 || rest[0].name != wanted[len(list)+1] {
			t.Errorf("the list goes on with %+v, want %s", rest, wanted[len(list)+1])
		}
		// What was known before it all, and nothing else, is known after it.
		for _, e := range append(list, rest...) {
			g.forget(e.node, 1)
		}
	})
}

// stubborn is a tree with names that cannot be looked at.
type stubborn struct {
	workspace.FS
	errno syscall.Errno
}

func (f stubborn) Stat(path string) (workspace.Attr, error) {
	if strings.HasSuffix(path, "bad") {
		return workspace.Attr{}, f.errno
	}
	return f.FS.Stat(path)
}

// TestReaddirErrors has a folder listed whatever becomes of what is in it, and no node
// known of which the kernel is not told.
func TestReaddirErrors(t *testing.T) {
	tree := memoryTree()
	for _, name := range []string{"a", "bad", "c"} {
		must(t, tree.Symlink("x", name, workspace.Owner{}))
	}
	names := func(list []dirent) (s string) {
		for _, e := range list {
			s += fmt.Sprintf("%s:%d ", e.name, min(e.node, 1))
		}
		return s
	}
	s := newServer(t, stubborn{tree, syscall.EACCES}, Options{})
	list, errno := newGuest(t, s, false).readdir(opReaddirplus, rootID, 0, 4096)
	if got := names(list); errno != 0 || got != ".:0 ..:0 a:1 bad:0 c:1 " || s.known() != 2 {
		t.Errorf("listed are %s(%v), and %d nodes known", got, errno, s.known())
	}
	s = newServer(t, tree, Options{MaxNodes: 2})
	list, errno = newGuest(t, s, false).readdir(opReaddirplus, rootID, 0, 4096)
	if got := names(list); errno != 0 || got != ".:0 ..:0 a:1 bad:0 c:0 " || s.known() != 1 {
		t.Errorf("listed are %s(%v), and %d nodes known", got, errno, s.known())
	}
}

// TestErrors has the kernel told of no error that it would not take, or that would have
// it never ask again.
func TestErrors(t *testing.T) {
	for errno, wanted := range map[syscall.Errno]syscall.Errno{
		syscall.EACCES: syscall.EACCES, syscall.ENOSYS: syscall.EOPNOTSUPP, 511: 511, 512: syscall.EIO, 524: syscall.EIO, 1 << 20: syscall.EIO,
	} {
		s := newServer(t, stubborn{memoryTree(), errno}, Options{})
		want(t, fmt.Sprintf("for %d", errno), errnoIn(newGuest(t, s, false).lookup(rootID, "bad")), wanted)
	}
}

// TestLimits has no more nodes, names and open files than there may be.
func TestLimits(t *testing.T) {
	have := have(t)
	s := newServer(t, memoryTree(), Options{MaxNodes: 50, MaxOpen: 10})
	g := newGuest(t, s, false)
	var nodes []uint64
	for i := range 49 {
		nodes = append(nodes, have(g.mknod(rootID, fmt.Sprint(i), syscall.S_IFREG|0o644)).node)
	}
	want(t, "one node more", errnoIn(g.mknod(rootID, "more", syscall.S_IFREG|0o644)), syscall.ENFILE)
	want(t, "one node more", errnoIn(g.create(rootID, "more2", syscall.O_RDWR)), syscall.ENFILE)
	have(g.lookup(rootID, "7")) // is one of them
	for i := range 10 {
		ok(t, g.open(nodes[i/3], uint32(i%2))) // readers and writers
	}
	want(t, "one file more", g.open(nodes[48], 0), syscall.ENFILE)
	want(t, "one file more", errnoIn(g.create(rootID, "more3", 0)), syscall.ENFILE)
	ok(t, g.release(nodes[0], syscall.O_RDONLY))
	ok(t, g.open(nodes[48], 0))
	ok(t, g.unlink(rootID, "47"))
	g.forget(nodes[47], 1)
	settle(t, func() bool { return s.known() == 48 })
	for i := range 10 { // names of one node
		have := errnoIn(g.link(nodes[0], rootID, fmt.Sprint("link", i)))
		if wanted := map[bool]syscall.Errno{true: syscall.ENFILE}[i >= 2]; have != wanted {
			t.Errorf("the name %d: error %v, want %v", i, have, wanted)
		}
	}
	must(t, s.check())
}

// TestCloseWhileReading has a file read by one while another who could write it closes it.
func TestCloseWhileReading(t *testing.T) {
	each(t, func(t *testing.T, s *Server, g *guest) {
		file := have(t)(g.create(rootID, "file", syscall.O_RDWR)).node
		ok(t, errnoIn(g.write(file, 0, "content")))
		ok(t, g.open(file, syscall.O_RDONLY))
		var all sync.WaitGroup
		for range 4 {
			all.Go(func() {
				for range 300 {
					if got, errno := g.read(file, 0, 100); errno != 0 || got != "content" {
						t.Errorf("read %q (%v)", got, errno)
						return
					}
				}
			})
		}
		for range 300 {
			ok(t, g.release(file, syscall.O_RDWR))
			ok(t, g.open(file, syscall.O_RDWR))
		}
		all.Wait()
		ok(t, g.release(file, syscall.O_RDWR))
		ok(t, g.release(file, syscall.O_RDONLY))
	})
}
