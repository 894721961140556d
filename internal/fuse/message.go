package fuse

import (
	"bytes"
	"encoding/binary"
	"strings"
	"syscall"
	"time"

	"github.com/matchlock/matchlock/internal/workspace"
)

// header is struct fuse_in_header, of every request.
type header struct {
	length, opcode uint32
	unique, node   uint64
	caller         workspace.Owner
}

// parseHeader reads what stands at the beginning of a message.
func parseHeader(m []byte) (h header, ok bool) {
	if len(m) < inHeaderSize {
		return h, false
	}
	d := decoder{rest: m}
	h = header{length: d.uint32(), opcode: d.uint32(), unique: d.uint64(), node: d.uint64()}
	h.caller = workspace.Owner{UID: d.uint32(), GID: d.uint32()}
	return h, int(h.length) == len(m)
}

// decoder reads a request's fields in their order. What is not there reads as 0,
// and is told by err.
type decoder struct {
	rest []byte
	err  syscall.Errno
}

func (d *decoder) take(n int) []byte {
	if n < 0 || n > len(d.rest) {
		d.err, d.rest = syscall.EINVAL, nil
		return nil
	}
	b := d.rest[:n]
	d.rest = d.rest[n:]
	return b
}

func (d *decoder) skip(n int) { d.take(n) }

func (d *decoder) uint32() uint32 {
	if b := d.take(4); b != nil {
		return binary.NativeEndian.Uint32(b)
	}
	return 0
}

func (d *decoder) uint64() uint64 {
	if b := d.take(8); b != nil {
		return binary.NativeEndian.Uint64(b)
	}
	return 0
}

// offset is a position in a file.
func (d *decoder) offset() int64 {
	n := int64(d.uint64())
	if n < 0 && d.err == 0 {
		d.err = syscall.EINVAL
	}
	return max(n, 0)
}

// text reads what ends with NUL.
func (d *decoder) text(limit int) string {
	i := bytes.IndexByte(d.rest, 0)
	switch {
	case i < 0:
		d.err = syscall.EINVAL
		return ""
	case i > limit:
		d.err = syscall.ENAMETOOLONG
		return ""
	}
	s := string(d.rest[:i])
	d.rest = d.rest[i+1:]
	return s
}

// name reads the name of a file in its folder.
func (d *decoder) name() string {
	s := d.text(maxName)
	if d.err == 0 && (s == "" || s == "." || s == ".." || strings.ContainsRune(s, '/')) {
		d.err = syscall.EINVAL
	}
	return s
}

// when reads the seconds of a time, whose nanoseconds come later.
func (d *decoder) when() func(nanoseconds uint32) time.Time {
	seconds := int64(d.uint64())
	return func(ns uint32) time.Time { return time.Unix(seconds, int64(min(ns, 999_999_999))) }
}

// encoder writes an answer's fields in their order.
type encoder struct{ buf []byte }

func (e *encoder) uint16(v uint16) { e.buf = binary.NativeEndian.AppendUint16(e.buf, v) }
func (e *encoder) uint32(v uint32) { e.buf = binary.NativeEndian.AppendUint32(e.buf, v) }
func (e *encoder) uint64(v uint64) { e.buf = binary.NativeEndian.AppendUint64(e.buf, v) }

// zeros appends what means nothing.
func (e *encoder) zeros(n int) { e.buf = append(e.buf, make([]byte, n)...) }

// attr appends struct fuse_attr.
func (e *encoder) attr(a *workspace.Attr, ino uint64) {
	e.uint64(ino)
	e.uint64(uint64(a.Size))
	e.uint64(uint64(a.Blocks))
	for _, t := range []time.Time{a.Atime, a.Mtime, a.Ctime} {
		e.uint64(uint64(t.Unix()))
	}
	for _, t := range []time.Time{a.Atime, a.Mtime, a.Ctime} {
		e.uint32(uint32(t.Nanosecond()))
	}
	e.uint32(a.Mode)
	e.uint32(a.Links)
	e.uint32(a.Owner.UID)
	e.uint32(a.Owner.GID)
	e.uint32(a.Rdev)
	e.uint32(4096) // the size of blocks that is best
	e.uint32(0)
}

// entry appends struct fuse_entry_out; both are known for valid.
func (e *encoder) entry(node uint64, a *workspace.Attr, ino uint64, valid time.Duration) {
	seconds, ns := uint64(valid/time.Second), uint32(valid%time.Second)
	e.uint64(node)
	e.uint64(0) // generation: a node's number is not used again
	e.uint64(seconds)
	e.uint64(seconds)
	e.uint32(ns)
	e.uint32(ns)
	e.attr(a, ino)
}

// attrOut appends struct fuse_attr_out.
func (e *encoder) attrOut(a *workspace.Attr, ino uint64, valid time.Duration) {
	e.uint64(uint64(valid / time.Second))
	e.uint32(uint32(valid % time.Second))
	e.uint32(0)
	e.attr(a, ino)
}

// dirent appends struct fuse_dirent.
func (e *encoder) dirent(name string, ino, offset uint64, fileType uint32) {
	e.uint64(ino)
	e.uint64(offset)
	e.uint32(uint32(len(name)))
	e.uint32(fileType >> 12) // DT_*
	e.buf = append(e.buf, name...)
	e.zeros(-len(name) & 7)
}

func direntLength(name string) int { return direntSize + (len(name)+7)&^7 }
