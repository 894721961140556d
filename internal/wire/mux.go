package wire

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
)

// The multiplexer's own frames. Each is a header, its kind (1 byte), the
// stream's id (4) and the payload's length (4, the highest first), and the
// payload:
//
//	open    port (4), window (4)   host only; ids rise
//	accept  window (4)             guest only, once
//	data    1 … maxPayload bytes   within the window
//	grant   n (4)                  the window is n bytes wider
//	fin     –                      the sender's last data went before; its last frame but grant, stop and reset
//	stop    –                      the sender reads no more; answered by fin
//	reset   reason (0 … 512)       the sender has given the stream up; answered by fin
//
// A stream is over when each side has sent fin or reset. Up to earlyWindow bytes
// may be sent before the accept. Whoever breaks one of these rules loses the session.
const (
	kindOpen = iota + 1
	kindAccept
	kindData
	kindGrant
	kindFin
	kindStop
	kindReset
)

const (
	muxHeader = 9

	// maxBatch is the most that is written at once: what Linux's virtio-serial
	// takes in one write(2) (drivers/char/virtio_console.c, port_fops_write).
	maxBatch   = 32 << 10
	maxPayload = maxBatch - muxHeader

	maxReason = 512

	// MaxStreams is the number of streams a session has at most.
	MaxStreams = 4096

	// A stream that is opened while the session has fewer than manyStreams has
	// fullWindow, a later one smallWindow, so that what the peer can make one side
	// hold is bounded: 256 × 256 KiB + 3840 × 32 KiB = 184 MiB.
	fullWindow  = 256 << 10
	smallWindow = 32 << 10
	manyStreams = 256
	earlyWindow = smallWindow

	maxWindow = 1 << 30
)

var (
	// ErrRefused is wrapped by the error of a dial, or of the first read or write,
	// when the guest does not take the stream; the wrapping error has its reason.
	ErrRefused = errors.New("refused by the guest")

	// ErrReset is wrapped by the error of reads and writes after the peer has given
	// the stream up.
	ErrReset = errors.New("stream reset by peer")

	// ErrStopped is wrapped by the error of writes after the peer has closed its end.
	ErrStopped = errors.New("stream closed by peer")

	// ErrProtocol is wrapped by the error that ends a session whose peer did not
	// keep to the rules.
	ErrProtocol = errors.New("protocol violation")

	// ErrTooManyStreams is returned by a dial beyond MaxStreams.
	ErrTooManyStreams = errors.New("too many streams")
)

// HostMux is the host's end of a session: it carries any number of streams, all
// dialled by the host, over one connection to the guest. Its methods may be
// called by several goroutines at once.
//
// A reader that stops holds up its own stream only, and no stream starves
// another: they take turns frame by frame. A session costs two goroutines and
// nothing while it is idle: no keep-alive, no polling.
type HostMux struct{ session }

// GuestMux is the guest's end of a session. Its methods may be called by several
// goroutines at once.
type GuestMux struct{ session }

// NewHostMux opens a session over conn. Epoch must be the one that the guest
// has been told on the control port. ctx bounds the handshake only; whatever
// comes first from the guest must be its answer. The session owns conn and
// closes it, also when NewHostMux fails.
func NewHostMux(ctx context.Context, conn io.ReadWriteCloser, epoch uint64) (*HostMux, error) {
	m := &HostMux{session{host: true}}
	if err := m.start(ctx, conn, epoch); err != nil {
		return nil, fmt.Errorf("guest channel: %w", err)
	}
	return m, nil
}

// NewGuestMux is the guest's counterpart of NewHostMux: it waits for the host.
func NewGuestMux(ctx context.Context, conn io.ReadWriteCloser, epoch uint64) (*GuestMux, error) {
	m := new(GuestMux)
	if err := m.start(ctx, conn, epoch); err != nil {
		return nil, fmt.Errorf("host channel: %w", err)
	}
	return m, nil
}

// Dial opens a stream to a service port and returns when the guest has accepted
// it. ctx bounds the dial only.
func (m *HostMux) Dial(ctx context.Context, port uint32) (net.Conn, error) {
	s, err := m.open(port)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		s.readable.Broadcast()
	})
	defer stop()

	m.mu.Lock()
	defer m.mu.Unlock()
	for !s.accepted {
		err := s.recvEnd
		if err == nil {
			err = m.err
		}
		if err == nil && ctx.Err() != nil {
			err = fmt.Errorf("guest port %d: %w", port, context.Cause(ctx))
		}
		if err != nil {
			s.abandon("")
			return nil, err
		}
		s.readable.Wait()
	}
	return s, nil
}

// Open is Dial without the wait, for a port that is known to be served: what is
// written travels together with the request, one round trip sooner. A refusal is
// the error of the first Read, or of a Write.
func (m *HostMux) Open(port uint32) (net.Conn, error) {
	s, err := m.open(port)
	if err != nil {
		return nil, err
	}
	return s, nil
}

func (m *HostMux) open(port uint32) (*Stream, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.err != nil {
		return nil, m.err
	}
	if len(m.streams) >= MaxStreams {
		return nil, ErrTooManyStreams
	}
	if m.last == 1<<32-1 {
		return nil, errors.New("stream numbers are used up")
	}
	m.last++
	s := m.newStream(m.last, port)
	s.credit = earlyWindow
	s.owe(oweOpen)
	return s, nil
}

// AwaitHost is NewGuestMux without the wait: that there was no handshake is the
// error of Accept.
func AwaitHost(conn io.ReadWriteCloser, epoch uint64) *GuestMux {
	m := new(GuestMux)
	m.begin(conn, epoch)
	return m
}

// An Incoming is a stream that the host asks for. It must be accepted or
// refused, once.
type Incoming struct{ stream *Stream }

// Accept waits for the next stream.
func (m *GuestMux) Accept() (*Incoming, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for len(m.arrived) == 0 {
		if m.err != nil {
			return nil, m.err
		}
		m.arrival.Wait()
	}
	s := m.arrived[0]
	m.arrived = m.arrived[1:]
	return &Incoming{s}, nil
}

// Port is the service port that was dialled.
func (i *Incoming) Port() uint32 { return i.stream.port }

// Accept takes the stream.
func (i *Incoming) Accept() *Stream {
	s := i.stream
	s.session.mu.Lock()
	defer s.session.mu.Unlock()
	if !s.accepted {
		s.accepted = true
		if !s.finSent { // else the host has given it up in the meantime
			s.owe(oweAccept)
		}
	}
	return s
}

// Refuse tells the host that, and why, there will be no stream. Of a long reason
// only the beginning arrives.
func (i *Incoming) Refuse(reason string) {
	s := i.stream
	s.session.mu.Lock()
	defer s.session.mu.Unlock()
	s.abandon(reason)
}

// session is what both ends have in common. mu guards all of it and all that is
// in its streams; nothing waits for a connection while holding it.
type session struct {
	host    bool
	conn    io.ReadWriteCloser
	greeted chan struct{} // closed after the handshake
	done    chan struct{}
	wg      sync.WaitGroup

	mu      sync.Mutex
	err     error // why the session is over
	streams map[uint32]*Stream
	last    uint32    // the highest id so far
	ready   []*Stream // those with something to send, in the order of their turn
	work    sync.Cond // the writer's: ready, or over
	free    []*block

	arrived []*Stream // guest: not yet returned by Accept
	arrival sync.Cond
}

// Done is closed when the session is over.
func (m *session) Done() <-chan struct{} { return m.done }

// Err says why the session is over; nil while it is not.
func (m *session) Err() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.err
}

// Close ends the session and all its streams. What has not yet been written to
// the connection is lost. It returns when nothing of the session runs any more.
func (m *session) Close() error {
	m.end(net.ErrClosed)
	m.wg.Wait()
	return nil
}

// start begins the session and waits for the handshake.
func (m *session) start(ctx context.Context, conn io.ReadWriteCloser, epoch uint64) error {
	m.begin(conn, epoch)
	stop := context.AfterFunc(ctx, func() { m.end(fmt.Errorf("handshake: %w", context.Cause(ctx))) })
	select {
	case <-m.greeted:
	case <-m.done:
	}
	if !stop() {
		<-m.done
	}
	if err := m.Err(); err != nil {
		m.wg.Wait()
		return err
	}
	return nil
}

// begin has all there that the session needs when the handshake comes.
func (m *session) begin(conn io.ReadWriteCloser, epoch uint64) {
	m.conn = conn
	m.greeted = make(chan struct{})
	m.done = make(chan struct{})
	m.streams = make(map[uint32]*Stream)
	m.work.L = &m.mu
	m.arrival.L = &m.mu
	m.free = []*block{new(block)}
	m.wg.Go(func() {
		r := bufio.NewReaderSize(conn, 2*maxBatch)
		if err := m.shakeHands(r, epoch); err != nil {
			m.end(fmt.Errorf("handshake: %w", err))
			return
		}
		close(m.greeted)
		m.end(m.readAll(r))
	})
	m.wg.Go(func() { m.end(m.writeAll()) })
}

// A hello is the magic, the Version and the epoch.
const (
	helloMagic = "\x89matchlock\r\n"
	helloSize  = len(helloMagic) + 4 + 8
)

func (m *session) shakeHands(r io.Reader, epoch uint64) error {
	hello := binary.BigEndian.AppendUint32([]byte(helloMagic), Version)
	hello = binary.BigEndian.AppendUint64(hello, epoch)
	send := func() error {
		_, err := m.conn.Write(hello)
		return err
	}
	receive := func() error {
		var theirs [helloSize]byte
		if _, err := io.ReadFull(r, theirs[:]); err != nil {
			return err
		}
		if string(theirs[:len(helloMagic)]) != helloMagic {
			return fmt.Errorf("%w: no hello but %q", ErrProtocol, theirs[:])
		}
		rest := theirs[len(helloMagic):]
		if v := binary.BigEndian.Uint32(rest); v != Version {
			return fmt.Errorf("peer speaks version %d, this is version %d", v, Version)
		}
		if e := binary.BigEndian.Uint64(rest[4:]); e != epoch {
			return fmt.Errorf("%w: hello of epoch %d in epoch %d", ErrProtocol, e, epoch)
		}
		return nil
	}
	// The host speaks first: until it does, the guest's end may have nobody.
	first, second := send, receive
	if !m.host {
		first, second = receive, send
	}
	if err := first(); err != nil {
		return err
	}
	return second()
}

// end makes err the reason of the session's end, if it has none yet, and wakes
// whoever waits for anything.
func (m *session) end(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.err != nil {
		return
	}
	m.err = err
	close(m.done)
	m.conn.Close() // wakes the reader and the writer
	m.work.Broadcast()
	m.arrival.Broadcast()
	for _, s := range m.streams {
		s.wake()
	}
}

// writeAll is the only writer of the connection.
func (m *session) writeAll() error {
	batch := make([]byte, 0, maxBatch)
	for {
		m.mu.Lock()
		for len(m.ready) == 0 && m.err == nil {
			m.work.Wait()
		}
		if m.err != nil {
			m.mu.Unlock()
			return m.err
		}
		batch = m.fill(batch[:0])
		m.mu.Unlock()
		if _, err := m.conn.Write(batch); err != nil {
			return fmt.Errorf("channel write: %w", noEOF(err))
		}
	}
}

// fill appends a frame's worth of each ready stream while there is room.
func (m *session) fill(batch []byte) []byte {
	const controlRoom = 6*muxHeader + maxReason + 64 // more than all that is not data takes
	for len(m.ready) > 0 && cap(batch)-len(batch) >= controlRoom {
		s := m.ready[0]
		m.ready[0] = nil
		m.ready = m.ready[1:]
		s.queued = false
		batch = s.fill(batch)
		if s.owed != 0 || s.sendable() > 0 {
			s.queue()
		}
	}
	return batch
}

// readAll is the only reader of the connection. It waits for nothing else.
func (m *session) readAll(r *bufio.Reader) error {
	for {
		if err := m.readFrame(r); err != nil {
			return fmt.Errorf("channel read: %w", noEOF(err))
		}
	}
}

// noEOF keeps the end of the connection from being taken for the end of a stream.
func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

func (m *session) readFrame(r *bufio.Reader) error {
	header, err := r.Peek(muxHeader)
	if err != nil {
		return err
	}
	kind, id, size := header[0], binary.BigEndian.Uint32(header[1:]), binary.BigEndian.Uint32(header[5:])
	if size > maxPayload {
		return fmt.Errorf("%w: frame of %d bytes", ErrProtocol, size)
	}
	frame, err := r.Peek(muxHeader + int(size))
	if err != nil {
		return err
	}
	m.mu.Lock()
	err = m.receive(kind, id, frame[muxHeader:])
	m.mu.Unlock()
	if err != nil {
		return fmt.Errorf("%w: stream %d, frame of kind %d: %w", ErrProtocol, id, kind, err)
	}
	_, err = r.Discard(len(frame))
	return err
}

var (
	errLength    = errors.New("wrong length")
	errUnknown   = errors.New("no such stream")
	errDirection = errors.New("not this side's to send")
	errOrder     = errors.New("out of order")
	errWindow    = errors.New("window exceeded")
)

// receive acts on one frame. Its error ends the session.
func (m *session) receive(kind byte, id uint32, payload []byte) error {
	if kind == kindOpen {
		return m.receiveOpen(id, payload)
	}
	s := m.streams[id]
	if s == nil {
		// These may have crossed the end of their stream; nothing else can.
		if (kind == kindGrant || kind == kindStop || kind == kindReset) && 0 < id && id <= m.last {
			return nil
		}
		return errUnknown
	}
	switch kind {
	case kindAccept:
		return s.receiveAccept(payload)
	case kindData:
		return s.receiveData(payload)
	case kindGrant:
		return s.receiveGrant(payload)
	case kindFin:
		return s.receiveFin(payload)
	case kindStop:
		return s.receiveStop(payload)
	case kindReset:
		return s.receiveReset(payload)
	}
	return errors.New("unknown kind")
}

func (m *session) receiveOpen(id uint32, payload []byte) error {
	if m.host {
		return errDirection
	}
	if len(payload) != 8 {
		return errLength
	}
	if id <= m.last {
		return errOrder
	}
	if len(m.streams) >= MaxStreams {
		return ErrTooManyStreams
	}
	window := binary.BigEndian.Uint32(payload[4:])
	if window > maxWindow {
		return errWindow
	}
	m.last = id
	s := m.newStream(id, binary.BigEndian.Uint32(payload))
	s.credit = int(window)
	m.arrived = append(m.arrived, s)
	m.arrival.Signal()
	return nil
}
