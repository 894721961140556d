package policy

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"unicode/utf8"

	"golang.org/x/net/idna"
)

const (
	maxName  = 253 // RFC 1035, §2.3.4, without the length bytes
	maxLabel = 63
	// maxText bounds what is looked at: in Unicode a name is shorter than this, too.
	maxText = 4 * maxName
)

var (
	errLength  = fmt.Errorf("a name has 1 to %d characters", maxName)
	errLabel   = fmt.Errorf("between dots a name has 1 to %d characters", maxLabel)
	errHyphen  = errors.New("a hyphen begins or ends a part")
	errUTF8    = errors.New("not UTF-8")
	errAddress = errors.New("an address, not a name")
	errNumber  = errors.New("its last part is a number, which programs take for an address")
)

// Normalize returns the form in which names are compared: in lower case, as ASCII by IDNA (UTS #46), without the last
// dot. Underscores may stand anywhere, as in _dmarc.example.com. It refuses what is no name, and also what some program
// may take for an address: "127.1", "0x7f.1", "2130706433". The name may come from the guest.
func Normalize(name string) (string, error) {
	normal, err := normalize(name)
	if err != nil {
		return "", fmt.Errorf("name %.100q: %w", name, err)
	}
	return normal, nil
}

func normalize(name string) (string, error) {
	if name == "" || len(name) > maxText {
		return "", errLength
	}
	if _, err := netip.ParseAddr(strings.Trim(name, "[]")); err == nil {
		return "", errAddress
	}
	name = strings.TrimSuffix(lower(name), ".")
	if !isASCII(name) || strings.HasPrefix(name, "xn--") || strings.Contains(name, ".xn--") {
		if !utf8.ValidString(name) { // IDNA would take what is not for U+FFFD
			return "", errUTF8
		}
		// A Profile holds no state, and making one is cheap beside using it.
		profile := idna.New(idna.MapForLookup(), idna.BidiRule(), idna.CheckJoiners(true), idna.CheckHyphens(false),
			idna.StrictDomainName(false), idna.Transitional(false))
		mapped, err := profile.ToASCII(name)
		if err != nil {
			return "", err
		}
		// Full-width letters and dots are mapped to plain ones: what follows judges what came out.
		name = strings.TrimSuffix(lower(mapped), ".")
	}
	if name == "" || len(name) > maxName {
		return "", errLength
	}
	last := ""
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || len(label) > maxLabel {
			return "", errLabel
		}
		for i := range len(label) {
			if c := label[i]; !(c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-' || c == '_') {
				return "", fmt.Errorf("%q stands in no name", rune(c))
			}
		}
		if label[0] == '-' || label[len(label)-1] == '-' {
			return "", errHyphen
		}
		last = label
	}
	// What inet_aton(3) and the URL standard read as IPv4 ends with a number in decimal, octal or hexadecimal digits. No
	// top-level domain is one.
	if strings.Trim(last, "0123456789") == "" {
		return "", errNumber
	}
	if digits, ok := strings.CutPrefix(last, "0x"); ok && strings.Trim(digits, "0123456789abcdef") == "" {
		return "", errNumber
	}
	return name, nil
}

// lower is for ASCII alone: IDNA knows what to do with other letters.
func lower(s string) string {
	for i := range len(s) {
		if c := s[i]; c >= 'A' && c <= 'Z' {
			b := []byte(s)
			for ; i < len(b); i++ {
				if b[i] >= 'A' && b[i] <= 'Z' {
					b[i] += 'a' - 'A'
				}
			}
			return string(b)
		}
	}
	return s
}

func isASCII(s string) bool {
	for i := range len(s) {
		if s[i] >= 0x80 {
			return false
		}
	}
	return true
}

// A pattern is a name, or with below set the names below it at any depth.
type pattern struct {
	name  string
	below bool
}

func parsePattern(text string) (pattern, error) {
	suffix, below := strings.CutPrefix(text, "*.")
	name, err := Normalize(suffix)
	return pattern{name, below}, err
}

func (p pattern) match(name string) bool {
	if p.below {
		return isBelow(name, p.name)
	}
	return name == p.name
}

// covers tells whether every name that q matches is one of p's.
func (p pattern) covers(q pattern) bool {
	if q.below {
		return p.below && (p.name == q.name || isBelow(q.name, p.name))
	}
	return p.match(q.name)
}

// meets tells whether there is a name that both match.
func (p pattern) meets(q pattern) bool { return p.covers(q) || q.covers(p) }

func isBelow(name, suffix string) bool {
	return len(name) > len(suffix)+1 && strings.HasSuffix(name, suffix) && name[len(name)-len(suffix)-1] == '.'
}

type patterns []pattern

func (ps patterns) match(name string) bool {
	for _, p := range ps {
		if p.match(name) {
			return true
		}
	}
	return false
}

// Hosts compiles names and "*.suffix" patterns. The function it returns tells whether a name, as Normalize returns it,
// is one of them; the name "" of a flow to an address never is.
func Hosts(texts []string) (func(name string) bool, error) {
	ps, err := parsePatterns(texts)
	return ps.match, err
}

func parsePatterns(texts []string) (patterns, error) {
	var (
		ps   patterns
		errs []error
	)
	for _, text := range texts {
		p, err := parsePattern(text)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		ps = append(ps, p)
	}
	return ps, errors.Join(errs...)
}
