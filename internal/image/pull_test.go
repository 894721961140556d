package image

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	ggcr "github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/matchlock/matchlock/internal/compress"
)

// blobServer is a registry that serves what it is given, true or not.
type blobServer struct {
	host      string
	mu        sync.Mutex
	manifests map[string][]byte // by tag or digest
	blobs     map[string][]byte // by digest
	fetched   []string          // digests of blobs, in order
	// blob, when set, answers a request for a blob itself if it returns true.
	blob func(w http.ResponseWriter, r *http.Request, data []byte) bool
	// auth, when set, is the user name and password asked for.
	auth string
}

func serve(t testing.TB) *blobServer {
	b := &blobServer{manifests: make(map[string][]byte), blobs: make(map[string][]byte)}
	server := httptest.NewServer(b)
	t.Cleanup(server.Close)
	b.host = strings.TrimPrefix(server.URL, "http://")
	return b
}

func (b *blobServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if _, password, _ := r.BasicAuth(); b.auth != "" && b.auth != password {
		w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	if r.URL.Path == "/v2/" {
		return
	}
	dir, id := filepath.Split(r.URL.Path)
	b.mu.Lock()
	data, ok := b.blobs[id]
	if strings.HasSuffix(dir, "/manifests/") {
		data, ok = b.manifests[id]
	} else {
		b.fetched = append(b.fetched, id)
	}
	b.mu.Unlock()
	if !ok {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	if strings.HasSuffix(dir, "/blobs/") && b.blob != nil && b.blob(w, r, data) {
		return
	}
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data))
}

// publish serves an image under a tag and returns its name.
func (b *blobServer) publish(t testing.TB, tag string, img *testImage) string {
	t.Helper()
	manifest, config := img.files(t)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.manifests[tag] = manifest
	b.manifests[digestOf(manifest).String()] = manifest
	for _, data := range append(slices.Clone(img.blobs), config) {
		b.blobs[digestOf(data).String()] = data
	}
	return b.host + "/test/image:" + tag
}

// layerTars makes the tars of n layers, each with a file of its own, one they all write, and a file that the next
// removes.
func layerTars(t testing.TB, n int) [][]byte {
	var tars [][]byte
	for i := range n {
		entries := []entry{{name: "etc/"}, {name: "etc/top", data: fmt.Sprint(i)}, {name: fmt.Sprintf("etc/own-%d", i), data: strings.Repeat("x", 100*i)},
			{name: fmt.Sprintf("etc/brief-%d", i), data: "gone with the next layer"}}
		if i > 0 {
			entries = append(entries, entry{name: fmt.Sprintf("etc/.wh.brief-%d", i-1)})
		}
		tars = append(tars, makeTar(t, entries...))
	}
	return tars
}

func mustPull(t testing.TB, s *Store, ref string, o PullOptions) *Image {
	t.Helper()
	image, err := s.Pull(t.Context(), ref, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { image.Release() })
	return image
}

func TestPullFromRegistry(t *testing.T) {
	server := httptest.NewServer(ggcr.New(ggcr.Logger(log.New(io.Discard, "", 0))))
	defer server.Close()
	ref := strings.TrimPrefix(server.URL, "http://") + "/random:1"
	tag, err := name.NewTag(ref)
	if err != nil {
		t.Fatal(err)
	}
	made, err := random.Image(2000, 5)
	if err != nil {
		t.Fatal(err)
	}
	// What the module makes says nothing of its platform; that is taken for any.
	if err := remote.Write(tag, made); err != nil {
		t.Fatal(err)
	}
	s := newStore(t)
	image := mustPull(t, s, ref, PullOptions{})
	digest, err := made.Digest()
	if err != nil {
		t.Fatal(err)
	}
	if image.Digest != digest.String() || image.PulledDigest != image.Digest || image.Name != ref {
		t.Errorf("pulled %s (%s) as %q, want %s as %q", image.Digest, image.PulledDigest, image.Name, digest, ref)
	}
	var tars [][]byte
	layers, err := made.Layers()
	if err != nil {
		t.Fatal(err)
	}
	for _, layer := range layers {
		r, err := layer.Uncompressed()
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		tars = append(tars, data)
	}
	checkLayers(t, image, single(tars)...)

	// A second pull finds everything, an image by digest as well, even with the registry gone.
	server.Close()
	mustPull(t, s, tag.Context().Digest(digest.String()).String(), PullOptions{})
}

func TestPullIndex(t *testing.T) {
	b, s := serve(t), newStore(t)
	var index v1.IndexManifest
	index.SchemaVersion, index.MediaType = 2, types.OCIImageIndex
	digests := make(map[string]string)
	for i, platform := range []v1.Platform{{OS: "unknown", Architecture: "unknown"}, {OS: "linux", Architecture: "arm64", Variant: "v8"}, {OS: "linux", Architecture: "amd64"}, {OS: "linux", Architecture: "s390x"}} {
		img := makeImage(t, compress.Gzip, layerTars(t, i+1)...)
		img.config.Architecture, img.config.Variant = platform.Architecture, platform.Variant
		b.publish(t, "part", img)
		manifest, _ := img.files(t)
		desc := descriptorOf(manifest, img.manifest.MediaType)
		desc.Platform = &platform
		index.Manifests = append(index.Manifests, desc)
		digests[platform.Architecture] = desc.Digest.String()
	}
	data := toJSON(t, index)
	b.manifests["multi"] = data
	b.manifests[digestOf(data).String()] = data
	ref := b.host + "/test/image:multi"

	for platform, want := range map[string]string{"linux/amd64": "amd64", "linux/arm64": "arm64", "linux/arm64/v8": "arm64", "s390x": "s390x"} {
		image := mustPull(t, s, ref, PullOptions{Platform: platform})
		if image.Digest != digests[want] || image.Config.Architecture != want || image.PulledDigest != digestOf(data).String() {
			t.Errorf("%s: got %s for %s of %s", platform, image.Digest, image.Config.Architecture, image.PulledDigest)
		}
	}
	// The index's digest finds the image that was chosen from it, also under the tag it was pulled by.
	found, err := s.Lookup(b.host + "/test/image@" + digestOf(data).String())
	if err != nil {
		t.Fatal(err)
	}
	defer found.Release()

	_, err = s.Pull(t.Context(), ref, PullOptions{Platform: "linux/riscv64"})
	var wrong *PlatformError
	if !errors.As(err, &wrong) || !slices.Contains(wrong.Have, "linux/amd64") || len(wrong.Have) != 3 {
		t.Errorf("riscv64: %v, want a PlatformError with three platforms", err)
	}
}

func TestPullManyLayers(t *testing.T) {
	b, s := serve(t), newStore(t)
	img := makeImage(t, compress.Gzip, layerTars(t, 60)...)
	image := mustPull(t, s, b.publish(t, "60", img), PullOptions{})
	cut := 60 - (MaxLayers - 1)
	checkLayers(t, image, append([][][]byte{img.tars[:cut]}, single(img.tars[cut:])...)...)
	if n := len(b.fetched); n != 61 {
		t.Errorf("%d blobs fetched, want 61", n)
	}

	// An image on the same base shares the files of it that it can.
	more := makeImage(t, compress.Gzip, append(slices.Clone(img.tars), rootTar(t))...)
	image = mustPull(t, s, b.publish(t, "61", more), PullOptions{})
	checkLayers(t, image, append([][][]byte{more.tars[:cut+1]}, single(more.tars[cut+1:])...)...)
	if n := len(b.fetched); n != 61+2 {
		t.Errorf("%d blobs fetched for one more layer, want 2", n-61)
	}
	// Without names nothing stays.
	image.Release()
	for _, tag := range []string{"60", "61"} {
		if found, err := s.Lookup(b.host + "/test/image:" + tag); err != nil {
			t.Error(err)
		} else {
			found.Release()
		}
	}
}

func TestPullRepeatedAndClingingLayers(t *testing.T) {
	b, s := serve(t), newStore(t)
	base, top := rootTar(t), makeTar(t, entry{name: "etc/"}, entry{name: "etc/x", data: "x"})
	again := makeImage(t, compress.Gzip, base, top, base)
	image := mustPull(t, s, b.publish(t, "again", again), PullOptions{})
	checkLayers(t, image, single([][]byte{top, base})...)

	// A file without its folder must not change the folder's attributes, so it cannot lie on the layer below by itself.
	orphan := makeTar(t, entry{name: "etc/orphan", data: "o"})
	clinging := makeImage(t, compress.Gzip, base, orphan, top)
	image = mustPull(t, s, b.publish(t, "orphan", clinging), PullOptions{})
	checkLayers(t, image, [][]byte{base, orphan}, [][]byte{top})
}

func TestPullRefuses(t *testing.T) {
	sound := func() *testImage { return makeImage(t, compress.Gzip, rootTar(t), layerTars(t, 1)[0]) }
	other := v1.Hash{Algorithm: "sha256", Hex: strings.Repeat("ab", 32)}
	bad := func(e ...entry) func(*testImage) {
		return func(img *testImage) { *img = *makeImage(t, compress.Gzip, rootTar(t), makeTar(t, e...)) }
	}
	tests := []struct {
		name  string
		spoil func(*testImage)
		want  string // part of the error; %1 is the second layer's digest
	}{
		{"corrupted blob", func(img *testImage) { img.blobs[1][len(img.blobs[1])/2] ^= 0x40 }, "layer %1"},
		{"another sound blob", func(img *testImage) {
			img.blobs[1] = pack(t, compress.Gzip, rootTar(t))
			img.manifest.Layers[1].Size = int64(len(img.blobs[1]))
		}, "layer %1: its content is sha256:"},
		{"truncated blob", func(img *testImage) { img.blobs[1] = img.blobs[1][:len(img.blobs[1])-9] }, "layer %1"},
		{"truncated inside", func(img *testImage) { *img = *makeImage(t, compress.Plain, rootTar(t), rootTar(t)[:1540]) }, "layer %1: entry \"./bin/hello\""},
		{"blob with a tail", func(img *testImage) {
			img.blobs[1] = append(img.blobs[1], "tail"...)
			img.manifest.Layers[1] = descriptorOf(img.blobs[1], types.OCILayer)
		}, "layer %1: "},
		{"wrong size", func(img *testImage) { img.manifest.Layers[1].Size-- }, "layer %1"},
		{"wrong diff id", func(img *testImage) { img.config.RootFS.DiffIDs[1] = other }, "layer %1: unpacks to sha256:"},
		{"no tar", func(img *testImage) {
			*img = *makeImage(t, compress.Gzip, rootTar(t), []byte(strings.Repeat("text", 1000)))
		}, "layer %1: "},
		{"layer packed with xz", func(img *testImage) { *img = *makeImage(t, compress.XZ, rootTar(t), rootTar(t)) }, "packed with xz"},
		{"diff id missing", func(img *testImage) { img.config.RootFS.DiffIDs = img.config.RootFS.DiffIDs[:1] }, "1 diff ids for 2 layers"},
		{"diff id of another algorithm", func(img *testImage) {
			img.config.RootFS.DiffIDs[1] = v1.Hash{Algorithm: "sha512", Hex: strings.Repeat("ab", 64)}
		}, "not a sha256 one"},
		{"no layers", func(img *testImage) { img.manifest.Layers = nil }, "0 layers"},
		{"too many layers", func(img *testImage) {
			img.manifest.Layers = slices.Repeat(img.manifest.Layers[:1], maxImageLayers+1)
		}, "513 layers"},
		{"huge config", func(img *testImage) { img.config.Author = strings.Repeat("A", maxConfigBytes) }, "at most 8388608 are read"},
		{"layer to be fetched elsewhere", func(img *testImage) { img.manifest.Layers[1].URLs = []string{"http://127.0.0.1/"} }, "from elsewhere"},
		{"foreign layer", func(img *testImage) { img.manifest.Layers[1].MediaType = types.DockerForeignLayer }, "may be distributed"},
		{"no image", func(img *testImage) {
			img.manifest.Layers[1].MediaType = "application/vnd.cncf.helm.chart.content.v1.tar+gzip"
		}, "no file system layer"},
		{"negative size", func(img *testImage) { img.manifest.Layers[1].Size = -5 }, "size -5"},
		{"digest of another algorithm", func(img *testImage) {
			img.manifest.Layers[1].Digest = v1.Hash{Algorithm: "sha512", Hex: strings.Repeat("ab", 64)}
		}, "not a sha256 one"},
		{"schema 1", func(img *testImage) { img.manifest.SchemaVersion = 1 }, "schema 1"},
		{"wrong platform", func(img *testImage) { img.config.Architecture = "mips" }, "it offers linux/mips"},
		{"other system", func(img *testImage) { img.config.OS = "windows" }, "it offers windows/"},
		{"NUL in the environment", func(img *testImage) { img.config.Config.Env = []string{"A=\x00"} }, "NUL"},

		{"name above the root", bad(entry{name: "../../escape", data: "x"}), `layer %1: entry "../../escape"`},
		{"name above the root, later", bad(entry{name: "a/../../escape", data: "x"}), `layer %1: entry "a/../../escape"`},
		{"hard link above the root", bad(entry{name: "a", typ: '1', link: "../../etc/passwd"}), `layer %1: entry "a"`},
		{"hard link to nothing", bad(entry{name: "a", typ: '1', link: "b"}), `layer %1: entry "a"`},
		{"long component", bad(entry{name: strings.Repeat("n", 256)}), `layer %1: entry "nnn`},
		{"long path", bad(entry{name: strings.Repeat("n/", 2049)}), `layer %1: entry "n/n`},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			b, s := serve(t), newStore(t)
			img := sound()
			test.spoil(img)
			ref := b.publish(t, "bad", img)
			for i, layer := range img.manifest.Layers[:min(2, len(img.manifest.Layers))] {
				b.blobs[layer.Digest.String()] = img.blobs[i] // whatever its own digest
			}
			if reg := img.manifest.Layers; len(reg) == 2 {
				test.want = strings.ReplaceAll(test.want, "%1", reg[1].Digest.String())
			}
			before := tree(t, filepath.Dir(s.dir))
			image, err := s.Pull(t.Context(), ref, PullOptions{})
			if err == nil {
				image.Release()
				t.Fatal("pulled")
			}
			if !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %q, want %q in it", err, test.want)
			}
			if _, err := s.Lookup(ref); !errors.Is(err, ErrNotFound) {
				t.Errorf("Lookup afterwards: %v", err)
			}
			if _, err := s.Prune(t.Context(), PruneOptions{}); err != nil {
				t.Error(err)
			}
			after := tree(t, filepath.Dir(s.dir))
			if !slices.Equal(withoutLock(s, before), withoutLock(s, after)) {
				t.Errorf("left:\n%s\nbefore:\n%s", strings.Join(after, "\n"), strings.Join(before, "\n"))
			}
		})
	}
}

func TestPullResumes(t *testing.T) {
	for _, ranges := range []bool{true, false} {
		t.Run(fmt.Sprintf("ranges=%v", ranges), func(t *testing.T) {
			b, s := serve(t), newStore(t)
			big := makeTar(t, entry{name: "big", data: strings.Repeat("0123456789abcdef", 1<<16)})
			img := makeImage(t, compress.Plain, big)
			requests := 0
			b.blob = func(w http.ResponseWriter, r *http.Request, data []byte) bool {
				if len(data) != len(big) {
					return false
				}
				requests++
				if !ranges {
					r.Header.Del("Range")
				}
				if requests < 4 { // cut off after a third more each time
					w = &cutting{w, len(data) * requests / 3}
					if ranges {
						w.(*cutting).left = len(data) / 3
					}
				}
				http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data))
				return true
			}
			image, err := s.Pull(t.Context(), b.publish(t, "big", img), PullOptions{})
			if err != nil {
				t.Fatal(err)
			}
			defer image.Release()
			checkLayers(t, image, [][]byte{big})
			if requests < 3 {
				t.Errorf("%d requests, want at least 3", requests)
			}
		})
	}
}

// cutting breaks the connection after some bytes.
type cutting struct {
	http.ResponseWriter
	left int
}

func (c *cutting) Write(p []byte) (int, error) {
	if len(p) > c.left {
		c.ResponseWriter.Write(p[:c.left])
		c.ResponseWriter.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	}
	c.left -= len(p)
	return c.ResponseWriter.Write(p)
}

// TestPullKeepsFinishedLayers lets one layer fail and counts what the next pull fetches.
func TestPullKeepsFinishedLayers(t *testing.T) {
	b, s := serve(t), newStore(t)
	img := makeImage(t, compress.Gzip, layerTars(t, 3)...)
	ref := b.publish(t, "x", img)
	last := img.manifest.Layers[2].Digest.String()
	delete(b.blobs, last)
	if _, err := s.Pull(t.Context(), ref, PullOptions{}); err == nil || !strings.Contains(err.Error(), last) {
		t.Fatalf("pull: %v, want an error that names %s", err, last)
	}
	// The first error ends the others; what they had finished by then is kept.
	kept := 0
	for _, layer := range img.manifest.Layers {
		if s.hasBlob(layer) {
			kept++
		}
	}
	// From another registry: the first may still be answering a request that was given up.
	whole := serve(t)
	image := mustPull(t, s, whole.publish(t, "x", img), PullOptions{})
	checkLayers(t, image, single(img.tars)...)
	if want := 1 + 3 - kept; len(whole.fetched) != want {
		t.Errorf("%d blobs fetched, want %d: the configuration and what was missing", len(whole.fetched), want)
	}
}

func TestPullCredentials(t *testing.T) {
	b, s := serve(t), newStore(t)
	b.auth = "secret"
	ref := b.publish(t, "private", makeImage(t, compress.Gzip, rootTar(t)))
	dir := t.TempDir()
	t.Setenv("DOCKER_CONFIG", dir)
	if _, err := s.Pull(t.Context(), ref, PullOptions{}); !errors.Is(err, ErrDenied) {
		t.Errorf("without credentials: %v, want ErrDenied", err)
	}
	config := fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, b.host, base64.StdEncoding.EncodeToString([]byte("user:secret")))
	if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	mustPull(t, s, ref, PullOptions{})

	// The same from a credential helper.
	helper := "#!/bin/sh\ncat >/dev/null\necho '{\"ServerURL\":\"x\",\"Username\":\"user\",\"Secret\":\"secret\"}'\n"
	if err := os.WriteFile(filepath.Join(dir, "docker-credential-matchlock-test"), []byte(helper), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	config = fmt.Sprintf(`{"credHelpers":{%q:"matchlock-test"}}`, b.host)
	if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	mustPull(t, newStore(t), ref, PullOptions{})
}

func TestPullUnknown(t *testing.T) {
	b, s := serve(t), newStore(t)
	if _, err := s.Pull(t.Context(), b.host+"/none:1", PullOptions{}); !errors.Is(err, ErrNotFound) {
		t.Errorf("unknown image: %v, want ErrNotFound", err)
	}
	if _, err := s.Pull(t.Context(), "Not A Name", PullOptions{}); err == nil {
		t.Error("a name with blanks was accepted")
	}
}

func TestPullPinned(t *testing.T) {
	b, s := serve(t), newStore(t)
	img := makeImage(t, compress.Gzip, rootTar(t))
	b.publish(t, "x", img)
	manifest, _ := img.files(t)
	repo := b.host + "/test/image"
	image := mustPull(t, s, repo+":tag@"+digestOf(manifest).String(), PullOptions{})
	if want := repo + "@" + digestOf(manifest).String(); image.Name != want {
		t.Errorf("name %q, want %q", image.Name, want)
	}
	wrong := v1.Hash{Algorithm: "sha256", Hex: strings.Repeat("00", 32)}.String()
	b.manifests[wrong] = manifest
	if _, err := s.Pull(t.Context(), repo+"@"+wrong, PullOptions{}); err == nil {
		t.Error("a manifest of another digest was accepted")
	}
}

// TestPullNeedsProof has a manifest claim that a blob of its own unpacks to another image's layer.
func TestPullNeedsProof(t *testing.T) {
	b, s := serve(t), newStore(t)
	private := makeImage(t, compress.Gzip, rootTar(t))
	mustPull(t, s, b.publish(t, "private", private), PullOptions{})
	own := makeImage(t, compress.Gzip, layerTars(t, 1)[0])
	mustPull(t, s, b.publish(t, "own", own), PullOptions{})

	thief := makeImage(t, compress.Gzip, layerTars(t, 1)[0])
	thief.config.RootFS.DiffIDs = private.config.RootFS.DiffIDs
	if _, err := s.Pull(t.Context(), b.publish(t, "thief", thief), PullOptions{}); err == nil || !strings.Contains(err.Error(), "unpacks to") {
		t.Errorf("pull: %v, want a refusal", err)
	}
}

func TestPullBounds(t *testing.T) {
	b, s := serve(t), newStore(t)
	bomb := makeImage(t, compress.Gzip, makeTar(t, entry{name: "zeros", data: strings.Repeat("\x00", 10<<20)}))
	ref := b.publish(t, "bomb", bomb)
	if _, err := s.Pull(t.Context(), ref, PullOptions{MaxBytes: 5 << 20}); !errors.Is(err, ErrTooLarge) {
		t.Errorf("10 MiB of 5: %v, want ErrTooLarge", err)
	}
	two := makeImage(t, compress.Gzip, layerTars(t, 1)[0], makeTar(t, entry{name: "a", data: strings.Repeat("a", 3<<20)}), makeTar(t, entry{name: "b", data: strings.Repeat("b", 3<<20)}))
	if _, err := s.Pull(t.Context(), b.publish(t, "two", two), PullOptions{MaxBytes: 5 << 20}); !errors.Is(err, ErrTooLarge) {
		t.Errorf("two layers of 3 MiB: %v, want ErrTooLarge", err)
	}
	mustPull(t, s, ref, PullOptions{MaxBytes: 11 << 20})

	b.manifests["huge"] = bytes.Repeat([]byte(" "), maxManifestBytes+1)
	if _, err := s.Pull(t.Context(), b.host+"/test/image:huge", PullOptions{}); err == nil || !strings.Contains(err.Error(), "more than 4194304 bytes") {
		t.Errorf("huge manifest: %v", err)
	}
}

func TestPullProgress(t *testing.T) {
	b, s := serve(t), newStore(t)
	img := makeImage(t, compress.Gzip, layerTars(t, 10)...)
	var events []Event // calls never overlap
	mustPull(t, s, b.publish(t, "p", img), PullOptions{Progress: func(e Event) { events = append(events, e) }})
	ready := make(map[string]bool)
	for _, e := range events {
		if e.State == Ready {
			ready[e.Layer] = true
			if e.Done != e.Total {
				t.Errorf("ready with %d of %d", e.Done, e.Total)
			}
		}
	}
	if len(ready) != 11 {
		t.Errorf("%d ready, want 10 layers and the merged one", len(ready))
	}
}

func TestPullCancelled(t *testing.T) {
	b, s := serve(t), newStore(t)
	img := makeImage(t, compress.Gzip, rootTar(t))
	ctx, cancel := context.WithCancel(t.Context())
	b.blob = func(_ http.ResponseWriter, r *http.Request, data []byte) bool {
		if digestOf(data) != digestOf(img.blobs[0]) {
			return false
		}
		cancel() // in the middle of a layer, which never comes
		<-r.Context().Done()
		return true
	}
	if _, err := s.Pull(ctx, b.publish(t, "x", img), PullOptions{}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want context.Canceled", err)
	}
}

// TestPullStalled has the registry fall silent in the middle of a layer, once.
func TestPullStalled(t *testing.T) {
	b, s := serve(t), newStore(t)
	s.idle = 50 * time.Millisecond
	img := makeImage(t, compress.Gzip, rootTar(t))
	asked := 0
	b.blob = func(w http.ResponseWriter, r *http.Request, data []byte) bool {
		if digestOf(data) != digestOf(img.blobs[0]) {
			return false
		}
		if asked++; asked > 1 {
			return false
		}
		w.Write(data[:len(data)/2])
		w.(http.Flusher).Flush()
		<-r.Context().Done()
		return true
	}
	image := mustPull(t, s, b.publish(t, "x", img), PullOptions{})
	checkLayers(t, image, single(img.tars)...)
	if asked != 2 {
		t.Errorf("asked %d times, want 2", asked)
	}
}

func TestPullForce(t *testing.T) {
	b, s := serve(t), newStore(t)
	img := makeImage(t, compress.Gzip, layerTars(t, 10)...)
	ref := b.publish(t, "x", img)
	image := mustPull(t, s, ref, PullOptions{})
	for _, path := range []string{image.Layers[0].Path, image.Layers[3].Path} {
		if err := os.WriteFile(path, []byte("damaged"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	image = mustPull(t, s, ref, PullOptions{Force: true})
	checkLayers(t, image, append([][][]byte{img.tars[:3]}, single(img.tars[3:])...)...)
}

func TestRedirects(t *testing.T) {
	tests := []struct {
		from, to string
		fine     bool
	}{
		{"https://r.example/v2/", "https://cdn.example/x", true},
		{"http://r.example/v2/", "http://cdn.example/x", true},
		{"http://127.0.0.1:5000/v2/", "http://127.0.0.1:5001/x", true},
		{"https://r.example/v2/", "http://cdn.example/x", false},
		{"https://r.example/v2/", "https://169.254.169.254/latest", false},
		{"https://r.example/v2/", "https://127.0.0.1/", false},
		{"https://r.example/v2/", "https://[::ffff:10.0.0.1]/", false},
		{"https://r.example/v2/", "https://[fd00::1]/", false},
		{"https://r.example/v2/", "https://localhost/", false},
	}
	for _, test := range tests {
		from, to := httptest.NewRequest("GET", test.from, nil), httptest.NewRequest("GET", test.to, nil)
		if err := checkRedirect(to, []*http.Request{from}); (err == nil) != test.fine {
			t.Errorf("%s to %s: %v", test.from, test.to, err)
		}
	}
}

// breaking is a registry's listener whose connections break off when so many bytes have
// been sent over all of them: once, or from then on always.
type breaking struct {
	net.Listener
	always bool
	mu     sync.Mutex
	left   int
	over   bool
	sent   int
}

func (l *breaking) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err == nil {
		conn = &breakingConn{conn, l}
	}
	return conn, err
}

type breakingConn struct {
	net.Conn
	of *breaking
}

func (c *breakingConn) Write(p []byte) (int, error) {
	l := c.of
	l.mu.Lock()
	defer l.mu.Unlock()
	breaks := l.over && l.always || !l.over && len(p) > l.left
	if breaks {
		p = p[:min(len(p), l.left)]
		l.over = true
	}
	n, err := c.Conn.Write(p)
	l.left, l.sent = l.left-n, l.sent+n
	if breaks {
		c.Conn.(*net.TCPConn).SetLinger(0) // a reset, as of a server that crashes
		c.Conn.Close()
		return n, net.ErrClosed
	}
	return n, err
}

// TestPullBrokenOff has the connection break at each byte of a pull, in steps. Once makes
// no difference where it goes on; else the error names the image, nothing is left, and
// the next pull succeeds.
func TestPullBrokenOff(t *testing.T) {
	img := makeImage(t, compress.Gzip, layerTars(t, 2)...)
	pull := func(s *Store, l *breaking) (string, *Image, error) {
		b := &blobServer{manifests: make(map[string][]byte), blobs: make(map[string][]byte)}
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		l.Listener, b.host = listener, listener.Addr().String()
		server := &http.Server{Handler: b}
		go server.Serve(l)
		defer server.Close()
		ref := b.publish(t, "x", img)
		image, err := s.Pull(t.Context(), ref, PullOptions{})
		return ref, image, err
	}
	whole := &breaking{left: 1 << 30}
	_, image, err := pull(newStore(t), whole)
	if err != nil {
		t.Fatal(err)
	}
	image.Release()
	const steps = 40
	resumed := 0
	for _, always := range []bool{false, true} {
		for at := rand.IntN(1 + whole.sent/steps); at < whole.sent; at += 1 + whole.sent/steps {
			s := newStore(t)
			before := tree(t, s.dir)
			ref, image, err := pull(s, &breaking{left: at, always: always})
			switch {
			case err == nil && always && at < whole.sent/2:
				t.Errorf("%d of %d bytes were enough", at, whole.sent)
			case err == nil:
				checkLayers(t, image, single(img.tars)...)
				image.Release()
				resumed++
				continue
			case !strings.Contains(err.Error(), ref):
				t.Errorf("after %d bytes, always %v: %v, which does not name %s", at, always, err, ref)
			}
			if _, err := s.Prune(t.Context(), PruneOptions{}); err != nil {
				t.Error(err)
			}
			if after := tree(t, s.dir); !slices.Equal(withoutLock(s, before), withoutLock(s, after)) {
				t.Errorf("after %d bytes, always %v: left\n%s", at, always, strings.Join(after, "\n"))
			}
			_, image, err = pull(s, &breaking{left: 1 << 30})
			if err != nil {
				t.Errorf("after %d bytes, always %v, then again: %v", at, always, err)
				continue
			}
			checkLayers(t, image, single(img.tars)...)
			image.Release()
		}
	}
	t.Logf("%d bytes are sent in all; %d pulls went on", whole.sent, resumed)
	if resumed == 0 {
		t.Error("no pull went on")
	}
}

func withoutLock(s *Store, paths []string) []string {
	return slices.DeleteFunc(slices.Clone(paths), func(path string) bool { return path == s.path("lock") })
}
