package image

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/matchlock/matchlock/internal/disk"
)

// erofsLayer is the media type of a layer that is an EROFS file itself. Such layers come with snapshots, and images of
// them are in the store only: nobody knows the tars that they were made of. What an EROFS file says of itself is
// nothing to go by, so it is named by its own digest, and lies among the blobs, where it is nothing but that content;
// in layers/ it would stand for the tar with that diff id.
const erofsLayer types.MediaType = "application/vnd.matchlock.layer.v1+erofs"

// isEROFS reports whether an image's layers are EROFS files: all of them, or none.
func isEROFS(m *v1.Manifest) bool { return len(m.Layers) > 0 && m.Layers[0].MediaType == erofsLayer }

// ImportLayers makes an image of EROFS files, base first, which come from elsewhere, and of the configuration. It has
// no name: its digest finds it, and it goes with the first Prune that is not told that somebody needs it. Files that are
// in the store already are not written again; of others that nobody may write to, by their mode, the store has the same
// file, else a copy. Together they have at most maxBytes, DefaultMaxBytes for 0.
func (s *Store) ImportLayers(ctx context.Context, config Config, paths []string, maxBytes int64) (*Image, error) {
	if n := len(paths); n == 0 || n > MaxLayers {
		return nil, fmt.Errorf("image of %d layers, must be 1 to %d", n, MaxLayers)
	}
	w, err := s.begin()
	if err != nil {
		return nil, fmt.Errorf("image store: %w", err)
	}
	defer w.end()
	in := w.intake("", maxBytes, nil)
	manifest := v1.Manifest{SchemaVersion: 2, MediaType: types.OCIManifestSchema1}
	for i, path := range paths {
		layer, err := in.describeEROFS(ctx, path)
		if err != nil {
			return nil, fmt.Errorf("layer %d: %w", i, err)
		}
		manifest.Layers = append(manifest.Layers, layer)
	}
	configData, err := json.Marshal(config.file(manifest.Layers))
	if err != nil {
		return nil, err
	}
	if _, _, err := parseConfig(configData, len(manifest.Layers)); err != nil {
		return nil, err
	}
	manifest.Config = descriptorOf(configData, types.OCIConfigJSON)
	manifestData, err := json.Marshal(manifest)
	if err != nil {
		return nil, err
	}
	if _, err := parseStored(manifestData); err != nil {
		return nil, err
	}
	desc, lease, err := in.announce(manifestData, manifest.MediaType, configData, types.OCIConfigJSON)
	if err != nil {
		return nil, err
	}
	defer lease.Close()
	for i, layer := range manifest.Layers {
		if in.hasBlob(layer) {
			continue
		}
		if err := in.keepEROFS(paths[i], layer); err != nil {
			return nil, fmt.Errorf("layer %d: %w", i, err)
		}
	}
	return s.Lookup(desc.Digest.String())
}

// describeEROFS reads a layer.
func (in *intake) describeEROFS(ctx context.Context, path string) (v1.Descriptor, error) {
	f, err := os.Open(path)
	if err != nil {
		return v1.Descriptor{}, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return v1.Descriptor{}, err
	}
	if in.unpacked.Add(info.Size()) > in.maxBytes {
		return v1.Descriptor{}, in.tooLarge()
	}
	if err := checkEROFS(f, info); err != nil {
		return v1.Descriptor{}, err
	}
	hash := sha256.New()
	n, err := io.Copy(hash, &meter{ctx: ctx, r: f, limit: info.Size(), over: errors.New("it grows")})
	if err == nil && n != info.Size() {
		err = io.ErrUnexpectedEOF
	}
	return v1.Descriptor{MediaType: erofsLayer, Digest: sum(hash), Size: n}, err
}

// checkEROFS makes sure that the file can be a layer as package disk makes them. What is in it is for a guest to see.
func checkEROFS(f *os.File, info os.FileInfo) error {
	const at, magic = 1024, 0xe0f5e1e2 // the superblock, fs/erofs/erofs_fs.h in the kernel's source
	var head [4]byte
	if !info.Mode().IsRegular() || info.Size() == 0 || info.Size()%4096 != 0 {
		return errors.New("not an EROFS file")
	}
	if _, err := f.ReadAt(head[:], at); err != nil {
		return err
	}
	if binary.LittleEndian.Uint32(head[:]) != magic {
		return errors.New("not an EROFS file")
	}
	return nil
}

// keepEROFS makes the file a blob.
func (w *session) keepEROFS(path string, layer v1.Descriptor) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	adopted := filepath.Join(w.dir, "erofs-"+layer.Digest.Hex)
	if err := disk.Adopt(adopted, f); err != nil {
		return err
	}
	kept, err := os.Open(adopted)
	if err != nil {
		return err
	}
	if err := w.closeSynced(kept); err != nil {
		return err
	}
	return os.Rename(adopted, w.blobPath(layer.Digest))
}

// file is the configuration as an image has it.
func (c Config) file(layers []v1.Descriptor) v1.ConfigFile {
	set := func(keys []string) map[string]struct{} {
		if len(keys) == 0 {
			return nil
		}
		m := make(map[string]struct{})
		for _, key := range keys {
			m[key] = struct{}{}
		}
		return m
	}
	file := v1.ConfigFile{
		OS: c.OS, Architecture: c.Architecture, Variant: c.Variant, Author: c.Author, Created: v1.Time{Time: c.Created},
		RootFS: v1.RootFS{Type: "layers"},
		Config: v1.Config{
			Entrypoint: c.Entrypoint, Cmd: c.Cmd, Env: c.Env, User: c.User, WorkingDir: c.WorkingDir, StopSignal: c.StopSignal,
			Labels: c.Labels, ExposedPorts: set(c.ExposedPorts), Volumes: set(c.Volumes),
		},
	}
	for _, layer := range layers {
		file.RootFS.DiffIDs = append(file.RootFS.DiffIDs, layer.Digest)
	}
	return file
}

// layers lists the files to mount of an image in the store, base first.
func (s *Store) layers(m *v1.Manifest, diffIDs []v1.Hash) []Layer {
	if !isEROFS(m) {
		return s.stack(diffIDs).layers(s)
	}
	var layers []Layer
	for _, l := range m.Layers {
		layers = append(layers, Layer{s.blobPath(l.Digest), "erofs", l.Digest.String()})
	}
	return layers
}
