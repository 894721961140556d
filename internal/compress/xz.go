package compress

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"hash/crc64"
	"io"
	"slices"

	"github.com/ulikunitz/xz/lzma"
)

// An xzReader unpacks a .xz file, of any number of streams (https://tukaani.org/xz/xz-file-format.txt, whose sections
// are named below). The library has a reader for the format too, but that allocates whatever dictionary a block asks
// for; here only what is inside of blocks is left to the library.
type xzReader struct {
	in  counter
	err error // that ended it

	// Of the stream.
	flags   [2]byte
	check   hash.Hash // of a block; nil when the stream has none
	blocks  uint64
	records hash.Hash // over what the index is to say of all blocks

	// Of the block.
	data             io.Reader // nil between blocks
	begin            int64     // where the data begin, by in.n
	header           int64     // bytes
	packed, unpacked int64     // bytes the header promises; -1: it does not
	done             int64     // bytes unpacked
}

// counter counts what is read.
type counter struct {
	r io.Reader
	n int64
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

func newXZReader(r io.Reader) (*xzReader, error) {
	x := &xzReader{in: counter{r: bufio.NewReader(r)}}
	magic, err := x.read(4)
	if err == nil {
		err = x.startStream(magic)
	}
	return x, err
}

func (x *xzReader) Read(p []byte) (n int, err error) {
	for n == 0 && len(p) > 0 && x.err == nil {
		if x.data == nil {
			x.err = x.next()
			continue
		}
		n, err = x.data.Read(p)
		x.done += int64(n)
		if x.check != nil {
			x.check.Write(p[:n])
		}
		if err == io.EOF {
			err = x.endBlock()
		}
		x.err = err
	}
	return n, x.err
}

// read returns the next few bytes.
func (x *xzReader) read(n int) ([]byte, error) {
	b := make([]byte, n)
	_, err := io.ReadFull(&x.in, b)
	return b, midway(err)
}

// midway makes an end what it is where more must follow.
func midway(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// padding reads the zeros that fill what began at in.n == from up to a multiple of four bytes.
func (x *xzReader) padding(from int64) error {
	b, err := x.read(int(-(x.in.n - from) & 3))
	if err == nil && !zeros(b) {
		err = errors.New("xz: padding is not zero")
	}
	return err
}

func zeros(b []byte) bool { return len(bytes.Trim(b, "\x00")) == 0 }

func checkCRC(want []byte, b ...byte) error {
	if binary.LittleEndian.Uint32(want) != crc32.ChecksumIEEE(b) {
		return errors.New("xz: wrong checksum of a header")
	}
	return nil
}

// startStream reads the Stream Header (2.1.1), but for its first four bytes.
func (x *xzReader) startStream(magic []byte) error {
	b, err := x.read(8)
	if err != nil {
		return err
	}
	if string(magic)+string(b[:2]) != formats[XZ].magic {
		return errors.New("xz: no stream header")
	}
	x.flags = [2]byte(b[2:])
	if err := checkCRC(b[4:], x.flags[:]...); err != nil {
		return err
	}
	x.blocks, x.records = 0, sha256.New()
	switch x.flags {
	case [2]byte{0, 0x00}:
		x.check = nil
	case [2]byte{0, 0x01}:
		x.check = crc32.NewIEEE()
	case [2]byte{0, 0x04}:
		x.check = crc64.New(crc64.MakeTable(crc64.ECMA))
	case [2]byte{0, 0x0a}:
		x.check = sha256.New()
	default:
		return fmt.Errorf("xz: stream flags %#x: %w", x.flags, errors.ErrUnsupported)
	}
	return nil
}

// next goes on to the data of the next block, in this or the next stream. It is io.EOF when there is none.
func (x *xzReader) next() error {
	for {
		b, err := x.read(1)
		if err != nil {
			return err
		}
		if size := b[0]; size != 0 {
			return x.startBlock(size)
		}
		if err := x.endStream(); err != nil {
			return err
		}
		magic := make([]byte, 4)
		for zeros(magic) { // Stream Padding (2.2)
			if _, err := io.ReadFull(&x.in, magic); err != nil {
				return err
			}
		}
		if err := x.startStream(magic); err != nil {
			return err
		}
	}
}

// startBlock reads a Block Header (3.1), whose first byte tells its size.
func (x *xzReader) startBlock(size byte) error {
	x.header = int64(size)*4 + 4
	b, err := x.read(int(x.header) - 1)
	if err != nil {
		return err
	}
	b, crc := b[:len(b)-4], b[len(b)-4:]
	if err := checkCRC(crc, append([]byte{size}, b...)...); err != nil {
		return err
	}
	flags, b := b[0], b[1:]
	for _, promised := range []struct {
		flag byte
		size *int64
	}{{0x40, &x.packed}, {0x80, &x.unpacked}} {
		*promised.size = -1
		if flags&promised.flag == 0 {
			continue
		}
		v, n := binary.Uvarint(b)
		if n <= 0 || v >= 1<<63 {
			return errors.New("xz: bad size in block header")
		}
		*promised.size, b = int64(v), b[n:]
	}
	if flags&^0xc0 != 0 || len(b) < 3 || b[0] != 0x21 || b[1] != 1 || !zeros(b[3:]) {
		return fmt.Errorf("xz: filters other than LZMA2: %w", errors.ErrUnsupported)
	}
	dict, err := lzma.DecodeDictCap(b[2])
	if err != nil {
		return err
	}
	if dict > MaxWindow {
		return fmt.Errorf("xz: dictionary of %d bytes", dict)
	}
	x.begin, x.done = x.in.n, 0
	if x.check != nil {
		x.check.Reset()
	}
	x.data, err = lzma.Reader2Config{DictCap: int(dict)}.NewReader2(&x.in)
	return err
}

// endBlock reads what follows a block's data (3.3, 3.4).
func (x *xzReader) endBlock() error {
	packed := x.in.n - x.begin
	if x.packed >= 0 && x.packed != packed || x.unpacked >= 0 && x.unpacked != x.done {
		return errors.New("xz: block is not as large as its header says")
	}
	if err := x.padding(x.begin); err != nil {
		return err
	}
	var sum []byte
	if x.check != nil {
		sum = x.check.Sum(nil)
		if len(sum) < sha256.Size {
			slices.Reverse(sum) // CRCs are little-endian in the file
		}
	}
	got, err := x.read(len(sum))
	if err != nil {
		return err
	}
	if !bytes.Equal(got, sum) {
		return errors.New("xz: wrong checksum of a block")
	}
	x.blocks++
	fmt.Fprintln(x.records, x.header+packed+int64(len(sum)), x.done)
	x.data = nil
	return nil
}

// endStream reads the Index (4), but for its first byte, and the Stream Footer (2.1.2). They repeat what was seen before.
func (x *xzReader) endStream() error {
	start := x.in.n - 1
	crc := crc32.NewIEEE()
	crc.Write([]byte{0})
	r := x.in.r
	x.in.r = io.TeeReader(r, crc)
	err := x.readRecords()
	if err == nil {
		err = x.padding(start)
	}
	x.in.r = r
	if err != nil {
		return err
	}
	sum := crc.Sum32()
	b, err := x.read(4 + 12)
	if err != nil {
		return err
	}
	if binary.LittleEndian.Uint32(b) != sum {
		return errors.New("xz: wrong checksum of the index")
	}
	size, footer := x.in.n-start-12, b[4:]
	if err := checkCRC(footer, footer[4:10]...); err != nil {
		return err
	}
	if int64(binary.LittleEndian.Uint32(footer[4:]))*4+4 != size || [2]byte(footer[8:]) != x.flags || string(footer[10:]) != "YZ" {
		return errors.New("xz: stream footer is not as it should be")
	}
	return nil
}

// readRecords reads the number of blocks and, for each, its sizes (4.2, 4.3).
func (x *xzReader) readRecords() error {
	in := lzma.ByteReader(&x.in)
	records := sha256.New()
	n, err := binary.ReadUvarint(in)
	if err != nil {
		return midway(err)
	}
	for range min(n, x.blocks) {
		packed, err := binary.ReadUvarint(in)
		if err != nil {
			return midway(err)
		}
		unpacked, err := binary.ReadUvarint(in)
		if err != nil {
			return midway(err)
		}
		fmt.Fprintln(records, packed, unpacked)
	}
	if n != x.blocks || !bytes.Equal(records.Sum(nil), x.records.Sum(nil)) {
		return errors.New("xz: index is not that of the blocks")
	}
	return nil
}
