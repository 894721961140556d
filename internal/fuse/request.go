package fuse

import (
	"errors"
	"io"
	"math"
	"syscall"

	"github.com/matchlock/matchlock/internal/workspace"
)

// request is one message, and the answer in the making.
type request struct {
	header
	decoder
	in     []byte
	out    encoder
	errno  syscall.Errno
	silent bool // there is no answer
}

// errnoOf is what the guest is told of an error.
func errnoOf(err error) syscall.Errno {
	var errno syscall.Errno
	switch {
	case err == nil:
		return 0
	case !errors.As(err, &errno) || errno <= 0 || errno >= 512: // of which the kernel takes none
	case errno == syscall.ENOSYS: // after which the kernel would never ask again
		return syscall.EOPNOTSUPP
	default:
		return errno
	}
	return syscall.EIO
}

// handle works on a request.
func (s *Server) handle(r *request) {
	r.out.buf, r.errno, r.silent = r.out.buf[:0], 0, false
	var ok bool
	if r.header, ok = parseHeader(r.in); !ok {
		r.errno = syscall.EINVAL
		return
	}
	r.decoder = decoder{rest: r.in[inHeaderSize:]}
	r.caller = s.fromGuest(r.caller)
	if errno := s.dispatch(r); errno != 0 {
		r.errno, r.out.buf = errno, r.out.buf[:0]
	}
	s.nodes.closeDropped()
}

func (s *Server) dispatch(r *request) syscall.Errno {
	switch r.opcode {
	case opInit:
		return s.init(r)
	case opForget:
		r.silent = true
		s.nodes.forget(r.node, r.uint64())
	case opBatchForget:
		r.silent = true
		s.batchForget(r)
	case opLookup:
		return s.lookup(r)
	case opGetattr:
		return s.getattr(r)
	case opSetattr:
		return s.setattr(r)
	case opReadlink:
		return s.readlink(r)
	case opSymlink:
		name, target := r.name(), r.text(maxTarget)
		return s.make(r, name, func(path string) error { return s.tree.Symlink(target, path, r.caller) })
	case opMknod:
		mode := r.uint32()
		r.skip(12)
		return s.make(r, r.name(), func(path string) error { return s.mknod(path, mode, r.caller) })
	case opMkdir:
		mode := r.uint32()
		r.skip(4)
		return s.make(r, r.name(), func(path string) error { return s.tree.Mkdir(path, mode&0o7777, r.caller) })
	case opCreate:
		return s.create(r)
	case opLink:
		return s.link(r)
	case opUnlink:
		return s.remove(r, s.tree.Unlink)
	case opRmdir:
		return s.remove(r, s.tree.Rmdir)
	case opRename:
		return s.rename(r, r.uint64(), 0)
	case opRename2:
		folder, flags := r.uint64(), r.uint32()
		r.skip(4)
		return s.rename(r, folder, flags)
	case opOpen:
		return s.open(r)
	case opRelease:
		r.skip(8)
		s.release(r.node, r.uint32())
	case opRead:
		return s.read(r)
	case opWrite:
		return s.write(r)
	case opFsync, opFsyncdir:
		return s.fsync(r)
	case opFallocate:
		return s.fallocate(r)
	case opLseek:
		return s.lseek(r)
	case opReaddir, opReaddirplus:
		return s.readdir(r)
	case opStatfs:
		return s.statfs(r)
	case opGetxattr, opListxattr:
		return s.getxattr(r)
	case opSetxattr:
		return s.setxattr(r)
	case opRemovexattr:
		name := r.text(maxName)
		return s.at(r, func(path string) error { return s.tree.Removexattr(path, name) })
	case opDestroy:
	default:
		return syscall.ENOSYS
	}
	return 0
}

func (s *Server) init(r *request) syscall.Errno {
	major, minor, readahead, flags := r.uint32(), r.uint32(), r.uint32(), r.uint32()
	if r.err != 0 {
		return r.err
	}
	if major != protocolMajor || minor < oldestMinor {
		return syscall.EPROTO
	}
	o := &r.out
	o.uint32(protocolMajor)
	o.uint32(min(minor, protocolMinor))
	o.uint32(min(readahead, 2*MaxIO))
	o.uint32(flags & wanted)
	o.uint16(64) // requests in the background
	o.uint16(48) // from which on it is congested
	o.uint32(MaxIO)
	o.uint32(1) // ns, the resolution of times
	o.uint16(MaxIO / 4096)
	o.zeros(2 + 4 + 7*4)
	return 0
}

func (s *Server) batchForget(r *request) {
	count := r.uint32()
	r.skip(4)
	for range min(count, maxForgets) {
		id, lookups := r.uint64(), r.uint64()
		if r.err != 0 {
			return
		}
		s.nodes.forget(id, lookups)
	}
}

// at does something with a node by its path.
func (s *Server) at(r *request, do func(path string) error) syscall.Errno {
	if r.err != 0 {
		return r.err
	}
	if _, errno := s.nodes.get(r.node); errno != 0 {
		return errno
	}
	s.nodes.names.RLock()
	defer s.nodes.names.RUnlock()
	path, errno := s.nodes.path(r.node)
	if errno != 0 {
		return errno
	}
	return errnoOf(do(path))
}

func (s *Server) lookup(r *request) syscall.Errno {
	return s.make(r, r.name(), func(string) error { return nil }) // by others, if at all
}

func join(folder, name string) string {
	if folder == "" {
		return name
	}
	return folder + "/" + name
}

// fromGuest has who is AnyOwner be that, and toGuest be the one he is.
func (s *Server) fromGuest(o workspace.Owner) workspace.Owner {
	if o.UID == s.owner.UID {
		o.UID = workspace.AnyOwner
	}
	if o.GID == s.owner.GID {
		o.GID = workspace.AnyOwner
	}
	return o
}

func (s *Server) toGuest(a *workspace.Attr) *workspace.Attr {
	shown := *a
	if shown.Owner.UID == workspace.AnyOwner {
		shown.Owner.UID = s.owner.UID
	}
	if shown.Owner.GID == workspace.AnyOwner {
		shown.Owner.GID = s.owner.GID
	}
	return &shown
}

func (s *Server) getattr(r *request) syscall.Errno {
	is, errno := s.nodes.get(r.node)
	if errno != 0 {
		return errno
	}
	a, errno := s.stat(is)
	if errno == 0 {
		r.out.attrOut(s.toGuest(&a), is.ino, s.options.Valid)
	}
	return errno
}

// stat describes a node: by its open file, if it has one, for its name may be gone.
func (s *Server) stat(is *node) (a workspace.Attr, errno syscall.Errno) {
	f := s.using(is, false)
	if f == nil {
		s.nodes.names.RLock()
		defer s.nodes.names.RUnlock()
		f = s.using(is, false) // what has replaced it meanwhile has left it held
	}
	if f != nil {
		defer f.done()
		a, err := f.Stat()
		return a, errnoOf(err)
	}
	path, errno := s.nodes.path(is.id)
	if errno != 0 {
		return a, errno
	}
	a, err := s.tree.Stat(path)
	if err == nil && !s.nodes.same(is, &a) {
		return a, syscall.ESTALE
	}
	return a, errnoOf(err)
}

// Fields of SETATTR beside those in kernel.go are times, which need their own.
func (s *Server) setattr(r *request) syscall.Errno {
	valid := r.uint32()
	r.skip(4 + 8)
	size := r.offset()
	r.skip(8)
	atime, mtime := r.when(), r.when()
	r.skip(8)
	atimeNS, mtimeNS := r.uint32(), r.uint32()
	r.skip(4)
	mode := r.uint32() & 0o7777
	r.skip(4)
	uid, gid := r.uint32(), r.uint32()
	if r.err != 0 {
		return r.err
	}
	var c workspace.Change
	if valid&setMode != 0 {
		c.Mode = &mode
	}
	owner := s.fromGuest(workspace.Owner{UID: uid, GID: gid})
	if valid&setUID != 0 {
		c.UID = &owner.UID
	}
	if valid&setGID != 0 {
		c.GID = &owner.GID
	}
	if valid&setSize != 0 {
		c.Size = &size
	}
	if valid&setAtime != 0 {
		t := atime(atimeNS)
		c.Atime, c.Now[0] = &t, valid&setAtimeNow != 0
	}
	if valid&setMtime != 0 {
		t := mtime(mtimeNS)
		c.Mtime, c.Now[1] = &t, valid&setMtimeNow != 0
	}
	is, errno := s.nodes.get(r.node)
	if errno != 0 {
		return errno
	}
	a, errno := s.change(is, c, valid&setKillSUIDGID != 0)
	if errno == 0 {
		r.out.attrOut(s.toGuest(&a), is.ino, s.options.Valid)
	}
	return errno
}

func (s *Server) readlink(r *request) syscall.Errno {
	return s.at(r, func(path string) error {
		target, err := s.tree.Readlink(path)
		if err == nil && len(target) > maxTarget {
			err = syscall.ENAMETOOLONG
		}
		r.out.buf = append(r.out.buf, target...)
		return err
	})
}

// make makes what has a name in the node, and answers with it.
func (s *Server) make(r *request, name string, do func(path string) error) syscall.Errno {
	return s.at(r, func(folder string) error {
		path := join(folder, name)
		if err := do(path); err != nil {
			return err
		}
		a, err := s.tree.Stat(path)
		if err != nil {
			return err
		}
		is, errno := s.nodes.found(place{r.node, name}, &a)
		if errno != 0 {
			return errno
		}
		r.out.entry(is.id, s.toGuest(&a), is.ino, s.options.Valid)
		return nil
	})
}

func (s *Server) mknod(path string, mode uint32, owner workspace.Owner) error {
	switch mode & syscall.S_IFMT {
	case syscall.S_IFREG:
		f, err := s.tree.Create(path, mode&0o7777, owner)
		if err != nil {
			return err
		}
		return f.Close()
	case syscall.S_IFIFO, syscall.S_IFSOCK:
		return s.tree.Mknod(path, mode&(syscall.S_IFMT|0o7777), owner)
	}
	return syscall.EPERM
}

func (s *Server) link(r *request) syscall.Errno {
	old, name := r.uint64(), r.name()
	if _, errno := s.nodes.get(old); errno != 0 {
		return errno
	}
	return s.make(r, name, func(path string) error {
		from, errno := s.nodes.path(old)
		if errno != 0 {
			return errno
		}
		return s.tree.Link(from, path)
	})
}

// remove takes a name away. A file that the kernel has open goes on being open.
func (s *Server) remove(r *request, do func(path string) error) syscall.Errno {
	name := r.name()
	return s.alone(r, func() syscall.Errno {
		path, errno := s.nodes.child(r.node, name)
		if errno != 0 {
			return errno
		}
		if err := do(path); err != nil {
			return errnoOf(err)
		}
		s.nodes.removed(place{r.node, name})
		return 0
	})
}

// alone does what changes names, while nothing else goes by a name.
func (s *Server) alone(r *request, do func() syscall.Errno) syscall.Errno {
	if r.err != 0 {
		return r.err
	}
	if _, errno := s.nodes.get(r.node); errno != 0 {
		return errno
	}
	s.nodes.names.Lock()
	defer s.nodes.names.Unlock()
	return do()
}

func (s *Server) rename(r *request, folder uint64, flags uint32) syscall.Errno {
	oldName, newName := r.name(), r.name()
	if flags&^(workspace.RenameNoReplace|workspace.RenameExchange) != 0 {
		return syscall.EINVAL
	}
	if _, errno := s.nodes.get(folder); errno != 0 {
		return errno
	}
	return s.alone(r, func() syscall.Errno {
		from, errno := s.nodes.child(r.node, oldName)
		if errno != 0 {
			return errno
		}
		to, errno := s.nodes.child(folder, newName)
		if errno != 0 {
			return errno
		}
		var replaced *node
		var f workspace.File
		if flags == 0 {
			replaced, f = s.beforeReplaced(place{folder, newName}, to)
		}
		if err := s.tree.Rename(from, to, flags); err != nil {
			if f != nil {
				f.Close()
			}
			return errnoOf(err)
		}
		if f != nil {
			s.nodes.hold(replaced, f)
		}
		s.nodes.renamed(place{r.node, oldName}, place{folder, newName}, flags&workspace.RenameExchange != 0)
		return 0
	})
}

func (s *Server) statfs(r *request) syscall.Errno {
	var st workspace.Statfs
	errno := s.at(r, func(path string) (err error) {
		st, err = s.tree.Statfs(path)
		return err
	})
	if errno != 0 {
		return errno
	}
	o := &r.out
	for _, n := range []uint64{st.Blocks, st.Free, st.Avail, st.Files, st.FilesFree} {
		o.uint64(n)
	}
	size := uint32(min(max(st.BlockSize, 512), 1<<20))
	o.uint32(size)
	o.uint32(maxName)
	o.uint32(size)
	o.zeros(4 + 6*4)
	return 0
}

// getxattr answers with a value, or the names of all; or, if it is asked for 0 bytes,
// with how long that is.
func (s *Server) getxattr(r *request) syscall.Errno {
	size := r.uint32()
	r.skip(4)
	name := ""
	if r.opcode == opGetxattr {
		name = r.text(maxName)
	}
	return s.at(r, func(path string) error {
		var value []byte
		var err error
		if r.opcode == opGetxattr {
			value, err = s.tree.Getxattr(path, name)
		} else {
			var names []string
			names, err = s.tree.Listxattr(path)
			for _, n := range names {
				value = append(append(value, n...), 0)
			}
		}
		switch {
		case err != nil:
			return err
		case len(value) > maxXattr:
			return syscall.E2BIG
		case size == 0:
			r.out.uint32(uint32(len(value)))
			r.out.uint32(0)
		case len(value) > int(size):
			return syscall.ERANGE
		default:
			r.out.buf = append(r.out.buf, value...)
		}
		return nil
	})
}

func (s *Server) setxattr(r *request) syscall.Errno {
	size, flags := r.uint32(), r.uint32()
	name := r.text(maxName)
	if size > maxXattr {
		return syscall.E2BIG
	}
	value := r.take(int(size))
	return s.at(r, func(path string) error { return s.tree.Setxattr(path, name, value, int(flags)) })
}

// readdir lists a part of a folder; READDIRPLUS with what is known of each file, which
// the kernel knows then.
func (s *Server) readdir(r *request) syscall.Errno {
	r.skip(8)
	offset, size := r.uint64(), int(min(r.uint32(), MaxIO))
	return s.at(r, func(path string) error {
		var l *listing
		if offset != 0 {
			l = s.lists.find(r.node, offset)
		}
		if l == nil {
			var err error
			if l, err = s.list(r.node, path, uint32(offset>>32)); err != nil {
				return err
			}
		}
		for next := int(uint32(offset)); s.listed(r, path, l, next, size); next++ {
		}
		return nil
	})
}

// list makes a list of a folder, and keeps it.
func (s *Server) list(node uint64, path string, number uint32) (*listing, error) {
	s.lists.making <- struct{}{}
	defer func() { <-s.lists.making }()
	entries, err := s.tree.ReadDir(path)
	if err != nil {
		return nil, err
	}
	if len(entries) > maxNames {
		return nil, syscall.EOVERFLOW
	}
	return s.lists.keep(node, number, entries), nil
}

// listed adds the entry at a place in a list to the answer, and tells whether there may
// be more. The first two are the folder itself and the one that it lies in.
func (s *Server) listed(r *request, folder string, l *listing, at, size int) (more bool) {
	const itself, outer = 0, 1
	plus := r.opcode == opReaddirplus
	var entry workspace.DirEntry
	switch {
	case at == itself:
		entry = workspace.DirEntry{Name: ".", Type: syscall.S_IFDIR}
	case at == outer:
		entry = workspace.DirEntry{Name: "..", Type: syscall.S_IFDIR}
	case at < 0 || at-2 >= len(l.entries):
		return false
	default:
		entry = l.entries[at-2]
	}
	length := direntLength(entry.Name)
	if plus {
		length += entrySize
	}
	if len(r.out.buf)+length > size {
		return false
	}
	ino, offset := uint64(1), listOffset(l.number, at+1)
	if plus && at > outer {
		a, err := s.tree.Stat(join(folder, entry.Name))
		if errors.Is(err, syscall.ENOENT) {
			return true // gone since
		}
		// Whatever else is wrong with it: the kernel forgets none of those before it, of
		// which an error would not tell.
		var is *node
		if err == nil {
			is, _ = s.nodes.found(place{l.folder, entry.Name}, &a)
		}
		if is != nil {
			r.out.entry(is.id, s.toGuest(&a), is.ino, s.options.Valid)
			ino, entry.Type = is.ino, a.Mode&syscall.S_IFMT
			plus = false
		}
	}
	if plus {
		r.out.zeros(entrySize) // the kernel knows it, or will ask for it
	}
	r.out.dirent(entry.Name, ino, offset, entry.Type)
	return true
}

func (s *Server) create(r *request) syscall.Errno {
	flags, mode := r.uint32(), r.uint32()&0o7777
	r.skip(8)
	name := r.name()
	return s.at(r, func(folder string) error {
		if !s.mayOpen() {
			return syscall.ENFILE
		}
		f, a, err := s.createFile(join(folder, name), flags, mode, r.caller)
		if err != nil {
			s.notOpened()
			return err
		}
		is, errno := s.nodes.found(place{r.node, name}, &a)
		if errno != 0 {
			f.Close()
			s.notOpened()
			return errno
		}
		if errno := s.keep(is, writes(flags), f); errno != 0 {
			return errno
		}
		r.out.entry(is.id, s.toGuest(&a), is.ino, s.options.Valid)
		r.openOut()
		return nil
	})
}

// createFile makes a file, unless somebody on the host has made it since the kernel saw
// that there is none.
func (s *Server) createFile(path string, flags, mode uint32, owner workspace.Owner) (f workspace.File, a workspace.Attr, err error) {
	f, err = s.tree.Create(path, mode, owner)
	if errors.Is(err, syscall.EEXIST) && flags&syscall.O_EXCL == 0 {
		if f, err = s.tree.Open(path, true); err == nil && flags&syscall.O_TRUNC != 0 {
			if err = f.Truncate(0); err != nil {
				f.Close()
			}
		}
	}
	if err != nil {
		return nil, a, err
	}
	if a, err = f.Stat(); err != nil {
		f.Close()
	}
	return f, a, err
}

// openOut appends struct fuse_open_out: there are no handles, and what the kernel has
// in its memory of a file is good as long as the file has not changed.
func (r *request) openOut() {
	r.out.uint64(0)
	r.out.uint32(openKeepCache)
	r.out.uint32(0)
}

func (s *Server) open(r *request) syscall.Errno {
	flags := r.uint32()
	is, errno := s.nodes.get(r.node)
	if errno != 0 {
		return errno
	}
	if errno := s.openNode(is, writes(flags)); errno != 0 {
		return errno
	}
	r.openOut()
	return 0
}

// writes tells whether a file that is opened with these flags can be written.
func writes(flags uint32) bool { return flags&syscall.O_ACCMODE != syscall.O_RDONLY }

func (s *Server) read(r *request) syscall.Errno {
	r.skip(8)
	offset, size := r.offset(), r.uint32()
	if r.err != 0 || size > MaxIO {
		return syscall.EINVAL
	}
	return s.file(r, false, func(f workspace.File) error {
		r.out.buf = sized(r.out.buf, int(size))
		n, err := f.ReadAt(r.out.buf, offset)
		r.out.buf = r.out.buf[:max(n, 0)]
		if err == io.EOF {
			err = nil
		}
		return err
	})
}

func (s *Server) write(r *request) syscall.Errno {
	r.skip(8)
	offset, size, flags := r.offset(), r.uint32(), r.uint32()
	r.skip(8)
	opened := r.uint32() // the flags of open(2)
	r.skip(4)
	if size > MaxIO || offset > math.MaxInt64-MaxIO {
		return syscall.EINVAL
	}
	data := r.take(int(size))
	if r.err != 0 {
		return r.err
	}
	return s.file(r, true, func(f workspace.File) error {
		if opened&syscall.O_APPEND != 0 {
			// Others may have written since the guest was told of the end.
			if a, err := f.Stat(); err == nil && offset < a.Size {
				offset = a.Size
			}
		}
		n, err := f.WriteAt(data, offset)
		if n <= 0 && err != nil {
			return err
		}
		if flags&writeKillSUIDGID != 0 {
			s.killSetID(r.node, f)
		}
		r.out.uint32(uint32(n))
		r.out.uint32(0)
		return nil
	})
}

// killSetID takes the set-id bits of a file that others write, as write(2) does.
func (s *Server) killSetID(id uint64, f workspace.File) {
	a, err := f.Stat()
	if err != nil || a.Mode&(syscall.S_ISUID|syscall.S_ISGID) == 0 {
		return
	}
	if is, errno := s.nodes.get(id); errno == 0 {
		s.change(is, workspace.Change{}, true)
	}
}

func (s *Server) fsync(r *request) syscall.Errno {
	if r.opcode == opFsyncdir {
		return s.at(r, s.tree.SyncDir)
	}
	return s.file(r, false, workspace.File.Sync)
}

func (s *Server) fallocate(r *request) syscall.Errno {
	r.skip(8)
	offset, length, mode := r.offset(), r.offset(), r.uint32()
	if r.err != 0 {
		return r.err
	}
	return s.file(r, true, func(f workspace.File) error { return f.Allocate(mode, offset, length) })
}

func (s *Server) lseek(r *request) syscall.Errno {
	r.skip(8)
	offset, whence := r.offset(), r.uint32()
	if r.err != 0 {
		return r.err
	}
	return s.file(r, false, func(f workspace.File) error {
		at, err := f.SeekData(offset, int(whence))
		r.out.uint64(uint64(at))
		return err
	})
}
