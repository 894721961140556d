package secret

import (
	"cmp"
	"strings"
	"unicode/utf16"
)

// An escape is the beginning of one character's escaped form: what has been read of it so far. The zero escape is none.
// It is a state of an automaton, one for all kinds of escapes: their first bytes tell them apart.
type escape struct {
	kind kind
	n    uint8  // digits or letters so far
	v    uint32 // their value
}

func (e escape) compare(f escape) int {
	return cmp.Or(cmp.Compare(e.kind, f.kind), cmp.Compare(e.n, f.n), cmp.Compare(e.v, f.v))
}

type kind uint8

const (
	noEscape  kind = iota
	percent        // %, then 2 hex digits
	backslash      // \
	hexByte        // \x, then 2 hex digits
	unicode        // \u, then 4 hex digits
	highHalf       // \ud83d, the first half of a surrogate pair in v
	highSlash      // the same and a backslash
	lowHalf        // the same and a u, then 4 hex digits
	ampersand      // &, then letters of a name
	number         // &#
	decimal        // &#, then digits
	hexNumber      // &#x, then hex digits
)

// maxNumber is how many digits a numeric character reference may have: what is held back of a stream must end somewhere.
const maxNumber = 8

// A char is what an escape stands for: a byte, or a code point.
type char struct {
	r      rune
	isByte bool
}

// used is a set of kinds of escapes.
type used uint8

const (
	usedPercent used = 1 << iota
	usedJSON
	usedHTML
	usedNested // an escape of an escape
)

// introduces reports whether c begins an escape.
func introduces(c byte) bool { return c == '%' || c == '\\' || c == '&' }

// begin returns the escape that c introduces.
func begin(c byte) (escape, used) {
	switch c {
	case '%':
		return escape{kind: percent}, usedPercent
	case '\\':
		return escape{kind: backslash}, usedJSON
	}
	return escape{kind: ampersand}, usedHTML
}

// What the next byte makes of an escape.
type verdict uint8

const (
	dead verdict = iota // no escape
	more                // the beginning of one
	done                // a whole one
)

// names are HTML's escapes that servers' own functions write; named says what they stand for.
var names = [...]string{"amp;", "lt;", "gt;", "quot;", "apos;"}

const named = `&<>"'`

// next reads one more byte of the escape.
func (e escape) next(c byte) (escape, char, verdict) {
	switch e.kind {
	case percent, hexByte:
		d, ok := digit(c)
		if !ok {
			return escape{}, char{}, dead
		}
		e.n, e.v = e.n+1, e.v<<4|d
		if e.n == 2 {
			return escape{}, char{rune(e.v), e.kind == percent}, done
		}
		return e, char{}, more
	case backslash:
		switch c {
		case 'u':
			return escape{kind: unicode}, char{}, more
		case 'x':
			return escape{kind: hexByte}, char{}, more
		case '"', '\'', '\\', '/':
			return escape{}, char{r: rune(c)}, done
		case 't':
			return escape{}, char{r: '\t'}, done // no value has any other that JSON names
		}
		return escape{}, char{}, dead
	case unicode:
		d, ok := digit(c)
		if !ok {
			return escape{}, char{}, dead
		}
		e.n, e.v = e.n+1, e.v<<4|d
		if e.n < 4 {
			return e, char{}, more
		}
		if utf16.IsSurrogate(rune(e.v)) {
			return escape{kind: highHalf, v: e.v}, char{}, more
		}
		return escape{}, char{r: rune(e.v)}, done
	case highHalf:
		if c != '\\' {
			return escape{}, char{}, dead
		}
		e.kind = highSlash
		return e, char{}, more
	case highSlash:
		if c != 'u' {
			return escape{}, char{}, dead
		}
		e.kind = lowHalf
		return e, char{}, more
	case lowHalf:
		d, ok := digit(c)
		if !ok {
			return escape{}, char{}, dead
		}
		e.n, e.v = e.n+1, e.v<<4|d
		if e.n < 4 {
			return e, char{}, more
		}
		r := utf16.DecodeRune(rune(e.v>>16), rune(e.v&0xffff))
		if r == '\uFFFD' {
			return escape{}, char{}, dead
		}
		return escape{}, char{r: r}, done
	case ampersand:
		if c == '#' && e.n == 0 {
			return escape{kind: number}, char{}, more
		}
		// v is one of the names that it still can be.
		so := names[e.v][:e.n]
		for i, name := range names {
			if rest, ok := strings.CutPrefix(name, so); !ok || rest == "" || rest[0] != c {
				continue
			}
			if c == ';' {
				return escape{}, char{r: rune(named[i])}, done
			}
			e.n, e.v = e.n+1, uint32(i)
			return e, char{}, more
		}
		return escape{}, char{}, dead
	case number, decimal, hexNumber:
		return e.reference(c)
	}
	return escape{}, char{}, dead
}

// reference reads one more byte of a numeric character reference.
func (e escape) reference(c byte) (escape, char, verdict) {
	if e.kind == number {
		if c == 'x' || c == 'X' {
			return escape{kind: hexNumber}, char{}, more
		}
		e.kind = decimal
	}
	if c == ';' && e.n > 0 && e.v <= 0x10ffff {
		return escape{}, char{r: rune(e.v)}, done
	}
	d, ok := digit(c)
	base := uint32(16)
	if e.kind == decimal {
		base, ok = 10, ok && d < 10
	}
	if !ok || e.n == maxNumber {
		return escape{}, char{}, dead
	}
	e.n, e.v = e.n+1, e.v*base+d
	return e, char{}, more
}

// digit returns the value of a hex digit.
func digit(c byte) (uint32, bool) {
	switch {
	case '0' <= c && c <= '9':
		return uint32(c - '0'), true
	case 'a' <= c && c <= 'f':
		return uint32(c-'a') + 10, true
	case 'A' <= c && c <= 'F':
		return uint32(c-'A') + 10, true
	}
	return 0, false
}
