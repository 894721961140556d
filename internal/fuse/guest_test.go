package fuse

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/matchlock/matchlock/internal/workspace"
)

// guest is a kernel that uses a Server's files, and its relay. Several goroutines may
// call it at once.
type guest struct {
	conn net.Conn
	ram  *ram

	writing  sync.Mutex
	unique   uint64
	owned    [slotCount]chan struct{} // slots of requests; has one while it is ours
	answered map[uint64]chan answer   // guarded by mu
	mu       sync.Mutex
	usedUp   uint32
	bySlot   int // answers that came by slots, and requests that went by them
	reached  chan struct{}
	ended    chan struct{} // when the connection is
	served   chan error    // what Serve has returned
}

type answer struct {
	errno syscall.Errno
	body  []byte
}

// ram is a guest's memory, which begins at address 0.
type ram struct {
	mu   sync.Mutex
	data []byte
}

var errNoMemory = errors.New("no such memory")

func (m *ram) access(p []byte, address uint64, do func(there []byte)) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if address > uint64(len(m.data)) || uint64(len(p)) > uint64(len(m.data))-address {
		return errNoMemory
	}
	do(m.data[address:][:len(p)])
	return nil
}

func (m *ram) ReadMemory(p []byte, address uint64) error {
	return m.access(p, address, func(there []byte) { copy(p, there) })
}

func (m *ram) WriteMemory(p []byte, address uint64) error {
	return m.access(p, address, func(there []byte) { copy(there, p) })
}

// mark marks ramSlots.
func (m *ram) mark(t testing.TB, mark [16]byte) {
	t.Helper()
	must(t, m.WriteMemory(mark[:], ramSlots.Requests+markPlace), m.WriteMemory(mark[:], ramSlots.Answers+markPlace))
}

// The areas of the slots in a ram.
var ramSlots = Slots{Requests: 4096, Answers: 4096 + slotArea}

const ramSize = 4096 + 2*slotArea

// socketpair is a connection, and its buffers are the host's.
func socketpair(t testing.TB) (guest, host net.Conn) {
	t.Helper()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	must(t, err)
	var conns [2]net.Conn
	for i, fd := range fds {
		syscall.CloseOnExec(fd)
		f := os.NewFile(uintptr(fd), "socket")
		conns[i], err = net.FileConn(f)
		must(t, err, f.Close())
		t.Cleanup(func() { conns[i].Close() })
	}
	return conns[0], conns[1]
}

// serve has s serve a connection, of which it returns the other end.
func serve(t testing.TB, s *Server, memory Memory) (conn net.Conn, served chan error) {
	t.Helper()
	conn, host := socketpair(t)
	served = make(chan error, 1)
	go func() { served <- s.Serve(context.Background(), host, memory) }()
	return conn, served
}

// owner is whom the guest's first command belongs to.
var owner = workspace.Owner{UID: 1000, GID: 1001}

// newGuest connects to a server and says hello, if that is not known. The test ends with a look at what
// the server has left.
func newGuest(t testing.TB, s *Server, slots bool) *guest {
	t.Helper()
	var memory Memory
	g := &guest{reached: make(chan struct{}), ended: make(chan struct{}), answered: make(map[uint64]chan answer)}
	hello := greeting{owner: owner}
	if slots {
		g.ram = &ram{data: make([]byte, ramSize)}
		memory = g.ram
		hello.slots, hello.mark = ramSlots, [16]byte{1, 2, 3}
		g.ram.mark(t, hello.mark)
	}
	for i := range g.owned {
		g.owned[i] = make(chan struct{}, 1)
		g.owned[i] <- struct{}{}
	}
	g.conn, g.served = serve(t, s, memory)
	if !s.greeted {
		must(t, second(g.conn.Write(hello.append(nil))))
	}
	go g.receive()
	t.Cleanup(func() { g.close(t) })
	if slots {
		g.await(t, g.reached)
	}
	return g
}

// await waits for an event.
func (g *guest) await(t testing.TB, event chan struct{}) {
	t.Helper()
	select {
	case <-event:
	case <-time.After(time.Minute):
		t.Fatal("nothing happens")
	}
}

// close ends the connection, and waits for what that ends.
func (g *guest) close(t testing.TB) {
	g.conn.Close()
	g.await(t, g.ended)
	select {
	case err := <-g.served:
		if err != nil {
			t.Errorf("Serve: %v", err)
		}
		g.served <- nil // closed twice is closed
	case <-time.After(time.Minute):
		t.Fatal("Serve goes on without a connection")
	}
}

// receive takes what comes.
func (g *guest) receive() {
	defer close(g.ended)
	for {
		var b [frameHead]byte
		if _, err := io.ReadFull(g.conn, b[:]); err != nil {
			return
		}
		h := head{
			binary.NativeEndian.Uint32(b[:]), binary.NativeEndian.Uint32(b[4:]),
			binary.NativeEndian.Uint32(b[8:]), binary.NativeEndian.Uint32(b[12:]),
		}
		m := make([]byte, h.length+h.inSlot)
		if _, err := io.ReadFull(g.conn, m[:h.length]); err != nil {
			return
		}
		if h.slot != 0 {
			if err := g.ram.ReadMemory(m[h.length:], slotAddress(ramSlots.Answers, int(h.slot-1))); err != nil {
				panic(err)
			}
			g.mu.Lock()
			g.usedUp++
			g.bySlot++
			g.mu.Unlock()
		}
		switch {
		case h.counter == slotsReached:
			close(g.reached)
		case h.counter != 0:
			g.owned[h.counter-1] <- struct{}{}
		}
		if len(m) == 0 {
			continue
		}
		d := decoder{rest: m}
		length, errno, unique := d.uint32(), -int32(d.uint32()), d.uint64()
		if int(length) != len(m) || d.err != 0 || errno < 0 || errno >= 512 || errno != 0 && len(d.rest) != 0 {
			panic(fmt.Sprintf("no kernel takes the answer %x", m[:min(len(m), 64)]))
		}
		g.mu.Lock()
		to := g.answered[unique]
		delete(g.answered, unique)
		g.mu.Unlock()
		if to == nil {
			panic("an answer that nobody has asked for")
		}
		to <- answer{syscall.Errno(errno), d.rest}
	}
}

// message makes a request of its parts: numbers, bytes, and names, which are strings.
func message(unique uint64, opcode uint32, node uint64, parts ...any) []byte {
	e := encoder{}
	e.uint32(0)
	e.uint32(opcode)
	e.uint64(unique)
	e.uint64(node)
	e.uint32(owner.UID)
	e.uint32(owner.GID)
	e.zeros(8)
	for _, part := range parts {
		switch v := part.(type) {
		case uint32:
			e.uint32(v)
		case int:
			e.uint32(uint32(v))
		case uint64:
			e.uint64(v)
		case string:
			e.buf = append(append(e.buf, v...), 0)
		case []byte:
			e.buf = append(e.buf, v...)
		default:
			panic(fmt.Sprintf("part of a request: %T", part))
		}
	}
	binary.NativeEndian.PutUint32(e.buf, uint32(len(e.buf)))
	return e.buf
}

// inline is a frame with a message.
func inline(m []byte) []byte {
	return append(head{length: uint32(len(m))}.append(nil), m...)
}

// ask sends a request. silent: there is no answer.
func (g *guest) ask(silent bool, opcode uint32, node uint64, parts ...any) (to chan answer) {
	g.writing.Lock()
	defer g.writing.Unlock()
	g.unique++
	to = make(chan answer, 1)
	g.mu.Lock()
	if !silent {
		g.answered[g.unique] = to
	}
	h := head{counter: g.usedUp}
	g.mu.Unlock()
	m := message(g.unique, opcode, node, parts...)
	if g.ram != nil && len(m) > maxInline {
		var slot int
		select {
		case <-g.owned[0]:
			slot = 0
		case <-g.owned[1]:
			slot = 1
		case <-g.owned[2]:
			slot = 2
		case <-g.ended:
			close(to)
			return to
		}
		if err := g.ram.WriteMemory(m, slotAddress(ramSlots.Requests, slot)+frameHead); err != nil {
			panic(err)
		}
		h.slot, h.inSlot, m = uint32(slot+1), uint32(len(m)), nil
		g.mu.Lock()
		g.bySlot++
		g.mu.Unlock()
	}
	h.length = uint32(len(m))
	if _, err := g.conn.Write(append(h.append(nil), m...)); err != nil {
		close(to)
	}
	return to
}

// call sends a request and waits for the answer.
func (g *guest) call(opcode uint32, node uint64, parts ...any) ([]byte, syscall.Errno) {
	select {
	case a, ok := <-g.ask(false, opcode, node, parts...):
		if !ok {
			return nil, syscall.EPIPE
		}
		return a.body, a.errno
	case <-g.ended:
		return nil, syscall.EPIPE
	}
}

// attributes are those of struct fuse_attr that the tests look at.
type attributes struct {
	node        uint64 // of fuse_entry_out
	ino, size   uint64
	mtime       uint64
	mode, links uint32
	uid, gid    uint32
	valid       uint64 // how long attributes hold
}

func (a *attributes) parse(d *decoder) {
	a.ino, a.size = d.uint64(), d.uint64()
	d.skip(16)
	a.mtime = d.uint64()
	d.skip(20)
	a.mode, a.links, a.uid, a.gid = d.uint32(), d.uint32(), d.uint32(), d.uint32()
	d.skip(12)
}

// entry reads struct fuse_entry_out.
func entry(body []byte, errno syscall.Errno) (a attributes, e syscall.Errno) {
	if errno != 0 {
		return a, errno
	}
	d := decoder{rest: body}
	a.node = d.uint64()
	d.skip(8)
	a.valid = d.uint64()
	d.skip(16)
	a.parse(&d)
	if d.err != 0 || a.node == 0 {
		panic("no entry")
	}
	return a, 0
}

func (g *guest) lookup(folder uint64, name string) (attributes, syscall.Errno) {
	return entry(g.call(opLookup, folder, name))
}

func (g *guest) getattr(node uint64) (a attributes, errno syscall.Errno) {
	body, errno := g.call(opGetattr, node, make([]byte, 16))
	d := decoder{rest: body}
	a.valid = d.uint64()
	d.skip(8)
	a.parse(&d)
	return a, errno
}

// setattr is of struct fuse_setattr_in what counts.
type setattr struct {
	valid    uint32
	size     uint64
	at, mt   uint64
	atns     uint32
	mode     uint32
	uid, gid uint32
}

func (g *guest) setattr(node uint64, s setattr) (a attributes, errno syscall.Errno) {
	body, errno := g.call(opSetattr, node, s.valid, 0, uint64(0), s.size, uint64(0), s.at, s.mt, uint64(0), s.atns, 0, 0, s.mode, 0, s.uid, s.gid, 0)
	d := decoder{rest: body}
	d.skip(16)
	a.parse(&d)
	return a, errno
}

func (g *guest) mkdir(folder uint64, name string) (attributes, syscall.Errno) {
	return entry(g.call(opMkdir, folder, 0o755, 0, name))
}

func (g *guest) mknod(folder uint64, name string, mode uint32) (attributes, syscall.Errno) {
	return entry(g.call(opMknod, folder, mode, 0, 0, 0, name))
}

func (g *guest) symlink(folder uint64, name, target string) (attributes, syscall.Errno) {
	return entry(g.call(opSymlink, folder, name, target))
}

func (g *guest) link(node, folder uint64, name string) (attributes, syscall.Errno) {
	return entry(g.call(opLink, folder, node, name))
}

func (g *guest) create(folder uint64, name string, flags uint32) (attributes, syscall.Errno) {
	return entry(g.call(opCreate, folder, flags, 0o644, 0, 0, name))
}

func (g *guest) open(node uint64, flags uint32) syscall.Errno {
	_, errno := g.call(opOpen, node, flags, 0)
	return errno
}

func (g *guest) release(node uint64, flags uint32) syscall.Errno {
	_, errno := g.call(opRelease, node, uint64(0), flags, 0, uint64(0))
	return errno
}

func (g *guest) read(node uint64, offset uint64, size uint32) (string, syscall.Errno) {
	body, errno := g.call(opRead, node, uint64(0), offset, size, 0, uint64(0), 0, 0)
	return string(body), errno
}

func (g *guest) write(node uint64, offset uint64, data string) (uint32, syscall.Errno) {
	return g.writeFlags(node, offset, data, 0)
}

func (g *guest) writeFlags(node uint64, offset uint64, data string, flags uint32) (uint32, syscall.Errno) {
	body, errno := g.call(opWrite, node, uint64(0), offset, len(data), flags, uint64(0), 0, 0, []byte(data))
	d := decoder{rest: body}
	return d.uint32(), errno
}

func (g *guest) unlink(folder uint64, name string) syscall.Errno {
	_, errno := g.call(opUnlink, folder, name)
	return errno
}

func (g *guest) rmdir(folder uint64, name string) syscall.Errno {
	_, errno := g.call(opRmdir, folder, name)
	return errno
}

func (g *guest) rename(from uint64, oldName string, to uint64, newName string, flags uint32) syscall.Errno {
	_, errno := g.call(opRename2, from, to, flags, 0, oldName, newName)
	return errno
}

func (g *guest) forget(node, lookups uint64) {
	g.ask(true, opForget, node, lookups)
}

// dirent is one of READDIRPLUS, or without a node of READDIR.
type dirent struct {
	attributes
	name   string
	offset uint64
	typ    uint32
}

// readdir asks once for what of a folder comes from an offset on.
func (g *guest) readdir(opcode uint32, folder, offset uint64, size uint32) (list []dirent, errno syscall.Errno) {
	body, errno := g.call(opcode, folder, uint64(0), offset, size, 0, uint64(0), 0, 0)
	for d := (decoder{rest: body}); len(d.rest) > 0; {
		var e dirent
		if opcode == opReaddirplus {
			e.node = d.uint64()
			d.skip(32)
			e.parse(&d)
		}
		d.skip(8)
		e.offset = d.uint64()
		length := int(d.uint32())
		e.typ = d.uint32() << 12
		e.name = string(d.take(length))
		d.skip(-length & 7)
		if d.err != 0 || e.name == "" {
			panic("no list")
		}
		list = append(list, e)
	}
	return list, errno
}

// must fails the test when any of the steps did.
func must(t testing.TB, steps ...error) {
	t.Helper()
	if err := errors.Join(steps...); err != nil {
		t.Fatal(err)
	}
}

// ok fails the test at an error of the server.
func ok(t testing.TB, errno syscall.Errno) {
	t.Helper()
	if errno != 0 {
		t.Fatal(errno)
	}
}

// have is ok for what returns attributes.
func have(t testing.TB) func(attributes, syscall.Errno) attributes {
	return func(a attributes, errno syscall.Errno) attributes {
		t.Helper()
		ok(t, errno)
		return a
	}
}

// want reports an error that is not the one wanted.
func want(t testing.TB, what string, errno, wanted syscall.Errno) {
	t.Helper()
	if errno != wanted {
		t.Errorf("%s: error %v (%d), want %v", what, errno, errno, wanted)
	}
}

func errnoIn[T any](_ T, errno syscall.Errno) syscall.Errno { return errno }
