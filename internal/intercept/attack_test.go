package intercept

import (
	"crypto/tls"
	"io"
	"net/http"
	"net/netip"
	"strings"
	"testing"

	"github.com/matchlock/matchlock/api"
)

// TestAttack has what others were broken by, one line each. The server under attack
// is reachable by right; what must not come to pass is that it, or another, gets a
// request or a byte that it should not.
func TestAttack(t *testing.T) {
	for name, attack := range map[string]func(t *testing.T, w *world, to netip.AddrPort){
		// Domain fronting: Host is not SNI.
		"fronting within terminated TLS, h1": func(t *testing.T, w *world, _ netip.AddrPort) {
			front(t, w, (*http.Protocols).SetHTTP1, http.StatusForbidden)
		},
		"fronting within terminated TLS, h2": func(t *testing.T, w *world, _ netip.AddrPort) {
			front(t, w, h2, http.StatusMisdirectedRequest)
		},
		"fronting in clear": func(t *testing.T, w *world, to netip.AddrPort) {
			refuses(t, w, to, 80, "GET /bad HTTP/1.1\r\nHost: evil.test\r\n\r\n", 403)
		},
		"fronting in clear on another port": func(t *testing.T, w *world, to netip.AddrPort) {
			refuses(t, w, to, 8080, "GET /bad HTTP/1.1\r\nHost: evil.test\r\n\r\n", 403)
		},
		"fronting by absolute form": func(t *testing.T, w *world, to netip.AddrPort) {
			refuses(t, w, to, 80, "GET http://evil.test/bad HTTP/1.1\r\nHost: web.test\r\n\r\n", 403)
		},
		"fronting on the second request": func(t *testing.T, w *world, to netip.AddrPort) {
			refuses(t, w, to, 80, "GET /good HTTP/1.1\r\nHost: web.test\r\n\r\nGET /bad HTTP/1.1\r\nHost: evil.test\r\n\r\n", 200)
		},
		"two hosts": func(t *testing.T, w *world, to netip.AddrPort) {
			refuses(t, w, to, 80, "GET /bad HTTP/1.1\r\nHost: web.test\r\nHost: evil.test\r\n\r\n", 400)
		},

		// Missing and odd server names.
		"no server name":      func(t *testing.T, w *world, to netip.AddrPort) { serverName(t, w, to, "") },
		"another server name": func(t *testing.T, w *world, to netip.AddrPort) { serverName(t, w, to, "evil.test") },
		"an address as name":  func(t *testing.T, w *world, to netip.AddrPort) { serverName(t, w, to, "192.0.2.1") },
		"a name above":        func(t *testing.T, w *world, to netip.AddrPort) { serverName(t, w, to, "a.web.test") },

		// The server name lies past the first 1024 bytes, and past the first segment.
		"another name in a large hello": func(t *testing.T, w *world, to netip.AddrPort) {
			c := w.mustConnect(to)
			c.Write(split(withExtension(captured(t, &tls.Config{ServerName: "evil.test"}), 21, make([]byte, 9000)), 700))
			if b, _ := io.ReadAll(c); len(b) > 7 {
				t.Errorf("% x", b)
			}
		},
		"ECH with another outer name": func(t *testing.T, w *world, to netip.AddrPort) {
			c := w.mustConnect(to)
			c.Write(withExtension(captured(t, &tls.Config{ServerName: "cloudflare-ech.com"}), 0xfe0d, make([]byte, 200)))
			if b, _ := io.ReadAll(c); len(b) > 7 {
				t.Errorf("% x", b)
			}
		},

		// Addresses in the place of names, and names that lead inside.
		"an address that no rule allows": func(t *testing.T, w *world, _ netip.AddrPort) {
			unreachable(t, w, "93.184.0.1:443")
		},
		"a private address":        func(t *testing.T, w *world, _ netip.AddrPort) { unreachable(t, w, "10.0.0.1:443") },
		"the host's loopback":      func(t *testing.T, w *world, _ netip.AddrPort) { unreachable(t, w, "127.0.0.1:22") },
		"the gateway's other port": func(t *testing.T, w *world, _ netip.AddrPort) { unreachable(t, w, gateway.String()+":22") },
		"an address of no name":    func(t *testing.T, w *world, _ netip.AddrPort) { unreachable(t, w, "198.18.77.77:443") },
		"a name that is at the metadata service": func(t *testing.T, w *world, _ netip.AddrPort) {
			unreachable(t, w, netip.AddrPortFrom(w.name("m.web.test", "169.254.169.254"), 80).String())
		},
		"a name that is at a mapped private address": func(t *testing.T, w *world, _ netip.AddrPort) {
			unreachable(t, w, netip.AddrPortFrom(w.name("m.web.test", "::ffff:10.0.0.1", "64:ff9b::a00:1"), 80).String())
		},
		"a name that was rebound": func(t *testing.T, w *world, to netip.AddrPort) {
			w.mu.Lock()
			w.hosts["web.test"] = []netip.Addr{netip.MustParseAddr("127.0.0.1")}
			w.mu.Unlock()
			unreachable(t, w, to.String())
		},

		// Relays.
		"CONNECT": func(t *testing.T, w *world, to netip.AddrPort) {
			refuses(t, w, to, 80, "CONNECT evil.test:443 HTTP/1.1\r\nHost: evil.test:443\r\n\r\n", 400)
		},
		"CONNECT to itself": func(t *testing.T, w *world, to netip.AddrPort) {
			refuses(t, w, to, 80, "CONNECT web.test:80 HTTP/1.1\r\nHost: web.test\r\n\r\n", 400)
		},
		"CONNECT in h2": func(t *testing.T, w *world, _ netip.AddrPort) {
			r, _ := http.NewRequest("CONNECT", "https://web.test/", strings.NewReader("x"))
			resp, err := w.client(h2).Do(r)
			if err == nil {
				resp.Body.Close()
				if resp.StatusCode < 400 {
					t.Error(resp.Status)
				}
			}
		},
		"an upgrade to h2c": func(t *testing.T, w *world, to netip.AddrPort) {
			resp, _ := say(t, w.mustConnect(netip.AddrPortFrom(to.Addr(), 80)), "GET /good HTTP/1.1\r\nHost: web.test\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n")
			if resp.StatusCode != 200 {
				t.Error(resp.Status)
			}
		},

		// Ways past the interception.
		"QUIC": func(t *testing.T, w *world, to netip.AddrPort) {
			if _, err := w.connectBy(to, true); err == nil {
				t.Error("connected")
			}
		},
		"HTTP on port 443": func(t *testing.T, w *world, to netip.AddrPort) {
			silent(t, w, to, "GET /bad HTTP/1.1\r\nHost: web.test\r\n\r\n")
		},
		"no HTTP on port 80": func(t *testing.T, w *world, to netip.AddrPort) {
			silent(t, w, netip.AddrPortFrom(to.Addr(), 80), "\x00GET /bad\r\nHost: web.test\r\n\r\n")
		},
		"HTTP/1 where h2 was agreed on": func(t *testing.T, w *world, to netip.AddrPort) {
			config := w.trust()
			config.ServerName, config.NextProtos = "web.test", []string{"h2"}
			c := tls.Client(w.mustConnect(to), config)
			io.WriteString(c, "GET /bad HTTP/1.1\r\nHost: evil.test\r\n\r\n")
			io.ReadAll(c)
		},
		"h2 where HTTP/1 was agreed on": func(t *testing.T, w *world, to netip.AddrPort) {
			config := w.trust()
			config.ServerName, config.NextProtos = "web.test", []string{"http/1.1"}
			c := tls.Client(w.mustConnect(to), config)
			io.WriteString(c, http2Preface)
			if b, _ := io.ReadAll(c); !strings.HasPrefix(string(b), "HTTP/1.1 400 ") {
				t.Errorf("%q", b)
			}
		},
		"a blank before the method": func(t *testing.T, w *world, to netip.AddrPort) {
			refuses(t, w, to, 8080, " GET /bad HTTP/1.1\r\nHost: evil.test\r\n\r\n", 400)
		},
		"HTTP/0.9": func(t *testing.T, w *world, to netip.AddrPort) {
			refuses(t, w, to, 8080, "GET /bad\r\n\r\n", 400)
		},
		"a certificate of a name that is refused": func(t *testing.T, w *world, to netip.AddrPort) {
			serverName(t, w, to, "evil.test")
			w.i.CA.mu.Lock()
			defer w.i.CA.mu.Unlock()
			if w.i.CA.leaves["evil.test"] != nil {
				t.Error("minted")
			}
		},
	} {
		// Whether TLS is looked into makes a difference only to what is within it.
		for what, rules := range map[string]func(...string) api.Config{"intercepted": intercepted, "spliced": allow} {
			if what == "spliced" && within[name] {
				continue
			}
			t.Run(name+", "+what, func(t *testing.T) {
				w := newWorld(t, rules("web.test", "*.web.test", "other.test"))
				handler := func(rw http.ResponseWriter, r *http.Request) {
					if r.URL.Path == "/bad" || !strings.HasPrefix(r.Host, "web.test") {
						t.Errorf("the server got %s %s of %s", r.Method, r.RequestURI, r.Host)
					}
				}
				to := w.web("web.test", 443, handler, func(s *http.Server) { s.ErrorLog = quiet })
				for _, port := range []uint16{80, 8080} {
					w.webAt(w.public("web.test", port), "web.test", false, handler)
				}
				attack(t, w, to)
			})
		}
	}
	for name, in := range smuggled {
		t.Run("smuggling: "+name, func(t *testing.T) {
			w := newWorld(t, allow("a.test"))
			to := w.web("a.test", 80, func(rw http.ResponseWriter, r *http.Request) {
				if r.URL.Path != "/first" {
					if b, err := io.ReadAll(r.Body); err == nil && (name != "behind an upgrade" || len(b) > 0) {
						t.Errorf("the server got %s %s %q", r.Method, r.RequestURI, b)
					}
				}
			})
			in := strings.ReplaceAll(in, "Host: a\r\n", "Host: a.test\r\n")
			c := w.mustConnect(to)
			go io.WriteString(c, "GET /first HTTP/1.1\r\nHost: a.test\r\n\r\n"+in+"GET /smuggled HTTP/1.1\r\nHost: a.test\r\n\r\n")
			b, _ := io.ReadAll(c)
			if !strings.HasPrefix(string(b), "HTTP/1.1 200 ") || strings.Count(string(b), "HTTP/1.1 ") > 3 {
				t.Errorf("%q", b)
			}
		})
	}
}

// within are the attacks that need TLS to be ended here.
var within = map[string]bool{
	"fronting within terminated TLS, h1": true,
	"fronting within terminated TLS, h2": true,
	"CONNECT in h2":                      true,
	"h2 where HTTP/1 was agreed on":      true,
}

func front(t *testing.T, w *world, protocol func(*http.Protocols, bool), status int) {
	t.Helper()
	c := w.client(protocol)
	for _, host := range []string{"evil.test", "other.test", "web.test:8443", "web.test.evil.test"} {
		r, _ := http.NewRequest("GET", "https://web.test/bad", nil)
		r.Host = host
		resp, err := c.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != status {
			t.Errorf("%s: %s", host, resp.Status)
		}
	}
}

// refuses sends a request, whose first answer must be this.
func refuses(t *testing.T, w *world, to netip.AddrPort, port uint16, request string, status int) {
	t.Helper()
	if resp, body := say(t, w.mustConnect(netip.AddrPortFrom(to.Addr(), port)), request); resp.StatusCode != status {
		t.Errorf("%s %s", resp.Status, body)
	}
	w.waitEvent(kindIs(api.EventRequest, api.Denied))
}

func serverName(t *testing.T, w *world, to netip.AddrPort, name string) {
	t.Helper()
	if err := tls.Client(w.mustConnect(to), &tls.Config{ServerName: name, InsecureSkipVerify: true}).Handshake(); err == nil {
		t.Error("shaken hands")
	}
	w.waitEvent(kindIs(api.EventFlow, api.Denied))
}

func unreachable(t *testing.T, w *world, to string) {
	t.Helper()
	if _, err := w.connect(netip.MustParseAddrPort(to)); err == nil {
		t.Error("connected")
	}
	if e := w.waitEvent(kindIs(api.EventFlow, api.Denied)); e.Reason == "" {
		t.Errorf("%+v", e)
	}
	if len(w.dialed) > 0 {
		t.Errorf("dialled %q", w.dialed)
	}
}

// silent sends what must have no answer.
func silent(t *testing.T, w *world, to netip.AddrPort, text string) {
	t.Helper()
	c := w.mustConnect(to)
	io.WriteString(c, text)
	if b, _ := io.ReadAll(c); len(b) > 0 {
		t.Errorf("%q", b)
	}
	w.waitEvent(kindIs(api.EventFlow, api.Denied))
}
