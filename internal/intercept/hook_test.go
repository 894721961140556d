package intercept

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"github.com/matchlock/matchlock/api"
)

// withHooks is a config for *.test with hooks.
func withHooks(hooks ...api.Hook) api.Config {
	c := allow("*.test")
	c.Network.Hooks = hooks
	return c
}

// tellAll answers with what was asked.
func tellAll(w http.ResponseWriter, r *http.Request) {
	b, _ := io.ReadAll(r.Body)
	w.Header().Set("X-Answer", "secret answer")
	fmt.Fprintf(w, "%s %s %q %s", r.Method, r.RequestURI, r.Header["X-A"], b)
}

func post(t *testing.T, c *http.Client, url, body string, header ...string) (int, string, http.Header) {
	t.Helper()
	r, err := http.NewRequest("POST", url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	resp, err := c.Do(r)
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

func TestHooks(t *testing.T) {
	for name, tt := range map[string]struct {
		hooks  []api.Hook
		path   string
		status int
		body   string
		answer string // header
	}{
		"block":               {hooks: []api.Hook{{Name: "no-posts", Methods: []string{"POST"}, Action: api.HookBlock}}, status: 403, body: "matchlock: web.test: blocked by hook no-posts\n"},
		"another method":      {hooks: []api.Hook{{Methods: []string{"PUT"}, Action: api.HookBlock}}, status: 200, body: `POST /a?b=c ["1"] text`},
		"another host":        {hooks: []api.Hook{{Hosts: []string{"*.web.test", "x.test"}, Action: api.HookBlock}}, status: 200, body: `POST /a?b=c ["1"] text`},
		"this host":           {hooks: []api.Hook{{Hosts: []string{"WEB.test."}, Action: api.HookBlock}}, status: 403},
		"below a path":        {hooks: []api.Hook{{Path: "/a/**", Action: api.HookBlock}}, path: "/a/b/c", status: 403},
		"a path itself":       {hooks: []api.Hook{{Path: "/a/**", Action: api.HookBlock}}, path: "/a", status: 403},
		"beside a path":       {hooks: []api.Hook{{Path: "/a/**", Action: api.HookBlock}}, path: "/ab", status: 200},
		"an escaped path":     {hooks: []api.Hook{{Path: "/admin/**", Action: api.HookBlock}}, path: "/%61dmin/x", status: 403},
		"a detour":            {hooks: []api.Hook{{Path: "/admin/*", Action: api.HookBlock}}, path: "/x/..//admin/./x", status: 403},
		"no way around block": {hooks: []api.Hook{{Path: "/public/**", Action: api.HookAllow}, {Action: api.HookBlock}}, path: "/public/../admin", status: 403},
		"allow ends it":       {hooks: []api.Hook{{Path: "/public/**", Action: api.HookAllow}, {Action: api.HookBlock}}, path: "/public/x", status: 200},
		"headers":             {hooks: []api.Hook{{Action: api.HookMutate, SetHeaders: map[string]string{"X-a": "2"}, DeleteHeaders: []string{"X-B"}}}, status: 200, body: `POST /a?b=c ["2"] text`},
		"query":               {hooks: []api.Hook{{Action: api.HookMutate, SetQuery: map[string]string{"b": "x y", "n": "1"}, DeleteQuery: []string{"d"}}}, path: "/a?b=1&c=%zz&d=1&%64=2", status: 200, body: `POST /a?c=%zz&b=x+y&n=1 ["1"] text`},
		"path":                {hooks: []api.Hook{{Action: api.HookMutate, RewritePath: "/n%2Fw"}}, status: 200, body: `POST /n%2Fw?b=c ["1"] text`},
		"body":                {hooks: []api.Hook{{Action: api.HookMutate, Replace: []api.Replacement{{Find: "ex", Replace: "oas"}, {Find: "toast", Replace: "bread"}}}}, status: 200, body: `POST /a?b=c ["1"] bread`},
		"after":               {hooks: []api.Hook{{Phase: api.HookAfter, Action: api.HookMutate, SetHeaders: map[string]string{"X-Answer": "none"}, Replace: []api.Replacement{{Find: "POST", Replace: "PAST"}}}}, status: 200, body: `PAST /a?b=c ["1"] text`, answer: "none"},
		"block after":         {hooks: []api.Hook{{Phase: api.HookAfter, Action: api.HookBlock}}, status: 403},
	} {
		for _, scheme := range []string{"http", "https"} {
			t.Run(name+" "+scheme, func(t *testing.T) {
				w := newWorld(t, withHooks(tt.hooks...))
				w.name("web.test")
				w.webAt(w.public("web.test", 80), "web.test", false, tellAll)
				w.webAt(w.public("web.test", 443), "web.test", true, tellAll)
				path := tt.path
				if path == "" {
					path = "/a?b=c"
				}
				c := w.client()
				status, body, h := post(t, c, scheme+"://web.test"+path, "text", "X-A", "1", "X-B", "1")
				if status != tt.status || tt.body != "" && body != tt.body || tt.answer != "" && h.Get("X-Answer") != tt.answer {
					t.Errorf("%d %q %q", status, body, h)
				}
				if status == 403 {
					w.waitEvent(kindIs(api.EventRequest, api.Denied))
				}
			})
		}
	}
}

func TestHookFaults(t *testing.T) {
	for _, h := range []api.Hook{
		{Action: api.HookMutate, SetHeaders: map[string]string{"host": "x"}},
		{Action: api.HookMutate, SetHeaders: map[string]string{"Content-Length": "1"}},
		{Action: api.HookMutate, SetHeaders: map[string]string{"A": "b\r\nC: d"}},
		{Action: api.HookMutate, SetHeaders: map[string]string{"A b": "c"}},
		{Action: api.HookMutate, DeleteHeaders: []string{"transfer-encoding"}},
		{Action: api.HookMutate, RewritePath: "//evil.test/"[2:]},
		{Action: api.HookMutate, RewritePath: "/a?b"},
		{Action: api.HookMutate, RewritePath: "/a b"},
		{Action: api.HookMutate, Phase: api.HookAfter, RewritePath: "/a"},
		{Action: api.HookMutate, Replace: []api.Replacement{{}}},
	} {
		if _, err := newHooks([]api.Hook{h}, nil); err == nil {
			t.Errorf("%+v", h)
		}
	}
}

func TestHookEvents(t *testing.T) {
	w := newWorld(t, withHooks(api.Hook{Phase: api.HookAfter, Action: api.HookMutate, Replace: []api.Replacement{{Find: "a", Replace: "b"}}}))
	next := make(chan struct{})
	w.web("web.test", 443, func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("Content-Type", "text/event-stream; charset=utf-8")
		for range 3 {
			fmt.Fprint(rw, "event: a\r\ndata: aa\r\n\r\n")
			http.NewResponseController(rw).Flush()
			<-next
		}
	})
	resp, err := w.client().Get("https://web.test/")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b := make([]byte, len("event: a\r\ndata: bb\r\n\r\n"))
	for range 3 {
		if _, err := io.ReadFull(resp.Body, b); string(b) != "event: a\r\ndata: bb\r\n\r\n" {
			t.Fatalf("%q, %v", b, err)
		}
		next <- struct{}{}
	}
}

func TestReplaced(t *testing.T) {
	for _, tt := range []struct{ in, find, replace, want string }{
		{"abcabc", "abc", "x", "xx"}, {"aab", "ab", "", "a"}, {"aaab", "aab", "y", "ay"}, {"ab", "abc", "x", "ab"},
		{"ababac", "abac", "x", "abx"}, {"", "a", "b", ""}, {strings.Repeat("x", 50000) + "find" + strings.Repeat("y", 50000), "find", "", strings.Repeat("x", 50000) + strings.Repeat("y", 50000)},
	} {
		for _, r := range []io.Reader{strings.NewReader(tt.in), iotest.OneByteReader(strings.NewReader(tt.in)), iotest.DataErrReader(strings.NewReader(tt.in))} {
			b, err := io.ReadAll(replaced("", io.NopCloser(r), []api.Replacement{{Find: tt.find, Replace: tt.replace}}))
			if string(b) != tt.want || err != nil {
				t.Errorf("%.20q: %.50q, %v", tt.in, b, err)
			}
		}
	}
	long := "data:" + strings.Repeat("a", maxEvent+1)
	if _, err := io.ReadAll(replaced("text/event-stream", io.NopCloser(strings.NewReader(long)), nil)); err == nil {
		t.Error("a line without an end")
	}
	if b, err := io.ReadAll(replaced("text/event-stream", io.NopCloser(strings.NewReader("data: a\rdata:a")), []api.Replacement{{Find: "a", Replace: "b"}})); string(b) != "data: b\rdata:a" || err != nil {
		t.Errorf("%q, %v", b, err) // a line that has not ended is no event
	}
}

// askServer answers questions to a hook.
type askServer struct {
	path string

	mu        sync.Mutex
	questions []question
}

func newAskServer(t *testing.T, answer func(question) string) *askServer {
	t.Helper()
	s := &askServer{path: filepath.Join(t.TempDir(), "hook.sock")}
	l, err := net.Listen("unix", s.path)
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() {
				defer c.Close()
				line, err := bufio.NewReader(c).ReadBytes('\n')
				if err != nil {
					return
				}
				var q question
				if err := json.Unmarshal(line, &q); err != nil {
					t.Error(err)
				}
				s.mu.Lock()
				s.questions = append(s.questions, q)
				s.mu.Unlock()
				io.WriteString(c, answer(q))
			})
		}
	})
	t.Cleanup(func() { l.Close(); all.Wait() })
	return s
}

func TestAsk(t *testing.T) {
	for name, tt := range map[string]struct {
		answer string
		status int
		body   string
	}{
		"allow":           {`{"action":"allow"}`, 200, `POST /a?b=c ["1"] text`},
		"mutate":          {`{"action":"mutate","set_headers":{"X-A":"2"},"set_query":{"b":"d"},"rewrite_path":"/z","replace":[{"find":"text","replace":"other"}]}`, 200, `POST /z?b=d ["2"] other`},
		"block":           {`{"action":"block","reason":"because"}`, 403, "matchlock: web.test: blocked by hook asker: because\n"},
		"nothing":         {"", 403, ""},
		"no action":       {`{}`, 403, ""},
		"another action":  {`{"action":"ask"}`, 403, ""},
		"no JSON":         {"yes", 403, ""},
		"half a line":     {`{"action":"allow"`, 403, ""},
		"a forbidden one": {`{"action":"mutate","set_headers":{"Host":"evil.test"}}`, 403, ""},
		"a long one":      {`{"action":"allow","reason":"` + strings.Repeat("x", maxAnswer) + `"}`, 403, ""},
	} {
		t.Run(name, func(t *testing.T) {
			asked := newAskServer(t, func(question) string {
				if name == "half a line" {
					return tt.answer
				}
				return tt.answer + "\n"
			})
			w := newWorld(t, withHooks(api.Hook{Name: "asker", Action: api.HookAsk, Socket: asked.path}))
			w.web("web.test", 443, tellAll)
			status, body, _ := post(t, w.client(), "https://web.test/a?b=c", "text", "X-A", "1")
			if status != tt.status || tt.body != "" && body != tt.body {
				t.Errorf("%d %q", status, body)
			}
			if q := asked.questions[0]; q.Phase != api.HookBefore || q.Hook != "asker" || q.Host != "web.test" || q.Port != 443 || q.Method != "POST" || q.Path != "/a" || q.Query != "b=c" || q.Headers.Get("X-A") != "1" {
				t.Errorf("%+v", q)
			}
		})
	}
}

func TestAskAfter(t *testing.T) {
	asked := newAskServer(t, func(q question) string {
		return fmt.Sprintf(`{"action":"mutate","set_headers":{"X-Status":"%d %s"}}`+"\n", q.Status, q.ResponseHeaders.Get("X-Answer"))
	})
	w := newWorld(t, withHooks(api.Hook{Phase: api.HookAfter, Action: api.HookAsk, Socket: asked.path}))
	w.web("web.test", 443, tellAll)
	if _, _, h := post(t, w.client(), "https://web.test/", ""); h.Get("X-Status") != "200 secret answer" {
		t.Errorf("%q", h)
	}
}

func TestAskNobody(t *testing.T) {
	release := make(chan struct{})
	slow := newAskServer(t, func(question) string { <-release; return "" })
	defer close(release)
	for _, socket := range []string{"/nobody/here", slow.path} {
		t.Run(socket, func(t *testing.T) {
			w := newWorld(t, withHooks(api.Hook{Action: api.HookAsk, Socket: socket, TimeoutMS: 50}))
			w.web("web.test", 443, tellAll)
			if status, body, _ := post(t, w.client(), "https://web.test/", ""); status != 403 {
				t.Error(status, body)
			}
		})
	}
}

// TestHooksAndSecrets has hooks see placeholders alone, whichever way.
func TestHooksAndSecrets(t *testing.T) {
	asked := newAskServer(t, func(q question) string { return `{"action":"mutate"}` + "\n" })
	var seen []string
	w := newSecretWorld(t, func(o *Options) {
		o.Hooks = []api.Hook{{Action: api.HookAsk, Socket: asked.path}, {Phase: api.HookAfter, Action: api.HookAsk, Socket: asked.path}}
		o.Callbacks = []Callback{{
			Before: func(_ context.Context, r *Request) error { seen = append(seen, fmt.Sprint(r)); return nil },
			After: func(_ context.Context, r *Response) error {
				seen = append(seen, fmt.Sprint(r, r.Request))
				r.Body = &tee{r.Body, &seen}
				return nil
			},
		}}
	})
	w.web("in.test", 443, reflect)
	if status, body, _ := post(t, w.client(), "https://in.test/?q="+placeholder, placeholder, "Authorization", placeholder); status != 200 || strings.Count(body, placeholder) != 3 {
		t.Error(status, body)
	}
	text := fmt.Sprint(seen, asked.questions)
	for _, form := range []string{value, url.QueryEscape(value)} {
		if strings.Contains(text, form) {
			t.Error("a value was seen")
		}
	}
	if len(asked.questions) != 2 || strings.Count(text, placeholder) < 8 {
		t.Errorf("%s", text)
	}
}

type tee struct {
	io.ReadCloser
	seen *[]string
}

func (r *tee) Read(p []byte) (int, error) {
	n, err := r.ReadCloser.Read(p)
	*r.seen = append(*r.seen, string(p[:n]))
	return n, err
}

func TestCallbacks(t *testing.T) {
	hang := make(chan struct{})
	for name, tt := range map[string]struct {
		callback Callback
		status   int
		body     string
	}{
		"change": {Callback{Before: func(_ context.Context, r *Request) error {
			r.Header.Set("X-A", "2")
			r.Header.Set("Host", "evil.test")
			r.Path, r.Query = "/z", "y=1"
			r.Body = io.NopCloser(io.MultiReader(strings.NewReader("<"), r.Body, strings.NewReader(">")))
			return nil
		}}, 200, `POST /z?y=1 ["2"] <text>`},
		"change after": {Callback{After: func(_ context.Context, r *Response) error {
			r.Body = io.NopCloser(io.MultiReader(r.Body, strings.NewReader("!")))
			r.Header.Del("X-Answer")
			return nil
		}}, 200, `POST /a?b=c ["1"] text!`},
		"another host": {Callback{Hosts: []string{"x.test"}, Before: func(context.Context, *Request) error { return errors.New("no") }}, 200, ""},
		"error":        {Callback{Before: func(context.Context, *Request) error { return errors.New("no") }}, 403, "matchlock: web.test: blocked by hook without a name: no\n"},
		"error after":  {Callback{After: func(context.Context, *Response) error { return errors.New("no") }}, 403, ""},
		"panic":        {Callback{Before: func(context.Context, *Request) error { panic("no") }}, 403, ""},
		"time":         {Callback{Timeout: time.Millisecond, Before: func(context.Context, *Request) error { <-hang; return nil }}, 403, ""},
		"bad path":     {Callback{Before: func(_ context.Context, r *Request) error { r.Path = "x"; return nil }}, 403, ""},
		"bad query":    {Callback{Before: func(_ context.Context, r *Request) error { r.Query = "a b"; return nil }}, 403, ""},
		"bad header": {Callback{Before: func(_ context.Context, r *Request) error {
			r.Header["A"] = []string{"b\r\nc: d"}
			return nil
		}}, 403, ""},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, allow("web.test"), func(o *Options) { o.Callbacks = []Callback{tt.callback} })
			if name == "time" {
				t.Cleanup(func() { close(hang) })
			}
			w.web("web.test", 443, tellAll)
			if status, body, _ := post(t, w.client(), "https://web.test/a?b=c", "text", "X-A", "1"); status != tt.status || tt.body != "" && body != tt.body {
				t.Errorf("%d %q", status, body)
			}
		})
	}
}
