package image

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// Annotations of the index: the name as the layout's specification has it, and two of our own.
const (
	nameAnnotation   = "org.opencontainers.image.ref.name"
	pulledAnnotation = "io.matchlock.image.pulled-digest"
	storedAnnotation = "io.matchlock.image.stored"
)

// Lookup finds an image in the store and leases it. The name is tried exactly as given, then as docker expands it; one
// with a digest finds the image under any tag of its repository. "sha256:…" finds the image with that manifest even
// if it has no name any more. An image that is not there is a *NotFoundError. Nothing is fetched and no blob is hashed:
// this takes about a millisecond.
func (s *Store) Lookup(ref string) (*Image, error) {
	index, lock, err := s.lockIndex(syscall.LOCK_SH)
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	desc, err := find(index, ref)
	if err != nil {
		digest, ok := nameless(err, ref)
		if !ok {
			return nil, err
		}
		desc.Digest = digest
	}
	image, err := s.open(desc)
	if errors.Is(err, fs.ErrNotExist) && desc.Annotations == nil {
		return nil, &NotFoundError{Ref: ref}
	}
	if err != nil {
		return nil, fmt.Errorf("image %q: %w", ref, err)
	}
	return image, nil
}

// nameless returns the digest by which an image can be found that no name refers to.
func nameless(err error, ref string) (v1.Hash, bool) {
	if !errors.Is(err, ErrNotFound) || !strings.HasPrefix(ref, "sha256:") {
		return v1.Hash{}, false
	}
	digest, err := v1.NewHash(ref)
	return digest, err == nil && usable(digest)
}

// find returns the index's entry for what a user typed.
func find(index *v1.IndexManifest, ref string) (v1.Descriptor, error) {
	full, expandErr := Expand(ref)
	for _, want := range []string{ref, full} {
		for _, d := range index.Manifests {
			if name := d.Annotations[nameAnnotation]; name == want && name != "" {
				return d, nil
			}
		}
	}
	repo, digest, _ := strings.Cut(cmp.Or(full, ref), "@")
	var names []string
	for _, d := range index.Manifests {
		name := d.Annotations[nameAnnotation]
		names = append(names, name)
		if digest != "" && (digest == d.Digest.String() || digest == d.Annotations[pulledAnnotation]) && inRepo(name, repo) {
			return d, nil
		}
		if ref == d.Digest.String() {
			return d, nil
		}
	}
	if err := CheckName(ref); err != nil && expandErr != nil && !strings.HasPrefix(ref, "sha256:") {
		return v1.Descriptor{}, err
	}
	return v1.Descriptor{}, &NotFoundError{Ref: ref, Near: near(ref, names)}
}

// inRepo reports whether a stored name is a tag or a digest of a repository.
func inRepo(name, repo string) bool {
	rest, ok := strings.CutPrefix(name, repo)
	return ok && (strings.HasPrefix(rest, ":") || strings.HasPrefix(rest, "@"))
}

// open leases the image with a manifest and reads it. The caller holds the store's lock.
func (s *Store) open(desc v1.Descriptor) (*Image, error) {
	lease, err := s.lease(desc.Digest)
	if err != nil {
		return nil, err
	}
	image, err := s.describe(desc)
	if err != nil {
		lease.Close()
		return nil, err
	}
	for _, layer := range image.Layers {
		if _, err := os.Stat(layer.Path); err != nil {
			lease.Close()
			return nil, fmt.Errorf("layer %s is missing, pull or import the image again: %w", layer.DiffID, err)
		}
	}
	image.lease = lease
	return image, nil
}

// lease keeps all that a manifest refers to in the store until the file is closed. The caller holds the store's lock.
func (s *Store) lease(manifest v1.Hash) (*os.File, error) {
	if !usable(manifest) {
		return nil, fmt.Errorf("digest %q is not a sha256 one", manifest)
	}
	return flock(s.blobPath(manifest), os.O_RDONLY, syscall.LOCK_SH)
}

// describe reads manifest and configuration. The image returned has no lease.
func (s *Store) describe(desc v1.Descriptor) (*Image, error) {
	manifest, config, diffIDs, err := s.read(desc.Digest)
	if err != nil {
		return nil, err
	}
	image := &Image{
		Name:         desc.Annotations[nameAnnotation],
		Digest:       desc.Digest.String(),
		PulledDigest: desc.Annotations[pulledAnnotation],
		Config:       config,
		Layers:       s.layers(manifest, diffIDs),
		Size:         manifest.Config.Size,
	}
	for _, layer := range manifest.Layers {
		image.Size += layer.Size
	}
	if info, err := os.Stat(s.blobPath(desc.Digest)); err == nil {
		image.Size += info.Size()
	}
	if at, err := time.Parse(time.RFC3339, desc.Annotations[storedAnnotation]); err == nil {
		image.Stored = at
	}
	return image, nil
}

// read returns manifest, configuration and diff ids of an image in the store.
func (s *Store) read(digest v1.Hash) (*v1.Manifest, Config, []v1.Hash, error) {
	if !usable(digest) {
		return nil, Config{}, nil, fmt.Errorf("digest %q is not a sha256 one", digest)
	}
	data, err := readBounded(s.blobPath(digest), maxManifestBytes)
	if err != nil {
		return nil, Config{}, nil, err
	}
	manifest, err := parseStored(data)
	if err != nil {
		return nil, Config{}, nil, err
	}
	data, err = readBounded(s.blobPath(manifest.Config.Digest), maxConfigBytes)
	if err != nil {
		return nil, Config{}, nil, err
	}
	config, diffIDs, err := parseConfig(data, len(manifest.Layers))
	return manifest, config, diffIDs, err
}

// List returns all images with a name, ordered by it.
func (s *Store) List() ([]Summary, error) {
	index, lock, err := s.lockIndex(syscall.LOCK_SH)
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	var list []Summary
	for _, d := range index.Manifests {
		name := d.Annotations[nameAnnotation]
		if name == "" {
			continue // another tool's; without a name nobody can ask for it
		}
		list = append(list, s.summarize(d))
	}
	slices.SortFunc(list, func(a, b Summary) int { return cmp.Compare(a.Name, b.Name) })
	return list, nil
}

func (s *Store) summarize(d v1.Descriptor) Summary {
	sum := Summary{Name: d.Annotations[nameAnnotation], Digest: d.Digest.String()}
	image, err := s.open(d)
	if err != nil {
		sum.Problem = err.Error()
		return sum
	}
	defer image.Release()
	c := image.Config
	sum.PulledDigest = image.PulledDigest
	sum.Platform = platformString(v1.Platform{OS: c.OS, Architecture: c.Architecture, Variant: c.Variant})
	sum.Size, sum.Created, sum.Stored = image.Size, c.Created, image.Stored
	return sum
}

// Tag gives an image a further name, taking it from the image that had it.
func (s *Store) Tag(ref, name string) error {
	if err := CheckName(name); err != nil {
		return err
	}
	index, lock, err := s.lockIndex(syscall.LOCK_EX)
	if err != nil {
		return err
	}
	defer lock.Close()
	desc, err := find(index, ref)
	if err != nil {
		return err
	}
	setName(index, desc, name, desc.Annotations[pulledAnnotation])
	return s.writeIndex(index)
}

// setName puts a manifest into the index under a name, in the place of whatever had it.
func setName(index *v1.IndexManifest, desc v1.Descriptor, name, pulled string) {
	entry := v1.Descriptor{MediaType: desc.MediaType, Size: desc.Size, Digest: desc.Digest, Platform: desc.Platform}
	entry.Annotations = map[string]string{
		nameAnnotation:   name,
		storedAnnotation: time.Now().UTC().Format(time.RFC3339),
	}
	if pulled != "" {
		entry.Annotations[pulledAnnotation] = pulled
	}
	index.Manifests = append(dropName(index.Manifests, name), entry)
}

func dropName(entries []v1.Descriptor, name string) []v1.Descriptor {
	return slices.DeleteFunc(entries, func(d v1.Descriptor) bool { return d.Annotations[nameAnnotation] == name })
}
