package intercept

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/matchlock/matchlock/api"
	"github.com/matchlock/matchlock/internal/secret"
)

// exchange is a request of the guest's and its response.
type exchange struct {
	*session
	w http.ResponseWriter
	r *http.Request

	scope *secret.Scope
	// The response's body is looked into, or changed: it must come in an encoding
	// that we know, and whole.
	opens bool
	hooks []*hook // those that are about it

	began          time.Time
	sent, received atomic.Int64 // of bodies
	status         int          // sent to the guest; 0: none
	event          event

	mu      sync.Mutex
	secrets []string // put in
}

// put notes that a secret was put in.
func (x *exchange) put(name string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if !slices.Contains(x.secrets, name) {
		x.secrets = append(x.secrets, name)
	}
}

// serveRequest is the handler of all sessions.
func (i *Interceptor) serveRequest(w http.ResponseWriter, r *http.Request) {
	s := r.Context().Value(sessionKey{}).(*session)
	if !s.flow.beginRequest() {
		panic(http.ErrAbortHandler)
	}
	defer s.flow.endRequest()
	if s.filter != nil {
		defer s.filter.answered()
	}
	x := &exchange{session: s, w: w, r: r, began: time.Now()}
	err := x.admit()
	x.describe()
	aborted := true
	defer func() {
		x.event.Millis = millis(time.Since(x.began))
		x.event.Sent, x.event.Received, x.event.Status = x.sent.Load(), x.received.Load(), x.status
		x.mu.Lock()
		x.event.Secrets = slices.Clone(x.secrets)
		x.mu.Unlock()
		x.event.judge(err)
		i.Event(x.event.Event)
		if aborted {
			panic(http.ErrAbortHandler)
		}
	}()
	if err == nil {
		err = x.run()
	}
	if err != nil && x.status != 0 {
		return // in the middle of the answer: it is cut, so that the guest does not take it for whole
	}
	if err != nil {
		x.explain(err)
	}
	aborted = false
}

// misdirected is a refusal of a request that is for another host than its flow.
type misdirected struct{ refusal }

func (m *misdirected) Unwrap() error { return &m.refusal }

// malformed is a refusal of a request that could be read in two ways.
type malformed struct{ refusal }

func (m *malformed) Unwrap() error { return &m.refusal }

// admit judges what a request is, before anything is done with it.
func (x *exchange) admit() error {
	if x.filter != nil && x.r.Method == x.flow.i.refusedMethod {
		return x.malformed()
	}
	if x.r.Method == http.MethodConnect {
		return &refusal{reason: "CONNECT: there is no proxy here", hint: "connect to the host itself"}
	}
	if !isTarget(x.r.RequestURI) || x.r.URL.User != nil || x.r.URL.Scheme != "" && x.r.URL.Scheme != x.origin.scheme {
		return &malformed{refusal{reason: fmt.Sprintf("request target %.60q", x.r.RequestURI)}}
	}
	if length := x.r.Header.Get("Content-Length"); x.r.ContentLength == 0 && length != "" && strings.Trim(length, "0") != "" {
		return &malformed{refusal{reason: fmt.Sprintf("Content-Length %.40q, and no body", length)}}
	}
	// net/http has taken it out of HTTP/1's headers.
	if hosts := x.r.Header["Host"]; len(hosts) > 1 || len(hosts) == 1 && hosts[0] != x.r.Host {
		return &malformed{refusal{reason: fmt.Sprintf("Host %.260q beside :authority %.260q", hosts, x.r.Host)}}
	}
	return x.checkHost()
}

func (x *exchange) malformed() error {
	why := errors.New("form")
	if err := x.filter.Fault(); err != nil {
		why = err
	}
	return &malformed{refusal{reason: "malformed request: " + why.Error()}}
}

// describe begins the request's event.
func (x *exchange) describe() {
	e := x.flow.newEvent(api.EventRequest)
	e.Time, e.Method = x.began, x.r.Method
	e.Path, _, _ = strings.Cut(x.r.RequestURI, "?")
	if x.r.URL.Host != "" {
		e.Path = x.r.URL.EscapedPath()
	}
	if x.filter != nil && x.r.Method == x.flow.i.refusedMethod {
		e.Method, e.Path = "", ""
	}
	x.event = e
}

// run sends the request and answers with its response.
func (x *exchange) run() error {
	f := x.flow
	host := f.host()
	x.scope = f.i.Secrets.Outside()
	if x.origin.scheme == "https" && f.named() && x.origin.err == nil {
		x.scope = f.i.Secrets.For(host).Noting(x.put)
	}
	ctx, cancel := context.WithCancelCause(x.r.Context())
	defer cancel(nil)
	defer context.AfterFunc(f.ctx, func() { cancel(context.Cause(f.ctx)) })()

	x.hooks = x.hooksFor(host)
	x.opens = x.scope.Any() || x.hooksOpen(after)
	websocket := isWebSocket(x.r)
	if x.filter != nil && !websocket {
		x.filter.settle(noUpgrade)
	}
	if x.scope.Any() && x.r.Method == http.MethodTrace {
		return &refusal{reason: "TRACE of a request that holds a secret"}
	}
	out, err := x.outgoing(ctx)
	if err != nil {
		return err
	}
	if websocket {
		return x.webSocket(ctx, out)
	}
	resp, err := x.send(out)
	if err != nil {
		return x.cause(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusSwitchingProtocols {
		err := errors.New("the server switches protocols, and was not asked to")
		f.cut(err)
		return err
	}
	return x.respond(ctx, resp)
}

// outgoing makes the request that the server is to get: hooks have been asked, and
// secrets are in it.
func (x *exchange) outgoing(ctx context.Context) (*http.Request, error) {
	out := x.r.Clone(ctx)
	out.Close = false
	out.RequestURI = ""
	out.URL.Scheme, out.URL.Host, out.URL.User, out.URL.Opaque = x.origin.scheme, x.target(), nil, ""
	raw := x.event.Path
	dropHopByHop(out.Header)
	if x.r.ContentLength == 0 {
		out.Body = nil
	}
	if out.Body != nil {
		out.Body = &guestBody{Reader: out.Body, n: &x.sent}
	}
	if x.opens {
		// What is looked into must come whole, and in an encoding that we know.
		out.Header.Del("Range")
		out.Header.Del("If-Range")
		acceptKnownEncodings(out.Header)
	}
	before := out.URL.EscapedPath()
	if err := x.askBefore(ctx, out); err != nil {
		return nil, err
	}
	if err := x.scope.Request(out.Header, out.URL); err != nil {
		return nil, x.cause(err)
	}
	if out.URL.EscapedPath() == before && strings.HasPrefix(raw, "/") && !strings.HasPrefix(raw, "//") {
		// As the guest wrote it, not as package url would. This is no URL with a
		// scheme: the path stands in Opaque.
		out.URL.Opaque = raw
	}
	if err := x.requestBody(out); err != nil {
		return nil, err
	}
	if _, ok := out.Header["User-Agent"]; !ok {
		out.Header["User-Agent"] = []string{""} // else the transport has its own
	}
	return out, nil
}

// target is what the transport keeps its connections by: one for all requests of
// a flow, whatever Host says.
func (x *exchange) target() string {
	return net.JoinHostPort(x.flow.host(), strconv.Itoa(int(x.flow.destination.Port())))
}

// requestBody has placeholders in the body, and behind it in the trailers, looked
// for.
func (x *exchange) requestBody(out *http.Request) error {
	if out.Body == nil {
		return nil
	}
	rewritten := false
	if out.Body, rewritten = x.scope.RequestBody(out.Header.Get("Content-Type"), out.Body); rewritten {
		out.ContentLength = -1
	}
	if out.ContentLength == -1 {
		out.Header.Del("Content-Length")
	}
	// The server's trailers are put into this map when the body has been read.
	if x.r.Trailer == nil {
		x.r.Trailer = make(http.Header)
	}
	out.Trailer = x.r.Trailer
	out.Body = &trailedBody{out.Body, func() error { return x.scope.Trailer(out.Trailer) }}
	return nil
}

// trailedBody calls atEnd between a body and its trailers.
type trailedBody struct {
	io.ReadCloser
	atEnd func() error
}

func (b *trailedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err == io.EOF && b.atEnd != nil {
		if fault := b.atEnd(); fault != nil {
			return n, fault
		}
		b.atEnd = nil
	}
	return n, err
}

// guestBody is a request's body, counted. Close only ends its being read: that of
// net/http would wait for what the guest has not sent, and may never.
type guestBody struct {
	io.Reader
	n      *atomic.Int64
	closed atomic.Bool
}

func (b *guestBody) Read(p []byte) (int, error) {
	if b.closed.Load() {
		return 0, http.ErrBodyReadAfterClose
	}
	n, err := b.Reader.Read(p)
	b.n.Add(int64(n))
	return n, err
}

func (b *guestBody) Close() error {
	b.closed.Store(true)
	return nil
}

// send sends the request, and passes on the interim responses before its response.
func (x *exchange) send(out *http.Request) (*http.Response, error) {
	var mu sync.Mutex
	over := false
	trace := &httptrace.ClientTrace{
		Got1xxResponse: func(code int, header textproto.MIMEHeader) error {
			mu.Lock()
			defer mu.Unlock()
			// That of "100 Continue" is sent when the body is first asked for.
			if over || code == http.StatusContinue || !x.r.ProtoAtLeast(1, 1) {
				return nil
			}
			h := http.Header(header).Clone()
			dropHopByHop(h)
			x.scope.ResponseHeader(h)
			to := x.w.Header()
			copyHeader(to, h)
			x.w.WriteHeader(code)
			clear(to)
			return nil
		},
	}
	resp, err := x.origin.roundTrip(out.WithContext(httptrace.WithClientTrace(out.Context(), trace)))
	mu.Lock()
	defer mu.Unlock()
	over = true
	return resp, err
}
