package intercept

import (
	"errors"
	"fmt"
	"strings"
)

// field is a header, its name in lower case.
type field struct{ name, value string }

func parseField(line []byte) (field, error) {
	if line[0] == ' ' || line[0] == '\t' {
		return field{}, errors.New("folded header")
	}
	name, value, ok := strings.Cut(string(line), ":")
	if !ok || !isToken(name) {
		return field{}, fmt.Errorf("header %.40q", name)
	}
	if !isText(value) {
		return field{}, fmt.Errorf("control character in header %.40q", name)
	}
	return field{strings.ToLower(name), strings.Trim(value, " \t")}, nil
}

// checkRequestLine returns the minor version of HTTP, '0' or '1'.
func checkRequestLine(line []byte) (byte, error) {
	method, rest, _ := strings.Cut(string(line), " ")
	target, version, ok := strings.Cut(rest, " ")
	switch {
	case method == "CONNECT":
		return 0, errors.New("CONNECT")
	case !ok || version != "HTTP/1.1" && version != "HTTP/1.0":
		return 0, fmt.Errorf("request line %.60q", line)
	case !isToken(method):
		return 0, fmt.Errorf("method %.40q", method)
	case !isTarget(target):
		return 0, fmt.Errorf("request target %.60q", target)
	}
	return version[len(version)-1], nil
}

// isTarget reports that a request's target is a path, a URL, or the star of
// OPTIONS, and ends nowhere before its end.
func isTarget(s string) bool {
	if s == "" || strings.ContainsFunc(s, func(c rune) bool { return c <= ' ' || c == 0x7f || c == '#' }) {
		return false
	}
	return s[0] == '/' || s == "*" || hasPrefixFold(s, "http://") || hasPrefixFold(s, "https://")
}

// isToken is RFC 9110, 5.6.2.
func isToken(s string) bool {
	for i := range len(s) {
		c := s[i]
		if c|0x20 < 'a' || c|0x20 > 'z' {
			if (c < '0' || c > '9') && strings.IndexByte("!#$%&'*+-.^_`|~", c) < 0 {
				return false
			}
		}
	}
	return s != ""
}

// isText reports that there are no control characters but the tab.
func isText(s string) bool {
	for i := range len(s) {
		if c := s[i]; c < ' ' && c != '\t' || c == 0x7f {
			return false
		}
	}
	return true
}

// hasToken reports whether a list has the token, in any case.
func hasToken(list, token string) bool {
	for part := range strings.SplitSeq(list, ",") {
		if strings.EqualFold(strings.Trim(part, " \t"), token) {
			return true
		}
	}
	return false
}

var notInTrailers = []string{
	"host", "content-length", "transfer-encoding", "trailer", "connection", "upgrade", "te", "expect",
	"authorization", "cookie", "content-encoding", "content-type", "content-range", "range", "cache-control", "max-forwards",
}
