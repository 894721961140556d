package intercept

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
)

const (
	soakWorkers = 24
	visitTime   = 2 * time.Second // at most
)

// visits are what a program in the guest does with the network. One succeeds that
// returns nil: servers, the user and the guest itself see to it that not all do.
var visits = []visitKind{
	{"http", func(v *visit) error { return v.echo(v.client(), "http://plain.test") }},
	{"h2c", func(v *visit) error { return v.echo(v.client(h2c), "http://plain.test") }},
	{"spliced", func(v *visit) error { return v.echo(v.client(h2), "https://spliced.test") }},
	{"https1", func(v *visit) error { return v.token(v.client(), "TOKEN") }},
	{"revoked", func(v *visit) error { return v.token(v.client(), "GONE") }},
	{"https2", func(v *visit) error { return v.token(v.client(h2), "TOKEN") }},
	{"upload", func(v *visit) error { return v.echo(v.client(h2), "https://api.test") }},
	{"big", func(v *visit) error { return v.big("https://api.test") }},
	{"events", func(v *visit) error { return v.events() }},
	{"websocket", func(v *visit) error { return v.socket("ws://plain.test/socket", "hello") }},
	{"websocket-tls", func(v *visit) error { return v.socket("wss://api.test/socket", v.placeholders["TOKEN"]) }},
	{"leak", func(v *visit) error { return v.leak() }},
	{"wild", func(v *visit) error { return v.echo(v.client(), "http://a.wild.test") }},
	{"raw", func(v *visit) error { return v.raw(7000, "") }},
	{"server-first", func(v *visit) error { return v.raw(22, "SSH-2.0-soak\r\n") }},
	{"half-closed", func(v *visit) error { return v.halfClosed() }},
	{"half-closed-by-server", func(v *visit) error { return v.readAll(7002, "that is all") }},
	{"hung-up", func(v *visit) error { return v.readAll(7003, "") }},
	{"udp", func(v *visit) error { return v.datagram(9000, false) }},
	{"udp-silent", func(v *visit) error { return v.datagram(9001, true) }},
	{"quic", func(v *visit) error { return v.quic() }},
	{"dns", func(v *visit) error { return v.query("plain.test", dnsmessage.TypeA, dnsmessage.RCodeSuccess) }},
	{"dns-new", func(v *visit) error {
		return v.query(fmt.Sprintf("n%d.wild.test", v.IntN(1000)), dnsmessage.TypeA, dnsmessage.RCodeSuccess)
	}},
	{"dns-denied", func(v *visit) error {
		return v.query(fmt.Sprintf("n%d.never.test", v.IntN(1e6)), dnsmessage.TypeA, dnsmessage.RCodeNameError)
	}},
	{"dns-txt", func(v *visit) error { return v.query("plain.test", dnsmessage.TypeTXT, dnsmessage.RCodeServerFailure) }},
	{"dns-tcp", func(v *visit) error { return v.queryTCP() }},
	{"dns-garbage", func(v *visit) error { return v.garbage() }},
	{"denied", func(v *visit) error {
		return v.refusedBy(netip.AddrPortFrom(netip.MustParseAddr(publicAddress("never.test")), 443))
	}},
	{"gone", func(v *visit) error { return v.refusedByName("gone.test", 80) }},
	{"slow", func(v *visit) error { return v.refusedByName("slow.test", 80) }},
	{"odd-http", func(v *visit) error { return v.odd(80, "plain.test") }},
	{"odd-tls", func(v *visit) error { return v.odd(443, "api.test") }},
	{"syns", func(v *visit) error { return v.syns() }},
	{"frames", func(v *visit) error { return v.frames() }},
	{"stalled", func(v *visit) error { return v.fails("https://api.test/stall") }},
	{"cut", func(v *visit) error { return v.fails("http://plain.test/cut") }},
}

type visitKind struct {
	name string
	do   func(*visit) error
}

// visit is one time that a program uses the network.
type visit struct {
	*soakWorld
	*rand.Rand
	ctx context.Context
	cut bool // its connections go wrong

	conns struct {
		sync.Mutex
		all  []net.Conn
		over bool
	}
}

// visitAll visits one thing after the other.
func (w *soakWorld) visitAll(ctx context.Context, r *rand.Rand) {
	for ctx.Err() == nil {
		kind := visits[r.IntN(len(visits))]
		if r.IntN(3) > 0 {
			kind = w.rarest(r)
		}
		v := &visit{soakWorld: w, Rand: rand.New(rand.NewPCG(r.Uint64(), 0)), cut: r.IntN(3) == 0}
		var cancel context.CancelFunc
		v.ctx, cancel = context.WithTimeout(ctx, visitTime)
		err := kind.do(v)
		cancel()
		v.end()
		w.mu.Lock()
		w.tried[kind.name]++
		if err == nil {
			w.done[kind.name]++
		} else if text := fmt.Sprintf("%s: %.60v", kind.name, err); !v.cut && (len(w.errors) < 200 || w.errors[text] > 0) {
			w.errors[text]++
		}
		w.mu.Unlock()
		select {
		case w.visited <- struct{}{}:
		default:
		}
	}
}

// rarest is one of the kinds of visit of which the fewest have succeeded.
func (w *soakWorld) rarest(r *rand.Rand) visitKind {
	w.mu.Lock()
	defer w.mu.Unlock()
	best := visits[r.IntN(len(visits))]
	for _, n := range r.Perm(len(visits)) {
		if w.done[visits[n].name] < w.done[best.name] {
			best = visits[n]
		}
	}
	return best
}

// end closes what the visit has opened.
func (v *visit) end() {
	v.conns.Lock()
	all := v.conns.all
	v.conns.over = true
	v.conns.Unlock()
	for _, c := range all {
		if v.IntN(4) == 0 {
			v.reset(c)
		}
		c.Close()
	}
}

func (v *visit) reset(c net.Conn) {
	if u, ok := c.(*unreliable); ok {
		c = u.Conn
	}
	if tcp, ok := c.(*gonet.TCPConn); ok {
		v.guest.Reset(tcp)
	}
}

// keep has a connection closed at the visit's end, and go wrong before.
func (v *visit) keep(c net.Conn) net.Conn {
	v.conns.Lock()
	defer v.conns.Unlock()
	deadline, _ := v.ctx.Deadline()
	c.SetDeadline(deadline)
	if v.cut {
		inner := c
		u := newUnreliable(c, 1<<v.IntN(18))
		switch v.IntN(5) {
		case 0:
			u.happen = func() { inner.Close() }
		case 1:
			u.happen = func() { v.reset(inner) }
		case 2:
			u.happen = func() { closeWrite(inner) }
		case 3:
			u.happen = func() { u.mute.Store(true) }
		case 4:
			u.happen = func() { wait(v.ctx, 2*time.Second) }
		}
		c = u
	}
	if v.conns.over {
		c.Close()
	}
	v.conns.all = append(v.conns.all, c)
	return c
}

// address asks for a name's address, once.
func (v *visit) address(ctx context.Context, name string) (netip.Addr, error) {
	v.mu.Lock()
	addr, ok := v.known[name]
	v.mu.Unlock()
	if ok {
		return addr, nil
	}
	m, err := v.exchange(ctx, name, dnsmessage.TypeA)
	if err != nil {
		return netip.Addr{}, err
	}
	for _, a := range m.Answers {
		if a, ok := a.Body.(*dnsmessage.AResource); ok {
			addr = netip.AddrFrom4(a.A)
			v.mu.Lock()
			defer v.mu.Unlock()
			v.known[name] = addr
			return addr, nil
		}
	}
	return netip.Addr{}, fmt.Errorf("%s: %v", name, m.RCode)
}

func (v *visit) dial(ctx context.Context, name string, port uint16) (net.Conn, error) {
	addr, err := v.address(ctx, name)
	if err != nil {
		return nil, err
	}
	c, err := v.guest.DialTCP(ctx, netip.AddrPortFrom(addr, port))
	if err != nil {
		return nil, err
	}
	return v.keep(c), nil
}
