package intercept

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/http"
)

// dialProxy connects through the proxy, which is told the name: what that resolves
// to is its affair.
func (f *flow) dialProxy(ctx context.Context) (net.Conn, error) {
	proxy := f.i.UpstreamProxy
	port := proxy.Port()
	if port == "" {
		if port = "80"; proxy.Scheme == "https" {
			port = "443"
		}
	}
	conn, err := f.i.Dial(ctx, "tcp", net.JoinHostPort(proxy.Hostname(), port))
	if err != nil {
		return nil, fmt.Errorf("upstream proxy: %w", err)
	}
	// What follows reads and writes: the context ends it by closing the connection.
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	tunnel, err := f.connect(ctx, conn)
	if err != nil {
		stop()
		conn.Close()
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return nil, fmt.Errorf("upstream proxy: %w", err)
	}
	if !stop() {
		return nil, fmt.Errorf("upstream proxy: %w", ctx.Err())
	}
	return tunnel, nil
}

func (f *flow) connect(ctx context.Context, conn net.Conn) (net.Conn, error) {
	proxy := f.i.UpstreamProxy
	if proxy.Scheme == "https" {
		secured := tls.Client(conn, &tls.Config{ServerName: proxy.Hostname(), RootCAs: f.i.UpstreamRoots, NextProtos: []string{"http/1.1"}})
		if err := secured.HandshakeContext(ctx); err != nil {
			return nil, err
		}
		conn = secured
	}
	f.mu.Lock()
	host := f.name
	f.mu.Unlock()
	if host == "" {
		host = f.destination.Addr().Unmap().String()
	}
	target := net.JoinHostPort(host, fmt.Sprint(f.destination.Port()))
	head := "CONNECT " + target + " HTTP/1.1\r\nHost: " + target + "\r\n"
	if proxy.User != nil {
		password, _ := proxy.User.Password()
		head += "Proxy-Authorization: Basic " + base64.StdEncoding.EncodeToString([]byte(proxy.User.Username()+":"+password)) + "\r\n"
	}
	if _, err := conn.Write([]byte(head + "\r\n")); err != nil {
		return nil, err
	}
	read := bufio.NewReader(&boundedReader{conn, maxProxyReply})
	resp, err := http.ReadResponse(read, &http.Request{Method: http.MethodConnect})
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s to CONNECT %s", resp.Status, target)
	}
	// What the server has said at once, came with the answer.
	early, _ := read.Peek(read.Buffered())
	return &earlyConn{Conn: conn, early: early}, nil
}

// boundedReader fails after n bytes.
type boundedReader struct {
	net.Conn
	n int
}

func (b *boundedReader) Read(p []byte) (int, error) {
	if b.n <= 0 {
		return 0, errors.New("its answer is too long")
	}
	n, err := b.Conn.Read(p[:min(len(p), b.n)])
	b.n -= n
	return n, err
}

// earlyConn is a connection of which the first bytes were read.
type earlyConn struct {
	net.Conn
	early []byte
}

func (c *earlyConn) Read(p []byte) (int, error) {
	if len(c.early) > 0 {
		n := copy(p, c.early)
		c.early = c.early[n:]
		return n, nil
	}
	return c.Conn.Read(p)
}

func (c *earlyConn) CloseWrite() error { return closeWrite(c.Conn) }

func (c *earlyConn) Abort() { abort(c.Conn) }
