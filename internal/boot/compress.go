package boot

import (
	"bufio"
	"bytes"
	"compress/bzip2"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"github.com/ulikunitz/xz"
	"github.com/ulikunitz/xz/lzma"
)

// maxDictionary bounds the memory that unpacking takes. Kernels packed by zstd --ultra -22 need 128 MB.
const maxDictionary = 256 << 20

// decompress unpacks r by what its first bytes say: gzip, xz, zstd, lz4 (also in the kernel's legacy form), bzip2, lzma.
// What is none of these passes unchanged: the caller knows what it must be. How much comes out is for the caller to bound.
func decompress(r io.Reader) (io.ReadCloser, error) {
	b := bufio.NewReaderSize(r, 64<<10)
	magic, err := b.Peek(6)
	if err != nil && err != io.EOF {
		return nil, err
	}
	has := func(prefix string) bool { return bytes.HasPrefix(magic, []byte(prefix)) }
	var u io.Reader
	switch {
	case has("\x1f\x8b"):
		z, err := gzip.NewReader(b)
		if err != nil {
			return nil, err
		}
		z.Multistream(false)
		u = z
	case has("\xfd7zXZ\x00"):
		if err := checkDictionary(b); err != nil {
			return nil, err
		}
		u, err = xz.NewReader(b)
	case has("\x28\xb5\x2f\xfd"):
		z, err := zstd.NewReader(b, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxDictionary))
		if err != nil {
			return nil, err
		}
		return z.IOReadCloser(), nil
	case has("\x02\x21\x4c\x18"), has("\x04\x22\x4d\x18"):
		u = lz4.NewReader(b)
	case has("BZh"):
		u = bzip2.NewReader(b)
	case has("\x5d\x00\x00"):
		u, err = lzma.ReaderConfig{DictCap: maxDictionary}.NewReader(b)
	default:
		u = b
	}
	if err != nil {
		return nil, err
	}
	return io.NopCloser(u), nil
}

func isGzip(r io.ReaderAt) bool {
	var magic [2]byte
	n, _ := r.ReadAt(magic[:], 0) // what cannot be read here cannot be read later, where it is an error
	return n == 2 && magic == [2]byte{0x1f, 0x8b}
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
	if dict > maxDictionary {
		return fmt.Errorf("xz: dictionary of %d bytes", dict)
	}
	return nil
}
