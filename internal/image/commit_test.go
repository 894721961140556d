package image

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/matchlock/matchlock/internal/compress"
)

// layerOf has a tar opened.
func layerOf(tar []byte) func(context.Context) (io.ReadCloser, error) {
	return func(context.Context) (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(tar)), nil }
}

// importImage imports what docker save writes of these layers.
func importImage(t *testing.T, s *Store, name string, layers ...[]byte) *Image {
	t.Helper()
	image, err := s.Import(t.Context(), name, bytes.NewReader(makeTar(t, dockerEntries(t, name, makeImage(t, compress.Gzip, layers...))...)), ImportOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { image.Release() })
	return image
}

func TestCommit(t *testing.T) {
	s := newStore(t)
	base := rootTar(t)
	from := importImage(t, s, "box:1", base)
	top := makeTar(t, entry{name: "bin/"}, entry{name: "bin/.wh.hello"}, entry{name: "bin/new", data: "new"})
	made, err := s.Commit(t.Context(), "box:2", from.Digest, layerOf(top), CommitOptions{
		Changes: []string{`CMD ["/bin/new"]`, "ENV B=2"}, Author: "me", Message: "with new", BaseName: "docker.io/library/box:1",
	})
	if err != nil {
		t.Fatal(err)
	}
	defer made.Release()
	checkLayers(t, made, single([][]byte{base, top})...)
	if made.Layers[0] != from.Layers[0] {
		t.Errorf("the base's layer is %v, of the base itself %v", made.Layers[0], from.Layers[0])
	}
	want := from.Config
	want.Cmd, want.Env, want.Author = []string{"/bin/new"}, append(want.Env, "B=2"), "me"
	if diff := cmp.Diff(want, made.Config, cmpopts.IgnoreFields(Config{}, "Created")); diff != "" {
		t.Errorf("configuration (-want +got):\n%s", diff)
	}
	if !made.Config.Created.After(from.Config.Created) {
		t.Errorf("created at %v, the base at %v", made.Config.Created, from.Config.Created)
	}

	// Upon that, another one; then nothing new.
	third := makeTar(t, entry{name: "etc/"}, entry{name: "etc/third", data: "3"})
	again, err := s.Commit(t.Context(), "box:3", made.Digest, layerOf(third), CommitOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer again.Release()
	checkLayers(t, again, single([][]byte{base, top, third})...)
	same, err := s.Commit(t.Context(), "box:4", again.Digest, layerOf(makeTar(t)), CommitOptions{Message: "nothing"})
	if err != nil {
		t.Fatal(err)
	}
	defer same.Release()
	checkLayers(t, same, single([][]byte{base, top, third})...)
	got, err := s.Lineage(same)
	if err != nil {
		t.Fatal(err)
	}
	wantLineage := Lineage{&Base{Digest: again.Digest}, []Step{
		{Comment: "not told"},
		{CreatedBy: "matchlock commit", Author: "me", Comment: "with new"},
		{CreatedBy: "matchlock commit"},
		{CreatedBy: "matchlock commit", Comment: "nothing", EmptyLayer: true},
	}}
	if diff := cmp.Diff(wantLineage, got, cmpopts.IgnoreFields(Step{}, "Created")); diff != "" {
		t.Errorf("lineage (-want +got):\n%s", diff)
	}

	// It is an image like others: saved and read again, with layers of OCI's types.
	var saved bytes.Buffer
	if err := s.Save(t.Context(), []string{"box:2"}, &saved); err != nil {
		t.Fatal(err)
	}
	read, err := newStore(t).Import(t.Context(), "box:2", &saved, ImportOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer read.Release()
	if read.Digest != made.Digest {
		t.Errorf("read again: %s, not %s", read.Digest, made.Digest)
	}
	digest, _ := v1.NewHash(made.Digest)
	manifest, _, _, err := s.read(digest)
	if err != nil {
		t.Fatal(err)
	}
	if got := []types.MediaType{manifest.Layers[0].MediaType, manifest.Layers[1].MediaType}; got[0] != types.OCILayer || got[1] != types.OCIUncompressedLayer {
		t.Errorf("layers of types %v", got)
	}
	if manifest.Annotations[baseNameAnnotation] != "docker.io/library/box:1" || manifest.Annotations[baseDigestAnnotation] != from.Digest {
		t.Errorf("annotations %v", manifest.Annotations)
	}
}

// TestCommitMany commits upon as many layers as a machine has room for.
func TestCommitMany(t *testing.T) {
	s := newStore(t)
	layers := [][]byte{rootTar(t)}
	for n := range MaxLayers - 1 {
		layers = append(layers, makeTar(t, entry{name: "d/"}, entry{name: "d/" + strings.Repeat("n", n+1), data: "x"}))
	}
	from := importImage(t, s, "box", layers...)
	top := makeTar(t, entry{name: "d/"}, entry{name: "d/top", data: "top"})
	made, err := s.Commit(t.Context(), "top", from.Digest, layerOf(top), CommitOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer made.Release()
	checkLayers(t, made, append([][][]byte{layers[:2]}, single(append(layers[2:], top))...)...)
}

// TestCommitRefuses has layers as a guest might send them, and bad options, for which none is read.
func TestCommitRefuses(t *testing.T) {
	s := newStore(t)
	from := importImage(t, s, "box", rootTar(t))
	good := makeTar(t, entry{name: "file", data: "x"})
	cut := errors.New("the guest is gone")
	unread := func(context.Context) (io.ReadCloser, error) { return nil, errors.New("the layer was opened") }
	for name, test := range map[string]struct {
		name, base string
		layer      func(context.Context) (io.ReadCloser, error)
		options    CommitOptions
		want       string
	}{
		"no name":          {"", from.Digest, unread, CommitOptions{}, "name"},
		"bad name":         {"sha256:" + strings.Repeat("0", 64), from.Digest, unread, CommitOptions{}, "name"},
		"no such base":     {"new", "sha256:" + strings.Repeat("0", 64), unread, CommitOptions{}, "not found"},
		"bad change":       {"new", from.Digest, unread, CommitOptions{Changes: []string{"RUN x"}}, `change "RUN x": must be CMD`},
		"NUL in a message": {"new", from.Digest, unread, CommitOptions{Message: "\x00"}, "message: want at most"},
		"long author":      {"new", from.Digest, unread, CommitOptions{Author: strings.Repeat("a", 5000)}, "author: want at most"},
		"no layer":         {"new", from.Digest, func(context.Context) (io.ReadCloser, error) { return nil, cut }, CommitOptions{}, "the guest is gone"},
		"broken off": {"new", from.Digest, func(context.Context) (io.ReadCloser, error) {
			return io.NopCloser(io.MultiReader(bytes.NewReader(good[:700]), failing{cut})), nil
		}, CommitOptions{}, "the guest is gone"},
		"cut":             {"new", from.Digest, layerOf(good[:1024]), CommitOptions{}, "unexpected EOF"},
		"leaves the root": {"new", from.Digest, layerOf(makeTar(t, entry{name: "../x"})), CommitOptions{}, "leaves the root"},
		"no tar":          {"new", from.Digest, layerOf(bytes.Repeat([]byte("x"), 4096)), CommitOptions{}, "invalid tar header"},
		"too large":       {"new", from.Digest, layerOf(makeTar(t, entry{name: "x", data: strings.Repeat("x", 9000)})), CommitOptions{MaxBytes: 8000}, "too large"},
	} {
		before := tree(t, s.dir)
		if image, err := s.Commit(t.Context(), test.name, test.base, test.layer, test.options); err == nil {
			image.Release()
			t.Errorf("%s: no error", name)
		} else if !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q", name, err, test.want)
		}
		if diff := cmp.Diff(before, tree(t, s.dir)); diff != "" {
			t.Errorf("%s: the store is not what it was (-before +after):\n%s", name, diff)
		}
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }
