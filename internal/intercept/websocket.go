package intercept

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"

	"github.com/coder/websocket"

	"github.com/matchlock/matchlock/api"
	"github.com/matchlock/matchlock/internal/secret"
)

// isWebSocket reports whether a request asks for a WebSocket. Any other upgrade is
// not asked for upstream.
func isWebSocket(r *http.Request) bool {
	token := func(header, token string) bool {
		return slices.ContainsFunc(r.Header[header], func(list string) bool { return hasToken(list, token) })
	}
	return r.ProtoMajor == 1 && r.ProtoMinor == 1 && r.Method == http.MethodGet && r.ContentLength == 0 && token("Connection", "upgrade") && token("Upgrade", "websocket")
}

// webSocket asks the server for a WebSocket, and relays it: its messages if
// anything in them must be looked at, else its bytes.
func (x *exchange) webSocket(ctx context.Context, out *http.Request) error {
	x.event.Protocol = "websocket"
	if !x.opens && !x.hooksOpen(before) && !looksIntoBodies(x.scope) {
		return x.tunnel(out)
	}
	return x.relayMessages(ctx, out)
}

// looksIntoBodies reports whether a scope has anything to look for.
func looksIntoBodies(s *secret.Scope) bool {
	body := io.NopCloser(strings.NewReader("."))
	looked, _ := s.RequestBody("", body)
	return looked != body
}

// tunnel relays bytes.
func (x *exchange) tunnel(out *http.Request) error {
	out.Header.Set("Connection", "Upgrade")
	out.Header.Set("Upgrade", "websocket")
	resp, err := x.send(out)
	if err != nil {
		x.filter.settle(noUpgrade)
		return x.cause(err)
	}
	if resp.StatusCode != http.StatusSwitchingProtocols {
		defer resp.Body.Close()
		x.filter.settle(noUpgrade)
		return x.respond(out.Context(), resp)
	}
	server, ok := resp.Body.(io.ReadWriteCloser)
	if !ok || !hasToken(resp.Header.Get("Upgrade"), "websocket") {
		resp.Body.Close()
		return errors.New("the server switches to another protocol")
	}
	defer server.Close()
	guest, err := x.hijack()
	if err != nil {
		return err
	}
	defer guest.Close()
	dropHopByHop(resp.Header)
	resp.Header.Set("Connection", "Upgrade")
	resp.Header.Set("Upgrade", "websocket")
	head := "HTTP/1.1 101 Switching Protocols\r\n"
	if _, err := io.WriteString(guest, head); err != nil {
		return err
	}
	if err := resp.Header.Write(guest); err != nil {
		return err
	}
	if _, err := io.WriteString(guest, "\r\n"); err != nil {
		return err
	}
	defer context.AfterFunc(out.Context(), func() { server.Close(); guest.Close() })()
	var both sync.WaitGroup
	both.Go(func() {
		_ = pass(&countedWriter{server, x.countSent}, guest) // a WebSocket has its own end
		server.Close()
	})
	_ = pass(&countedWriter{guest, x.countReceived}, server)
	guest.Close()
	both.Wait()
	return nil
}

func (x *exchange) countSent(n int)     { x.sent.Add(int64(n)) }
func (x *exchange) countReceived(n int) { x.received.Add(int64(n)) }

type countedWriter struct {
	io.Writer
	count func(int)
}

func (w *countedWriter) Write(p []byte) (int, error) {
	n, err := w.Writer.Write(p)
	w.count(n)
	return n, err
}

// hijack takes the guest's connection from net/http. Whatever the guest has said
// since its request would be a request of its own.
func (x *exchange) hijack() (net.Conn, error) {
	x.filter.settle(upgraded)
	x.hijacked.Store(true)
	x.status = http.StatusSwitchingProtocols
	conn, buffered, err := http.NewResponseController(x.w).Hijack()
	if err != nil {
		return nil, err
	}
	if x.filter.Fault() != nil || buffered.Reader.Buffered() > 0 {
		conn.Close()
		return nil, errEarly
	}
	return conn, nil
}

// relayMessages relays messages.
func (x *exchange) relayMessages(ctx context.Context, out *http.Request) error {
	var protocols []string
	for _, list := range x.r.Header["Sec-Websocket-Protocol"] {
		for name := range strings.SplitSeq(list, ",") {
			protocols = append(protocols, strings.TrimSpace(name))
		}
	}
	asking := &handshake{x: x, out: out}
	server, _, err := websocket.Dial(ctx, x.origin.scheme+"://"+x.target()+"/", &websocket.DialOptions{
		HTTPClient:      &http.Client{Transport: asking, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }},
		HTTPHeader:      make(http.Header),
		Subprotocols:    protocols,
		CompressionMode: websocket.CompressionDisabled,
	})
	switch {
	case asking.err != nil:
		x.filter.settle(noUpgrade)
		return x.cause(asking.err)
	case asking.refusal != nil:
		defer asking.refusal.Body.Close()
		x.filter.settle(noUpgrade)
		return x.respond(ctx, asking.refusal)
	case err != nil:
		x.filter.settle(noUpgrade)
		return err
	}
	defer server.CloseNow()
	server.SetReadLimit(-1) // messages are passed on in pieces

	h := asking.header
	dropHopByHop(h)
	for name := range h {
		if strings.HasPrefix(name, "Sec-Websocket-") {
			delete(h, name)
		}
	}
	x.scope.ResponseHeader(h)
	copyHeader(x.w.Header(), h)
	options := &websocket.AcceptOptions{InsecureSkipVerify: true, CompressionMode: websocket.CompressionDisabled} // the origin is for the server to judge
	if name := server.Subprotocol(); name != "" {
		options.Subprotocols = []string{name}
	}
	x.filter.settle(upgraded)
	x.hijacked.Store(true)
	x.status = http.StatusSwitchingProtocols
	guest, err := websocket.Accept(x.w, x.r, options)
	if err != nil {
		return err
	}
	defer guest.CloseNow()
	guest.SetReadLimit(-1)
	if x.filter.Fault() != nil {
		return errEarly
	}

	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var up error
	var both sync.WaitGroup
	both.Go(func() {
		up = x.passMessages(ctx, server, guest, x.countSent, func(r io.Reader) io.Reader {
			return x.scope.RequestMessage(x.replaceMessage(before, r))
		})
	})
	down := x.passMessages(ctx, guest, server, x.countReceived, func(r io.Reader) io.Reader {
		return x.replaceMessage(after, x.scope.ResponseMessage(r))
	})
	both.Wait()
	return errors.Join(x.ending(up), x.ending(down))
}

// ending is nil if a WebSocket has ended as they do.
func (x *exchange) ending(err error) error {
	var closed websocket.CloseError
	if errors.As(err, &closed) || errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) || errors.Is(err, context.Canceled) {
		return nil
	}
	return x.cause(err)
}

// passMessages passes messages on until one end closes.
func (x *exchange) passMessages(ctx context.Context, to, from *websocket.Conn, count func(int), look func(io.Reader) io.Reader) error {
	buffer := make([]byte, smallBuffer)
	for {
		kind, r, err := from.Reader(ctx)
		if err != nil {
			var closed websocket.CloseError
			if errors.As(err, &closed) {
				_ = to.Close(closed.Code, closed.Reason) // it may have closed too
			} else {
				to.CloseNow()
			}
			return err
		}
		w, err := to.Writer(ctx, kind)
		if err == nil {
			_, err = io.CopyBuffer(&countedWriter{w, count}, onlyReader{look(r)}, buffer)
		}
		if err == nil {
			err = w.Close()
		}
		if err != nil {
			// What came before it was passed on: the message stays without its end.
			_ = from.Close(websocket.StatusPolicyViolation, fmt.Sprintf("%.100s", x.cause(err)))
			to.CloseNow()
			return err
		}
	}
}

// onlyReader has io.CopyBuffer use its buffer.
type onlyReader struct{ io.Reader }

// replaceMessage makes the replacements of hooks in a message.
func (x *exchange) replaceMessage(phase api.HookPhase, r io.Reader) io.Reader {
	for _, h := range x.hooks {
		if h.callback == nil && h.Phase == phase && len(h.Replace) > 0 {
			r = replaced("", io.NopCloser(r), h.Replace)
		}
	}
	return r
}

// handshake has websocket.Dial send our request, and keeps what is answered.
type handshake struct {
	x   *exchange
	out *http.Request

	header  http.Header    // of the 101
	refusal *http.Response // another response
	err     error
}

func (h *handshake) RoundTrip(r *http.Request) (*http.Response, error) {
	for name := range h.out.Header {
		if strings.HasPrefix(name, "Sec-Websocket-") {
			h.out.Header.Del(name)
		}
	}
	copyHeader(h.out.Header, r.Header)
	resp, err := h.x.send(h.out)
	if err != nil {
		h.err = err
		return nil, err
	}
	if resp.StatusCode != http.StatusSwitchingProtocols {
		h.refusal = resp
		shown := *resp
		shown.Body = http.NoBody
		return &shown, nil
	}
	h.header = resp.Header.Clone()
	return resp, nil
}
