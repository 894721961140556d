// Package disk makes the disk files of a machine: how does a layer become a read-only file system image, and where does an empty
// writable disk come from?
//
// A LayerWriter turns the tars of container image layers into an EROFS image in one pass. CreateScratch hands out empty ext4 disks, and
// CopySparse copies disk files at the price of their data. The package neither fetches nor verifies layers, keeps no store, and mounts nothing.
package disk

import (
	"archive/tar"
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"strings"
)

// DefaultMaxEntries is the most entries a layer may have when LayerOptions says nothing.
const DefaultMaxEntries = 4_000_000

// Why an entry is refused.
var (
	ErrBadName        = errors.New("bad name")         // leaves the root, too long, or not for the layer to use
	ErrBadEntry       = errors.New("bad entry")        // says what no file can be
	ErrNoLinkTarget   = errors.New("no link target")   // a hard link to what is not there, or to a folder
	ErrTooLarge       = errors.New("too large")        // more bytes than allowed, or than the format can hold
	ErrTooManyEntries = errors.New("too many entries") // more entries and missing parents than allowed
)

// EntryError names the entry of a tar that was refused.
type EntryError struct {
	Entry string // as the tar has it
	Err   error
}

func (e *EntryError) Error() string { return fmt.Sprintf("entry %s: %v", quote(e.Entry), e.Err) }

func (e *EntryError) Unwrap() error { return e.Err }

// quote quotes a name from a tar, which can be a megabyte long, for a message.
func quote(name string) string {
	if len(name) > 300 {
		return fmt.Sprintf("%q…", name[:300])
	}
	return fmt.Sprintf("%q", name)
}

// LayerOptions say what the layer is for and bound what it may take.
type LayerOptions struct {
	// Base tells that nothing lies below the image: whiteouts remove what earlier tars brought, and vanish. Without it there is one tar,
	// and whiteouts are kept as overlayfs wants them (a character device 0:0; trusted.overlay.opaque=y).
	Base       bool
	MaxBytes   int64 // the most bytes that files may have, unpacked; 0 for no limit
	MaxEntries int   // the most entries of all tars; 0 for DefaultMaxEntries

	// AllowNoEnd takes a tar for whole that lacks the blocks of zeros at its end, as a few layers do. It is for tars whose digest is
	// checked: of others nobody could tell that the rest is missing. Without it that is io.ErrUnexpectedEOF.
	AllowNoEnd bool
}

// LayerInfo tells what became of the tars.
type LayerInfo struct {
	Size     int64 // of the image, a multiple of 4096
	Entries  int   // in the tars
	Unpacked int64 // bytes of all files, holes included

	// Implied counts the folders that have something in them but no entry. They got mode 0755 and owner 0:0; in a stack of layers they
	// hide the attributes of the same folder below, which merging the layers with Base would keep.
	Implied int
	// Opaque tells that the root itself is opaque (never with Base). Overlayfs does not heed that for a root: the layers below are to be
	// left out of the stack.
	Opaque bool
}

// LayerWriter turns layer tars into one EROFS image in a single pass: data goes to its final place as it arrives, folders follow at
// Close. What it keeps in memory is names and folders: half a gigabyte for 4 million files. The same tars give the same bytes.
//
// The last of two entries with the same name wins; a folder and a folder are one, with the attributes of the last. Missing parents are
// made. Links are data: none is followed, and what an entry needs as a parent becomes a folder, as it would look through an overlayfs.
// A hard link is to what has the name at that moment. Whiteouts are about lower layers, wherever in their tar they stand. A character device
// 0:0 would act as a whiteout in any overlayfs, so it is one here. Names beginning with ".wh..wh." are books of aufs and left out.
// Left out as well: the xattrs by which overlayfs keeps its books, those no Linux file system would take, access times, and ACLs as text.
// Entries of an unknown type are refused.
//
// A LayerWriter is for one goroutine. After an error it only repeats that error.
type LayerWriter struct {
	opts LayerOptions
	fs   *erofs
	root *folder
	info LayerInfo
	tar  uint16 // the running AddTar, counted from 1
	err  error

	counted      int               // see count
	skipped      int64             // see skip
	links        map[uint64]uint32 // the names of inodes that have, or once had, more than one
	whiteoutNID  uint64            // the inode all whiteouts share; 0 before the first
	folderXattrs int               // bytes held for folders
}

// NewLayerWriter returns a writer to dst, an empty file open for reading and writing, which stays the caller's.
func NewLayerWriter(dst *os.File, opts LayerOptions) *LayerWriter {
	if opts.MaxBytes == 0 {
		opts.MaxBytes = math.MaxInt64
	}
	if opts.MaxEntries == 0 {
		opts.MaxEntries = DefaultMaxEntries
	}
	w := &LayerWriter{
		opts:  opts,
		fs:    newEROFS(dst),
		root:  &folder{inode: inode{attrs: impliedAttrs}},
		links: make(map[uint64]uint32),
	}
	w.root.parent = w.root
	if fi, err := dst.Stat(); err != nil {
		w.err = err
	} else if fi.Size() != 0 {
		w.err = fmt.Errorf("%s: not empty", dst.Name())
	}
	return w
}

// AddTar adds an uncompressed tar, and with Base any number of them, the lowest first. It reads r to its end, past that of the archive,
// so that a reader that verifies what passes sees all of it; what such a reader says then is AddTar's error.
func (w *LayerWriter) AddTar(r io.Reader) error {
	if w.err == nil {
		w.err = w.addTar(r)
	}
	return w.err
}

func (w *LayerWriter) addTar(r io.Reader) error {
	if w.tar > 0 && !w.opts.Base {
		return errors.New("a second tar, but not a base layer")
	}
	if w.tar == math.MaxUint16 {
		return errors.New("too many tars")
	}
	w.tar++
	end := &endWatcher{r: bufio.NewReaderSize(r, 64<<10)}
	tr := tar.NewReader(end)
	last := ""
	for {
		end.zeros, end.watch = 0, true
		hdr, err := tr.Next()
		if err == io.EOF && end.zeros < tarBlock && !w.opts.AllowNoEnd {
			err = io.ErrUnexpectedEOF
		}
		if err == io.EOF {
			break
		} else if err != nil && last != "" {
			return fmt.Errorf("after entry %s: %w", quote(last), err)
		} else if err != nil {
			return err
		}
		end.watch = false
		if err := w.add(hdr, tr); err != nil {
			return &EntryError{hdr.Name, err}
		}
		if err := w.skip(tr); err != nil {
			return &EntryError{hdr.Name, err}
		}
		last = hdr.Name
	}
	return w.skip(end)
}

const tarBlock = 512

// endWatcher counts the zeros before the end. A tar ends with two blocks of them, and everyone makes do with one; archive/tar can do
// without, and so would take what was cut off between two entries as whole.
type endWatcher struct {
	r     io.Reader
	watch bool
	zeros int
}

func (e *endWatcher) Read(p []byte) (int, error) {
	n, err := e.r.Read(p)
	if e.watch && n > 0 {
		kept := bytes.TrimRight(p[:n], "\x00")
		if len(kept) > 0 {
			e.zeros = 0
		}
		e.zeros += n - len(kept)
	}
	return n, err
}

// skip reads to the end what belongs to no file: what is left out, and what follows the archive.
func (w *LayerWriter) skip(r io.Reader) error {
	limit := max(w.opts.MaxBytes, 1<<20)
	n, err := io.CopyN(io.Discard, r, limit-w.skipped)
	w.skipped += n
	if err == io.EOF {
		return nil
	} else if err != nil {
		return err
	}
	return fmt.Errorf("%w: more than %d bytes that are no file's", ErrTooLarge, limit)
}

// count counts one more entry, or folder made for one.
func (w *LayerWriter) count() error {
	w.counted++
	if w.counted > w.opts.MaxEntries {
		return fmt.Errorf("%w: more than %d", ErrTooManyEntries, w.opts.MaxEntries)
	}
	return nil
}

// maxFolderXattrs bounds what is held in memory until Close, far above what labels on every folder take.
const maxFolderXattrs = 256 << 20

const (
	whiteoutPrefix = ".wh."
	opaqueName     = ".wh..wh..opq"
	aufsPrefix     = ".wh..wh."
)

// add adds one entry, whose data tr is about to give.
func (w *LayerWriter) add(hdr *tar.Header, tr *tar.Reader) error {
	w.info.Entries++
	if err := w.count(); err != nil {
		return err
	}
	switch hdr.Typeflag {
	case tar.TypeXGlobalHeader, 'V': // about the archive: its attributes, its label
		return nil
	}
	path, err := splitPath(hdr.Name)
	if err != nil {
		return err
	}
	if len(path) == 0 {
		if hdr.Typeflag != tar.TypeDir {
			return fmt.Errorf("%w: the root is a folder", ErrBadName)
		}
		return w.addFolder(path, hdr)
	}
	parent, name := path[:len(path)-1], path[len(path)-1]
	for _, part := range parent {
		if strings.HasPrefix(part, aufsPrefix) {
			return nil
		} else if strings.HasPrefix(part, whiteoutPrefix) {
			return fmt.Errorf("%w: below a whiteout", ErrBadName)
		}
	}
	switch {
	case name == opaqueName:
		return w.addOpaque(parent)
	case strings.HasPrefix(name, aufsPrefix):
		return nil
	case strings.HasPrefix(name, whiteoutPrefix):
		name = name[len(whiteoutPrefix):]
		if name == "" || name == "." || name == ".." {
			return fmt.Errorf("%w: a whiteout of nothing", ErrBadName)
		}
		return w.addWhiteout(parent, name)
	case hdr.Typeflag == tar.TypeChar && hdr.Devmajor == 0 && hdr.Devminor == 0:
		return w.addWhiteout(parent, name)
	case hdr.Typeflag == tar.TypeDir:
		return w.addFolder(path, hdr)
	case hdr.Typeflag == tar.TypeLink:
		return w.addLink(parent, name, hdr.Linkname)
	}
	return w.addInode(parent, name, hdr, tr)
}

// addFolder makes the folder or gives it new attributes.
func (w *LayerWriter) addFolder(path []string, hdr *tar.Header) error {
	a, err := newAttrs(hdr, modeFolder)
	if err != nil {
		return err
	}
	f := w.root
	if len(path) > 0 {
		last := len(path) - 1
		parent, err := w.makeFolder(path[:last])
		if err != nil {
			return err
		}
		f = w.subfolder(parent, path[last])
	} else if a.len() > rootRoom {
		return fmt.Errorf("%w: more than %d bytes of xattrs at the root", ErrTooLarge, rootRoom-inodeSize)
	}
	w.folderXattrs += len(a.xattrs) - len(f.xattrs)
	if w.folderXattrs > maxFolderXattrs {
		return fmt.Errorf("%w: more than %d bytes of xattrs of folders", ErrTooLarge, maxFolderXattrs)
	}
	f.attrs, f.named = a, w.tar
	return nil
}

// addOpaque hides what lower layers have in the folder.
func (w *LayerWriter) addOpaque(path []string) error {
	f, err := w.makeFolder(path)
	if err != nil {
		return err
	}
	f.opaque = true
	if w.opts.Base {
		w.hideLower(f)
	} else if f == w.root {
		w.info.Opaque = true
	}
	return nil
}

// addWhiteout hides what lower layers have by that name.
func (w *LayerWriter) addWhiteout(parent []string, name string) error {
	if w.opts.Base {
		if e, ok := w.find(parent); ok && e.folder != nil {
			w.hideLowerEntry(e.folder, name)
		}
		return nil
	}
	f, err := w.makeFolder(parent)
	if err != nil {
		return err
	}
	if kid := f.kids.get(name); kid.folder != nil {
		kid.folder.opaque = true
	} else if kid.mode == 0 {
		return w.putWhiteout(f, name)
	}
	return nil // a file hides what is below without help
}

// putWhiteout puts a whiteout into the folder. All are names of one inode, as they are when overlayfs makes them.
func (w *LayerWriter) putWhiteout(f *folder, name string) error {
	if w.whiteoutNID == 0 {
		nid, err := w.writeInode(inode{attrs: attrs{mode: modeChar}}, nil)
		if err != nil {
			return err
		}
		w.whiteoutNID = nid
	}
	w.put(f, name, entry{nid: w.whiteoutNID, mode: modeChar})
	w.links[w.whiteoutNID]++
	return nil
}

// addLink gives what has the name target one more name.
func (w *LayerWriter) addLink(parent []string, name, target string) error {
	path, err := splitPath(target)
	if err != nil {
		return fmt.Errorf("link target %s: %w", quote(target), err)
	}
	e, ok := w.find(path)
	if !ok {
		return fmt.Errorf("%w: %s is not there", ErrNoLinkTarget, quote(target))
	} else if e.folder != nil {
		return fmt.Errorf("%w: %s is a folder", ErrNoLinkTarget, quote(target))
	}
	// Counted before a name is taken away, which may be the target's.
	w.links[e.nid] = max(w.links[e.nid], 1) + 1
	f, err := w.makeFolder(parent)
	if err != nil {
		return err
	}
	w.put(f, name, e)
	return nil
}

// addInode writes a file, symbolic link, device or fifo and gives it its name.
func (w *LayerWriter) addInode(parent []string, name string, hdr *tar.Header, tr *tar.Reader) error {
	n := inode{size: hdr.Size}
	data := io.Reader(tr)
	switch hdr.Typeflag {
	case tar.TypeReg, tar.TypeGNUSparse, tar.TypeCont:
		n.mode = modeRegular
		if n.size > w.opts.MaxBytes-w.info.Unpacked {
			return fmt.Errorf("%w: more than %d bytes", ErrTooLarge, w.opts.MaxBytes)
		}
		w.info.Unpacked += n.size
	case tar.TypeSymlink:
		n.mode = modeSymlink
		n.size = int64(len(hdr.Linkname))
		if n.size == 0 || n.size > maxPath || strings.IndexByte(hdr.Linkname, 0) >= 0 {
			return fmt.Errorf("%w: a symbolic link to a path of %d bytes", ErrBadEntry, n.size)
		}
		data = strings.NewReader(hdr.Linkname)
	case tar.TypeChar, tar.TypeBlock:
		n.mode = modeChar
		if hdr.Typeflag == tar.TypeBlock {
			n.mode = modeBlock
		}
		// The kernel's 12 and 20 bits, in the form that began with 8 and 8.
		major, minor := hdr.Devmajor, hdr.Devminor
		if major < 0 || major >= 1<<12 || minor < 0 || minor >= 1<<20 {
			return fmt.Errorf("%w: device %d:%d", ErrBadEntry, major, minor)
		}
		n.block = uint32(minor&0xff | major<<8 | minor&^0xff<<12)
		n.size = 0
	case tar.TypeFifo:
		n.mode = modeFIFO
		n.size = 0
	default:
		return fmt.Errorf("%w: unknown type %q", ErrBadEntry, hdr.Typeflag)
	}
	var err error
	if n.attrs, err = newAttrs(hdr, n.mode); err != nil {
		return err
	}
	f, err := w.makeFolder(parent)
	if err != nil {
		return err
	}
	nid, err := w.writeInode(n, data)
	if err != nil {
		return err
	}
	w.put(f, name, entry{nid: nid, mode: n.mode})
	return nil
}

// writeInode writes an inode that has one name, and its data.
func (w *LayerWriter) writeInode(n inode, data io.Reader) (nid uint64, err error) {
	n.nlink = 1
	tail := n.size % blockSize
	n.inline = tail > 0 && n.len()+int(tail) <= blockSize
	if !n.inline {
		tail = 0
	}
	if blocks := n.size - tail; blocks > 0 {
		if n.block, err = w.fs.data(data, blocks); err != nil {
			return 0, err
		}
	}
	b, nid, err := w.fs.place(n.len() + int(tail))
	if err != nil {
		return 0, err
	}
	n.put(b, nid)
	if n.inline {
		_, err = io.ReadFull(data, b[n.len():])
	}
	return nid, err
}

// newAttrs takes over what the header says of any kind of file.
func newAttrs(hdr *tar.Header, fileType uint16) (attrs, error) {
	const maxID = math.MaxUint32 - 1 // the last one means "nobody" to the kernel
	if hdr.Uid < 0 || hdr.Uid > maxID || hdr.Gid < 0 || hdr.Gid > maxID {
		return attrs{}, fmt.Errorf("%w: owner %d:%d", ErrBadEntry, hdr.Uid, hdr.Gid)
	}
	mode := fileType | uint16(hdr.Mode&0o7777)
	if fileType == modeSymlink {
		mode = modeSymlink | 0o777 // Linux knows no other
	}
	x, err := encodeXattrs(hdr.PAXRecords, fileType)
	return attrs{
		mode:   mode,
		uid:    uint32(hdr.Uid),
		gid:    uint32(hdr.Gid),
		mtime:  hdr.ModTime.Unix(),
		nsec:   uint32(hdr.ModTime.Nanosecond()),
		xattrs: x,
	}, err
}

// Close writes what is left, above all the superblock, and cuts dst to its size. It does not close dst.
func (w *LayerWriter) Close() (LayerInfo, error) {
	if w.err != nil {
		return LayerInfo{}, w.err
	}
	w.err = errors.New("layer already closed")
	if err := w.fs.closeArea(); err != nil {
		return LayerInfo{}, err
	}
	if err := w.writeTree(); err != nil {
		return LayerInfo{}, err
	}
	for nid, names := range w.links {
		b := binary.LittleEndian.AppendUint32(nil, names)
		if _, err := w.fs.file.WriteAt(b, int64(nid)*slotSize+nlinkOffset); err != nil {
			return LayerInfo{}, err
		}
	}
	w.info.Size = w.fs.end
	return w.info, nil
}
