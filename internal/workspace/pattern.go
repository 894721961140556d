package workspace

import (
	"fmt"
	"path"
	"strings"
	"unicode"
)

// A pattern is one of .gitignore's: without a slash, or with one at its end alone, it is
// of a name at any depth; "**" stands for any number of folders; a slash at the end
// has it match folders alone. What is below a folder that matches, matches.
//
// Letters match in either case: a host's file system may take both for the same.
type pattern struct {
	names      []string // globs of path.Match, or "**"
	folderOnly bool
}

// maxNames bounds the names in a pattern: their numbers are bits of a states.
const maxNames = 60

func parsePattern(text string) (pattern, error) {
	rest, folderOnly := strings.CutSuffix(text, "/")
	if !strings.Contains(rest, "/") {
		rest = "**/" + rest
	}
	p := pattern{names: strings.Split(strings.TrimPrefix(fold(rest), "/"), "/"), folderOnly: folderOnly}
	if p.names[len(p.names)-1] == "**" {
		p.names = append(p.names, "*") // what is in a folder, and not the folder
	}
	for _, name := range p.names {
		if _, err := path.Match(name, ""); err != nil || name == "" || strings.HasPrefix(text, "!") || len(p.names) > maxNames {
			return pattern{}, fmt.Errorf("%q is no pattern", text)
		}
	}
	return p, nil
}

// fold has letters that differ in their case alone become the same.
func fold(text string) string {
	return strings.Map(func(r rune) rune {
		least := r
		for next := unicode.SimpleFold(r); next != r; next = unicode.SimpleFold(next) {
			least = min(least, next)
		}
		return least
	}, text)
}

// states are the places in a pattern, as bits, that the beginning of a path may have got
// to; bit len(names) is its end.
type states uint64

// at is the place i, and those that follow for nothing.
func (p *pattern) at(i int) states {
	s := states(1) << i
	for ; i < len(p.names) && p.names[i] == "**"; i++ {
		s |= 1 << (i + 1)
	}
	return s
}

// end tells whether all of the pattern was there.
func (p *pattern) end(s states) bool { return s&(1<<len(p.names)) != 0 }

// step goes on by one name of a path, folded.
func (p *pattern) step(from states, name string) (to states) {
	if p.end(from) {
		return 1 << len(p.names)
	}
	for i, glob := range p.names {
		if from&(1<<i) == 0 {
			continue
		}
		if glob == "**" {
			to |= p.at(i)
		} else if ok, _ := path.Match(glob, name); ok {
			to |= p.at(i + 1)
		}
	}
	return to
}

// walk goes along a path, folded. below is where that leads what is in the folder there;
// match, whether path itself or a folder that it is in matches. isFolder is asked what
// path is where that decides.
func (p *pattern) walk(path string, isFolder func() bool) (below states, match bool) {
	s := p.at(0)
	for path != "" {
		var name string
		name, path, _ = strings.Cut(path, "/")
		s = p.step(s, name)
		if p.end(s) && (path != "" || !p.folderOnly || isFolder()) {
			return 1 << len(p.names), true
		}
	}
	// A file that a pattern of folders would match does not, nor does what is below.
	return s &^ (1 << len(p.names)), false
}

type patterns []pattern

func parsePatterns(texts []string) (patterns, error) {
	var all patterns
	for _, text := range texts {
		p, err := parsePattern(text)
		if err != nil {
			return nil, err
		}
		all = append(all, p)
	}
	return all, nil
}

// match tells whether one of them matches a path.
func (all patterns) match(path string, isFolder func() bool) bool {
	if len(all) == 0 || path == "" {
		return false
	}
	path = fold(path)
	for i := range all {
		if _, ok := all[i].walk(path, isFolder); ok {
			return true
		}
	}
	return false
}

// alike tells whether they say the same of all that can be below two folders.
func (all patterns) alike(a, b string) bool {
	a, b = fold(a), fold(b)
	folder := func() bool { return true }
	for i := range all {
		belowA, _ := all[i].walk(a, folder)
		belowB, _ := all[i].walk(b, folder)
		if belowA != belowB {
			return false
		}
	}
	return true
}
