package intercept

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"

	"github.com/matchlock/matchlock/api"
)

func hello(w http.ResponseWriter, r *http.Request) {
	fmt.Fprintf(w, "%s %s %s %s", r.Method, r.Host, r.RequestURI, r.Proto)
}

func TestRaw(t *testing.T) {
	w := newWorld(t, allow("db.test:5432"))
	addr := netip.AddrPortFrom(w.name("db.test"), 5432)
	w.listen(w.public("db.test", 5432), func(c net.Conn) {
		io.WriteString(c, "welcome\n") // first
		b, _ := io.ReadAll(c)          // until the guest has ended its half
		fmt.Fprintf(c, "got %d", len(b))
	})
	c := w.mustConnect(addr)
	r := bufio.NewReader(c)
	if line, err := r.ReadString('\n'); line != "welcome\n" {
		t.Fatal(line, err)
	}
	c.Write(make([]byte, 1<<20))
	c.(*net.TCPConn).CloseWrite()
	if b, err := io.ReadAll(r); string(b) != "got 1048576" {
		t.Fatal(string(b), err)
	}
	e := w.waitEvent(kindIs(api.EventFlow, api.Allowed))
	if e.Name != "db.test" || e.Sent != 1<<20 || e.Received != int64(len("welcome\ngot 1048576")) || e.Inspected || e.Rule == "" || e.Address != "93.184.0.1" {
		t.Errorf("%+v", e)
	}
}

func TestSplice(t *testing.T) {
	w := newWorld(t, allow("web.test"))
	w.web("web.test", 443, hello)
	c := w.client(h2)
	if _, body, _ := get(t, c, "https://web.test/x"); body != "GET web.test /x HTTP/2.0" {
		t.Error(body)
	}
	resp, err := c.Get("https://web.test/")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if got := resp.TLS.PeerCertificates[0].Issuer.CommonName; got != w.roots.cert.Subject.CommonName {
		t.Errorf("the guest sees a certificate of %s", got)
	}
	c.CloseIdleConnections()
	if e := w.waitEvent(kindIs(api.EventFlow, api.Allowed)); e.Protocol != "tls" || e.Inspected {
		t.Errorf("%+v", e)
	}
}

func intercepted(rules ...string) api.Config {
	c := allow(rules...)
	c.Network.Intercept = true
	return c
}

func TestTerminated(t *testing.T) {
	for _, version := range []struct {
		proto  string
		client []func(*http.Protocols, bool)
	}{{"HTTP/1.1", nil}, {"HTTP/2.0", []func(*http.Protocols, bool){h2}}} {
		t.Run(version.proto, func(t *testing.T) {
			w := newWorld(t, intercepted("web.test"))
			w.web("web.test", 443, hello)
			c := w.client(version.client...)
			for range 3 {
				if status, body, _ := get(t, c, "https://web.test/a%7Cb?q=%zz"); status != 200 || body != "GET web.test /a%7Cb?q=%zz "+version.proto {
					t.Error(status, body)
				}
			}
			resp, err := c.Get("https://web.test/")
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if got := resp.TLS.PeerCertificates[0].Issuer.CommonName; got != w.i.CA.cert.Subject.CommonName {
				t.Errorf("the guest sees a certificate of %s", got)
			}
			if e := w.waitEvent(kindIs(api.EventRequest, api.Allowed)); e.Path != "/a%7Cb" || e.Status != 200 || e.Protocol != "https" || !e.Inspected || e.Name != "web.test" {
				t.Errorf("%+v", e)
			}
			c.CloseIdleConnections()
			if e := w.waitEvent(kindIs(api.EventFlow, api.Allowed)); !e.Inspected {
				t.Errorf("%+v", e)
			}
			if len(w.dialed) != 1 {
				t.Errorf("dialled %q: the first connection was not used", w.dialed)
			}
		})
	}
}

func TestPlainHTTP(t *testing.T) {
	w := newWorld(t, allow("web.test"))
	w.web("web.test", 80, hello)
	if status, body, _ := get(t, w.client(), "http://web.test/x"); status != 200 || body != "GET web.test /x HTTP/1.1" {
		t.Error(status, body)
	}
	if status, body, _ := get(t, w.client(h2c), "http://web.test/x"); status != 200 || body != "GET web.test /x HTTP/2.0" {
		t.Error(status, body)
	}
}

func TestRefused(t *testing.T) {
	w := newWorld(t, allow("web.test"))
	other := netip.AddrPortFrom(w.name("other.test"), 443)
	if _, err := w.connect(other); err == nil {
		t.Fatal("connected")
	}
	e := w.waitEvent(kindIs(api.EventFlow, api.Denied))
	if e.Name != "other.test" || e.Hint != "--allow-host other.test:443" {
		t.Errorf("%+v", e)
	}
	down := netip.AddrPortFrom(w.name("web.test"), 443)
	if _, err := w.connect(down); err == nil {
		t.Fatal("connected")
	}
	w.waitEvent(kindIs(api.EventFlow, api.Failed))
}

func TestServerName(t *testing.T) {
	w := newWorld(t, allow("web.test"))
	to := w.web("web.test", 443, hello)
	for _, name := range []string{"", "evil.test"} {
		c := w.mustConnect(to)
		config := w.trust()
		config.ServerName, config.InsecureSkipVerify = name, true
		if err := tls.Client(c, config).Handshake(); err == nil || !strings.Contains(err.Error(), "unrecognized name") {
			t.Errorf("%q: %v", name, err)
		}
		w.waitEvent(kindIs(api.EventFlow, api.Denied))
	}
}
