package disk

import (
	"bytes"
	"fmt"
	"io"
	"iter"
	"os"
)

// CopySparse makes dst a copy of src, with its size and its holes: by sharing the blocks where the file system can, else by copying what is
// data. Both are to be open for what is asked of them; the offsets of neither count, and what dst held before is gone.
func CopySparse(dst, src *os.File) error {
	fi, err := src.Stat()
	if err != nil {
		return err
	}
	if err := dst.Truncate(0); err != nil {
		return err
	}
	if cloned, err := clone(dst, src); cloned || err != nil {
		return err
	}
	if err := dst.Truncate(fi.Size()); err != nil {
		return err
	}
	if err := copyExtents(dst, src, fi.Size()); err != nil {
		return fmt.Errorf("copy %s: %w", src.Name(), err)
	}
	return nil
}

// copyBytes copies n bytes at offset and makes holes of blocks of zeros.
func copyBytes(dst, src *os.File, offset, n int64) error {
	buf := make([]byte, min(n, 1<<20))
	for n > 0 {
		p := buf[:min(n, int64(len(buf)))]
		if _, err := io.ReadFull(io.NewSectionReader(src, offset, n), p); err != nil {
			return err
		}
		if err := WriteSparse(dst, p, offset); err != nil {
			return err
		}
		offset, n = offset+int64(len(p)), n-int64(len(p))
	}
	return nil
}

// WriteSparse writes p at offset but for its blocks of zeros, which the file must have as holes already.
func WriteSparse(f *os.File, p []byte, offset int64) error {
	for len(p) > 0 {
		n := run(p, false)
		if n > 0 {
			if _, err := f.WriteAt(p[:n], offset); err != nil {
				return err
			}
		}
		n += run(p[n:], true)
		p, offset = p[n:], offset+int64(n)
	}
	return nil
}

var zeroBlock [blockSize]byte

// run returns the length of the blocks at the start of p that are all zeros, or all not.
func run(p []byte, zeros bool) (n int) {
	for n < len(p) {
		block := p[n:min(n+blockSize, len(p))]
		if bytes.Equal(block, zeroBlock[:len(block)]) != zeros {
			break
		}
		n += len(block)
	}
	return n
}

// EachBlock calls visit for every block of 4096 bytes of f, the last one shorter if the size is no multiple, that does not hold
// zeros alone, in order. Holes take no time. block is valid during the call.
func EachBlock(f *os.File, visit func(offset int64, block []byte) error) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	buf := make([]byte, min(1<<20, info.Size()))
	done := int64(0)
	return eachExtent(f, info.Size(), func(from, to int64) error {
		// A file system may have smaller blocks, and tell of two extents in one of ours.
		from = max(done, from-from%blockSize)
		to = min(info.Size(), (to+blockSize-1)/blockSize*blockSize)
		done = max(done, to)
		for from < to {
			p := buf[:min(int64(len(buf)), to-from)]
			if _, err := io.ReadFull(io.NewSectionReader(f, from, to-from), p); err != nil {
				return err
			}
			for offset, block := range Blocks(p, from) {
				if err := visit(offset, block); err != nil {
					return err
				}
			}
			from += int64(len(p))
		}
		return nil
	})
}

// Blocks yields the blocks that EachBlock would visit of a file that has p at offset, a multiple of 4096, and nothing else.
func Blocks(p []byte, offset int64) iter.Seq2[int64, []byte] {
	return func(yield func(int64, []byte) bool) {
		for len(p) > 0 {
			block := p[:min(blockSize, len(p))]
			if !bytes.Equal(block, zeroBlock[:len(block)]) && !yield(offset, block) {
				return
			}
			p, offset = p[len(block):], offset+int64(len(block))
		}
	}
}
