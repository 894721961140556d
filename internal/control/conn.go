package control

import (
	"bufio"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"github.com/matchlock/matchlock/internal/wire"
)

// Frames of a Conn.
const (
	frameData  = iota + 1 // bytes
	frameEnd              // – : the last of this direction
	frameReset            // – : both directions are broken
)

// Conn is a connection over a supervisor's socket: a net.Conn that can be closed
// in one direction, and reset. Its methods may be called by several goroutines
// at once.
type Conn struct {
	net.Conn

	writing  sync.Mutex // held by a Write
	writeErr error      // a frame is on its way in part: nothing can follow it
	frame    []byte

	reading sync.Mutex // held by a Read
	in      *bufio.Reader
	header  []byte // of the next frame, as far as it has come
	left    int    // of a frame of data
	readErr error  // why nothing more comes

	mu     sync.Mutex
	ended  bool // frameEnd or frameReset was sent
	closed bool
}

func newConn(conn net.Conn, in *bufio.Reader) *Conn {
	return &Conn{Conn: conn, in: in}
}

// Read implements net.Conn. Only a peer that has said so is io.EOF; one that is
// gone without a word is wire.ErrReset.
func (c *Conn) Read(p []byte) (n int, err error) {
	c.reading.Lock()
	defer c.reading.Unlock()
	for c.left == 0 {
		if c.readErr == nil {
			c.readErr = c.nextFrame()
		}
		if err := c.readErr; err != nil {
			if errors.Is(err, os.ErrDeadlineExceeded) {
				c.readErr = nil // it may go on
			}
			return 0, err
		}
	}
	n, err = c.in.Read(p[:min(len(p), c.left)])
	c.left -= n
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		err = c.lost(err)
	}
	return n, err
}

// nextFrame reads the header of a frame, and returns what it means unless that
// is data.
func (c *Conn) nextFrame() error {
	for len(c.header) < wire.FrameHeader {
		b, err := c.in.ReadByte()
		if err != nil {
			return c.lost(err)
		}
		c.header = append(c.header, b)
	}
	kind, size := c.header[0], binary.BigEndian.Uint32(c.header[1:])
	c.header = c.header[:0]
	switch {
	case kind == frameData && size <= wire.MaxData:
		c.left = int(size)
		return nil
	case kind == frameEnd && size == 0:
		return io.EOF
	case kind == frameReset && size == 0:
		return wire.ErrReset
	}
	return errFrame
}

var errFrame = errors.New("control socket: unknown frame")

// lost is what the end of the socket means.
func (c *Conn) lost(err error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.closed:
		return net.ErrClosed
	case errors.Is(err, io.EOF):
		return wire.ErrReset
	}
	return err
}

// Write implements net.Conn. When a deadline passes in the middle of a frame
// nothing more can be written.
func (c *Conn) Write(p []byte) (n int, err error) {
	for n < len(p) {
		chunk := p[n:min(len(p), n+wire.MaxData)]
		if err := c.writeFrame(frameData, chunk); err != nil {
			return n, err
		}
		n += len(chunk)
	}
	return n, nil
}

func (c *Conn) writeFrame(kind byte, payload []byte) error {
	c.writing.Lock()
	defer c.writing.Unlock()
	if c.writeErr != nil {
		return c.writeErr
	}
	c.frame = append(c.frame[:0], kind)
	c.frame = binary.BigEndian.AppendUint32(c.frame, uint32(len(payload)))
	c.frame = append(c.frame, payload...)
	n, err := c.Conn.Write(c.frame)
	if err != nil && (n > 0 || !errors.Is(err, os.ErrDeadlineExceeded)) {
		c.writeErr = err
	}
	return err
}

// endWith sends the last frame, once.
func (c *Conn) endWith(kind byte) error {
	c.mu.Lock()
	first := !c.ended
	c.ended = true
	c.mu.Unlock()
	if !first {
		return nil
	}
	return c.writeFrame(kind, nil)
}

// CloseWrite tells the peer that no more data comes.
func (c *Conn) CloseWrite() error { return c.endWith(frameEnd) }

// Close ends both directions in order.
func (c *Conn) Close() error { return c.close(frameEnd) }

// Reset ends both directions so that the peer knows that something is missing.
func (c *Conn) Reset() { c.close(frameReset) }

// lastWordTime is how long a peer that reads nothing may hold up the end of a
// connection. It then does not learn how that ended.
const lastWordTime = 100 * time.Millisecond

func (c *Conn) close(kind byte) error {
	c.mu.Lock()
	first := !c.closed
	c.closed = true
	c.mu.Unlock()
	if !first {
		return nil
	}
	c.Conn.SetWriteDeadline(time.Now().Add(lastWordTime))
	c.endWith(kind)
	return c.Conn.Close()
}
