package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/matchlock/matchlock/internal/compress"
	"go.uber.org/goleak"
)

func TestOpen(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "images")
	if _, err := Open(dir); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("mode %v (%v), want 0700", info.Mode(), err)
	}
	if _, err := Open(dir); err != nil {
		t.Errorf("again: %v", err)
	}
	if err := os.Chmod(dir, 0o722); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir); err == nil || !strings.Contains(err.Error(), "may be written by others") {
		t.Errorf("a folder others may write to: %v", err)
	}
	if os.Geteuid() == 0 { // only root can give a folder away
		if err := errors.Join(os.Chmod(dir, 0o700), os.Chown(dir, 1234, 0)); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(dir); err == nil || !strings.Contains(err.Error(), "belongs to user 1234") {
			t.Errorf("another user's folder: %v", err)
		}
	}
}

func mustImport(t testing.TB, s *Store, name string, data []byte) *Image {
	t.Helper()
	image, err := s.Import(t.Context(), name, bytes.NewReader(data), ImportOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { image.Release() })
	return image
}

func names(t testing.TB, s *Store) []string {
	t.Helper()
	list, err := s.List()
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, sum := range list {
		if sum.Problem != "" {
			t.Errorf("%s: %s", sum.Name, sum.Problem)
		}
		out = append(out, sum.Name)
	}
	return out
}

// TestLayout has another tool read the store.
func TestLayout(t *testing.T) {
	s := newStore(t)
	image := mustImport(t, s, "box", rootTar(t))
	index, err := layout.ImageIndexFromPath(s.dir)
	if err != nil {
		t.Fatal(err)
	}
	digest, err := v1.NewHash(image.Digest)
	if err != nil {
		t.Fatal(err)
	}
	read, err := index.Image(digest)
	if err != nil {
		t.Fatal(err)
	}
	layers, err := read.Layers()
	if err != nil || len(layers) != 1 {
		t.Fatalf("%d layers (%v), want 1", len(layers), err)
	}
	r, err := layers[0].Uncompressed()
	if err != nil {
		t.Fatal(err)
	}
	if data, err := io.ReadAll(r); err != nil || !bytes.Equal(data, rootTar(t)) {
		t.Errorf("the layer read by another tool differs (%v)", err)
	}
}

func TestNamesComeAndGo(t *testing.T) {
	s := newStore(t)
	first := mustImport(t, s, "box", rootTar(t))
	if err := s.Tag("box", "docker.io/library/tower:2"); err != nil {
		t.Fatal(err)
	}
	if err := s.Tag("box", "tower"); err != nil {
		t.Fatal(err)
	}
	if got, want := names(t, s), []string{"box", "docker.io/library/tower:2", "tower"}; !slices.Equal(got, want) {
		t.Errorf("names %q, want %q", got, want)
	}
	for ref, want := range map[string]string{"tower": "tower", "tower:2": "docker.io/library/tower:2", "box": "box"} {
		image, err := s.Lookup(ref)
		if err != nil {
			t.Fatal(err)
		}
		if image.Name != want || image.Digest != first.Digest {
			t.Errorf("Lookup(%q) found %q %s, want %q", ref, image.Name, image.Digest, want)
		}
		image.Release()
	}
	if err := s.Tag("nothing", "x"); !errors.Is(err, ErrNotFound) {
		t.Errorf("tagging what is not there: %v", err)
	}
	for _, bad := range []string{"", "a b", "a\n", "-x", "sha256:x", strings.Repeat("a", 256), "\xff"} {
		if err := s.Tag("box", bad); err == nil {
			t.Errorf("Tag accepted %q", bad)
		}
	}

	// A name that moves on takes nothing from who uses the image it was of.
	second := mustImport(t, s, "box", layerTars(t, 1)[0])
	if second.Digest == first.Digest {
		t.Fatal("two images with one digest")
	}
	for _, name := range []string{"tower", "tower:2"} {
		_, err := s.Remove(name, Needs{})
		if wantErr := name == "tower:2"; errors.Is(err, ErrInUse) != wantErr || err != nil != wantErr {
			t.Errorf("Remove(%q): %v", name, err)
		}
	}
	first.Release()
	if removed, err := s.Remove("tower:2", Needs{}); err != nil || removed.Files != 4 || removed.Bytes == 0 {
		t.Errorf("Remove of an image not used: %+v, %v, want 4 files: manifest, configuration, blob and layer", removed, err)
	}
	if got := names(t, s); !slices.Equal(got, []string{"box"}) {
		t.Errorf("names %q, want box alone", got)
	}
	checkLayers(t, second, [][]byte{layerTars(t, 1)[0]})
}

func TestPrune(t *testing.T) {
	s := newStore(t)
	old := mustImport(t, s, "box", rootTar(t))
	mustImport(t, s, "box", layerTars(t, 1)[0]).Release()

	prune := func(o PruneOptions) Removed {
		t.Helper()
		removed, err := s.Prune(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		return removed
	}
	if got := prune(PruneOptions{}); got.Files != 0 {
		t.Errorf("took %d files of an image that is leased", got.Files)
	}
	again, err := s.Lookup(old.Digest) // by digest: it has no name any more
	if err != nil {
		t.Fatal(err)
	}
	old.Release()
	again.Release()
	if got := prune(PruneOptions{Needs: Needs{Sandboxes: []string{old.Digest}}}); got.Files != 0 {
		t.Errorf("took %d files of an image to be kept", got.Files)
	}
	if got := prune(PruneOptions{}); got.Files != 4 {
		t.Errorf("took %d files, want the 4 of the image without name", got.Files)
	}
	if _, err := s.Lookup(old.Digest); !errors.Is(err, ErrNotFound) {
		t.Errorf("Lookup of what was pruned: %v", err)
	}

	held, err := s.Lookup("box")
	if err != nil {
		t.Fatal(err)
	}
	if got := prune(PruneOptions{All: true}); got.Files != 0 || len(got.Names) != 0 {
		t.Errorf("took %+v of an image in use", got)
	}
	held.Release()
	if got := prune(PruneOptions{All: true}); got.Files != 4 || !slices.Equal(got.Names, []string{"box"}) {
		t.Errorf("took %+v, want all", got)
	}
	for _, path := range tree(t, s.dir) {
		if name := filepath.Base(path); name != "lock" && name != "oci-layout" && name != "index.json" {
			t.Errorf("%s is left of nothing", path)
		}
	}
}

// TestNeeded has a snapshot need an image, and a sandbox, by its digest.
func TestNeeded(t *testing.T) {
	s := newStore(t)
	image := mustImport(t, s, "box", rootTar(t))
	image.Release()
	var snapshot *SnapshotError
	for name, test := range map[string]struct {
		needs Needs
		want  string
	}{
		"sandbox":  {Needs{Sandboxes: []string{image.Digest}}, `image "box": in use by a sandbox`},
		"snapshot": {Needs{Snapshots: map[string]string{image.Digest: "base"}}, `image "box": needed by snapshot "base"`},
		"both":     {Needs{[]string{image.Digest}, map[string]string{image.Digest: "base"}}, `image "box": in use by a sandbox`},
	} {
		_, err := s.Remove("box", test.needs)
		if !errors.Is(err, ErrInUse) || err.Error() != test.want || errors.As(err, &snapshot) != (name == "snapshot") {
			t.Errorf("%s: Remove: %v", name, err)
		}
		if removed, err := s.Prune(t.Context(), PruneOptions{All: true, Needs: test.needs}); err != nil || removed.Files != 0 || len(removed.Names) != 0 {
			t.Errorf("%s: Prune took %+v, %v", name, removed, err)
		}
	}
	if got, want := snapshot.Hint(), "`matchlock snapshot rm base` removes the snapshot"; got != want {
		t.Errorf("the hint is %q, want %q", got, want)
	}
	// Its name may go to another image; it does not go itself.
	mustImport(t, s, "box", layerTars(t, 1)[0]).Release()
	needs := Needs{Snapshots: map[string]string{image.Digest: "base"}}
	if _, err := s.Prune(t.Context(), PruneOptions{All: true, Needs: needs}); err != nil {
		t.Fatal(err)
	}
	again, err := s.Lookup(image.Digest)
	if err != nil {
		t.Fatal(err)
	}
	checkLayers(t, again, [][]byte{rootTar(t)})
	again.Release()
}

// TestPruneSweeps: it spares what is being written, and takes what a dead writer left.
func TestPruneSweeps(t *testing.T) {
	s := newStore(t)
	alive, err := s.begin()
	if err != nil {
		t.Fatal(err)
	}
	defer alive.end()
	dead := s.path("tmp", "dead")
	if err := errors.Join(os.Mkdir(dead, 0o700), os.WriteFile(filepath.Join(dead, "blob"), make([]byte, 1000), 0o600)); err != nil {
		t.Fatal(err)
	}
	removed, err := s.Prune(t.Context(), PruneOptions{})
	if err != nil || removed.Bytes != 1000 {
		t.Errorf("removed %+v (%v), want 1000 bytes", removed, err)
	}
	if !exists(alive.dir) || exists(dead) {
		t.Errorf("the living writer's folder exists: %v, the dead one's: %v", exists(alive.dir), exists(dead))
	}
}

// TestDamaged has files disappear from the store by other hands.
func TestDamaged(t *testing.T) {
	s := newStore(t)
	image := mustImport(t, s, "box", rootTar(t))
	mustImport(t, s, "other", layerTars(t, 1)[0])
	image.Release()
	if err := os.Remove(image.Layers[0].Path); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Lookup("box"); err == nil || errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), "missing") {
		t.Errorf("Lookup: %v, want an error about what is missing", err)
	}
	list, err := s.List()
	if err != nil || len(list) != 2 || list[0].Problem == "" || list[1].Problem != "" {
		t.Errorf("List: %+v, %v, want a problem with the first of two", list, err)
	}
	if err := os.Remove(s.path("blobs", "sha256", strings.TrimPrefix(image.Digest, "sha256:"))); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Prune(t.Context(), PruneOptions{}); err == nil || !strings.Contains(err.Error(), `"box"`) {
		t.Errorf("Prune: %v, want an error that names the damaged image", err)
	}
	if _, err := s.Remove("box", Needs{}); err != nil {
		t.Errorf("Remove: %v", err)
	}
	if _, err := s.Prune(t.Context(), PruneOptions{}); err != nil {
		t.Errorf("Prune without it: %v", err)
	}
	if got := names(t, s); !slices.Equal(got, []string{"other"}) {
		t.Errorf("names %q, want the other alone", got)
	}
}

func TestSave(t *testing.T) {
	s := newStore(t)
	one, two := mustImport(t, s, "one", rootTar(t)), mustImport(t, s, "docker.io/library/two:2", makeTar(t, layoutEntries(t, []string{"x"}, makeImage(t, compress.Gzip, layerTars(t, 12)...))...))
	var tar bytes.Buffer
	if err := s.Save(t.Context(), []string{"one", "two:2"}, &tar); err != nil {
		t.Fatal(err)
	}
	other := newStore(t)
	for name, want := range map[string]*Image{"one": one, "two:2": two} {
		got, err := other.Import(t.Context(), name, bytes.NewReader(tar.Bytes()), ImportOptions{})
		if err != nil {
			t.Fatal(err)
		}
		defer got.Release()
		if got.Digest != want.Digest || len(got.Layers) != len(want.Layers) {
			t.Errorf("%s came back as %s with %d layers, was %s with %d", name, got.Digest, len(got.Layers), want.Digest, len(want.Layers))
		}
	}
	_, err := other.Import(t.Context(), "three", bytes.NewReader(tar.Bytes()), ImportOptions{})
	if err == nil || !strings.Contains(err.Error(), "several images") {
		t.Errorf("an archive of two for a third name: %v", err)
	}

	// As docker load reads it: by manifest.json alone.
	entries, _, err := scan(bytes.NewReader(tar.Bytes()))
	if err != nil {
		t.Fatal(err)
	}
	if got := entries["manifest.json"]; got.size == 0 {
		t.Error("no manifest.json in what was saved")
	}

	blob := s.blobPath(v1.Hash{Algorithm: "sha256", Hex: strings.TrimSuffix(filepath.Base(one.Layers[0].Path), ".erofs")})
	if err := os.WriteFile(blob, bytes.Repeat([]byte{1}, len(rootTar(t))), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.Save(t.Context(), []string{"one"}, io.Discard); err == nil || !strings.Contains(err.Error(), "damaged") {
		t.Errorf("saving a damaged image: %v", err)
	}
}

// BenchmarkLookup looks up an image of a usual size among a hundred names.
func BenchmarkLookup(b *testing.B) {
	s := newStore(b)
	mustImport(b, s, "box", makeTar(b, layoutEntries(b, []string{"x"}, makeImage(b, compress.Gzip, layerTars(b, 20)...))...))
	for i := range 100 {
		if err := s.Tag("box", fmt.Sprintf("docker.io/library/box:%d", i)); err != nil {
			b.Fatal(err)
		}
	}
	for b.Loop() {
		image, err := s.Lookup("box:50")
		if err != nil {
			b.Fatal(err)
		}
		image.Release()
	}
}

// hammerEnv tells a copy of the test binary to pull, look up and prune in the store it names.
const hammerEnv = "MATCHLOCK_IMAGE_TEST_HAMMER"

func TestMain(m *testing.M) {
	if args := os.Getenv(hammerEnv); args != "" {
		dir, refs, _ := strings.Cut(args, " ")
		s, err := Open(dir)
		if err == nil {
			s.hasty = true
			err = hammer(s, strings.Fields(refs), 15)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

// hammer does to a store what many users of it might, and checks every image that it gets.
func hammer(s *Store, refs []string, rounds int) error {
	for range rounds {
		ref := refs[rand.IntN(len(refs))]
		ctx := context.Background()
		image, err := s.Lookup(ref)
		if errors.Is(err, ErrNotFound) {
			image, err = s.Pull(ctx, ref, PullOptions{})
		}
		if err != nil {
			return err
		}
		if _, err := s.Prune(ctx, PruneOptions{All: rand.IntN(2) == 0}); err != nil {
			return err
		}
		if _, err := s.Remove(ref, Needs{}); err != nil && !errors.Is(err, ErrInUse) && !errors.Is(err, ErrNotFound) {
			return err
		}
		for _, layer := range image.Layers {
			data, err := os.ReadFile(layer.Path)
			if err != nil {
				return fmt.Errorf("a leased layer: %w", err)
			}
			if len(data) == 0 || len(data)%4096 != 0 {
				return fmt.Errorf("%s has %d bytes", layer.Path, len(data))
			}
		}
		if _, err := s.List(); err != nil {
			return err
		}
		image.Release()
	}
	return nil
}

// TestTogether lets goroutines and a second process pull, prune, remove and use the same images at once.
func TestTogether(t *testing.T) {
	b, s := serve(t), newStore(t)
	tars := layerTars(t, 12)
	refs := []string{
		b.publish(t, "base", makeImage(t, compress.Gzip, tars[:3]...)),
		b.publish(t, "some", makeImage(t, compress.Gzip, tars[:5]...)),
		b.publish(t, "many", makeImage(t, compress.Gzip, tars...)),
		b.publish(t, "same", makeImage(t, compress.Zstd, tars[:3]...)), // the same layers, packed otherwise
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	other := exec.Command(self)
	other.Env = append(os.Environ(), hammerEnv+"="+s.dir+" "+strings.Join(refs, " "))
	other.Stderr = os.Stderr
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	var group sync.WaitGroup
	for range 3 {
		group.Go(func() {
			if err := hammer(s, refs, 10); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	if err := other.Wait(); err != nil {
		t.Errorf("the other process: %v", err)
	}
	// After it all each image is what it should be.
	image := mustPull(t, s, refs[2], PullOptions{})
	checkLayers(t, image, append([][][]byte{tars[:5]}, single(tars[5:])...)...)
}

// TestKilled kills a process in the middle of an import; the next writer finds nothing of it.
func TestKilled(t *testing.T) {
	s := newStore(t)
	b := serve(t)
	img := makeImage(t, compress.Gzip, rootTar(t))
	started := make(chan struct{})
	b.blob = func(_ http.ResponseWriter, r *http.Request, data []byte) bool {
		if digestOf(data) != digestOf(img.blobs[0]) {
			return false
		}
		close(started) // and never an answer
		<-r.Context().Done()
		return true
	}
	ref := b.publish(t, "x", img)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	child := exec.Command(self)
	child.Env = append(os.Environ(), hammerEnv+"="+s.dir+" "+ref)
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-started:
	case <-time.After(30 * time.Second):
		t.Error("the child does not pull")
	}
	if err := child.Process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	child.Wait() // killed, as it should be
	if left, err := os.ReadDir(s.path("tmp")); err != nil || len(left) != 1 {
		t.Fatalf("tmp holds %v (%v), want what the killed child left", left, err)
	}
	mustImport(t, s, "box", rootTar(t))
	if left, err := os.ReadDir(s.path("tmp")); err != nil || len(left) != 0 {
		t.Errorf("tmp holds %v (%v) after the next writer", left, err)
	}
}
