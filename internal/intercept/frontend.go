package intercept

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// headTime bounds the time in which a request's headers come.
	headTime = 30 * time.Second
	// idleTime is how long a guest's connection is kept between requests. It is
	// longer than what servers allow, so that their limits are what counts. With
	// HTTP/2 net/http is not told: whenever a connection is cut that has streams, it
	// starts that timer anew, and keeps all of the connection until it is through.
	idleTime = 10 * time.Minute

	// endTime is how long a guest that has ended its direction still gets answers,
	// if it sends no reset: it may have gone.
	endTime = 5 * time.Second

	maxStreams = 100 // at a time, of a connection with HTTP/2
)

// frontend is the HTTP server that guests' connections of one version of HTTP are
// given to, of all flows.
type frontend struct {
	server *http.Server
	conns  chan net.Conn
	ended  chan struct{}
	served sync.WaitGroup
}

func newFrontend(i *Interceptor, protocols *http.Protocols) *frontend {
	s := &frontend{conns: make(chan net.Conn), ended: make(chan struct{})}
	s.server = &http.Server{
		Handler:                      http.HandlerFunc(i.serveRequest),
		Protocols:                    protocols,
		DisableGeneralOptionsHandler: true, // the server that is meant answers
		ReadHeaderTimeout:            headTime,
		MaxHeaderBytes:               maxHead,
		ErrorLog:                     slog.NewLogLogger(i.Logger.Handler(), slog.LevelDebug),
		HTTP2:                        &http.HTTP2Config{MaxConcurrentStreams: maxStreams, MaxReceiveBufferPerStream: 1 << 20, MaxReceiveBufferPerConnection: 4 << 20},
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, sessionKey{}, c.(*frontConn).session)
		},
	}
	if protocols.HTTP1() {
		s.server.IdleTimeout = idleTime
	}
	s.served.Go(func() { _ = s.server.Serve(s) }) // until close
	return s
}

// Accept, Close and Addr make it the server's listener.
func (s *frontend) Accept() (net.Conn, error) {
	select {
	case c := <-s.conns:
		return c, nil
	case <-s.ended:
		return nil, net.ErrClosed
	}
}

func (s *frontend) Close() error { return nil }

func (s *frontend) Addr() net.Addr { return new(net.TCPAddr) }

func (s *frontend) close() {
	close(s.ended)
	s.server.Close()
	s.served.Wait()
}

type sessionKey struct{}

// session is a connection on which a guest speaks HTTP.
type session struct {
	flow   *flow
	filter *filter // nil for HTTP/2, which net/http frames strictly
	origin *origin

	hijacked atomic.Bool // net/http has given the connection away
}

// frontConn is a session's connection as net/http has it.
type frontConn struct {
	net.Conn
	session *session
	closed  chan struct{}
	once    sync.Once
}

func (c *frontConn) Close() error {
	err := net.ErrClosed
	c.once.Do(func() {
		err = c.Conn.Close()
		close(c.closed)
	})
	return err
}

// serveHTTP has a connection that speaks HTTP: the guest's, or TLS over it.
func (f *flow) serveHTTP(conn net.Conn, h2 bool, o *origin) error {
	defer o.close()
	s := &session{flow: f, origin: o}
	front := f.i.h1
	if h2 {
		front = f.i.h2
		// Over TLS the preface has not been seen yet. What begins with anything else
		// would be read as HTTP/1, which the filter must see.
		conn = &prefaced{Conn: conn}
	} else {
		s.filter = newFilter(conn, f.i.refusedMethod, f.i.endTime)
		conn = s.filter
	}
	c := &frontConn{Conn: conn, session: s, closed: make(chan struct{})}
	if h2 {
		f.closeIdle(c)
	}
	select {
	case front.conns <- c:
	case <-f.ctx.Done():
		return context.Cause(f.ctx)
	}
	select {
	case <-c.closed:
		if s.hijacked.Load() {
			f.waitRequests() // the WebSocket's other end has still to be told
		}
	case <-f.ctx.Done(): // cut
	}
	// Handlers end when their connection has, but for what they wait for upstream.
	f.cancel(errEnded)
	c.Close()
	o.close()
	f.waitRequests()
	if o.scheme == "https" && s.filter != nil && s.filter.silent.Load() {
		return &refusal{reason: fmt.Sprintf("no request within %v, in TLS that is looked into: only HTTP can be", headTime), hint: "--splice " + f.host()}
	}
	return nil
}

var errEnded = errors.New("the guest has ended the connection")

// prefaced is a connection that must begin with the preface of HTTP/2.
type prefaced struct {
	net.Conn
	seen int
}

func (p *prefaced) Read(b []byte) (int, error) {
	n, err := p.Conn.Read(b)
	if p.seen < len(http2Preface) {
		m := min(n, len(http2Preface)-p.seen)
		if string(b[:m]) != http2Preface[p.seen:p.seen+m] {
			return 0, io.ErrUnexpectedEOF
		}
		p.seen += m
	}
	return n, err
}
