package intercept

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/andybalholm/brotli"
	"github.com/klauspost/compress/zstd"

	"github.com/matchlock/matchlock/api"
	"github.com/matchlock/matchlock/internal/secret"
)

const (
	value       = "s3cr3t-value/with+signs=="
	placeholder = "SANDBOX_SECRET_0123456789abcdef0123456789abcdef"
)

// newSecretWorld has a secret for in.test, which may stand anywhere, and TLS to all
// of *.test terminated.
func newSecretWorld(t *testing.T, tweaks ...func(*Options)) *world {
	t.Helper()
	v, err := secret.NewValue([]byte(value))
	if err != nil {
		t.Fatal(err)
	}
	set, err := secret.NewSet([]secret.Secret{{
		Name: "TOKEN", Placeholder: placeholder, Value: v,
		Hosts:  func(host string) bool { return host == "in.test" },
		Places: secret.Places{Query: true, Path: true, Body: true},
	}})
	if err != nil {
		t.Fatal(err)
	}
	config := intercepted("*.test")
	config.Secrets = []api.Secret{{Name: "TOKEN", Hosts: []string{"in.test"}}}
	w := newWorld(t, config, append([]func(*Options){func(o *Options) { o.Secrets = set }}, tweaks...)...)
	t.Cleanup(func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		if text := fmt.Sprintf("%+v", w.events); strings.Contains(text, value) {
			t.Errorf("a value in the events: %s", text)
		}
	})
	return w
}

// reflect answers with all that it was asked, in headers, trailers and body.
func reflect(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	w.Header().Set("X-Auth", r.Header.Get("Authorization"))
	w.Header().Set("Trailer", "X-Trailer")
	w.Header().Set("X-Asked-Trailer", r.Trailer.Get("X-Asked"))
	fmt.Fprintf(w, "uri=%s auth=%s body=%s", r.RequestURI, r.Header.Get("Authorization"), body)
	w.Header().Set("X-Trailer", r.Header.Get("Authorization"))
}

func TestSecret(t *testing.T) {
	for name, protocol := range map[string]func(*http.Protocols, bool){"h1": (*http.Protocols).SetHTTP1, "h2": h2} {
		t.Run(name, func(t *testing.T) {
			w := newSecretWorld(t)
			var got *http.Request
			var gotBody []byte
			w.web("in.test", 443, func(rw http.ResponseWriter, r *http.Request) {
				gotBody, _ = io.ReadAll(r.Body)
				got = r
				r.Body = io.NopCloser(bytes.NewReader(gotBody))
				reflect(rw, r)
			})
			c := w.client(protocol)
			r, _ := http.NewRequest("POST", "https://in.test/p/"+placeholder+"?q="+placeholder, strings.NewReader(`{"key":"`+placeholder+`"}`))
			r.Header.Set("Content-Type", "application/json")
			r.Header.Set("Authorization", "Bearer "+placeholder)
			r.Header.Set("Range", "bytes=0-1")
			r.Header.Set("Accept-Encoding", "deflate, sdch;q=1, gzip;q=0.5")
			resp, err := c.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			body, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			if err != nil {
				t.Fatal(err)
			}
			if got.Header.Get("Authorization") != "Bearer "+value || string(gotBody) != `{"key":"`+value+`"}` ||
				got.URL.Path != "/p/"+value || got.URL.Query().Get("q") != value {
				t.Errorf("the server got %q %q %q", got.Header, got.URL, gotBody)
			}
			if got.Header.Get("Range") != "" || got.Header.Get("Accept-Encoding") != "gzip;q=0.5" {
				t.Errorf("%q", got.Header)
			}
			if resp.Header.Get("X-Auth") != "Bearer "+placeholder || resp.Trailer.Get("X-Trailer") != "Bearer "+placeholder || bytes.Contains(body, []byte(value)) || bytes.Count(body, []byte(placeholder)) < 3 {
				t.Errorf("the guest got %q %q %q", resp.Header, resp.Trailer, body)
			}
			if e := w.waitEvent(kindIs(api.EventRequest, api.Allowed)); e.Path != "/p/"+placeholder {
				t.Errorf("%+v", e)
			}
		})
	}
}

// TestSecretBasic has the placeholder within what Basic encodes.
func TestSecretBasic(t *testing.T) {
	w := newSecretWorld(t)
	w.web("in.test", 443, func(rw http.ResponseWriter, r *http.Request) {
		if user, password, _ := r.BasicAuth(); user != "me" || password != value {
			t.Errorf("%q %q", user, password)
		}
		fmt.Fprint(rw, r.Header.Get("Authorization"))
	})
	r, _ := http.NewRequest("GET", "https://in.test/", nil)
	r.SetBasicAuth("me", placeholder)
	resp, err := w.client().Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(resp.Body)
	decoded, _ := base64.StdEncoding.DecodeString(strings.TrimPrefix(string(b), "Basic "))
	if strings.Contains(string(decoded), value) || len(b) == 0 {
		t.Errorf("%q", b)
	}
}

// leaks are requests with a placeholder, or what is as good, somewhere.
func leaks(url string) map[string]*http.Request {
	request := func(method, url, body, contentType string) *http.Request {
		r, err := http.NewRequest(method, url, struct{ io.Reader }{strings.NewReader(body)})
		if err != nil {
			panic(err)
		}
		if body == "" {
			r, _ = http.NewRequest(method, url, nil)
		}
		r.Header.Set("Content-Type", contentType)
		return r
	}
	all := map[string]*http.Request{
		"path":          request("GET", url+"/"+placeholder, "", ""),
		"percent":       request("GET", url+"/%53"+placeholder[1:], "", ""),
		"query":         request("GET", url+"/?a="+placeholder, "", ""),
		"header":        request("GET", url, "", ""),
		"basic":         request("GET", url, "", ""),
		"header's name": request("GET", url, "", ""),
		"body":          request("POST", url, strings.Repeat("x", 100<<10)+placeholder, "text/plain"),
		"form":          request("POST", url, "a=%53"+placeholder[1:], "application/x-www-form-urlencoded"),
		"base64":        request("POST", url, "x"+base64.StdEncoding.EncodeToString([]byte("ab"+placeholder+"cd")), "text/plain"),
		"trailer":       request("POST", url, "x", "text/plain"),
	}
	all["header"].Header.Set("X-Key", placeholder)
	all["basic"].SetBasicAuth("a", placeholder)
	all["header's name"].Header.Set("X-"+placeholder, "a")
	all["trailer"].Trailer = http.Header{"X-Sum": {placeholder}}
	return all
}

func TestSecretLeaks(t *testing.T) {
	w := newSecretWorld(t)
	whole := make(chan string, 100)
	handler := func(rw http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		if err == nil { // the request was there to its end
			whole <- fmt.Sprintf("%s %q %q %.200q", r.RequestURI, r.Header, r.Trailer, b)
		}
	}
	w.web("out.test", 443, handler)
	w.webAt(w.public("out.test", 80), "out.test", false, handler)
	w.name("in.test")
	w.webAt(w.public("in.test", 80), "in.test", false, handler)
	for _, to := range []struct {
		url      string
		protocol func(*http.Protocols, bool)
	}{
		{"https://out.test", (*http.Protocols).SetHTTP1},
		{"https://out.test", h2},
		{"http://out.test", (*http.Protocols).SetHTTP1},
		{"http://in.test", (*http.Protocols).SetHTTP1}, // in scope, but in clear
		{"http://in.test", h2c},
	} {
		for name, r := range leaks(to.url) {
			w.mu.Lock()
			w.events = nil
			w.mu.Unlock()
			resp, err := w.client(to.protocol).Do(r)
			if err == nil {
				resp.Body.Close()
				if resp.StatusCode != 403 {
					t.Errorf("%s to %s: %s", name, to.url, resp.Status)
				}
			}
			e := w.waitEvent(kindIs(api.EventRequest, api.Denied))
			if !strings.Contains(e.Reason, "TOKEN") {
				t.Errorf("%s to %s: %+v", name, to.url, e)
			}
		}
	}
	select {
	case got := <-whole:
		t.Errorf("came through: %s", got)
	default:
	}
}

// TestSecretOnAddress has no name, so that nobody's scope it is in.
func TestSecretOnAddress(t *testing.T) {
	w := newSecretWorld(t, func(o *Options) {
		config := intercepted("93.184.9.9")
		config.Secrets = []api.Secret{{Name: "TOKEN", Hosts: []string{"in.test"}}}
		config.Network.Allow = append(config.Network.Allow, api.Rule{Target: "in.test"})
		o.Policy = compile(t, config)
	})
	w.webAt("93.184.9.9:443", "in.test", true, reflect)
	w.table[netip.MustParseAddr("198.18.0.77")] = nil
	r, _ := http.NewRequest("GET", "https://93.184.9.9/", nil)
	r.Host = "in.test"
	r.Header.Set("Authorization", placeholder)
	c := w.client()
	c.Transport.(*http.Transport).TLSClientConfig.ServerName = "in.test"
	resp, err := c.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != 403 {
		t.Error(resp.Status)
	}
}

// TestSecretUntrusted has the server of a name in scope be another.
func TestSecretUntrusted(t *testing.T) {
	w := newSecretWorld(t)
	w.name("in.test")
	asked := false
	w.webAt(w.public("in.test", 443), "evil.test", true, func(rw http.ResponseWriter, r *http.Request) { asked = true }, func(s *http.Server) { s.ErrorLog = quiet })
	r, _ := http.NewRequest("GET", "https://in.test/", nil)
	r.Header.Set("Authorization", placeholder)
	resp, err := w.client().Do(r)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if asked || resp.StatusCode < 400 {
		t.Error(asked, resp.Status)
	}
}

func encode(t *testing.T, encoding, text string) []byte {
	t.Helper()
	var b bytes.Buffer
	var w io.WriteCloser
	switch encoding {
	case "gzip":
		w = gzip.NewWriter(&b)
	case "br":
		w = brotli.NewWriter(&b)
	case "zstd":
		z, err := zstd.NewWriter(&b)
		if err != nil {
			t.Fatal(err)
		}
		w = z
	default:
		return []byte(text)
	}
	io.WriteString(w, text)
	w.Close()
	return b.Bytes()
}

func TestSecretEncodings(t *testing.T) {
	w := newSecretWorld(t)
	text := strings.Repeat("before ", 5000) + value + strings.Repeat(" after", 5000)
	w.web("in.test", 443, func(rw http.ResponseWriter, r *http.Request) {
		encodings := strings.Split(r.URL.Query().Get("e"), ",")
		body := text
		for _, e := range encodings {
			body = string(encode(t, e, body))
		}
		rw.Header().Set("Content-Encoding", strings.Join(encodings, ", "))
		rw.Header().Set("Etag", `"strong"`)
		rw.Header().Set("Content-Length", fmt.Sprint(len(body)))
		rw.Header().Set("Content-MD5", "x")
		io.WriteString(rw, body)
	})
	for _, encoding := range []string{"identity", "gzip", "br", "zstd", "gzip,br"} {
		status, body, h := get(t, w.client(), "https://in.test/?e="+encoding)
		if want := strings.ReplaceAll(text, value, placeholder); status != 200 || body != want {
			t.Errorf("%s: %d, %d bytes", encoding, status, len(body))
		}
		if h.Get("Content-Encoding") != "" || h.Get("Etag") != `W/"strong"` || h.Get("Content-Md5") != "" || h.Get("Content-Length") != "" {
			t.Errorf("%s: %q", encoding, h)
		}
	}
	for _, encoding := range []string{"deflate", "gzip,gzip,gzip", "compress", "x,gzip"} {
		if status, body, _ := get(t, w.client(), "https://in.test/?e="+encoding); status != 502 || strings.Contains(body, value) {
			t.Errorf("%s: %d", encoding, status)
		}
	}
	// Not what it says.
	w.web("in.test", 8443, nil)
	resp, err := w.client().Head("https://in.test/?e=gzip")
	if err != nil || resp.StatusCode != 200 || resp.Header.Get("Content-Length") != "" {
		t.Error(err, resp)
	}
}

func TestSecretTrace(t *testing.T) {
	w := newSecretWorld(t)
	w.web("in.test", 443, reflect)
	r, _ := http.NewRequest("TRACE", "https://in.test/", nil)
	resp, err := w.client().Do(r)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 403 {
		t.Error(resp.Status)
	}
}

// TestSecretEvents has an event come when it is sent, though it is looked at.
func TestSecretEvents(t *testing.T) {
	for _, encoding := range []string{"", "gzip", "zstd", "br"} {
		t.Run(encoding, func(t *testing.T) {
			w := newSecretWorld(t)
			next := make(chan struct{})
			w.web("in.test", 443, func(rw http.ResponseWriter, r *http.Request) {
				var out io.Writer = rw
				flush := func() error { return nil }
				switch encoding {
				case "gzip":
					z := gzip.NewWriter(rw)
					out, flush = z, z.Flush
				case "br":
					z := brotli.NewWriter(rw)
					out, flush = z, z.Flush
				case "zstd":
					z, _ := zstd.NewWriter(rw)
					out, flush = z, z.Flush
				}
				if encoding != "" {
					rw.Header().Set("Content-Encoding", encoding)
				}
				rw.Header().Set("Content-Type", "text/event-stream")
				http.NewResponseController(rw).Flush()
				for range 3 {
					<-next
					fmt.Fprintf(out, "data: %s\n\n", value)
					flush()
					http.NewResponseController(rw).Flush()
				}
			})
			resp, err := w.client().Get("https://in.test/")
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			r := bufio.NewReader(resp.Body)
			for range 3 {
				next <- struct{}{}
				if line, err := r.ReadString('\n'); line != "data: "+placeholder+"\n" {
					t.Fatal(line, err)
				}
				r.ReadString('\n')
			}
		})
	}
}

// TestSecretInErrors has a server put the value where only error texts quote it.
func TestSecretInErrors(t *testing.T) {
	w := newSecretWorld(t)
	w.name("in.test")
	bad := "HTTP/1.1 " + value + "\r\n\r\n"
	w.listenTLS(w.public("in.test", 443), "in.test", func(r *bufio.Reader, c io.Writer) {
		http.ReadRequest(r)
		io.WriteString(c, bad)
	})
	for _, answer := range []string{bad, value + "\r\n\r\n", "HTTP/1.1 200 OK\r\n" + value + "\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: " + value + "\r\n\r\n", "HTTP/1.1 200 OK\r\nTransfer-Encoding: " + value + "\r\n\r\n"} {
		bad = answer
		r, _ := http.NewRequest("GET", "https://in.test/", nil)
		r.Header.Set("Authorization", placeholder)
		resp, err := w.client().Do(r)
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != 502 || bytes.Contains(b, []byte("s3cr3t")) {
			t.Errorf("%q: %d %q", answer, resp.StatusCode, b)
		}
	}
}

// TestSecretsUsed says in the event which were put in.
func TestSecretsUsed(t *testing.T) {
	w := newSecretWorld(t)
	w.web("in.test", 443, reflect)
	c := w.client()
	get(t, c, "https://in.test/none")
	get(t, c, "https://in.test/?q="+placeholder)
	for path, want := range map[string][]string{"/none": nil, "/": {"TOKEN"}} {
		if e := w.waitEvent(func(e api.Event) bool { return e.Kind == api.EventRequest && e.Path == path }); !slices.Equal(e.Secrets, want) {
			t.Errorf("%s: %q", path, e.Secrets)
		}
	}
}

var _ = url.Parse
