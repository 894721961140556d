package disk

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestCopySparse(t *testing.T) {
	type extent struct {
		offset int64
		data   string
	}
	const mib = 1 << 20
	long := string(bytes.Repeat([]byte("data"), mib/2))
	for _, test := range []struct {
		name    string
		size    int64
		extents []extent
	}{
		{"empty", 0, nil},
		{"one hole", 16 * mib, nil},
		{"odd size", 12345, []extent{{0, "x"}, {12344, "y"}}},
		{"data and holes", 16 * mib, []extent{{0, "head"}, {mib - 1, long}, {12 * mib, "x"}}},
		{"ends in data", 8*mib + 7, []extent{{8*mib + 2, "12345"}}},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			open := func(name string) *os.File {
				f, err := os.Create(filepath.Join(dir, name))
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { f.Close() })
				return f
			}
			src := open("src")
			if err := src.Truncate(test.size); err != nil {
				t.Fatal(err)
			}
			for _, e := range test.extents {
				if _, err := src.WriteAt([]byte(e.data), e.offset); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(src.Name())
			if err != nil {
				t.Fatal(err)
			}
			check := func(t *testing.T, dst *os.File) {
				t.Helper()
				got, err := os.ReadFile(dst.Name())
				if err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(got, want) {
					t.Error("content differs")
				}
				if got, want := blocks(t, dst.Name()), blocks(t, src.Name()); got > want+64<<10 {
					t.Errorf("takes %d bytes on the disk, the original %d", got, want)
				}
			}

			dst := open("dst")
			if _, err := dst.Write(bytes.Repeat([]byte("old"), mib)); err != nil {
				t.Fatal(err)
			}
			if err := CopySparse(dst, src); err != nil {
				t.Fatal(err)
			}
			check(t, dst)

			// The last resort, where the file system knows neither clones nor holes.
			plain := open("plain")
			if err := plain.Truncate(test.size); err != nil {
				t.Fatal(err)
			}
			if err := copyBytes(plain, src, 0, test.size); err != nil {
				t.Fatal(err)
			}
			check(t, plain)
		})
	}
}

// TestBlocks has EachBlock and Blocks tell the same of a file.
func TestBlocks(t *testing.T) {
	content := make([]byte, 5*blockSize+7)
	for _, at := range []int{0, blockSize, 3*blockSize + 100, 5*blockSize + 6} {
		content[at] = 1
	}
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	type block struct {
		offset int64
		length int
	}
	var each, blocks []block
	if err := EachBlock(f, func(offset int64, b []byte) error {
		each = append(each, block{offset, len(b)})
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	for offset, b := range Blocks(content, 0) {
		blocks = append(blocks, block{offset, len(b)})
	}
	want := []block{{0, blockSize}, {blockSize, blockSize}, {3 * blockSize, blockSize}, {5 * blockSize, 7}}
	if !slices.Equal(each, want) || !slices.Equal(blocks, want) {
		t.Errorf("EachBlock tells %v, Blocks %v, want %v", each, blocks, want)
	}
}
