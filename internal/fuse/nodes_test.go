package fuse

import (
	"errors"
	"fmt"
	"slices"
	"syscall"
)

// check says what is wrong with what a server knows while it is asked nothing.
func (s *Server) check() error {
	n := s.nodes
	n.mu.Lock()
	defer n.mu.Unlock()
	var errs []error
	wrong := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if root := n.byID[rootID]; root == nil || len(root.names) > 0 {
		wrong("the root is %+v", root)
	}
	if len(n.byID) > n.limit || len(n.byName) > n.limit {
		wrong("%d nodes and %d names, of at most %d", len(n.byID), len(n.byName), n.limit)
	}
	inside := map[uint64]int{}
	opened := 0
	for id, is := range n.byID {
		if is.id != id {
			wrong("node %d has the number %d", id, is.id)
		}
		for i, at := range is.names {
			inside[at.folder]++
			if n.byName[at] != is || slices.Index(is.names, at) != i {
				wrong("node %d: its name %v is another's, or there twice", id, at)
			}
		}
		if is.kind == syscall.S_IFDIR && len(is.names) > 1 {
			wrong("node %d: a folder with the names %v", id, is.names)
		}
		for what, o := range map[string]*open{"reading": &is.reading, "writing": &is.writing} {
			held := o == &is.reading && slices.Contains(n.held, is)
			if opened += o.users; o.users < 0 || o.users == 0 && o.file != nil && !held {
				wrong("node %d: open for %s by %d, and the file is %v", id, what, o.users, o.file)
			}
		}
		above := is
		for range len(n.byID) + 1 {
			if above == nil || len(above.names) == 0 {
				break
			}
			above = n.byID[above.names[0].folder]
		}
		if above == nil || len(above.names) > 0 {
			wrong("node %d leads to no root", id)
		}
	}
	for id, is := range n.byID {
		if is.inside != inside[id] {
			wrong("node %d: %d names in it, counted as %d", id, inside[id], is.inside)
		}
		if id != rootID && is.lookups == 0 && is.inside == 0 {
			wrong("node %d is there for nobody", id)
		}
		delete(inside, id)
	}
	if len(inside) > 0 {
		wrong("names in folders that nobody knows: %v", inside)
	}
	for at, is := range n.byName {
		if n.byID[is.id] != is || !slices.Contains(is.names, at) {
			wrong("the name %v leads to node %d", at, is.id)
		}
	}
	for file, is := range n.byFile {
		if n.byID[is.id] != is || is.file != file {
			wrong("the file %+v leads to node %d", file, is.id)
		}
	}
	if opened != n.opened {
		wrong("%d opened, counted as %d", opened, n.opened)
	}
	if len(n.held) > maxHeld {
		wrong("%d are held", len(n.held))
	}
	if len(n.dirty) > 0 {
		wrong("%d files are to be closed", len(n.dirty))
	}
	return errors.Join(errs...)
}
