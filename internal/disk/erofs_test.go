package disk

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path"
	"slices"
	"strings"
)

// node is a file as stat, readlink, listxattr and read show it.
type node struct {
	Mode     uint16
	UID, GID uint32
	Rdev     uint32
	Mtime    int64
	Nsec     uint32
	Nlink    uint32
	Size     int64 // of files and symbolic links
	Data     string
	Xattrs   map[string]string
	Inode    uint64
}

// tree is a file system by path; the root is ".".
type tree map[string]node

// String lists the tree, one line for each path, in the language of parseTar.
func (t tree) String() string {
	var b strings.Builder
	first := make(map[uint64]string)
	for _, name := range t.paths() {
		n := t[name]
		if name == "." {
			if n.Xattrs["trusted.overlay.opaque"] == "y" {
				b.WriteString("d . opaque\n")
			}
			continue
		}
		if of, ok := first[n.Inode]; ok && n.Rdev|uint32(n.Mode&0o170000) != modeChar {
			fmt.Fprintf(&b, "h %s %s\n", name, of)
			continue
		}
		first[n.Inode] = name
		switch n.Mode & 0o170000 {
		case modeFolder:
			fmt.Fprintf(&b, "d %s", name)
			if n.Xattrs["trusted.overlay.opaque"] == "y" {
				b.WriteString(" opaque")
			}
		case modeRegular:
			fmt.Fprintf(&b, "f %s %s", name, n.Data)
		case modeSymlink:
			fmt.Fprintf(&b, "l %s %s", name, n.Data)
		case modeChar:
			fmt.Fprintf(&b, "c %s %d", name, n.Rdev)
		case modeBlock:
			fmt.Fprintf(&b, "b %s %d", name, n.Rdev)
		case modeFIFO:
			fmt.Fprintf(&b, "p %s", name)
		}
		b.WriteByte('\n')
	}
	return b.String()
}

// paths returns the paths, each folder before what is in it.
func (t tree) paths() []string {
	names := make([]string, 0, len(t))
	for name := range t {
		names = append(names, strings.ReplaceAll(name, "/", "\x00"))
	}
	slices.Sort(names)
	for i, name := range names {
		names[i] = strings.ReplaceAll(name, "\x00", "/")
	}
	return names
}

// image reads an EROFS image by the letter of the format and believes nothing: every place must lie in the image and belong to one thing
// only, every list must be sorted, every count must be right. It knows of the format what LayerWriter uses.
type image struct {
	data   []byte
	places []place
	names  map[uint64]uint32 // counted, of each inode that is no folder
	seen   map[uint64]node
	tree   tree
}

type place struct{ from, to uint64 }

// readImage reads the image in f.
func readImage(f *os.File) (tree, error) {
	data, err := io.ReadAll(io.NewSectionReader(f, 0, 1<<40))
	if err != nil {
		return nil, err
	}
	img := &image{data: data, names: make(map[uint64]uint32), seen: make(map[uint64]node), tree: make(tree)}
	return img.tree, img.read()
}

func (img *image) read() error {
	le := binary.LittleEndian
	if len(img.data) < 4096 || len(img.data)%4096 != 0 {
		return fmt.Errorf("image of %d bytes", len(img.data))
	}
	block := bytes.Clone(img.data[1024:4096])
	sum := le.Uint32(block[4:])
	clear(block[4:8])
	if want := ^crc32.Checksum(block, crc32.MakeTable(crc32.Castagnoli)); sum != want {
		return fmt.Errorf("superblock checksum %x, want %x", sum, want)
	}
	sb := img.data[1024:1152]
	if magic, blocks := le.Uint32(sb), le.Uint32(sb[36:]); magic != 0xE0F5E1E2 || int(blocks) != len(img.data)/4096 {
		return fmt.Errorf("magic %x, %d blocks of %d bytes", magic, blocks, len(img.data))
	}
	if sb[12] != 12 || le.Uint32(sb[8:]) != 3 || le.Uint32(sb[80:]) != 0 || le.Uint32(sb[40:]) != 0 {
		return errors.New("features or block size")
	}
	img.places = append(img.places, place{0, 1152})
	root := uint64(le.Uint16(sb[14:]))
	if err := img.folder(".", root, root); err != nil {
		return err
	}
	for nid, n := range img.seen {
		if n.Mode&0o170000 != modeFolder && n.Nlink != img.names[nid] {
			return fmt.Errorf("inode %d: %d names, says %d", nid, img.names[nid], n.Nlink)
		}
	}
	if inodes := le.Uint64(sb[16:]); inodes != uint64(len(img.seen)) {
		return fmt.Errorf("%d inodes, says %d", len(img.seen), inodes)
	}
	slices.SortFunc(img.places, func(a, b place) int { return cmp.Compare(a.from, b.from) })
	for i, p := range img.places[1:] {
		if p.from < img.places[i].to {
			return fmt.Errorf("bytes %d to %d overlap with %d to %d", p.from, p.to, img.places[i].from, img.places[i].to)
		}
	}
	return nil
}

// at returns the bytes of a place, which must be in the image.
func (img *image) at(from, n uint64) ([]byte, error) {
	if from > uint64(len(img.data)) || n > uint64(len(img.data))-from {
		return nil, fmt.Errorf("%d bytes at %d: beyond the end", n, from)
	}
	if n > 0 {
		img.places = append(img.places, place{from, from + n})
	}
	return img.data[from : from+n], nil
}

// inode reads an inode with its data, and checks it when it is seen first.
func (img *image) inode(nid uint64) (node, error) {
	if n, ok := img.seen[nid]; ok {
		return n, nil
	}
	le := binary.LittleEndian
	start := nid * 32
	b, err := img.at(start, 64)
	if err != nil {
		return node{}, err
	}
	if start%4096+64 > 4096 {
		return node{}, errors.New("inode across blocks")
	}
	n := node{
		Mode: le.Uint16(b[4:]), Size: int64(le.Uint64(b[8:])), UID: le.Uint32(b[24:]), GID: le.Uint32(b[28:]),
		Mtime: int64(le.Uint64(b[32:])), Nsec: le.Uint32(b[40:]), Nlink: le.Uint32(b[44:]), Inode: nid,
	}
	format, place := le.Uint16(b), le.Uint32(b[16:])
	xlen := uint64(0)
	if count := le.Uint16(b[2:]); count > 0 {
		xlen = 12 + 4*(uint64(count)-1)
		x, err := img.at(start+64, xlen)
		if err != nil {
			return n, err
		}
		if n.Xattrs, err = readXattrs(x); err != nil {
			return n, err
		}
	}
	switch n.Mode & 0o170000 {
	case modeChar, modeBlock:
		n.Rdev = place
		fallthrough
	case modeFIFO:
		if n.Size != 0 || format != 1 {
			return n, fmt.Errorf("a device of %d bytes, format %d", n.Size, format)
		}
	case modeRegular, modeSymlink, modeFolder:
		size, tail := uint64(n.Size), uint64(0)
		if format == 1|2<<1 {
			tail = size % 4096
			if at := start + 64 + xlen; tail == 0 || at%4096+tail > 4096 || at/4096 != start/4096 {
				return n, fmt.Errorf("%d bytes beside inode %d", tail, nid)
			}
		} else if format != 1 {
			return n, fmt.Errorf("inode format %d", format)
		}
		data := []byte{}
		if full := size - tail; full > 0 {
			// The whole of the last block, of which nothing else may be.
			blocks, err := img.at(uint64(place)*4096, (full+4095)&^4095)
			if err != nil {
				return n, err
			}
			if rest := bytes.Trim(blocks[full:], "\x00"); len(rest) > 0 {
				return n, fmt.Errorf("inode %d: %d bytes behind the data", nid, len(rest))
			}
			data = append(data, blocks[:full]...)
		}
		inline, err := img.at(start+64+xlen, tail)
		if err != nil {
			return n, err
		}
		n.Data = string(append(data, inline...))
	default:
		return n, fmt.Errorf("inode %d: mode %o", nid, n.Mode)
	}
	img.seen[nid] = n
	return n, nil
}

// folder reads a folder and what is in it.
func (img *image) folder(name string, nid, parent uint64) error {
	if _, ok := img.seen[nid]; ok {
		return fmt.Errorf("%q: a folder with two names", name)
	}
	n, err := img.inode(nid)
	if err != nil {
		return fmt.Errorf("%q: %w", name, err)
	}
	list := n.Data
	n.Data, n.Size = "", 0
	img.tree[name] = n
	last, dots, subfolders := "", 0, uint32(0)
	for len(list) > 0 {
		block := list[:min(len(list), 4096)]
		list = list[len(block):]
		offset := func(i int) int { return int(block[12*i+8]) | int(block[12*i+9])<<8 }
		count := offset(0) / 12
		for i := range count {
			end := len(block)
			if i+1 < count {
				end = offset(i + 1)
			}
			kid, _, _ := strings.Cut(block[offset(i):end], "\x00")
			if kid <= last || strings.Contains(kid, "/") || len(kid) > 255 {
				return fmt.Errorf("%q: %q after %q", name, kid, last)
			}
			last = kid
			kidNID := binary.LittleEndian.Uint64([]byte(block[12*i:]))
			fileType := block[12*i+10]
			switch kid {
			case ".", "..":
				if want := map[string]uint64{".": nid, "..": parent}[kid]; kidNID != want || fileType != 2 {
					return fmt.Errorf("%q: %s is %d, want %d", name, kid, kidNID, want)
				}
				dots++
				continue
			}
			full := path.Join(name, kid)
			if fileType == 2 {
				subfolders++
				if err := img.folder(full, kidNID, nid); err != nil {
					return err
				}
				continue
			}
			k, err := img.inode(kidNID)
			if err != nil {
				return fmt.Errorf("%q: %w", full, err)
			}
			if want := map[uint16]byte{modeRegular: 1, modeChar: 3, modeBlock: 4, modeFIFO: 5, modeSymlink: 7}[k.Mode&0o170000]; fileType != want {
				return fmt.Errorf("%q: type %d, want %d", full, fileType, want)
			}
			img.names[kidNID]++
			img.tree[full] = k
		}
	}
	if dots != 2 || n.Nlink != 2+subfolders {
		return fmt.Errorf("%q: %d of \".\" and \"..\", %d links, %d folders", name, dots, n.Nlink, subfolders)
	}
	return nil
}

func readXattrs(b []byte) (map[string]string, error) {
	prefixes := map[byte]string{1: "user.", 2: "system.posix_acl_access", 3: "system.posix_acl_default", 4: "trusted.", 6: "security."}
	m := make(map[string]string)
	if !bytes.Equal(b[:12], make([]byte, 12)) {
		return nil, errors.New("shared xattrs")
	}
	for b = b[12:]; len(b) > 0; {
		name, value := int(b[0]), int(b[2])|int(b[3])<<8
		prefix, ok := prefixes[b[1]]
		if !ok || len(b) < 4+name+value {
			return nil, fmt.Errorf("xattr %d: %d + %d of %d bytes", b[1], name, value, len(b))
		}
		m[prefix+string(b[4:4+name])] = string(b[4+name:][:value])
		b = b[min((4+name+value+3)&^3, len(b)):]
	}
	return m, nil
}
