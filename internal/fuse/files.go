package fuse

import (
	"syscall"

	"github.com/matchlock/matchlock/internal/workspace"
)

// The kernel opens a node any number of times, for reading or writing. For each of the
// two the server has one file, which stays as long as somebody has it: what is read
// is the file that was opened, whatever has become of its name.

// mayOpen counts a file that is about to be opened, if there may be one more.
func (s *Server) mayOpen() bool {
	s.nodes.mu.Lock()
	defer s.nodes.mu.Unlock()
	if s.nodes.opened >= s.options.MaxOpen {
		return false
	}
	s.nodes.opened++
	return true
}

// notOpened takes mayOpen back.
func (s *Server) notOpened() {
	s.nodes.mu.Lock()
	defer s.nodes.mu.Unlock()
	s.nodes.opened--
}

// of returns the file of a node for reading or writing.
func (is *node) of(write bool) *open {
	if write {
		return &is.writing
	}
	return &is.reading
}

// openNode has a node open once more.
func (s *Server) openNode(is *node, write bool) syscall.Errno {
	if !s.mayOpen() {
		return syscall.ENFILE
	}
	// What replaces a file meanwhile leaves it held.
	s.nodes.names.RLock()
	defer s.nodes.names.RUnlock()
	s.nodes.mu.Lock()
	if o := is.of(write); o.file != nil && s.nodes.byID[is.id] == is {
		o.users++
		s.nodes.mu.Unlock()
		return 0
	}
	s.nodes.mu.Unlock()
	f, errno := s.openFile(is, write)
	if errno != 0 {
		s.notOpened()
		return errno
	}
	return s.keep(is, write, f)
}

// openFile opens a node's file by its name. The caller holds names.
func (s *Server) openFile(is *node, write bool) (workspace.File, syscall.Errno) {
	path, errno := s.nodes.path(is.id)
	if errno != 0 {
		return nil, errno
	}
	return s.openPath(is, path, write)
}

// openPath opens a node's file, if it is that which is at a path. The caller holds names.
func (s *Server) openPath(is *node, path string, write bool) (workspace.File, syscall.Errno) {
	f, err := s.tree.Open(path, write)
	if err != nil {
		return nil, errnoOf(err)
	}
	a, err := f.Stat()
	if err == nil && !s.nodes.same(is, &a) {
		err = syscall.ESTALE
	}
	if err != nil {
		f.Close()
		return nil, errnoOf(err)
	}
	return f, 0
}

// same tells whether what was found at a node's name is the node.
func (n *nodes) same(is *node, a *workspace.Attr) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	switch {
	case is.id == rootID:
		return true
	case is.kind != a.Mode&syscall.S_IFMT:
		return false
	case a.ID.CopyOf(is.file):
		n.changedFile(is, a.ID)
		return true
	}
	return is.file == a.ID
}

// keep keeps a file of a node that was opened, which mayOpen has counted.
func (s *Server) keep(is *node, write bool, opened workspace.File) (errno syscall.Errno) {
	s.nodes.mu.Lock()
	o := is.of(write)
	switch {
	case s.nodes.byID[is.id] != is:
		s.nodes.opened--
		errno = syscall.ESTALE // the kernel has forgotten it since it asked
	case o.file == nil:
		o.file, opened = newFile(opened), nil
		fallthrough
	default:
		o.users++
	}
	s.nodes.mu.Unlock()
	if opened != nil {
		opened.Close()
	}
	return errno
}

// beforeReplaced opens the file at a place that another one is about to take. Who has found
// it there may not have opened it yet, and then does: without a name it is held until it
// is forgotten, or maxHeld others are.
func (s *Server) beforeReplaced(at place, path string) (is *node, f workspace.File) {
	s.nodes.mu.Lock()
	is = s.nodes.byName[at]
	needed := is != nil && is.kind == syscall.S_IFREG && is.lookups > 0 && is.reading.file == nil
	s.nodes.mu.Unlock()
	if needed {
		f, _ = s.openPath(is, path, false)
	}
	return is, f
}

// release has a node open once less.
func (s *Server) release(id uint64, flags uint32) {
	n := s.nodes
	defer n.closeDropped()
	n.mu.Lock()
	defer n.mu.Unlock()
	is := n.byID[id]
	if is == nil {
		return
	}
	o := is.of(writes(flags))
	if o.users == 0 {
		return
	}
	o.users--
	n.opened--
	switch {
	case o.users > 0:
	case o == &is.reading && o.file != nil && len(is.names) == 0:
		n.goOnHolding(is)
	default:
		n.letGo(o)
		n.nameless(is)
	}
}

// using returns a file of a node that is open, nil if none is. Whoever uses it says when
// he is done: the kernel may close meanwhile what it has opened for something else.
func (s *Server) using(is *node, write bool) *file {
	s.nodes.mu.Lock()
	defer s.nodes.mu.Unlock()
	f := is.writing.file
	if f == nil && !write {
		f = is.reading.file
	}
	if f != nil {
		f.uses.Add(1)
	}
	return f
}

// file does something with a node's open file. The kernel reads and writes what is
// open only, but in a copy of the machine it may have been opened by another server.
func (s *Server) file(r *request, write bool, do func(workspace.File) error) syscall.Errno {
	is, errno := s.nodes.get(r.node)
	if errno != 0 {
		return errno
	}
	if f := s.using(is, write); f != nil {
		defer f.done()
		return errnoOf(do(f))
	}
	s.nodes.names.RLock()
	f, errno := s.openFile(is, write)
	s.nodes.names.RUnlock()
	if errno != 0 {
		return errno
	}
	if again := s.openedAgain(is, write, f); again != nil {
		defer again.done()
	} else {
		defer f.Close()
	}
	return errnoOf(do(f))
}

// openedAgain makes f the file of a node that the kernel has opened by another server,
// and returns it in use; nil: it is none, or has one.
func (s *Server) openedAgain(is *node, write bool, f workspace.File) *file {
	s.nodes.mu.Lock()
	defer s.nodes.mu.Unlock()
	o := is.of(write)
	if o.users == 0 || o.file != nil || s.nodes.byID[is.id] != is {
		return nil
	}
	o.file = newFile(f)
	o.file.uses.Add(1)
	return o.file
}

// change changes what a node is.
func (s *Server) change(is *node, c workspace.Change, killSetID bool) (a workspace.Attr, errno syscall.Errno) {
	s.nodes.names.RLock()
	defer s.nodes.names.RUnlock()
	if c.Size != nil {
		// The size is that of the file which is open, whatever its name leads to.
		if f := s.using(is, true); f != nil {
			defer f.done()
			if err := f.Truncate(*c.Size); err != nil {
				return a, errnoOf(err)
			}
			if c.Size = nil; c == (workspace.Change{}) && !killSetID {
				a, err := f.Stat()
				return a, errnoOf(err)
			}
		}
	}
	path, errno := s.nodes.path(is.id)
	if f := s.using(is, false); f != nil {
		defer f.done()
		if errno == 0 {
			if there, err := s.tree.Stat(path); err != nil || !s.nodes.same(is, &there) {
				errno = syscall.ESTALE
			}
		}
		if errno != 0 {
			// What else a file without a name is, is lost with it.
			a, err := f.Stat()
			return a, errnoOf(err)
		}
	}
	if errno != 0 {
		return a, errno
	}
	if killSetID && c.Mode == nil {
		before, err := s.tree.Stat(path)
		if err != nil {
			return a, errnoOf(err)
		}
		if before.Mode&(syscall.S_ISUID|syscall.S_ISGID) != 0 {
			mode := before.Mode &^ syscall.S_ISUID & 0o7777
			if mode&0o010 != 0 {
				mode &^= syscall.S_ISGID
			}
			c.Mode = &mode
		}
	}
	a, err := s.tree.SetAttr(path, c)
	if err != nil {
		return a, errnoOf(err)
	}
	if !s.nodes.same(is, &a) {
		return a, syscall.ESTALE
	}
	return a, 0
}
