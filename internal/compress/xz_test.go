package compress

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/ulikunitz/xz"
)

// packXZ packs data in blocks of 10 bytes.
func packXZ(t testing.TB, check byte, data string) []byte {
	t.Helper()
	var packed bytes.Buffer
	w, err := xz.WriterConfig{DictCap: 1 << 16, BlockSize: 10, CheckSum: check, NoCheckSum: check == xz.None}.NewWriter(&packed)
	if err == nil {
		_, err = io.WriteString(w, data)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	return packed.Bytes()
}

const twentyFive = "twenty-five bytes of text"

func TestXZ(t *testing.T) {
	file := packXZ(t, xz.CRC64, twentyFive)
	pad := make([]byte, 4)
	tests := []struct {
		name string
		file []byte
		want string
	}{
		{"no checksums", packXZ(t, xz.None, twentyFive), twentyFive},
		{"CRC-32", packXZ(t, xz.CRC32, twentyFive), twentyFive},
		{"CRC-64", file, twentyFive},
		{"SHA-256", packXZ(t, xz.SHA256, twentyFive), twentyFive},
		{"padded", slices.Concat(file, pad, pad), twentyFive},
		{"two streams", slices.Concat(file, packXZ(t, xz.SHA256, " and more")), twentyFive + " and more"},
		{"padded between", slices.Concat(file, pad, file), twentyFive + twentyFive},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got, err := unpack(XZ, bytes.NewReader(tt.file)); err != nil || got != tt.want {
				t.Errorf("unpacked to %q, %v; want %q", got, err, tt.want)
			}
		})
	}
}

// No byte of a file can be missing or another, not even one that is no data.
func TestXZDamaged(t *testing.T) {
	file := packXZ(t, xz.CRC32, twentyFive)
	for i := range file {
		if got, err := unpack(XZ, bytes.NewReader(file[:i])); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("cut to %d bytes of %d: unpacked to %q, %v; want %v", i, len(file), got, err, io.ErrUnexpectedEOF)
		}
		damaged := bytes.Clone(file)
		for _, bit := range []byte{1, 0x80} {
			damaged[i] = file[i] ^ bit
			if got, err := unpack(XZ, bytes.NewReader(damaged)); err == nil {
				t.Errorf("byte %d is %#x, not %#x: unpacked to %q", i, damaged[i], file[i], got)
			}
		}
	}
	for _, rest := range []string{"\x00", "\x00\x00\x00", "more", "\x00\x00\x00\x00\x00"} {
		if _, err := unpack(XZ, io.MultiReader(bytes.NewReader(file), strings.NewReader(rest))); err == nil {
			t.Errorf("followed by %q: no error", rest)
		}
	}
}

// block is a block whose header has these flags and filters.
func block(flags byte, filters ...byte) []byte {
	header := append([]byte{0, flags}, filters...)
	header = append(header, make([]byte, -len(header)&3)...)
	header[0] = byte(len(header) / 4) // the checksum counts as well
	header = binary.LittleEndian.AppendUint32(header, crc32.ChecksumIEEE(header))
	return append(header, 0, 0, 0, 0) // no data, and padding
}

func TestXZHeaders(t *testing.T) {
	const lzma2, x86 = 0x21, 4
	stream := packXZ(t, xz.None, "")[:12] // its header
	fine := block(0, lzma2, 1, 20)
	tests := []struct {
		name   string
		blocks []byte
		want   string
	}{
		{"x86", block(1, x86, 0, lzma2, 1, 20), errors.ErrUnsupported.Error()},
		{"x86 alone", block(0, x86, 0), errors.ErrUnsupported.Error()},
		{"reserved flag", block(4, lzma2, 1, 20), errors.ErrUnsupported.Error()},
		{"padding that is none", block(0, lzma2, 1, 20, 1), errors.ErrUnsupported.Error()},
		{"no filter", block(0xc0, 1, 1), errors.ErrUnsupported.Error()},
		{"greatest allowed dictionary", block(0, lzma2, 1, 30), io.ErrUnexpectedEOF.Error()},
		{"next dictionary", block(0, lzma2, 1, 31), "dictionary of 201326592 bytes"},
		{"greatest dictionary", block(0, lzma2, 1, 40), "dictionary of 4294967295 bytes"},
		{"impossible dictionary", block(0, lzma2, 1, 41), "lzma: "},
		{"dictionary after two sizes", block(0xc0, 0xff, 0x01, 0x05, lzma2, 1, 40), "dictionary of 4294967295 bytes"},
		{"dictionary of a later block", append(fine, block(0, lzma2, 1, 40)...), "dictionary of 4294967295 bytes"},
		{"endless size", block(0x40, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff), "bad size"},
		{"negative size", block(0x80, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01, lzma2, 1, 20), "bad size"},
		{"other size packed", block(0x40, 2, lzma2, 1, 20), "block is not as large as its header says"},
		{"other size unpacked", block(0x80, 1, lzma2, 1, 20), "block is not as large as its header says"},
		{"index of no block", append(fine, 0, 0, 0, 0), "index is not that of the blocks"},
		{"index of many blocks", append(fine, 0, 0xff, 0xff, 0xff, 0x7f), io.ErrUnexpectedEOF.Error()},
		{"index of another block", append(fine, 0, 1, 8, 0), "index is not that of the blocks"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := unpack(XZ, bytes.NewReader(append(stream[:12:12], tt.blocks...)))
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got error %v, want %q", err, tt.want)
			}
		})
	}
}

// What is unpacked here, the library unpacks to the same, unless it wants more memory.
func FuzzXZ(f *testing.F) {
	for _, check := range []byte{xz.None, xz.CRC32, xz.CRC64, xz.SHA256} {
		f.Add(packXZ(f, check, twentyFive))
		f.Add(packXZ(f, check, ""))
	}
	f.Add(append(packXZ(f, xz.CRC32, "one"), packXZ(f, xz.CRC64, "two")...))
	f.Add(append(packXZ(f, xz.CRC32, strings.Repeat("again and ", 100)), 0, 0, 0, 0))
	f.Fuzz(func(t *testing.T, file []byte) {
		got, err := unpack(XZ, bytes.NewReader(file))
		if err != nil {
			return
		}
		r, err := xz.NewReader(bytes.NewReader(file))
		if err != nil {
			t.Fatalf("unpacked to %q; the library: %v", got, err)
		}
		want, err := io.ReadAll(io.LimitReader(r, 1<<20))
		if err != nil || got != string(want) {
			t.Fatalf("unpacked to %q; the library: %q, %v", got, want, err)
		}
	})
}
