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
	if s.opened >= s.options.MaxOpen {
		return false
	}
	s.opened++
	return true
}

func (s *Server) closed(n int) {
	s.nodes.mu.Lock()
	defer s.nodes.mu.Unlock()
	s.opened -= n
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
	s.nodes.mu.Lock()
	o := is.of(write)
	if o.file != nil {
		o.users++
		s.nodes.mu.Unlock()
		return 0
	}
	s.nodes.mu.Unlock()
	f, errno := s.openFile(is, write)
	if errno != 0 {
		s.closed(1)
		return errno
	}
	s.keep(is, write, f)
	return 0
}

// openFile opens a node's file by its name.
func (s *Server) openFile(is *node, write bool) (workspace.File, syscall.Errno) {
	s.nodes.names.RLock()
	defer s.nodes.names.RUnlock()
	path, errno := s.nodes.path(is.id)
	if errno != 0 {
		return nil, errno
	}
	f, err := s.tree.Open(path, write)
	if err != nil {
		return nil, errnoOf(err)
	}
	a, err := f.Stat()
	if err == nil && !s.nodes.same(is, &a) {
		if err = syscall.ESTALE; write && is.id != rootID {
			s.nodes.changedFile(is, a.ID) // an overlay has made a copy of it
			err = nil
		}
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
	return is.id == rootID || is.file == a.ID && is.kind == a.Mode&syscall.S_IFMT
}

// keep keeps a file of a node that was opened.
func (s *Server) keep(is *node, write bool, f workspace.File) {
	s.nodes.mu.Lock()
	o := is.of(write)
	o.users++
	spare := f
	if o.file == nil {
		o.file, spare = f, nil
	}
	s.nodes.mu.Unlock()
	if spare != nil {
		spare.Close()
	}
}

// release has a node open once less.
func (s *Server) release(id uint64, flags uint32) {
	is, errno := s.nodes.get(id)
	if errno != 0 {
		return
	}
	s.nodes.mu.Lock()
	o := is.of(writes(flags))
	var last workspace.File
	if o.users > 0 {
		o.users--
		s.opened--
		if o.users == 0 {
			last, o.file = o.file, nil
		}
	}
	s.nodes.mu.Unlock()
	if last != nil {
		last.Close()
	}
}

// opened1 returns a file of a node that is open, nil if none is.
func (s *Server) opened1(is *node) workspace.File {
	s.nodes.mu.Lock()
	defer s.nodes.mu.Unlock()
	if is.writing.file != nil {
		return is.writing.file
	}
	return is.reading.file
}

// file does something with a node's open file. The kernel reads and writes what is
// open only, but in a copy of the machine it may have been opened by another server.
func (s *Server) file(r *request, write bool, do func(workspace.File) error) syscall.Errno {
	is, errno := s.nodes.get(r.node)
	if errno != 0 {
		return errno
	}
	s.nodes.mu.Lock()
	f := is.writing.file
	if f == nil && !write {
		f = is.reading.file
	}
	s.nodes.mu.Unlock()
	if f != nil {
		return errnoOf(do(f))
	}
	if f, errno = s.openFile(is, write); errno != 0 {
		return errno
	}
	defer f.Close()
	return errnoOf(do(f))
}

// change changes what a node is.
func (s *Server) change(is *node, c workspace.Change, killSetID bool) (a workspace.Attr, errno syscall.Errno) {
	s.nodes.names.RLock()
	defer s.nodes.names.RUnlock()
	path, errno := s.nodes.path(is.id)
	if errno != 0 {
		// A file without a name can still be given another size.
		f := s.opened1(is)
		if f == nil || c.Size == nil {
			if f == nil {
				return a, errno
			}
			a, err := f.Stat()
			return a, errnoOf(err)
		}
		if err := f.Truncate(*c.Size); err != nil {
			return a, errnoOf(err)
		}
		a, err := f.Stat()
		return a, errnoOf(err)
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
	if is.id != rootID {
		if a.Mode&syscall.S_IFMT != is.kind {
			return a, syscall.ESTALE
		}
		s.nodes.changedFile(is, a.ID)
	}
	return a, 0
}
