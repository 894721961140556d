package fuse

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"syscall"
	"testing"

	"github.com/matchlock/matchlock/internal/workspace"
)

// tape is a connection from which comes what is on it, and to which nobody listens.
type tape struct {
	net.Conn // none: nothing else is called
	mu       sync.Mutex
	*bytes.Reader
}

func (t *tape) Read(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.Reader.Read(p)
}

func (t *tape) Write(p []byte) (int, error) { return len(p), nil }

func (t *tape) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.Reader.Reset(nil)
	return nil
}

// smallTree has room for little.
func smallTree() workspace.FS {
	return workspace.NewMemory(workspace.MemoryOptions{Quota: 4 << 20, Files: 100})
}

// FuzzFrames has a server read anything.
func FuzzFrames(f *testing.F) {
	hello := greeting{slots: ramSlots, owner: owner}.append(nil)
	for _, m := range [][]byte{
		message(1, opInit, 0, 7, 38, 1<<20, ^uint32(0)),
		message(2, opLookup, rootID, "name"),
		message(3, opCreate, rootID, 2, 0o644, 0, 0, "file"),
		message(4, opWrite, 2, uint64(0), uint64(0), 4, 0, uint64(0), 0, 0, []byte("data")),
		message(5, opRead, 2, uint64(0), uint64(0), 4096, 0, uint64(0), 0, 0),
		message(6, opReaddirplus, rootID, uint64(0), uint64(0), 4096, 0, uint64(0), 0, 0),
		message(7, opRename2, rootID, uint64(rootID), 0, 0, "file", "other"),
		message(8, opSetxattr, 2, 1, 0, "user.x", []byte("x")),
		message(9, opForget, 2, uint64(1)),
	} {
		f.Add(append(bytes.Clone(hello), inline(m)...), true)
		f.Add(append(bytes.Clone(hello), head{slot: 2, inSlot: uint32(len(m)), counter: 7}.append(nil)...), true)
	}
	f.Add(hello, false)
	f.Fuzz(func(t *testing.T, stream []byte, slots bool) {
		var memory Memory
		if slots {
			memory = &ram{data: make([]byte, 64<<10)} // less than the slots
		}
		s := NewServer(smallTree(), Options{MaxNodes: 100, MaxOpen: 10})
		s.Serve(context.Background(), &tape{Reader: bytes.NewReader(stream)}, memory)
		must(t, s.check(), s.Close())
	})
}

// dice are random, or come from a fuzzer.
type dice interface {
	below(n int) int
	more() bool
}

type bytesDice struct{ rest []byte }

func (d *bytesDice) more() bool { return len(d.rest) > 0 }

func (d *bytesDice) below(n int) int {
	if len(d.rest) == 0 {
		return 0
	}
	b := d.rest[0]
	d.rest = d.rest[1:]
	return int(b) % n
}

type randomDice struct {
	*rand.Rand
	left int
}

func (d *randomDice) more() bool      { d.left--; return d.left >= 0 }
func (d *randomDice) below(n int) int { return d.IntN(n) }

// kernel does what dice say, and keeps count of what it has been given. It asks the
// server itself: there is no relay.
type kernel struct {
	s       *Server
	dice    dice
	nodes   []uint64 // that it has heard of, ever
	lookups map[uint64]uint64
	opens   map[[2]uint64]int // of a node, for reading or writing
	request request
	unique  uint64
}

func newKernel(s *Server, d dice) *kernel {
	return &kernel{s: s, dice: d, nodes: []uint64{rootID}, lookups: map[uint64]uint64{}, opens: map[[2]uint64]int{}}
}

func (k *kernel) call(opcode uint32, node uint64, parts ...any) ([]byte, syscall.Errno) {
	k.unique++
	k.request.in = message(k.unique, opcode, node, parts...)
	k.s.handle(&k.request)
	return k.request.out.buf, k.request.errno
}

func (k *kernel) entry(body []byte, errno syscall.Errno) {
	if errno == 0 {
		k.given(binary.NativeEndian.Uint64(body))
	}
}

func (k *kernel) given(node uint64) {
	if k.lookups[node] == 0 {
		k.nodes = append(k.nodes, node)
	}
	k.lookups[node]++
}

func (k *kernel) node() uint64 { return k.nodes[k.dice.below(len(k.nodes))] }
func (k *kernel) name() string { return string(rune('a' + k.dice.below(5))) }

func openKey(node uint64, flags uint32) [2]uint64 {
	if writes(flags) {
		return [2]uint64{node, 1}
	}
	return [2]uint64{node, 0}
}

// do does one thing.
func (k *kernel) do() {
	node, flags := k.node(), uint32(k.dice.below(3))
	switch k.dice.below(20) {
	case 0, 1:
		k.entry(k.call(opLookup, node, k.name()))
	case 2:
		k.entry(k.call(opMkdir, node, 0o755, 0, k.name()))
	case 3:
		k.entry(k.call(opSymlink, node, k.name(), "x"))
	case 4:
		body, errno := k.call(opCreate, node, flags|uint32(k.dice.below(2)*syscall.O_EXCL), 0o644, 0, 0, k.name())
		if k.entry(body, errno); errno == 0 {
			k.opens[openKey(binary.NativeEndian.Uint64(body), flags)]++
		}
	case 5:
		k.entry(k.call(opLink, node, k.node(), k.name()))
	case 6:
		k.call(opUnlink, node, k.name())
	case 7:
		k.call(opRmdir, node, k.name())
	case 8, 9:
		k.call(opRename2, node, k.node(), k.dice.below(3), 0, k.name(), k.name())
	case 10, 11:
		if _, errno := k.call(opOpen, node, flags, 0); errno == 0 {
			k.opens[openKey(node, flags)]++
		}
	case 12, 13:
		if key := openKey(node, flags); k.opens[key] > 0 {
			k.opens[key]--
			k.call(opRelease, node, uint64(0), flags, 0, uint64(0))
		}
	case 14:
		k.call(opRead, node, uint64(0), uint64(k.dice.below(256)), k.dice.below(256), 0, uint64(0), 0, 0)
	case 15:
		k.call(opWrite, node, uint64(0), uint64(k.dice.below(256)), 3, 0, uint64(0), 0, 0, []byte("abc"))
	case 16:
		var s setattr
		if s.size = uint64(k.dice.below(256)); s.size%2 == 0 {
			s.valid = setSize
		} else {
			s.valid = setMode
		}
		k.call(opSetattr, node, s.valid, 0, uint64(0), s.size, make([]byte, 64))
	case 17, 18:
		if n := k.lookups[node]; n > 0 && node != rootID {
			n = min(n, 1+uint64(k.dice.below(3)))
			if k.lookups[node] == n { // no kernel forgets what it has open
				for _, flags := range []uint32{syscall.O_RDONLY, syscall.O_RDWR} {
					k.release(node, flags)
				}
			}
			k.lookups[node] -= n
			k.call(opForget, node, n)
		}
	case 19:
		body, errno := k.call(opReaddirplus, node, uint64(0), uint64(0), 100+8*k.dice.below(256), 0, uint64(0), 0, 0)
		for d := (decoder{rest: body}); errno == 0 && len(d.rest) > 0; {
			if node := d.uint64(); node != 0 {
				k.given(node)
			}
			d.skip(entrySize - 8 + 16)
			length := int(d.uint32())
			d.skip(4 + (length+7)&^7)
		}
	}
}

func (k *kernel) release(node uint64, flags uint32) {
	for ; k.opens[openKey(node, flags)] > 0; k.opens[openKey(node, flags)]-- {
		k.call(opRelease, node, uint64(0), flags, 0, uint64(0))
	}
}

// leave gives back all.
func (k *kernel) leave() {
	for _, node := range k.nodes {
		k.release(node, syscall.O_RDONLY)
		k.release(node, syscall.O_RDWR)
	}
	for node, lookups := range k.lookups {
		k.call(opForget, node, lookups)
	}
	clear(k.lookups)
}

// agrees tells where a server that nobody else uses counts otherwise.
func (k *kernel) agrees() error {
	n := k.s.nodes
	n.mu.Lock()
	defer n.mu.Unlock()
	for id, is := range n.byID {
		if id != rootID && is.lookups != k.lookups[id] {
			return fmt.Errorf("node %d was looked up %d times, counted as %d", id, k.lookups[id], is.lookups)
		}
		for write, o := range []*open{&is.reading, &is.writing} {
			if key := [2]uint64{id, uint64(write)}; o.users != k.opens[key] {
				return fmt.Errorf("node %d (%d) was opened %d times, counted as %d", id, write, k.opens[key], o.users)
			}
		}
	}
	for id, lookups := range k.lookups {
		if lookups > 0 && n.byID[id] == nil {
			return fmt.Errorf("node %d is gone, and was looked up %d times", id, lookups)
		}
	}
	return nil
}

// host changes a tree behind the kernel.
func host(tree workspace.FS, d dice) {
	name := func() string {
		s := string(rune('a' + d.below(5)))
		if d.below(2) == 0 {
			s += "/" + string(rune('a'+d.below(5)))
		}
		return s
	}
	switch d.below(4) {
	case 0:
		tree.Rename(name(), name(), uint32(d.below(3)))
	case 1:
		tree.Unlink(name())
	case 2:
		tree.Rmdir(name())
	case 3:
		if f, err := tree.Create(name(), 0o644, workspace.Owner{}); err == nil {
			f.Close()
		}
	}
}

// FuzzRequests has a kernel do anything that a kernel does, and the host anything
// meanwhile: the server knows what the kernel knows, and all of it fits together.
func FuzzRequests(f *testing.F) {
	for seed := range uint64(20) {
		b := make([]byte, 300)
		rand.NewChaCha8([32]byte{byte(seed)}).Read(b)
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, choices []byte) {
		d := &bytesDice{rest: choices[:min(len(choices), 2000)]}
		tree := smallTree()
		s := NewServer(tree, Options{MaxNodes: 20, MaxOpen: 10})
		k := newKernel(s, d)
		for d.more() {
			if d.below(12) == 0 {
				host(tree, d)
			} else {
				k.do()
			}
			must(t, s.check(), k.agrees())
		}
		k.leave()
		must(t, s.check(), s.Close())
		if s.known() > 0 || s.nodes.opened > 0 {
			t.Fatalf("%d nodes and %d open files are left", s.known(), s.nodes.opened)
		}
	})
}

// TestKernels has several kernels do anything at once, in one tree. When they have given
// all back, nothing is left.
func TestKernels(t *testing.T) {
	for name, tree := range trees {
		t.Run(name, func(t *testing.T) {
			s := newServer(t, tree(t), Options{MaxNodes: 200, MaxOpen: 50})
			var all sync.WaitGroup
			for seed := range uint64(6) {
				all.Go(func() {
					d := &randomDice{rand.New(rand.NewPCG(seed, 1)), 2000}
					k := newKernel(s, d)
					for d.more() {
						if seed == 0 {
							host(s.tree, d)
						}
						k.do()
					}
					k.leave()
				})
			}
			all.Wait()
			must(t, s.check())
			if s.known() > 0 || s.nodes.opened > 0 {
				t.Fatalf("%d nodes and %d open files are left", s.known(), s.nodes.opened)
			}
		})
	}
}
