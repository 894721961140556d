package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// intake is the bringing in of one image.
type intake struct {
	*session
	name     string // that it is to have
	force    bool   // read again what is there already
	maxBytes int64
	unpacked atomic.Int64 // bytes of all tars so far, and of the holes in their files
	tars     sync.Map     // bytes of each tar that became a layer of its own, by diff id
	report   func(Event)
}

func (w *session) intake(name string, maxBytes int64, progress Progress) *intake {
	if maxBytes <= 0 {
		maxBytes = DefaultMaxBytes
	}
	return &intake{session: w, name: name, maxBytes: maxBytes, report: oneAtATime(progress)}
}

func (in *intake) tooLarge() error {
	return fmt.Errorf("%w: more than %d bytes unpacked", ErrTooLarge, in.maxBytes)
}

// published is an image whose manifest says what its layers are.
type published struct {
	manifest []byte
	config   []byte
	pulled   string // see Image.PulledDigest
	open     func(context.Context, v1.Descriptor) (io.ReadCloser, error)
}

// takePublished brings in an image from a registry or an OCI layout. Layers that were finished stay in the store for the
// next attempt when it fails.
func (in *intake) takePublished(ctx context.Context, p published) (*Image, error) {
	manifest, err := parseManifest(p.manifest)
	if err != nil {
		return nil, err
	}
	_, diffIDs, err := parseConfig(p.config, len(manifest.Layers))
	if err != nil {
		return nil, err
	}
	// The lease comes before any look at what the store has: from now on nothing that is found will be removed.
	desc, lease, err := in.announce(p.manifest, manifest.MediaType, p.config, manifest.Config.MediaType)
	if err != nil {
		return nil, err
	}
	defer lease.Close()

	parts := make([]part, len(diffIDs))
	for i, layer := range manifest.Layers {
		parts[i] = part{name: layer.Digest.String(), what: "layer " + layer.Digest.String(), desc: layer, diffID: diffIDs[i]}
		parts[i].open = func(ctx context.Context) (io.ReadCloser, error) {
			if in.hasBlob(layer) && !in.force {
				return os.Open(in.blobPath(layer.Digest)) // to be unpacked only
			}
			return p.open(ctx, layer)
		}
	}
	stack := in.stack(diffIDs)
	single := func(id v1.Hash) bool { return !slices.Contains(stack.merged, id) }
	have := func(p part) bool {
		if in.force {
			return false
		}
		if single(p.diffID) {
			return in.isVerified(p.desc, p.diffID) && exists(in.layerPath(layerFile(p.diffID)))
		}
		return in.hasBlob(p.desc)
	}
	done := func(_ int, got staged) error { return in.keep(got) }
	if err := in.bring(ctx, parts, single, have, done); err != nil {
		return nil, err
	}
	return in.complete(ctx, desc, p.pulled, parts)
}

// takeLoose brings in layers that came without a manifest, which is made for them. The configuration is made when their
// diff ids are known.
func (in *intake) takeLoose(ctx context.Context, parts []part, config func([]v1.Hash) ([]byte, error)) (*Image, error) {
	stack := newStack(diffIDsOf(parts), func(v1.Hash) bool { return false })
	single := func(id v1.Hash) bool { return !slices.Contains(stack.merged, id) }
	have := func(part) bool { return false }
	got := make([]staged, len(parts))
	done := func(i int, layer staged) error { got[i] = layer; return nil }
	if err := in.bring(ctx, parts, single, have, done); err != nil {
		return nil, err
	}

	manifest := v1.Manifest{SchemaVersion: 2, MediaType: types.OCIManifestSchema1}
	for i, layer := range got {
		parts[i].desc, parts[i].diffID = layer.desc, layer.diffID
		manifest.Layers = append(manifest.Layers, layer.desc)
	}
	configData, err := config(diffIDsOf(parts))
	if err != nil {
		return nil, err
	}
	manifest.Config = descriptorOf(configData, types.OCIConfigJSON)
	manifestData, err := json.Marshal(manifest)
	if err != nil {
		return nil, err
	}
	desc, lease, err := in.announce(manifestData, manifest.MediaType, configData, types.OCIConfigJSON)
	if err != nil {
		return nil, err
	}
	defer lease.Close()
	for _, layer := range got {
		if err := in.keep(layer); err != nil {
			return nil, err
		}
	}
	return in.complete(ctx, desc, "", parts)
}

// announce stores manifest and configuration and leases them, and with them all layers that the store has or will have.
func (in *intake) announce(manifest []byte, manifestType types.MediaType, config []byte, configType types.MediaType) (v1.Descriptor, io.Closer, error) {
	lock, err := in.lock(syscall.LOCK_SH)
	if err != nil {
		return v1.Descriptor{}, nil, err
	}
	defer lock.Close()
	if _, err := in.putBlob(config, configType); err != nil {
		return v1.Descriptor{}, nil, err
	}
	desc, err := in.putBlob(manifest, manifestType)
	if err != nil {
		return v1.Descriptor{}, nil, err
	}
	lease, err := in.lease(desc.Digest)
	return desc, lease, err
}

// complete merges layers where that is needed and gives the image its name. All layers are in the store.
func (in *intake) complete(ctx context.Context, desc v1.Descriptor, pulled string, parts []part) (*Image, error) {
	if merged := in.stack(diffIDsOf(parts)).merged; len(merged) > 0 {
		if err := in.completeMerged(ctx, merged, parts); err != nil {
			return nil, err
		}
	}
	index, lock, err := in.lockIndex(syscall.LOCK_EX)
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	_, config, _, err := in.read(desc.Digest)
	if err != nil {
		return nil, err
	}
	if config.Architecture != "" {
		desc.Platform = &v1.Platform{OS: config.OS, Architecture: config.Architecture, Variant: config.Variant}
	}
	setName(index, desc, in.name, pulled)
	if err := in.writeIndex(index); err != nil {
		return nil, err
	}
	return in.open(index.Manifests[len(index.Manifests)-1])
}

// completeMerged makes the file that the lowest layers share, if it is not there or if any of them was not checked yet.
func (in *intake) completeMerged(ctx context.Context, ids []v1.Hash, parts []part) error {
	blobs := make(map[v1.Hash]v1.Descriptor)
	for _, p := range parts {
		blobs[p.diffID] = p.desc
	}
	file := in.layerPath(mergedFile(chainID(ids)))
	unchecked := slices.ContainsFunc(ids, func(id v1.Hash) bool { return !in.isVerified(blobs[id], id) })
	if !unchecked && !in.force && exists(file) {
		return nil
	}
	for _, id := range ids { // one that had a file of its own before it showed that it clings is not counted twice
		if n, ok := in.tars.Load(id); ok {
			in.unpacked.Add(-n.(int64))
		}
	}
	merged, err := in.merge(ctx, ids, func(id v1.Hash) string { return in.blobPath(blobs[id].Digest) })
	if err != nil {
		return err
	}
	for _, id := range ids {
		if err := in.setVerified(blobs[id].Digest, id); err != nil {
			return err
		}
	}
	return os.Rename(merged, file)
}

func diffIDsOf(parts []part) []v1.Hash {
	ids := make([]v1.Hash, len(parts))
	for i, p := range parts {
		ids[i] = p.diffID
	}
	return ids
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return !errors.Is(err, os.ErrNotExist)
}
