package intercept

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/matchlock/matchlock/api"
)

// mutateRequest changes a request as a hook says.
func mutateRequest(r *http.Request, change *api.Hook) error {
	mutateHeader(r.Header, change)
	if change.RewritePath != "" {
		setPath(r.URL, change.RewritePath)
	}
	if len(change.SetQuery)+len(change.DeleteQuery) > 0 {
		r.URL.RawQuery = mutateQuery(r.URL.RawQuery, change)
	}
	if len(change.Replace) > 0 && r.Body != nil {
		body, err := decoded(r.Header, r.Body)
		if err != nil {
			return err
		}
		r.Body = replaced(r.Header.Get("Content-Type"), body, change.Replace)
		r.ContentLength = -1
	}
	return nil
}

// setPath sets an escaped path that was checked.
func setPath(u *url.URL, escaped string) {
	u.Path, u.RawPath = escaped, ""
	if plain, err := url.PathUnescape(escaped); err == nil {
		u.Path, u.RawPath = plain, escaped
	}
}

func mutateHeader(h http.Header, change *api.Hook) {
	for _, name := range change.DeleteHeaders {
		h.Del(name)
	}
	for name, value := range change.SetHeaders {
		h.Set(name, value)
	}
}

// mutateQuery leaves the other pairs as they are written.
func mutateQuery(query string, change *api.Hook) string {
	var pairs []string
	for pair := range strings.SplitSeq(query, "&") {
		written, _, _ := strings.Cut(pair, "=")
		name, err := url.QueryUnescape(written)
		if err != nil {
			name = written
		}
		if _, set := change.SetQuery[name]; pair != "" && !set && !slices.Contains(change.DeleteQuery, name) {
			pairs = append(pairs, pair)
		}
	}
	set := make(url.Values)
	for name, value := range change.SetQuery {
		set.Set(name, value)
	}
	if len(set) > 0 {
		pairs = append(pairs, set.Encode())
	}
	return strings.Join(pairs, "&")
}

// checkMutation refuses changes that would make another message of one.
func checkMutation(phase api.HookPhase, h *api.Hook) error {
	for name, value := range h.SetHeaders {
		if !isToken(name) || !isText(value) {
			return fmt.Errorf("header %q cannot be set", name)
		}
		if isFraming(phase, name) {
			return fmt.Errorf("header %q cannot be set: it says where the message goes, or ends", name)
		}
	}
	for _, name := range h.DeleteHeaders {
		if isFraming(phase, name) {
			return fmt.Errorf("header %q cannot be deleted: it says where the message goes, or ends", name)
		}
	}
	if h.RewritePath != "" {
		if u, err := url.ParseRequestURI(h.RewritePath); err != nil || h.RewritePath[0] != '/' || u.RawQuery != "" || strings.ContainsAny(h.RewritePath, "?# ") || !isText(h.RewritePath) {
			return fmt.Errorf("path %q: want one that begins with a slash, without a query", h.RewritePath)
		}
	}
	if phase == after && (len(h.SetQuery)+len(h.DeleteQuery) > 0 || h.RewritePath != "") {
		return errors.New("query and path can be changed before the request only")
	}
	for _, r := range h.Replace {
		if r.Find == "" {
			return errors.New("a replacement of nothing")
		}
	}
	return nil
}

func isFraming(phase api.HookPhase, name string) bool {
	name = http.CanonicalHeaderKey(name)
	switch name {
	case "Host", "Content-Length", "Expect", "Sec-Websocket-Key", "Sec-Websocket-Version", "Sec-Websocket-Extensions", "Sec-Websocket-Protocol", "Sec-Websocket-Accept":
		return true
	case "Range", "If-Range", "Accept-Encoding", "Content-Encoding":
		return true // what is looked into must come whole and plain
	}
	return slices.Contains(hopByHop, name)
}
