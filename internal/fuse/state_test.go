package fuse

import (
	"encoding/json"
	"strings"
	"syscall"
	"testing"

	"github.com/matchlock/matchlock/internal/workspace"
)

// TestState has another server go on where one was: the kernel notices nothing, but for
// what is gone.
func TestState(t *testing.T) {
	have := have(t)
	tree := memoryTree()
	s := newServer(t, tree, Options{})
	g := newGuest(t, s, false)
	dir := have(g.mkdir(rootID, "dir"))
	var files []attributes
	for _, name := range []string{"\xff", "\xfe", "\xff\xfd", "ü", "a\nb", strings.Repeat("n", 255)} { // no text, some of them
		a := have(g.create(dir.node, name, syscall.O_RDWR))
		ok(t, errnoIn(g.write(a.node, 0, name)))
		files = append(files, a)
	}
	link := have(g.link(files[0].node, rootID, "link"))
	gone := have(g.create(rootID, "gone", syscall.O_RDWR))
	ok(t, g.unlink(rootID, "gone"))
	forgotten := have(g.mkdir(rootID, "forgotten"))
	inside := have(g.mkdir(forgotten.node, "inside"))
	g.forget(forgotten.node, 1)
	settle(t, func() bool { return errnoIn(g.getattr(forgotten.node)) == syscall.ESTALE })
	text, err := json.Marshal(s)
	must(t, err)
	g.close(t)

	s2 := newServer(t, tree, Options{})
	must(t, json.Unmarshal(text, s2), s2.check())
	g = newGuest(t, s2, false)
	for _, a := range files {
		name := have(g.getattr(a.node))
		if name.ino != a.ino || name.uid != owner.UID {
			t.Errorf("node %d is %+v, was %+v", a.node, name, a)
		}
		got, errno := g.read(a.node, 0, 255)
		if errno != 0 || uint64(len(got)) != name.size {
			t.Errorf("node %d holds %q (%v)", a.node, got, errno)
		}
		ok(t, errnoIn(g.write(a.node, 0, "x")))
		ok(t, g.release(a.node, syscall.O_RDWR))
	}
	if link.node != files[0].node || have(g.lookup(rootID, "link")).node != link.node {
		t.Errorf("the other name is of node %d", link.node)
	}
	want(t, "read what had no name", errnoIn(g.read(gone.node, 0, 1)), syscall.ESTALE)
	ok(t, g.release(gone.node, syscall.O_RDWR))
	have(g.getattr(inside.node))
	if made := have(g.mkdir(inside.node, "made")); made.node <= inside.node {
		t.Errorf("a new node has the number %d, after %d", made.node, inside.node)
	}
	if s2.nodes.opened != 0 {
		t.Errorf("%d are open", s2.nodes.opened)
	}
	// A server without a guest knows nothing.
	text, err = json.Marshal(NewServer(tree, Options{}))
	must(t, err, json.Unmarshal(text, NewServer(tree, Options{})))
}

// FuzzState has a server know what anything says.
func FuzzState(f *testing.F) {
	s := NewServer(smallTree(), Options{})
	d := &bytesDice{rest: []byte("what a kernel does, and does again, and again, until it has done enough of it to be seen")}
	for k := newKernel(s, d); d.more(); k.do() {
	}
	s.greeted = true
	text, err := json.Marshal(s)
	must(f, err)
	f.Add(text)
	for _, nodes := range []string{
		`{"id":1,"kind":32768}`,
		`{"id":2,"kind":16384,"lookups":1,"names":[{"folder":1,"name":"YQ=="},{"folder":1,"name":"Yg=="}]}`,
		`{"id":2,"kind":16384,"lookups":1,"names":[{"folder":3,"name":"YQ=="}]},{"id":3,"kind":16384,"lookups":1,"names":[{"folder":2,"name":"YQ=="}]}`,
		`{"id":2,"kind":32768,"readers":1,"writers":-1,"lookups":1},{"id":2}`,
		`{"id":2,"kind":32768}`,
	} {
		f.Add([]byte(`{"next":4,"nodes":[` + nodes + `]}`))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		tree := smallTree()
		must(t, tree.Mkdir("a", 0o755, workspace.Owner{}), tree.Symlink("x", "b", workspace.Owner{}))
		s := NewServer(tree, Options{MaxNodes: 100, MaxOpen: 10})
		if err := json.Unmarshal(text, s); err != nil {
			if s.known() > 0 || s.greeted {
				t.Errorf("after %v it knows %d nodes", err, s.known())
			}
			return
		}
		must(t, s.check())
		again, err := json.Marshal(s)
		must(t, err, json.Unmarshal(again, s), s.check())
	})
}
