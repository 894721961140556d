package intercept

import (
	"context"
	"errors"
	"io"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/matchlock/matchlock/api"
	"github.com/matchlock/matchlock/internal/policy"
)

// A refusal is an error that says that something is not allowed, why, and how it
// would be.
type refusal struct {
	rule, reason, hint string
}

func (r *refusal) Error() string { return r.reason }

// refused returns a verdict that does not allow as an error, another as nil.
func refused(v policy.Verdict) error {
	if v.Allow {
		return nil
	}
	return &refusal{v.Rule, v.Reason, v.Hint}
}

var errClosed = errors.New("the network is shut down")

// aborter is a connection that can be reset.
type aborter interface{ Abort() }

// flow is what the guest's first segment or datagram began, until both sides have
// ended.
type flow struct {
	i           *Interceptor
	id          uint64
	began       time.Time
	udp         bool
	destination netip.AddrPort // as the guest knows it
	gateway     bool           // it leads to a port of the host

	ctx    context.Context // its cause, once it is cut, is what the event says
	cancel context.CancelCauseFunc
	stop   func() // watching for the end of all flows

	sent, received atomic.Int64 // bytes from the guest, and to it

	mu        sync.Mutex
	names     []string // what the guest may mean, and the policy allows; none: it has given an address
	name      string   // what it means
	rule      string
	address   netip.AddrPort // dialled
	protocol  string
	inspected bool
	judged    bool  // it has its name, if it has one
	failure   error // the first
	conns     map[aborter]struct{}
	requests  sync.WaitGroup
	active    int         // requests
	idle      *time.Timer // closes the connection; nil: somebody else does
	over      bool        // no request begins any more
}

// policyFlow is the flow in the policy's terms, for one of its names.
func (f *flow) policyFlow(name string) policy.Flow {
	return policy.Flow{Name: name, Addr: f.destination.Addr(), Port: f.destination.Port(), UDP: f.udp}
}

// nameIt finds out what the guest means by the address, and judges it.
func (f *flow) nameIt() error {
	p := f.i.policy.Load()
	addr := f.destination.Addr()
	names := f.i.Names.Names(addr)
	if f.gateway = addr == f.i.Gateway; f.gateway {
		names = []string{api.HostGateway}
	}
	if len(names) == 0 {
		v := p.Flow(f.policyFlow(""))
		f.mu.Lock()
		f.rule, f.judged = v.Rule, v.Allow
		f.mu.Unlock()
		return refused(v)
	}
	for _, name := range names {
		v := p.Flow(f.policyFlow(name))
		if !v.Allow {
			continue
		}
		f.mu.Lock()
		if f.names = append(f.names, name); len(f.names) == 1 {
			f.name, f.rule, f.judged = name, v.Rule, true
		}
		f.mu.Unlock()
	}
	if len(f.names) > 0 {
		return nil
	}
	f.mu.Lock()
	f.name = names[0]
	f.mu.Unlock()
	return refused(p.Flow(f.policyFlow(names[0])))
}

// judgeAgain judges the flow as it is now by the rules as they are now.
func (f *flow) judgeAgain() error {
	p := f.i.policy.Load()
	f.mu.Lock()
	name, address, judged := f.name, f.address, f.judged
	f.mu.Unlock()
	if !judged {
		return nil // once it has its name, dial asks again
	}
	v := p.Flow(f.policyFlow(name))
	if v.Allow && address.IsValid() && !f.proxied() {
		v = p.Dial(f.policyFlow(name), address.Addr())
	}
	return refused(v)
}

// is says what is spoken on the flow, and whether it is looked into.
func (f *flow) is(protocol string, inspected bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.protocol, f.inspected = protocol, inspected
}

// fail says why the flow ends, unless that has been said.
func (f *flow) fail(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.failure == nil {
		f.failure = err
	}
}

// hold has a connection reset when the flow is cut, until release. It is false,
// and the connection is reset, when that has been.
func (f *flow) hold(c aborter) bool {
	f.mu.Lock()
	held := f.ctx.Err() == nil
	if held {
		f.conns[c] = struct{}{}
	}
	f.mu.Unlock()
	if !held {
		c.Abort()
	}
	return held
}

func (f *flow) release(c aborter) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.conns, c)
}

// cut ends the flow at once, both ways.
func (f *flow) cut(why error) {
	f.fail(why)
	f.cancel(why)
	f.abort()
}

// close is cut, for all flows.
func (f *flow) close() { f.cut(errClosed) }

// abort resets the connections that there are.
func (f *flow) abort() {
	f.mu.Lock()
	conns := make([]aborter, 0, len(f.conns))
	for c := range f.conns {
		conns = append(conns, c)
	}
	clear(f.conns)
	f.mu.Unlock()
	for _, c := range conns {
		c.Abort()
	}
}

// closeIdle has a connection closed when there was no request for idleTime.
func (f *flow) closeIdle(c io.Closer) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.idle = time.AfterFunc(idleTime, func() { c.Close() })
}

// beginRequest counts a request, whose end the flow's end waits for. It is false
// when the flow has ended.
func (f *flow) beginRequest() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.over {
		return false
	}
	f.requests.Add(1)
	if f.active++; f.idle != nil {
		f.idle.Stop()
	}
	return true
}

func (f *flow) endRequest() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.active--; f.active == 0 && f.idle != nil && !f.over {
		f.idle.Reset(idleTime)
	}
	f.requests.Done()
}

// waitRequests waits for the requests that there are, and lets none begin.
func (f *flow) waitRequests() {
	f.mu.Lock()
	f.over = true
	if f.idle != nil {
		f.idle.Stop()
	}
	f.mu.Unlock()
	f.requests.Wait()
}

// end forgets the flow, and tells of it.
func (f *flow) end() {
	f.stop()
	f.abort()
	f.cancel(nil)
	f.i.mu.Lock()
	delete(f.i.flows, f)
	f.i.mu.Unlock()
	f.i.Event(f.event()) // who is told finds it gone
	f.i.ended.Done()
}

func (f *flow) event() api.Event {
	e := f.newEvent(api.EventFlow)
	f.mu.Lock()
	defer f.mu.Unlock()
	e.Sent, e.Received = f.sent.Load(), f.received.Load()
	e.judge(f.failure)
	return e.Event
}

// event is an api.Event that is written.
type event struct{ api.Event }

// newEvent returns what is the same in all events of a flow, as of one that was
// allowed.
func (f *flow) newEvent(kind api.EventKind) event {
	f.mu.Lock()
	defer f.mu.Unlock()
	e := event{api.Event{
		Time: f.began, Kind: kind, Flow: f.id,
		Name: f.name, Address: f.destination.Addr().Unmap().String(), Port: f.destination.Port(), Protocol: f.protocol,
		Verdict: api.Allowed, Rule: f.rule, Inspected: f.inspected,
	}}
	if f.address.IsValid() {
		e.Address = f.address.Addr().String()
	}
	if e.Protocol == "" {
		if e.Protocol = "tcp"; f.udp {
			e.Protocol = "udp"
		}
	}
	e.Millis = millis(time.Since(f.began))
	return e
}

// judge says what an error, or none, makes of it.
func (e *event) judge(err error) {
	var no *refusal
	switch {
	case err == nil, errors.Is(err, errClosed):
	case errors.As(err, &no):
		e.Verdict, e.Rule, e.Reason, e.Hint = api.Denied, no.rule, no.reason, no.hint
	default:
		e.Verdict, e.Reason = api.Failed, err.Error()
	}
}

func millis(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
