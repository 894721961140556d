package image

import (
	"bytes"
	"compress/bzip2"
	"encoding/base64"
	"errors"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/matchlock/matchlock/internal/compress"
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
		{"docker save", makeTar(t, dockerEntries(t, "a:1", makeImage(t, compress.Plain, base, top))...), [][]byte{base, top}, "/bin/hello"},
		{"docker save of packed layers", makeTar(t, dockerEntries(t, "a:1", makeImage(t, compress.Gzip, base, top))...), [][]byte{base, top}, "/bin/hello"},
		{"OCI layout", makeTar(t, layoutEntries(t, []string{"a"}, makeImage(t, compress.Gzip, base, top))...), [][]byte{base, top}, "/bin/hello"},
		{"OCI layout of zstd layers", makeTar(t, layoutEntries(t, []string{"a"}, makeImage(t, compress.Zstd, base, top))...), [][]byte{base, top}, "/bin/hello"},
	}
	for _, kind := range kinds {
		for _, c := range []compress.Format{compress.Plain, compress.Gzip, compress.Zstd, compress.XZ} {
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

// TestImportTellsApart has archives that look like another kind.
func TestImportTellsApart(t *testing.T) {
	img := makeImage(t, compress.Plain, rootTar(t))
	manifest := entry{name: "manifest.json", data: `[{"Config":"c.json","RepoTags":null,"Layers":["l.tar"]}]`}
	usr := []entry{{name: "./usr/"}, {name: "./usr/x", data: "x"}}
	tests := []struct {
		name    string
		archive []byte
		root    bool
		err     string
	}{
		{"root with a web app's manifest.json", makeTar(t, entry{name: "app.js", data: "x"}, entry{name: "manifest.json", data: `{"name":"app"}`}), true, ""},
		{"root with a manifest.json like docker's", makeTar(t, append([]entry{manifest}, usr...)...), true, ""},
		{"root with an unpacked layout", makeTar(t, append(layoutEntries(t, []string{"a"}, img), usr...)...), true, ""},
		{"root of one file", makeTar(t, entry{name: "hello", data: "static"}), true, ""},
		{"index.json alone", makeTar(t, entry{name: "index.json", data: "{}"}), true, ""},
		{"both layout and docker's", makeTar(t, append(layoutEntries(t, []string{"a"}, img), entry{name: "manifest.json", data: "[]"})...), false, ""},
		{"names with ./", makeTar(t, prefixed("./", dockerEntries(t, "a:1", img))...), false, ""},
		{"names with /", makeTar(t, prefixed("/", layoutEntries(t, []string{"a"}, img))...), false, ""},
		{"docker's with a layer missing", makeTar(t, manifest, entry{name: "c.json", data: string(toJSON(t, img.config))}), false, "l.tar: file does not exist in the archive"},
		{"docker's with its config missing", makeTar(t, manifest, entry{name: "l.tar"}), false, "c.json: file does not exist"},
		{"docker's of old", makeTar(t, entry{name: "repositories", data: "{}"}, entry{name: "aa/layer.tar"}), false, "before 1.10"},
		{"nothing", nil, false, "the archive has no files"},
		{"no tar", []byte(strings.Repeat("no tar at all ", 100)), false, "not a complete tar"},
		{"an empty tar", makeTar(t), false, "the archive has no files"},
		{"root without end", rootTar(t)[:2560], false, "root file system: after entry \"./etc/\": unexpected EOF"},
		{"root cut in a file", rootTar(t)[:1545], false, "unexpected EOF"},
		{"docker's cut", makeTar(t, dockerEntries(t, "a:1", img)...)[:3000], false, "not a complete tar"},
		{"cut gzip", pack(t, compress.Gzip, rootTar(t))[:100], false, "unexpected EOF"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			for way, source := range map[string]io.Reader{"stream": io.MultiReader(bytes.NewReader(test.archive)), "file": fileOf(t, test.archive)} {
				s := newStore(t)
				image, err := s.Import(t.Context(), "box", source, ImportOptions{})
				if test.err != "" {
					if err == nil || !strings.Contains(err.Error(), test.err) || !strings.HasPrefix(err.Error(), `image "box": `) {
						t.Errorf("%s: %v, want %q", way, err, test.err)
					}
					continue
				}
				if err != nil {
					t.Fatalf("%s: %v", way, err)
				}
				defer image.Release()
				want := rootTar(t)
				if test.root {
					want = test.archive
				}
				checkLayers(t, image, [][]byte{want})
			}
		})
	}
}

func prefixed(prefix string, entries []entry) []entry {
	for i := range entries {
		entries[i].name = prefix + entries[i].name
	}
	return entries
}

// TestImportDockerLinks imports what docker wrote for an image with one layer twice, and one whose link leads round.
func TestImportDockerLinks(t *testing.T) {
	img := makeImage(t, compress.Plain, rootTar(t), layerTars(t, 1)[0], rootTar(t))
	entries := dockerEntries(t, "a:1", img)
	var layers []int
	for i, e := range entries {
		if strings.HasSuffix(e.name, "/layer.tar") {
			layers = append(layers, i)
		}
	}
	entries[layers[2]] = entry{name: entries[layers[2]].name, typ: '2', link: "../" + entries[layers[0]].name}
	s := newStore(t)
	image := mustImport(t, s, "box", makeTar(t, entries...))
	checkLayers(t, image, single([][]byte{img.tars[1], img.tars[0]})...)

	for _, link := range []string{"layer.tar", "../../../../etc/passwd", "/etc/passwd"} {
		entries[layers[2]].link = link
		if _, err := s.Import(t.Context(), "box", bytes.NewReader(makeTar(t, entries...)), ImportOptions{}); err == nil {
			t.Errorf("a layer that is a link to %q was accepted", link)
		}
	}
}

func TestImportFolder(t *testing.T) {
	img := makeImage(t, compress.Gzip, layerTars(t, 2)...)
	dir := t.TempDir()
	for _, e := range layoutEntries(t, []string{"a"}, img) {
		path := filepath.Join(dir, e.name)
		if strings.HasSuffix(e.name, "/") {
			if err := os.MkdirAll(path, 0o700); err != nil {
				t.Fatal(err)
			}
		} else if err := os.WriteFile(path, []byte(e.data), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s := newStore(t)
	image, err := s.ImportPath(t.Context(), "box", dir, ImportOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer image.Release()
	checkLayers(t, image, single(img.tars)...)
	if manifest, _ := img.files(t); image.Digest != digestOf(manifest).String() {
		t.Errorf("digest %s, want that of the layout, %s", image.Digest, digestOf(manifest))
	}

	// A link out of the folder is not followed, a fifo not waited for.
	blob := filepath.Join(dir, blobName(digestOf(img.blobs[1])))
	outside := filepath.Join(t.TempDir(), "blob")
	if err := errors.Join(os.Rename(blob, outside), os.Symlink(outside, blob)); err != nil {
		t.Fatal(err)
	}
	other := newStore(t)
	if _, err := other.ImportPath(t.Context(), "box", dir, ImportOptions{}); err == nil || !strings.Contains(err.Error(), "escapes") {
		t.Errorf("a blob that is a link out of the folder: %v", err)
	}
	if err := errors.Join(os.Remove(blob), syscall.Mkfifo(blob, 0o600)); err != nil {
		t.Fatal(err)
	}
	if _, err := other.ImportPath(t.Context(), "box", dir, ImportOptions{}); err == nil || !strings.Contains(err.Error(), "not a regular file") {
		t.Errorf("a blob that is a fifo: %v", err)
	}
	if _, err := other.ImportPath(t.Context(), "box", t.TempDir(), ImportOptions{}); err == nil || !strings.Contains(err.Error(), "no OCI image layout") {
		t.Errorf("any folder: %v", err)
	}
	if _, err := other.ImportPath(t.Context(), "box", filepath.Join(dir, "none"), ImportOptions{}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no folder: %v", err)
	}
}

func TestImportOptions(t *testing.T) {
	s := newStore(t)
	archive := makeTar(t, dockerEntries(t, "a:1", makeImage(t, compress.Plain, rootTar(t)))...)
	image, err := s.Import(t.Context(), "box", bytes.NewReader(archive), ImportOptions{Changes: []string{`ENTRYPOINT ["/bin/hello"]`, "ENV A=2"}})
	if err != nil {
		t.Fatal(err)
	}
	defer image.Release()
	if c := image.Config; len(c.Entrypoint) != 1 || c.Cmd != nil || c.Env[0] != "A=2" {
		t.Errorf("changed configuration %+v", c)
	}

	foreign := makeImage(t, compress.Plain, rootTar(t))
	foreign.config.Architecture = "mips64"
	archive = makeTar(t, layoutEntries(t, []string{"a"}, foreign)...)
	var wrong *PlatformError
	if _, err := s.Import(t.Context(), "far", bytes.NewReader(archive), ImportOptions{}); !errors.As(err, &wrong) {
		t.Errorf("another platform's image: %v, want a PlatformError", err)
	}
	far, err := s.Import(t.Context(), "far", bytes.NewReader(archive), ImportOptions{Platform: "linux/mips64"})
	if err != nil {
		t.Fatal(err)
	}
	far.Release()

	if _, err := s.Import(t.Context(), "big", bytes.NewReader(rootTar(t)), ImportOptions{MaxBytes: 1000}); !errors.Is(err, ErrTooLarge) {
		t.Errorf("more than MaxBytes: %v, want ErrTooLarge", err)
	}
	bomb := makeTar(t, entry{name: "hello", data: strings.Repeat("\x00", 3<<20)}) // is spooled: nothing tells yet what it is
	if _, err := s.Import(t.Context(), "big", bytes.NewReader(pack(t, compress.Gzip, bomb)), ImportOptions{MaxBytes: 1 << 20}); !errors.Is(err, ErrTooLarge) {
		t.Errorf("a bomb: %v, want ErrTooLarge", err)
	}
	for _, o := range []ImportOptions{{Changes: []string{"RUN x"}}, {Platform: "plan9/amd64"}} {
		if _, err := s.Import(t.Context(), "x", bytes.NewReader(rootTar(t)), o); err == nil {
			t.Errorf("accepted %+v", o)
		}
	}
}

// TestImportBzip2 has a root file system that only a ready-made archive can give: the library has no such packer.
func TestImportBzip2(t *testing.T) {
	// tar --format=ustar --owner=0 --group=0 --mtime=@0 -cj bin/hello
	data, err := base64.StdEncoding.DecodeString("QlpoOTFBWSZTWWRL4bUAAHj7kMmQAERAAPWAAIByZZ4ABAAACCAAVCUkepoANNNDRp6gkpGgGhkAPSDH3kKqUILa0hIk+LiTQusQIcK+gGi9CNl2cJepHKuHD3uN4zJNPwoUcckikdGUZoIiB+LuSKcKEgyJfDag")
	if err != nil {
		t.Fatal(err)
	}
	image := mustImport(t, newStore(t), "box", data)
	unpacked, err := io.ReadAll(bzip2.NewReader(bytes.NewReader(data)))
	if err != nil {
		t.Fatal(err)
	}
	checkLayers(t, image, [][]byte{unpacked})
}

// TestImportMidFile imports from where a file stands, as standard input may have been read before.
func TestImportMidFile(t *testing.T) {
	f := fileOf(t, append([]byte("before"), rootTar(t)...))
	if _, err := f.Seek(6, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	image, err := newStore(t).Import(t.Context(), "box", f, ImportOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer image.Release()
	checkLayers(t, image, [][]byte{rootTar(t)})
}

// FuzzImport imports what it is given. Whatever that is, nothing may be left in tmp/, and an image that was taken must
// be found again and be gone after a prune.
func FuzzImport(f *testing.F) {
	img := makeImage(f, compress.Plain, rootTar(f))
	packed := makeImage(f, compress.Gzip, rootTar(f), layerTars(f, 1)[0])
	for _, archive := range [][]byte{
		rootTar(f),
		makeTar(f, dockerEntries(f, "a:1", img)...),
		makeTar(f, layoutEntries(f, []string{"a"}, packed)...),
		makeTar(f, entry{name: "hello", data: "x"}),
	} {
		f.Add(archive)
		f.Add(pack(f, compress.Gzip, archive))
		f.Add(pack(f, compress.Zstd, archive))
	}
	f.Add([]byte("BZh91AY"))
	f.Add([]byte("\xfd7zXZ\x00\x00\x04"))
	s, err := Open(filepath.Join(f.TempDir(), "images"))
	if err != nil {
		f.Fatal(err)
	}
	s.hasty = true
	f.Fuzz(func(t *testing.T, archive []byte) {
		image, err := s.Import(t.Context(), "box", bytes.NewReader(archive), ImportOptions{MaxBytes: 1 << 20})
		if err == nil {
			found, err := s.Lookup("box")
			if err != nil || found.Digest != image.Digest || len(found.Layers) > MaxLayers || len(found.Layers) == 0 {
				t.Errorf("imported %+v, found %+v, %v", image, found, err)
			}
			found.Release()
			image.Release()
		}
		if left, err := os.ReadDir(s.path("tmp")); err != nil || len(left) > 0 {
			t.Errorf("tmp holds %v (%v)", left, err)
		}
		if _, err := s.Prune(t.Context(), PruneOptions{All: true}); err != nil {
			t.Error(err)
		}
		if left := tree(t, s.dir); len(left) != 3 && len(left) != 4 { // lock, marker and index
			t.Errorf("left: %q", left)
		}
	})
}
