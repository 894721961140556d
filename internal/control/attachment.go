package control

import (
	"bufio"
	"errors"
	"io"
	"net"
	"sync"
	"syscall"
	"time"

	"github.com/matchlock/matchlock/internal/logs"
	"github.com/matchlock/matchlock/internal/wire"
)

// Frames of an attachment. From the supervisor:
const (
	frameRecord = iota + 16 // a record of the log
	frameTaken              // n: the input's window is n bytes wider
	frameExit               // code, signal: the command has ended, the attachment too
	frameFailed             // text: the attachment has ended, and not as it should
	frameOver               // – : there are no more records
)

// To the supervisor:
const (
	frameInput    = iota + 32 // bytes, within the window
	frameInputEnd             // –
	frameSignal               // number
	frameResize               // rows, columns
)

// inputWindow is how much input a supervisor holds for a command that does not
// read it, so that a signal never waits behind it.
const inputWindow = 64 << 10

const maxFailure = 4096

// Attachment is the client's end: it reads the records of a log as they come,
// and is a hold on a command while that runs. Next is for one goroutine; the
// other methods may be called by several at once.
type Attachment struct {
	conn net.Conn
	in   *wire.FrameReader
	out  *wire.FrameWriter

	mu     sync.Mutex
	change sync.Cond
	credit int
	ended  error // why no more input is taken
}

func newAttachment(conn net.Conn, in *bufio.Reader) *Attachment {
	a := &Attachment{conn: conn, in: wire.NewFrameReader(in), out: wire.NewFrameWriter(conn), credit: inputWindow}
	a.change.L = &a.mu
	return a
}

// Exit is how a command ended.
type Exit struct {
	Code   int // 128+Signal where a signal ended it
	Signal int // Linux's number, or 0
}

func (e *Exit) Error() string { return "the command has ended" }

// Failure is the end of an attachment for a reason that the supervisor gives.
type Failure struct{ Reason string }

func (e *Failure) Error() string { return e.Reason }

// Next returns the next record, whose content is valid until the next call. The
// error is an *Exit when the command has ended, io.EOF when there is no more, a
// *Failure when the supervisor says so, and ErrNotListening when it is gone.
func (a *Attachment) Next() (logs.Record, error) {
	for {
		kind, payload, err := a.in.Next(wire.MaxData)
		if err == nil {
			var r *logs.Record
			if r, err = a.receive(kind, payload); r != nil && err == nil {
				return *r, nil
			}
		} else if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			err = ErrNotListening
		}
		if err != nil {
			a.endInput(io.ErrClosedPipe)
			return logs.Record{}, err
		}
	}
}

func (a *Attachment) receive(kind byte, payload []byte) (*logs.Record, error) {
	d := wire.NewDecoder(payload)
	switch kind {
	case frameRecord:
		r := decodeRecord(d)
		return &r, d.Done()
	case frameTaken:
		n := d.Uvarint()
		if err := d.Done(); err != nil {
			return nil, err
		}
		return nil, a.grant(n)
	case frameExit:
		code, signal := d.Uvarint(), d.Uvarint()
		if code > 255 || signal > 127 {
			d.Fail(errFrame)
		}
		if err := d.Done(); err != nil {
			return nil, err
		}
		return nil, &Exit{int(code), int(signal)}
	case frameFailed:
		text := d.Text(maxFailure)
		if err := d.Done(); err != nil {
			return nil, err
		}
		return nil, &Failure{text}
	case frameOver:
		return nil, io.EOF
	}
	return nil, errFrame
}

func (a *Attachment) grant(n uint64) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if n > uint64(inputWindow-a.credit) {
		return errFrame
	}
	a.credit += int(n)
	a.change.Broadcast()
	return nil
}

func (a *Attachment) endInput(err error) (first bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	first = a.ended == nil
	if first {
		a.ended = err
	}
	a.change.Broadcast()
	return first
}

// sendInput writes a frame. That the other end has gone, or this one was closed, as a
// command ends, is io.ErrClosedPipe: Next says why.
func (a *Attachment) sendInput(kind byte, p []byte) error {
	err := a.out.WriteFrame(kind, p)
	if errors.Is(err, net.ErrClosed) || errors.Is(err, io.ErrClosedPipe) || errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET) {
		return io.ErrClosedPipe
	}
	return err
}

// Write sends input to the command and waits while that reads none. The error is
// io.ErrClosedPipe when the command has ended.
func (a *Attachment) Write(p []byte) (n int, err error) {
	for n < len(p) {
		m, err := a.takeCredit(len(p) - n)
		if err != nil {
			return n, err
		}
		if err := a.sendInput(frameInput, p[n:n+m]); err != nil {
			return n, err
		}
		n += m
	}
	return n, nil
}

func (a *Attachment) takeCredit(want int) (int, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for a.credit == 0 && a.ended == nil {
		a.change.Wait()
	}
	n := min(want, a.credit, wire.MaxData)
	a.credit -= n
	return n, a.ended
}

// CloseWrite ends this client's input, if the command has not ended before.
func (a *Attachment) CloseWrite() error {
	if !a.endInput(net.ErrClosed) {
		return nil
	}
	if err := a.sendInput(frameInputEnd, nil); err != io.ErrClosedPipe {
		return err
	}
	return nil
}

// Signal sends the command a signal, by its Linux number.
func (a *Attachment) Signal(number int) error {
	var e wire.Encoder
	e.Uvarint(uint64(number))
	return a.out.WriteFrame(frameSignal, e.Encoded())
}

// Resize changes the size of the command's terminal.
func (a *Attachment) Resize(rows, cols uint16) error {
	var e wire.Encoder
	e.Uvarint(uint64(rows))
	e.Uvarint(uint64(cols))
	return a.out.WriteFrame(frameResize, e.Encoded())
}

// Close lets go of the command.
func (a *Attachment) Close() error {
	a.endInput(net.ErrClosed)
	return a.conn.Close()
}

// Source is the supervisor's end of an attachment. Record and the methods that
// end the attachment are for one goroutine, Obey for another.
type Source struct {
	conn net.Conn
	in   *wire.FrameReader
	out  *wire.FrameWriter
}

func newSource(conn net.Conn, in *bufio.Reader) *Source {
	return &Source{conn, wire.NewFrameReader(in), wire.NewFrameWriter(conn)}
}

// Record sends a record, and waits for a client that is slower than the log.
func (s *Source) Record(r logs.Record) error {
	var e wire.Encoder
	encodeRecord(&e, r)
	return s.out.WriteFrame(frameRecord, e.Encoded())
}

// Exit ends the attachment because the command has ended.
func (s *Source) Exit(x Exit) error {
	var e wire.Encoder
	e.Uvarint(uint64(x.Code))
	e.Uvarint(uint64(x.Signal))
	return s.out.WriteFrame(frameExit, e.Encoded())
}

// Fail ends the attachment for a reason.
func (s *Source) Fail(reason string) error {
	var e wire.Encoder
	e.String(reason[:min(len(reason), maxFailure)])
	return s.out.WriteFrame(frameFailed, e.Encoded())
}

// Over ends the attachment because there are no more records.
func (s *Source) Over() error { return s.out.WriteFrame(frameOver, nil) }

// Close ends the connection, and with it Obey.
func (s *Source) Close() error { return s.conn.Close() }

// Controls are what an attachment may do to a command. Any may be nil.
type Controls struct {
	// Input takes what is typed; its Write may wait for the command.
	Input func([]byte) error
	// InputEnd is called when the client has no more.
	InputEnd func()
	Signal   func(number int)
	Resize   func(rows, cols uint16)
}

// Obey does what the client says until that hangs up or is not to be
// understood.
func (s *Source) Obey(c Controls) error {
	q := newQueue(s.out, c)
	defer q.close()
	for {
		kind, payload, err := s.in.Next(wire.MaxData)
		if err != nil {
			return err
		}
		d := wire.NewDecoder(payload)
		switch kind {
		case frameInput:
			d = wire.NewDecoder(nil)
			if !q.put(payload) {
				d.Fail(errFrame)
			}
		case frameInputEnd:
			q.end()
		case frameSignal:
			n := d.Uvarint()
			if n < 1 || n > 64 {
				d.Fail(errFrame)
			}
			if d.Err() == nil && c.Signal != nil {
				c.Signal(int(n))
			}
		case frameResize:
			rows, cols := d.Uvarint(), d.Uvarint()
			if rows > 1<<16-1 || cols > 1<<16-1 {
				d.Fail(errFrame)
			}
			if d.Err() == nil && c.Resize != nil {
				c.Resize(uint16(rows), uint16(cols))
			}
		default:
			d.Fail(errFrame)
		}
		if err := d.Done(); err != nil {
			return err
		}
	}
}

// queue holds input until the command takes it.
type queue struct {
	out *wire.FrameWriter
	to  Controls

	mu     sync.Mutex
	change sync.Cond
	queued []byte
	held   int // bytes that the client has not been told of as taken, the queued ones among them
	ended  bool
	closed bool
}

func newQueue(out *wire.FrameWriter, to Controls) *queue {
	q := &queue{out: out, to: to}
	q.change.L = &q.mu
	// Its end is not waited for: it may hang in a command that reads nothing.
	go q.pump()
	return q
}

// put queues p. It reports whether the client kept to the window.
func (q *queue) put(p []byte) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.ended || q.held+len(p) > inputWindow {
		return false
	}
	q.held += len(p)
	q.queued = append(q.queued, p...)
	q.change.Signal()
	return true
}

func (q *queue) end() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.ended = true
	q.change.Signal()
}

func (q *queue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	q.change.Signal()
}

func (q *queue) pump() {
	for {
		q.mu.Lock()
		for len(q.queued) == 0 && !q.ended && !q.closed {
			q.change.Wait()
		}
		p, ended := q.queued, q.ended
		q.queued = nil
		q.mu.Unlock()
		if len(p) == 0 {
			if ended && q.to.InputEnd != nil {
				q.to.InputEnd()
			}
			return
		}
		if q.to.Input != nil {
			q.to.Input(p) // one that takes no more loses nothing that matters: the client learns of the command's end
		}
		q.mu.Lock()
		q.held -= len(p)
		q.mu.Unlock()
		var e wire.Encoder
		e.Uvarint(uint64(len(p)))
		q.out.WriteFrame(frameTaken, e.Encoded()) // a client that is gone has no use for it
	}
}

// Limits of a record, as package logs has them.
const (
	maxStream  = 16
	maxContent = wire.MaxData - 64
)

func encodeRecord(e *wire.Encoder, r logs.Record) {
	e.Varint(r.Time.UnixNano())
	e.String(r.Stream)
	e.Bool(r.Partial)
	e.Blob(r.Content[:min(len(r.Content), maxContent)])
}

func decodeRecord(d *wire.Decoder) logs.Record {
	return logs.Record{
		Time:    time.Unix(0, d.Varint()).UTC(),
		Stream:  d.String(maxStream),
		Partial: d.Bool(),
		Content: d.Blob(maxContent),
	}
}
