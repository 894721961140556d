package intercept

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/netip"
	"net/textproto"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/matchlock/matchlock/api"
)

// ways are how a guest may speak HTTP with a server.
var ways = []struct {
	name     string
	scheme   string
	port     uint16
	protocol func(*http.Protocols, bool)
	major    int
}{
	{"h1", "http", 80, (*http.Protocols).SetHTTP1, 1},
	{"h2c", "http", 80, h2c, 2},
	{"TLS h1", "https", 443, (*http.Protocols).SetHTTP1, 1},
	{"TLS h2", "https", 443, h2, 2},
}

// everyWay runs a test with a guest's client and a server, by each of the ways. The
// URL has no path.
func everyWay(t *testing.T, handler http.HandlerFunc, test func(t *testing.T, w *world, c *http.Client, url string)) {
	for _, way := range ways {
		t.Run(way.name, func(t *testing.T) {
			w := newWorld(t, intercepted("web.test"))
			w.web("web.test", way.port, func(rw http.ResponseWriter, r *http.Request) {
				if r.ProtoMajor != way.major {
					t.Errorf("the server is asked by %s", r.Proto)
				}
				handler(rw, r)
			})
			test(t, w, w.client(way.protocol), way.scheme+"://web.test")
		})
	}
}

func TestRequestsUnchanged(t *testing.T) {
	var got *http.Request
	everyWay(t, func(w http.ResponseWriter, r *http.Request) {
		got = r
		h := w.Header()
		h["Date"], h["Content-Type"] = nil, nil
		h.Add("Set-Cookie", "a=b")
		h.Add("Set-Cookie", "c=d")
		w.WriteHeader(299)
	}, func(t *testing.T, w *world, c *http.Client, url string) {
		r, _ := http.NewRequest("PROPFIND", url+"/a%2Fb//c;d?x=%zz&y", nil)
		r.Header = http.Header{"User-Agent": {""}, "X-A": {"1", "2"}, "Cookie": {"a=b; c=d"}, "Forwarded": {"for=1.2.3.4"}, "X-Forwarded-For": {"1.2.3.4"}, "Via": {"x"}}
		resp, err := c.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		want := r.Header.Clone()
		delete(want, "User-Agent")
		if diff := cmp.Diff(want, got.Header); diff != "" {
			t.Errorf("headers: %s", diff)
		}
		if got.RequestURI != "/a%2Fb//c;d?x=%zz&y" || got.Method != "PROPFIND" || got.Host != "web.test" {
			t.Errorf("%s %s %s", got.Method, got.RequestURI, got.Host)
		}
		wantBack := http.Header{"Set-Cookie": {"a=b", "c=d"}, "Content-Length": {"0"}}
		if diff := cmp.Diff(wantBack, resp.Header); diff != "" || resp.StatusCode != 299 {
			t.Errorf("%d: %s", resp.StatusCode, diff)
		}
	})
}

// TestRequestLine sends paths that package url would write in another way.
func TestRequestLine(t *testing.T) {
	w := newWorld(t, allow("web.test"))
	to := w.web("web.test", 80, hello)
	for _, target := range []string{"/a|b", "/ü", "//evil.test/x", "/%41", "/?", "/a\"<>^`{}", "/..//./x", "/a:b@c"} {
		if _, body := say(t, w.mustConnect(to), "GET "+target+" HTTP/1.1\r\nHost: web.test\r\nConnection: close\r\n\r\n"); body != "GET web.test "+target+" HTTP/1.1" {
			t.Errorf("%q: %q", target, body)
		}
	}
	if _, body := say(t, w.mustConnect(to), "OPTIONS * HTTP/1.1\r\nHost: WEB.test.\r\nConnection: close\r\n\r\n"); body != "OPTIONS web.test * HTTP/1.1" {
		t.Error(body)
	}
	if _, body := say(t, w.mustConnect(to), "GET http://web.test/x?y HTTP/1.1\r\nHost: web.test\r\nConnection: close\r\n\r\n"); body != "GET web.test /x?y HTTP/1.1" {
		t.Error(body)
	}
	if _, body := say(t, w.mustConnect(to), "GET / HTTP/1.0\r\nHost: web.test:80\r\n\r\n"); body != "GET web.test:80 / HTTP/1.1" {
		t.Error(body)
	}
}

func TestPipelining(t *testing.T) {
	w := newWorld(t, allow("web.test"))
	c := w.mustConnect(w.web("web.test", 80, hello))
	var requests string
	for i := range 20 {
		requests += fmt.Sprintf("POST /%d HTTP/1.1\r\nHost: web.test\r\nContent-Length: 3\r\n\r\nabc", i)
	}
	io.WriteString(c, requests)
	r := bufio.NewReader(c)
	for i := range 20 {
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			t.Fatal(err)
		}
		if b, _ := io.ReadAll(resp.Body); string(b) != fmt.Sprintf("POST web.test /%d HTTP/1.1", i) {
			t.Errorf("%d: %q", i, b)
		}
	}
}

func TestTrailers(t *testing.T) {
	everyWay(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Trailer", "X-Sum")
		b, _ := io.ReadAll(r.Body)
		io.WriteString(w, "answer")
		w.Header().Set("X-Sum", r.Trailer.Get("X-Asked")+string(b))
		w.Header().Set(http.TrailerPrefix+"X-Late", "late")
	}, func(t *testing.T, w *world, c *http.Client, url string) {
		r, _ := http.NewRequest("POST", url, io.MultiReader(strings.NewReader("body")))
		r.Trailer = http.Header{"X-Asked": {"trailer of:"}}
		resp, err := c.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if b, err := io.ReadAll(resp.Body); string(b) != "answer" || err != nil {
			t.Fatal(string(b), err)
		}
		if want := (http.Header{"X-Sum": {"trailer of:body"}, "X-Late": {"late"}}); !cmp.Equal(want, resp.Trailer) {
			t.Error(resp.Trailer)
		}
	})
}

// TestStreams talks both ways at the same time, as gRPC does, with trailers that
// say how it has ended.
func TestStreams(t *testing.T) {
	everyWay(t, func(w http.ResponseWriter, r *http.Request) {
		control := http.NewResponseController(w)
		control.EnableFullDuplex()
		w.Header().Set("Content-Type", "application/grpc")
		w.Header().Set("Trailer", "Grpc-Status")
		control.Flush()
		lines := bufio.NewScanner(r.Body)
		for lines.Scan() {
			fmt.Fprintf(w, "echo %s\n", lines.Text())
			control.Flush()
		}
		w.Header().Set("Grpc-Status", "7")
	}, func(t *testing.T, w *world, c *http.Client, url string) {
		body, say := io.Pipe()
		r, _ := http.NewRequest("POST", url+"/service/Method", body)
		r.Header.Set("Te", "trailers")
		resp, err := c.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		lines := bufio.NewReader(resp.Body)
		for i := range 10 {
			fmt.Fprintf(say, "%d\n", i)
			if line, err := lines.ReadString('\n'); line != fmt.Sprintf("echo %d\n", i) {
				t.Fatal(line, err)
			}
		}
		say.Close()
		if rest, err := io.ReadAll(lines); len(rest) > 0 || err != nil {
			t.Fatal(string(rest), err)
		}
		if got := resp.Trailer.Get("Grpc-Status"); got != "7" {
			t.Errorf("trailer %q", got)
		}
	})
}

// TestTrailersOnly is how gRPC says no.
func TestTrailersOnly(t *testing.T) {
	everyWay(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Grpc-Status", "12")
		w.Header().Set("Content-Type", "application/grpc")
	}, func(t *testing.T, w *world, c *http.Client, url string) {
		if _, body, h := get(t, c, url); body != "" || h.Get("Grpc-Status") != "12" {
			t.Error(body, h)
		}
	})
}

func TestContinue(t *testing.T) {
	everyWay(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/no" {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		// net/http answers it itself where HTTP/2 comes in, so the server is not asked.
		if r.ProtoMajor == 1 && r.Header.Get("Expect") != "100-continue" {
			t.Error("not asked")
		}
		b, _ := io.ReadAll(r.Body)
		w.Write(b)
	}, func(t *testing.T, w *world, c *http.Client, url string) {
		for _, path := range []string{"/yes", "/no"} {
			continued := false
			r, _ := http.NewRequest("POST", url+path, strings.NewReader("body"))
			r.Header.Set("Expect", "100-continue")
			r = r.WithContext(httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{Got100Continue: func() { continued = true }}))
			resp, err := c.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			b, _ := io.ReadAll(resp.Body)
			resp.Body.Close()
			if path == "/yes" && (string(b) != "body" || !continued) || path == "/no" && (resp.StatusCode != 403 || continued && resp.ProtoMajor == 1) {
				t.Errorf("%s: %d %q, continued: %v", path, resp.StatusCode, b, continued)
			}
		}
	})
}

func TestEarlyHints(t *testing.T) {
	everyWay(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Link", "</a>; rel=preload")
		w.WriteHeader(http.StatusEarlyHints)
		w.Header().Del("Link")
		io.WriteString(w, "page")
	}, func(t *testing.T, w *world, c *http.Client, url string) {
		var hints []string
		r, _ := http.NewRequest("GET", url, nil)
		r = r.WithContext(httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
			hints = append(hints, fmt.Sprint(code, h["Link"]))
			return nil
		}}))
		resp, err := c.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if !slices.Equal(hints, []string{"103 [</a>; rel=preload]"}) || string(b) != "page" || resp.Header.Get("Link") != "" {
			t.Error(hints, string(b), resp.Header)
		}
	})
}

// TestEvents has each event before the next is sent.
func TestEvents(t *testing.T) {
	next := make(chan struct{})
	everyWay(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		http.NewResponseController(w).Flush()
		for i := range 5 {
			<-next
			fmt.Fprintf(w, "data: %d\n\n", i)
			http.NewResponseController(w).Flush()
		}
	}, func(t *testing.T, w *world, c *http.Client, url string) {
		resp, err := c.Get(url)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		r := bufio.NewReader(resp.Body)
		for i := range 5 {
			next <- struct{}{}
			if line, err := r.ReadString('\n'); line != fmt.Sprintf("data: %d\n", i) {
				t.Fatal(line, err)
			}
			r.ReadString('\n')
		}
	})
}

func TestLargeBodies(t *testing.T) {
	everyWay(t, func(w http.ResponseWriter, r *http.Request) {
		sum := sha256.New()
		b, err := io.ReadAll(io.TeeReader(r.Body, sum))
		if err != nil {
			t.Error(err)
		}
		w.Header().Set("X-Sum", fmt.Sprintf("%x", sum.Sum(nil)))
		w.Write(b)
	}, func(t *testing.T, w *world, c *http.Client, url string) {
		data := make([]byte, 5<<20)
		rand.NewChaCha8([32]byte{}).Read(data)
		for _, body := range []io.Reader{bytes.NewReader(data), io.MultiReader(bytes.NewReader(data))} {
			resp, err := c.Post(url, "application/octet-stream", body)
			if err != nil {
				t.Fatal(err)
			}
			b, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			if !bytes.Equal(b, data) || resp.Header.Get("X-Sum") != fmt.Sprintf("%x", sha256.Sum256(data)) {
				t.Errorf("%d bytes came back, %v", len(b), err)
			}
		}
		e := w.waitEvent(kindIs(api.EventRequest, api.Allowed))
		if e.Sent != 5<<20 || e.Received != 5<<20 || e.Method != "POST" {
			t.Errorf("%+v", e)
		}
	})
}

func TestNoBodies(t *testing.T) {
	everyWay(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Etag", `"x"`)
		switch r.URL.Path {
		case "/head":
			w.Header().Set("Content-Length", "1234")
		case "/304":
			w.WriteHeader(304)
		case "/204":
			w.WriteHeader(204)
		}
	}, func(t *testing.T, w *world, c *http.Client, url string) {
		resp, err := c.Head(url + "/head")
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.ContentLength != 1234 || resp.Header.Get("Etag") != `"x"` {
			t.Error(resp.ContentLength, resp.Header)
		}
		for path, status := range map[string]int{"/304": 304, "/204": 204} {
			if got, body, h := get(t, c, url+path); got != status || body != "" || h.Get("Etag") != `"x"` {
				t.Error(path, got, body, h)
			}
		}
	})
}

// TestCutResponse has a server fail in the middle: the guest must not take what it
// has for whole.
func TestCutResponse(t *testing.T) {
	everyWay(t, func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, "half")
		http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	}, func(t *testing.T, w *world, c *http.Client, url string) {
		resp, err := c.Get(url)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if b, err := io.ReadAll(resp.Body); err == nil {
			t.Errorf("%q, and no error", b)
		}
		w.waitEvent(kindIs(api.EventRequest, api.Failed))
	})
}

// TestGuestGone has a guest leave in the middle: the server learns of it.
func TestGuestGone(t *testing.T) {
	gone := make(chan struct{})
	everyWay(t, func(w http.ResponseWriter, r *http.Request) {
		http.NewResponseController(w).Flush()
		<-r.Context().Done()
		gone <- struct{}{}
	}, func(t *testing.T, w *world, c *http.Client, url string) {
		w.i.endTime = 10 * time.Millisecond
		ctx, cancel := context.WithCancel(t.Context())
		r, _ := http.NewRequestWithContext(ctx, "GET", url, nil)
		resp, err := c.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		cancel()
		resp.Body.Close()
		<-gone
	})
}

// TestHalfClose has a guest say all it wants to, and wait.
func TestHalfClose(t *testing.T) {
	w := newWorld(t, allow("web.test"))
	to := w.web("web.test", 80, func(rw http.ResponseWriter, r *http.Request) {
		select {
		case <-r.Context().Done():
			t.Error("the guest is thought to have gone")
		case <-time.After(50 * time.Millisecond):
		}
		hello(rw, r)
	})
	c := w.mustConnect(to)
	io.WriteString(c, "GET /1 HTTP/1.1\r\nHost: web.test\r\n\r\nGET /2 HTTP/1.0\r\nHost: web.test\r\n\r\n")
	c.(*net.TCPConn).CloseWrite()
	if b, err := io.ReadAll(c); !strings.Contains(string(b), "GET web.test /1 HTTP/1.1") || !strings.Contains(string(b), "GET web.test /2 HTTP/1.1") || err != nil {
		t.Errorf("%q, %v", b, err)
	}
}

func TestHost(t *testing.T) {
	w := newWorld(t, intercepted("web.test", "*.shared.test"))
	plain := w.web("web.test", 80, hello)
	for host, status := range map[string]int{
		"web.test": 200, "WEB.TEST": 200, "web.test.": 200, "web.test:80": 200,
		"evil.test": 403, "web.test:443": 403, "web.test:0": 400, "web.test:x": 400, "": 400, "xweb.test": 403,
		"198.18.0.1": 403, "[::1]": 403, "[::1": 400, "web.test@evil.test": 400, "a.web.test": 403, "web.test%00": 400,
	} {
		resp, body := say(t, w.mustConnect(plain), "GET / HTTP/1.1\r\nHost: "+host+"\r\nConnection: close\r\n\r\n")
		if resp.StatusCode != status {
			t.Errorf("%q: %d %s", host, resp.StatusCode, body)
		}
		if status == 403 && host == "evil.test" && !strings.Contains(body, "--allow-host evil.test") {
			t.Errorf("the way out is missing: %q", body)
		}
	}
	e := w.waitEvent(func(e api.Event) bool { return e.Kind == api.EventRequest && e.Status == 403 })
	if e.Verdict != api.Denied || e.Reason == "" {
		t.Errorf("%+v", e)
	}

	w.webAt("93.184.0.1:443", "web.test", true, hello)
	for _, way := range []struct {
		protocol func(*http.Protocols, bool)
		status   int
	}{{(*http.Protocols).SetHTTP1, 403}, {h2, 421}} {
		c := w.client(way.protocol)
		for range 2 { // the first good one proves nothing for the next
			if status, _, _ := get(t, c, "https://web.test/"); status != 200 {
				t.Error(status)
			}
			r, _ := http.NewRequest("GET", "https://web.test/secret", nil)
			r.Host = "other.shared.test"
			resp, err := c.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if resp.StatusCode != way.status {
				t.Errorf("fronting: %d", resp.StatusCode)
			}
		}
	}
}

func TestUntrustedServer(t *testing.T) {
	w := newWorld(t, intercepted("web.test", "down.test"))
	w.name("web.test")
	w.webAt(w.public("web.test", 443), "other.test", true, hello, func(s *http.Server) { s.ErrorLog = quiet })
	status, body, _ := get(t, w.client(h2), "https://web.test/")
	if status != 502 || !strings.Contains(body, "certificate is valid for other.test, not web.test") {
		t.Error(status, body)
	}
	w.waitEvent(kindIs(api.EventRequest, api.Failed))
	addr := w.name("down.test")
	w.listen(w.public("down.test", 443), func(c net.Conn) { io.Copy(io.Discard, io.LimitReader(c, 100)) })
	if status, body, _ := get(t, w.client(), "https://down.test/"); status != 502 {
		t.Error(addr, status, body)
	}
}

func TestUpgrade(t *testing.T) {
	w := newWorld(t, allow("web.test"))
	to := w.web("web.test", 80, func(rw http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(rw, "%q %q %q", r.Header["Upgrade"], r.Header["Connection"], r.Header["Http2-Settings"])
	})
	_, body := say(t, w.mustConnect(to), "GET / HTTP/1.1\r\nHost: web.test\r\nConnection: Upgrade, HTTP2-Settings, close\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n")
	if body != "[] [] []" {
		t.Error(body)
	}
	// A 101 that was not asked for.
	w.listen("93.184.0.1:8080", func(c net.Conn) {
		http.ReadRequest(bufio.NewReader(c))
		io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\nraw")
		io.Copy(io.Discard, c)
	})
	c := w.mustConnect(netip.AddrPortFrom(to.Addr(), 8080))
	io.WriteString(c, "GET / HTTP/1.1\r\nHost: web.test:8080\r\n\r\n")
	if b, err := io.ReadAll(c); strings.Contains(string(b), "raw") || strings.Contains(string(b), "101") {
		t.Errorf("%q, %v", b, err)
	}
	w.waitEvent(kindIs(api.EventFlow, api.Failed))
}

func TestHTTPOnAnyPort(t *testing.T) {
	w := newWorld(t, allow("web.test"))
	to := w.web("web.test", 8080, hello)
	if resp, _ := say(t, w.mustConnect(to), "\r\nGET / HTTP/1.1\r\nHost: evil.test\r\n\r\n"); resp.StatusCode != 403 {
		t.Error(resp.Status)
	}
	if resp, _ := say(t, w.mustConnect(to), "BREW / HTTP/1.1\r\nHost: evil.test\r\n\r\n"); resp.StatusCode != 403 {
		t.Error(resp.Status)
	}
	if resp, _ := say(t, w.mustConnect(to), "get / http/1.1\r\nHost: evil.test\r\n\r\n"); resp.StatusCode != 400 {
		t.Error(resp.Status)
	}
}

// TestNewConnections has a server whose name leads elsewhere when it is dialled
// again.
func TestNewConnections(t *testing.T) {
	w := newWorld(t, intercepted("web.test"))
	w.web("web.test", 443, func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("Connection", "close")
		hello(rw, r)
	})
	c := w.client()
	for range 3 {
		if status, _, _ := get(t, c, "https://web.test/"); status != 200 {
			t.Error(status)
		}
	}
	w.mu.Lock()
	w.hosts["web.test"] = []netip.Addr{netip.MustParseAddr("10.0.0.1")} // rebound
	w.servers["tcp 10.0.0.1:443"] = w.servers["tcp 93.184.0.1:443"]
	w.mu.Unlock()
	if status, body, _ := get(t, c, "https://web.test/"); status != 403 || !strings.Contains(body, "10.0.0.1") {
		t.Error(status, body)
	}
	w.waitEvent(kindIs(api.EventRequest, api.Denied))
	if slices.Contains(w.dialed, "10.0.0.1:443") {
		t.Error("dialled what it was rebound to")
	}
}

func TestH1Alone(t *testing.T) {
	w := newWorld(t, intercepted("web.test"))
	w.web("web.test", 443, hello, func(s *http.Server) { s.Protocols.SetHTTP2(false) })
	c := w.client(h2, (*http.Protocols).SetHTTP1)
	if _, body, _ := get(t, c, "https://web.test/"); body != "GET web.test / HTTP/1.1" {
		t.Error(body)
	}
}

func TestOtherProtocolInTLS(t *testing.T) {
	w := newWorld(t, intercepted("web.test"))
	to := w.web("web.test", 443, hello, func(s *http.Server) { s.ErrorLog = quiet })
	config := w.trust()
	config.ServerName, config.NextProtos = "web.test", []string{"postgresql"}
	if err := tls.Client(w.mustConnect(to), config).Handshake(); err == nil {
		t.Error("shaken hands")
	}
	if e := w.waitEvent(kindIs(api.EventFlow, api.Denied)); e.Hint != "--splice web.test" {
		t.Errorf("%+v", e)
	}
	// One that speaks HTTP/1 where HTTP/2 was agreed on does not pass by the filter.
	config.NextProtos = []string{"h2"}
	c := tls.Client(w.mustConnect(to), config)
	io.WriteString(c, "GET / HTTP/1.1\r\nHost: web.test\r\n\r\n")
	if b, _ := io.ReadAll(c); bytes.Contains(b, []byte("GET web.test")) {
		t.Errorf("%q", b)
	}
}

func mustURL(s string) *url.URL {
	u, err := url.Parse(s)
	if err != nil {
		panic(err)
	}
	return u
}
