package intercept

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"

	"github.com/matchlock/matchlock/internal/secret"
)

// respond answers the guest.
func (x *exchange) respond(ctx context.Context, resp *http.Response) error {
	h := resp.Header
	dropHopByHop(h)
	// Where what the guest gets has no length any more, what comes may have one. Then
	// headers, body and end need not go out one by one, each of which would wake the
	// guest. What a callback gives in its place may come whenever it likes.
	whole := new(lengthed)
	if resp.ContentLength > 0 && len(x.hooks) == 0 {
		whole.ReadCloser, whole.left = resp.Body, resp.ContentLength
		resp.Body = whole
	}
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
	if resp.ContentLength < 0 && whole.ReadCloser == nil || len(resp.Trailer) > 0 {
		_ = control.Flush() // an error comes again with the body
	}
	announced := len(resp.Trailer)
	if err := x.copyBody(resp.Body, control, whole.ended); err != nil {
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

// lengthed is a body whose length is known.
type lengthed struct {
	io.ReadCloser
	left int64 // bytes to come
}

func (l *lengthed) Read(p []byte) (int, error) {
	n, err := l.ReadCloser.Read(p)
	l.left -= int64(n)
	return n, err
}

// ended says that there is one, and all of it was read.
func (l *lengthed) ended() bool { return l.ReadCloser != nil && l.left <= 0 }

// copyBody hands on each piece at once, unless the server has sent all: what is left
// then is not waited for.
func (x *exchange) copyBody(body io.Reader, control *http.ResponseController, ended func() bool) error {
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
		if !ended() {
			if err := control.Flush(); err != nil {
				return fmt.Errorf("the guest: %w", err)
			}
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

// cause finds what has really happened when a request was not answered.
func (x *exchange) cause(err error) error {
	var leak *secret.Leak
	if errors.As(err, &leak) {
		return &refusal{reason: leak.Error(), hint: x.leakHint(leak)}
	}
	var no *refusal
	if errors.As(err, &no) {
		return err
	}
	if x.filter != nil && x.filter.Fault() != nil {
		return x.malformed()
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
