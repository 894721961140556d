package intercept

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/matchlock/matchlock/api"
)

// internet is the servers of a soak. Some of their connections go wrong.
type internet struct {
	*testing.T
	roots   *CA
	servers map[string]string // loopback addresses by network and public address
	closers []func()
	udp     sync.WaitGroup
	closed  chan struct{}

	mu   sync.Mutex
	rand *rand.Rand
}

// soakHosts are the servers' names, at addresses of their own.
var soakHosts = []string{"plain.test", "spliced.test", "api.test", "raw.test", "gone.test", "slow.test", "udp.test", "never.test", "a.wild.test"}

func publicAddress(name string) string {
	for n, host := range soakHosts {
		if host == name {
			return fmt.Sprintf("93.184.0.%d", n+1)
		}
	}
	panic(name)
}

func (n *internet) resolve() (all []api.HostIPMapping) {
	for _, host := range soakHosts {
		all = append(all, api.HostIPMapping{Host: host, IP: publicAddress(host)})
	}
	return all
}

func newInternet(t *testing.T, roots *CA, seed uint64) *internet {
	n := &internet{T: t, roots: roots, servers: map[string]string{}, closed: make(chan struct{}), rand: rand.New(rand.NewPCG(seed, 2000))}
	n.web("plain.test", 80)
	n.web("api.test", 80)
	n.web("a.wild.test", 80)
	n.web("spliced.test", 443)
	n.web("api.test", 443)
	n.stream("raw.test", 7000, func(c net.Conn) { pass(c, c) }) // io.Copy would have pipes from a pool
	n.stream("raw.test", 22, func(c net.Conn) {
		io.WriteString(c, "SSH-2.0-soak\r\n")
		pass(c, c)
	})
	n.stream("raw.test", 7001, func(c net.Conn) { // answers when all is said
		size, _ := io.Copy(io.Discard, c)
		fmt.Fprintf(c, "%d", size)
	})
	n.stream("raw.test", 7002, func(c net.Conn) { // says what it has to say, and listens
		io.WriteString(c, "that is all")
		c.(interface{ CloseWrite() error }).CloseWrite()
		io.Copy(io.Discard, c)
	})
	n.stream("raw.test", 7003, func(c net.Conn) {}) // hangs up
	n.datagrams("udp.test", 9000, true)
	n.datagrams("udp.test", 9001, false)
	return n
}

// dial connects to a public address. One of slow.test takes its time, and fails.
func (n *internet) dial(ctx context.Context, network, address string) (net.Conn, error) {
	if host, _, _ := net.SplitHostPort(address); host == publicAddress("slow.test") {
		wait(ctx, time.Second)
		return nil, &net.OpError{Op: "dial", Net: network, Err: syscall.ETIMEDOUT}
	}
	if strings.HasPrefix(address, publicAddress("never.test")+":") {
		n.Errorf("dials %s", address)
	}
	at, ok := n.servers[network+" "+address]
	if !ok {
		return nil, &net.OpError{Op: "dial", Net: network, Err: syscall.ECONNREFUSED}
	}
	return new(net.Dialer).DialContext(ctx, network, at)
}

func (n *internet) listen(name string, port int) net.Listener {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		n.Fatal(err)
	}
	n.servers["tcp "+net.JoinHostPort(publicAddress(name), strconv.Itoa(port))] = l.Addr().String()
	return &unreliableListener{l, n}
}

func (n *internet) web(name string, port int) {
	l := n.listen(name, port)
	s := &http.Server{Handler: n, Protocols: new(http.Protocols), ErrorLog: quiet}
	s.Protocols.SetHTTP1(true)
	s.Protocols.SetHTTP2(true)
	s.Protocols.SetUnencryptedHTTP2(true)
	serve := s.Serve
	if port == 443 {
		cert, err := n.roots.leaf(name)
		if err != nil {
			n.Fatal(err)
		}
		s.TLSConfig = &tls.Config{Certificates: []tls.Certificate{*cert}}
		serve = func(l net.Listener) error { return s.ServeTLS(l, "", "") }
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = serve(l) // until it is closed
	}()
	n.closers = append(n.closers, func() { s.Close(); <-ended })
}

func (n *internet) stream(name string, port int, serve func(net.Conn)) {
	l := n.listen(name, port)
	var all sync.WaitGroup
	var open sync.Map
	all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			open.Store(c, nil)
			all.Go(func() { defer open.Delete(c); defer c.Close(); serve(c) })
		}
	})
	n.closers = append(n.closers, func() {
		l.Close()
		open.Range(func(c, _ any) bool { c.(net.Conn).Close(); return true })
		all.Wait()
	})
}

func (n *internet) datagrams(name string, port int, answers bool) {
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		n.Fatal(err)
	}
	n.servers["udp "+net.JoinHostPort(publicAddress(name), strconv.Itoa(port))] = c.LocalAddr().String()
	n.udp.Go(func() {
		b := make([]byte, maxDatagram)
		for {
			size, from, err := c.ReadFrom(b)
			if err != nil {
				return
			}
			if answers {
				c.WriteTo(b[:size], from)
			}
		}
	})
	n.closers = append(n.closers, func() { c.Close() })
}

func (n *internet) close() {
	close(n.closed) // what stalls on a hijacked connection hears of no server's end
	for _, c := range n.closers {
		c()
	}
	n.udp.Wait()
}

// ServeHTTP is all web servers.
func (n *internet) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	token := r.Header.Get("Authorization")
	if strings.Contains(token, "SANDBOX_SECRET_") {
		n.Errorf("a placeholder comes to %s", r.Host)
	}
	control := http.NewResponseController(w)
	switch r.URL.Path {
	case "/echo":
		control.EnableFullDuplex()
		w.Header().Set("Trailer", "X-Sent")
		w.Header().Set("X-Token", token)
		size, err := io.Copy(w, r.Body)
		if err != nil {
			panic(http.ErrAbortHandler) // else the answer would look whole
		}
		w.Header().Set("X-Sent", strconv.FormatInt(size, 10))
	case "/token":
		fmt.Fprintf(w, "your token is %q, and was asked for with %s", token, r.URL.RawQuery)
	case "/big":
		size, _ := strconv.Atoi(r.URL.Query().Get("n"))
		for block := bytes.Repeat([]byte("matchlock"), 1000); size > 0; size -= len(block) {
			if _, err := w.Write(block[:min(size, len(block))]); err != nil {
				return
			}
		}
	case "/events":
		w.Header().Set("Content-Type", "text/event-stream")
		for i := range 5 {
			fmt.Fprintf(w, "data: %d %s\n\n", i, token)
			control.Flush()
			wait(r.Context(), 5*time.Millisecond)
		}
	case "/socket":
		c, err := websocket.Accept(w, r, &websocket.AcceptOptions{InsecureSkipVerify: true})
		if err != nil {
			return
		}
		defer c.CloseNow()
		ctx, cancel := context.WithTimeout(context.Background(), visitTime) // the request's ends too early
		defer cancel()
		for {
			kind, text, err := c.Read(ctx)
			if err != nil {
				return
			}
			if bytes.Contains(text, []byte("SANDBOX_SECRET_")) {
				n.Errorf("a placeholder comes to %s", r.Host)
			}
			if c.Write(ctx, kind, text) != nil {
				return
			}
		}
	case "/stall":
		wait(r.Context(), visitTime)
	case "/cut":
		io.WriteString(w, "the beginning")
		control.Flush()
		panic(http.ErrAbortHandler)
	default:
		http.NotFound(w, r)
	}
}

func (n *internet) draw(most int) int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.rand.IntN(most)
}

// unreliableListener has a part of its connections go wrong.
type unreliableListener struct {
	net.Listener
	n *internet
}

func (l *unreliableListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil || l.n.draw(6) > 0 {
		return c, err
	}
	u := newUnreliable(c, 1<<l.n.draw(18))
	switch l.n.draw(4) {
	case 0:
		u.happen = func() { abort(c) }
	case 1:
		u.happen = func() { c.Close() }
	case 2:
		u.happen = func() { u.mute.Store(true) }
	case 3:
		u.happen = func() { u.stall(l.n.closed, 2*time.Second); abort(c) }
	}
	return u, nil
}

// unreliable is a connection to which something happens when so many bytes have
// passed.
type unreliable struct {
	net.Conn
	left   atomic.Int64
	happen func()
	once   sync.Once
	mute   atomic.Bool // it says and hears no more
	closed chan struct{}
	end    sync.Once
}

func newUnreliable(c net.Conn, after int64) *unreliable {
	u := &unreliable{Conn: c, closed: make(chan struct{})}
	u.left.Store(after)
	return u
}

func (u *unreliable) count(n int) {
	if u.left.Add(int64(-n)) < 0 {
		u.once.Do(u.happen)
	}
}

func (u *unreliable) Read(p []byte) (int, error) {
	for {
		n, err := u.Conn.Read(p)
		u.count(n)
		if err != nil || !u.mute.Load() {
			return n, err
		}
	}
}

func (u *unreliable) Write(p []byte) (int, error) {
	if u.mute.Load() {
		return len(p), nil
	}
	// In two parts, so that it happens in the middle.
	if left := u.left.Load(); left > 0 && left < int64(len(p)) {
		n, err := u.Conn.Write(p[:left])
		u.count(n + 1)
		if err != nil || u.mute.Load() {
			return n, err
		}
		m, err := u.Conn.Write(p[n:])
		return n + m, err
	}
	n, err := u.Conn.Write(p)
	u.count(n)
	return n, err
}

func (u *unreliable) CloseWrite() error { return closeWrite(u.Conn) }

func (u *unreliable) Close() error {
	u.end.Do(func() { close(u.closed) })
	return u.Conn.Close()
}

// stall neither reads nor writes for a while.
func (u *unreliable) stall(over <-chan struct{}, d time.Duration) {
	select {
	case <-over:
	case <-u.closed:
	case <-time.After(d):
	}
}

func pool(all ...*CA) *x509.CertPool {
	p := x509.NewCertPool()
	for _, ca := range all {
		p.AppendCertsFromPEM(ca.PEM())
	}
	return p
}
