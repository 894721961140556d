// Package compress answers one question: how is this stream packed, and what is inside? It knows what images, Debian
// packages and kernels are packed with, tells it by the first bytes, as file names and media types are often wrong, and
// unpacks within bounded memory what may be hostile. How much comes out is for the caller to bound. It packs nothing.
package compress

import (
	"bufio"
	"bytes"
	"compress/bzip2"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
	"github.com/ulikunitz/xz/lzma"
)

// Format is how a stream is packed.
type Format int

// The formats. Plain is a stream that is none of the others.
const (
	Plain Format = iota
	Gzip
	Zstd
	XZ
	Bzip2
)

var formats = [...]struct{ name, magic string }{
	Plain: {name: "nothing"},
	Gzip:  {"gzip", "\x1f\x8b\x08"},
	Zstd:  {"zstd", "\x28\xb5\x2f\xfd"},
	XZ:    {"xz", "\xfd7zXZ\x00"},
	Bzip2: {"bzip2", "BZh"},
}

func (f Format) String() string { return formats[f].name }

// MaxWindow bounds how far back in a stream an unpacker may have to look, which it must keep in memory. It is what
// zstd --ultra -22 packs with, and the kernel's xz.
const MaxWindow = 128 << 20

// Detect tells how a stream is packed, without taking anything from it.
func Detect(r *bufio.Reader) (Format, error) {
	head, err := r.Peek(6)
	if err != nil && err != io.EOF {
		return Plain, err
	}
	for f := Gzip; int(f) < len(formats); f++ {
		if bytes.HasPrefix(head, []byte(formats[f].magic)) {
			return f, nil
		}
	}
	return Plain, nil
}

// NewReader returns the unpacked stream. Closing it does not close r, from which it may read more than it needs. An xz
// filter other than LZMA2 is an errors.ErrUnsupported.
func (f Format) NewReader(r io.Reader) (io.ReadCloser, error) {
	switch f {
	case Gzip:
		return gzip.NewReader(r)
	case Zstd:
		// One goroutine per stream is the fastest when several are unpacked beside each other.
		d, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(MaxWindow))
		if err != nil {
			return nil, err
		}
		return d.IOReadCloser(), nil
	case XZ:
		b := bufio.NewReader(r)
		if err := checkDictionary(b); err != nil {
			return nil, err
		}
		x, err := xz.NewReader(b)
		return io.NopCloser(x), err
	case Bzip2:
		return io.NopCloser(bzip2.NewReader(r)), nil
	}
	return io.NopCloser(r), nil
}

// checkDictionary looks at the header of the first block of an xz file (xz-file-format.txt, section 3.1): the library
// would allocate whatever dictionary it asks for, and know no filter but LZMA2.
func checkDictionary(b *bufio.Reader) error {
	const streamHeader = 12
	head, err := b.Peek(streamHeader + 1024)
	if err != nil && err != io.EOF {
		return err
	}
	if len(head) < streamHeader+6 {
		return io.ErrUnexpectedEOF
	}
	block := head[streamHeader:]
	size, flags := int(block[0])*4+4, block[1]
	if block[0] == 0 { // the index: no block at all
		return nil
	}
	if size > len(block) {
		return io.ErrUnexpectedEOF
	}
	block = block[2:size]
	for _, present := range []byte{0x40, 0x80} { // size packed, size unpacked
		if flags&present == 0 {
			continue
		}
		_, n := binary.Uvarint(block)
		if n <= 0 {
			return errors.New("xz: bad size in block header")
		}
		block = block[n:]
	}
	if flags&3 != 0 || len(block) < 3 || block[0] != 0x21 || block[1] != 1 {
		return fmt.Errorf("xz: filters other than LZMA2: %w", errors.ErrUnsupported)
	}
	dict, err := lzma.DecodeDictCap(block[2])
	if err != nil {
		return err
	}
	if dict > MaxWindow {
		return fmt.Errorf("xz: dictionary of %d bytes", dict)
	}
	return nil
}
