package disk

import (
	"archive/tar"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"testing"
)

// BenchmarkLayerWriter writes an image of a 200 MB tar as a distribution's layer is one: 6000 files, most of them small, and the page
// cache warm.
func BenchmarkLayerWriter(b *testing.B) {
	archive := tempFile(b)
	random := rand.New(rand.NewPCG(1, 2))
	content := make([]byte, 20<<20)
	for i := range content {
		content[i] = byte(random.Uint32() & 0x3f)
	}
	w := tar.NewWriter(archive)
	for i, left := 0, int64(200_000_000); left > 0; i++ {
		size := min(int64(random.ExpFloat64()*2_000), left)
		if i%50 == 0 {
			size = min(int64(random.ExpFloat64()*1_500_000), left, int64(len(content)))
		}
		name := fmt.Sprintf("usr/lib/package-%d/file-%d", i/20, i)
		writeEntry(b, w, &tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: size}, string(content[:size]))
		left -= size
	}
	if err := w.Close(); err != nil {
		b.Fatal(err)
	}
	size, err := archive.Seek(0, io.SeekEnd)
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(size)
	b.ReportAllocs()
	for b.Loop() {
		b.StopTimer()
		dst := tempFile(b)
		if _, err := archive.Seek(0, io.SeekStart); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		w := NewLayerWriter(dst, LayerOptions{Base: true})
		if err := w.AddTar(archive); err != nil {
			b.Fatal(err)
		}
		if _, err := w.Close(); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if err := os.Remove(dst.Name()); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}
