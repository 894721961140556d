package intercept

import (
	"net"
	"sync"
	"time"
)

// guestConn is the guest's end of a flow: it counts bytes, and gives out again
// what was looked at.
type guestConn struct {
	net.Conn
	f      *flow
	peeked []byte // read, and not given out
	once   sync.Once
}

func newGuestConn(f *flow, c net.Conn) *guestConn {
	g := &guestConn{Conn: c, f: f}
	f.hold(g)
	return g
}

// fill reads what there is behind what was looked at so far.
func (g *guestConn) fill() error {
	if len(g.peeked) == cap(g.peeked) {
		grown := make([]byte, len(g.peeked), max(2048, 2*cap(g.peeked)))
		copy(grown, g.peeked)
		g.peeked = grown
	}
	n, err := g.Conn.Read(g.peeked[len(g.peeked):cap(g.peeked)])
	g.peeked = g.peeked[:len(g.peeked)+n]
	g.f.sent.Add(int64(n))
	if n > 0 {
		return nil // an error comes again
	}
	return err
}

func (g *guestConn) Read(p []byte) (int, error) {
	if len(g.peeked) > 0 {
		n := copy(p, g.peeked)
		if g.peeked = g.peeked[n:]; len(g.peeked) == 0 {
			g.peeked = nil
		}
		return n, nil
	}
	n, err := g.Conn.Read(p)
	g.f.sent.Add(int64(n))
	return n, err
}

func (g *guestConn) Write(p []byte) (int, error) {
	n, err := g.Conn.Write(p)
	g.f.received.Add(int64(n))
	return n, err
}

func (g *guestConn) CloseWrite() error { return closeWrite(g.Conn) }

func (g *guestConn) Close() error {
	err := net.ErrClosed
	g.once.Do(func() {
		g.f.release(g)
		err = g.Conn.Close()
	})
	return err
}

// Abort resets the connection.
func (g *guestConn) Abort() {
	g.once.Do(func() { abort(g.Conn) })
}

// closeWrite tells the other side that no more comes.
func closeWrite(c net.Conn) error {
	if half, ok := c.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return c.Close()
}

// abort resets a connection, where it can be.
func abort(c net.Conn) {
	switch c := c.(type) {
	case aborter:
		c.Abort()
	case interface{ SetLinger(int) error }:
		_ = c.SetLinger(0) // Close closes it, if in order only
	}
	_ = c.Close() // nobody is left whom it would concern
}

// upstreamConn is a connection to the server. It is reset when its flow is cut.
type upstreamConn struct {
	net.Conn
	f      *flow
	dialed time.Time
	once   sync.Once
}

func (u *upstreamConn) CloseWrite() error { return closeWrite(u.Conn) }

func (u *upstreamConn) Close() error {
	err := net.ErrClosed
	u.once.Do(func() {
		u.f.release(u)
		err = u.Conn.Close()
	})
	return err
}

// Abort resets the connection.
func (u *upstreamConn) Abort() { u.once.Do(func() { abort(u.Conn) }) }
