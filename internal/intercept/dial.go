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
	"net/netip"
	"sync"
	"time"

	"github.com/matchlock/matchlock/api"
	"github.com/matchlock/matchlock/internal/policy"
)

const (
	// dialTime bounds a dial with all its addresses, and the resolving before it.
	dialTime = 10 * time.Second
	// dialHeadStart is what an address has before the next one is tried beside it
	// (RFC 8305 calls it the Connection Attempt Delay).
	dialHeadStart = 250 * time.Millisecond

	maxAddresses  = 32       // of a name, that are tried
	maxProxyReply = 16 << 10 // bytes
)

// open names the flow, and connects it.
func (f *flow) open() (*upstreamConn, error) {
	if err := f.nameIt(); err != nil {
		return nil, err
	}
	return f.dial(f.ctx)
}

// dial connects to where the flow leads, by the rules as they are now.
func (f *flow) dial(ctx context.Context) (*upstreamConn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTime)
	defer cancel()
	var conn net.Conn
	var address netip.AddrPort
	var err error
	switch {
	case f.gateway:
		conn, address, err = f.dialHost(ctx)
	case f.proxied():
		if conn, err = f.dialProxy(ctx); err == nil {
			address, _ = netip.ParseAddrPort(conn.RemoteAddr().String())
		}
	default:
		conn, address, err = f.dialAddresses(ctx)
	}
	if err != nil {
		if errors.Is(err, context.DeadlineExceeded) {
			err = fmt.Errorf("no connection within %v", dialTime)
		}
		return nil, err
	}
	up := &upstreamConn{Conn: conn, f: f, dialed: time.Now()}
	if !f.hold(up) {
		return nil, context.Cause(f.ctx)
	}
	f.mu.Lock()
	f.address = address
	f.mu.Unlock()
	// SetPolicy sees the address from now on. The rules may have changed before.
	if err := f.judgeAgain(); err != nil {
		up.Abort()
		f.release(up)
		return nil, err
	}
	return up, nil
}

func (f *flow) dialHost(ctx context.Context) (net.Conn, netip.AddrPort, error) {
	flow, loopback := f.policyFlow(api.HostGateway), netip.AddrFrom4([4]byte{127, 0, 0, 1})
	p := f.i.policy.Load()
	if err := refused(p.Dial(flow, loopback)); err != nil {
		return nil, netip.AddrPort{}, err
	}
	port, _ := p.HostPort(flow)
	address := netip.AddrPortFrom(loopback, port)
	conn, err := f.i.Dial(ctx, "tcp", address.String())
	return conn, address, err
}

// proxied reports whether a proxy resolves the flow's name and checks addresses.
func (f *flow) proxied() bool { return f.i.UpstreamProxy != nil && !f.udp && !f.gateway }

func (f *flow) network() string {
	if f.udp {
		return "udp"
	}
	return "tcp"
}

// dialAddresses connects to the first of the addresses that answers, of those that
// the policy allows.
func (f *flow) dialAddresses(ctx context.Context) (net.Conn, netip.AddrPort, error) {
	f.mu.Lock()
	name := f.name
	f.mu.Unlock()
	addrs := []netip.Addr{f.destination.Addr()}
	if policy.Synthetic(f.destination.Addr()) {
		var err error
		if addrs, err = f.i.Resolver.Lookup(ctx, name); err != nil {
			return nil, netip.AddrPort{}, err
		}
	}
	p := f.i.policy.Load()
	var allowed []netip.AddrPort
	var no error
	for _, addr := range addrs {
		if err := refused(p.Dial(f.policyFlow(name), addr)); err != nil {
			no = err
		} else if len(allowed) < maxAddresses {
			allowed = append(allowed, netip.AddrPortFrom(addr, f.destination.Port()))
		}
	}
	switch {
	case len(allowed) > 0:
		return dialFirst(ctx, allowed, func(ctx context.Context, address netip.AddrPort) (net.Conn, error) {
			return f.i.Dial(ctx, f.network(), address.String())
		})
	case no != nil:
		return nil, netip.AddrPort{}, no
	}
	return nil, netip.AddrPort{}, fmt.Errorf("%s has no address", name)
}

// dialFirst dials the addresses in their order, each when the one before has
// failed or had its head start, and returns the connection that comes first.
func dialFirst(ctx context.Context, addresses []netip.AddrPort, dial func(context.Context, netip.AddrPort) (net.Conn, error)) (net.Conn, netip.AddrPort, error) {
	ctx, cancel := context.WithCancel(ctx)
	type result struct {
		conn    net.Conn
		address netip.AddrPort
		err     error
	}
	results := make(chan result)
	next, running := 0, 0
	start := func() {
		address := addresses[next]
		next, running = next+1, running+1
		go func() {
			conn, err := dial(ctx, address)
			results <- result{conn, address, err}
		}()
	}
	defer func() {
		cancel()
		for ; running > 0; running-- {
			if late := <-results; late.err == nil {
				late.conn.Close()
			}
		}
	}()
	var errs []error
	for {
		if running == 0 {
			if next == len(addresses) {
				return nil, netip.AddrPort{}, errors.Join(errs...)
			}
			start()
		}
		var headStart <-chan time.Time
		if next < len(addresses) {
			headStart = time.After(dialHeadStart)
		}
		select {
		case r := <-results:
			running--
			if r.err == nil {
				return r.conn, r.address, nil
			}
			errs = append(errs, r.err)
		case <-headStart:
			start()
		}
	}
}

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
