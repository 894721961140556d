package fuse

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/matchlock/matchlock/internal/workspace"
)

// heap is what lives in memory, in bytes.
func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// connect is a connection to a server by which hello is said, and no more.
func connect(t *testing.T, s *Server, memory Memory, hello greeting) (net.Conn, chan error) {
	t.Helper()
	conn, served := serve(t, s, memory)
	_, err := conn.Write(hello.append(nil))
	must(t, err)
	return conn, served
}

func ends(t *testing.T, served chan error) error {
	t.Helper()
	select {
	case err := <-served:
		return err
	case <-time.After(time.Minute):
		t.Fatal("Serve goes on")
		return nil
	}
}

// TestFlood sends 100,000 requests and reads no answer: the server waits until it does,
// and takes no more memory than its workers have.
func TestFlood(t *testing.T) {
	const requests = 100_000
	tree := smallTree()
	f, err := tree.Create("file", 0o644, workspace.Owner{})
	must(t, err, f.Truncate(1<<20), f.Close())
	for what, m := range map[string][]byte{
		"GETATTR": message(1, opGetattr, rootID, make([]byte, 16)),
		"READ":    message(1, opRead, 2, uint64(0), uint64(0), MaxIO, 0, uint64(0), 0, 0),
		"LOOKUP":  message(1, opLookup, rootID, "file"),
	} {
		t.Run(what, func(t *testing.T) {
			s := newServer(t, tree, Options{})
			g := newGuest(t, s, false)
			have(t)(g.lookup(rootID, "file")) // node 2
			g.close(t)
			heapBefore, goroutines := heap(), runtime.NumGoroutine()
			conn, served := serve(t, s, nil)
			sent := 0
			var err error
			for ; sent < requests && err == nil; sent++ {
				must(t, conn.SetWriteDeadline(time.Now().Add(300*time.Millisecond)))
				_, err = conn.Write(inline(m))
			}
			if !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatalf("after %d requests: %v", sent, err)
			}
			if n := runtime.NumGoroutine() - goroutines; n > workers+2 {
				t.Errorf("%d goroutines serve", n)
			}
			if n := heap() - heapBefore; n > 32<<20 {
				t.Errorf("%d bytes of memory", n)
			}
			conn.Close()
			must(t, ends(t, served))
			s.nodes.forget(2, requests)
		})
	}
}

// TestAnswersAll has all of 100,000 requests answered that are there at once, as far as
// somebody reads.
func TestAnswersAll(t *testing.T) {
	const requests = 100_000
	s := newServer(t, smallTree(), Options{})
	conn, served := connect(t, s, nil, greeting{})
	go func() {
		for i := range uint64(requests) {
			if _, err := conn.Write(inline(message(i, opGetattr, rootID, make([]byte, 16)))); err != nil {
				return
			}
		}
	}()
	seen := make([]bool, requests)
	b := make([]byte, frameHead+outHeaderSize+16+88)
	for range seen {
		_, err := io.ReadFull(conn, b)
		must(t, err)
		unique := binary.NativeEndian.Uint64(b[frameHead+8:])
		if seen[unique] {
			t.Fatalf("request %d is answered twice", unique)
		}
		seen[unique] = true
	}
	conn.Close()
	must(t, ends(t, served))
}

// TestEnd has Serve return, whatever its peer is doing, when the connection or ctx ends.
func TestEnd(t *testing.T) {
	hello := greeting{}.append(nil)
	half := inline(message(1, opLookup, rootID, "name"))
	half = half[:len(half)-3]
	for what, said := range map[string][]byte{
		"nothing": nil, "half of hello": hello[:20], "hello": hello, "half of a head": append(bytes.Clone(hello), half[:7]...),
		"half of a frame": append(bytes.Clone(hello), half...),
	} {
		for _, how := range []string{"close", "cancel"} {
			t.Run(what+" and "+how, func(t *testing.T) {
				goroutines := runtime.NumGoroutine()
				s := newServer(t, smallTree(), Options{})
				conn, host := socketpair(t)
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				served := make(chan error, 1)
				go func() { served <- s.Serve(ctx, host, nil) }()
				_, err := conn.Write(said)
				must(t, err)
				if how == "close" {
					conn.Close()
				} else {
					cancel()
				}
				must(t, ends(t, served))
				settle(t, func() bool { return runtime.NumGoroutine() <= goroutines })
			})
		}
	}
}

// TestImpossible has a connection end with an error whose frames no relay sends.
func TestImpossible(t *testing.T) {
	long := inline(make([]byte, maxMessage+1))
	for what, frame := range map[string][]byte{
		"a message shorter than its header": head{length: inHeaderSize - 1}.append(nil),
		"a message that is too long":        long,
		"2^32-1 bytes":                      head{length: ^uint32(0)}.append(nil),
		"2^32-1 bytes in a slot":            head{slot: 1, inSlot: ^uint32(0)}.append(nil),
		"lengths that overflow":             head{length: 1 << 31, slot: 1, inSlot: 1<<31 + 40}.append(nil),
		"two halves that are too long":      head{length: maxMessage, slot: 1, inSlot: 1}.append(nil),
		"a slot that there is not":          head{slot: slotCount + 1, inSlot: 100}.append(nil),
		"slot 2^32-1":                       head{slot: ^uint32(0), inSlot: 100}.append(nil),
		"a slot with nothing in it":         head{length: 100, slot: 1}.append(nil),
		"no slot with something in it":      head{length: 100, inSlot: 100}.append(nil),
		"a second hello":                    greeting{slots: ramSlots}.append(nil),
	} {
		for _, slots := range []bool{false, true} {
			s := newServer(t, smallTree(), Options{})
			var memory Memory
			if slots {
				memory = &ram{data: make([]byte, ramSize)} // both marks are zero
			}
			conn, served := connect(t, s, memory, greeting{slots: ramSlots})
			conn.Write(frame) // may fail: the server hears no more than it must
			if err := ends(t, served); !errors.Is(err, errFrame) {
				t.Errorf("%s (%v): %v, want %v", what, slots, err, errFrame)
			}
		}
	}
	// What stands behind a hello that is none is not done.
	tree := smallTree()
	s := newServer(t, tree, Options{})
	conn, served := serve(t, s, nil)
	_, err := conn.Write(append(make([]byte, greetingSize), inline(message(1, opMkdir, rootID, 0o755, 0, "dir"))...))
	must(t, err)
	if err := ends(t, served); !errors.Is(err, errFrame) {
		t.Errorf("no hello: %v, want %v", err, errFrame)
	}
	if entries, err := tree.ReadDir(""); err != nil || len(entries) > 0 {
		t.Errorf("the tree has %v (%v)", entries, err)
	}
}

// TestSlots has slots where a guest's memory is, and where it is marked, and nowhere else.
func TestSlots(t *testing.T) {
	mark := [16]byte{1, 2, 3}
	memory := func() *ram {
		m := &ram{data: make([]byte, ramSize)}
		m.mark(t, mark)
		return m
	}
	m := message(1, opGetattr, rootID, make([]byte, 16))
	bySlot := head{slot: 1, inSlot: uint32(len(m))}.append(nil)
	for what, hello := range map[string]greeting{
		"none":              {mark: mark},
		"outside":           {slots: Slots{ramSlots.Requests, ramSize}, mark: mark},
		"half outside":      {slots: Slots{ramSlots.Requests, ramSize - markPlace - 8}, mark: mark},
		"at the other end":  {slots: Slots{^uint64(0) - markPlace - 8, ramSlots.Answers}, mark: mark},
		"without the mark":  {slots: Slots{0, ramSlots.Answers}, mark: mark},
		"with another mark": {slots: ramSlots, mark: [16]byte{9}},
	} {
		s := newServer(t, smallTree(), Options{})
		conn, served := connect(t, s, memory(), hello)
		conn.Write(bySlot)
		if err := ends(t, served); !errors.Is(err, errFrame) {
			t.Errorf("slots %s: %v, want %v", what, err, errFrame)
		}
	}

	// Memory that is marked and ends within a slot.
	s := newServer(t, smallTree(), Options{})
	ram := memory()
	conn, served := connect(t, s, ram, greeting{slots: ramSlots, mark: mark})
	frame(t, conn)
	ram.mu.Lock()
	ram.data = ram.data[:ramSlots.Requests+20]
	ram.mu.Unlock()
	conn.Write(bySlot)
	if err := ends(t, served); !errors.Is(err, errNoMemory) {
		t.Errorf("half a slot: %v, want %v", err, errNoMemory)
	}
	conn.Close()

	// A relay that never says that it is done with a slot, or lies, is sent three answers
	// by slots and all others by the port; none of these is written again.
	tree := smallTree()
	f, err := tree.Create("file", 0o644, workspace.Owner{})
	must(t, err, second(f.WriteAt(bytes.Repeat([]byte("x"), 8192), 0)), f.Close())
	s = newServer(t, tree, Options{})
	ram = memory()
	defer func() { s.nodes.forget(2, 1) }()
	for connection, counters := range [][]uint32{{0, 0, 0, 0, 0, 7, ^uint32(0), 4, 3, 3, 3, 3, 2}, {1 << 31, 1 << 31, 1 << 31, 1 << 31, 1<<31 + 1, 1<<31 + 9}} {
		var conn net.Conn
		if connection == 0 {
			conn, served = connect(t, s, ram, greeting{slots: ramSlots, mark: mark})
			if h := frame(t, conn); h != (head{counter: slotsReached}) {
				t.Fatalf("the server says %+v", h)
			}
			ask(t, conn, 0, message(1, opLookup, rootID, "file"))
			frame(t, conn)
		} else { // a connection later, to the same relay
			conn, served = serve(t, s, ram)
		}
		var slots []uint32
		for _, counter := range counters {
			ask(t, conn, counter, message(1, opRead, 2, uint64(0), uint64(0), 8192, 0, uint64(0), 0, 0))
			slots = append(slots, frame(t, conn).slot)
		}
		want := []string{"[1 2 3 0 0 0 0 0 1 2 3 0 0]", "[3 1 2 0 3 0]"}[connection]
		if got := fmt.Sprint(slots); got != want {
			t.Errorf("answers came by the slots %s, want %s", got, want)
		}
		conn.Close()
		must(t, ends(t, served))
	}
}

func second[T any](_ T, err error) error { return err }

// ask sends a request with what the relay says that it has used up.
func ask(t *testing.T, conn net.Conn, counter uint32, m []byte) {
	t.Helper()
	_, err := conn.Write(append(head{length: uint32(len(m)), counter: counter}.append(nil), m...))
	must(t, err)
}

// frame reads a frame, and returns its head.
func frame(t *testing.T, conn net.Conn) head {
	t.Helper()
	var b [frameHead]byte
	must(t, conn.SetReadDeadline(time.Now().Add(time.Minute)), second(io.ReadFull(conn, b[:])))
	h := head{
		binary.NativeEndian.Uint32(b[:]), binary.NativeEndian.Uint32(b[4:]),
		binary.NativeEndian.Uint32(b[8:]), binary.NativeEndian.Uint32(b[12:]),
	}
	must(t, second(io.CopyN(io.Discard, conn, int64(h.length))))
	return h
}

// endless is a tree that has every name, and a folder "list" of names.
type endless struct {
	workspace.FS
	next      atomic.Uint64
	entries   []workspace.DirEntry
	now, most atomic.Int32 // how many list at a time
}

func (f *endless) Stat(string) (workspace.Attr, error) {
	return workspace.Attr{ID: workspace.ID{Inode: f.next.Add(1)}, Mode: syscall.S_IFDIR}, nil
}

func (f *endless) ReadDir(string) ([]workspace.DirEntry, error) {
	if now := f.now.Add(1); now > f.most.Load() {
		f.most.Store(now)
	}
	defer f.now.Add(-1)
	return append([]workspace.DirEntry{}, f.entries...), nil
}

// TestNodesCost looks up as many names as there may be, as long as they may be.
func TestNodesCost(t *testing.T) {
	const nodes = 100_000
	s := newServer(t, &endless{FS: smallTree()}, Options{MaxNodes: nodes})
	k := newKernel(s, nil)
	before := heap()
	long := strings.Repeat("x", maxName-6)
	for i := 1; i < nodes; i++ {
		ok(t, errnoIn(k.call(opLookup, rootID, fmt.Sprintf("%06d", i)+long)))
	}
	want(t, "one more", errnoIn(k.call(opLookup, rootID, "more")), syscall.ENFILE)
	if each := (heap() - before) / nodes; each > 1024 {
		t.Errorf("a node takes %d bytes", each)
	}
	want(t, "another of the same name", errnoIn(k.call(opLookup, rootID, "000001"+long)), syscall.ENFILE)
	e := encoder{}
	for id := range uint64(nodes) {
		e.uint64(id + 2)
		e.uint64(1 << 40)
	}
	for rest := e.buf; len(rest) > 0; {
		part := rest[:min(len(rest), 16*30_000)]
		rest = rest[len(part):]
		k.call(opBatchForget, 0, ^uint32(0), 0, part) // which says that there are more
	}
	if n := s.known(); n > 0 {
		t.Errorf("%d nodes are left", n)
	}
}

// TestListsCost lists huge folders by all workers at once, over and over.
func TestListsCost(t *testing.T) {
	tree := &endless{FS: smallTree(), entries: make([]workspace.DirEntry, 50_000)}
	for i := range tree.entries {
		tree.entries[i].Name = fmt.Sprint(i)
	}
	s := newServer(t, tree, Options{})
	before := heap()
	var all sync.WaitGroup
	for range workers {
		all.Go(func() {
			k := newKernel(s, nil)
			for range 3 {
				if _, errno := k.call(opReaddir, rootID, uint64(0), uint64(0), 4096, 0, uint64(0), 0, 0); errno != 0 {
					t.Error(errno)
				}
			}
		})
	}
	all.Wait()
	if most := tree.most.Load(); most > maxMaking {
		t.Errorf("%d lists were made at a time", most)
	}
	if n := heap() - before; n > maxNames*64 {
		t.Errorf("lists take %d bytes", n)
	}
	tree.entries = tree.entries[:1]
	k := newKernel(s, nil)
	for range 2 * maxLists {
		ok(t, errnoIn(k.call(opReaddir, rootID, uint64(0), uint64(0), 4096, 0, uint64(0), 0, 0)))
	}
	if n := s.lists.kept.Len(); n > maxLists {
		t.Errorf("%d lists are kept", n)
	}
	tree.entries = make([]workspace.DirEntry, maxNames+1)
	want(t, "too many names", errnoIn(k.call(opReaddir, rootID, uint64(0), uint64(0), 4096, 0, uint64(0), 0, 0)), syscall.EOVERFLOW)
}
