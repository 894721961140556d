package workspace

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"syscall"

	"github.com/matchlock/matchlock/api"
)

const (
	// maxPatched is the largest file, in bytes, that is shown line by line.
	maxPatched = 1 << 20
	// maxEdits bounds how many lines may differ before all of them are said to.
	maxEdits = 1000
	// contextLines are shown around what differs.
	contextLines = 3
)

// Patch writes the changes as git would, for reading and for `git apply`. Binary and large
// files are named.
func (o *Overlay) Patch(ctx context.Context, w io.Writer) error {
	changes, err := o.Changes(ctx)
	if err != nil {
		return err
	}
	for _, c := range changes {
		if err := ctx.Err(); err != nil {
			return err
		}
		err := o.patch(w, c)
		if err != nil && !errors.Is(err, syscall.ENOENT) { // it is gone since
			return fmt.Errorf("%q: %w", c.Path, err)
		}
	}
	return nil
}

// patch writes one change. A deleted folder is all that was in it.
func (o *Overlay) patch(w io.Writer, c api.FileChange) error {
	if c.Mode&syscall.S_IFMT == syscall.S_IFDIR {
		if c.Kind != api.FileDeleted {
			return nil // git knows no folders
		}
		names, err := folderNames(o.lower, c.Path)
		if err != nil {
			return err
		}
		for _, name := range names {
			path := joinPath(c.Path, name)
			a, err := o.lower.Stat(path)
			if err != nil {
				return err
			}
			if err := o.patch(w, api.FileChange{Path: path, Kind: api.FileDeleted, Mode: a.Mode, Size: a.Size}); err != nil {
				return err
			}
		}
		return nil
	}
	var before, after side
	var err error
	if c.Kind != api.FileAdded {
		if before, err = sideOf(o.lower, c.Path); err != nil {
			return err
		}
	}
	if c.Kind != api.FileDeleted {
		if after, err = sideOf(o, c.Path); err != nil {
			return err
		}
	}
	// One that became another type is two changes to git.
	if before.mode != "" && after.mode != "" && before.mode[:3] != after.mode[:3] {
		if err := writePatch(w, c.Path, before, side{}); err != nil {
			return err
		}
		before = side{}
	}
	return writePatch(w, c.Path, before, after)
}

// A side of a patch is a file before or after. The zero value is none.
type side struct {
	mode   string // as git has it
	text   []byte
	binary bool // text is not to be shown
	size   int64
}

func sideOf(fs FS, path string) (side, error) {
	a, err := fs.Stat(path)
	if err != nil {
		return side{}, err
	}
	s := side{mode: "100644", size: a.Size}
	switch a.Mode & syscall.S_IFMT {
	case syscall.S_IFLNK:
		s.mode = "120000"
		target, err := fs.Readlink(path)
		s.text = []byte(target)
		return s, err
	case syscall.S_IFREG:
		if a.Mode&0o100 != 0 {
			s.mode = "100755"
		}
		if a.Size > maxPatched {
			s.binary = true
			return s, nil
		}
		f, err := fs.Open(path, false)
		if err != nil {
			return side{}, err
		}
		defer f.Close()
		s.text, err = io.ReadAll(io.NewSectionReader(f, 0, maxPatched))
		s.binary = bytes.IndexByte(s.text, 0) >= 0
		return s, err
	}
	return side{}, nil // a fifo, a folder: git has no word for them
}

func writePatch(w io.Writer, path string, before, after side) error {
	var b bytes.Buffer
	old, new := quotePath("a/"+path), quotePath("b/"+path)
	fmt.Fprintf(&b, "diff --git %s %s\n", old, new)
	switch {
	case before.mode == "" && after.mode == "":
		return nil
	case before.mode == "":
		fmt.Fprintf(&b, "new file mode %s\n", after.mode)
		old = "/dev/null"
	case after.mode == "":
		fmt.Fprintf(&b, "deleted file mode %s\n", before.mode)
		new = "/dev/null"
	case before.mode != after.mode:
		fmt.Fprintf(&b, "old mode %s\nnew mode %s\n", before.mode, after.mode)
	}
	if before.binary || after.binary {
		fmt.Fprintf(&b, "Binary files %s and %s differ\n", old, new)
	} else if hunks := unified(lines(before.text), lines(after.text)); hunks != "" {
		fmt.Fprintf(&b, "--- %s\n+++ %s\n%s", old, new, hunks)
	}
	_, err := w.Write(b.Bytes())
	return err
}

// quotePath writes a path as git does, with all that a terminal could take for more than
// text as octal numbers.
func quotePath(path string) string {
	if !strings.ContainsFunc(path, func(r rune) bool { return r < ' ' || r >= 0x7f || r == '"' || r == '\\' }) {
		return path
	}
	quoted := []byte{'"'}
	for i := range len(path) {
		switch b := path[i]; {
		case b == '"' || b == '\\':
			quoted = append(quoted, '\\', b)
		case b < ' ' || b >= 0x7f:
			quoted = fmt.Appendf(quoted, `\%03o`, b)
		default:
			quoted = append(quoted, b)
		}
	}
	return string(append(quoted, '"'))
}

// lines parts a text behind each line feed.
func lines(text []byte) []string {
	all := strings.SplitAfter(string(text), "\n")
	if all[len(all)-1] == "" {
		all = all[:len(all)-1]
	}
	return all
}

// An operation of a diff is of a line that both have (' '), or one of them ('-', '+').
type operation struct {
	kind byte
	line string
}

// unified is the hunks of a unified diff; empty where there is no difference.
func unified(a, b []string) string {
	ops := compareLines(a, b)
	var out strings.Builder
	oldLine, newLine := 1, 1 // of ops[at]
	at := 0
	advance := func(to int) {
		for ; at < to; at++ {
			if ops[at].kind != '+' {
				oldLine++
			}
			if ops[at].kind != '-' {
				newLine++
			}
		}
	}
	for i := 0; i < len(ops); {
		if ops[i].kind == ' ' {
			i++
			continue
		}
		// A hunk goes on over as many equal lines as would be around two of them.
		end := i
		for j := i; j < len(ops) && j-end <= 2*contextLines; j++ {
			if ops[j].kind != ' ' {
				end = j + 1
			}
		}
		from, to := max(at, i-contextLines), min(len(ops), end+contextLines)
		advance(from)
		olds, news := 0, 0
		for _, op := range ops[from:to] {
			if op.kind != '+' {
				olds++
			}
			if op.kind != '-' {
				news++
			}
		}
		fmt.Fprintf(&out, "@@ -%s +%s @@\n", span(oldLine, olds), span(newLine, news))
		for _, op := range ops[from:to] {
			out.WriteByte(op.kind)
			out.WriteString(op.line)
			if !strings.HasSuffix(op.line, "\n") {
				out.WriteString("\n\\ No newline at end of file\n")
			}
		}
		advance(to)
		i = to
	}
	return out.String()
}

// span is lines in a hunk's head: the first and how many, where none is after the one
// before.
func span(first, n int) string {
	if n == 0 {
		first--
	}
	return fmt.Sprintf("%d,%d", first, n)
}

// compareLines is Myers' greedy algorithm (An O(ND) Difference Algorithm and Its Variations,
// 1986), up to maxEdits.
func compareLines(a, b []string) []operation {
	var head, tail []operation
	for len(a) > 0 && len(b) > 0 && a[0] == b[0] {
		head = append(head, operation{' ', a[0]})
		a, b = a[1:], b[1:]
	}
	n := 0
	for n < len(a) && n < len(b) && a[len(a)-1-n] == b[len(b)-1-n] {
		n++
	}
	for _, line := range a[len(a)-n:] {
		tail = append(tail, operation{' ', line})
	}
	a, b = a[:len(a)-n], b[:len(b)-n]
	return append(append(head, shortest(a, b)...), tail...)
}

func shortest(a, b []string) []operation {
	// furthest[k] is how far along a one gets on the diagonal k = x-y with so many edits.
	limit := min(len(a)+len(b), maxEdits)
	furthest := make([]int, 2*limit+3)
	middle := limit + 1
	var trace [][]int // furthest from -d to d, before each d
	for d := 0; d <= limit; d++ {
		trace = append(trace, append([]int{}, furthest[middle-d:middle+d+1]...))
		for k := -d; k <= d; k += 2 {
			var x int
			if k == -d || k != d && furthest[middle+k-1] < furthest[middle+k+1] {
				x = furthest[middle+k+1]
			} else {
				x = furthest[middle+k-1] + 1
			}
			for x < len(a) && x-k < len(b) && a[x] == b[x-k] {
				x++
			}
			furthest[middle+k] = x
			if x >= len(a) && x-k >= len(b) {
				return retrace(a, b, trace)
			}
		}
	}
	var ops []operation // too many to find the fewest
	for _, line := range a {
		ops = append(ops, operation{'-', line})
	}
	for _, line := range b {
		ops = append(ops, operation{'+', line})
	}
	return ops
}

// retrace goes back the way that shortest has found.
func retrace(a, b []string, trace [][]int) []operation {
	var back []operation
	x, y := len(a), len(b)
	for d := len(trace) - 1; d > 0; d-- {
		furthest := func(k int) int { // before d
			if k < -d || k > d {
				return -1
			}
			return trace[d][k+d]
		}
		k := x - y
		from := k - 1
		if k == -d || k != d && furthest(k-1) < furthest(k+1) {
			from = k + 1
		}
		px := furthest(from)
		py := px - from
		start := px // of the equal lines behind the edit
		if from == k-1 {
			start++
		}
		for ; x > start; x-- {
			back = append(back, operation{' ', a[x-1]})
		}
		if from == k-1 {
			back = append(back, operation{'-', a[px]})
		} else {
			back = append(back, operation{'+', b[py]})
		}
		x, y = px, py
	}
	for x > 0 {
		back = append(back, operation{' ', a[x-1]})
		x--
	}
	slices.Reverse(back)
	return back
}
