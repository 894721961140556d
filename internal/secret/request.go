package secret

import (
	"encoding/base64"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strings"
)

// Request replaces placeholders by values in a request's headers, and in the query and path of its URL where their
// Places say so. It changes nothing if it finds a Leak, which is its only error.
//
// In headers a placeholder is replaced where it stands as it is, in Authorization also in the credentials of Basic. In
// query and path it may stand percent-encoded, and the value is encoded for the place. What is put in is not looked at
// again.
func (s *Scope) Request(h http.Header, u *url.URL) error {
	password, _ := u.User.Password()
	for _, part := range []string{u.Host, u.Opaque, u.Fragment, u.User.Username(), password} {
		if _, err := replace(s.set.bodies, s.judge("URL", 0, Places.never, nil), part); err != nil {
			return err
		}
	}
	// The path as it was sent may not be there any more: both that there are may have an escape more or less than it.
	if _, err := replace(s.set.bodies, s.judge("path", 0, Places.never, nil), u.Path); err != nil {
		return err
	}
	path := u.EscapedPath()
	newPath, err := replace(s.set.bodies, s.judge("path", usedPercent, Places.path, escapePath), path)
	if err != nil {
		return err
	}
	query, err := replace(s.set.bodies, s.judge("query", usedPercent, Places.query, escapeQuery), u.RawQuery)
	if err != nil {
		return err
	}
	if err := s.Trailer(h); err != nil {
		return err
	}
	u.RawQuery = query
	if newPath != path {
		// It was valid, and what replaced the placeholder is.
		if plain, err := url.PathUnescape(newPath); err == nil {
			u.Path, u.RawPath = plain, newPath
		}
	}
	return nil
}

// Trailer is Request for the trailers, which come behind the body.
func (s *Scope) Trailer(h http.Header) error {
	for name := range h {
		if _, err := replace(s.set.names, s.judge("header name", 0, Places.never, nil), name); err != nil {
			return err
		}
	}
	replaced := make(map[*string]string)
	for name, values := range h {
		for i, v := range values {
			value, err := s.header(name, v)
			if err != nil {
				return err
			}
			if value != v {
				replaced[&values[i]] = value
			}
		}
	}
	for at, value := range replaced {
		*at = value
	}
	return nil
}

// header replaces placeholders in one value of a header.
func (s *Scope) header(name, v string) (string, error) {
	judge := s.judge(s.where(name), 0, Places.header, asItIs)
	replaced, err := replace(s.set.bodies, judge, v)
	if err != nil || replaced != v || !strings.EqualFold(name, "Authorization") {
		return replaced, err
	}
	scheme, encoded, _ := strings.Cut(v, " ")
	credentials, ok := decodeBasic(encoded)
	if !strings.EqualFold(scheme, "Basic") || !ok {
		return v, nil
	}
	replaced, err = replace(s.set.bodies, judge, credentials)
	if err != nil || replaced == credentials {
		return v, err
	}
	return scheme + " " + base64.StdEncoding.EncodeToString([]byte(replaced)), nil
}

// where names a header. The guest has chosen the name: it may be long, and hold a placeholder that is in scope.
func (s *Scope) where(name string) string {
	found := false
	_, _ = replace(s.set.names, func(*pattern, used) ([]byte, bool, error) {
		found = true
		return nil, false, nil
	}, name)
	if found || len(name) > 64 {
		return "header"
	}
	return fmt.Sprintf("header %q", name)
}

// decodeBasic decodes credentials in either alphabet, padded or not: servers differ in what they take.
func decodeBasic(s string) (string, bool) {
	s = strings.TrimRight(strings.TrimLeft(s, " \t"), "= \t")
	decoded, err := base64.RawStdEncoding.DecodeString(strings.NewReplacer("-", "+", "_", "/").Replace(s))
	return string(decoded), err == nil
}

// RequestBody replaces placeholders in a body of the given Content-Type by the values of secrets whose Places have
// Body. In application/x-www-form-urlencoded a placeholder may stand percent-encoded, and the value is encoded so; in
// JSON it is escaped as the content of a string; elsewhere it is put in as it is. Where there is a Leak, Read fails with
// it, and gives nothing of what was read with it.
//
// It reports whether the length of the body may have changed.
func (s *Scope) RequestBody(contentType string, body io.ReadCloser) (rc io.ReadCloser, rewritten bool) {
	if body == nil || body == http.NoBody || len(s.in) == 0 {
		return body, false
	}
	judge := s.judge("body", 0, Places.body, asItIs)
	switch media := mediaType(contentType); {
	case media == "application/x-www-form-urlencoded":
		judge = s.judge("body", usedPercent, Places.body, escapeQuery)
	case media == "application/json", strings.HasSuffix(media, "+json"):
		judge = s.judge("body", 0, Places.body, escapeJSON)
	}
	return newReader(body, s.bodies, judge), s.rewrites()
}

// RequestMessage is RequestBody for a WebSocket message to the host, which ends where r does. Values are put in as
// they are.
func (s *Scope) RequestMessage(r io.Reader) io.Reader {
	return newReader(io.NopCloser(r), s.bodies, s.judge("message", 0, Places.body, asItIs))
}

func (s *Scope) bodies() *matcher { return s.set.bodies }

// rewrites reports whether values may be put into bodies.
func (s *Scope) rewrites() bool {
	for i, secret := range s.set.secrets {
		if s.in[i] == 1 && secret.Places.Body {
			return true
		}
	}
	return false
}

// mediaType returns the type of a Content-Type, of one that is malformed too: what decides how the value is encoded
// should be what the server goes by.
func mediaType(contentType string) string {
	media, _, err := mime.ParseMediaType(contentType)
	if err != nil {
		media, _, _ = strings.Cut(contentType, ";")
		media = strings.ToLower(strings.TrimSpace(media))
	}
	return media
}

func (p Places) header() bool { return true }
func (p Places) query() bool  { return p.Query }
func (p Places) path() bool   { return p.Path }
func (p Places) body() bool   { return p.Body }
func (p Places) never() bool  { return false }

func asItIs(value []byte) []byte      { return value }
func escapeQuery(value []byte) []byte { return []byte(url.QueryEscape(string(value))) }
func escapePath(value []byte) []byte  { return []byte(url.PathEscape(string(value))) }

// escapeJSON is what encoding/json writes between the quotes of a string, but that it leaves all else as it is: what is
// not UTF-8 too.
func escapeJSON(value []byte) []byte {
	escaped := make([]byte, 0, len(value)+8)
	for _, c := range value {
		switch c {
		case '"', '\\':
			escaped = append(escaped, '\\', c)
		case '\t': // no value has other control characters
			escaped = append(escaped, '\\', 't')
		default:
			escaped = append(escaped, c)
		}
	}
	return escaped
}
