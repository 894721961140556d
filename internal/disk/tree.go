package disk

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
)

const (
	maxName = 255
	maxPath = 4095
)

// folder is a folder of the layer being written. Folders are kept until Close, as their content may always change; of everything else
// only the name and the inode's number are.
type folder struct {
	inode  // but for its attrs filled in at Close
	parent *folder
	kids   kids
	nid    uint64
	named  uint16 // the last tar with an entry for the folder itself
	filled uint16 // the last tar with an entry for or below it
	opaque bool   // hides what lower layers have in it
	hidden bool   // at Close: no lower layer shows in it, for it is opaque or in a folder that is
}

// entry is what a name in a folder stands for.
type entry struct {
	folder *folder // a folder, or
	nid    uint64  // the number of an inode, already written,
	mode   uint16  // with its mode (0 where there is nothing);
	tar    uint16  // and the tar that put it here
}

// dirent is an entry and its name.
type dirent struct {
	name string
	entry
}

// kids are the entries of a folder. Most folders have few, some have thousands.
type kids struct {
	few  []dirent
	many map[string]entry // once few are more than maxFew
}

const maxFew = 8

func (k *kids) get(name string) entry {
	for _, d := range k.few {
		if d.name == name {
			return d.entry
		}
	}
	return k.many[name]
}

func (k *kids) put(name string, e entry) {
	for i := range k.few {
		if k.few[i].name == name {
			k.few[i].entry = e
			return
		}
	}
	name = strings.Clone(name) // a part of the whole path, which would be kept
	switch {
	case k.many != nil:
		k.many[name] = e
	case len(k.few) < maxFew:
		k.few = append(k.few, dirent{name, e})
	default:
		k.many = map[string]entry{name: e}
		for _, d := range k.few {
			k.many[d.name] = d.entry
		}
		k.few = nil
	}
}

func (k *kids) remove(name string) {
	delete(k.many, name)
	k.few = slices.DeleteFunc(k.few, func(d dirent) bool { return d.name == name })
}

// list returns the entries in any order.
func (k *kids) list() []dirent {
	list := make([]dirent, 0, len(k.few)+len(k.many)+2) // and the two a folder adds
	list = append(list, k.few...)
	for name, e := range k.many {
		list = append(list, dirent{name, e})
	}
	return list
}

// splitPath returns the components of a name in a tar. A leading slash, ".", and empty components are dropped and ".." is resolved, by the
// text alone: nothing is followed. The root has none.
func splitPath(name string) ([]string, error) {
	if strings.IndexByte(name, 0) >= 0 {
		return nil, fmt.Errorf("%w: NUL", ErrBadName)
	}
	var parts []string
	length := -1 // of the parts, joined by slashes
	for part := range strings.SplitSeq(name, "/") {
		switch part {
		case "", ".":
			continue
		case "..":
			if len(parts) == 0 {
				return nil, fmt.Errorf("%w: leaves the root", ErrBadName)
			}
			last := len(parts) - 1
			length -= 1 + len(parts[last])
			parts = parts[:last]
			continue
		}
		if len(part) > maxName {
			return nil, fmt.Errorf("%w: a component of %d bytes, at most %d", ErrBadName, len(part), maxName)
		}
		if length += 1 + len(part); length > maxPath {
			return nil, fmt.Errorf("%w: a path of more than %d bytes", ErrBadName, maxPath)
		}
		parts = append(parts, part)
	}
	return parts, nil
}

// find returns what is at the path, without following anything.
func (w *LayerWriter) find(path []string) (e entry, ok bool) {
	e = entry{folder: w.root}
	for _, name := range path {
		if e.folder == nil {
			return entry{}, false
		}
		e = e.folder.kids.get(name)
	}
	return e, e.folder != nil || e.mode != 0 && e.nid != w.whiteoutNID
}

// makeFolder returns the folder at the path and makes what is missing, which counts as entries do.
func (w *LayerWriter) makeFolder(path []string) (*folder, error) {
	f := w.root
	for _, name := range path {
		if f.kids.get(name).folder == nil {
			if err := w.count(); err != nil {
				return nil, err
			}
		}
		f = w.subfolder(f, name)
	}
	return f, nil
}

// subfolder returns the folder of that name in f. If there is none it is made, and what is in its way gone: so it would look through an
// overlayfs that has the folder in a higher layer.
func (w *LayerWriter) subfolder(f *folder, name string) *folder {
	kid := f.kids.get(name)
	sub := kid.folder
	if sub == nil {
		// What is in its way already hid any folder of that name in lower layers.
		sub = &folder{inode: inode{attrs: impliedAttrs}, parent: f, opaque: kid.mode != 0}
		w.put(f, name, entry{folder: sub})
	}
	sub.filled = w.tar
	return sub
}

// impliedAttrs are those of a folder that no entry describes.
var impliedAttrs = attrs{mode: modeFolder | 0o755}

// put gives the name to e, and takes it from what had it.
func (w *LayerWriter) put(f *folder, name string, e entry) {
	w.drop(f.kids.get(name))
	e.tar = w.tar
	f.kids.put(name, e)
}

// drop forgets an entry that has lost its name. Its data stays in the image, out of reach.
func (w *LayerWriter) drop(e entry) {
	if e.folder != nil {
		for _, kid := range e.folder.kids.list() {
			w.drop(kid.entry)
		}
		w.folderXattrs -= len(e.folder.xattrs)
	} else if n := w.links[e.nid]; n > 1 {
		w.links[e.nid] = n - 1
	} else {
		delete(w.links, e.nid)
	}
}

// hideLower removes from the folder what tars before the running one put there.
func (w *LayerWriter) hideLower(f *folder) {
	for _, kid := range f.kids.list() {
		w.hideLowerEntry(f, kid.name)
	}
}

// hideLowerEntry removes the entry if an earlier tar put it there; of a folder that the running tar has too, what earlier ones said of it.
func (w *LayerWriter) hideLowerEntry(f *folder, name string) {
	kid := f.kids.get(name)
	switch {
	case kid.folder != nil && kid.folder.filled == w.tar:
		if kid.folder.named != w.tar {
			w.folderXattrs -= len(kid.folder.xattrs)
			kid.folder.attrs = impliedAttrs
		}
		w.hideLower(kid.folder)
	case kid.tar != w.tar:
		w.drop(kid)
		f.kids.remove(name)
	}
}

// writeTree writes the folders and, last, the superblock. To write a folder takes the numbers of its parent and of its children, so
// all places are chosen first: whole blocks for what large folders list, then an area of all their inodes, small lists beside them.
func (w *LayerWriter) writeTree() error {
	folders, inodes := w.listFolders()
	base, blocks := w.fs.end, int64(0)
	offset := int64(0) // within the area
	for _, f := range folders {
		if !f.inline {
			f.block = uint32(base/blockSize + blocks)
			blocks += (f.size + blockSize - 1) / blockSize
		}
		if f == w.root {
			continue
		}
		used := offset % blockSize
		if used > 0 && used+int64(f.slot()) > blockSize {
			offset += blockSize - used
		}
		f.nid = uint64(offset) / slotSize
		offset += int64(alignSlot(f.slot()))
	}
	if base/blockSize+blocks+offset/blockSize >= maxBlocks {
		return errBeyondFormat
	}
	w.root.nid = rootNID
	for _, f := range folders[1:] {
		f.nid += uint64(base+blocks*blockSize) / slotSize
	}

	buf := make([]byte, 0, blockSize)
	for _, f := range folders {
		if f.inline {
			continue
		}
		for list := f.list(); len(list) > 0; {
			n, _ := fitDirents(list)
			if err := w.fs.append(appendDirents(buf, list[:n])); err != nil {
				return err
			}
			if err := w.fs.pad(); err != nil {
				return err
			}
			list = list[n:]
		}
	}
	for _, f := range folders[1:] {
		if err := w.fs.append(zeroBlock[:int64(f.nid)*slotSize-w.fs.end]); err != nil {
			return err
		}
		if err := w.fs.append(f.encode()); err != nil {
			return err
		}
	}
	if err := w.fs.pad(); err != nil {
		return err
	}
	return w.fs.finish(w.root.encode(), inodes)
}

// listFolders returns all folders, the root first and those of one folder side by side, their inodes complete but for the place of their
// data. It counts all inodes of the image.
func (w *LayerWriter) listFolders() (folders []*folder, inodes int) {
	folders = []*folder{w.root}
	for i := 0; i < len(folders); i++ {
		f := folders[i]
		if f != w.root {
			f.hidden = f.opaque || f.parent.hidden
			if f.opaque && !w.opts.Base {
				f.xattrs = appendXattr(f.xattrs, "trusted.overlay.opaque", "y")
			}
			if f.named == 0 {
				w.info.Implied++
			}
		}
		if f.hidden {
			w.dropWhiteouts(f)
		}
		list := f.list()
		for _, kid := range list {
			switch {
			case kid.folder == nil:
				inodes++
			case kid.name == "." || kid.name == "..":
				f.nlink++
			default:
				f.nlink++
				folders = append(folders, kid.folder)
			}
		}
		for len(list) > 0 {
			n, size := fitDirents(list)
			if list = list[n:]; len(list) > 0 {
				size = blockSize
			}
			f.size += int64(size)
		}
		room := blockSize
		if f == w.root {
			room = rootRoom
		}
		f.inline = f.len()+int(f.size) <= room
	}
	for _, names := range w.links {
		inodes -= int(names) - 1
	}
	return folders, inodes + len(folders)
}

// dropWhiteouts drops what has nothing to hide; overlayfs would list the names.
func (w *LayerWriter) dropWhiteouts(f *folder) {
	for _, kid := range f.kids.list() {
		if kid.folder == nil && kid.nid == w.whiteoutNID {
			w.drop(kid.entry)
			f.kids.remove(kid.name)
		}
	}
}

// list returns the entries as the folder has them: sorted, "." and ".." among them.
func (f *folder) list() []dirent {
	list := append(f.kids.list(), dirent{".", entry{folder: f}}, dirent{"..", entry{folder: f.parent}})
	slices.SortFunc(list, func(a, b dirent) int { return strings.Compare(a.name, b.name) })
	return list
}

// slot is the space for the inode and what is beside it.
func (f *folder) slot() int {
	if f.inline {
		return f.len() + int(f.size)
	}
	return f.len()
}

// encode returns the inode and what is beside it.
func (f *folder) encode() []byte {
	b := make([]byte, f.len(), f.slot())
	f.put(b, f.nid)
	if f.inline {
		b = append(b, appendDirents(nil, f.list())...)
	}
	return b
}

const direntSize = 12

// fitDirents returns how many entries fit in one block, and the bytes they take.
func fitDirents(list []dirent) (n, size int) {
	for _, d := range list {
		if size+direntSize+len(d.name) > blockSize {
			break
		}
		size += direntSize + len(d.name)
		n++
	}
	return n, size
}

// appendDirents encodes entries that fit in one block: fixed parts first, then the names.
func appendDirents(b []byte, list []dirent) []byte {
	le := binary.LittleEndian
	nameOffset := direntSize * len(list)
	for _, d := range list {
		nid, mode := d.nid, d.mode
		if d.folder != nil {
			nid, mode = d.folder.nid, modeFolder
		}
		b = le.AppendUint64(b, nid)
		b = le.AppendUint16(b, uint16(nameOffset))
		b = append(b, direntType(mode), 0)
		nameOffset += len(d.name)
	}
	for _, d := range list {
		b = append(b, d.name...)
	}
	return b
}
