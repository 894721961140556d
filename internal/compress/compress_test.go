package compress

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

// hello is "hello\n" packed by bzip2, which the standard library only unpacks.
const hello = "BZh91AY&SY\xc1\xc0\x80\xe2\x00\x00\x01\x41\x00\x00\x10\x02\x44\xa0\x00\x30\xcd\x00\xc3\x46\x29\x97\x17\x72\x45\x38\x50\x90\xc1\xc0\x80\xe2"

func TestFormats(t *testing.T) {
	tests := []struct {
		name   string
		packed []byte
		format Format
		want   string
	}{
		{"nothing", nil, Plain, ""},
		{"text", []byte("hello\n"), Plain, "hello\n"},
		{"shorter than any magic", []byte("\xfd7"), Plain, "\xfd7"},
		{"gzip", pack(t, Gzip, "hello\n"), Gzip, "hello\n"},
		{"gzip twice", append(pack(t, Gzip, "hel"), pack(t, Gzip, "lo\n")...), Gzip, "hello\n"},
		{"zstd", pack(t, Zstd, "hello\n"), Zstd, "hello\n"},
		{"zstd twice", append(pack(t, Zstd, "hel"), pack(t, Zstd, "lo\n")...), Zstd, "hello\n"},
		{"xz", pack(t, XZ, "hello\n"), XZ, "hello\n"},
		{"xz of nothing", pack(t, XZ, ""), XZ, ""},
		{"xz twice", append(pack(t, XZ, "hel"), pack(t, XZ, "lo\n")...), XZ, "hello\n"},
		{"bzip2", []byte(hello), Bzip2, "hello\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b := bufio.NewReader(bytes.NewReader(tt.packed))
			format, err := Detect(b)
			if err != nil || format != tt.format {
				t.Fatalf("Detect = %v, %v; want %v", format, err, tt.format)
			}
			got, err := unpack(format, b)
			if err != nil || got != tt.want {
				t.Errorf("unpacked to %q, %v; want %q", got, err, tt.want)
			}
			if format == Plain || len(tt.packed) > 100 {
				return
			}
			if _, err := unpack(format, bytes.NewReader(tt.packed[:len(tt.packed)-1])); err == nil {
				t.Error("unpacked although its last byte is missing")
			}
		})
	}
}

func TestDetectFails(t *testing.T) {
	cause := errors.New("no more")
	if _, err := Detect(bufio.NewReader(io.MultiReader(strings.NewReader("\x1f"), failing{cause}))); err != cause {
		t.Errorf("Detect = %v, want the error of the reader", err)
	}
}

type failing struct{ error }

func (f failing) Read([]byte) (int, error) { return 0, f.error }

// A zstd frame that asks for more memory than there is to be given.
func TestZstdWindow(t *testing.T) {
	frame := func(exponent byte) io.Reader { // RFC 8878, section 3.1.1: magic, descriptor, window descriptor, one empty block
		return bytes.NewReader([]byte{0x28, 0xb5, 0x2f, 0xfd, 0, exponent << 3, 1, 0, 0})
	}
	if _, err := unpack(Zstd, frame(27-10)); err != nil {
		t.Errorf("a window of %d bytes: %v", MaxWindow, err)
	}
	if _, err := unpack(Zstd, frame(28-10)); !errors.Is(err, zstd.ErrWindowSizeExceeded) {
		t.Errorf("a window of %d bytes: %v", 2*MaxWindow, err)
	}
}

func pack(t testing.TB, format Format, data string) []byte {
	t.Helper()
	var packed bytes.Buffer
	var w io.WriteCloser
	var err error
	switch format {
	case Gzip:
		w = gzip.NewWriter(&packed)
	case Zstd:
		w, err = zstd.NewWriter(&packed)
	case XZ:
		w, err = xz.NewWriter(&packed)
	default:
		t.Fatalf("no packer for %v", format)
	}
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

// unpack reads a stream to its end, which must be near.
func unpack(format Format, packed io.Reader) (string, error) {
	r, err := format.NewReader(packed)
	if err != nil {
		return "", err
	}
	defer r.Close()
	data, err := io.ReadAll(io.LimitReader(r, 1<<20))
	return string(data), err
}
