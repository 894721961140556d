package secret

import (
	"fmt"
	"io"
	"net/http"
	"strings"
)

// A Scope is what the secrets of a Set are towards one host: which are in scope never changes, what they stand for
// follows Rotate and Revoke. Any number of goroutines may use it.
type Scope struct {
	set *Set
	in  string // a byte for each secret, 1 if it is in scope
	put func(name string)
}

// Noting returns the same scope, which calls put with the name of each secret whose value it puts in, by the goroutines
// that use it.
func (s *Scope) Noting(put func(name string)) *Scope {
	noting := *s
	noting.put = put
	return &noting
}

// Any reports whether a secret is in scope, bound or not: then responses must pass through the Scope.
func (s *Scope) Any() bool { return strings.Contains(s.in, "\x01") }

// A Leak is the placeholder of a secret where it must not go. The error's text holds neither it nor a value.
type Leak struct {
	Secret string // its name
	Where  string // "path", "query", "URL" (elsewhere in it), `header "X-Key"`, "header" (of an odd name), "header name", "body", "message"
	Why    string // "out of scope", "unbound", "revoked"
}

func (l *Leak) Error() string {
	return fmt.Sprintf("placeholder of secret %q in the %s: %s", l.Secret, l.Where, l.Why)
}

// judge makes a judge for one place of a request. Placeholders that stand as they are or only with escapes of the
// kinds by are replaced, where the secret's Places say so, by encode of the value.
func (s *Scope) judge(where string, by used, open func(Places) bool, encode func([]byte) []byte) judge {
	return func(p *pattern, found used) ([]byte, bool, error) {
		secret, b := &s.set.secrets[p.of.index], &s.set.state.Load().bound[p.of.index]
		why := ""
		switch {
		case s.in[p.of.index] == 0:
			why = "out of scope"
		case b.revoked:
			why = "revoked"
		case b.value.IsZero():
			why = "unbound"
		}
		if why != "" {
			return nil, false, &Leak{secret.Name, where, why}
		}
		if !p.plain || found&^by != 0 || !open(secret.Places) {
			return nil, false, nil // to this host it is only a text that it cannot use
		}
		if s.put != nil {
			s.put(secret.Name)
		}
		return encode(b.value.bytes()), true, nil
	}
}

// ResponseHeader replaces values by their placeholders in headers or trailers of a response, but for their names.
func (s *Scope) ResponseHeader(h http.Header) {
	if !s.Any() {
		return
	}
	for _, values := range h {
		for i, v := range values {
			values[i] = s.ResponseText(v)
		}
	}
}

// ResponseText replaces values by their placeholders in what else a host has said, such as a status line's text.
func (s *Scope) ResponseText(text string) string {
	text, _ = replace(s.redactor(), redact, text) // redact has no errors
	return text
}

// ResponseBody replaces values by their placeholders in a body, also those that secrets get while it is read. It gives
// at once what has come, but for what may be the beginning of a value; at its end, or an error, that too. Its length
// may change, so a format with lengths of its own inside (gRPC) does not survive a value in it.
func (s *Scope) ResponseBody(body io.ReadCloser) io.ReadCloser {
	if !s.Any() || body == http.NoBody {
		return body
	}
	return newReader(body, s.redactor, redact)
}

// ResponseMessage is ResponseBody for a WebSocket message from the host, which ends where r does.
func (s *Scope) ResponseMessage(r io.Reader) io.Reader {
	return s.ResponseBody(io.NopCloser(r))
}

func (s *Scope) redactor() *matcher { return s.set.state.Load().redactor(s) }

// redact judges what is found in responses.
func redact(p *pattern, _ used) ([]byte, bool, error) { return p.of.instead, true, nil }
