package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode"
)

// An Encoder appends values to a buffer. Its zero value is ready for use. The
// format has no field names and no types: both ends write and read the same
// sequence, and Version stands for it.
type Encoder struct{ buf []byte }

// Encoded returns what has been appended. It is valid until the next append.
func (e *Encoder) Encoded() []byte { return e.buf }

func (e *Encoder) Uint8(v uint8)   { e.buf = append(e.buf, v) }
func (e *Encoder) Uint32(v uint32) { e.buf = binary.BigEndian.AppendUint32(e.buf, v) }
func (e *Encoder) Uint64(v uint64) { e.buf = binary.BigEndian.AppendUint64(e.buf, v) }

// Uvarint and Varint take one byte for small values.
func (e *Encoder) Uvarint(v uint64) { e.buf = binary.AppendUvarint(e.buf, v) }
func (e *Encoder) Varint(v int64)   { e.buf = binary.AppendVarint(e.buf, v) }

func (e *Encoder) Bool(v bool) {
	if v {
		e.Uint8(1)
	} else {
		e.Uint8(0)
	}
}

// Blob appends a length and the bytes.
func (e *Encoder) Blob(b []byte) {
	e.Uvarint(uint64(len(b)))
	e.buf = append(e.buf, b...)
}

// String appends a length and the bytes.
func (e *Encoder) String(s string) {
	e.Uvarint(uint64(len(s)))
	e.buf = append(e.buf, s...)
}

// Strings appends a count and the strings.
func (e *Encoder) Strings(list []string) {
	e.Uvarint(uint64(len(list)))
	for _, s := range list {
		e.String(s)
	}
}

// Map appends a count and the pairs in the order of their keys.
func (e *Encoder) Map(m map[string]string) {
	e.Uvarint(uint64(len(m)))
	for _, key := range slices.Sorted(maps.Keys(m)) {
		e.String(key)
		e.String(m[key])
	}
}

var (
	errTruncated = errors.New("message ends too early")
	errTrailing  = errors.New("bytes after the message")
	errMalformed = errors.New("malformed message")
)

// A Decoder takes values from a buffer in the order they were appended. After
// the first fault every method returns a zero value, so a whole message is read
// first and Done asked once. Nothing is allocated on a length's word: a length
// beyond its limit or beyond the buffer is a fault.
type Decoder struct {
	buf []byte
	err error
}

// NewDecoder returns a decoder of message, which must not change while it is read.
func NewDecoder(message []byte) *Decoder { return &Decoder{buf: message} }

// Err returns the first fault so far.
func (d *Decoder) Err() error { return d.err }

// Left is how many bytes have not been read.
func (d *Decoder) Left() int { return len(d.buf) }

// Done returns the first fault; bytes left over are one.
func (d *Decoder) Done() error {
	if d.err == nil && len(d.buf) > 0 {
		d.err = errTrailing
	}
	return d.err
}

// Fail makes err the fault if there is none yet: for values that are readable
// but not allowed.
func (d *Decoder) Fail(err error) {
	if d.err == nil {
		d.err = err
	}
}

// take returns the next n bytes of the buffer itself, or nil.
func (d *Decoder) take(n int) []byte {
	if d.err != nil {
		return nil
	}
	if n > len(d.buf) {
		d.err = errTruncated
		return nil
	}
	b := d.buf[:n:n]
	d.buf = d.buf[n:]
	return b
}

func (d *Decoder) Uint8() uint8 {
	if b := d.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (d *Decoder) Bool() bool {
	v := d.Uint8()
	if v > 1 {
		d.Fail(errMalformed)
	}
	return v == 1
}

func (d *Decoder) Uint32() uint32 {
	if b := d.take(4); b != nil {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

func (d *Decoder) Uint64() uint64 {
	if b := d.take(8); b != nil {
		return binary.BigEndian.Uint64(b)
	}
	return 0
}

func (d *Decoder) Uvarint() uint64 {
	v, n := binary.Uvarint(d.buf)
	return varint(d, v, n)
}

func (d *Decoder) Varint() int64 {
	v, n := binary.Varint(d.buf)
	return varint(d, v, n)
}

// varint takes the n bytes of v; n is what encoding/binary said of them.
func varint[T int64 | uint64](d *Decoder, v T, n int) T {
	if n < 0 {
		d.Fail(errMalformed)
	} else if n == 0 {
		d.Fail(errTruncated)
	}
	if d.err != nil {
		return 0
	}
	d.buf = d.buf[n:]
	return v
}

// Count reads the length of a list of at most limit things, each of which takes
// at least one byte.
func (d *Decoder) Count(limit int) int {
	n := d.Uvarint()
	if d.err == nil && n > uint64(limit) {
		d.err = fmt.Errorf("%d where at most %d are allowed", n, limit)
	}
	if d.err == nil && n > uint64(len(d.buf)) {
		d.err = errTruncated
	}
	if d.err != nil {
		return 0
	}
	return int(n)
}

// Blob returns at most limit bytes. They are the buffer's own: valid as long as
// it is.
func (d *Decoder) Blob(limit int) []byte { return d.take(d.Count(limit)) }

// String returns at most limit bytes as they are, any bytes.
func (d *Decoder) String(limit int) string { return string(d.Blob(limit)) }

// Text returns a string of at most limit bytes made fit to be shown: see Printable.
func (d *Decoder) Text(limit int) string { return Printable(d.String(limit)) }

// Strings returns at most limit strings.
func (d *Decoder) Strings(limit int) []string {
	n := d.Count(limit)
	if n == 0 {
		return nil
	}
	list := make([]string, n)
	for i := range list {
		list[i] = d.String(len(d.buf))
	}
	return list
}

// Map returns at most limit pairs. A key that comes twice is a fault.
func (d *Decoder) Map(limit int) map[string]string {
	n := d.Count(limit)
	if n == 0 {
		return nil
	}
	m := make(map[string]string, n)
	for range n {
		key := d.String(len(d.buf))
		m[key] = d.String(len(d.buf))
	}
	if len(m) != n {
		d.Fail(errMalformed)
	}
	return m
}

// Printable returns s with everything replaced that could act on a terminal or
// deceive its reader: control characters, line breaks, invisible and
// direction-changing ones, invalid UTF-8. What a guest says passes through it
// before it becomes part of an error.
func Printable(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return unicode.ReplacementChar
	}, s)
}
