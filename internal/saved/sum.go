package saved

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"hash"
	"os"

	"github.com/matchlock/matchlock/internal/disk"
)

// contentSum is the SHA-256 of what a file holds beside zeros, and where: holes count as the zeros that
// they read as, and take no time. It is taken of its size and then of each block of 4096 bytes that is
// not all zeros, in order, with its offset before it; numbers are of 8 bytes, big-endian.
type contentSum struct{ hash hash.Hash }

func newSum(size int64) contentSum {
	s := contentSum{sha256.New()}
	s.number(size)
	return s
}

func (s contentSum) number(n int64) {
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], uint64(n))
	s.hash.Write(b[:]) // of a hash never fails
}

// block adds a block that is not all zeros.
func (s contentSum) block(offset int64, block []byte) {
	s.number(offset)
	s.hash.Write(block)
}

func (s contentSum) String() string { return hex.EncodeToString(s.hash.Sum(nil)) }

// Sum is the sum of a whole file: the same for all that read the same, whatever of it are holes.
func Sum(ctx context.Context, f *os.File) (string, error) {
	info, err := f.Stat()
	if err != nil {
		return "", err
	}
	sum := newSum(info.Size())
	err = disk.EachBlock(f, func(offset int64, block []byte) error {
		sum.block(offset, block)
		return context.Cause(ctx)
	})
	return sum.String(), err
}
