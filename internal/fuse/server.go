package fuse

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"sync"
	"syscall"
	"time"

	"github.com/matchlock/matchlock/internal/workspace"
)

// Options of a Server.
type Options struct {
	// Valid is how long the guest may believe what it was told of a file. Zero has it
	// ask each time.
	Valid time.Duration
	// MaxNodes bounds the files that the guest can know at once; 0 is 1<<20.
	MaxNodes int
	// MaxOpen bounds those that it can have open; 0 is 8192.
	MaxOpen int
}

// Server answers a guest's kernel. It serves one connection at a time; what it knows
// of nodes goes on in the next one.
type Server struct {
	tree    workspace.FS
	options Options
	nodes   *nodes
	lists   lists

	greeted bool // by the relay, and so these are known:
	slots   Slots
	owner   workspace.Owner // of what belongs to workspace.AnyOwner
}

// NewServer returns a server of a tree, which it takes over.
func NewServer(tree workspace.FS, o Options) *Server {
	if o.MaxNodes == 0 {
		o.MaxNodes = 1 << 20
	}
	if o.MaxOpen == 0 {
		o.MaxOpen = 8192
	}
	return &Server{
		tree: tree, options: o, nodes: newNodes(o.MaxNodes),
		lists: lists{making: make(chan struct{}, maxMaking)},
	}
}

// Close closes the files that the guest had open, and the tree. No connection is
// served any more.
func (s *Server) Close() error {
	s.nodes.close()
	return s.tree.Close()
}

// workers is how many requests are worked on at a time.
const workers = 16

// Serve answers requests until the connection ends, which it closes, or ctx does. An
// end that the guest has brought about by saying what no kernel says is an error.
//
// memory may be nil: then all goes by the connection.
func (s *Server) Serve(ctx context.Context, conn net.Conn, memory Memory) error {
	c := &connection{server: s, conn: conn, turn: make(chan struct{}, 1), in: bufio.NewReaderSize(conn, 32<<10), memory: memory}
	c.idle.L = &c.mu
	c.turn <- struct{}{}
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	defer conn.Close()
	if err := c.greet(); err != nil {
		return c.ended(ctx, err)
	}
	var working sync.WaitGroup
	for range workers {
		working.Go(func() {
			c.fail(c.work())
		})
	}
	working.Wait()
	return c.ended(ctx, c.err)
}

// ended is nil where err says no more than that the connection is at its end, be it in
// the middle of a frame: machines are killed at any time.
func (c *connection) ended(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	for _, end := range []error{io.EOF, io.ErrUnexpectedEOF, net.ErrClosed, syscall.ECONNRESET, syscall.EPIPE} {
		if errors.Is(err, end) {
			return nil
		}
	}
	return err
}

// connection is one relay.
type connection struct {
	server *Server
	conn   net.Conn
	memory Memory // nil: none can be reached
	slots  Slots

	turn    chan struct{} // whoever takes what is in it reads in, alone
	in      *bufio.Reader
	counted bool   // a frame has come
	usedUp  uint32 // answers' slots that the relay is done with, as it says

	writing sync.Mutex
	sent    uint32 // answers' slots that were sent
	out     []byte

	mu      sync.Mutex
	working int        // requests that have come and not been answered
	waiting int        // of these, barriers
	idle    sync.Cond  // fewer are, or there is an error
	err     error      // the first one
	spare   []*request // not in use
}

// greet hears where the slots are, unless that is known, and sees whether they are
// there.
func (c *connection) greet() error {
	s := c.server
	if !s.greeted {
		g, err := readGreeting(c.in)
		if err != nil {
			return err
		}
		s.greeted, s.owner = true, g.owner
		if c.memory != nil && g.slots != (Slots{}) && c.marked(g.slots.Requests, g.mark) && c.marked(g.slots.Answers, g.mark) {
			s.slots = g.slots
			if _, err := c.conn.Write(head{counter: slotsReached}.append(nil)); err != nil {
				return err
			}
		}
	}
	c.slots = s.slots
	return nil
}

// marked tells whether a mark stands in an area.
func (c *connection) marked(area uint64, mark [16]byte) bool {
	var there [16]byte
	return c.memory.ReadMemory(there[:], area+markPlace) == nil && there == mark
}

func (c *connection) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil {
		c.err = err
		c.conn.Close()
		c.idle.Broadcast()
	}
}

// work answers one request after the other. Who answers one lets another worker
// read the next.
func (c *connection) work() error {
	for {
		r, slot, err := c.next()
		if err != nil {
			return err
		}
		if barrier(r) {
			c.quiet()
		}
		c.server.handle(r)
		err = c.answer(r, slot)
		c.done(r)
		if err != nil {
			return err
		}
	}
}

// A question about the file system itself, which no program can ask, is how the guest
// makes sure that nothing is under way: it is answered last.
func barrier(r *request) bool {
	h, ok := parseHeader(r.in)
	return ok && h.opcode == opStatfs && h.node == rootID
}

// quiet returns when no other request is worked on.
func (c *connection) quiet() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.waiting++
	for c.working > c.waiting && c.err == nil {
		c.idle.Wait()
	}
	c.waiting--
}

// done notes that a request has been answered, and takes its memory back.
func (c *connection) done(r *request) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.working--
	c.spare = append(c.spare, r)
	c.idle.Broadcast()
}

// unused returns a request to be filled in: the last one used, of which memory is in
// the processor's caches.
func (c *connection) unused() *request {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := len(c.spare)
	if n == 0 {
		return &request{in: make([]byte, 0, 4096)}
	}
	r := c.spare[n-1]
	c.spare = c.spare[:n-1]
	return r
}

// next reads a request. slot is that of its frame, which is to be released.
func (c *connection) next() (r *request, slot uint32, err error) {
	<-c.turn
	defer func() { c.turn <- struct{}{} }()
	h, err := readHead(c.in)
	if err != nil {
		return nil, 0, err
	}
	r = c.unused()
	r.in = sized(r.in, int(h.length+h.inSlot))
	if _, err := io.ReadFull(c.in, r.in[:h.length]); err != nil {
		return nil, 0, err
	}
	if h.slot != 0 {
		if c.memory == nil || c.slots.Requests == 0 {
			return nil, 0, errFrame
		}
		if err := c.memory.ReadMemory(r.in[h.length:], slotAddress(c.slots.Requests, int(h.slot-1))+frameHead); err != nil {
			return nil, 0, err
		}
	}
	c.writing.Lock()
	if !c.counted { // it counts on from where it was in another connection
		c.counted, c.sent, c.usedUp = true, h.counter, h.counter
	}
	// It cannot have used up more than it was sent.
	if used := h.counter - c.usedUp; used <= c.sent-c.usedUp {
		c.usedUp = h.counter
	}
	c.writing.Unlock()
	c.mu.Lock()
	c.working++
	c.mu.Unlock()
	return r, h.slot, nil
}

// sized returns a buffer of n bytes, b if that is large enough.
func sized(b []byte, n int) []byte {
	if cap(b) < n {
		return make([]byte, n, max(n, 4096))
	}
	return b[:n]
}

// answer sends what is to be said to a request, if anything, and releases its slot.
func (c *connection) answer(r *request, slot uint32) error {
	if r.silent && slot == 0 {
		return nil
	}
	c.writing.Lock()
	defer c.writing.Unlock()
	h := head{counter: slot}
	var direct []byte
	if !r.silent {
		h.length = uint32(outHeaderSize + len(r.out.buf))
		direct = r.out.buf
		if len(r.out.buf) > maxInline && c.memory != nil && c.slots.Answers != 0 && c.sent-c.usedUp < slotCount {
			number := int(c.sent % slotCount)
			if err := c.memory.WriteMemory(r.out.buf, slotAddress(c.slots.Answers, number)); err == nil {
				h.length, h.slot, h.inSlot = outHeaderSize, uint32(number+1), uint32(len(r.out.buf))
				direct = nil
				c.sent++
			}
		}
	}
	c.out = h.append(c.out[:0])
	if !r.silent {
		c.out = binary.NativeEndian.AppendUint32(c.out, uint32(outHeaderSize+len(r.out.buf)))
		c.out = binary.NativeEndian.AppendUint32(c.out, uint32(-int32(r.errno)))
		c.out = binary.NativeEndian.AppendUint64(c.out, r.unique)
		c.out = append(c.out, direct...)
	}
	_, err := c.conn.Write(c.out)
	return err
}
