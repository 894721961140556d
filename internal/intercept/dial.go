package intercept

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
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
	defer context.AfterFunc(f.ctx, cancel)() // the transport dials without its requests' contexts
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
		if cause := context.Cause(f.ctx); cause != nil {
			return nil, cause
		}
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
