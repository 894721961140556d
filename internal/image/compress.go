package image

import (
	"bufio"
	"bytes"
	"compress/bzip2"
	"fmt"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

// compression is how a stream is packed, told by its first bytes: what media types and file names say is often wrong.
type compression int

const (
	plain compression = iota
	gzipped
	zstandard
	xzipped
	bzipped
)

var magics = []struct {
	prefix string
	compression
}{
	{"\x1f\x8b\x08", gzipped},
	{"\x28\xb5\x2f\xfd", zstandard},
	{"\xfd7zXZ\x00", xzipped},
	{"BZh", bzipped},
}

// maxZstdWindow is what zstd's command line packs with at its strongest (--ultra -22).
const maxZstdWindow = 128 << 20

// sniff tells how a stream is packed without taking anything from it.
func sniff(r *bufio.Reader) (compression, error) {
	head, err := r.Peek(6)
	if err != nil && err != io.EOF {
		return plain, err
	}
	for _, m := range magics {
		if bytes.HasPrefix(head, []byte(m.prefix)) {
			return m.compression, nil
		}
	}
	return plain, nil
}

// unpack returns the unpacked stream. Closing it does not close r.
func (c compression) unpack(r io.Reader) (io.ReadCloser, error) {
	switch c {
	case gzipped:
		return gzip.NewReader(r)
	case zstandard:
		// One goroutine per stream is the fastest when several layers are unpacked beside each other.
		d, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxZstdWindow))
		if err != nil {
			return nil, err
		}
		return d.IOReadCloser(), nil
	case xzipped:
		x, err := xz.NewReader(r)
		return io.NopCloser(x), err
	case bzipped:
		return io.NopCloser(bzip2.NewReader(r)), nil
	}
	return io.NopCloser(r), nil
}

func (c compression) String() string {
	switch c {
	case gzipped:
		return "gzip"
	case zstandard:
		return "zstd"
	case xzipped:
		return "xz"
	case bzipped:
		return "bzip2"
	case plain:
		return "tar"
	}
	return fmt.Sprintf("compression(%d)", int(c))
}
