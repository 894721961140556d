package secret

import (
	"cmp"
	"slices"
	"strings"
)

// A scanner looks for the patterns of a matcher in a text that comes in pieces, and replaces what it finds. What comes
// out does not depend on where the pieces end: a place that is not decided when one ends is looked at further when the
// next has come.
//
// Where finds overlap, no byte of any of them is passed on: they are replaced together, by what replaces the one that
// begins first, of several the longest.
type scanner struct {
	matcher func() *matcher // asked for each piece
	judge   judge

	text    []byte // what has been fed and not been dropped
	scanned int    // where in text to look on
	covered int    // up to where text has been replaced, perhaps beyond what has been passed on
	looks   []look // that are not decided
	found   []find // that have not been passed on

	m        *matcher  // of this piece
	cur, nxt []state   // scratch
	ends     []escaped // scratch
}

// A judge is told what was found, and by which escapes, and says what to put in its place. With !ok it stays. An error
// ends everything.
type judge func(p *pattern, by used) (instead []byte, ok bool, err error)

// A look is a place where a pattern may begin, read as far as the text goes.
type look struct {
	start  int
	at     int      // where to read on
	p      *pattern // nil: the first character is escaped and not known yet, and it may be any
	states []state
}

// A find is a place of the text that is to be replaced.
type find struct {
	start, end int
	instead    []byte
}

// scan looks through what has been appended to the text.
func (s *scanner) scan() error {
	s.m = s.matcher()
	undecided := s.looks
	s.looks = nil
	for _, l := range undecided {
		if err := s.resume(l); err != nil {
			return err
		}
	}
	for at := s.m.next(s.text, s.scanned); at < len(s.text); at = s.m.next(s.text, at+1) {
		c := s.text[at]
		for _, p := range s.m.first[c] {
			s.cur = append(s.cur[:0], state{i: 1})
			if err := s.look(at, p, at+1); err != nil {
				return err
			}
		}
		if introduces(c) && s.m.escaped(s.text, at) {
			s.cur = append(s.cur[:0], state{})
			if err := s.look(at, nil, at); err != nil {
				return err
			}
		}
	}
	s.scanned = len(s.text)
	return nil
}

func (s *scanner) resume(l look) error {
	s.cur = append(s.cur[:0], l.states...)
	return s.look(l.start, l.p, l.at)
}

// look reads on at s.text[at], in the states s.cur.
func (s *scanner) look(start int, p *pattern, at int) error {
	var known []look // what p turns out to be, when it is nil
	for ; at < len(s.text) && len(s.cur) > 0; at++ {
		b := s.text[at]
		if p != nil && len(s.cur) == 1 && s.cur[0].idle() && !introduces(b) { // nearly always
			st := &s.cur[0]
			if !p.is(st.i, b) {
				return nil
			}
			if st.i++; int(st.i) == len(p.text) {
				return s.find(start, at+1, p, st.used)
			}
			continue
		}
		s.nxt, s.ends = s.nxt[:0], s.ends[:0]
		for _, st := range s.cur {
			if p != nil && st.idle() && p.is(st.i, b) {
				literal := st
				literal.i++
				s.nxt = append(s.nxt, literal)
			}
			s.nxt, s.ends = st.step(b, s.nxt, s.ends)
		}
		for _, e := range s.ends {
			if p != nil {
				s.nxt = p.accept(s.nxt, e)
			} else {
				known = s.m.beginning(known, start, at+1, e)
			}
		}
		if p != nil {
			if err := s.whole(start, at+1, p); err != nil {
				return err
			}
		}
		if len(s.nxt) > 4 { // of a value with many backslashes there would be ever more that are the same
			slices.SortFunc(s.nxt, state.compare)
			s.nxt = slices.Compact(s.nxt)
		}
		s.cur, s.nxt = s.nxt, s.cur
	}
	if len(s.cur) > 0 {
		s.looks = append(s.looks, look{start, at, p, slices.Clone(s.cur)})
	}
	for _, l := range known {
		if err := s.resume(l); err != nil {
			return err
		}
	}
	return nil
}

// whole takes those states out of s.nxt that have read all of p.
func (s *scanner) whole(start, end int, p *pattern) error {
	kept := s.nxt[:0]
	for _, st := range s.nxt {
		if int(st.i) < len(p.text) {
			kept = append(kept, st)
		} else if err := s.find(start, end, p, st.used); err != nil {
			return err
		}
	}
	s.nxt = kept
	return nil
}

func (s *scanner) find(start, end int, p *pattern, by used) error {
	instead, ok, err := s.judge(p, by)
	if !ok || err != nil {
		return err
	}
	if n := len(s.found); n > 0 && s.found[n-1].start == start && string(s.found[n-1].instead) == string(instead) {
		s.found[n-1].end = max(s.found[n-1].end, end) // read in another way
		return nil
	}
	s.found = append(s.found, find{start, end, instead})
	return nil
}

// decided appends to pieces what can be passed on, and returns how much of the text that was, for drop. The pieces lie
// in the text.
func (s *scanner) decided(pieces [][]byte) ([][]byte, int) {
	limit := len(s.text)
	for _, l := range s.looks {
		limit = min(limit, l.start)
	}
	slices.SortStableFunc(s.found, func(a, b find) int {
		return cmp.Or(cmp.Compare(a.start, b.start), cmp.Compare(b.end, a.end))
	})
	at, n := min(s.covered, limit), 0
	for _, f := range s.found {
		if f.start >= limit {
			break
		}
		n++
		if f.start >= s.covered {
			if f.start > at {
				pieces = append(pieces, s.text[at:f.start])
			}
			pieces = append(pieces, f.instead)
		}
		s.covered = max(s.covered, f.end)
		at = min(s.covered, limit)
	}
	s.found = slices.Delete(s.found, 0, n)
	if at < limit {
		pieces = append(pieces, s.text[at:limit])
	}
	return pieces, limit
}

// drop forgets the first n bytes of the text.
func (s *scanner) drop(n int) {
	s.text = s.text[:copy(s.text, s.text[n:])]
	s.scanned -= n
	s.covered = max(0, s.covered-n)
	for i := range s.looks {
		s.looks[i].start -= n
		s.looks[i].at -= n
	}
	for i := range s.found {
		s.found[i].start -= n
		s.found[i].end -= n
	}
}

// replace is a scan of a whole text.
func replace(m *matcher, j judge, text string) (string, error) {
	if m.next([]byte(text), 0) == len(text) {
		return text, nil
	}
	s := scanner{matcher: func() *matcher { return m }, judge: j, text: []byte(text)}
	if err := s.scan(); err != nil {
		return "", err
	}
	if len(s.found) == 0 {
		return text, nil
	}
	s.looks = nil // nothing follows
	pieces, _ := s.decided(nil)
	var b strings.Builder
	for _, piece := range pieces {
		b.Write(piece)
	}
	return b.String(), nil
}
