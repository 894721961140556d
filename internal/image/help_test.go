package image

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/matchlock/matchlock/internal/compress"
	"github.com/matchlock/matchlock/internal/disk"
	"github.com/ulikunitz/xz"
)

// entry is one member of a test's tar. Without a type it is a regular file, or a folder if its name ends in a slash.
type entry struct {
	name, data string
	typ        byte
	link       string
}

func makeTar(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, e := range entries {
		h := &tar.Header{Name: e.name, Typeflag: e.typ, Linkname: e.link, Size: int64(len(e.data)), Mode: 0o755, ModTime: time.Unix(1e9, 0)}
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
			if strings.HasSuffix(e.name, "/") {
				h.Typeflag = tar.TypeDir
			}
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatalf("tar header %q: %v", e.name, err)
		}
		if _, err := w.Write([]byte(e.data)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// rootTar is a small root file system.
func rootTar(t testing.TB) []byte {
	return makeTar(t, entry{name: "./"}, entry{name: "./bin/"}, entry{name: "./bin/hello", data: "hello, world\n"}, entry{name: "./etc/"}, entry{name: "./etc/hostname", data: "box\n"})
}

func pack(t testing.TB, c compress.Format, data []byte) []byte {
	t.Helper()
	var buf bytes.Buffer
	var w interface {
		Write([]byte) (int, error)
		Close() error
	}
	var err error
	switch c {
	case compress.Plain:
		return data
	case compress.Gzip:
		w = gzip.NewWriter(&buf)
	case compress.Zstd:
		w, err = zstd.NewWriter(&buf)
	case compress.XZ:
		w, err = xz.NewWriter(&buf)
	default:
		t.Fatalf("no packer for %v", c)
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func digestOf(data []byte) v1.Hash {
	sum := sha256.Sum256(data)
	return v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(sum[:])}
}

// testImage is an image in all its parts, to be published, or spoiled first.
type testImage struct {
	manifest v1.Manifest
	config   v1.ConfigFile
	blobs    [][]byte // of the layers
	tars     [][]byte
}

// makeImage builds an image of layers, each packed.
func makeImage(t testing.TB, c compress.Format, tars ...[]byte) *testImage {
	t.Helper()
	img := &testImage{tars: tars}
	img.manifest = v1.Manifest{SchemaVersion: 2, MediaType: types.OCIManifestSchema1}
	img.config = v1.ConfigFile{OS: "linux", Architecture: hostArch(), RootFS: v1.RootFS{Type: "layers"}}
	img.config.Config = v1.Config{Cmd: []string{"/bin/hello"}, Env: []string{"A=1"}, Labels: map[string]string{"l": "m"}}
	for _, data := range tars {
		blob := pack(t, c, data)
		img.blobs = append(img.blobs, blob)
		img.manifest.Layers = append(img.manifest.Layers, descriptorOf(blob, mediaType(c)))
		img.config.RootFS.DiffIDs = append(img.config.RootFS.DiffIDs, digestOf(data))
	}
	return img
}

// files returns manifest and configuration as they are published.
func (img *testImage) files(t testing.TB) (manifest, config []byte) {
	t.Helper()
	config = toJSON(t, img.config)
	img.manifest.Config = descriptorOf(config, types.OCIConfigJSON)
	return toJSON(t, img.manifest), config
}

func toJSON(t testing.TB, v any) []byte {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// layoutEntries are the files of an OCI layout with these images, all under the names given, one each.
func layoutEntries(t testing.TB, names []string, images ...*testImage) []entry {
	t.Helper()
	index := v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex}
	entries := []entry{{name: "blobs/"}, {name: "blobs/sha256/"}}
	add := func(data []byte) {
		entries = append(entries, entry{name: blobName(digestOf(data)), data: string(data)})
	}
	for i, img := range images {
		manifest, config := img.files(t)
		desc := descriptorOf(manifest, img.manifest.MediaType)
		desc.Annotations = map[string]string{nameAnnotation: names[i]}
		index.Manifests = append(index.Manifests, desc)
		for _, data := range slices.Concat([][]byte{manifest, config}, img.blobs) {
			add(data)
		}
	}
	return append(entries, entry{name: "oci-layout", data: layoutMarker}, entry{name: "index.json", data: string(toJSON(t, index))})
}

// dockerEntries are the files that docker save writes, in its old form.
func dockerEntries(t testing.TB, tag string, img *testImage) []entry {
	t.Helper()
	_, config := img.files(t)
	saved := dockerSave{Config: digestOf(config).Hex + ".json", RepoTags: []string{tag}}
	var entries []entry
	for i, blob := range img.blobs {
		id := digestOf([]byte{byte(i)}).Hex
		entries = append(entries, entry{name: id + "/"}, entry{name: id + "/VERSION", data: "1.0"}, entry{name: id + "/layer.tar", data: string(blob)})
		saved.Layers = append(saved.Layers, id+"/layer.tar")
	}
	return append(entries, entry{name: saved.Config, data: string(config)}, entry{name: "manifest.json", data: string(toJSON(t, []dockerSave{saved}))})
}

// newStore returns an empty store. When the test ends nothing may be left of what writers wrote.
func newStore(t testing.TB) *Store {
	t.Helper()
	s, err := Open(filepath.Join(t.TempDir(), "images"))
	if err != nil {
		t.Fatal(err)
	}
	s.hasty, s.pause = true, time.Microsecond
	t.Cleanup(func() {
		left, err := os.ReadDir(s.path("tmp"))
		if err != nil || len(left) > 0 {
			t.Errorf("tmp holds %v (%v) at the end", left, err)
		}
	})
	return s
}

// checkLayers compares an image's files with what package disk makes of the tars, one slice of tars for each file.
func checkLayers(t testing.TB, image *Image, files ...[][]byte) {
	t.Helper()
	if len(image.Layers) != len(files) {
		t.Fatalf("%d layer files, want %d", len(image.Layers), len(files))
	}
	for i, tars := range files {
		want := erofsOf(t, tars)
		got, err := os.ReadFile(image.Layers[i].Path)
		if err != nil {
			t.Error(err)
		} else if !bytes.Equal(got, want) {
			t.Errorf("layer file %d: %d bytes that differ from the %d expected", i, len(got), len(want))
		}
	}
}

func erofsOf(t testing.TB, tars [][]byte) []byte {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "layer"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w := disk.NewLayerWriter(f, disk.LayerOptions{Base: len(tars) > 1})
	for _, data := range tars {
		if err := w.AddTar(bytes.NewReader(data)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := w.Close(); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(f.Name())
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// single makes of tars what checkLayers takes for layers that have a file each.
func single(tars [][]byte) [][][]byte {
	var files [][][]byte
	for _, data := range tars {
		files = append(files, [][]byte{data})
	}
	return files
}

// tree lists all files below a folder.
func tree(t testing.TB, dir string) []string {
	t.Helper()
	var names []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			names = append(names, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}
