package intercept

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/netip"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/matchlock/matchlock/api"
	"github.com/matchlock/matchlock/internal/policy"
	"github.com/matchlock/matchlock/internal/secret"
)

// world is a guest, an Interceptor and servers, in one process. Servers have
// addresses of the Internet, behind which are listeners on the loopback.
type world struct {
	testing.TB
	i      *Interceptor
	config api.Config
	roots  *CA // signs servers' certificates

	mu      sync.Mutex
	table   map[netip.Addr][]string
	hosts   map[string][]netip.Addr
	servers map[string]string // by network and address
	events  []api.Event
	event   chan struct{} // has one when there are new ones
	dialed  []string
}

var gateway = netip.MustParseAddr("192.168.127.1")

// newWorld has a config's network. Tweaks have more in the options.
func newWorld(t testing.TB, config api.Config, tweaks ...func(*Options)) *world {
	t.Helper()
	checkGoroutines(t)
	w := &world{
		TB: t, config: config, event: make(chan struct{}, 1),
		table: make(map[netip.Addr][]string), hosts: make(map[string][]netip.Addr), servers: make(map[string]string),
	}
	var err error
	if w.roots, err = NewCA(); err != nil {
		t.Fatal(err)
	}
	ca, err := NewCA()
	if err != nil {
		t.Fatal(err)
	}
	set, err := secret.NewSet(nil)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(w.roots.PEM())
	o := Options{
		Policy: compile(t, config), Names: w, Resolver: w, Secrets: set, CA: ca,
		Gateway: gateway, UpstreamRoots: pool, Hooks: config.Network.Hooks, Event: w.tell,
		Dial: w.dial,
	}
	for _, tweak := range tweaks {
		tweak(&o)
	}
	if w.i, err = New(o); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.i.Close(); err != nil {
			t.Error(err)
		}
		if n := w.i.Flows(); n != 0 {
			t.Errorf("%d flows after Close", n)
		}
	})
	return w
}

func compile(t testing.TB, c api.Config) *policy.Policy {
	t.Helper()
	p, err := policy.Compile(&c)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// allow is a config that allows this.
func allow(rules ...string) api.Config {
	var c api.Config
	for _, text := range rules {
		var r api.Rule
		if err := r.UnmarshalText([]byte(text)); err != nil {
			panic(err)
		}
		c.Network.Allow = append(c.Network.Allow, r)
	}
	return c
}

// Names makes the world a table.
func (w *world) Names(addr netip.Addr) []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.table[addr]
}

// Lookup makes the world a resolver.
func (w *world) Lookup(_ context.Context, name string) ([]netip.Addr, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	addrs, ok := w.hosts[name]
	if !ok {
		return nil, &net.DNSError{Err: "no such host", Name: name, IsNotFound: true}
	}
	return addrs, nil
}

func (w *world) tell(e api.Event) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.events = append(w.events, e)
	select {
	case w.event <- struct{}{}:
	default:
	}
}

// waitEvent returns the first event that is so, and fails if there is none.
func (w *world) waitEvent(is func(api.Event) bool) api.Event {
	w.Helper()
	timeout := time.After(10 * time.Second)
	for {
		w.mu.Lock()
		i := slices.IndexFunc(w.events, is)
		events := slices.Clone(w.events)
		w.mu.Unlock()
		if i >= 0 {
			return events[i]
		}
		select {
		case <-w.event:
		case <-timeout:
			w.Fatalf("no such event; there are:\n%+v", events)
		}
	}
}

func kindIs(kind api.EventKind, verdict api.Verdict) func(api.Event) bool {
	return func(e api.Event) bool { return e.Kind == kind && e.Verdict == verdict }
}

// name gives a name an address as the guest knows it, and one on the Internet.
func (w *world) name(name string, public ...string) netip.Addr {
	w.mu.Lock()
	defer w.mu.Unlock()
	addr := netip.AddrFrom4([4]byte{198, 18, 0, byte(len(w.table) + 1)})
	w.table[addr] = []string{name}
	if public == nil {
		public = []string{fmt.Sprintf("93.184.0.%d", len(w.table))}
	}
	for _, p := range public {
		w.hosts[name] = append(w.hosts[name], netip.MustParseAddr(p))
	}
	return addr
}

// public is the first address of a name on the Internet.
func (w *world) public(name string, port uint16) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return netip.AddrPortFrom(w.hosts[name][0], port).String()
}

func (w *world) dial(ctx context.Context, network, address string) (net.Conn, error) {
	w.mu.Lock()
	w.dialed = append(w.dialed, address)
	at, ok := w.servers[network+" "+address]
	w.mu.Unlock()
	if !ok {
		return nil, &net.OpError{Op: "dial", Net: network, Err: syscall.ECONNREFUSED}
	}
	return new(net.Dialer).DialContext(ctx, network, at)
}

// listen has a server at an address of the Internet.
func (w *world) listen(address string, serve func(net.Conn)) {
	w.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		w.Fatal(err)
	}
	w.mu.Lock()
	w.servers["tcp "+address] = l.Addr().String()
	w.mu.Unlock()
	var conns sync.WaitGroup
	ended := make(chan struct{})
	var open sync.Map
	go func() {
		defer close(ended)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			open.Store(c, nil)
			conns.Go(func() { defer open.Delete(c); defer c.Close(); serve(c) })
		}
	}()
	w.Cleanup(func() {
		l.Close()
		<-ended
		open.Range(func(c, _ any) bool { c.(net.Conn).Close(); return true })
		conns.Wait()
	})
}

// web has an HTTP server for a name, with TLS on port 443, without on others.
func (w *world) web(name string, port uint16, handler http.HandlerFunc, tweaks ...func(*http.Server)) netip.AddrPort {
	w.Helper()
	addr := w.name(name)
	w.webAt(w.public(name, port), name, port == 443, handler, tweaks...)
	return netip.AddrPortFrom(addr, port)
}

func (w *world) webAt(address, name string, secure bool, handler http.HandlerFunc, tweaks ...func(*http.Server)) {
	w.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		w.Fatal(err)
	}
	w.mu.Lock()
	w.servers["tcp "+address] = l.Addr().String()
	w.mu.Unlock()
	s := &http.Server{Handler: handler, Protocols: new(http.Protocols), DisableGeneralOptionsHandler: true}
	s.Protocols.SetHTTP1(true)
	s.Protocols.SetHTTP2(true)
	s.Protocols.SetUnencryptedHTTP2(true)
	for _, tweak := range tweaks {
		tweak(s)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if secure {
			cert, err := w.roots.leaf(name)
			if err != nil {
				w.Error(err)
				return
			}
			if s.TLSConfig == nil {
				s.TLSConfig = new(tls.Config)
			}
			s.TLSConfig.Certificates = []tls.Certificate{*cert}
			s.ServeTLS(l, "", "")
			return
		}
		s.Serve(l)
	}()
	w.Cleanup(func() { s.Close(); <-ended })
}

// testFlow is a flow of TCP whose guest is a connection over the loopback.
type testFlow struct {
	destination netip.AddrPort
	udp         bool
	accepted    chan net.Conn
	refused     chan struct{}
	once        sync.Once
}

func (f *testFlow) Guest() netip.AddrPort       { return netip.MustParseAddrPort("192.168.127.2:40000") }
func (f *testFlow) Destination() netip.AddrPort { return f.destination }
func (f *testFlow) Refuse()                     { f.once.Do(func() { close(f.refused) }) }

func (f *testFlow) Accept() (net.Conn, error) {
	if f.udp {
		return f.acceptUDP()
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	defer l.Close()
	guest, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		return nil, err
	}
	f.accepted <- guest
	return l.Accept()
}

func (f *testFlow) acceptUDP() (net.Conn, error) {
	a, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort("127.0.0.1:0")))
	if err != nil {
		return nil, err
	}
	b, err := net.DialUDP("udp", nil, a.LocalAddr().(*net.UDPAddr))
	if err != nil {
		return nil, err
	}
	// a answers b, and only that.
	own := a.LocalAddr().(*net.UDPAddr)
	a.Close()
	guest, err := net.DialUDP("udp", own, b.LocalAddr().(*net.UDPAddr))
	if err != nil {
		return nil, err
	}
	f.accepted <- guest
	return b, nil
}

// connect is the guest's connect.
func (w *world) connect(to netip.AddrPort) (net.Conn, error) { return w.connectBy(to, false) }

func (w *world) connectBy(to netip.AddrPort, udp bool) (net.Conn, error) {
	f := &testFlow{destination: to, udp: udp, accepted: make(chan net.Conn, 1), refused: make(chan struct{})}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if udp {
			w.i.UDP(context.Background(), f)
		} else {
			w.i.TCP(context.Background(), f)
		}
	}()
	select {
	case c := <-f.accepted:
		w.Cleanup(func() { c.Close() })
		return c, nil
	case <-f.refused:
		<-ended
		return nil, syscall.ECONNREFUSED
	case <-ended:
		return nil, errors.New("neither accepted nor refused")
	}
}

// mustConnect connects, with a deadline for all that follows.
func (w *world) mustConnect(to netip.AddrPort) net.Conn {
	w.Helper()
	c, err := w.connect(to)
	if err != nil {
		w.Fatalf("connect to %v: %v\n%+v", to, err, w.events)
	}
	c.SetDeadline(time.Now().Add(20 * time.Second))
	return c
}

// trust has whose certificates the guest takes.
func (w *world) trust() *tls.Config {
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(w.i.CA.PEM())
	pool.AppendCertsFromPEM(w.roots.PEM())
	return &tls.Config{RootCAs: pool}
}

// client is an HTTP client of the guest's, which finds names in the table.
func (w *world) client(protocols ...func(*http.Protocols, bool)) *http.Client {
	t := &http.Transport{
		DialContext: func(_ context.Context, _, address string) (net.Conn, error) {
			host, port, err := net.SplitHostPort(address)
			if err != nil {
				return nil, err
			}
			w.mu.Lock()
			for addr, names := range w.table {
				if slices.Contains(names, host) {
					host = addr.String()
				}
			}
			w.mu.Unlock()
			return w.connect(netip.MustParseAddrPort(net.JoinHostPort(host, port)))
		},
		TLSClientConfig:       w.trust(),
		Protocols:             new(http.Protocols),
		DisableCompression:    true,
		ExpectContinueTimeout: 5 * time.Second,
	}
	if protocols == nil {
		t.Protocols.SetHTTP1(true)
	}
	for _, p := range protocols {
		p(t.Protocols, true)
	}
	w.Cleanup(t.CloseIdleConnections)
	return &http.Client{Transport: t, Timeout: 30 * time.Second, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

func h2(p *http.Protocols, on bool)  { p.SetHTTP2(on) }
func h2c(p *http.Protocols, on bool) { p.SetUnencryptedHTTP2(on) }

// get returns what is answered.
func get(t *testing.T, c *http.Client, url string) (status int, body string, h http.Header) {
	t.Helper()
	resp, err := c.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b), resp.Header
}

// say writes a request as it stands, and returns the answer.
func say(t *testing.T, c net.Conn, text string) (*http.Response, string) {
	t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(b)
}

var ourFiles = regexp.MustCompile(`internal/intercept/[a-z]+\.go:`) // no tests

// checkGoroutines fails a test that leaves goroutines of ours behind.
func checkGoroutines(t testing.TB) {
	t.Helper()
	t.Cleanup(func() {
		var ours []string
		for range 200 {
			ours = nil
			b := make([]byte, 1<<20)
			for _, g := range strings.Split(string(b[:runtime.Stack(b, true)]), "\n\n") {
				if ourFiles.MatchString(g) {
					ours = append(ours, g)
				}
			}
			if ours == nil {
				return
			}
			time.Sleep(10 * time.Millisecond) // what ends has no event
		}
		t.Errorf("goroutines left:\n%s", strings.Join(ours, "\n\n"))
	})
}

var quiet = log.New(io.Discard, "", 0)

// listenTLS has a server that speaks what it likes within TLS.
func (w *world) listenTLS(address, name string, serve func(*bufio.Reader, io.Writer)) {
	w.Helper()
	cert, err := w.roots.leaf(name)
	if err != nil {
		w.Fatal(err)
	}
	w.listen(address, func(c net.Conn) {
		secured := tls.Server(c, &tls.Config{Certificates: []tls.Certificate{*cert}})
		serve(bufio.NewReader(secured), secured)
		secured.Close()
	})
}
