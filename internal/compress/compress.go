// Package compress answers one question: how is this stream packed, and what is inside? It knows what images, Debian
// packages and kernels are packed with, tells it by the first bytes, as file names and media types are often wrong, and
// unpacks within bounded memory what may be hostile. How much comes out is for the caller to bound. It packs nothing.
package compress

import (
	"bufio"
	"bytes"
	"compress/bzip2"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
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

// NewReader returns the unpacked stream. Closing it does not close r, from which it may read more than it needs. Reading
// an xz file that has filters other than LZMA2, as some kernels do, is errors.ErrUnsupported.
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
		x, err := newXZReader(r)
		return io.NopCloser(x), err
	case Bzip2:
		return io.NopCloser(bzip2.NewReader(r)), nil
	}
	return io.NopCloser(r), nil
}
