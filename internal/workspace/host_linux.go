package workspace

import (
	"encoding/binary"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/matchlock/matchlock/internal/disk"
)

// host is a folder of the host, or a single file of it.
//
// Nothing outside is reached, whatever the guest and processes of the host do to it
// meanwhile: what is opened is opened beneath a descriptor of the root, through no
// symbolic link, and without opening it for anything (O_PATH); what it is, is asked of
// that descriptor. Names are changed by a descriptor of their folder and the one name.
// So nothing is looked at by one path and used by another. No descriptor is kept from
// one call to the next but the root's: folders may be moved at any time.
type host struct {
	root    *os.File        // O_PATH
	conn    syscall.RawConn // of root
	file    string          // the tree is this one file in root; else it is empty
	openat2 bool            // the kernel has it, and lets us use it
	o       HostOptions
	uid     uint32 // whose files appear as Owner's, beside our own when we are root
	quota   *quota

	// records has those of files that cannot have xattrs, and guards all of them from
	// being changed twice at once.
	recordMu sync.Mutex
	records  map[ID]record
}

// maxRecords bounds records in memory. There is no room for more: such files are what
// they are on the host.
const maxRecords = 65536

// OpenHost is the tree of a folder of the host, or of a single file. Links in the path
// to it are followed, once, unless it is to be Exact. Files of it are opened through /proc/self/fd.
//
// What the guest makes belongs to the user of this process. Set-id bits, the sticky bit
// and owners never get to the host's files, nor do permissions by which we could not
// serve them any more: an xattr, user.matchlock, keeps these, or memory, as long as the
// tree is open, where files have no xattrs.
func OpenHost(dir string, o HostOptions) (FS, error) {
	path := dir
	if !o.Exact {
		var err error
		if path, err = filepath.EvalSymlinks(dir); err != nil {
			return nil, err
		}
	}
	info, err := os.Lstat(path)
	if err != nil {
		return nil, err
	}
	h := &host{o: o, quota: newQuota(o.Quota, o.Files), records: make(map[ID]record)}
	h.quota.used = o.Used
	if info.Mode().IsRegular() {
		path, h.file = filepath.Split(path)
	} else if !info.IsDir() {
		return nil, fmt.Errorf("%s: neither a folder nor a regular file", dir)
	}
	fd, err := openRoot(filepath.Clean(path), o.Exact)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	h.root = os.NewFile(uintptr(fd), path)
	if h.conn, err = h.root.SyscallConn(); err != nil {
		h.root.Close()
		return nil, err
	}
	// Seccomp filters of containers answer EPERM for what they do not know.
	h.openat2 = true
	if fd, err := h.open("", unix.O_PATH); err == nil {
		unix.Close(fd)
	} else if h.openat2 = false; err != unix.ENOSYS && err != unix.EPERM {
		h.root.Close()
		return nil, &fs.PathError{Op: "openat2", Path: path, Err: err}
	}
	n, err := h.node("")
	if err != nil {
		h.root.Close()
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	defer n.close()
	h.uid = n.st.Uid
	// Files are opened by this; what else is mounted there could lead anywhere.
	var proc unix.Statfs_t
	if err := unix.Statfs("/proc/self/fd", &proc); err != nil || proc.Type != unix.PROC_SUPER_MAGIC {
		h.root.Close()
		return nil, fmt.Errorf("%s: /proc is not mounted (%v)", dir, err)
	}
	return h, nil
}

// openRoot opens a folder of the host.
func openRoot(path string, exact bool) (int, error) {
	const flags = unix.O_PATH | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
	if !exact {
		return unix.Open(path, flags, 0)
	}
	fd, err := unix.Openat2(unix.AT_FDCWD, path, &unix.OpenHow{Flags: flags, Resolve: unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS})
	if err != unix.ENOSYS && err != unix.EPERM {
		return fd, err
	}
	if !filepath.IsAbs(path) {
		return -1, unix.EINVAL
	}
	top, err := unix.Open("/", flags, 0)
	if err != nil || path == "/" {
		return top, err
	}
	defer unix.Close(top)
	return walk(top, path[1:], flags)
}

func (h *host) Close() error { return h.root.Close() }

// inRoot is the path below the root's descriptor.
func (h *host) inRoot(path string) (string, error) {
	if err := checkPath(path); err != nil {
		return "", err
	}
	switch {
	case h.file == "" && path == "":
		return ".", nil
	case h.file == "":
		return path, nil
	case path == "":
		return h.file, nil
	}
	return "", syscall.ENOTDIR
}

// open opens what is at path, which must not lead out of the tree. Without O_PATH it must
// be known to be a folder, by O_DIRECTORY: opening a device may do something already.
func (h *host) open(path string, flags int) (fd int, err error) {
	if path, err = h.inRoot(path); err != nil {
		return -1, err
	}
	return h.openInRoot(path, flags)
}

func (h *host) openInRoot(path string, flags int) (fd int, err error) {
	flags |= unix.O_NOFOLLOW | unix.O_CLOEXEC
	if e := h.conn.Control(func(root uintptr) {
		if h.openat2 && len(path) < unix.PathMax {
			fd, err = openBeneath(int(root), path, flags)
		} else {
			fd, err = walk(int(root), path, flags)
		}
	}); e != nil {
		return -1, e
	}
	return fd, err
}

func openBeneath(root int, path string, flags int) (int, error) {
	how := unix.OpenHow{
		Flags:   uint64(flags),
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	}
	// EAGAIN tells of renames at the same time, EINTR of a slow file system.
	for try := 0; ; try++ {
		fd, err := unix.Openat2(root, path, &how)
		if err != unix.EINTR && err != unix.EAGAIN || try == 64 {
			return fd, err
		}
	}
}

// walk is openBeneath for kernels without openat2, and for paths longer than it takes.
func walk(root int, path string, flags int) (int, error) {
	dir := root
	for {
		name, rest, more := strings.Cut(path, "/")
		next := flags
		if more {
			next = unix.O_PATH | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
		}
		fd, err := unix.Openat(dir, name, next, 0)
		for try := 0; err == unix.EINTR && try < 64; try++ {
			fd, err = unix.Openat(dir, name, next, 0)
		}
		if dir != root {
			unix.Close(dir)
		}
		if err != nil || !more {
			return fd, err
		}
		dir, path = fd, rest
	}
}

// A node is a descriptor of something in the tree, and what it is.
type node struct {
	fd int
	st unix.Statx_t
}

func (n node) close()             { unix.Close(n.fd) }
func (n node) id() ID             { return statID(&n.st) }
func (n node) is(typ uint16) bool { return n.st.Mode&unix.S_IFMT == typ }

// proc is a path to the descriptor's file, for calls that take no descriptor by O_PATH.
func (n node) proc() string { return "/proc/self/fd/" + strconv.Itoa(n.fd) }

func statID(st *unix.Statx_t) ID {
	id := ID{Device: unix.Mkdev(st.Dev_major, st.Dev_minor), Inode: st.Ino}
	if st.Mask&unix.STATX_BTIME != 0 {
		id.Born = st.Btime.Sec*1e9 + int64(st.Btime.Nsec)
	}
	return id
}

func statx(fd int, name string, st *unix.Statx_t) error {
	flags := unix.AT_SYMLINK_NOFOLLOW
	if name == "" {
		flags |= unix.AT_EMPTY_PATH
	}
	return unix.Statx(fd, name, flags, unix.STATX_BASIC_STATS|unix.STATX_BTIME, st)
}

// node opens what is at path, for nothing but to have it.
func (h *host) node(path string) (n node, err error) {
	if n.fd, err = h.open(path, unix.O_PATH); err != nil {
		return n, err
	}
	if err = statx(n.fd, "", &n.st); err != nil {
		n.close()
	}
	return n, err
}

// parent opens the folder of path, and tells path's name in it.
func (h *host) parent(path string) (dir int, name string, err error) {
	path, err = h.inRoot(path)
	if err != nil {
		return -1, "", err
	}
	if path == "." || h.file != "" {
		return -1, "", syscall.EBUSY // the root is a mount point to the guest
	}
	path, name = splitPath(path)
	if path == "" {
		path = "."
	}
	dir, err = h.openInRoot(path, unix.O_PATH|unix.O_DIRECTORY)
	return dir, name, err
}

// change calls f with the folder and the name of path.
func (h *host) change(path string, f func(dir int, name string) error) error {
	if h.o.ReadOnly {
		return syscall.EROFS
	}
	dir, name, err := h.parent(path)
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	return f(dir, name)
}

func (h *host) Stat(path string) (Attr, error) {
	n, err := h.node(path)
	if err != nil {
		return Attr{}, err
	}
	defer n.close()
	r, err := h.record(n)
	if err != nil {
		return Attr{}, err
	}
	return h.attr(&n.st, r), nil
}

// attr is how a file appears to the guest.
func (h *host) attr(st *unix.Statx_t, r record) Attr {
	a := Attr{
		ID:     statID(st),
		Mode:   uint32(st.Mode),
		Links:  st.Nlink,
		Owner:  nobody,
		Rdev:   uint32(unix.Mkdev(st.Rdev_major, st.Rdev_minor)),
		Size:   int64(st.Size),
		Blocks: int64(st.Blocks),
		Atime:  time.Unix(st.Atime.Sec, int64(st.Atime.Nsec)),
		Mtime:  time.Unix(st.Mtime.Sec, int64(st.Mtime.Nsec)),
		Ctime:  time.Unix(st.Ctime.Sec, int64(st.Ctime.Nsec)),
	}
	if us := uint32(os.Geteuid()); st.Uid == us || us == 0 && st.Uid == h.uid {
		a.Owner = h.o.Owner
	}
	if r.hasMode && hostMode(uint32(st.Mode), r.mode) == uint32(st.Mode)&0o7777 {
		a.Mode = a.Mode&unix.S_IFMT | r.mode
	}
	if r.hasOwner {
		a.Owner = r.owner
	}
	return a
}

// hasXattrs tells whether a file may have one of user.*, see xattr(7).
func (n node) hasXattrs() bool { return n.is(unix.S_IFREG) || n.is(unix.S_IFDIR) }

// record reads what is recorded of a file.
func (h *host) record(n node) (record, error) {
	r, ok, err := n.record()
	if ok || err != nil {
		return r, err
	}
	h.recordMu.Lock()
	defer h.recordMu.Unlock()
	return h.records[n.id()], nil
}

// record reads the record that a file has itself; ok is false if it can have none.
func (n node) record() (r record, ok bool, err error) {
	if !n.hasXattrs() {
		return record{}, false, nil
	}
	var buf [maxRecord]byte
	size, err := unix.Getxattr(n.proc(), recordName, buf[:])
	switch err {
	case nil:
		r, _ := parseRecord(string(buf[:size]))
		return r, true, nil
	case unix.ENODATA:
		return record{}, true, nil
	case unix.ERANGE: // none of ours
		return record{}, true, nil
	case unix.EOPNOTSUPP, unix.EACCES, unix.EPERM:
		return record{}, false, nil
	}
	return record{}, false, err
}

// changeRecord changes what is recorded of a file.
func (h *host) changeRecord(n node, change func(*record)) error {
	h.recordMu.Lock()
	defer h.recordMu.Unlock()
	old, ok, err := n.record()
	if err != nil {
		return err
	}
	if !ok {
		old = h.records[n.id()]
	}
	r := old
	change(&r)
	if r == old {
		return nil
	}
	return h.setRecord(n, r)
}

// setRecord is called with recordMu held.
func (h *host) setRecord(n node, r record) error {
	if n.hasXattrs() {
		var err error
		if r == (record{}) {
			err = unix.Removexattr(n.proc(), recordName)
		} else {
			err = unix.Setxattr(n.proc(), recordName, []byte(r.String()), 0)
		}
		switch err {
		case unix.EOPNOTSUPP, unix.EACCES, unix.EPERM, unix.ENODATA:
		default:
			return err
		}
	}
	if r == (record{}) {
		delete(h.records, n.id())
	} else if _, ok := h.records[n.id()]; ok || len(h.records) < maxRecords {
		h.records[n.id()] = r
	}
	return nil
}

// forget drops what memory has recorded of a file that is about to lose its last name:
// where file systems do not tell when a file was made, another may get its identity.
func (h *host) forget(dir int, name string) (done func()) {
	h.recordMu.Lock()
	defer h.recordMu.Unlock()
	var st unix.Statx_t
	if len(h.records) == 0 || statx(dir, name, &st) != nil || st.Nlink > 1 && st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return func() {}
	}
	return func() {
		h.recordMu.Lock()
		defer h.recordMu.Unlock()
		delete(h.records, statID(&st))
	}
}

// made gives a file that was just made the permissions and the owner that it shall have.
func (h *host) made(n node, mode uint32, owner Owner) error {
	var r record
	if !n.is(unix.S_IFLNK) {
		// Our umask may have taken some, and a folder may have handed down others.
		if err := n.chmod(hostMode(uint32(n.st.Mode), mode)); err != nil {
			return err
		}
		r.setMode(n, mode)
	}
	r.setOwner(h, n, owner)
	if r == (record{}) {
		return nil
	}
	h.recordMu.Lock()
	defer h.recordMu.Unlock()
	return h.setRecord(n, r)
}

// chmod changes the host's file, if it is not so already.
func (n *node) chmod(mode uint32) error {
	if uint32(n.st.Mode)&0o7777 == mode {
		return nil
	}
	if err := unix.Chmod(n.proc(), mode); err != nil {
		return err
	}
	n.st.Mode = n.st.Mode&unix.S_IFMT | uint16(mode)
	return nil
}

// setMode records permissions, if the host's file has others.
func (r *record) setMode(n node, mode uint32) {
	r.mode, r.hasMode = 0, false
	if mode &= 0o7777; mode != hostMode(uint32(n.st.Mode), mode) {
		r.mode, r.hasMode = mode, true
	}
}

// setOwner records an owner, if the host's file appears to have another.
func (r *record) setOwner(h *host, n node, owner Owner) {
	r.owner, r.hasOwner = Owner{}, false
	if owner != h.attr(&n.st, record{}).Owner {
		r.owner, r.hasOwner = owner, true
	}
}

func (h *host) ReadDir(path string) ([]DirEntry, error) {
	fd, err := h.open(path, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	var entries []DirEntry
	buf := make([]byte, 32<<10)
	for {
		n, err := unix.Getdents(fd, buf)
		if err != nil || n <= 0 {
			return entries, err
		}
		// struct linux_dirent64 of getdents64(2): number, offset, length, type, name.
		for b := buf[:n]; len(b) >= 19; {
			length := int(binary.NativeEndian.Uint16(b[16:]))
			if length < 19 || length > len(b) {
				return nil, syscall.EIO
			}
			name, _, _ := strings.Cut(string(b[19:length]), "\x00")
			typ := uint32(b[18]) << 12 // DT_DIR and so on, as S_IFDIR
			b = b[length:]
			if name != "." && name != ".." && checkPath(name) == nil {
				entries = append(entries, DirEntry{Name: name, Type: typ})
			}
		}
	}
}

func (h *host) Readlink(path string) (string, error) {
	n, err := h.node(path)
	if err != nil {
		return "", err
	}
	defer n.close()
	if !n.is(unix.S_IFLNK) {
		return "", syscall.EINVAL
	}
	buf := make([]byte, unix.PathMax)
	size, err := unix.Readlinkat(n.fd, "", buf)
	return string(buf[:max(0, size)]), err
}

func (h *host) Open(path string, write bool) (File, error) {
	if write && h.o.ReadOnly {
		return nil, syscall.EROFS
	}
	n, err := h.node(path)
	if err != nil {
		return nil, err
	}
	defer n.close()
	return h.openNode(n, write)
}

// openNode opens the file that n is.
func (h *host) openNode(n node, write bool) (*hostFile, error) {
	switch n.st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
	case unix.S_IFDIR:
		return nil, syscall.EISDIR
	case unix.S_IFLNK:
		return nil, syscall.ELOOP
	default:
		return nil, syscall.ENXIO // as for a socket
	}
	flags := unix.O_RDONLY
	if write {
		flags = unix.O_RDWR
		// Root's writing would leave them, with the guest's content.
		if n.st.Mode&(unix.S_ISUID|unix.S_ISGID) != 0 {
			if err := n.chmod(uint32(n.st.Mode) & 0o777); err != nil {
				return nil, err
			}
		}
	}
	f, err := os.OpenFile(n.proc(), flags, 0)
	if err != nil {
		return nil, err
	}
	h.quota.opened(n.id())
	return &hostFile{File: f, host: h}, nil
}

func (h *host) Create(path string, mode uint32, owner Owner) (_ File, err error) {
	var f *hostFile
	err = h.change(path, func(dir int, name string) error {
		return h.quota.name(func() error {
			fd, err := unix.Openat(dir, name, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, hostMode(unix.S_IFREG, mode))
			if err != nil {
				return err
			}
			f = &hostFile{File: os.NewFile(uintptr(fd), name), host: h}
			n := node{fd: fd}
			if err = statx(fd, "", &n.st); err == nil {
				h.quota.opened(n.id())
				err = h.made(n, mode, owner)
			}
			if err != nil {
				f.Close()
			}
			return err
		})
	})
	if err != nil {
		return nil, err
	}
	return f, nil
}

// make adds a name that create makes, of a type, with permissions and owner.
func (h *host) make(path string, typ uint16, mode uint32, owner Owner, create func(dir int, name string) error) error {
	return h.change(path, func(dir int, name string) error {
		return h.quota.name(func() error {
			if err := create(dir, name); err != nil {
				return err
			}
			fd, err := unix.Openat(dir, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
			if err != nil {
				return err
			}
			n := node{fd: fd}
			defer n.close()
			if err := statx(fd, "", &n.st); err != nil {
				return err
			}
			if !n.is(typ) {
				return nil // somebody was quicker, and has put another one there
			}
			return h.made(n, mode, owner)
		})
	})
}

func (h *host) Mknod(path string, mode uint32, owner Owner) error {
	typ := mode & unix.S_IFMT
	if typ != unix.S_IFIFO && typ != unix.S_IFSOCK {
		return syscall.EPERM
	}
	return h.make(path, uint16(typ), mode, owner, func(dir int, name string) error {
		return unix.Mknodat(dir, name, typ|hostMode(typ, mode), 0)
	})
}

func (h *host) Mkdir(path string, mode uint32, owner Owner) error {
	return h.make(path, unix.S_IFDIR, mode, owner, func(dir int, name string) error {
		return unix.Mkdirat(dir, name, hostMode(unix.S_IFDIR, mode))
	})
}

func (h *host) Symlink(target, path string, owner Owner) error {
	return h.make(path, unix.S_IFLNK, 0o777, owner, func(dir int, name string) error {
		return unix.Symlinkat(target, dir, name)
	})
}

func (h *host) Link(oldPath, newPath string) error {
	return h.change(oldPath, func(oldDir int, oldName string) error {
		return h.change(newPath, func(newDir int, newName string) error {
			return h.quota.name(func() error {
				return unix.Linkat(oldDir, oldName, newDir, newName, 0)
			})
		})
	})
}

func (h *host) Unlink(path string) error { return h.remove(path, 0) }
func (h *host) Rmdir(path string) error  { return h.remove(path, unix.AT_REMOVEDIR) }

func (h *host) remove(path string, flags int) error {
	return h.change(path, func(dir int, name string) error {
		err := h.replace(dir, name, func() error { return unix.Unlinkat(dir, name, flags) })
		if err == nil {
			h.quota.unname(1)
		}
		return err
	})
}

// replace has a name lose what it names, by remove.
func (h *host) replace(dir int, name string, remove func() error) error {
	done := h.forget(dir, name)
	err := h.quota.removed(func() (Attr, error) {
		var st unix.Statx_t
		err := statx(dir, name, &st)
		return h.attr(&st, record{}), err
	}, remove)
	if err == nil {
		done()
	}
	return err
}

func (h *host) Rename(oldPath, newPath string, flags uint32) error {
	if flags&^(RenameNoReplace|RenameExchange) != 0 {
		return syscall.EINVAL
	}
	return h.change(oldPath, func(oldDir int, oldName string) error {
		return h.change(newPath, func(newDir int, newName string) error {
			rename := func() error { return unix.Renameat2(oldDir, oldName, newDir, newName, uint(flags)) }
			if flags != 0 {
				return rename()
			}
			var from, to unix.Statx_t
			if statx(newDir, newName, &to) != nil {
				return rename()
			}
			if statx(oldDir, oldName, &from) == nil && statID(&from) == statID(&to) {
				return rename() // which does nothing
			}
			err := h.replace(newDir, newName, rename)
			if err == nil {
				h.quota.unname(1)
			}
			return err
		})
	})
}

func (h *host) SetAttr(path string, c Change) (Attr, error) {
	if h.o.ReadOnly {
		return Attr{}, syscall.EROFS
	}
	n, err := h.node(path)
	if err != nil {
		return Attr{}, err
	}
	defer n.close()
	if c.Size != nil {
		f, err := h.openNode(n, true)
		if err != nil {
			return Attr{}, err
		}
		err = f.Truncate(*c.Size)
		f.Close()
		if err != nil {
			return Attr{}, err
		}
	}
	if c.Mode != nil {
		if n.is(unix.S_IFLNK) {
			return Attr{}, syscall.EOPNOTSUPP
		}
		if err := n.chmod(hostMode(uint32(n.st.Mode), *c.Mode)); err != nil {
			return Attr{}, err
		}
	}
	if c.Mode != nil || c.UID != nil || c.GID != nil {
		err := h.changeRecord(n, func(r *record) {
			if c.Mode != nil {
				r.setMode(n, *c.Mode)
			}
			owner := h.attr(&n.st, *r).Owner
			if c.UID != nil {
				owner.UID = *c.UID
			}
			if c.GID != nil {
				owner.GID = *c.GID
			}
			r.setOwner(h, n, owner)
		})
		if err != nil {
			return Attr{}, err
		}
	}
	if c.Atime != nil || c.Mtime != nil || c.Now[0] || c.Now[1] {
		times := []unix.Timespec{timespec(c.Atime, c.Now[0]), timespec(c.Mtime, c.Now[1])}
		err := unix.UtimesNanoAt(n.fd, "", times, unix.AT_EMPTY_PATH)
		if err == unix.EINVAL || err == unix.ENOENT { // before Linux 5.8
			err = unix.UtimesNanoAt(unix.AT_FDCWD, n.proc(), times, 0)
		}
		if err != nil {
			return Attr{}, err
		}
	}
	if err := statx(n.fd, "", &n.st); err != nil {
		return Attr{}, err
	}
	r, err := h.record(n)
	return h.attr(&n.st, r), err
}

// timespec is a time as utimensat(2) takes it.
func timespec(t *time.Time, now bool) unix.Timespec {
	switch {
	case now:
		return unix.Timespec{Nsec: unix.UTIME_NOW}
	case t == nil:
		return unix.Timespec{Nsec: unix.UTIME_OMIT}
	}
	return unix.Timespec{Sec: t.Unix(), Nsec: int64(t.Nanosecond())}
}

// xattr calls get with a buffer that is large enough, for getxattr(2) and listxattr(2).
func xattr(get func(buf []byte) (int, error)) ([]byte, error) {
	var small [256]byte
	n, err := get(small[:])
	if err == nil {
		return append([]byte{}, small[:n]...), nil
	}
	if err != unix.ERANGE {
		return nil, err
	}
	buf := make([]byte, maxXattr)
	n, err = get(buf)
	if err != nil {
		return nil, err
	}
	return append([]byte{}, buf[:n]...), nil
}

func (h *host) Getxattr(path, name string) ([]byte, error) {
	n, err := h.node(path)
	if err != nil {
		return nil, err
	}
	defer n.close()
	if !guestXattr(name) || !n.hasXattrs() {
		return nil, syscall.ENODATA
	}
	return xattr(func(buf []byte) (int, error) { return unix.Getxattr(n.proc(), name, buf) })
}

func (h *host) Listxattr(path string) ([]string, error) {
	n, err := h.node(path)
	if err != nil {
		return nil, err
	}
	defer n.close()
	if !n.hasXattrs() {
		return nil, nil
	}
	list, err := xattr(func(buf []byte) (int, error) { return unix.Listxattr(n.proc(), buf) })
	if err != nil {
		if err == unix.EOPNOTSUPP {
			err = nil
		}
		return nil, err
	}
	var names []string
	for name := range strings.SplitSeq(string(list), "\x00") {
		if guestXattr(name) {
			names = append(names, name)
		}
	}
	return names, nil
}

func (h *host) Setxattr(path, name string, value []byte, flags int) error {
	if err := checkSetxattr(value, flags); err != nil {
		return err
	}
	return h.changeXattr(path, name, int64(len(name)+len(value)), func(path string) error {
		return unix.Setxattr(path, name, value, flags)
	})
}

func (h *host) Removexattr(path, name string) error {
	return h.changeXattr(path, name, 0, func(path string) error { return unix.Removexattr(path, name) })
}

// changeXattr changes the xattr of the file at path by at most n bytes.
func (h *host) changeXattr(path, name string, n int64, change func(proc string) error) error {
	if h.o.ReadOnly {
		return syscall.EROFS
	}
	file, err := h.node(path)
	if err != nil {
		return err
	}
	defer file.close()
	if !guestXattr(name) {
		return syscall.EOPNOTSUPP
	}
	if !file.hasXattrs() {
		return syscall.EPERM
	}
	stat := func() (Attr, error) {
		err := statx(file.fd, "", &file.st)
		return h.attr(&file.st, record{}), err
	}
	return h.quota.grow(stat, func(Attr) int64 { return n }, func() error { return change(file.proc()) })
}

func (h *host) SyncDir(path string) error {
	if h.o.ReadOnly {
		return nil
	}
	fd, err := h.open(path, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Fsync(fd)
}

func (h *host) Statfs(string) (Statfs, error) {
	var s unix.Statfs_t
	var err error
	if e := h.conn.Control(func(root uintptr) { err = unix.Fstatfs(int(root), &s) }); e != nil {
		return Statfs{}, e
	}
	if err != nil {
		return Statfs{}, err
	}
	// Some say how much they hold in blocks of another size than the best one.
	size := s.Frsize
	if size <= 0 {
		size = max(s.Bsize, 512)
	}
	return h.quota.limit(Statfs{
		BlockSize: size,
		Blocks:    s.Blocks, Free: s.Bfree, Avail: s.Bavail,
		Files: s.Files, FilesFree: s.Ffree,
	}), nil
}

// hostFile is a regular file of a host's tree.
type hostFile struct {
	*os.File
	host   *host
	closed sync.Once
}

// fd calls f with the file's descriptor.
func (f *hostFile) fd(call func(fd int) error) error {
	conn, err := f.SyscallConn()
	if err != nil {
		return err
	}
	if e := conn.Control(func(fd uintptr) { err = call(int(fd)) }); e != nil {
		return e
	}
	return err
}

// stat describes the file without what is recorded of it.
func (f *hostFile) stat() (a Attr, err error) {
	err = f.fd(func(fd int) error {
		var st unix.Statx_t
		err := statx(fd, "", &st)
		a = f.host.attr(&st, record{})
		return err
	})
	return a, err
}

func (f *hostFile) Stat() (a Attr, err error) {
	err = f.fd(func(fd int) error {
		n := node{fd: fd}
		if err := statx(fd, "", &n.st); err != nil {
			return err
		}
		r, err := f.host.record(n)
		a = f.host.attr(&n.st, r)
		return err
	})
	return a, err
}

func (f *hostFile) WriteAt(p []byte, offset int64) (n int, err error) {
	if offset < 0 || offset+int64(len(p)) < 0 {
		return 0, syscall.EFBIG
	}
	err = f.host.quota.grow(f.stat, func(a Attr) int64 { return written(a, offset, int64(len(p))) }, func() error {
		n, err = f.File.WriteAt(p, offset)
		return err
	})
	return n, err
}

// copyFrom makes f, which is empty, what another file of the host is, if src is one.
func (f *hostFile) copyFrom(src File) (done bool, err error) {
	from, ok := src.(*hostFile)
	if !ok {
		return false, nil
	}
	a, err := from.stat()
	if err != nil {
		return true, err
	}
	return true, f.host.quota.grow(f.stat, func(Attr) int64 { return a.Blocks * 512 }, func() error {
		return disk.CopySparse(f.File, from.File)
	})
}

func (f *hostFile) Truncate(size int64) error {
	if size < 0 {
		return syscall.EINVAL
	}
	return f.host.quota.grow(f.stat, func(Attr) int64 { return 0 }, func() error { return f.File.Truncate(size) })
}

func (f *hostFile) Allocate(mode uint32, offset, length int64) error {
	if err := checkAllocate(mode, offset, length); err != nil {
		return err
	}
	most := func(a Attr) int64 {
		if mode&unix.FALLOC_FL_PUNCH_HOLE != 0 {
			return 0
		}
		return written(a, offset, length)
	}
	return f.host.quota.grow(f.stat, most, func() error {
		return f.fd(func(fd int) error { return unix.Fallocate(fd, mode, offset, length) })
	})
}

func (f *hostFile) SeekData(offset int64, whence int) (next int64, err error) {
	if whence != unix.SEEK_DATA && whence != unix.SEEK_HOLE {
		return 0, syscall.EINVAL
	}
	err = f.fd(func(fd int) error {
		next, err = unix.Seek(fd, offset, whence)
		return err
	})
	return next, err
}

func (f *hostFile) Close() error {
	err := os.ErrClosed
	f.closed.Do(func() {
		if f.host.quota.bytes != 0 {
			if a, err := f.stat(); err == nil {
				f.host.quota.closed(a)
			}
		}
		err = f.File.Close()
	})
	return err
}
