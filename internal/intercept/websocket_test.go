package intercept

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/matchlock/matchlock/api"
)

// chat is a WebSocket server that says what it is told, in the protocol "b".
func chat(t *testing.T, seen chan<- string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/no" {
			w.Header().Set("X-Why", "because")
			http.Error(w, strings.Repeat("no ", 1000), http.StatusUnauthorized)
			return
		}
		w.Header().Set("Set-Cookie", "a=b")
		c, err := websocket.Accept(w, r, &websocket.AcceptOptions{Subprotocols: []string{"b"}, InsecureSkipVerify: true, CompressionMode: websocket.CompressionContextTakeover})
		if err != nil {
			t.Error(err)
			return
		}
		defer c.CloseNow()
		c.SetReadLimit(-1)
		for {
			kind, b, err := c.Read(context.Background())
			if err != nil {
				var closed websocket.CloseError
				errors.As(err, &closed)
				seen <- fmt.Sprint(int(closed.Code), " ", closed.Reason)
				return
			}
			if string(b) == "close" {
				c.Close(4321, "bye")
				continue
			}
			seen <- string(b)
			if err := c.Write(context.Background(), kind, b); err != nil {
				return
			}
		}
	}
}

// TestWebSocket relays messages of all sizes where they are looked into, and where
// they are not.
func TestWebSocket(t *testing.T) {
	for name, scheme := range map[string]string{"bytes": "wss", "bytes in clear": "ws", "messages": "wss", "messages in clear": "ws", "hooks": "wss"} {
		t.Run(name, func(t *testing.T) {
			var w *world
			switch {
			case strings.HasPrefix(name, "messages"):
				w = newSecretWorld(t)
			case name == "hooks":
				w = newWorld(t, withHooks(api.Hook{Action: api.HookMutate, Replace: []api.Replacement{{Find: "old", Replace: "new"}}}))
			default:
				w = newWorld(t, intercepted("*.test"))
			}
			seen := make(chan string, 10)
			w.name("in.test")
			w.webAt(w.public("in.test", 443), "in.test", true, chat(t, seen))
			w.webAt(w.public("in.test", 80), "in.test", false, chat(t, seen))
			dial := func() (*websocket.Conn, *http.Response) {
				c, resp, err := websocket.Dial(t.Context(), scheme+"://in.test/x?y", &websocket.DialOptions{HTTPClient: w.client(), Subprotocols: []string{"a", "b"}, CompressionMode: websocket.CompressionContextTakeover})
				if err != nil {
					t.Fatal(err)
				}
				c.SetReadLimit(-1)
				return c, resp
			}
			c, resp := dial()
			if c.Subprotocol() != "b" || resp.Header.Get("Set-Cookie") != "a=b" {
				t.Error(c.Subprotocol(), resp.Header)
			}
			if compressed := resp.Header.Get("Sec-Websocket-Extensions") != ""; compressed != strings.HasPrefix(name, "bytes") {
				t.Errorf("compressed: %v", compressed)
			}
			for _, size := range []int{0, 1, 125, 126, 70000, 1 << 20} {
				for _, kind := range []websocket.MessageType{websocket.MessageText, websocket.MessageBinary} {
					m := strings.Repeat("x", size)
					if err := c.Write(t.Context(), kind, []byte(m)); err != nil {
						t.Fatal(err)
					}
					got, b, err := c.Read(t.Context())
					if err != nil || got != kind || string(b) != m {
						t.Fatal(size, got, len(b), err)
					}
					<-seen
				}
			}
			if name == "hooks" {
				c.Write(t.Context(), websocket.MessageText, []byte("an old one"))
				if got := <-seen; got != "an new one" {
					t.Error(got)
				}
				c.Read(t.Context())
			}
			begun := time.Now()
			c.Close(4000, "done")
			if got := <-seen; got != "4000 done" {
				t.Error(got)
			}
			e := w.waitEvent(func(e api.Event) bool { return e.Kind == api.EventRequest && e.Protocol == "websocket" })
			if e.Verdict != api.Allowed || e.Status != 101 || e.Path != "/x" || e.Sent < 3000 || e.Received < 3000 {
				t.Errorf("%+v", e)
			}
			w.waitEvent(kindIs(api.EventFlow, api.Allowed))
			c, _ = dial()
			c.Write(t.Context(), websocket.MessageText, []byte("close"))
			_, _, err := c.Read(t.Context())
			var closed websocket.CloseError
			if !errors.As(err, &closed) || closed.Code != 4321 || closed.Reason != "bye" {
				t.Error(err)
			}
			if took := time.Since(begun); took > 3*time.Second {
				t.Errorf("to close took %v", took)
			}
		})
	}
}

func TestWebSocketRefused(t *testing.T) {
	for name, w := range map[string]func(*testing.T) *world{"bytes": func(t *testing.T) *world { return newWorld(t, intercepted("*.test")) }, "messages": func(t *testing.T) *world { return newSecretWorld(t) }} {
		t.Run(name, func(t *testing.T) {
			w := w(t)
			seen := make(chan string, 10)
			w.web("in.test", 443, chat(t, seen))
			client := w.client()
			for range 2 { // the connection goes on
				r, _ := http.NewRequest("GET", "https://in.test/no", nil)
				for name, v := range map[string]string{"Connection": "Upgrade", "Upgrade": "websocket", "Sec-Websocket-Version": "13", "Sec-Websocket-Key": "AAAAAAAAAAAAAAAAAAAAAA=="} {
					r.Header.Set(name, v)
				}
				resp, err := client.Do(r)
				if err != nil {
					t.Fatal(err)
				}
				b, err := io.ReadAll(resp.Body)
				resp.Body.Close()
				if resp.StatusCode != 401 || len(b) != 3001 || resp.Header.Get("X-Why") != "because" || err != nil {
					t.Error(resp.Status, len(b), resp.Header, err)
				}
			}
			if n := len(w.dialed); n != 1 {
				t.Errorf("%d connections", n)
			}
		})
	}
}

func TestWebSocketSecrets(t *testing.T) {
	w := newSecretWorld(t)
	seen := make(chan string, 10)
	w.web("in.test", 443, chat(t, seen))
	w.web("out.test", 443, chat(t, seen))
	c, _, err := websocket.Dial(t.Context(), "wss://in.test/", &websocket.DialOptions{HTTPClient: w.client()})
	if err != nil {
		t.Fatal(err)
	}
	// In two frames.
	m, _ := c.Writer(t.Context(), websocket.MessageText)
	io.WriteString(m, "key: "+placeholder[:20])
	io.WriteString(m, placeholder[20:]+".")
	m.Close()
	if got := <-seen; got != "key: "+value+"." {
		t.Error(got)
	}
	if _, b, err := c.Read(t.Context()); string(b) != "key: "+placeholder+"." {
		t.Error(string(b), err)
	}
	c.Close(websocket.StatusNormalClosure, "")
	<-seen

	c, _, err = websocket.Dial(t.Context(), "wss://out.test/", &websocket.DialOptions{HTTPClient: w.client()})
	if err != nil {
		t.Fatal(err)
	}
	c.Write(t.Context(), websocket.MessageText, []byte("key: "+placeholder))
	_, _, err = c.Read(t.Context())
	if websocket.CloseStatus(err) != websocket.StatusPolicyViolation {
		t.Error(err)
	}
	c.CloseNow()
	if got := <-seen; strings.Contains(got, placeholder) {
		t.Error(got)
	}
	w.waitEvent(kindIs(api.EventRequest, api.Denied))
}

// TestWebSocketEarly says something before the answer, which would be read in two
// ways if there is no upgrade.
func TestWebSocketEarly(t *testing.T) {
	w := newWorld(t, allow("web.test"))
	go_on := make(chan struct{})
	to := w.web("web.test", 80, func(rw http.ResponseWriter, r *http.Request) {
		<-go_on
		rw.Write([]byte("no"))
	})
	c := w.mustConnect(to)
	io.WriteString(c, "GET / HTTP/1.1\r\nHost: web.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\nGET /two HTTP/1.1\r\nHost: web.test\r\n\r\n")
	close(go_on)
	r := bufio.NewReader(c)
	var statuses []int
	for {
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			break
		}
		io.Copy(io.Discard, resp.Body)
		statuses = append(statuses, resp.StatusCode)
	}
	if len(statuses) == 0 || statuses[len(statuses)-1] != 400 {
		t.Error(statuses)
	}

}
