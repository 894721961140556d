package image

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Save writes images as one tar that is an OCI image layout and can be read by docker load too. The blobs are checked
// while they are written; the same images give the same bytes.
func (s *Store) Save(ctx context.Context, refs []string, w io.Writer) error {
	if len(refs) == 0 {
		return errors.New("no image to save")
	}
	a := &saver{store: s, ctx: ctx, tar: tar.NewWriter(w), written: make(map[v1.Hash]bool)}
	a.index = v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex}
	for _, ref := range refs {
		image, err := s.Lookup(ref)
		if err != nil {
			return err
		}
		err = a.add(image)
		image.Release()
		if err != nil {
			return fmt.Errorf("image %q: %w", ref, err)
		}
	}
	for _, file := range []struct {
		name  string
		value any
	}{
		{"index.json", a.index},
		{"manifest.json", a.images},
		{"oci-layout", json.RawMessage(layoutMarker)},
	} {
		data, err := json.Marshal(file.value)
		if err != nil {
			return err
		}
		if err := a.header(file.name, int64(len(data))); err != nil {
			return err
		}
		if _, err := a.tar.Write(data); err != nil {
			return err
		}
	}
	return a.tar.Close()
}

type saver struct {
	store   *Store
	ctx     context.Context
	tar     *tar.Writer
	index   v1.IndexManifest
	images  []dockerSave
	written map[v1.Hash]bool
}

func (a *saver) add(image *Image) error {
	digest, err := v1.NewHash(image.Digest)
	if err != nil {
		return err
	}
	manifest, config, _, err := a.store.read(digest)
	if err != nil {
		return err
	}
	if isEROFS(manifest) {
		return errors.New("it came with a snapshot, without the layers that others could read")
	}
	size, err := os.Stat(a.store.blobPath(digest))
	if err != nil {
		return err
	}
	desc := v1.Descriptor{MediaType: manifest.MediaType, Digest: digest, Size: size.Size()}
	if config.Architecture != "" {
		desc.Platform = &v1.Platform{OS: config.OS, Architecture: config.Architecture, Variant: config.Variant}
	}
	for _, blob := range slices.Concat([]v1.Descriptor{desc, manifest.Config}, manifest.Layers) {
		if err := a.blob(blob); err != nil {
			return fmt.Errorf("blob %s: %w", blob.Digest, err)
		}
	}
	saved := dockerSave{Config: blobName(manifest.Config.Digest)}
	for _, layer := range manifest.Layers {
		saved.Layers = append(saved.Layers, blobName(layer.Digest))
	}
	if image.Name != "" {
		desc.Annotations = map[string]string{nameAnnotation: image.Name}
	}
	if tag, err := name.NewTag(image.Name, name.WeakValidation); err == nil {
		saved.RepoTags = []string{fullName(tag)}
	}
	a.index.Manifests = append(a.index.Manifests, desc)
	a.images = append(a.images, saved)
	return nil
}

func (a *saver) blob(d v1.Descriptor) error {
	if a.written[d.Digest] {
		return nil
	}
	a.written[d.Digest] = true
	f, err := os.Open(a.store.blobPath(d.Digest))
	if err != nil {
		return err
	}
	defer f.Close()
	if err := a.header(blobName(d.Digest), d.Size); err != nil {
		return err
	}
	hash := sha256.New()
	if _, err := io.Copy(io.MultiWriter(a.tar, hash), &meter{ctx: a.ctx, r: f, limit: d.Size, over: tar.ErrWriteTooLong}); err != nil {
		return err
	}
	if got := sum(hash); got != d.Digest {
		return fmt.Errorf("damaged in the store: its content is %s", got)
	}
	return nil
}

func (a *saver) header(name string, size int64) error {
	return a.tar.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: size, Mode: 0o644})
}
