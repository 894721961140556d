package boot

import (
	"bufio"
	"bytes"
	"io"

	"github.com/matchlock/matchlock/internal/compress"
	"github.com/pierrec/lz4/v4"
	"github.com/ulikunitz/xz/lzma"
)

// decompress unpacks r by what its first bytes say: all that package compress knows, and what kernels alone are packed
// with, lz4 (also in its legacy form) and lzma. What is none of these passes unchanged: the caller knows what it must be.
// How much comes out is for the caller to bound.
func decompress(r io.Reader) (io.ReadCloser, error) {
	b := bufio.NewReaderSize(r, 64<<10)
	magic, err := b.Peek(4)
	if err != nil && err != io.EOF {
		return nil, err
	}
	has := func(prefix string) bool { return bytes.HasPrefix(magic, []byte(prefix)) }
	switch {
	case has("\x02\x21\x4c\x18"), has("\x04\x22\x4d\x18"):
		return io.NopCloser(lz4.NewReader(b)), nil
	case has("\x5d\x00\x00"):
		u, err := lzma.ReaderConfig{DictCap: compress.MaxWindow}.NewReader(b)
		return io.NopCloser(u), err
	}
	format, err := compress.Detect(b)
	if err != nil {
		return nil, err
	}
	return format.NewReader(b)
}

func isGzip(r io.ReaderAt) bool {
	var magic [2]byte
	n, _ := r.ReadAt(magic[:], 0) // what cannot be read here cannot be read later, where it is an error
	return n == 2 && magic == [2]byte{0x1f, 0x8b}
}
