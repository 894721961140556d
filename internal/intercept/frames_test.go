package intercept

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"net/netip"
	"testing"
	"time"

	wire "golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/matchlock/matchlock/api"
)

// frames are a guest's, after the preface.
func frames(write func(*wire.Framer, func(...string) []byte)) []byte {
	var b, block bytes.Buffer
	f := wire.NewFramer(&b, nil)
	f.AllowIllegalWrites = true
	f.WriteSettings()
	encoder := hpack.NewEncoder(&block)
	write(f, func(fields ...string) []byte {
		block.Reset()
		for i := 0; i < len(fields); i += 2 {
			encoder.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]})
		}
		return bytes.Clone(block.Bytes())
	})
	return b.Bytes()
}

func request(f *wire.Framer, fields func(...string) []byte, more ...string) {
	all := append([]string{":method", "GET", ":scheme", "http", ":path", "/", ":authority", "web.test"}, more...)
	f.WriteHeaders(wire.HeadersFrameParam{StreamID: 1, BlockFragment: fields(all...), EndHeaders: true, EndStream: true})
}

// hostileFrames must not lead to a request that the server gets.
var hostileFrames = map[string][]byte{
	"another authority": frames(func(f *wire.Framer, fields func(...string) []byte) {
		f.WriteHeaders(wire.HeadersFrameParam{StreamID: 1, BlockFragment: fields(":method", "GET", ":scheme", "http", ":path", "/", ":authority", "evil.test"), EndHeaders: true, EndStream: true})
	}),
	"another host": frames(func(f *wire.Framer, fields func(...string) []byte) { request(f, fields, "host", "evil.test") }),
	"no authority, but a host": frames(func(f *wire.Framer, fields func(...string) []byte) {
		f.WriteHeaders(wire.HeadersFrameParam{StreamID: 1, BlockFragment: fields(":method", "GET", ":scheme", "http", ":path", "/", "host", "evil.test"), EndHeaders: true, EndStream: true})
	}),
	"transfer-encoding": frames(func(f *wire.Framer, fields func(...string) []byte) {
		request(f, fields, "transfer-encoding", "chunked")
	}),
	"connection":  frames(func(f *wire.Framer, fields func(...string) []byte) { request(f, fields, "connection", "x") }),
	"a line feed": frames(func(f *wire.Framer, fields func(...string) []byte) { request(f, fields, "x", "a\r\nhost: evil.test") }),
	"upper case":  frames(func(f *wire.Framer, fields func(...string) []byte) { request(f, fields, "X", "a") }),
	"a colon":     frames(func(f *wire.Framer, fields func(...string) []byte) { request(f, fields, "x: y", "a") }),
	"a length that is not": frames(func(f *wire.Framer, fields func(...string) []byte) {
		request(f, fields, "content-length", "5")
	}),
	"a blank in the path": frames(func(f *wire.Framer, fields func(...string) []byte) {
		f.WriteHeaders(wire.HeadersFrameParam{StreamID: 1, BlockFragment: fields(":method", "GET", ":scheme", "http", ":path", "/ HTTP/1.1\u0000", ":authority", "web.test"), EndHeaders: true, EndStream: true})
	}),
	"a version in the path": frames(func(f *wire.Framer, fields func(...string) []byte) {
		f.WriteHeaders(wire.HeadersFrameParam{StreamID: 1, BlockFragment: fields(":method", "GET", ":scheme", "http", ":path", "/x HTTP/1.1", ":authority", "web.test"), EndHeaders: true, EndStream: true})
	}),
	"a fragment": frames(func(f *wire.Framer, fields func(...string) []byte) {
		f.WriteHeaders(wire.HeadersFrameParam{StreamID: 1, BlockFragment: fields(":method", "GET", ":scheme", "http", ":path", "/x#y", ":authority", "web.test"), EndHeaders: true, EndStream: true})
	}),
	"a path without a slash": frames(func(f *wire.Framer, fields func(...string) []byte) {
		f.WriteHeaders(wire.HeadersFrameParam{StreamID: 1, BlockFragment: fields(":method", "GET", ":scheme", "http", ":path", "@evil.test/", ":authority", "web.test"), EndHeaders: true, EndStream: true})
	}),
	"CONNECT": frames(func(f *wire.Framer, fields func(...string) []byte) {
		f.WriteHeaders(wire.HeadersFrameParam{StreamID: 1, BlockFragment: fields(":method", "CONNECT", ":authority", "web.test:80"), EndHeaders: true})
	}),
	"extended CONNECT": frames(func(f *wire.Framer, fields func(...string) []byte) {
		f.WriteHeaders(wire.HeadersFrameParam{StreamID: 1, BlockFragment: fields(":method", "CONNECT", ":protocol", "websocket", ":scheme", "http", ":path", "/", ":authority", "web.test"), EndHeaders: true})
	}),
	"endless headers": frames(func(f *wire.Framer, fields func(...string) []byte) {
		f.WriteHeaders(wire.HeadersFrameParam{StreamID: 1, BlockFragment: fields(":method", "GET"), EndStream: true})
		for range 100 {
			f.WriteContinuation(1, false, fields("x", string(make([]byte, 8000))))
		}
	}),
}

// talk has a flow to a port begin with these bytes. The guest waits so long for
// answers, and resets it then. What is returned is closed when the flow has ended.
func talk(i *Interceptor, to netip.AddrPort, text []byte, patience time.Duration) <-chan struct{} {
	f := &testFlow{destination: to, accepted: make(chan net.Conn, 1), refused: make(chan struct{})}
	ended := make(chan struct{})
	go func() { defer close(ended); i.TCP(context.Background(), f) }()
	select {
	case c := <-f.accepted:
		c.SetDeadline(time.Now().Add(patience))
		written := make(chan struct{})
		go func() { defer close(written); c.Write(text) }()
		io.Copy(io.Discard, c)
		<-written
		abort(c)
	case <-ended:
	}
	return ended
}

func TestHostileFrames(t *testing.T) {
	w := newWorld(t, allow("web.test"))
	to := w.web("web.test", 80, func(_ http.ResponseWriter, r *http.Request) {
		t.Errorf("the server got %s %s of %s, %q", r.Method, r.RequestURI, r.Host, r.Header)
	})
	ends := make(map[string]<-chan struct{})
	for name, in := range hostileFrames {
		ends[name] = talk(w.i, to, append([]byte(http2Preface), in...), 100*time.Millisecond)
	}
	for name, ended := range ends {
		select {
		case <-ended:
		case <-time.After(10 * time.Second):
			t.Errorf("%s: the flow does not end", name)
		}
	}
}

// FuzzHTTP2Frames has a guest say anything after the preface. It must end, and every
// request that the server gets must be for it.
func FuzzHTTP2Frames(f *testing.F) {
	for _, in := range hostileFrames {
		f.Add(in)
	}
	f.Add(frames(func(f *wire.Framer, fields func(...string) []byte) { request(f, fields, "a", "b") }))
	w := newWorld(f, allow("web.test"), func(o *Options) { o.Event = func(api.Event) {} })
	f.Cleanup(func() {
		// net/http takes a second to end a connection that it has said GOAWAY to.
		for deadline := time.Now().Add(10 * time.Second); w.i.Flows() > 0; time.Sleep(50 * time.Millisecond) {
			if time.Now().After(deadline) {
				f.Errorf("%d flows do not end", w.i.Flows())
				return
			}
		}
	})
	other := make(chan string, 1)
	to := w.web("web.test", 80, func(_ http.ResponseWriter, r *http.Request) {
		if r.Host != "web.test" && r.Host != "web.test:80" {
			select {
			case other <- r.Host:
			default:
			}
		}
	})
	f.Fuzz(func(t *testing.T, in []byte) {
		talk(w.i, to, append([]byte(http2Preface), in...), 5*time.Millisecond)
		if n := w.i.Flows(); n > 4000 {
			t.Errorf("%d flows do not end", n)
		}
		select {
		case host := <-other:
			t.Errorf("the server got a request of %q", host)
		default:
		}
	})
}
