package secret

import (
	"fmt"
	"io"
)

const (
	firstBuffer = 32 << 10 // bytes
	leastRead   = 4 << 10  // bytes of room, below which the buffer grows
	maxEmpty    = 100      // reads in a row that bring neither bytes nor an error
)

// A reader passes on a stream through a scanner. It hands on all that is decided before it reads again, so what it
// keeps is only what may be the beginning of a find.
type reader struct {
	src  io.ReadCloser
	scan *scanner // by a pointer, which fmt does not follow from elsewhere: it holds values

	pieces [][]byte // not handed on yet; they lie in the scanner's text
	passed int      // bytes of the text that the pieces stand for
	err    error    // once there are no pieces
}

func newReader(src io.ReadCloser, m func() *matcher, j judge) *reader {
	return &reader{src: src, scan: &scanner{matcher: m, judge: j}}
}

func (r *reader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for len(r.pieces) == 0 {
		if r.err != nil {
			return 0, r.err
		}
		r.fill()
	}
	n := 0
	for len(r.pieces) > 0 && n < len(p) {
		m := copy(p[n:], r.pieces[0])
		n += m
		if r.pieces[0] = r.pieces[0][m:]; len(r.pieces[0]) == 0 {
			r.pieces = r.pieces[1:]
		}
	}
	return n, nil
}

// fill reads once from the source, which may bring pieces, an error, both or none.
func (r *reader) fill() {
	s := r.scan
	s.drop(r.passed)
	r.passed = 0
	if room := cap(s.text) - len(s.text); room < leastRead {
		grown := make([]byte, len(s.text), max(firstBuffer, 2*cap(s.text)))
		copy(grown, s.text)
		s.text = grown
	}
	var n int
	for range maxEmpty {
		n, r.err = r.src.Read(s.text[len(s.text):cap(s.text)])
		if n > 0 || r.err != nil {
			break
		}
	}
	if n == 0 && r.err == nil {
		r.err = io.ErrNoProgress
	}
	s.text = s.text[:len(s.text)+n]
	if err := s.scan(); err != nil {
		r.err = err // what came with it is not handed on
		return
	}
	if r.err != nil {
		s.looks = nil // nothing follows
	}
	r.pieces, r.passed = s.decided(r.pieces[:0])
}

// Format prints the type: fmt would print what the pointer leads to.
func (r *reader) Format(f fmt.State, _ rune) { fmt.Fprintf(f, "%T", r) }

// Close closes the source. It may be called while another goroutine reads, if that of the source may.
func (r *reader) Close() error { return r.src.Close() }
