package intercept

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/matchlock/matchlock/api"
	"github.com/matchlock/matchlock/internal/policy"
)

const (
	before = api.HookBefore
	after  = api.HookAfter

	// askTime is how long a hook has for its answer, unless it says otherwise.
	askTime = 5 * time.Second
)

// Callback is a hook in this process: what package sandbox calls a Hook, and explains. It is
// asked after those of the options, with what they have made of it. An error, a panic, or no
// answer in time blocks.
type Callback struct {
	Name    string
	Hosts   []string      // names, or "*.suffix"; none: all
	Timeout time.Duration // 0: 5 s

	// Before is asked before the request goes out. It sees placeholders.
	Before func(context.Context, *Request) error
	// After is asked when the response has come. It sees no secrets.
	After func(context.Context, *Response) error
}

// Request is what a callback sees of a request, and may change but for the first
// three.
type Request struct {
	Host   string // the flow's name, or its address
	Port   uint16
	Method string

	Path   string // as it stands in the request, escaped
	Query  string // without the question mark
	Header http.Header
	// Body may be replaced by a reader of it, or of something else. It is nil where
	// there is none. Read it after the callback has returned, not in it: it may never
	// end.
	Body io.ReadCloser
}

// Response is what a callback sees of a response; Header and Body it may change.
type Response struct {
	Request *Request // without its body
	Status  int
	Header  http.Header
	Body    io.ReadCloser // as that of Request
}

// hook is an api.Hook or a Callback.
type hook struct {
	api.Hook
	callback *Callback
	hosts    func(name string) bool // nil: all
}

func newHooks(rules []api.Hook, callbacks []Callback) ([]hook, error) {
	var hooks []hook
	add := func(h hook) (err error) {
		if len(h.Hosts) > 0 {
			if h.hosts, err = policy.Hosts(h.Hosts); err != nil {
				return fmt.Errorf("hook %q: %w", h.Name, err)
			}
		}
		hooks = append(hooks, h)
		return nil
	}
	for _, rule := range rules {
		if rule.Phase == "" {
			rule.Phase = before
		}
		if err := checkMutation(rule.Phase, &rule); err != nil {
			return nil, fmt.Errorf("hook %q: %w", rule.Name, err)
		}
		if err := add(hook{Hook: rule}); err != nil {
			return nil, err
		}
	}
	for i := range callbacks {
		c := &callbacks[i]
		if err := add(hook{Hook: api.Hook{Name: c.Name, Hosts: c.Hosts}, callback: c}); err != nil {
			return nil, err
		}
	}
	return hooks, nil
}

// matchesHost reports whether the hook is about a host.
func (h *hook) matchesHost(host string) bool {
	return h.hosts == nil || h.hosts(host)
}

// hooked reports whether a hook is about a host.
func (f *flow) hooked(host string) bool {
	return slices.ContainsFunc(f.i.hooks, func(h hook) bool { return h.matchesHost(host) })
}

// hooksFor returns the hooks that are about the request.
func (x *exchange) hooksFor(host string) []*hook {
	var hooks []*hook
	for i := range x.flow.i.hooks {
		h := &x.flow.i.hooks[i]
		if h.matchesHost(host) && (len(h.Methods) == 0 || slices.Contains(h.Methods, x.r.Method)) && h.matchesPath(x.r.URL) {
			hooks = append(hooks, h)
		}
	}
	return hooks
}

// matchesPath compares paths as they are written, and as servers may understand
// them. What allows must match both: there is no way around what blocks.
func (h *hook) matchesPath(u *url.URL) bool {
	if h.Path == "" {
		return true
	}
	written := u.EscapedPath()
	understood := path.Clean("/" + strings.ReplaceAll(u.Path, `\`, "/"))
	if strings.HasSuffix(u.Path, "/") && understood != "/" {
		understood += "/"
	}
	a, b := matchPath(h.Path, written), matchPath(h.Path, understood)
	if h.Action == api.HookAllow {
		return a && b
	}
	return a || b
}

// matchPath is path.Match, but that a last "/**" is whatever is below, and what it
// is below of.
func matchPath(glob, name string) bool {
	if glob == "/**" || glob == "**" {
		return true
	}
	if above, ok := strings.CutSuffix(glob, "/**"); ok {
		// Each of the glob's segments is one of the name's.
		segments := strings.SplitN(name, "/", strings.Count(above, "/")+2)
		name, glob = strings.Join(segments[:min(len(segments), strings.Count(above, "/")+1)], "/"), above
	}
	ok, err := path.Match(glob, name)
	return ok && err == nil // a bad glob was refused before
}

// hooksOpen reports whether a hook may look into, or change, what comes in a phase.
func (x *exchange) hooksOpen(phase api.HookPhase) bool {
	return slices.ContainsFunc(x.hooks, func(h *hook) bool {
		if h.callback != nil {
			return phase == before && h.callback.Before != nil || phase == after && h.callback.After != nil
		}
		return h.Phase == phase && (len(h.Replace) > 0 || h.Action == api.HookAsk)
	})
}

// blocked is what a hook's no is.
func (h *hook) blocked(reason string) error {
	name := h.Name
	if name == "" {
		name = "without a name"
	}
	if reason == "" {
		return &refusal{reason: fmt.Sprintf("blocked by hook %s", name)}
	}
	return &refusal{reason: fmt.Sprintf("blocked by hook %s: %.500s", name, reason)}
}

// askBefore asks the hooks about a request, and changes it as they say.
func (x *exchange) askBefore(ctx context.Context, out *http.Request) error {
	for _, h := range x.hooks {
		if h.callback != nil {
			if h.callback.Before == nil {
				continue
			}
			seen := x.seen(out)
			seen.Body = out.Body
			if err := h.call(ctx, func(ctx context.Context) error { return h.callback.Before(ctx, seen) }); err != nil {
				return err
			}
			if err := x.take(out, seen); err != nil {
				return h.blocked(err.Error())
			}
			continue
		}
		if h.Phase != before {
			continue
		}
		change, reason := &h.Hook, ""
		if h.Action == api.HookAsk {
			var err error
			if change, reason, err = h.ask(ctx, x.question(h, out, nil)); err != nil {
				return err
			}
		}
		switch change.Action {
		case api.HookAllow:
			return nil
		case api.HookBlock:
			return h.blocked(reason)
		}
		if err := mutateRequest(out, change); err != nil {
			return h.blocked(err.Error())
		}
	}
	return nil
}

// askAfter asks the hooks about a response, from which secrets are taken out first.
func (x *exchange) askAfter(ctx context.Context, resp *http.Response) (err error) {
	if x.opens {
		if resp.Body, err = decoded(resp.Header, resp.Body); err != nil {
			return err
		}
		changed(resp)
		x.scope.ResponseHeader(resp.Header)
		resp.Body = x.scope.ResponseBody(resp.Body)
	}
	for _, h := range x.hooks {
		if h.callback != nil {
			if h.callback.After == nil {
				continue
			}
			seen := &Response{Request: x.seen(x.r), Status: resp.StatusCode, Header: resp.Header.Clone(), Body: resp.Body}
			if err := h.call(ctx, func(ctx context.Context) error { return h.callback.After(ctx, seen) }); err != nil {
				return err
			}
			resp.Header, resp.Body = seen.Header, seen.Body
			if resp.Body == nil {
				resp.Body = http.NoBody
			}
			dropHopByHop(resp.Header)
			continue
		}
		if h.Phase != after {
			continue
		}
		change, reason := &h.Hook, ""
		if h.Action == api.HookAsk {
			if change, reason, err = h.ask(ctx, x.question(h, x.r, resp)); err != nil {
				return err
			}
		}
		switch change.Action {
		case api.HookAllow:
			return nil
		case api.HookBlock:
			return h.blocked(reason)
		}
		mutateHeader(resp.Header, change)
		if len(change.Replace) > 0 {
			resp.Body = replaced(resp.Header.Get("Content-Type"), resp.Body, change.Replace)
		}
	}
	return nil
}

// seen is a request as hooks see it.
func (x *exchange) seen(r *http.Request) *Request {
	return &Request{
		Host: x.flow.host(), Port: x.flow.destination.Port(), Method: r.Method,
		Path: r.URL.EscapedPath(), Query: r.URL.RawQuery, Header: r.Header.Clone(),
	}
}

// take changes a request to what a callback has left.
func (x *exchange) take(out *http.Request, seen *Request) error {
	if seen.Path != out.URL.EscapedPath() {
		if err := checkMutation(before, &api.Hook{RewritePath: seen.Path}); err != nil {
			return err
		}
		setPath(out.URL, seen.Path)
	}
	if !isText(seen.Query) || strings.ContainsAny(seen.Query, " #") {
		return errors.New("query with a character that cannot stand there")
	}
	out.URL.RawQuery = seen.Query
	for name, values := range seen.Header {
		if isFraming(before, name) {
			continue // stays as it was
		}
		if !isToken(name) || !isText(strings.Join(values, "")) {
			return fmt.Errorf("header %q", name)
		}
	}
	for name := range seen.Header {
		if isFraming(before, name) {
			delete(seen.Header, name)
		}
	}
	for name, values := range out.Header {
		if isFraming(before, name) {
			seen.Header[name] = values
		}
	}
	out.Header = seen.Header
	if seen.Body != out.Body {
		if seen.Body == nil {
			out.Body, out.ContentLength = nil, 0
		} else {
			out.Body, out.ContentLength = seen.Body, -1
		}
	}
	return nil
}

// call runs a callback. One that does not end in time is left alone: what it has
// is not used any more.
func (h *hook) call(ctx context.Context, f func(context.Context) error) error {
	timeout := h.callback.Timeout
	if timeout == 0 {
		timeout = askTime
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	answer := make(chan error, 1)
	go func() {
		defer func() {
			if p := recover(); p != nil {
				answer <- fmt.Errorf("panic: %v", p)
			}
		}()
		answer <- f(ctx)
	}()
	select {
	case err := <-answer:
		if err != nil {
			return h.blocked(err.Error())
		}
		return nil
	case <-ctx.Done():
		return h.blocked("no answer in time")
	}
}
