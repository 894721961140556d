package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
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
	var rootless []string
	if os.Geteuid() != 0 {
		rootless = []string{"--rootless"}
	}
	top := filepath.Join(p.dir, "import")
	defer func() {
		os.RemoveAll(top) // what is left of it, p.close removes or reports
		syscall.Sync()    // see below: a minute later there is nothing to forget
	}()
	for m.loop() {
		// Nothing is removed before the end, though that takes 0.5 GB for each round:
		// for a while after a removal, ext4 passes over each inode that was removed
		// when it looks for a free one, and umoci and tar take three times as long.
		out := filepath.Join(top, strconv.Itoa(m.round))
		for i, command := range [][]string{
			{"env", "MATCHLOCK_HOME=" + filepath.Join(out, "0"), p.matchlock, "image", "import", "debian", layout},
			append([]string{"umoci", "unpack", "--image", layout + ":latest", filepath.Join(out, "1")}, rootless...),
			{"tar", "--extract", "--gzip", "--file", layer, "--directory", filepath.Join(out, "2")},
		} {
			if err := os.MkdirAll(filepath.Join(out, strconv.Itoa(i)), 0o700); err != nil {
				return err
			}
			syscall.Sync() // each begins with nothing left to write of another's
			if err := m.time(i, func() error { return run(ctx, command[0], command[1:]...) }); err != nil {
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
