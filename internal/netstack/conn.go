package netstack

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// Conn is a TCP connection with the guest. Read returns io.EOF when the guest has
// closed its direction, and an error that is syscall.ECONNRESET when it has reset
// the connection; other errors are those of package net.
type Conn struct {
	*gonet.TCPConn // which reports errors of its own, never to be returned

	stack    *Stack
	endpoint tcpip.Endpoint
	queue    *waiter.Queue
	hangUp   waiter.Entry
	closed   atomic.Bool
	ended    sync.Once

	mu       sync.Mutex
	windDown *time.Timer // resets what was closed and does not end; nil: not closed
	gone     bool
}

// newConn returns a connection that counts as a flow until it has ended on the
// wire, which may be after Close.
func (s *Stack) newConn(conn *gonet.TCPConn, endpoint tcpip.Endpoint, queue *waiter.Queue) (*Conn, error) {
	c := &Conn{TCPConn: conn, stack: s, endpoint: endpoint, queue: queue}
	options := endpoint.SocketOptions()
	idle, interval := tcpip.KeepaliveIdleOption(keepAliveIdle), tcpip.KeepaliveIntervalOption(keepAliveInterval)
	for _, option := range []tcpip.SettableSocketOption{&idle, &interval} {
		if err := endpoint.SetSockOpt(option); err != nil {
			s.config.Logger.Error("keep-alive", "error", err.String())
		}
	}
	if err := endpoint.SetSockOptInt(tcpip.KeepaliveCountOption, keepAliveCount); err != nil {
		s.config.Logger.Error("keep-alive", "error", err.String())
	}
	options.SetKeepAlive(true)

	s.mu.Lock()
	narrow, closed := s.isNarrow(), s.closed
	s.mu.Unlock()
	if narrow {
		options.SetReceiveBufferSize(narrowWindow, true)
		options.SetSendBufferSize(narrowWindow, true)
	}

	c.hangUp = waiter.NewFunctionEntry(waiter.EventHUp, func(waiter.EventMask) { c.checkEnd() })
	queue.EventRegister(&c.hangUp)
	c.checkEnd() // it may have ended before
	if closed {
		// Close has reset what there was, and may have missed this one.
		c.Abort()
		return nil, net.ErrClosed
	}
	return c, nil
}

// isNarrow tells whether the last flow has to do with a narrow window. The caller holds
// mu.
func (s *Stack) isNarrow() bool { return s.flows > roomyFlows }

// checkEnd is called with locks of the endpoint held: it must not ask it for
// more than its state.
func (c *Conn) checkEnd() {
	if state := tcp.EndpointState(c.endpoint.State()); state != tcp.StateClose && state != tcp.StateError {
		return
	}
	c.ended.Do(func() {
		c.stack.end()
		c.mu.Lock()
		defer c.mu.Unlock()
		c.gone = true
		if c.windDown != nil {
			c.windDown.Stop()
		}
	})
}

// Read implements net.Conn.
func (c *Conn) Read(p []byte) (int, error) {
	n, err := c.TCPConn.Read(p)
	c.stack.sent.Add(uint64(n))
	return n, c.explain(err)
}

// Write implements net.Conn.
func (c *Conn) Write(p []byte) (int, error) {
	n, err := c.TCPConn.Write(p)
	c.stack.received.Add(uint64(n))
	return n, c.explain(err)
}

// CloseWrite tells the guest that no more data comes.
func (c *Conn) CloseWrite() error { return c.explain(c.TCPConn.CloseWrite()) }

// Close ends both directions: in order, or with a reset if there is data that was
// not read. What was written still goes to a guest that takes it within a minute.
func (c *Conn) Close() error {
	if c.closed.Swap(true) {
		return net.ErrClosed
	}
	c.mu.Lock()
	if !c.gone {
		c.windDown = time.AfterFunc(windDownTime, c.endpoint.Abort)
	}
	c.mu.Unlock()
	c.endpoint.Close()
	return nil
}

// Abort resets the connection: the guest learns that something is missing. It may
// be called at any time.
func (c *Conn) Abort() {
	c.closed.Store(true)
	c.endpoint.Abort()
	c.endpoint.Close()
}

// explain returns an error of gonet's as package net would.
func (c *Conn) explain(err error) error {
	var timeout net.Error
	var op *net.OpError
	switch {
	case err == nil:
		return nil
	case c.closed.Load():
		err = net.ErrClosed
	case err == io.EOF:
		return err
	case errors.As(err, &timeout) && timeout.Timeout():
		err = os.ErrDeadlineExceeded
	case errors.As(err, &op):
		err = errorNamed(op.Err.Error())
	}
	wrapped := &net.OpError{Net: "tcp", Source: c.LocalAddr(), Addr: c.RemoteAddr(), Err: err}
	if op != nil {
		wrapped.Op = op.Op
	}
	return wrapped
}

// errorOf returns an error of gVisor's as the system's.
func errorOf(err tcpip.Error) error { return errorNamed(err.String()) }

// errorNamed is errorOf for what gonet has made a text of.
func errorNamed(text string) error {
	switch text {
	case (&tcpip.ErrConnectionReset{}).String():
		return syscall.ECONNRESET
	case (&tcpip.ErrConnectionRefused{}).String():
		return syscall.ECONNREFUSED
	case (&tcpip.ErrConnectionAborted{}).String(), (&tcpip.ErrAborted{}).String():
		return syscall.ECONNABORTED
	case (&tcpip.ErrClosedForSend{}).String():
		return syscall.EPIPE
	case (&tcpip.ErrTimeout{}).String():
		return syscall.ETIMEDOUT
	case (&tcpip.ErrNotConnected{}).String():
		return syscall.ENOTCONN
	case (&tcpip.ErrMessageTooLong{}).String():
		return syscall.EMSGSIZE
	}
	return errors.New(text)
}
