package wire

import (
	"io"
	"net"
	"sync"
)

// Join copies between two connections until both directions are over. Each
// direction ends by itself. One that breaks resets both connections: nobody
// takes half an answer for a whole one. It closes neither.
func Join(a, b net.Conn) {
	var other sync.WaitGroup
	other.Go(func() { copyOneWay(a, b) })
	copyOneWay(b, a)
	other.Wait()
}

func copyOneWay(to, from net.Conn) {
	if _, err := io.Copy(to, from); err != nil {
		Reset(to)
		Reset(from)
		return
	}
	if half, ok := to.(interface{ CloseWrite() error }); ok {
		half.CloseWrite() // fails only when nobody is there to be told
		return
	}
	to.Close()
}

// Reset ends a connection so that its peer, where the kind of connection can
// tell, knows that something is missing.
func Reset(conn net.Conn) {
	switch c := conn.(type) {
	case interface{ Reset() }:
		c.Reset()
	case interface{ Abort() }:
		c.Abort()
	case *net.TCPConn:
		c.SetLinger(0) // close(2) then sends a reset, see tcp(7)
		c.Close()
	default:
		c.Close()
	}
}

// UntilClosed returns the connection, with end called once, when it is closed or reset.
func UntilClosed(conn net.Conn, end func()) net.Conn {
	return &watchedConn{conn, sync.OnceFunc(end)}
}

type watchedConn struct {
	net.Conn
	end func()
}

func (c *watchedConn) Close() error {
	c.end()
	return c.Conn.Close()
}

func (c *watchedConn) Reset() {
	c.end()
	Reset(c.Conn)
}

// CloseWrite is for Join, which closes what cannot be closed by half.
func (c *watchedConn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return c.Close()
}
