package intercept

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/matchlock/matchlock/api"
)

// echo is a server that says what it is told.
func echo(c net.Conn) { io.Copy(c, c) }

func TestClassify(t *testing.T) {
	for in, want := range map[string]kind{
		"": unclear, "\x16": unclear, "\x16\x03": isTLS, "\x16\x02": raw, "\x80\x2e\x01": raw,
		"G": unclear, "GET": unclear, "GET ": unclear, "GET /": http1, "GET\t/": http1, "GET   /": http1, "GET ht": unclear, "GET http": http1, "GET hx": raw, "GET foo": raw,
		"GET\r\n": raw, "GET \r\n": raw, "get /foo\r\n": raw, "get / http/1.1\r\n": http1, "FOO / HTTP/": unclear, "FOO / HTTP/1.1\r\n": http1, "FOO /\xff": unclear, "FOO /\xff\x00 HTTP/1.1\n": http1,
		"\r\n\r\nGET /": http1, " GET /": http1, "\r\n": unclear, "FOO bar HTTP/1.1\r\n": raw, "FOO /": unclear, "FOO /\n": raw, "FOO /" + strings.Repeat("x", maxLine): http1,
		"CONNECT a": http1, "connect a": http1, "OPTIONS *": http1, "OPTIONS rtsp://a RTSP/1.0\r\n": raw,
		"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n": http2, "PRI * HTTP/2.0\r\n\r\n": unclear, "PRI * HTTP/2.0\r\n\r\nXX": http1,
		"SSH-2.0-OpenSSH": unclear, "SSH-2.0-OpenSSH\r\n": raw, "\x00\x00\x00\x08": raw, "*2\r\n": raw, "HTTP/1.1 200 OK\r\n": raw, "\xff": raw,
		"GET /\x01": http1, "a\x01": raw, strings.Repeat("a", maxMethod+1): raw,
	} {
		if got := classify([]byte(in)); got != want {
			t.Errorf("%q: %d, want %d", in, got, want)
		}
	}
}

// FuzzClassify has what is said first come in two pieces: that makes no difference.
func FuzzClassify(f *testing.F) {
	for _, in := range []string{"GET / HTTP/1.1\r\n", "foo /\xff\x00 http/1.1\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "\x16\x03\x01", "SSH-2.0-x\r\n", "get http://a HTTP/\n", "\r\n FOO\t/ HTTP/1.0\n"} {
		f.Add([]byte(in))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		whole := classify(in)
		for n := range min(len(in), 200) {
			if part := classify(in[:n]); part != unclear && part != whole {
				t.Fatalf("%q is %d, and %q is %d", in[:n], part, in, whole)
			}
		}
		// What net/http would serve is not raw.
		if r, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(in))); err == nil && (whole == raw || whole == isTLS) {
			t.Errorf("%q is %d, and a request: %s %s", in, whole, r.Method, r.RequestURI)
		}
	})
}

func TestPorts(t *testing.T) {
	w := newWorld(t, allow("any.test"))
	addr := w.name("any.test")
	for _, port := range []uint16{22, 80, 443, 8443} {
		w.listen(w.public("any.test", port), echo)
	}
	for _, tt := range []struct {
		port   uint16
		say    string
		passes bool
	}{
		{22, "SSH-2.0-x\r\n", true},
		{443, "SSH-2.0-x\r\n", true},
		{80, "SSH-2.0-x\r\n", false},
		{8443, "\x00\x01\x02 anything", true},
		{443, "\x00\x01\x02 anything", false},
		{80, "\x00\x01\x02 anything", false},
		{443, "GET / HTTP/1.1\r\nHost: any.test\r\n\r\n", false},
		{80, "\x16\x03\x01\x00\x01\x01", false},
		{8443, "\x16\x03\x01\x00\x01\x02\x00\x00", false},
		{8443, "* OK\r\n", true},
	} {
		c := w.mustConnect(netip.AddrPortFrom(addr, tt.port))
		io.WriteString(c, tt.say)
		b := make([]byte, len(tt.say))
		_, err := io.ReadFull(c, b)
		if passed := err == nil && string(b) == tt.say; passed != tt.passes {
			t.Errorf("port %d, %q: came back: %q, %v", tt.port, tt.say, b, err)
		}
		c.Close()
		if !tt.passes {
			w.waitEvent(func(e api.Event) bool { return e.Verdict == api.Denied && e.Port == tt.port && e.Reason != "" })
			w.mu.Lock()
			w.events = nil
			w.mu.Unlock()
		}
	}
}

// TestServerFirst has servers of protocols in which the server speaks first, also
// where the guest does at the same time.
func TestServerFirst(t *testing.T) {
	w := newWorld(t, allow("any.test"))
	addr := w.name("any.test")
	greet := func(text string) func(net.Conn) {
		return func(c net.Conn) { io.WriteString(c, text); echo(c) }
	}
	w.listen(w.public("any.test", 25), greet("220 mail\r\n"))
	w.listen(w.public("any.test", 443), greet("SSH-2.0-server\r\n"))
	for _, port := range []uint16{25, 443} {
		c := w.mustConnect(netip.AddrPortFrom(addr, port))
		r := bufio.NewReader(c)
		if line, err := r.ReadString('\n'); err != nil {
			t.Fatal(line, err)
		}
		// What is behind it is not looked at.
		io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
		if line, err := r.ReadString('\n'); line != "GET / HTTP/1.1\r\n" {
			t.Errorf("%d: %q, %v", port, line, err)
		}
		c.Close()
	}
	w.listen(w.public("any.test", 443), greet("220 mail\r\n"))
	if b, _ := io.ReadAll(w.mustConnect(netip.AddrPortFrom(addr, 443))); len(b) > 0 {
		t.Errorf("on port 443: %q", b)
	}
	w.waitEvent(kindIs(api.EventFlow, api.Denied))
}

// TestHelloInPieces has a ClientHello come byte by byte, and a large one.
func TestHelloInPieces(t *testing.T) {
	w := newWorld(t, allow("web.test"))
	to := w.web("web.test", 443, hello)
	config := w.trust()
	config.ServerName = "web.test"
	c := tls.Client(&byteByByte{w.mustConnect(to)}, config)
	if resp, body := say(t, c, "GET / HTTP/1.1\r\nHost: web.test\r\nConnection: close\r\n\r\n"); resp.StatusCode != 200 {
		t.Error(body)
	}
}

type byteByByte struct{ net.Conn }

func (c *byteByByte) Write(p []byte) (int, error) {
	for i := range p {
		if _, err := c.Conn.Write(p[i : i+1]); err != nil {
			return i, err
		}
	}
	return len(p), nil
}

// sendHello has a flow begin with these bytes, and returns what comes back.
func (w *world) sendHello(to netip.AddrPort, hello []byte) []byte {
	w.Helper()
	c := w.mustConnect(to)
	c.Write(hello)
	b := make([]byte, 1024)
	n, _ := io.ReadAtLeast(c, b, 1)
	c.Close()
	return b[:n]
}

// TestECH has a hello whose true name is encrypted: what can be read of it must be
// right, and what is within is looked into.
func TestECH(t *testing.T) {
	config := allow("web.test", "pinned.test")
	config.Network.Splice = []string{"pinned.test"}
	w := newWorld(t, config)
	to := w.web("web.test", 443, hello, func(s *http.Server) { s.ErrorLog = quiet })
	pinned := w.web("pinned.test", 443, hello, func(s *http.Server) { s.ErrorLog = quiet })
	ech := func(name string) []byte {
		return withExtension(captured(t, &tls.Config{ServerName: name}), 0xfe0d, make([]byte, 200))
	}
	if b := w.sendHello(to, ech("cloudflare-ech.com")); len(b) < 7 || b[6] != alertUnrecognizedName {
		t.Errorf("another name: % x", b)
	}
	if b := w.sendHello(pinned, ech("pinned.test")); len(b) < 7 || b[6] != alertAccessDenied {
		t.Errorf("spliced: % x", b)
	}
	if b := w.sendHello(to, ech("web.test")); len(b) < 1 || b[0] != 22 {
		t.Errorf("terminated: % x", b)
	}
	w.waitEvent(func(e api.Event) bool { return e.Name == "web.test" && e.Inspected })
}

func TestPinnedAddress(t *testing.T) {
	w := newWorld(t, intercepted("a.test", "b.test"))
	shared := netip.MustParseAddr("93.184.7.7")
	w.table[shared] = []string{"a.test", "b.test", "denied.test"}
	w.webAt("93.184.7.7:443", "b.test", true, hello)
	w.webAt("93.184.7.7:80", "b.test", false, hello)
	to := netip.AddrPortFrom(shared, 443)
	config := w.trust()
	config.ServerName = "b.test"
	c := tls.Client(w.mustConnect(to), config)
	if resp, body := say(t, c, "GET / HTTP/1.1\r\nHost: b.test\r\n\r\n"); resp.StatusCode != 200 {
		t.Error(body)
	}
	// It is of b.test now, not of a.test any more.
	if resp, body := say(t, c, "GET / HTTP/1.1\r\nHost: a.test\r\n\r\n"); resp.StatusCode != 403 {
		t.Error(body)
	}
	c.Close()
	if e := w.waitEvent(kindIs(api.EventFlow, api.Allowed)); e.Name != "b.test" {
		t.Errorf("%+v", e)
	}
	config.ServerName = "denied.test"
	if err := tls.Client(w.mustConnect(to), config).Handshake(); err == nil {
		t.Error("a name that is not allowed")
	}
	if resp, body := say(t, w.mustConnect(netip.AddrPortFrom(shared, 80)), "GET / HTTP/1.1\r\nHost: denied.test\r\n\r\n"); resp.StatusCode != 403 {
		t.Error(body)
	}
}

func TestAddressFlow(t *testing.T) {
	config := allow("93.184.9.9")
	config.Network.Deny = []api.Rule{{Target: "evil.test"}}
	w := newWorld(t, config)
	w.webAt("93.184.9.9:443", "good.test", true, hello, func(s *http.Server) { s.ErrorLog = quiet })
	w.webAt("93.184.9.9:80", "", false, hello)
	addr := netip.MustParseAddr("93.184.9.9")
	for name, ok := range map[string]bool{"good.test": true, "": true, "evil.test": false} {
		c := tls.Client(w.mustConnect(netip.AddrPortFrom(addr, 443)), &tls.Config{ServerName: name, InsecureSkipVerify: true})
		if err := c.Handshake(); (err == nil) != ok {
			t.Errorf("%q: %v", name, err)
		}
		c.Close()
	}
	for host, status := range map[string]int{"93.184.9.9": 200, "good.test": 200, "evil.test": 403} {
		if resp, body := say(t, w.mustConnect(netip.AddrPortFrom(addr, 80)), "GET / HTTP/1.1\r\nHost: "+host+"\r\n\r\n"); resp.StatusCode != status {
			t.Errorf("%q: %d %s", host, resp.StatusCode, body)
		}
	}
}

// TestAddressTerminated looks into TLS to an address, with --intercept.
func TestAddressTerminated(t *testing.T) {
	w := newWorld(t, intercepted("93.184.9.9"))
	w.webAt("93.184.9.9:443", "93.184.9.9", true, hello)
	if _, body, _ := get(t, w.client(), "https://93.184.9.9/"); body != "GET 93.184.9.9 / HTTP/1.1" {
		t.Error(body)
	}
	w.waitEvent(kindIs(api.EventRequest, api.Allowed))
}

// TestAddresses has a name with addresses that may not be dialled, that do not
// answer, and one that does.
func TestAddresses(t *testing.T) {
	w := newWorld(t, allow("web.test", "private.test", "gone.test"))
	addr := w.name("web.test", "127.0.0.1", "10.0.0.1", "::ffff:169.254.169.254", "93.184.5.5", "93.184.5.6")
	w.listen("93.184.5.6:9", echo)
	w.listen("127.0.0.1:9", echo)
	c := w.mustConnect(netip.AddrPortFrom(addr, 9))
	io.WriteString(c, "\x00")
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	c.Close()
	if e := w.waitEvent(kindIs(api.EventFlow, api.Allowed)); e.Address != "93.184.5.6" {
		t.Errorf("%+v", e)
	}
	if got := fmt.Sprint(w.dialed); got != "[93.184.5.5:9 93.184.5.6:9]" {
		t.Errorf("dialled %s", got)
	}
	addr = w.name("private.test", "10.0.0.1", "::1")
	if _, err := w.connect(netip.AddrPortFrom(addr, 9)); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Error(err)
	}
	if e := w.waitEvent(kindIs(api.EventFlow, api.Denied)); e.Reason == "" || e.Hint == "" {
		t.Errorf("%+v", e)
	}
	addr = w.name("gone.test")
	delete(w.hosts, "gone.test")
	if _, err := w.connect(netip.AddrPortFrom(addr, 9)); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Error(err)
	}
	if e := w.waitEvent(kindIs(api.EventFlow, api.Failed)); !strings.Contains(e.Reason, "no such host") {
		t.Errorf("%+v", e)
	}
}

// TestHeadStart has the first address say nothing at all.
func TestHeadStart(t *testing.T) {
	ended := make(chan struct{})
	addresses := []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:1"), netip.MustParseAddrPort("192.0.2.2:1")}
	conn, address, err := dialFirst(t.Context(), addresses, func(ctx context.Context, a netip.AddrPort) (net.Conn, error) {
		if a == addresses[0] {
			defer close(ended)
			<-ctx.Done()
			return nil, ctx.Err()
		}
		c, _ := net.Pipe()
		return c, nil
	})
	if err != nil || address != addresses[1] {
		t.Fatal(address, err)
	}
	conn.Close()
	<-ended
}

func TestGateway(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := uint16(l.Addr().(*net.TCPAddr).Port)
	var config api.Config
	config.Network.HostPorts = []api.HostPort{{Port: port, GuestPort: 8080}}
	w := newWorld(t, config, func(o *Options) { o.Dial = nil })
	s := &http.Server{Handler: http.HandlerFunc(hello)}
	ended := make(chan struct{})
	go func() { defer close(ended); s.Serve(l) }()
	t.Cleanup(func() { s.Close(); <-ended })
	to := netip.AddrPortFrom(gateway, 8080)
	for host, status := range map[string]int{"host.matchlock.internal:8080": 200, gateway.String() + ":8080": 200, "localhost:8080": 403} {
		if resp, body := say(t, w.mustConnect(to), "GET / HTTP/1.1\r\nHost: "+host+"\r\n\r\n"); resp.StatusCode != status {
			t.Errorf("%s: %d %s", host, resp.StatusCode, body)
		}
	}
	if _, err := w.connect(netip.AddrPortFrom(gateway, 8081)); err == nil {
		t.Error("a port that is not open")
	}
	if e := w.waitEvent(kindIs(api.EventFlow, api.Denied)); e.Hint != "--host-port 8081" || e.Name != api.HostGateway {
		t.Errorf("%+v", e)
	}
}

// TestPolicyChange cuts what the new rules refuse, also in the middle of a request,
// and leaves the rest alone.
func TestPolicyChange(t *testing.T) {
	w := newWorld(t, intercepted("a.test", "b.test"))
	begun := make(chan struct{}, 10)
	wait := func(rw http.ResponseWriter, r *http.Request) {
		io.WriteString(rw, "begun\n")
		http.NewResponseController(rw).Flush()
		begun <- struct{}{}
		<-r.Context().Done()
	}
	w.web("a.test", 443, wait)
	w.listen(w.public("a.test", 22), echo)
	b := netip.AddrPortFrom(w.name("b.test"), 22)
	w.listen(w.public("b.test", 22), echo)

	resp, err := w.client(h2).Get("https://a.test/")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	<-begun
	rawA, rawB := w.mustConnect(netip.AddrPortFrom(netip.MustParseAddr("198.18.0.1"), 22)), w.mustConnect(b)
	for _, c := range []net.Conn{rawA, rawB} {
		io.WriteString(c, "\x00")
		if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
	}
	config := intercepted("a.test", "b.test")
	config.Network.Deny = []api.Rule{{Target: "a.test"}}
	w.i.SetPolicy(compile(t, config))
	if _, err := io.ReadAll(resp.Body); err == nil {
		t.Error("the response ended well")
	}
	if _, err := rawA.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("cut: %v", err)
	}
	io.WriteString(rawB, "x")
	if _, err := io.ReadFull(rawB, make([]byte, 1)); err != nil {
		t.Errorf("the other: %v", err)
	}
	rawB.Close()
	for range 2 {
		e := w.waitEvent(func(e api.Event) bool {
			return e.Kind == api.EventFlow && e.Name == "a.test" && e.Verdict == api.Denied
		})
		if e.Rule != "deny a.test" {
			t.Errorf("%+v", e)
		}
	}
	w.waitEvent(func(e api.Event) bool { return e.Kind == api.EventFlow && e.Name == "b.test" })
	if _, err := w.connect(netip.MustParseAddrPort("198.18.0.1:22")); err == nil {
		t.Error("begun after the change")
	}
}

// TestPolicyChangeWhileDialling has the rules change between question and answer.
func TestPolicyChangeWhileDialling(t *testing.T) {
	dialling, go_on := make(chan struct{}), make(chan struct{})
	w := newWorld(t, allow("a.test"), func(o *Options) {
		dial := o.Dial
		o.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
			close(dialling)
			<-go_on
			return dial(ctx, network, address)
		}
	})
	to := netip.AddrPortFrom(w.name("a.test"), 9)
	w.listen(w.public("a.test", 9), echo)
	go func() {
		<-dialling
		w.i.SetPolicy(compile(t, api.Config{}))
		close(go_on)
	}()
	if _, err := w.connect(to); err == nil {
		t.Error("connected")
	}
	w.waitEvent(kindIs(api.EventFlow, api.Denied))
}

// TestReset passes a reset on.
func TestReset(t *testing.T) {
	w := newWorld(t, allow("a.test"))
	ended := make(chan error, 1)
	to := netip.AddrPortFrom(w.name("a.test"), 9)
	w.listen(w.public("a.test", 9), func(c net.Conn) {
		io.ReadFull(c, make([]byte, 1))
		io.WriteString(c, "x")
		_, err := c.Read(make([]byte, 1))
		ended <- err
	})
	c := w.mustConnect(to)
	io.WriteString(c, "\x00")
	io.ReadFull(c, make([]byte, 1))
	c.(*net.TCPConn).SetLinger(0)
	c.Close()
	if err := <-ended; !errors.Is(err, syscall.ECONNRESET) {
		t.Error(err)
	}
}

func TestClose(t *testing.T) {
	w := newWorld(t, intercepted("a.test"))
	w.web("a.test", 443, func(rw http.ResponseWriter, r *http.Request) {
		http.NewResponseController(rw).Flush()
		<-r.Context().Done()
	})
	resp, err := w.client(h2).Get("https://a.test/")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	silent := w.mustConnect(netip.MustParseAddrPort("198.18.0.1:443"))
	w.i.Close()
	if _, err := io.ReadAll(resp.Body); err == nil {
		t.Error("the response ended well")
	}
	if _, err := silent.Read(make([]byte, 1)); err == nil {
		t.Error("a flow goes on")
	}
	if _, err := w.connect(netip.MustParseAddrPort("198.18.0.1:443")); err == nil {
		t.Error("a flow begins")
	}
}

// proxy is an HTTP proxy that knows names.
func (w *world) proxy(want string, seen chan<- string) func(net.Conn) {
	return func(c net.Conn) {
		r := bufio.NewReader(c)
		req, err := http.ReadRequest(r)
		if err != nil {
			return
		}
		seen <- req.Method + " " + req.Host
		if req.Header.Get("Proxy-Authorization") != want {
			io.WriteString(c, "HTTP/1.1 407 Who are you\r\nContent-Length: 0\r\n\r\n")
			return
		}
		host, port, _ := net.SplitHostPort(req.Host)
		up, err := w.dial(context.Background(), "tcp", net.JoinHostPort("93.184.200."+strings.TrimPrefix(strings.TrimSuffix(host, ".test"), "n"), port))
		if err != nil {
			io.WriteString(c, "HTTP/1.1 502 No\r\nContent-Length: 0\r\n\r\n")
			return
		}
		defer up.Close()
		io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\n")
		go io.Copy(up, r)
		io.Copy(c, up)
	}
}

func TestUpstreamProxy(t *testing.T) {
	for _, scheme := range []string{"http", "https"} {
		t.Run(scheme, func(t *testing.T) {
			w := newWorld(t, intercepted("*.test"), func(o *Options) { o.UpstreamProxy = mustURL(scheme + "://user:pass@proxy.corp:3128") })
			seen := make(chan string, 10)
			serve := w.proxy("Basic dXNlcjpwYXNz", seen)
			w.listen("proxy.corp:3128", func(c net.Conn) {
				if scheme == "https" {
					cert, err := w.roots.leaf("proxy.corp")
					if err != nil {
						t.Error(err)
						return
					}
					c = tls.Server(c, &tls.Config{Certificates: []tls.Certificate{*cert}})
				}
				serve(c)
			})
			addr := w.name("n1.test", "10.0.0.1") // nobody here asks for it
			w.webAt("93.184.200.1:443", "n1.test", true, hello)
			w.listen("93.184.200.1:22", func(c net.Conn) { io.WriteString(c, "first\n"); echo(c) })
			if _, body, _ := get(t, w.client(), "https://n1.test/"); body != "GET n1.test / HTTP/1.1" {
				t.Error(body)
			}
			if got := <-seen; got != "CONNECT n1.test:443" {
				t.Error(got)
			}
			c := w.mustConnect(netip.AddrPortFrom(addr, 22))
			if line, err := bufio.NewReader(c).ReadString('\n'); line != "first\n" {
				t.Error(line, err)
			}
			c.Close()
			if _, err := w.connect(netip.AddrPortFrom(addr, 23)); err == nil {
				t.Error("connected where the proxy says no")
			}
			if e := w.waitEvent(kindIs(api.EventFlow, api.Failed)); strings.Contains(e.Reason, "pass") || !strings.Contains(e.Reason, "502") {
				t.Errorf("%+v", e)
			}
		})
	}
}

func TestUDP(t *testing.T) {
	w := newWorld(t, allow("ntp.test/udp", "*"))
	server, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort("127.0.0.1:0")))
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		b := make([]byte, 70000)
		for {
			n, from, err := server.ReadFrom(b)
			if err != nil {
				return
			}
			server.WriteTo(b[:n], from)
		}
	}()
	t.Cleanup(func() { server.Close(); <-ended })
	addr := w.name("ntp.test")
	w.servers["udp "+w.public("ntp.test", 123)] = server.LocalAddr().String()
	c, err := w.connectBy(netip.AddrPortFrom(addr, 123), true)
	if err != nil {
		t.Fatal(err)
	}
	c.SetDeadline(time.Now().Add(10 * time.Second))
	for _, size := range []int{1, 0, 1400, 60000} {
		c.Write(make([]byte, size))
		b := make([]byte, 70000)
		if n, err := c.Read(b); n != size || err != nil {
			t.Error(size, n, err)
		}
	}
	w.i.Close()
	if e := w.waitEvent(kindIs(api.EventFlow, api.Allowed)); e.Protocol != "udp" || e.Sent != 61401 || e.Received != 61401 || e.Name != "ntp.test" {
		t.Errorf("%+v", e)
	}
}

func TestUDPRefused(t *testing.T) {
	w := newWorld(t, allow("*", "quic.test/udp"))
	for name, port := range map[string]uint16{"quic.test": 443, "tcp.test": 123} {
		if _, err := w.connectBy(netip.AddrPortFrom(w.name(name), port), true); err == nil {
			t.Error(name)
		}
		w.waitEvent(func(e api.Event) bool { return e.Name == name && e.Verdict == api.Denied && e.Protocol == "udp" })
	}
}
