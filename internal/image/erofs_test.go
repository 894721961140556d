package image

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/matchlock/matchlock/internal/compress"
)

// erofsFiles are layers as they come with a snapshot, with a mode.
func erofsFiles(t testing.TB, mode os.FileMode, tars ...[]byte) (paths []string) {
	t.Helper()
	for _, data := range tars {
		path := filepath.Join(t.TempDir(), "lower")
		if err := os.WriteFile(path, erofsOf(t, [][]byte{data}), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		paths = append(paths, path)
	}
	return paths
}

func TestImportLayers(t *testing.T) {
	s := newStore(t)
	tars := layerTars(t, 3)
	config := Config{
		Entrypoint: []string{"/bin/sh"}, Cmd: []string{"-c", "x"}, Env: []string{"A=1"}, User: "nobody", WorkingDir: "/srv", StopSignal: "INT",
		Labels: map[string]string{"l": "m"}, ExposedPorts: []string{"53/udp", "80/tcp"}, Volumes: []string{"/data"},
		OS: "linux", Architecture: "amd64", Variant: "v3", Author: "me", Created: time.Date(2026, 2, 3, 4, 5, 6, 0, time.UTC),
	}
	paths := erofsFiles(t, 0o400, tars...)
	image, err := s.ImportLayers(t.Context(), config, paths, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer image.Release()
	checkLayers(t, image, single(tars)...)
	if diff := cmp.Diff(config, image.Config); diff != "" {
		t.Errorf("configuration (-want +got):\n%s", diff)
	}
	if image.Name != "" || len(names(t, s)) != 0 {
		t.Errorf("it has a name: %q, the store %q", image.Name, names(t, s))
	}
	// Whatever a file says, it stands for its own content alone.
	if left := tree(t, s.path("layers")); len(left) != 0 {
		t.Errorf("layers/ has %q", left)
	}
	for i, layer := range image.Layers {
		if digest := digestOf(erofsOf(t, tars[i:i+1])); layer.DiffID != digest.String() || layer.Path != s.blobPath(digest) || layer.FSType != "erofs" {
			t.Errorf("layer %d is %+v", i, layer)
		}
		if kept, err := os.Stat(layer.Path); err != nil {
			t.Error(err)
		} else if came, err := os.Stat(paths[i]); err != nil || !os.SameFile(kept, came) {
			t.Errorf("layer %d was copied (%v)", i, err)
		}
	}

	// A second time nothing is written; another configuration is another image of the same files.
	config.Cmd = nil
	other, err := s.ImportLayers(t.Context(), config, erofsFiles(t, 0o600, tars...), 0)
	if err != nil {
		t.Fatal(err)
	}
	if other.Digest == image.Digest || !slices.Equal(other.Layers, image.Layers) {
		t.Errorf("another configuration: %s with %v, and %s with %v", other.Digest, other.Layers, image.Digest, image.Layers)
	}
	if came, err := os.Stat(paths[0]); err != nil {
		t.Error(err)
	} else if kept, err := os.Stat(other.Layers[0].Path); err != nil || !os.SameFile(kept, came) {
		t.Errorf("a layer was written again (%v)", err)
	}
	if err := s.Save(t.Context(), []string{image.Digest}, new(bytes.Buffer)); err == nil || !strings.Contains(err.Error(), "came with a snapshot") {
		t.Errorf("Save: %v", err)
	}

	// It stays while somebody uses it or says that it is needed, and no longer.
	other.Release()
	prune := func(needs Needs, want int) {
		t.Helper()
		if removed, err := s.Prune(t.Context(), PruneOptions{All: true, Needs: needs}); err != nil || removed.Files != want {
			t.Errorf("Prune took %+v (%v), want %d files", removed, err, want)
		}
	}
	prune(Needs{}, 2) // the other's manifest and configuration
	image.Release()
	prune(Needs{Snapshots: map[string]string{image.Digest: "base"}}, 0)
	again, err := s.Lookup(image.Digest)
	if err != nil {
		t.Fatal(err)
	}
	checkLayers(t, again, single(tars)...)
	again.Release()
	prune(Needs{}, 5)
	if _, err := os.Stat(paths[0]); err != nil {
		t.Errorf("the file that came is gone: %v", err)
	}
}

// TestImportLayersCopies what may be written to.
func TestImportLayersCopies(t *testing.T) {
	s := newStore(t)
	paths := erofsFiles(t, 0o600, rootTar(t))
	image, err := s.ImportLayers(t.Context(), Config{OS: "linux"}, paths, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer image.Release()
	if err := os.Truncate(paths[0], 0); err != nil {
		t.Fatal(err)
	}
	checkLayers(t, image, [][]byte{rootTar(t)})
}

func TestImportLayersRefuses(t *testing.T) {
	s := newStore(t)
	file := func(content string) []string {
		path := filepath.Join(t.TempDir(), "lower")
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return []string{path}
	}
	good := erofsFiles(t, 0o400, rootTar(t))
	whole, err := os.ReadFile(good[0])
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		paths    []string
		config   Config
		maxBytes int64
		want     string
	}{
		"none":         {nil, Config{}, 0, "image of 0 layers"},
		"many":         {slices.Repeat(good, MaxLayers+1), Config{}, 0, "image of 9 layers"},
		"empty":        {file(""), Config{}, 0, "layer 0: not an EROFS file"},
		"zeros":        {file(strings.Repeat("\x00", 4096)), Config{}, 0, "layer 0: not an EROFS file"},
		"ragged":       {file(string(whole[:len(whole)-1])), Config{}, 0, "layer 0: not an EROFS file"},
		"folder":       {[]string{good[0], t.TempDir()}, Config{}, 0, "layer 1: not an EROFS file"},
		"not there":    {[]string{"/nosuch"}, Config{}, 0, "layer 0: open /nosuch"},
		"large":        {append(good, good...), Config{}, int64(len(whole)) * 3 / 2, "layer 1: image too large"},
		"NUL":          {good, Config{Env: []string{"A=\x00"}}, 0, "config: NUL"},
		"large config": {good, Config{User: strings.Repeat("x", maxConfigBytes)}, 0, "config: "},
	} {
		_, err := s.ImportLayers(t.Context(), test.config, test.paths, test.maxBytes)
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q", name, err, test.want)
		}
		if name == "large" && !errors.Is(err, ErrTooLarge) {
			t.Errorf("%v is no ErrTooLarge", err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.ImportLayers(ctx, Config{}, good, 0); !errors.Is(err, context.Canceled) {
		t.Errorf("after the end: %v", err)
	}
	if left := tree(t, s.path("blobs")); len(left) != 0 {
		t.Errorf("blobs/ has %q", left)
	}
}

// TestEROFSFromElsewhere: no registry and no archive brings such layers.
func TestEROFSFromElsewhere(t *testing.T) {
	s, b := newStore(t), serve(t)
	image, err := s.ImportLayers(t.Context(), Config{OS: "linux", Architecture: hostArch()}, erofsFiles(t, 0o400, rootTar(t)), 0)
	if err != nil {
		t.Fatal(err)
	}
	defer image.Release()
	img := makeImage(t, compress.Plain, erofsOf(t, [][]byte{rootTar(t)}))
	img.manifest.Layers[0].MediaType = erofsLayer
	const want = "is no file system layer"
	if _, err := s.Pull(t.Context(), b.publish(t, "x", img), PullOptions{}); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("pulled: %v", err)
	}
	layout := makeTar(t, layoutEntries(t, []string{"x"}, img)...)
	if _, err := s.Import(t.Context(), "x", bytes.NewReader(layout), ImportOptions{}); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("imported: %v", err)
	}
	// The same bytes are a tar as well, an empty one. What the store has does not stand for what that unpacks to.
	img.manifest.Layers[0].MediaType = mediaType(compress.Plain)
	pulled := mustPull(t, s, b.publish(t, "y", img), PullOptions{})
	checkLayers(t, pulled, [][]byte{make([]byte, 1024)})
	checkLayers(t, image, [][]byte{rootTar(t)})
}
