package fuse

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"

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
