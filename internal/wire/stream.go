package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"sync"
	"time"
)

// A Stream is one connection inside a session: a net.Conn that can be closed in
// one direction. Its methods may be called by several goroutines at once; one
// Write is never torn apart by another.
//
// Write returns when its bytes have been handed to the session's connection,
// not when the peer has read them.
type Stream struct {
	session *session
	id      uint32
	port    uint32

	// All below is guarded by session.mu.

	owed     owed
	queued   bool   // in session.ready
	reason   string // goes with oweReset
	accepted bool
	closed   bool // by Close or Reset on this side

	// What comes in.
	received  buffer
	window    int   // what the peer may have outstanding at the beginning
	allowance int   // what it may still send
	consumed  int   // what has been read and not yet been granted anew
	recvEnd   error // the peer has sent its last data: io.EOF, or why there is no more
	readable  sync.Cond
	readLimit deadline

	// What goes out.
	pending    []byte // what a Write has not yet got rid of
	writing    bool
	credit     int
	sendEnd    error // why nothing more can be written
	finSent    bool  // fin or reset
	writable   sync.Cond
	writeLimit deadline
}

// owed is the set of frames, besides data, that a stream has to send.
type owed uint8

const (
	oweOpen owed = 1 << iota
	oweAccept
	oweGrant
	oweFin
	oweStop
	oweReset
)

func (m *session) newStream(id, port uint32) *Stream {
	s := &Stream{session: m, id: id, port: port, window: fullWindow}
	if len(m.streams) >= manyStreams {
		s.window = smallWindow
	}
	s.allowance = s.window
	if !m.host {
		s.allowance = earlyWindow // the rest comes with the accept
	}
	s.readable.L = &m.mu
	s.writable.L = &m.mu
	m.streams[id] = s
	return s
}

// Port is the service port at the guest's end.
func (s *Stream) Port() uint32 { return s.port }

func (s *Stream) wake() {
	s.readable.Broadcast()
	s.writable.Broadcast()
}

func (s *Stream) owe(frames owed) {
	s.owed |= frames
	s.queue()
}

// queue gives the stream its turn at the writer.
func (s *Stream) queue() {
	if s.queued || s.session.err != nil {
		return
	}
	s.queued = true
	s.session.ready = append(s.session.ready, s)
	s.session.work.Signal()
}

// fill appends what the stream has to say: all that is not data, and at most
// one frame of data.
func (s *Stream) fill(batch []byte) []byte {
	if s.owed&oweOpen != 0 {
		batch = s.appendHeader(batch, kindOpen, 8)
		batch = binary.BigEndian.AppendUint32(batch, s.port)
		batch = binary.BigEndian.AppendUint32(batch, uint32(s.window))
	}
	if s.owed&oweAccept != 0 {
		batch = s.appendHeader(batch, kindAccept, 4)
		batch = binary.BigEndian.AppendUint32(batch, uint32(s.window-earlyWindow))
		s.allowance += s.window - earlyWindow
	}
	if s.owed&oweGrant != 0 {
		batch = s.appendHeader(batch, kindGrant, 4)
		batch = binary.BigEndian.AppendUint32(batch, uint32(s.consumed))
		s.allowance += s.consumed
		s.consumed = 0
	}
	if s.owed&oweStop != 0 {
		batch = s.appendHeader(batch, kindStop, 0)
	}
	if s.owed&oweReset != 0 {
		batch = s.appendHeader(batch, kindReset, len(s.reason))
		batch = append(batch, s.reason...)
		s.finSent = true
	}
	s.owed &= oweFin

	if n := min(s.sendable(), cap(batch)-len(batch)-muxHeader); n > 0 {
		batch = s.appendHeader(batch, kindData, n)
		batch = append(batch, s.pending[:n]...)
		s.pending = s.pending[n:]
		s.credit -= n
		if len(s.pending) == 0 {
			s.writable.Broadcast()
		}
	}
	if s.owed&oweFin != 0 {
		s.owed &^= oweFin
		if !s.finSent {
			batch = s.appendHeader(batch, kindFin, 0)
			s.finSent = true
		}
	}
	s.removeIfOver()
	return batch
}

func (s *Stream) appendHeader(batch []byte, kind byte, size int) []byte {
	batch = append(batch, kind)
	batch = binary.BigEndian.AppendUint32(batch, s.id)
	return binary.BigEndian.AppendUint32(batch, uint32(size))
}

// removeIfOver forgets the stream when both sides have said their last.
func (s *Stream) removeIfOver() {
	if s.finSent && s.recvEnd != nil {
		delete(s.session.streams, s.id)
	}
}

func (s *Stream) receiveAccept(payload []byte) error {
	if !s.session.host {
		return errDirection
	}
	if len(payload) != 4 {
		return errLength
	}
	if s.accepted || s.recvEnd != nil {
		return errOrder
	}
	s.accepted = true
	s.readable.Broadcast()
	return s.receiveGrant(payload)
}

func (s *Stream) receiveData(payload []byte) error {
	if len(payload) == 0 {
		return errLength
	}
	if s.recvEnd != nil || s.session.host && !s.accepted {
		return errOrder
	}
	if len(payload) > s.allowance {
		return errWindow
	}
	s.allowance -= len(payload)
	if !s.closed {
		s.received.append(payload, s.session)
		s.readable.Broadcast()
	}
	return nil
}

func (s *Stream) receiveGrant(payload []byte) error {
	if len(payload) != 4 {
		return errLength
	}
	if s.session.host && !s.accepted {
		return errOrder
	}
	n := binary.BigEndian.Uint32(payload)
	if n > maxWindow || s.credit+int(n) > maxWindow {
		return errWindow
	}
	s.credit += int(n)
	if len(s.pending) > 0 {
		s.queue()
	}
	return nil
}

func (s *Stream) receiveFin(payload []byte) error {
	if len(payload) != 0 {
		return errLength
	}
	// Before the accept it can only be the answer to our own end.
	if s.recvEnd != nil || s.session.host && !s.accepted && !s.finSent {
		return errOrder
	}
	s.recvEnd = io.EOF
	s.readable.Broadcast()
	s.removeIfOver()
	return nil
}

func (s *Stream) receiveStop(payload []byte) error {
	if len(payload) != 0 {
		return errLength
	}
	if s.session.host && !s.accepted {
		return errOrder
	}
	s.endSending(fmt.Errorf("%v: %w", s.addr(), ErrStopped))
	return nil
}

func (s *Stream) receiveReset(payload []byte) error {
	if len(payload) > maxReason {
		return errLength
	}
	err := ErrReset
	if s.session.host && !s.accepted {
		err = ErrRefused
	}
	if len(payload) > 0 {
		err = fmt.Errorf("%v: %w: %s", s.addr(), err, Printable(string(payload)))
	} else {
		err = fmt.Errorf("%v: %w", s.addr(), err)
	}
	if s.recvEnd == nil {
		s.recvEnd = err
		s.received.release(s.session)
		s.readable.Broadcast()
	}
	s.endSending(err)
	s.removeIfOver()
	return nil
}

// sendable is how many bytes of data could be sent now.
func (s *Stream) sendable() int {
	if s.closed || s.sendEnd != nil {
		return 0
	}
	return min(len(s.pending), s.credit)
}

// endSending gives up what is being written and owes the peer a last frame.
func (s *Stream) endSending(err error) {
	if s.sendEnd == nil {
		s.sendEnd = err
	}
	s.writable.Broadcast()
	if !s.finSent {
		s.owe(oweFin)
	}
}

// abandon gives the stream up at once, in both directions.
func (s *Stream) abandon(reason string) {
	if s.closed {
		return
	}
	s.close()
	switch {
	case s.session.err != nil, s.finSent && s.recvEnd != nil:
	case s.owed&oweOpen != 0: // the peer never heard of it
		s.owed, s.finSent, s.recvEnd = 0, true, net.ErrClosed
		s.removeIfOver()
	default:
		s.reason = reason[:min(len(reason), maxReason)]
		s.owed &^= oweAccept | oweGrant | oweStop
		s.owe(oweReset)
	}
}

// Read returns what has arrived. After the peer's CloseWrite or Close it is
// io.EOF; after its Reset, or the end of the session, another error, so that half
// a message is never taken for a whole one.
func (s *Stream) Read(p []byte) (int, error) {
	m := s.session
	m.mu.Lock()
	defer m.mu.Unlock()
	for {
		switch {
		case s.closed:
			return 0, net.ErrClosed
		case s.readLimit.passed:
			return 0, os.ErrDeadlineExceeded
		case len(p) == 0:
			return 0, nil
		case s.received.size > 0:
			n := s.received.read(p, m)
			s.consumed += n
			if s.recvEnd == nil && s.consumed >= s.window/4 {
				s.owe(oweGrant)
			}
			return n, nil
		case s.recvEnd != nil:
			return 0, s.recvEnd
		case m.err != nil:
			return 0, m.err
		}
		s.readable.Wait()
	}
}

// Write sends p, waiting while the peer's window is used up.
func (s *Stream) Write(p []byte) (int, error) {
	m := s.session
	m.mu.Lock()
	defer m.mu.Unlock()
	for s.writing {
		if err := s.writeErr(); err != nil {
			return 0, err
		}
		s.writable.Wait()
	}
	if err := s.writeErr(); err != nil {
		return 0, err
	}
	s.writing, s.pending = true, p
	var err error
	for len(s.pending) > 0 {
		if err = s.writeErr(); err != nil {
			break
		}
		if s.credit > 0 {
			s.queue()
		}
		s.writable.Wait() // the writer shortens pending
	}
	n := len(p) - len(s.pending)
	s.writing, s.pending = false, nil
	s.writable.Broadcast()
	return n, err
}

// writeErr says why nothing can be written.
func (s *Stream) writeErr() error {
	switch {
	case s.closed:
		return net.ErrClosed
	case s.writeLimit.passed:
		return os.ErrDeadlineExceeded
	case s.sendEnd != nil:
		return s.sendEnd
	}
	return s.session.err
}

// CloseWrite tells the peer that no more data comes. A Write under way fails.
func (s *Stream) CloseWrite() error {
	s.session.mu.Lock()
	defer s.session.mu.Unlock()
	if err := s.writeErr(); err != nil && err != os.ErrDeadlineExceeded {
		return err
	}
	s.endSending(net.ErrClosed)
	return nil
}

// Close ends both directions: the peer reads what was written and then io.EOF,
// its writes fail. A second Close does nothing.
func (s *Stream) Close() error {
	s.session.mu.Lock()
	defer s.session.mu.Unlock()
	if s.closed {
		return nil
	}
	s.close()
	if s.recvEnd == nil {
		s.owe(oweStop)
	}
	if !s.finSent {
		s.owe(oweFin)
	}
	return nil
}

// Reset ends both directions at once: the peer's reads and writes fail with
// ErrReset, and what it has not yet read is lost to it.
func (s *Stream) Reset() {
	s.session.mu.Lock()
	defer s.session.mu.Unlock()
	s.abandon("")
}

// close frees what only a user of the stream needs, and wakes them all.
func (s *Stream) close() {
	s.closed = true
	s.received.release(s.session)
	s.readLimit.set(time.Time{}, s.session, nil)
	s.writeLimit.set(time.Time{}, s.session, nil)
	s.wake()
}

func (s *Stream) SetDeadline(t time.Time) error {
	return errors.Join(s.SetReadDeadline(t), s.SetWriteDeadline(t))
}

func (s *Stream) SetReadDeadline(t time.Time) error {
	return s.setDeadline(&s.readLimit, t, &s.readable)
}

func (s *Stream) SetWriteDeadline(t time.Time) error {
	return s.setDeadline(&s.writeLimit, t, &s.writable)
}

func (s *Stream) setDeadline(d *deadline, t time.Time, waiters *sync.Cond) error {
	s.session.mu.Lock()
	defer s.session.mu.Unlock()
	if s.closed {
		return net.ErrClosed
	}
	d.set(t, s.session, waiters)
	return nil
}

// A deadline of a stream's reads or writes. It is guarded by session.mu.
type deadline struct {
	passed bool
	timer  *time.Timer
}

// set replaces the deadline by t, if that is not zero; waiters are woken when it
// has passed.
func (d *deadline) set(t time.Time, m *session, waiters *sync.Cond) {
	if d.timer != nil {
		d.timer.Stop()
	}
	d.timer, d.passed = nil, false
	if t.IsZero() {
		return
	}
	left := time.Until(t)
	if left <= 0 {
		d.passed = true
		waiters.Broadcast()
		return
	}
	var timer *time.Timer
	timer = time.AfterFunc(left, func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		if d.timer == timer {
			d.passed = true
			waiters.Broadcast()
		}
	})
	d.timer = timer
}

// An Addr is a stream's address: a service port of the guest.
type Addr uint32

func (Addr) Network() string  { return "matchlock" }
func (a Addr) String() string { return "guest port " + strconv.FormatUint(uint64(a), 10) }

func (s *Stream) addr() net.Addr { return Addr(s.port) }

func (s *Stream) LocalAddr() net.Addr  { return s.addr() }
func (s *Stream) RemoteAddr() net.Addr { return s.addr() }
