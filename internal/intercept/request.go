package intercept

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/netip"
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
	defer s.flow.requests.Done()
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

// checkHost compares whom the request is for with the flow's name and port.
func (x *exchange) checkHost() error {
	f := x.flow
	host, port, err := splitHost(x.r.Host)
	if err != nil {
		return &malformed{refusal{reason: err.Error()}}
	}
	if port != 0 && port != f.destination.Port() {
		return &misdirected{refusal{reason: fmt.Sprintf("Host %q, on a connection to port %d", x.r.Host, f.destination.Port())}}
	}
	addr, _ := netip.ParseAddr(host)
	addr = addr.Unmap()
	switch {
	case f.named() && addr.IsValid() && f.gateway && addr == f.destination.Addr():
		return nil // an address of the host that only the gateway has
	case f.named() && addr.IsValid():
		return &misdirected{refusal{reason: fmt.Sprintf("Host %s, on a connection to %s", host, f.host())}}
	case f.named():
		if err = f.choose("Host", host); err == nil {
			// The server is told what was compared, not how it was written.
			x.r.Host = f.host()
			if port != 0 {
				x.r.Host += ":" + strconv.Itoa(int(port))
			}
			return nil
		}
	default:
		err = f.checkFree("Host", host)
	}
	if no := (*refusal)(nil); errors.As(err, &no) {
		return &misdirected{*no}
	}
	return err
}

// splitHost takes a Host header apart; a port that is not there is 0.
func splitHost(s string) (host string, port uint16, err error) {
	host = s
	if i := strings.LastIndexByte(s, ':'); i >= 0 && !strings.HasSuffix(s, "]") {
		n, err := strconv.ParseUint(s[i+1:], 10, 16)
		if err != nil || n == 0 {
			return "", 0, fmt.Errorf("Host %.260q", s)
		}
		host, port = s[:i], uint16(n)
	}
	if inner, ok := strings.CutPrefix(host, "["); ok {
		host = strings.TrimSuffix(inner, "]")
		if addr, err := netip.ParseAddr(host); err != nil || !addr.Is6() || addr.Zone() != "" {
			return "", 0, fmt.Errorf("Host %.260q", s)
		}
		return host, port, nil
	}
	if host == "" || len(host) > 255 || strings.ContainsAny(host, ":/\\@?#%[] ") {
		return "", 0, fmt.Errorf("Host %.260q", s)
	}
	return host, port, nil
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

// cause finds what has really happened when a request was not answered.
func (x *exchange) cause(err error) error {
	if x.filter != nil && x.filter.Fault() != nil {
		return x.malformed()
	}
	var leak *secret.Leak
	if errors.As(err, &leak) {
		return &refusal{reason: leak.Error(), hint: x.leakHint(leak)}
	}
	var no *refusal
	if errors.As(err, &no) {
		return err
	}
	if cause := context.Cause(x.flow.ctx); cause != nil {
		return cause
	}
	var network *net.OpError
	if x.scope.Any() && !errors.As(err, &network) && !isCertificate(err) && !errors.Is(err, errEncoding) {
		// Such errors quote what the server has said, which may be a value.
		return errors.New("the server's answer cannot be read")
	}
	return err
}

func (x *exchange) leakHint(leak *secret.Leak) string {
	switch {
	case leak.Why != "out of scope":
		return ""
	case x.origin.scheme != "https":
		return "https://" + x.flow.host()
	}
	return "--secret " + leak.Secret + "@" + x.flow.host()
}

// respond answers the guest.
func (x *exchange) respond(ctx context.Context, resp *http.Response) error {
	h := resp.Header
	dropHopByHop(h)
	if err := x.askAfter(ctx, resp); err != nil {
		return err
	}
	to := x.w.Header()
	copyHeader(to, h)
	// net/http adds these where they are missing.
	for _, name := range []string{"Date", "Content-Type"} {
		if _, ok := to[name]; !ok {
			to[name] = nil
		}
	}
	for name := range resp.Trailer {
		to.Add("Trailer", name)
	}
	control := http.NewResponseController(x.w)
	// The guest may send its body while it gets the answer; HTTP/2 needs no leave. A
	// guest that waits for "100 Continue" does not send it, and the connection ends.
	if x.r.Header.Get("Expect") == "" || x.sent.Load() > 0 {
		_ = control.EnableFullDuplex()
	}
	x.status = resp.StatusCode
	x.w.WriteHeader(resp.StatusCode)
	if resp.ContentLength < 0 || len(resp.Trailer) > 0 {
		_ = control.Flush() // an error comes again with the body
	}
	announced := len(resp.Trailer)
	if err := x.copyBody(resp.Body, control); err != nil {
		return x.cause(err)
	}
	// Those that the body's end has brought may be others than were announced.
	if len(resp.Trailer) > 0 {
		_ = control.Flush()
		x.scope.ResponseHeader(resp.Trailer)
		for name, values := range resp.Trailer {
			if len(resp.Trailer) != announced {
				name = http.TrailerPrefix + name
			}
			for _, v := range values {
				to.Add(name, v)
			}
		}
	}
	return nil
}

var bodyBuffers = sync.Pool{New: func() any { return new([64 << 10]byte) }}

// copyBody hands on each piece at once.
func (x *exchange) copyBody(body io.Reader, control *http.ResponseController) error {
	var buffer []byte
	small := make([]byte, smallBuffer) // until more comes: an answer may last for days
	var large *[64 << 10]byte
	defer func() {
		if large != nil {
			bodyBuffers.Put(large)
		}
	}()
	buffer = small
	for {
		n, err := body.Read(buffer)
		if n > 0 {
			x.received.Add(int64(n))
			if _, err := x.w.Write(buffer[:n]); err != nil {
				return fmt.Errorf("the guest: %w", err)
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if err := control.Flush(); err != nil {
			return fmt.Errorf("the guest: %w", err)
		}
		switch {
		case large == nil && n == len(small):
			large = bodyBuffers.Get().(*[64 << 10]byte)
			buffer = large[:]
		case large != nil && n < len(small):
			bodyBuffers.Put(large)
			large, buffer = nil, small
		}
	}
}

// explain answers a request that is refused, or that failed, with the reason and
// the way out.
func (x *exchange) explain(err error) {
	status, rule, hint := http.StatusBadGateway, "", ""
	var no *refusal
	var other *misdirected
	var bad *malformed
	switch {
	case errors.As(err, &bad):
		status = http.StatusBadRequest
		x.w.Header().Set("Connection", "close")
	case errors.As(err, &other):
		if status = http.StatusForbidden; x.r.ProtoMajor == 2 {
			status = http.StatusMisdirectedRequest
		}
	case errors.As(err, &no):
		status = http.StatusForbidden
	}
	if errors.As(err, &no) {
		rule, hint = no.rule, no.hint
	}
	var text strings.Builder
	fmt.Fprintf(&text, "matchlock: %s: %v\n", x.flow.host(), err)
	if rule != "" {
		fmt.Fprintf(&text, "rule: %s\n", rule)
	}
	if hint != "" {
		fmt.Fprintf(&text, "hint: %s\n", hint)
	}
	h := x.w.Header()
	clear(h)
	if x.r.ProtoMajor == 1 {
		h.Set("Connection", "close") // a body may be left, or more that is not well
	}
	h.Set("Content-Type", "text/plain; charset=utf-8")
	h.Set("Content-Length", strconv.Itoa(text.Len()))
	h.Set("X-Content-Type-Options", "nosniff")
	x.status = status
	x.w.WriteHeader(status)
	_, _ = io.WriteString(x.w, text.String()) // the guest may be gone
}

// hopByHop is what is between neighbours only: RFC 9110, 7.6.1.
var hopByHop = []string{"Connection", "Keep-Alive", "Proxy-Connection", "Proxy-Authorization", "Proxy-Authenticate", "Te", "Trailer", "Transfer-Encoding", "Upgrade", "Http2-Settings"}

func dropHopByHop(h http.Header) {
	trailers := false
	for _, list := range h["Te"] {
		trailers = trailers || hasToken(list, "trailers")
	}
	for _, list := range h["Connection"] {
		for name := range strings.SplitSeq(list, ",") {
			h.Del(textproto.TrimString(name))
		}
	}
	for _, name := range hopByHop {
		h.Del(name)
	}
	if trailers {
		h.Set("Te", "trailers") // gRPC asks for it
	}
}

func copyHeader(to, from http.Header) {
	for name, values := range from {
		to[name] = append(to[name], values...)
	}
}
