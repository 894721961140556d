// Package intercept answers one question: what becomes of a flow that the guest
// begins? It is named, judged, dialled, looked at, and passed on or refused.
//
// The order is always the same. The destination's name comes from the names that
// the guest was told; the policy judges it; the host resolves it, the policy
// judges every address, and one that passed is dialled. Only then the guest's
// connection is accepted, so that a refusal is a reset, at once. What the guest
// says first decides on how it goes on, on every port:
//
//   - TLS: its server name must be the flow's. It is spliced, unchanged and unseen;
//     or terminated, with a certificate of the sandbox's CA, where a secret or a hook
//     needs it, and where its name is encrypted;
//   - HTTP, in clear or within terminated TLS: every request must be for the flow's
//     name. Values are put in for placeholders, hooks are asked, and what comes back
//     has the values taken out;
//   - anything else is passed on as it is, but not to the ports of HTTP and TLS.
//
// Each flow and each request is one event. A flow has upstream connections of its
// own, which end with it: none is kept for another, so what cuts a flow cuts all
// that it reached.
//
// The package does not decide what is allowed (policy does), does not know where
// names come from (names does), and finds no secrets in bytes (secret does). It has
// no TCP of its own: flows come from netstack.
package intercept

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"github.com/matchlock/matchlock/api"
	"github.com/matchlock/matchlock/internal/policy"
	"github.com/matchlock/matchlock/internal/secret"
)

// Options are what an Interceptor is made of. Policy, Names, Resolver, Secrets and
// CA must be there.
type Options struct {
	Policy   *policy.Policy
	Names    Names
	Resolver Resolver
	Secrets  *secret.Set
	CA       *CA

	// Gateway is the guest's address for api.HostGateway: flows to it go to
	// 127.0.0.1, to the ports that the policy names.
	Gateway netip.Addr

	// UpstreamRoots are who signs servers' certificates; nil: who the host trusts.
	UpstreamRoots *x509.CertPool
	// UpstreamProxy is an http:// or https:// proxy, through which flows go; nil: none.
	UpstreamProxy *url.URL

	Hooks     []api.Hook
	Callbacks []Callback

	// Event is told what happens, by many goroutines. It must not block.
	Event func(api.Event)
	// Logger is told what is of no consequence to the guest; nil: nobody is.
	Logger *slog.Logger
	// Dial connects on the host's side to an address that was checked, or to the
	// proxy; nil: as net.Dialer does.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
}

// Names tells which names an address that the guest dials may stand for: one if it
// was given to that alone, several if it is theirs, none if the guest was not told.
// A *names.Table does.
type Names interface {
	Names(netip.Addr) []string
}

// Resolver tells what addresses a name has, on the host's side. It judges none. A
// *names.Resolver does.
type Resolver interface {
	Lookup(ctx context.Context, name string) ([]netip.Addr, error)
}

// Flow is a connection or an exchange of datagrams that the guest asks for, and
// that has no answer until Accept or Refuse. Of TCP, Accept's connection has a
// CloseWrite, and Abort or SetLinger to reset it.
type Flow interface {
	Guest() netip.AddrPort
	Destination() netip.AddrPort
	Accept() (net.Conn, error)
	Refuse()
}

// An Interceptor has the flows of one sandbox. Any number of goroutines may use it.
type Interceptor struct {
	Options
	hooks  []hook
	policy atomic.Pointer[policy.Policy]

	ctx    context.Context // of all flows
	cancel context.CancelFunc

	h1, h2        *frontend
	refusedMethod string // see filter
	endTime       time.Duration

	mu     sync.Mutex
	flows  map[*flow]struct{}
	last   uint64 // flow's number
	closed bool
	ended  sync.WaitGroup // flows
}

// New returns an Interceptor, to be closed.
func New(o Options) (*Interceptor, error) {
	if o.Policy == nil || o.Names == nil || o.Resolver == nil || o.Secrets == nil || o.CA == nil {
		return nil, errors.New("interceptor without policy, names, resolver, secrets or CA")
	}
	if o.Event == nil {
		o.Event = func(api.Event) {}
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Dial == nil {
		o.Dial = new(net.Dialer).DialContext
	}
	hooks, err := newHooks(o.Hooks, o.Callbacks)
	if err != nil {
		return nil, err
	}
	i := &Interceptor{Options: o, hooks: hooks, endTime: endTime, flows: make(map[*flow]struct{})}
	i.policy.Store(o.Policy)
	i.ctx, i.cancel = context.WithCancel(context.Background())
	i.refusedMethod = "REFUSED-" + rand.Text()
	var h1, h2 http.Protocols
	h1.SetHTTP1(true)
	h2.SetUnencryptedHTTP2(true)
	i.h1, i.h2 = newFrontend(i, &h1), newFrontend(i, &h2)
	return i, nil
}

// TCP has a connection that the guest asks for. It returns when that has ended.
func (i *Interceptor) TCP(ctx context.Context, guest Flow) { i.carry(ctx, guest, false, (*flow).serve) }

// UDP has datagrams between the guest's port and another. It returns when there
// are none any more.
func (i *Interceptor) UDP(ctx context.Context, guest Flow) {
	i.carry(ctx, guest, true, (*flow).relayDatagrams)
}

// carry has a flow from its beginning to its end: it is accepted only when there is
// somebody at its other end, and serve is given both.
func (i *Interceptor) carry(ctx context.Context, guest Flow, udp bool, serve func(*flow, *guestConn, *upstreamConn) error) {
	f := i.begin(ctx, guest, udp)
	if f == nil {
		guest.Refuse()
		return
	}
	defer f.end()
	upstream, err := f.open()
	if err != nil {
		guest.Refuse()
		f.fail(err)
		return
	}
	defer upstream.Close()
	accepted, err := guest.Accept()
	if err != nil {
		f.fail(err)
		return
	}
	conn := newGuestConn(f, accepted)
	defer conn.Close()
	if err := serve(f, conn, upstream); err != nil {
		f.fail(err)
	}
}

// begin makes a flow known. It returns nil when the Interceptor is closed.
func (i *Interceptor) begin(ctx context.Context, guest Flow, udp bool) *flow {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.closed {
		return nil
	}
	i.last++
	f := &flow{i: i, id: i.last, began: time.Now(), udp: udp, destination: guest.Destination(), conns: make(map[aborter]struct{})}
	f.ctx, f.cancel = context.WithCancelCause(ctx)
	ours, theirs := context.AfterFunc(i.ctx, f.close), context.AfterFunc(ctx, f.close)
	f.stop = func() { ours(); theirs() }
	i.flows[f] = struct{}{}
	i.ended.Add(1)
	return f
}

// SetPolicy has flows judged by other rules, those too that there are: what they
// refuse is cut.
func (i *Interceptor) SetPolicy(p *policy.Policy) {
	i.policy.Store(p)
	i.mu.Lock()
	flows := make([]*flow, 0, len(i.flows))
	for f := range i.flows {
		flows = append(flows, f)
	}
	i.mu.Unlock()
	for _, f := range flows {
		if err := f.judgeAgain(); err != nil {
			f.cut(err)
		}
	}
}

// Flows is the number of flows that there are.
func (i *Interceptor) Flows() int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return len(i.flows)
}

// Close cuts all flows and waits for their end. Flows that come later are refused.
func (i *Interceptor) Close() error {
	i.mu.Lock()
	again := i.closed
	i.closed = true
	i.mu.Unlock()
	i.cancel()
	i.ended.Wait()
	if again {
		return nil
	}
	i.h1.close()
	i.h2.close()
	return nil
}
