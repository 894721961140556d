package image

import (
	"bytes"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/matchlock/matchlock/internal/compress"
)

func TestParseDocument(t *testing.T) {
	manifest, _ := makeImage(t, compress.Gzip, rootTar(t)).files(t)
	doc, err := parseDocument(manifest)
	if err != nil || doc.manifest == nil || doc.index != nil {
		t.Fatalf("a manifest: %+v, %v", doc, err)
	}
	untyped := bytes.Replace(manifest, []byte(`"mediaType":"application/vnd.oci.image.manifest.v1+json",`), nil, 1)
	if doc, err := parseDocument(untyped); err != nil || doc.manifest.MediaType != types.OCIManifestSchema1 {
		t.Errorf("a manifest without media type: %+v, %v", doc, err)
	}
	if doc, err := parseDocument([]byte(`{"schemaVersion":2,"manifests":[]}`)); err != nil || doc.index == nil {
		t.Errorf("an index: %+v, %v", doc, err)
	}
	for text, want := range map[string]string{
		`{"schemaVersion":2,"manifests":[],"layers":[]}`:                                              "both",
		`{"schemaVersion":2,"manifests":[],"Config":{}}`:                                              "both", // JSON in Go knows no case
		`{"schemaVersion":2,"manifests":[],"mediaType":"application/vnd.oci.image.manifest.v1+json"}`: "media type",
		`{"schemaVersion":2,"layers":[],"mediaType":"application/vnd.oci.image.index.v1+json"}`:       "media type",
		`{"schemaVersion":1,"fsLayers":[]}`:                                                           "schema 1",
		`{"manifests":[]}`:                                                                            "schema version 0",
		`{"schemaVersion":2}`:                                                                         "not a container image",
		`[]`:                                                                                          "manifest: ",
		``:                                                                                            "manifest: ",
		strings.Repeat("[", 100_000):                                                                  "manifest: ",
	} {
		if _, err := parseDocument([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.80s: %v, want %q", text, err, want)
		}
	}
}

// FuzzManifest reads documents and configurations. What is accepted must be safe to use as names of files, and as what
// a program is started with.
func FuzzManifest(f *testing.F) {
	manifest, config := makeImage(f, compress.Gzip, rootTar(f), rootTar(f)).files(f)
	index := toJSON(f, v1.IndexManifest{SchemaVersion: 2, Manifests: []v1.Descriptor{{MediaType: types.OCIManifestSchema1, Platform: &v1.Platform{OS: "linux", Architecture: "amd64"}}}})
	f.Add(manifest, config)
	f.Add(index, []byte(`{"rootfs":{"diff_ids":["sha256:00"]},"created":"x"}`))
	f.Fuzz(func(t *testing.T, manifest, config []byte) {
		layers := 2
		if doc, err := parseDocument(manifest); err == nil && doc.manifest != nil {
			layers = len(doc.manifest.Layers)
			for _, d := range append(doc.manifest.Layers, doc.manifest.Config) {
				if len(d.Digest.Hex) != 64 || strings.Trim(d.Digest.Hex, "0123456789abcdef") != "" || d.Size < 0 {
					t.Errorf("accepted %+v", d)
				}
			}
		} else if err == nil {
			choose(doc.index, v1.Platform{OS: "linux", Architecture: "amd64"}) // must not panic
		}
		c, diffIDs, err := parseConfig(config, layers)
		if err != nil {
			return
		}
		for _, id := range diffIDs {
			if len(id.Hex) != 64 || strings.Trim(id.Hex, "0123456789abcdef") != "" {
				t.Errorf("accepted diff id %q", id)
			}
		}
		if len(diffIDs) != layers || strings.Contains(strings.Join(c.Env, "")+strings.Join(c.Cmd, "")+c.User, "\x00") {
			t.Errorf("accepted %d diff ids for %d layers, %+v", len(diffIDs), layers, c)
		}
	})
}
