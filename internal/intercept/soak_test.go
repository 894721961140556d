package intercept

import (
	"cmp"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/matchlock/matchlock/api"
	"github.com/matchlock/matchlock/internal/names"
	"github.com/matchlock/matchlock/internal/netstack"
	"github.com/matchlock/matchlock/internal/policy"
	"github.com/matchlock/matchlock/internal/secret"
	"github.com/matchlock/matchlock/internal/testnet"
)

// soakPatience is how much longer a soak may take until enough of everything has
// been done, on a machine that does much else.
const soakPatience = 30 * time.Second

// soakWarmUp is how long the heap may grow at first: the guest's kernel keeps
// connections that have ended for a minute, as any does.
const soakWarmUp = 70 * time.Second

// maxGrowth is by how much the heap may seem to grow, in bytes: what is in flight
// differs from sample to sample.
const maxGrowth = 8 << 20

func TestSoak(t *testing.T) { soak(t, 3*time.Second) }

// N rounds are of 12 seconds each, and at most 10 minutes.
func TestLongSoak(t *testing.T) {
	n, err := strconv.Atoi(os.Getenv("MATCHLOCK_TEST_LONG"))
	if err != nil || n < 1 {
		t.Skip("takes long: set MATCHLOCK_TEST_LONG to the number of rounds (make long does)")
	}
	soak(t, min(time.Duration(n)*12*time.Second, 10*time.Minute))
}

// soak has a guest, servers and a user do all that they may do to a sandbox's
// network, and much that they may not, at random and at the same time. Nothing must
// be left of it, and what must hold always is looked at meanwhile.
func soak(t *testing.T, duration time.Duration) {
	seed := uint64(time.Now().UnixNano())
	if text := os.Getenv("MATCHLOCK_TEST_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%v, MATCHLOCK_TEST_SEED=%d", duration, seed)
	if l, err := net.Listen("tcp", "127.0.0.1:0"); err == nil { // the runtime's own descriptors are open from now on
		l.Close()
	}
	goroutines, descriptors := goleak.IgnoreCurrent(), openDescriptors(t)

	w := newSoakWorld(t, seed)
	ctx, cancel := context.WithTimeout(t.Context(), duration+soakPatience)
	defer cancel()
	var all sync.WaitGroup
	for n := range soakWorkers {
		all.Go(func() { w.visitAll(ctx, rand.New(rand.NewPCG(seed, uint64(n)))) })
	}
	all.Go(func() { w.changeRules(ctx, rand.New(rand.NewPCG(seed, 1001))) })
	all.Go(func() { w.changeStacks(ctx, rand.New(rand.NewPCG(seed, 1002)), max(duration/40, time.Second)) })
	heap := w.sample(ctx, duration)
	least := max(1, int64(duration/(4*time.Second)))
	w.waitDone(ctx, least)
	cancel()
	all.Wait()

	if duration >= time.Minute {
		w.waitIdle(netstack.UDPIdle + 30*time.Second)
		checkFlat(t, heap)
	}
	w.close()
	goleak.VerifyNone(t, goroutines)
	if now := openDescriptors(t); now != descriptors {
		t.Errorf("%d descriptors are open, and were %d", now, descriptors)
	}
	w.checkDone(least)
}

func openDescriptors(t *testing.T) int {
	t.Helper()
	all, err := os.ReadDir("/dev/fd")
	if err != nil && !errors.Is(err, fs.ErrNotExist) { // that of reading the folder
		t.Fatal(err)
	}
	return len(all)
}

// soakWorld is a sandbox's network with both its sides.
type soakWorld struct {
	*testing.T
	internet *internet
	roots    *CA
	wire     *soakWire
	guest    *testnet.Guest
	trusted  *x509.CertPool // by the guest

	placeholders map[string]string
	policy       atomic.Pointer[policy.Policy]
	told         atomic.Int64 // events

	mu     sync.Mutex
	host   *soakHost
	config api.Config
	known  map[string]netip.Addr // names that the guest has asked for
	done   map[string]int64      // visits that succeeded, by kind
	tried  map[string]int64
	errors map[string]int // by kind and text, a few

	visited chan struct{} // has one when a visit is over
}

// soakHost is what a supervisor has of a network.
type soakHost struct {
	flows   *Interceptor
	names   *names.Server
	secrets *secret.Set
	ca      *CA
	stack   *netstack.Stack
	stop    context.CancelFunc
}

// soakRules are changed all the time.
var soakRules = []string{
	"plain.test:80", "spliced.test:443", "api.test:443", "api.test:80", "raw.test", "gone.test", "slow.test",
	"udp.test/udp", "udp.test:443/udp", "*.wild.test",
}

func newSoakWorld(t *testing.T, seed uint64) *soakWorld {
	w := &soakWorld{
		T: t, config: allow(soakRules...),
		placeholders: map[string]string{"TOKEN": secret.NewPlaceholder(), "GONE": secret.NewPlaceholder()},
		known:        map[string]netip.Addr{}, done: map[string]int64{}, tried: map[string]int64{}, errors: map[string]int{}, visited: make(chan struct{}, 1),
	}
	var err error
	if w.roots, err = NewCA(); err != nil {
		t.Fatal(err)
	}
	w.internet = newInternet(t, w.roots, seed)
	w.config.Network.Resolve = w.internet.resolve()
	w.config.Network.DNS = []netip.Addr{netip.MustParseAddr("127.0.0.1")} // nobody is there
	w.config.Secrets = []api.Secret{{Name: "TOKEN", Hosts: []string{"api.test"}}, {Name: "GONE", Hosts: []string{"api.test"}}}
	w.policy.Store(compile(t, w.config))
	var link *os.File
	w.wire, link = newWire(t)
	w.guest = testnet.NewGuest(t, link, testnet.GuestConfig{})
	ca, err := NewCA()
	if err != nil {
		t.Fatal(err)
	}
	w.trusted = pool(ca, w.roots)
	table := names.NewTable()
	table.Fix(api.HostGateway, soakGateway.Addr())
	w.host = w.openHost(table, ca)
	w.attach(w.host)
	return w
}

var soakGateway = netip.MustParsePrefix("192.168.100.1/24")

// openHost makes all but the stack.
func (w *soakWorld) openHost(table *names.Table, ca *CA) *soakHost {
	h := &soakHost{ca: ca}
	set, err := secret.NewSet([]secret.Secret{
		{Name: "TOKEN", Placeholder: w.placeholders["TOKEN"], Value: soakValue(w.T, 0), Hosts: func(h string) bool { return h == "api.test" }, Places: secret.Places{Query: true, Body: true}},
		{Name: "GONE", Placeholder: w.placeholders["GONE"], Value: soakValue(w.T, 9), Hosts: func(h string) bool { return h == "api.test" }},
	})
	if err != nil {
		w.Fatal(err)
	}
	h.secrets = set
	resolver, err := names.NewResolver(&w.config.Network)
	if err != nil {
		w.Fatal(err)
	}
	tell := func(api.Event) { w.told.Add(1) }
	h.flows, err = New(Options{
		Policy: w.policy.Load(), Names: table, Resolver: resolver, Secrets: set, CA: ca, Gateway: soakGateway.Addr(),
		UpstreamRoots: pool(w.roots), Event: tell, Dial: w.internet.dial,
	})
	if err != nil {
		w.Fatal(err)
	}
	h.names = &names.Server{
		Table: table, Resolver: resolver, Event: tell,
		Permit: func(name string) policy.Verdict { return w.policy.Load().Name(name) },
	}
	return h
}

// soakValue is one of the values that a secret has one after the other.
func soakValue(t *testing.T, n int) secret.Value {
	v, err := secret.NewValue(fmt.Appendf(nil, "%s%d+/&end", valuePrefix, n))
	if err != nil {
		t.Fatal(err)
	}
	return v
}

const valuePrefix = "sk_live_soak_"

// soakTCP and soakUDP are flows as this package has them.
type (
	soakTCP struct{ *netstack.TCPFlow }
	soakUDP struct{ *netstack.UDPFlow }
)

func (f soakTCP) Accept() (net.Conn, error) { return f.TCPFlow.Accept() }
func (f soakUDP) Accept() (net.Conn, error) { return f.UDPFlow.Accept() }

// attach has a new stack serve the guest.
func (w *soakWorld) attach(h *soakHost) {
	ctx, stop := context.WithCancel(context.Background())
	var err error
	h.stop = stop
	h.stack, err = netstack.New(ctx, netstack.Config{
		Link: w.wire.plug(w.T), Gateway: soakGateway, Guest: w.guest.Address.Addr(), GuestMAC: w.guest.MAC,
	}, netstack.Handler{
		TCP:  func(ctx context.Context, f *netstack.TCPFlow) { h.flows.TCP(ctx, soakTCP{f}) },
		UDP:  func(ctx context.Context, f *netstack.UDPFlow) { h.flows.UDP(ctx, soakUDP{f}) },
		DNS:  h.names.Answer,
		Note: func(netstack.Note) { w.told.Add(1) },
	})
	if err != nil {
		w.Fatal(err)
	}
}

// detach closes the stack, which must then have nothing.
func (w *soakWorld) detach(h *soakHost) {
	if err := h.stack.Close(); err != nil {
		w.Error(err)
	}
	h.stop()
	w.wire.unplug()
	if s := h.stack.Stats(); s.Flows != 0 || s.HalfOpen != 0 || s.Queries != 0 {
		w.Errorf("a closed stack has %d flows, %d half-open ones, %d queries", s.Flows, s.HalfOpen, s.Queries)
	}
	if n := h.flows.Flows(); n != 0 {
		w.Errorf("%d flows without a stack", n)
	}
}

// sample returns the sizes of the heap past a warm-up.
func (w *soakWorld) sample(ctx context.Context, duration time.Duration) (heap []uint64) {
	every := min(5*time.Second, duration/10)
	began := time.Now()
	for {
		wait(ctx, every)
		if time.Since(began) >= duration || ctx.Err() != nil {
			return heap
		}
		runtime.GC()
		runtime.GC() // what pools had
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		w.mu.Lock()
		stats, flows := w.host.stack.Stats(), w.host.flows.Flows()
		w.mu.Unlock()
		w.Logf("%v: heap %.1f MiB, %d goroutines, %d descriptors; %d flows, %d half open, %d queries, %d intercepted", time.Since(began).Round(time.Second),
			float64(m.HeapAlloc)/(1<<20), runtime.NumGoroutine(), openDescriptors(w.T), stats.Flows, stats.HalfOpen, stats.Queries, flows)
		if time.Since(began) > soakWarmUp {
			heap = append(heap, m.HeapAlloc)
		}
	}
}

func checkFlat(t *testing.T, heap []uint64) {
	quarter := len(heap) / 4
	if quarter < 2 {
		t.Logf("%d samples of the heap, which is too short to tell whether it grows", len(heap))
		return
	}
	first, last := median(heap[:quarter]), median(heap[len(heap)-quarter:])
	t.Logf("heap: first quarter %.1f MiB, last %.1f MiB", float64(first)/(1<<20), float64(last)/(1<<20))
	if last > first+maxGrowth {
		t.Errorf("the heap grows: %d", heap)
	}
}

func median(all []uint64) uint64 {
	all = slices.Sorted(slices.Values(all))
	return all[len(all)/2]
}

// waitIdle waits until nothing is on its way any more, of itself.
func (w *soakWorld) waitIdle(most time.Duration) {
	for deadline := time.Now().Add(most); ; {
		stats, flows := w.host.stack.Stats(), w.host.flows.Flows()
		if stats.Flows == 0 && stats.HalfOpen == 0 && stats.Queries == 0 && flows == 0 {
			return
		}
		if time.Now().After(deadline) {
			stacks := make([]byte, 1<<20)
			w.Errorf("%v after the guest's last word there are %d flows, %d half open, %d queries, %d intercepted\n%s", most,
				stats.Flows, stats.HalfOpen, stats.Queries, flows, stacks[:runtime.Stack(stacks, true)])
			return
		}
		time.Sleep(100 * time.Millisecond) // the end of a flow has no event here
	}
}

func (w *soakWorld) close() {
	if err := w.host.flows.Close(); err != nil {
		w.Error(err)
	}
	w.detach(w.host)
	w.guest.Close()
	w.wire.close()
	w.internet.close()
}

// waitDone waits until enough was done for the soak to mean anything.
func (w *soakWorld) waitDone(ctx context.Context, least int64) {
	for w.lacks(least) != nil {
		select {
		case <-w.visited:
		case <-ctx.Done():
			return
		}
	}
}

// lacks are the kinds of which less was done.
func (w *soakWorld) lacks(least int64) (kinds []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, k := range visits {
		if w.done[k.name] < least {
			kinds = append(kinds, k.name)
		}
	}
	for _, what := range []string{"rules", "rotated", "reopened"} {
		if w.done[what] == 0 {
			kinds = append(kinds, what)
		}
	}
	return kinds
}

// checkDone fails a soak that has done too little, and tells what it has done.
func (w *soakWorld) checkDone(least int64) {
	if kinds := w.lacks(least); kinds != nil {
		w.Errorf("fewer than %d succeeded of %v", least, kinds)
	}
	for _, k := range slices.Sorted(maps.Keys(w.done)) {
		w.Logf("%-14s %6d of %6d", k, w.done[k], cmp.Or(w.tried[k], w.done[k]))
	}
	for _, k := range slices.Sorted(maps.Keys(w.errors)) {
		w.Logf("%6d × %s", w.errors[k], k)
	}
	w.Logf("%d events", w.told.Load())
}

// wait is time that passes.
func wait(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
