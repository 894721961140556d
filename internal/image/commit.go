package image

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Annotations of a manifest that tell what an image is based on (OCI image specification, annotations.md).
const (
	baseNameAnnotation   = "org.opencontainers.image.base.name"
	baseDigestAnnotation = "org.opencontainers.image.base.digest"
)

// CommitOptions say how what was written over an image becomes another one. The zero value is fine.
type CommitOptions struct {
	Changes  []string // to the configuration, as those of ImportOptions
	Author   string   // empty: the author stays who it was
	Message  string   // for the history
	BaseName string   // by which the base was asked for; empty: it is not told
	MaxBytes int64    // that the layer may unpack to; 0: DefaultMaxBytes
	Progress Progress
}

// check tells whether an image can be made by that name and with these options, before anything is read for it.
func (o CommitOptions) check(name string) ([]change, error) {
	if err := CheckName(name); err != nil {
		return nil, err
	}
	for what, text := range map[string]string{"author": o.Author, "message": o.Message} {
		if len(text) > maxHistoryText || strings.ContainsRune(text, 0) {
			return nil, fmt.Errorf("%s: want at most %d bytes, none of them NUL", what, maxHistoryText)
		}
	}
	return parseChanges(o.Changes)
}

// maxHistoryText bounds what a commit says of itself.
const maxHistoryText = 4096

// emptyLayer is the diff id of a tar without entries.
var emptyLayer = v1.Hash{Algorithm: "sha256", Hex: "5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef"}

// Commit makes an image of another one, by its digest, and of a layer upon it, and gives it the name, taking it from the image
// that had it. The layer is a tar as images have them, from wherever: it is checked as a pulled one is. It is opened when all
// else is known to be right, and read once, to its end. All other layers are those of the base, and its configuration, with
// the changes, is the image's. A layer without entries is left out.
func (s *Store) Commit(ctx context.Context, name, base string, layer func(context.Context) (io.ReadCloser, error), o CommitOptions) (*Image, error) {
	changes, err := o.check(name)
	if err != nil {
		return nil, err
	}
	image, err := s.Lookup(base)
	if err != nil {
		return nil, err
	}
	defer image.Release()
	w, err := s.begin()
	if err != nil {
		return nil, fmt.Errorf("image store: %w", err)
	}
	defer w.end()
	c := &commit{intake: w.intake(name, o.MaxBytes, o.Progress), options: o, changes: changes}
	made, err := c.upon(ctx, image.Digest, layer)
	if err != nil {
		return nil, fmt.Errorf("image %q: %w", name, err)
	}
	return made, nil
}

// commit is one call of Commit.
type commit struct {
	*intake
	options CommitOptions
	changes []change
}

// upon makes the image. The base is leased.
func (c *commit) upon(ctx context.Context, base string, layer func(context.Context) (io.ReadCloser, error)) (*Image, error) {
	digest, err := v1.NewHash(base)
	if err != nil {
		return nil, err
	}
	manifest, _, diffIDs, err := c.read(digest)
	if err != nil {
		return nil, err
	}
	if isEROFS(manifest) {
		return nil, errors.New("its base came with a snapshot, without the layers that others could read")
	}
	if len(diffIDs) == maxImageLayers {
		return nil, fmt.Errorf("its base has %d layers already, which is the most that are read", maxImageLayers)
	}
	var parts []part
	for i, l := range manifest.Layers {
		l.MediaType = ociLayer(l.MediaType)
		parts = append(parts, part{name: l.Digest.String(), what: "layer " + l.Digest.String(), desc: l, diffID: diffIDs[i]})
	}
	top := part{name: "changes", what: "changes", desc: v1.Descriptor{Size: -1}, open: layer}
	var got staged
	err = c.bring(ctx, []part{top}, func(v1.Hash) bool { return true }, func(part) bool { return false },
		func(_ int, layer staged) error { got = layer; return nil })
	if err != nil {
		return nil, err
	}
	isEmpty := got.diffID == emptyLayer
	if !isEmpty {
		top.desc, top.diffID = got.desc, got.diffID
		parts = append(parts, top)
	}
	configData, err := c.config(manifest.Config.Digest, diffIDsOf(parts), isEmpty)
	if err != nil {
		return nil, err
	}
	made := v1.Manifest{
		SchemaVersion: 2, MediaType: types.OCIManifestSchema1, Config: descriptorOf(configData, types.OCIConfigJSON),
		Annotations: map[string]string{baseDigestAnnotation: base},
	}
	if c.options.BaseName != "" {
		made.Annotations[baseNameAnnotation] = c.options.BaseName
	}
	for _, p := range parts {
		made.Layers = append(made.Layers, p.desc)
	}
	manifestData, err := json.Marshal(made)
	if err != nil {
		return nil, err
	}
	if _, err := parseManifest(manifestData); err != nil {
		return nil, err
	}
	desc, lease, err := c.announce(manifestData, made.MediaType, configData, types.OCIConfigJSON)
	if err != nil {
		return nil, err
	}
	defer lease.Close()
	if !isEmpty {
		if err := c.keep(got); err != nil {
			return nil, err
		}
	}
	return c.complete(ctx, desc, "", parts)
}

// config makes the configuration of the one with a digest, which is the base's.
func (c *commit) config(base v1.Hash, diffIDs []v1.Hash, isEmpty bool) ([]byte, error) {
	file, err := c.configFile(base)
	if err != nil {
		return nil, err
	}
	now := v1.Time{Time: time.Now().UTC().Truncate(time.Second)}
	if c.options.Author != "" {
		file.Author = c.options.Author
	}
	file.Created, file.Container = now, ""
	// Where there is a history at all, its entries are taken for those of the layers.
	told := 0
	for _, h := range file.History {
		if !h.EmptyLayer {
			told++
		}
	}
	for n := len(file.RootFS.DiffIDs); told < n; told++ {
		file.History = append([]v1.History{{Comment: "not told"}}, file.History...)
	}
	file.History = append(file.History, v1.History{
		Created: now, CreatedBy: "matchlock commit", Author: c.options.Author, Comment: c.options.Message, EmptyLayer: isEmpty,
	})
	file.RootFS.DiffIDs = diffIDs
	applyChanges(&file.Config, c.changes)
	return json.Marshal(file)
}

// configFile reads a configuration.
func (s *Store) configFile(digest v1.Hash) (*v1.ConfigFile, error) {
	data, err := readBounded(s.blobPath(digest), maxConfigBytes)
	if err != nil {
		return nil, err
	}
	file, err := v1.ParseConfigFile(bytes.NewReader(data))
	if err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	return file, nil
}

// ociLayer is the type that a layer has in a manifest of OCI's.
func ociLayer(t types.MediaType) types.MediaType {
	switch t {
	case types.DockerLayer:
		return types.OCILayer
	case types.DockerUncompressedLayer:
		return types.OCIUncompressedLayer
	}
	return t
}

// Lineage is where an image comes from, in its authors' words.
type Lineage struct {
	Base    *Base  `json:"base,omitempty"` // nil: it is not told
	History []Step `json:"history,omitempty"`
}

// Base is the image that another one is based on.
type Base struct {
	Name   string `json:"name,omitempty"`
	Digest string `json:"digest,omitempty"`
}

// Step is one of those by which an image was made, the first one first.
type Step struct {
	Created    time.Time `json:"created,omitzero"`
	CreatedBy  string    `json:"created_by,omitempty"`
	Author     string    `json:"author,omitempty"`
	Comment    string    `json:"comment,omitempty"`
	EmptyLayer bool      `json:"empty_layer,omitempty"` // it made no layer
}

// Lineage reads where an image comes from.
func (s *Store) Lineage(i *Image) (Lineage, error) {
	digest, err := v1.NewHash(i.Digest)
	if err != nil {
		return Lineage{}, err
	}
	manifest, _, _, err := s.read(digest)
	if err != nil {
		return Lineage{}, err
	}
	file, err := s.configFile(manifest.Config.Digest)
	if err != nil {
		return Lineage{}, err
	}
	var l Lineage
	if base := (Base{manifest.Annotations[baseNameAnnotation], manifest.Annotations[baseDigestAnnotation]}); base != (Base{}) {
		l.Base = &base
	}
	for _, h := range file.History {
		l.History = append(l.History, Step{h.Created.Time, h.CreatedBy, h.Author, h.Comment, h.EmptyLayer})
	}
	return l, nil
}
