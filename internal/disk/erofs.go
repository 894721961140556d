package disk

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
	"os"
)

// The part of the EROFS format that is used here: 4 KiB blocks, 64-byte inodes, data that is either whole blocks or, where it fits,
// beside its inode; nothing compressed, no feature that a kernel could lack. All numbers are little-endian.
// Source: Linux, fs/erofs/erofs_fs.h and Documentation/filesystems/erofs.rst.
const (
	blockSize = 4096
	slotSize  = 32 // the unit inodes are counted and aligned in

	superOffset = 1024
	superSize   = 128
	superMagic  = 0xE0F5E1E2
	superCRC    = 0x1 // compatible feature: the superblock has a checksum
	superMtime  = 0x2 // compatible feature: inode times are modification times

	inodeSize = 64
	// rootNID places the root right behind the superblock: the superblock has 16 bits for its number.
	rootNID  = (superOffset + superSize) / slotSize
	rootRoom = blockSize - superOffset - superSize
	// maxBlocks is what 32-bit block addresses reach, less the last, which stands for "none".
	maxBlocks = 1<<32 - 1

	layoutPlain  = 0 << 1 // data in blocks of its own
	layoutInline = 2 << 1 // the last piece of data behind inode and xattrs, in the same block
)

var errBeyondFormat = fmt.Errorf("%w: beyond the 16 TiB of the format", ErrTooLarge)

// File types: the upper half of st_mode.
const (
	modeFIFO    = 0o010000
	modeChar    = 0o020000
	modeFolder  = 0o040000
	modeBlock   = 0o060000
	modeRegular = 0o100000
	modeSymlink = 0o120000
)

// direntType is the file type as a directory entry has it.
func direntType(mode uint16) byte {
	switch mode & 0o170000 {
	case modeRegular:
		return 1
	case modeFolder:
		return 2
	case modeChar:
		return 3
	case modeBlock:
		return 4
	case modeFIFO:
		return 5
	case modeSymlink:
		return 7
	}
	panic(fmt.Sprintf("no directory entry type for mode %o", mode))
}

// attrs is what every inode has, whatever its type.
type attrs struct {
	mode     uint16 // type and permissions, as st_mode
	uid, gid uint32
	mtime    int64 // seconds, negative before 1970
	nsec     uint32
	xattrs   []byte // in EROFS's form, header included; nil for none
}

// inode is an inode ready to be written.
type inode struct {
	attrs
	size   int64
	block  uint32 // first block of the data, or the device number
	nlink  uint32
	inline bool // the last piece of the data follows the inode
}

// len is the space of the inode and its xattrs.
func (n *attrs) len() int { return inodeSize + len(n.xattrs) }

// nlinkOffset is where the count of names lies in an inode.
const nlinkOffset = 44

// put writes the inode and its xattrs to b.
func (n *inode) put(b []byte, nid uint64) {
	const extended = 1
	le := binary.LittleEndian
	format := uint16(extended | layoutPlain)
	if n.inline {
		format = extended | layoutInline
	}
	le.PutUint16(b[0:], format)
	if len(n.xattrs) > 0 {
		le.PutUint16(b[2:], uint16((len(n.xattrs)-xattrHeader)/4+1))
	}
	le.PutUint16(b[4:], n.mode)
	le.PutUint64(b[8:], uint64(n.size))
	le.PutUint32(b[16:], n.block)
	le.PutUint32(b[20:], uint32(nid)) // what stat shows where inode numbers have 32 bits
	le.PutUint32(b[24:], n.uid)
	le.PutUint32(b[28:], n.gid)
	le.PutUint64(b[32:], uint64(n.mtime))
	le.PutUint32(b[40:], n.nsec)
	le.PutUint32(b[nlinkOffset:], n.nlink)
	copy(b[inodeSize:], n.xattrs)
}

// erofs gives away the space of one file system image, front to back, and writes it. Two streams share the space: the blocks of file
// data, one file after the other, and areas of inodes (each with the short tail of its file's data), opened as they are needed. So no byte
// is kept longer than until its area is full.
type erofs struct {
	file *os.File // sparse: what was never written is zeros
	end  int64    // the first byte not given away
	buf  []byte   // the last bytes before end, not written yet
	area area
	sum  hash.Hash // of all areas and directories: what the UUID is made of
}

func newEROFS(file *os.File) *erofs {
	return &erofs{
		file: file,
		end:  blockSize, // the first holds superblock and root
		buf:  make([]byte, 0, 1<<20),
		area: area{bytes: make([]byte, 0, areaBlocks*blockSize)},
		sum:  sha256.New(),
	}
}

// reserve gives away n bytes, whole blocks, to be written by the caller.
func (e *erofs) reserve(n int64) (offset int64, err error) {
	if err := e.flush(); err != nil {
		return 0, err
	}
	if e.end/blockSize+n/blockSize > maxBlocks {
		return 0, errBeyondFormat
	}
	offset = e.end
	e.end += n
	return offset, nil
}

// data appends size bytes from r, padded to whole blocks, and returns the first block.
func (e *erofs) data(r io.Reader, size int64) (block uint32, err error) {
	first := e.end / blockSize
	if blocks := size/blockSize + 1; first+blocks > maxBlocks {
		return 0, errBeyondFormat
	}
	for size > 0 {
		free, err := e.free()
		if err != nil {
			return 0, err
		}
		free = free[:min(size, int64(len(free)))]
		if _, err := io.ReadFull(r, free); err != nil {
			return 0, err
		}
		e.took(len(free))
		size -= int64(len(free))
	}
	return uint32(first), e.pad()
}

// append appends p, which is part of the metadata.
func (e *erofs) append(p []byte) error {
	e.sum.Write(p)
	for len(p) > 0 {
		free, err := e.free()
		if err != nil {
			return err
		}
		n := copy(free, p)
		e.took(n)
		p = p[n:]
	}
	return nil
}

// pad appends zeros up to the next block.
func (e *erofs) pad() error {
	n := -e.end & (blockSize - 1)
	if n == 0 {
		return nil
	}
	free, err := e.free()
	if err != nil {
		return err
	}
	clear(free[:n])
	e.took(int(n))
	return nil
}

// free returns the unused part of the buffer, which took then shortens. The buffer holds whole blocks.
func (e *erofs) free() ([]byte, error) {
	if len(e.buf) == cap(e.buf) {
		if err := e.flush(); err != nil {
			return nil, err
		}
	}
	return e.buf[len(e.buf):cap(e.buf)], nil
}

func (e *erofs) took(n int) {
	e.buf = e.buf[:len(e.buf)+n]
	e.end += int64(n)
}

func (e *erofs) flush() error {
	err := WriteSparse(e.file, e.buf, e.end-int64(len(e.buf)))
	e.buf = e.buf[:0]
	return err
}

// areaBlocks is the size of an area of inodes: room for the largest xattrs an inode may have, and enough inodes side by side that a walk
// through a folder finds them with few reads.
const areaBlocks = 32

// area is a run of blocks for inodes, kept until it is full. Without an offset it is not open.
type area struct {
	offset int64
	bytes  []byte             // up to the last block in use
	used   [areaBlocks]uint16 // of each block
}

// place finds n bytes for an inode: within one block if they fit in one, else from the start of a block. The bytes are to be filled
// before the next call.
func (e *erofs) place(n int) (b []byte, nid uint64, err error) {
	at, ok := e.area.find(n)
	if !ok {
		if err := e.closeArea(); err != nil {
			return nil, 0, err
		}
		offset, err := e.reserve(areaBlocks * blockSize)
		if err != nil {
			return nil, 0, err
		}
		e.area = area{offset: offset, bytes: e.area.bytes[:0]}
		at = 0
	}
	return e.area.take(at, n), uint64(e.area.offset+int64(at)) / slotSize, nil
}

// find looks for room, which an area that is not open has none of.
func (a *area) find(n int) (at int, ok bool) {
	if a.offset == 0 {
		return 0, false
	}
	if n <= blockSize {
		for i, used := range a.used {
			if at := alignSlot(int(used)); at+n <= blockSize {
				return i*blockSize + at, true
			}
		}
		return 0, false
	}
	blocks := (n + blockSize - 1) / blockSize
	empty := 0
	for i, used := range a.used {
		if used > 0 {
			empty = 0
		} else if empty++; empty == blocks {
			return (i + 1 - blocks) * blockSize, true
		}
	}
	return 0, false
}

// take marks n bytes as used.
func (a *area) take(at, n int) []byte {
	for i, left := at/blockSize, at%blockSize+n; left > 0; i, left = i+1, left-blockSize {
		a.used[i] = uint16(min(left, blockSize))
	}
	if end := (at + n + blockSize - 1) &^ (blockSize - 1); end > len(a.bytes) {
		was := len(a.bytes)
		a.bytes = a.bytes[:end]
		clear(a.bytes[was:])
	}
	return a.bytes[at : at+n]
}

func alignSlot(n int) int { return (n + slotSize - 1) &^ (slotSize - 1) }

// closeArea writes the area out. When nothing lies behind it, its unused rest is given back.
func (e *erofs) closeArea() error {
	a := &e.area
	if a.offset == 0 {
		return nil
	}
	if a.offset+areaBlocks*blockSize == e.end {
		e.end = a.offset + int64(len(a.bytes))
	}
	offset := a.offset
	a.offset = 0
	e.sum.Write(a.bytes)
	_, err := e.file.WriteAt(a.bytes, offset)
	return err
}

// finish writes the first block, with superblock and root (its inode and what follows it), and cuts the file to its size. The checksum
// covers both; it is the last thing written, so that an unfinished image is none.
func (e *erofs) finish(root []byte, inodes int) error {
	if err := e.flush(); err != nil {
		return err
	}
	first := make([]byte, blockSize)
	copy(first[superOffset+superSize:], root)
	e.sum.Write(root)

	le := binary.LittleEndian
	sb := first[superOffset:]
	le.PutUint32(sb[0:], superMagic)
	le.PutUint32(sb[8:], superCRC|superMtime)
	sb[12] = 12 // log2 of the block size
	le.PutUint16(sb[14:], rootNID)
	le.PutUint64(sb[16:], uint64(inodes))
	le.PutUint32(sb[36:], uint32(e.end/blockSize))
	// Overlayfs tells its lower layers apart by UUID, so each content has its own (RFC 9562, version 8).
	uuid := sb[48:64]
	copy(uuid, e.sum.Sum(nil))
	uuid[6] = uuid[6]&0x0f | 0x80
	uuid[8] = uuid[8]&0x3f | 0x80
	// Over the rest of the block, and without the final inversion of the common CRC-32C.
	le.PutUint32(sb[4:], ^crc32.Checksum(sb, crc32.MakeTable(crc32.Castagnoli)))

	if _, err := e.file.WriteAt(first, 0); err != nil {
		return err
	}
	return e.file.Truncate(e.end)
}
