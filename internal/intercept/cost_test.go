package intercept

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"net/netip"
	"runtime"
	"testing"
)

// TestIdle has 1,000 connections that wait, half of them terminated. They cost at
// most 100 MB more than without an Interceptor between.
func TestIdle(t *testing.T) {
	if testing.Short() {
		t.Skip("2,000 connections")
	}
	const each = 500
	w := newWorld(t, intercepted("web.test", "db.test"))
	to := w.web("web.test", 443, hello)
	db := netip.AddrPortFrom(w.name("db.test"), 5432)
	w.listen(w.public("db.test", 5432), echo)
	config := w.trust()
	config.ServerName = "web.test"
	// cost is what connections keep, in bytes.
	cost := func(web, db func() net.Conn) int64 {
		used := func() int64 {
			var m runtime.MemStats
			runtime.GC()
			runtime.GC()
			runtime.ReadMemStats(&m)
			return int64(m.HeapInuse + m.StackInuse)
		}
		before := used()
		var conns []net.Conn
		for range each {
			c, r := tls.Client(web(), config), db()
			conns = append(conns, c, r)
			if resp, _ := say(t, c, "GET / HTTP/1.1\r\nHost: web.test\r\n\r\n"); resp.StatusCode != 200 {
				t.Fatal(resp.Status)
			}
			r.Write([]byte("\x00"))
			if _, err := io.ReadFull(r, make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
		}
		grown := used() - before
		for _, c := range conns {
			c.Close()
		}
		return grown
	}
	dial := func(address string) func() net.Conn {
		return func() net.Conn {
			c, err := w.dial(t.Context(), "tcp", address)
			if err != nil {
				t.Fatal(err)
			}
			return c
		}
	}
	direct := cost(dial(w.public("web.test", 443)), dial(w.public("db.test", 5432)))
	flows := 0
	through := cost(func() net.Conn { return w.mustConnect(to) }, func() net.Conn {
		flows = w.i.Flows()
		return w.mustConnect(db)
	})
	if flows != 2*each-1 {
		t.Errorf("%d flows", flows)
	}
	t.Logf("%d connections: %d KiB, and %d KiB directly", 2*each, through>>10, direct>>10)
	if through-direct > 100e6 {
		t.Errorf("%d bytes more", through-direct)
	}
}

// benchWorld has a web server, and one that says all it can.
type benchWorld struct {
	*world
	web netip.AddrPort
	raw netip.AddrPort
}

func newBenchWorld(b *testing.B) *benchWorld {
	b.Helper()
	w := &benchWorld{world: newWorld(b, intercepted("web.test", "db.test"))}
	chunk := make([]byte, 256<<10)
	w.web = w.world.web("web.test", 443, func(rw http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/large" {
			for n := 0; n < 64<<20; n += len(chunk) {
				rw.Write(chunk)
			}
		}
	})
	w.raw = netip.AddrPortFrom(w.name("db.test"), 5432)
	w.listen(w.public("db.test", 5432), func(c net.Conn) {
		io.ReadFull(c, make([]byte, 1))
		for {
			if _, err := c.Write(chunk); err != nil {
				return
			}
		}
	})
	return w
}

// httpsClient goes through the Interceptor, or directly to the server.
func (w *benchWorld) httpsClient(direct bool, protocol func(*http.Protocols, bool)) *http.Client {
	c := w.client(protocol)
	if direct {
		c.Transport.(*http.Transport).DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return w.dial(ctx, "tcp", w.public("web.test", 443))
		}
	}
	return c
}

// BenchmarkRequest is a request on a kept connection, through the Interceptor and
// without it.
func BenchmarkRequest(b *testing.B) {
	for _, way := range []string{"direct", "through"} {
		b.Run(way, func(b *testing.B) {
			w := newBenchWorld(b)
			c := w.httpsClient(way == "direct", (*http.Protocols).SetHTTP1)
			for b.Loop() {
				resp, err := c.Get("https://web.test/small")
				if err != nil {
					b.Fatal(err)
				}
				io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
			}
		})
	}
}

// BenchmarkTransfer is 64 MiB in a response.
func BenchmarkTransfer(b *testing.B) {
	for name, protocol := range map[string]func(*http.Protocols, bool){"h1": (*http.Protocols).SetHTTP1, "h2": h2} {
		for _, way := range []string{"direct", "through"} {
			b.Run(name+" "+way, func(b *testing.B) {
				w := newBenchWorld(b)
				c := w.httpsClient(way == "direct", protocol)
				b.SetBytes(64 << 20)
				for b.Loop() {
					resp, err := c.Get("https://web.test/large")
					if err != nil {
						b.Fatal(err)
					}
					if n, err := io.Copy(io.Discard, resp.Body); n != 64<<20 {
						b.Fatal(n, err)
					}
					resp.Body.Close()
				}
			})
		}
	}
}

// BenchmarkRaw is 64 MiB of a flow that is not looked into.
func BenchmarkRaw(b *testing.B) {
	w := newBenchWorld(b)
	c, err := w.connect(w.raw)
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	b.SetBytes(64 << 20)
	c.Write([]byte("\x00"))
	buffer := make([]byte, 256<<10)
	for b.Loop() {
		for n := 0; n < 64<<20; {
			m, err := c.Read(buffer)
			if err != nil {
				b.Fatal(err)
			}
			n += m
		}
	}
}
