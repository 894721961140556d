package secret

import (
	"encoding/binary"
	"unicode/utf8"
)

// A matcher knows where in a text one of its patterns can begin. Immutable.
type matcher struct {
	patterns []pattern
	first    [256][]*pattern      // by the first character, unescaped
	starts   [256]bool            // bytes that can begin any form
	pairs    [1 << 16 / 64]uint64 // pairs of bytes that can, the first in the low bits: a set of bits that stays in the processor's cache
}

func newMatcher(patterns []pattern) *matcher {
	m := &matcher{patterns: patterns}
	for i := range m.patterns {
		m.add(&m.patterns[i])
	}
	return m
}

const introducers = `%\&`

// add enters where p can begin.
func (m *matcher) add(p *pattern) {
	second := []byte(introducers)
	for c := range 256 {
		if p.is(1, byte(c)) {
			second = append(second, byte(c))
		}
	}
	for c := range 256 {
		if c := byte(c); p.is(0, c) {
			m.first[c] = append(m.first[c], p)
			for _, d := range second {
				m.pair(c, d)
			}
			m.escapes(c)
		}
	}
	for _, c := range []byte(introducers) {
		m.escapes(c) // the escape of an escape
		for _, d := range []byte(introducers) {
			m.pair(c, d)
		}
	}
}

// escapes enters how the escapes of c begin.
func (m *matcher) escapes(c byte) {
	const lower, upper = "0123456789abcdef", "0123456789ABCDEF"
	m.pair('%', lower[c>>4])
	m.pair('%', upper[c>>4])
	m.pair('\\', 'u')
	m.pair('\\', 'x')
	m.pair('&', '#')
	switch c {
	case '"', '\'', '\\', '/':
		m.pair('\\', c)
	case '\t':
		m.pair('\\', 't')
	}
	for i, name := range names {
		if named[i] == c {
			m.pair('&', name[0])
		}
	}
}

func (m *matcher) pair(c, d byte) {
	m.starts[c] = true
	pair := uint16(c) | uint16(d)<<8
	m.pairs[pair/64] |= 1 << (pair % 64)
}

func (m *matcher) has(pair uint16) bool { return m.pairs[pair/64]>>(pair%64)&1 != 0 }

// next returns where in b, from i on, a form may begin; len(b) if it cannot.
func (m *matcher) next(b []byte, i int) int {
	if len(m.patterns) == 0 {
		return len(b)
	}
	// Nearly all there is to do in nearly all texts: four pairs of a word at a time.
	for ; i+8 <= len(b); i += 4 {
		w := binary.LittleEndian.Uint64(b[i:])
		if m.has(uint16(w)) || m.has(uint16(w>>8)) || m.has(uint16(w>>16)) || m.has(uint16(w>>24)) {
			break
		}
	}
	for ; i+1 < len(b); i++ {
		if m.has(uint16(b[i]) | uint16(b[i+1])<<8) {
			return i
		}
	}
	if i < len(b) && !m.starts[b[i]] {
		i++
	}
	return i
}

// escaped reports whether a form may begin with an escape at b[at]. It need not be exact: it spares most texts a look.
func (m *matcher) escaped(b []byte, at int) bool {
	e, _ := begin(b[at])
	for at++; at < len(b); at++ {
		if introduces(b[at]) {
			return true // can be read in several ways
		}
		var c char
		var v verdict
		switch e, c, v = e.next(b[at]); {
		case v == dead:
			return false
		case v == done && m.begins(c):
			return true
		case v == done && (c.r >= utf8.RuneSelf || !introduces(byte(c.r))):
			return false
		case v == done: // the first character of another escape?
			e, _ = begin(byte(c.r))
			at++
			if at == len(b) || introduces(b[at]) {
				return true
			}
			_, _, v = e.next(b[at])
			return v != dead
		}
	}
	return true
}

// begins reports whether c may begin a pattern.
func (m *matcher) begins(c char) bool {
	if c.r < utf8.RuneSelf || c.isByte {
		return len(m.first[byte(c.r)]) > 0
	}
	var encoded [utf8.UTFMax]byte
	utf8.EncodeRune(encoded[:], c.r)
	return len(m.first[encoded[0]]) > 0 || c.r <= 0xff && len(m.first[byte(c.r)]) > 0
}

// beginning appends the looks at those patterns that begin with a character that stood escaped from start to at.
func (m *matcher) beginning(looks []look, start, at int, e escaped) []look {
	try := func(first byte) {
		for _, p := range m.first[first] {
			if states := p.accept(nil, e); len(states) > 0 {
				looks = append(looks, look{start, at, p, states})
			}
		}
	}
	if e.char.r < utf8.RuneSelf || e.char.isByte {
		try(byte(e.char.r))
		return looks
	}
	var encoded [utf8.UTFMax]byte
	utf8.EncodeRune(encoded[:], e.char.r)
	try(encoded[0])
	if e.char.r <= 0xff && byte(e.char.r) != encoded[0] {
		try(byte(e.char.r))
	}
	return looks
}
