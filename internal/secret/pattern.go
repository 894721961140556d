package secret

import (
	"bytes"
	"cmp"
	"encoding/base64"
	"encoding/hex"
	"unicode/utf8"
)

// A pattern is one form of a text that is looked for. All forms are found in one way: character by character, each as
// it is or escaped. Immutable.
type pattern struct {
	text  []byte
	fold  *[256]byte // what to take a character for before it is compared: the alphabets of hex, of base64
	plain bool       // not hex or base64
	of    *sought
}

// sought is what a pattern is a form of.
type sought struct {
	index   int    // of the secret
	instead []byte // the placeholder, in responses
}

var (
	exactly = folding(func(c byte) byte { return c })
	anyCase = folding(lower)
	// base64url as base64.
	any64 = folding(func(c byte) byte {
		switch c {
		case '-':
			return '+'
		case '_':
			return '/'
		}
		return c
	})
)

func folding(f func(byte) byte) *[256]byte {
	var fold [256]byte
	for i := range fold {
		fold[i] = f(byte(i))
	}
	return &fold
}

func lower(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		c += 'a' - 'A'
	}
	return c
}

// forms returns the patterns by which text is found.
func forms(text []byte, of *sought) []pattern {
	patterns := []pattern{
		{text, exactly, true, of},
		{[]byte(hex.EncodeToString(text)), anyCase, false, of},
	}
	for before := range 3 {
		// Base64 makes four characters of three bytes. The text may begin at each of the three: only those characters
		// are sure that no neighbour has a bit in.
		encoded := make([]byte, base64.RawStdEncoding.EncodedLen(before+len(text)))
		base64.RawStdEncoding.Encode(encoded, append(make([]byte, before, before+len(text)), text...))
		sure := (before + len(text)) * 8 / 6
		patterns = append(patterns, pattern{encoded[(before*8+5)/6 : sure], any64, false, of})
	}
	return patterns
}

// is reports whether c, as it stands in the text, is the pattern's character i.
func (p *pattern) is(i int32, c byte) bool {
	return p.fold[c] == p.text[i] || c == '+' && p.text[i] == ' '
}

// accept appends the states in which e has been read as the pattern's next character: none if it is not that.
func (p *pattern) accept(next []state, e escaped) []state {
	s, c, rest := e.state, e.char, p.text[e.state.i:]
	if c.r < utf8.RuneSelf || c.isByte {
		if p.fold[byte(c.r)] == rest[0] {
			s.i++
			next = append(next, s)
		}
		return next
	}
	var buf [utf8.UTFMax]byte
	if encoded := buf[:utf8.EncodeRune(buf[:], c.r)]; bytes.HasPrefix(rest, encoded) {
		s := s
		s.i += int32(len(encoded))
		next = append(next, s)
	}
	if c.r <= 0xff && rest[0] == byte(c.r) {
		s.i++
		next = append(next, s)
	}
	return next
}

// A state is how far a pattern has been read in a text. The text may be read in several ways at a time: a backslash is
// one, or the beginning of an escape, or the beginning of an escaped backslash that begins an escape.
type state struct {
	i     int32  // characters of the pattern that have been read
	used  used   // by what escapes
	outer escape // of the next one
	inner escape // of the next character of outer, or of the one that introduces it
}

func (s state) compare(t state) int {
	return cmp.Or(cmp.Compare(s.i, t.i), cmp.Compare(s.used, t.used), s.outer.compare(t.outer), s.inner.compare(t.inner))
}

func (s *state) idle() bool { return s.outer.kind == noEscape && s.inner.kind == noEscape }

// An escaped is a character of the pattern that was escaped, and the state without it.
type escaped struct {
	char  char
	state state
}

// step reads one byte as (a part of) escapes. It appends the states in which one has begun and not ended to next, and
// what has ended to ends.
func (s state) step(b byte, next []state, ends []escaped) ([]state, []escaped) {
	if s.inner.kind == noEscape {
		if introduces(b) {
			nested, kind := begin(b)
			t := s
			t.inner, t.used = nested, t.used|kind|usedNested
			next = append(next, t)
		}
		return s.constituent(b, next, ends)
	}
	inner, c, v := s.inner.next(b)
	s.inner = inner
	switch {
	case v == more:
		next = append(next, s)
	case v == done && c.r < utf8.RuneSelf:
		return s.constituent(byte(c.r), next, ends)
	}
	return next, ends
}

// constituent reads one character of the outer escape.
func (s state) constituent(c byte, next []state, ends []escaped) ([]state, []escaped) {
	if s.outer.kind == noEscape {
		if introduces(c) {
			var kind used
			s.outer, kind = begin(c)
			s.used |= kind
			next = append(next, s)
		}
		return next, ends
	}
	outer, ended, v := s.outer.next(c)
	s.outer = outer
	switch v {
	case more:
		next = append(next, s)
	case done:
		ends = append(ends, escaped{ended, s})
	}
	return next, ends
}
