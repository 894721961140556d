package fuse

import (
	"bytes"
	"fmt"
	"strings"
	"syscall"
	"testing"

	"github.com/matchlock/matchlock/internal/workspace"
)

// saved is what a server says of itself.
func saved(t testing.TB, s *Server) []byte {
	t.Helper()
	var b bytes.Buffer
	must(t, s.Save(&b))
	return b.Bytes()
}

// TestState has a server go on with the nodes of another one.
func TestState(t *testing.T) {
	have := have(t)
	tree := memoryTree()
	before := newServer(t, tree, Options{})
	if text := saved(t, before); len(text) != 0 {
		t.Errorf("nobody was there, and it says %q", text)
	}
	must(t, before.Load(strings.NewReader("")))
	g := newGuest(t, before, true)
	folder := have(g.mkdir(rootID, "dir")).node
	// Two names that are the same, to who takes them for UTF-8.
	one, other := have(g.create(folder, "\xfe", syscall.O_RDWR)), have(g.create(folder, "\xff", syscall.O_RDONLY))
	_, errno := g.write(one.node, 0, "one")
	ok(t, errno)
	for i := range 2 * maxLinks {
		have(g.link(one.node, folder, fmt.Sprint(strings.Repeat("\xff", 250), i)))
	}
	g.close(t)

	text := saved(t, before)
	after := NewServer(tree, Options{})
	must(t, after.Load(bytes.NewReader(text)), after.check())
	if again := saved(t, after); len(again) != len(text) {
		t.Errorf("%d bytes became %d", len(text), len(again))
	}
	k := newKernel(after, nil)
	if body, errno := k.call(opRead, one.node, uint64(0), uint64(0), 9, 0, uint64(0), 0, 0); errno != 0 || string(body) != "one" {
		t.Errorf("it reads %q (%v)", body, errno)
	}
	if a, errno := entry(k.call(opLookup, folder, "\xff")); errno != 0 || a.node != other.node {
		t.Errorf("node %d is %d (%v) in a copy", other.node, a.node, errno)
	}
}

// Another server goes on where one was: the kernel notices nothing, but for what is gone.
func TestGoesOn(t *testing.T) {
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
	text := saved(t, s)
	g.close(t)

	s2 := newServer(t, tree, Options{})
	must(t, s2.Load(bytes.NewReader(text)), s2.check())
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
}

// statesOfOthers are such as no server says.
var statesOfOthers = map[string]string{
	"no lines":            "{}",
	"more than there are": `{"nodes":2,"next":9}` + "\n" + `{"id":1,"kind":16384}` + "\n",
	"too many":            `{"nodes":1000000000,"next":9}` + "\n",
	"less than none open": state(`{"id":2,"readers":-1}`),
	"all open":            state(`{"id":2,"readers":1000000}`),
	"twice":               state(`{"id":2}`, `{"id":2}`),
	"none's":              state(`{"id":0}`),
	"one to come":         state(`{"id":9}`),
	"a root's name":       state(`{"id":1,"kind":16384,"names":[{"folder":1,"name":"YQ=="}]}`),
	"no folder at all":    state(`{"id":1,"kind":32768}`),
	"in a file":           state(`{"id":2,"kind":32768,"lookups":1}`, `{"id":3,"names":[{"folder":2,"name":"YQ=="}]}`),
	"in nothing":          state(`{"id":3,"names":[{"folder":7,"name":"YQ=="}]}`),
	"a name twice":        state(`{"id":2,"names":[{"folder":1,"name":"YQ=="}]}`, `{"id":3,"names":[{"folder":1,"name":"YQ=="}]}`),
	"a way out":           state(`{"id":2,"names":[{"folder":1,"name":"Li4="}]}`),
	"a slash":             state(`{"id":2,"names":[{"folder":1,"name":"YS9i"}]}`),
	"a folder's two":      state(`{"id":2,"kind":16384,"names":[{"folder":1,"name":"YQ=="},{"folder":1,"name":"Yg=="},{"folder":1,"name":"Yw=="}]}`),
	"in each other":       state(`{"id":2,"kind":16384,"lookups":1,"names":[{"folder":3,"name":"YQ=="}]}`, `{"id":3,"kind":16384,"lookups":1,"names":[{"folder":2,"name":"YQ=="}]}`),
	"for nobody":          state(`{"id":2,"kind":32768}`),
	"a long line":         state(`{"id":2,"names":[` + strings.Repeat(`{},`, maxStateLine) + `{}]}`),
}

func state(nodes ...string) string {
	return fmt.Sprintf(`{"nodes":%d,"next":9}`, len(nodes)) + "\n" + strings.Join(nodes, "\n") + "\n"
}

// A state may come from elsewhere.
func TestStateOfOthers(t *testing.T) {
	for name, text := range statesOfOthers {
		s := newServer(t, memoryTree(), Options{})
		if err := s.Load(strings.NewReader(text)); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func FuzzState(f *testing.F) {
	f.Add([]byte(state(`{"id":2,"kind":16384,"lookups":1,"names":[{"folder":1,"name":"YQ=="}]}`, `{"id":3,"kind":32768,"readers":1,"lookups":1,"names":[{"folder":2,"name":"YQ=="}]}`)))
	f.Add([]byte(state(`{"id":2,"kind":16384,"names":[{"folder":3,"name":"YQ=="}]}`, `{"id":3,"kind":16384,"names":[{"folder":2,"name":"YQ=="}]}`)))
	for _, text := range statesOfOthers {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		s := NewServer(smallTree(), Options{MaxNodes: 64, MaxOpen: 64})
		defer s.Close()
		if err := s.Load(bytes.NewReader(text)); err != nil {
			if s.known() > 0 || s.greeted {
				t.Errorf("after %v it knows %d nodes", err, s.known())
			}
			return
		}
		must(t, s.check(), s.Load(bytes.NewReader(saved(t, s))), s.check())
		k := newKernel(s, nil)
		for node := range uint64(9) {
			k.call(opGetattr, node, make([]byte, 16))
			k.call(opRead, node, uint64(0), uint64(0), 9, 0, uint64(0), 0, 0)
			k.call(opRename2, node, uint64(1), workspace.RenameExchange, 0, "a", "b")
			k.call(opUnlink, node, "a")
			k.call(opForget, node, ^uint64(0))
			k.call(opRelease, node, uint64(0), syscall.O_RDONLY, 0, uint64(0))
		}
	})
}
