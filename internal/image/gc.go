package image

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// Removed is what a removal did.
type Removed struct {
	Names []string `json:"names"` // that images lost
	Files int      `json:"files"`
	Bytes int64    `json:"bytes"` // of the files
}

// PruneOptions say what Prune spares. The zero value is fine.
type PruneOptions struct {
	// All takes their names from images that nobody uses, so that they go too.
	All bool
	Needs
}

// Needs are the digests of images that are needed although nobody holds a lease on them.
type Needs struct {
	Sandboxes []string          // by sandboxes, which may be stopped
	Snapshots map[string]string // by snapshots: the name of one for each digest
}

func (n Needs) digests() []string {
	return slices.AppendSeq(slices.Clone(n.Sandboxes), maps.Keys(n.Snapshots))
}

// Remove takes a name from an image; given a digest, all its names. What no other image needs goes with the last name.
// The last name of an image that is leased or needed stays: ErrInUse.
func (s *Store) Remove(ref string, needs Needs) (Removed, error) {
	index, lock, err := s.lockIndex(syscall.LOCK_EX)
	if err != nil {
		return Removed{}, err
	}
	defer lock.Close()
	target, err := find(index, ref)
	if err != nil {
		return Removed{}, err
	}
	digest := target.Digest
	var names []string
	index.Manifests = slices.DeleteFunc(index.Manifests, func(d v1.Descriptor) bool {
		name := d.Annotations[nameAnnotation]
		remove := d.Digest == digest && (ref == digest.String() || name == target.Annotations[nameAnnotation])
		if remove {
			names = append(names, name)
		}
		return remove
	})
	removed := Removed{Names: names}
	if slices.ContainsFunc(index.Manifests, func(d v1.Descriptor) bool { return d.Digest == digest }) {
		return removed, s.writeIndex(index)
	}
	if err := s.checkUnused(digest, needs); err != nil {
		return Removed{}, fmt.Errorf("image %q: %w", ref, err)
	}
	own, _ := s.references(digest) // of a damaged image: what can be told
	live, err := s.live(index, needs)
	if err != nil {
		own = nil // some other image is damaged: leave it to a later prune
	}
	if err := s.writeIndex(index); err != nil {
		return Removed{}, err
	}
	for path := range own {
		if !live[path] {
			if err := removed.remove(path); err != nil {
				return removed, err
			}
		}
	}
	return removed, nil
}

// checkUnused makes sure that an image is neither leased nor needed, which is ErrInUse else.
func (s *Store) checkUnused(digest v1.Hash, needs Needs) error {
	if slices.Contains(needs.Sandboxes, digest.String()) {
		return ErrInUse
	}
	used, err := inUse(s.blobPath(digest))
	if used {
		return ErrInUse
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if snapshot, ok := needs.Snapshots[digest.String()]; ok {
		return &SnapshotError{snapshot}
	}
	return nil
}

// Prune removes what no image with a name, no lease and no pull under way needs, and what writers that died have left.
func (s *Store) Prune(ctx context.Context, o PruneOptions) (Removed, error) {
	var removed Removed
	index, lock, err := s.lockIndex(syscall.LOCK_EX)
	if err != nil {
		return removed, err
	}
	defer lock.Close()
	if o.All {
		var faults []error // by which an image stays that may be unused
		index.Manifests = slices.DeleteFunc(index.Manifests, func(d v1.Descriptor) bool {
			name := d.Annotations[nameAnnotation]
			if err := s.checkUnused(d.Digest, o.Needs); err != nil {
				if !errors.Is(err, ErrInUse) {
					faults = append(faults, fmt.Errorf("image %q: %w", name, err))
				}
				return false
			}
			removed.Names = append(removed.Names, name)
			return true
		})
		if err := errors.Join(faults...); err != nil {
			return Removed{}, err
		}
		if err := s.writeIndex(index); err != nil {
			return Removed{}, err
		}
	}
	if removed.Bytes, err = s.sweep(); err != nil {
		return removed, err
	}
	live, err := s.live(index, o.Needs)
	if err != nil {
		return removed, err
	}
	for _, dir := range []string{s.path("blobs", "sha256"), s.path("layers"), s.path("verified")} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return removed, err
		}
		for _, entry := range entries {
			if err := ctx.Err(); err != nil {
				return removed, err
			}
			if path := filepath.Join(dir, entry.Name()); !live[path] {
				if err := removed.remove(path); err != nil {
					return removed, err
				}
			}
		}
	}
	return removed, nil
}

func (r *Removed) remove(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := os.Remove(path); err != nil {
		return err
	}
	if info.Mode().IsRegular() && info.Size() > 0 { // marks and links are not worth telling
		r.Files++
		r.Bytes += info.Size()
	}
	return nil
}

// live returns the paths of all files that are needed: by images with a name, by leases, and by needs. The caller holds
// the store's lock exclusively, so that no lease begins meanwhile.
func (s *Store) live(index *v1.IndexManifest, needs Needs) (map[string]bool, error) {
	live := make(map[string]bool)
	need := func(digest v1.Hash) error {
		paths, err := s.references(digest)
		for path := range paths {
			live[path] = true
		}
		return err
	}
	for _, d := range index.Manifests {
		if err := need(d.Digest); err != nil {
			return nil, fmt.Errorf("image %q cannot be read, remove it first: %w", d.Annotations[nameAnnotation], err)
		}
	}
	for _, digest := range needs.digests() {
		if d, err := v1.NewHash(digest); err == nil && usable(d) {
			if err := need(d); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return nil, fmt.Errorf("image %s: %w", digest, err)
			}
		}
	}
	// Only manifests are ever locked, so a locked blob is a leased manifest.
	blobs, err := os.ReadDir(s.path("blobs", "sha256"))
	if err != nil {
		return nil, err
	}
	for _, entry := range blobs {
		path := s.path("blobs", "sha256", entry.Name())
		if live[path] {
			continue
		}
		used, err := inUse(path)
		if err == nil && used {
			err = need(v1.Hash{Algorithm: "sha256", Hex: entry.Name()})
		}
		if err != nil {
			return nil, err
		}
	}
	return live, nil
}

// references returns the paths of all files that an image has or, while it is being pulled, will have. With an error
// the paths are those that can be told.
func (s *Store) references(manifest v1.Hash) (map[string]bool, error) {
	if !usable(manifest) {
		return nil, fmt.Errorf("digest %q is not a sha256 one", manifest)
	}
	paths := map[string]bool{s.blobPath(manifest): true}
	m, _, diffIDs, err := s.read(manifest)
	if err != nil {
		return paths, err
	}
	paths[s.blobPath(m.Config.Digest)] = true
	for i, layer := range m.Layers {
		paths[s.blobPath(layer.Digest)] = true
		paths[s.verifiedPath(layer.Digest)] = true
		paths[s.layerPath(clingsFile(diffIDs[i]))] = true
	}
	for _, layer := range s.layers(m, diffIDs) {
		paths[layer.Path] = true
	}
	return paths, nil
}
