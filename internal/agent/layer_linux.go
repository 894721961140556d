package agent

import (
	"bufio"
	"bytes"
	"errors"
	"net"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/matchlock/matchlock/internal/wire"
)

// A Layer is where an overlayfs that is the guest's root keeps what is written to it.
type Layer struct {
	Upper *os.File // what was written
	Below *os.File // the root of all that lies below

	// Hold has user code stand still until release is called.
	Hold func() (release func(), err error)

	// Ours are the places, by their paths in Upper, where something was written that
	// user code has not: see Place.
	Ours func() map[string]Place
}

// A Place is a file or folder that was made for something to be mounted there, and then
// is empty. With Clean, it is a file to which something was added; Clean takes that away
// and returns the rest: nothing if there was nothing before.
type Place struct{ Clean func(content []byte) []byte }

// MaxCleaned is how large a file may be, in bytes, that a Place cleans.
const MaxCleaned = 8 << 20

// ServeLayer has the server answer for a layer. It is called before Serve.
func (s *Server) ServeLayer(l *Layer) { s.layer = l }

// readLayer sends what was written.
func (s *Server) readLayer(conn net.Conn, d *wire.Decoder) error {
	still := d.Bool()
	if err := d.Done(); err != nil {
		return wrap("layer", err)
	}
	if s.layer == nil {
		return errors.New("layer: the root file system has none of its own")
	}
	ours := s.layer.Ours()
	release := func() {}
	if still {
		let, err := s.layer.Hold()
		if err != nil {
			return wrap("layer", err)
		}
		release = sync.OnceFunc(let)
		defer release()
	}
	// What is read comes from the kernel's cache, as it is for user code: to sync the
	// disk before would change nothing.
	buffer := bufio.NewWriterSize(&layerFrames{conn, wire.NewFrameWriter(conn)}, chunk)
	l := &layerReader{layer: s.layer, tar: layerTar{buffer}, ours: ours, way: map[string]bool{}, links: map[inode]*sharedFile{}}
	for p := range ours {
		for ; p != "."; p = path.Dir(p) {
			l.way[p] = true
		}
	}
	if err := l.root(); err != nil {
		return wrap("layer", err)
	}
	release()
	if err := l.tar.end(); err != nil {
		return err
	}
	if err := buffer.Flush(); err != nil {
		return err
	}
	return wire.NewFrameWriter(conn).WriteFrame(frameEnd, nil)
}

// layerFrames sends what is written as data, which the host has to take in time: user
// code waits for it.
type layerFrames struct {
	conn net.Conn
	out  *wire.FrameWriter
}

func (f *layerFrames) Write(p []byte) (n int, err error) {
	for len(p) > 0 {
		part := p[:min(len(p), chunk)]
		f.conn.SetWriteDeadline(time.Now().Add(answerTime))
		if err := f.out.WriteFrame(frameData, part); err != nil {
			return n, err
		}
		n, p = n+len(part), p[len(part):]
	}
	return n, nil
}

// layerReader is a request to read a layer.
type layerReader struct {
	layer *Layer
	tar   layerTar
	ours  map[string]Place
	way   map[string]bool // the paths of ours, and the folders on the way there

	folders []*layerEntry // in which the next file is and that are not written yet, the uppermost first
	links   map[inode]*sharedFile
	size    int // of the paths in links
}

// sharedFile is a file with names that have not come yet.
type sharedFile struct {
	path string // the first one
	left uint64
}

// maxShares is how many bytes the paths of files have together that wait for more names.
const maxShares = 32 << 20

// What names of a layer's tar mean (OCI image specification, layer.md).
const (
	whiteoutPrefix = ".wh."
	opaqueMark     = ".wh..wh..opq"
)

// root reads the root. It has an entry if it is not as it was made: layers that say
// nothing of it leave it as it is below.
func (l *layerReader) root() error {
	fd := int(l.layer.Upper.Fd())
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Mode&modeBits != 0o755 || st.Uid != 0 || st.Gid != 0 {
		if err := l.tar.header(entryOf(".", &st)); err != nil {
			return err
		}
	}
	return l.files(fd, ".")
}

// files reads what is in an open folder.
func (l *layerReader) files(fd int, p string) error {
	names, err := namesIn(fd)
	if err != nil {
		return l.errorAt("list", p, err)
	}
	slices.Sort(names)
	for _, name := range names {
		if err := l.file(fd, name, path.Join(p, name)); err != nil {
			return err
		}
	}
	return nil
}

func (l *layerReader) errorAt(op, p string, err error) error {
	return &os.PathError{Op: op, Path: "/" + p, Err: err}
}

// modeBits are the permission bits of st_mode.
const modeBits = 0o7777

func entryOf(p string, st *unix.Stat_t) *layerEntry {
	e := &layerEntry{
		path: p, mode: st.Mode & modeBits, uid: st.Uid, gid: st.Gid,
		modTime: time.Unix(int64(st.Mtim.Sec), int64(st.Mtim.Nsec)),
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		e.kind, e.size = tarRegular, st.Size
	case unix.S_IFDIR:
		e.kind = tarDir
	case unix.S_IFLNK:
		e.kind = tarSymlink
	case unix.S_IFIFO:
		e.kind = tarFIFO
	case unix.S_IFCHR, unix.S_IFBLK:
		e.kind = tarChar
		if st.Mode&unix.S_IFMT == unix.S_IFBLK {
			e.kind = tarBlock
		}
		e.major, e.minor = unix.Major(uint64(st.Rdev)), unix.Minor(uint64(st.Rdev))
	}
	return e
}

var (
	errWhiteout = errors.New("in an image, a name that begins with .wh. stands for a deleted file")
	errMoved    = errors.New("overlayfs keeps it in a way that an image cannot")
	errChanged  = errors.New("it has changed while it was read")
)

// file reads the file called name in the open folder dir; its path is p.
func (l *layerReader) file(dir int, name, p string) error {
	if err := checkNodePath(p); err != nil {
		return l.errorAt("read", p, err)
	}
	if strings.HasPrefix(name, whiteoutPrefix) {
		return l.errorAt("read", p, errWhiteout)
	}
	var st unix.Stat_t
	err := unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW)
	if err == unix.ENOENT {
		return nil // removed in the meantime
	}
	if err != nil {
		return l.errorAt("stat", p, err)
	}
	kind := st.Mode & unix.S_IFMT
	switch {
	case kind == unix.S_IFCHR && st.Rdev == 0: // by which overlayfs deletes
		return l.whiteout(p)
	case kind == unix.S_IFSOCK: // which images do not have
		if below, err := l.below(p); err == nil {
			unix.Close(below)
			return l.whiteout(p)
		}
		return nil
	}
	attributes, books, err := xattrsOf("/proc/self/fd/" + strconv.Itoa(dir) + "/" + name)
	if err != nil {
		return l.errorAt("attributes of", p, err)
	}
	if books["redirect"] != "" || books["metacopy"] != "" {
		return l.errorAt("read", p, errMoved)
	}
	e := entryOf(p, &st)
	e.xattrs = attributes
	if kind == unix.S_IFDIR {
		return l.folder(dir, name, e, books["opaque"] == "y")
	}
	if place, ours := l.ours[p]; ours && kind == unix.S_IFREG && st.Size <= MaxCleaned {
		return l.place(dir, name, e, place)
	}
	if st.Nlink > 1 {
		if first := l.link(&st, p); first != "" {
			e.kind, e.link, e.size, e.xattrs = tarLink, first, 0, nil
			return l.header(e)
		}
	}
	switch kind {
	case unix.S_IFLNK:
		if e.link, err = readlink(dir, name); err != nil {
			return l.errorAt("readlink", p, err)
		}
	case unix.S_IFREG:
		return l.content(dir, name, e, st.Blocks*512 < st.Size)
	}
	return l.header(e)
}

// header writes the header of a file, and before it those of the folders that it is in.
func (l *layerReader) header(e *layerEntry) error {
	for _, folder := range l.folders {
		if err := l.tar.header(folder); err != nil {
			return err
		}
	}
	l.folders = l.folders[:0]
	return l.tar.header(e)
}

// whiteout writes that what is below at a path is not there.
func (l *layerReader) whiteout(p string) error {
	return l.header(&layerEntry{kind: tarRegular, path: path.Join(path.Dir(p), whiteoutPrefix+path.Base(p)), modTime: time.Unix(0, 0)})
}

// folder reads a folder.
func (l *layerReader) folder(dir int, name string, e *layerEntry, opaque bool) error {
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err == unix.ENOENT {
		return nil
	}
	if err != nil {
		return l.errorAt("open", e.path, err)
	}
	defer unix.Close(fd)
	before := len(l.folders)
	switch {
	case opaque:
		err = l.header(e)
		if err == nil {
			err = l.tar.header(&layerEntry{kind: tarRegular, path: path.Join(e.path, opaqueMark), modTime: time.Unix(0, 0)})
		}
	case l.way[e.path] && l.asBefore(e):
		l.folders = append(l.folders, e)
	default:
		err = l.header(e)
	}
	if err == nil {
		err = l.files(fd, e.path)
	}
	if len(l.folders) > before { // nothing of it was written
		l.folders = l.folders[:before]
	}
	return err
}

// asBefore reports whether a folder is what it was before anything was written in it, or,
// if there was none, what is made where one is needed.
func (l *layerReader) asBefore(e *layerEntry) bool {
	fd, err := l.below(e.path)
	if err != nil {
		return e.mode == 0o755 && e.uid == 0 && e.gid == 0 && len(e.xattrs) == 0
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return false
	}
	attributes, _, err := xattrsOf("/proc/self/fd/" + strconv.Itoa(fd) + "/.")
	return err == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR && st.Mode&modeBits == e.mode && st.Uid == e.uid && st.Gid == e.gid &&
		slices.Equal(attributes, e.xattrs)
}

// below opens what lies below at a path, to look at: what is reached through a link is
// not there.
func (l *layerReader) below(p string) (int, error) {
	return unix.Openat2(int(l.layer.Below.Fd()), p, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS,
	})
}

// place writes the file of a Place, if something is left that is not as it is below.
func (l *layerReader) place(dir int, name string, e *layerEntry, place Place) error {
	f, _, err := openFileAt(dir, name)
	if err != nil {
		return l.errorAt("open", e.path, err)
	}
	defer f.close()
	content := make([]byte, e.size)
	if n, err := f.readFull(content); err != nil || n < len(content) {
		return l.errorAt("read", e.path, errors.Join(err, errChanged))
	}
	if place.Clean != nil {
		content = place.Clean(content)
	}
	before, isFile := l.contentBelow(e.path)
	if !isFile && len(content) == 0 || isFile && place.Clean != nil && (bytes.Equal(content, before) || string(content) == string(before)+"\n") {
		return nil
	}
	e.size = int64(len(content))
	if err := l.header(e); err != nil {
		return err
	}
	return l.tar.padded(content)
}

// contentBelow reads a regular file that lies below.
func (l *layerReader) contentBelow(p string) (content []byte, isFile bool) {
	dir, err := l.below(path.Dir(p))
	if err != nil {
		return nil, false
	}
	defer unix.Close(dir)
	f, st, err := openFileAt(dir, path.Base(p))
	if err != nil {
		return nil, false
	}
	defer f.close()
	content = make([]byte, min(st.Size, MaxCleaned))
	n, err := f.readFull(content)
	return content[:n], err == nil
}

// openFileAt opens a regular file in an open folder.
func openFileAt(dir int, name string) (regular, *unix.Stat_t, error) {
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, nil, err
	}
	var st unix.Stat_t
	if err = unix.Fstat(fd, &st); err == nil {
		err = checkRegular(&st)
	}
	if err != nil {
		unix.Close(fd)
		return -1, nil, err
	}
	return regular(fd), &st, nil
}

// link returns the first path of a file that has several, if it has come already.
func (l *layerReader) link(st *unix.Stat_t, p string) string {
	id := inode{uint64(st.Dev), st.Ino}
	if shared := l.links[id]; shared != nil {
		if shared.left--; shared.left == 0 {
			delete(l.links, id)
			l.size -= len(shared.path)
		}
		return shared.path
	}
	if l.size+len(p) <= maxShares { // else it is in the layer once for each name
		l.links[id] = &sharedFile{p, uint64(st.Nlink) - 1}
		l.size += len(p)
	}
	return ""
}

// content writes a regular file.
func (l *layerReader) content(dir int, name string, e *layerEntry, holes bool) error {
	f, st, err := openFileAt(dir, name)
	if err != nil {
		return l.errorAt("open", e.path, err)
	}
	defer f.close()
	e.size = st.Size
	data := []extent{{0, e.size}}
	if holes {
		if data, err = extentsOf(f, e.size); err != nil {
			return l.errorAt("read", e.path, err)
		}
		e.data = data
	}
	if err := l.header(e); err != nil {
		return err
	}
	var total int64
	buffer := make([]byte, chunk)
	for _, d := range data {
		total += d.size
		for d.size > 0 {
			n, err := unix.Pread(int(f), buffer[:min(d.size, chunk)], d.offset)
			if err == unix.EINTR {
				continue
			}
			if err == nil && n == 0 {
				err = errChanged
			}
			if err != nil {
				return l.errorAt("read", e.path, err)
			}
			if _, err := l.tar.w.Write(buffer[:n]); err != nil {
				return err
			}
			d.offset, d.size = d.offset+int64(n), d.size-int64(n)
		}
	}
	return l.tar.pad(total)
}

// maxExtents is how many parts of a sparse file are told apart; the rest of one that has
// more is read with its holes.
const maxExtents = 10_000

// extentsOf finds where a file has data. It is never nil.
func extentsOf(f regular, size int64) ([]extent, error) {
	data := []extent{}
	for offset := int64(0); offset < size; {
		from, err := unix.Seek(int(f), offset, unix.SEEK_DATA)
		if err == unix.ENXIO {
			break
		}
		if err != nil {
			return nil, err
		}
		to := size
		if len(data) < maxExtents-1 {
			if to, err = unix.Seek(int(f), from, unix.SEEK_HOLE); err != nil {
				return nil, err
			}
		}
		if from, to = min(from, size), min(to, size); from < to {
			data = append(data, extent{from, to - from})
		}
		offset = to
	}
	return data, nil
}

// overlayBooks begins the names of the attributes in which overlayfs keeps its books.
const overlayBooks = "trusted.overlay."

// xattrsOf returns the attributes of a file, which is not followed, in the order of their
// names, and those of overlayfs apart.
func xattrsOf(file string) (attributes []xattr, books map[string]string, err error) {
	list := make([]byte, 64<<10) // the kernel's XATTR_LIST_MAX
	n, err := unix.Llistxattr(file, list)
	if n == 0 || err == unix.ENOTSUP {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, err
	}
	value := make([]byte, 64<<10) // XATTR_SIZE_MAX
	for name := range strings.SplitSeq(strings.TrimSuffix(string(list[:n]), "\x00"), "\x00") {
		n, err := unix.Lgetxattr(file, name, value)
		if err == unix.ENODATA {
			continue
		}
		if err != nil {
			return nil, nil, err
		}
		if book, ok := strings.CutPrefix(name, overlayBooks); ok {
			if books == nil {
				books = map[string]string{}
			}
			books[book] = string(value[:n])
		} else {
			attributes = append(attributes, xattr{name, string(value[:n])})
		}
	}
	slices.SortFunc(attributes, func(a, b xattr) int { return strings.Compare(a.name, b.name) })
	return attributes, books, nil
}
