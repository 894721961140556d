package intercept

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"
)

const (
	// firstLife is how long the connection that a flow began with may wait for its
	// first request. Servers close those that say nothing.
	firstLife = 15 * time.Second
	// spareLife is how long a connection to the server is kept unused, with HTTP/1.
	// With HTTP/2 there is one, which ends with the flow or when the server ends it:
	// net/http would keep one that is cut for so long.
	spareLife = 90 * time.Second

	maxResponseHead = 256 << 10
)

// origin is the server that a flow leads to, and the connections to it.
type origin struct {
	f          *flow
	scheme     string
	serverName string   // whose certificate is wanted
	protocols  []string // to offer it
	transport  *http.Transport

	err error // why it is not to be trusted, or reached

	mu    sync.Mutex
	first net.Conn // nil: used
	since time.Time
}

// newOrigin returns the server of a flow in clear, server being a connection to it.
func newOrigin(f *flow, server *upstreamConn, h2 bool) *origin {
	o := &origin{f: f, scheme: "http", first: server, since: server.dialed}
	o.transport = o.newTransport()
	o.transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
		if first := o.takeFirst(); first != nil {
			return first, nil
		}
		up, err := f.dial(ctx)
		if err != nil {
			return nil, err
		}
		return up, nil
	}
	o.transport.Protocols = new(http.Protocols)
	o.transport.Protocols.SetHTTP1(!h2)
	o.transport.Protocols.SetUnencryptedHTTP2(h2)
	if !h2 {
		o.transport.IdleConnTimeout = spareLife
	}
	return o
}

func newTLSOrigin(f *flow, serverName string, protocols []string) *origin {
	o := &origin{f: f, scheme: "https", serverName: serverName, protocols: protocols}
	o.transport = o.newTransport()
	o.transport.DialTLSContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
		if first := o.takeFirst(); first != nil {
			return first, nil
		}
		up, err := f.dial(ctx)
		if err != nil {
			return nil, err
		}
		return o.handshake(ctx, up)
	}
	return o
}

func (o *origin) newTransport() *http.Transport {
	return &http.Transport{
		DisableCompression:     true,
		MaxIdleConnsPerHost:    maxStreams,
		MaxConnsPerHost:        maxStreams,
		MaxResponseHeaderBytes: maxResponseHead,
		ExpectContinueTimeout:  time.Second, // as clients have it
		ReadBufferSize:         4 << 10,
		WriteBufferSize:        4 << 10,
		// No pings: what times them keeps a connection, when it is cut, until the next
		// is due. That a server is gone TCP's keep-alive finds out, as with HTTP/1.
		HTTP2: &http.HTTP2Config{MaxReceiveBufferPerStream: 1 << 20, MaxReceiveBufferPerConnection: 4 << 20},
	}
}

// connect makes TLS with the server on the connection that there is. If it cannot
// be trusted, err says so.
func (o *origin) connect(ctx context.Context, server *upstreamConn) {
	conn, err := o.handshake(ctx, server)
	if err != nil {
		o.err = err
		return
	}
	o.first, o.since = conn, time.Now()
	// From now on the server is asked for the protocol that the guest is offered.
	o.protocols = []string{o.protocol()}
	o.transport.Protocols = new(http.Protocols)
	o.transport.Protocols.SetHTTP1(o.protocol() == "http/1.1")
	o.transport.Protocols.SetHTTP2(o.protocol() == "h2")
	if o.protocol() == "http/1.1" {
		o.transport.IdleConnTimeout = spareLife
	}
}

func (o *origin) handshake(ctx context.Context, server *upstreamConn) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTime)
	defer cancel()
	conn := tls.Client(server, &tls.Config{ServerName: o.serverName, RootCAs: o.f.i.UpstreamRoots, NextProtos: o.protocols})
	if err := conn.HandshakeContext(ctx); err != nil {
		server.Abort()
		return nil, fmt.Errorf("TLS with %s: %w", o.serverName, err)
	}
	return conn, nil
}

// protocol is what the server has chosen.
func (o *origin) protocol() string {
	if conn, ok := o.first.(*tls.Conn); ok && conn.ConnectionState().NegotiatedProtocol == "h2" {
		return "h2"
	}
	return "http/1.1"
}

func (o *origin) takeFirst() net.Conn {
	o.mu.Lock()
	defer o.mu.Unlock()
	first := o.first
	o.first = nil
	if first != nil && time.Since(o.since) > firstLife {
		first.Close()
		return nil
	}
	return first
}

// roundTrip sends a request.
func (o *origin) roundTrip(r *http.Request) (*http.Response, error) {
	if o.err != nil {
		return nil, o.err
	}
	return o.transport.RoundTrip(r)
}

func (o *origin) close() {
	o.mu.Lock()
	first := o.first
	o.first = nil
	o.mu.Unlock()
	if first != nil {
		first.Close()
	}
	o.transport.CloseIdleConnections()
}

// isCertificate reports whether a server could not be trusted.
func isCertificate(err error) bool {
	var verify *tls.CertificateVerificationError
	return errors.As(err, &verify)
}
