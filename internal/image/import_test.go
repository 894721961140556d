package image

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

func hostArch() string { return runtime.GOARCH }

func TestImport(t *testing.T) {
	base := rootTar(t)
	top := makeTar(t, entry{name: "bin/"}, entry{name: "bin/more", data: strings.Repeat("more", 5000)})
	kinds := []struct {
		name    string
		archive []byte
		layers  [][]byte
		cmd     string
	}{
		{"root file system", base, [][]byte{base}, "/bin/sh"},
		{"docker save", makeTar(t, dockerEntries(t, "a:1", makeImage(t, plain, base, top))...), [][]byte{base, top}, "/bin/hello"},
		{"docker save of packed layers", makeTar(t, dockerEntries(t, "a:1", makeImage(t, gzipped, base, top))...), [][]byte{base, top}, "/bin/hello"},
		{"OCI layout", makeTar(t, layoutEntries(t, []string{"a"}, makeImage(t, gzipped, base, top))...), [][]byte{base, top}, "/bin/hello"},
		{"OCI layout of zstd layers", makeTar(t, layoutEntries(t, []string{"a"}, makeImage(t, zstandard, base, top))...), [][]byte{base, top}, "/bin/hello"},
	}
	for _, kind := range kinds {
		for _, c := range []compression{plain, gzipped, zstandard, xzipped} {
			t.Run(kind.name+"/"+c.String(), func(t *testing.T) {
				data := pack(t, c, kind.archive)
				for way, source := range map[string]io.Reader{"stream": io.MultiReader(bytes.NewReader(data)), "file": fileOf(t, data)} {
					s := newStore(t)
					image, err := s.Import(t.Context(), "my-box", source, ImportOptions{})
					if err != nil {
						t.Fatalf("%s: %v", way, err)
					}
					defer image.Release()
					checkLayers(t, image, single(kind.layers)...)
					if got := image.Config.Cmd[0]; got != kind.cmd {
						t.Errorf("%s: command %q, want %q", way, got, kind.cmd)
					}
					found, err := s.Lookup("my-box")
					if err != nil {
						t.Fatalf("%s: %v", way, err)
					}
					defer found.Release()
					if found.Digest != image.Digest || found.Name != "my-box" {
						t.Errorf("%s: looked up %s %q, imported %s", way, found.Digest, found.Name, image.Digest)
					}
				}
			})
		}
	}
}

func fileOf(t testing.TB, data []byte) *os.File {
	t.Helper()
	path := filepath.Join(t.TempDir(), "archive")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func TestLookupUnknown(t *testing.T) {
	s := newStore(t)
	if _, err := s.Import(t.Context(), "alpine", bytes.NewReader(rootTar(t)), ImportOptions{}); err != nil {
		t.Fatal(err)
	}
	_, err := s.Lookup("alpin")
	var missing *NotFoundError
	if !errors.As(err, &missing) || !errors.Is(err, ErrNotFound) || len(missing.Near) != 1 || missing.Near[0] != "alpine" {
		t.Errorf("Lookup: %v, want a NotFoundError near alpine", err)
	}
}
