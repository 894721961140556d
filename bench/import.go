package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// importLayer measures how long it takes to make a root file system out of one
// gzipped layer, the same file for all: ours ends as an image of a store, the
// others' as a folder.
func importLayer(ctx context.Context, p *place, m *meter) error {
	layout, err := p.debianLayout(ctx)
	if err != nil {
		return err
	}
	layer, err := layerOf(layout)
	if err != nil {
		return err
	}
	out := filepath.Join(p.dir, "import")
	umoci := []string{"unpack", "--image", layout + ":latest", out}
	if os.Geteuid() != 0 {
		umoci = append(umoci, "--rootless")
	}
	commands := [][]string{
		{"env", "MATCHLOCK_HOME=" + out, p.matchlock, "image", "import", "debian", layout},
		append([]string{"umoci"}, umoci...),
		{"tar", "--extract", "--gzip", "--file", layer, "--directory", out},
	}
	for m.loop() {
		for i, command := range commands {
			if err := os.Mkdir(out, 0o700); err != nil {
				return err
			}
			syscall.Sync() // each begins with nothing left to write of another's
			if err := m.time(i, func() error { return run(ctx, command[0], command[1:]...) }); err != nil {
				return err
			}
			if err := os.RemoveAll(out); err != nil {
				return err
			}
		}
	}
	return nil
}

// debianLayout returns an OCI layout with the tests' image of Debian in it, one
// gzipped layer, and makes it first if it is missing or older than the image.
func (p *place) debianLayout(ctx context.Context) (string, error) {
	archive := filepath.Join(p.images, "debian-12.tar")
	if err := run(ctx, "scripts/debian-image.sh", archive); err != nil {
		return "", err
	}
	layout := filepath.Join(p.images, "debian-12")
	made, err := os.Stat(layout)
	if err == nil {
		image, err := os.Stat(archive)
		if err != nil {
			return "", err
		}
		if made.ModTime().After(image.ModTime()) {
			return layout, nil
		}
	}
	return layout, run(ctx, "scripts/oci-image.sh", layout, archive)
}

// layerOf returns the file of the only layer of the only image in an OCI layout.
func layerOf(layout string) (string, error) {
	type descriptor struct{ Digest string }
	var index struct{ Manifests []descriptor }
	var manifest struct{ Layers []descriptor }

	blob := func(d descriptor) string {
		return filepath.Join(layout, "blobs", filepath.FromSlash(strings.Replace(d.Digest, ":", "/", 1)))
	}
	read := func(path string, v any) error {
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return json.Unmarshal(data, v)
	}
	if err := read(filepath.Join(layout, "index.json"), &index); err != nil {
		return "", err
	}
	if len(index.Manifests) != 1 {
		return "", fmt.Errorf("%s: %d images, want 1", layout, len(index.Manifests))
	}
	if err := read(blob(index.Manifests[0]), &manifest); err != nil {
		return "", err
	}
	if len(manifest.Layers) != 1 {
		return "", fmt.Errorf("%s: %d layers, want 1", layout, len(manifest.Layers))
	}
	return blob(manifest.Layers[0]), nil
}
