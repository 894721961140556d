package workspace

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"syscall"
)

// A line is what a tree is written down by: JSON, and for some a file's bytes after it.
// The first one has a Version.
type line struct {
	Version int      `json:"version,omitempty"`
	Next    uint64   `json:"next,omitempty"` // the number of the next inode, with Version
	Edits   []edit   `json:"edits,omitempty"`
	File    *fileRun `json:"file,omitempty"`
	End     bool     `json:"end,omitempty"`
}

const (
	journalVersion = 1
	// maxLine is more bytes than any step takes: four inodes with all their xattrs.
	maxLine = 1 << 20
)

func writeLine(w io.Writer, l line) error {
	text, err := json.Marshal(l)
	if err != nil {
		return err
	}
	_, err = w.Write(append(text, '\n'))
	return err
}

// readLine reads a line; io.EOF where there is none, io.ErrUnexpectedEOF where it is cut.
// The reader's buffer has maxLine bytes.
func readLine(r *bufio.Reader) (l line, err error) {
	text, err := r.ReadSlice('\n')
	switch {
	case err == io.EOF && len(text) > 0:
		return l, io.ErrUnexpectedEOF
	case err != nil:
		return l, err
	}
	return l, json.Unmarshal(text, &l)
}

// dump writes the tree as it is: edits that make it from an empty one.
func (t *tree) dump(w io.Writer) error {
	if err := writeLine(w, line{Version: journalVersion, Next: t.next}); err != nil {
		return err
	}
	var edits []edit
	size := int64(0)
	add := func(e edit, cost int64) error {
		edits, size = append(edits, e), size+cost
		if size < maxLine/8 {
			return nil
		}
		err := writeLine(w, line{Edits: edits})
		edits, size = nil, 0
		return err
	}
	numbers := slices.Sorted(maps.Keys(t.inodes))
	for _, number := range numbers {
		n := t.inodes[number]
		if err := add(edit{Meta: &n.meta}, n.held); err != nil {
			return err
		}
	}
	for _, number := range numbers {
		for _, name := range slices.Sorted(maps.Keys(t.inodes[number].entries)) {
			e := t.inodes[number].entries[name]
			named := nameEdit{Folder: number, Name: []byte(name), Hidden: e.hidden}
			if e.inode != nil {
				named.Inode = e.inode.Number
			}
			if err := add(edit{Name: &named}, heldName+int64(len(name))); err != nil {
				return err
			}
		}
	}
	return writeLine(w, line{Edits: edits})
}

var errEdit = errors.New("a step that nobody makes")

// load makes the edits of a line that was read.
func (t *tree) load(l line) error {
	if l.Version != 0 {
		if l.Version != journalVersion {
			return fmt.Errorf("version %d, and this is %d", l.Version, journalVersion)
		}
		t.next = max(t.next, l.Next)
	}
	var touched []*inode
	for _, e := range l.Edits {
		if e.Meta != nil && !t.validMeta(e.Meta) || e.Name != nil && !t.validName(e.Name) {
			return errEdit
		}
		if n := t.edit(e); n != nil {
			touched = append(touched, n)
		}
	}
	t.dropUnnamed(touched)
	if t.names > t.maxima.names || t.gone > t.maxima.names || t.held > t.maxima.held {
		return syscall.EDQUOT
	}
	return nil
}

func (t *tree) validMeta(m *meta) bool {
	switch m.Mode & syscall.S_IFMT {
	case syscall.S_IFREG, syscall.S_IFDIR, syscall.S_IFLNK, syscall.S_IFIFO, syscall.S_IFSOCK:
	case syscall.S_IFCHR, syscall.S_IFBLK:
		if m.Origin == nil { // the host's; guests make none
			return false
		}
	default:
		return false
	}
	if old := t.inodes[m.Number]; old != nil && (old.Mode^m.Mode)&syscall.S_IFMT != 0 {
		return false
	}
	size := 0
	for name, value := range m.Xattrs {
		if size += len(name) + len(value); !guestXattr(name) {
			return false
		}
	}
	return m.Number != 0 && m.Number < 1<<62 && size <= maxXattrs && len(m.Target) <= maxTarget &&
		checkPath(string(m.Lower)) == nil && (m.Origin != nil && t.lower != nil || m.Origin == nil && !m.Merged)
}

func (t *tree) validName(e *nameEdit) bool {
	folder, n := t.inodes[e.Folder], t.inodes[e.Inode]
	return folder != nil && folder.entries != nil && len(e.Name) > 0 && !bytes.ContainsRune(e.Name, '/') && checkPath(string(e.Name)) == nil &&
		e.Hidden >= 0 && e.Inode != rootNumber && (e.Inode == 0 || n != nil)
}

// loaded makes sure that what was loaded is a tree: each folder has one name, and all
// hangs together. What has no name is let go of.
func (t *tree) loaded() error {
	seen := map[*inode]bool{}
	for todo := []*inode{t.inodes[rootNumber]}; len(todo) > 0; {
		n := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if seen[n] && n.entries != nil {
			return errEdit
		}
		seen[n] = true
		for _, e := range n.entries {
			if e.inode != nil {
				todo = append(todo, e.inode)
			}
		}
	}
	for _, n := range slices.Collect(maps.Values(t.inodes)) {
		switch {
		case seen[n] || t.inodes[n.Number] != n:
		case n.names != 0:
			return errEdit
		default:
			t.drop(n)
		}
	}
	return nil
}
