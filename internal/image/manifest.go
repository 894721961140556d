package image

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// document is a manifest or an index: one of the two.
type document struct {
	manifest *v1.Manifest
	index    *v1.IndexManifest
}

// parseDocument tells manifest and index apart by what is in them and checks what later code relies on. A document
// that could be read as both is refused: two readers might see two images in it.
func parseDocument(data []byte) (document, error) {
	doc, err := readDocument(data)
	if err == nil && doc.manifest != nil {
		err = checkManifest(doc.manifest, isPublished)
	}
	return doc, err
}

// readDocument is parseDocument without a look at what a manifest lists.
func readDocument(data []byte) (document, error) {
	var outline struct {
		SchemaVersion int             `json:"schemaVersion"`
		MediaType     types.MediaType `json:"mediaType"`
		Config        json.RawMessage `json:"config"`
		Layers        json.RawMessage `json:"layers"`
		Manifests     json.RawMessage `json:"manifests"`
	}
	if err := json.Unmarshal(data, &outline); err != nil {
		return document{}, fmt.Errorf("manifest: %w", err)
	}
	if outline.SchemaVersion == 1 {
		return document{}, errors.New("manifest: schema 1 is too old; push the image again with a current tool")
	}
	isIndex, isManifest := outline.Manifests != nil, outline.Config != nil || outline.Layers != nil
	switch {
	case outline.SchemaVersion != 2:
		return document{}, fmt.Errorf("manifest: unknown schema version %d", outline.SchemaVersion)
	case isIndex && isManifest:
		return document{}, errors.New("manifest: both an image and an index of images")
	case outline.MediaType != "" && outline.MediaType.IsIndex() != isIndex:
		return document{}, fmt.Errorf("manifest: its content is not what its media type %q says", outline.MediaType)
	case isIndex:
		index, err := v1.ParseIndexManifest(bytes.NewReader(data))
		if err != nil {
			return document{}, fmt.Errorf("image index: %w", err)
		}
		return document{index: index}, nil
	}
	manifest, err := v1.ParseManifest(bytes.NewReader(data))
	if err != nil {
		return document{}, fmt.Errorf("manifest: %w", err)
	}
	if manifest.MediaType == "" {
		manifest.MediaType = types.OCIManifestSchema1 // which alone may leave it out
	}
	return document{manifest: manifest}, nil
}

// parseManifest is parseDocument for what has to be the manifest of one image.
func parseManifest(data []byte) (*v1.Manifest, error) {
	m, err := readManifest(data)
	if err != nil {
		return nil, err
	}
	return m, checkManifest(m, isPublished)
}

// parseStored is parseManifest for what lies in the store, where layers may be EROFS files.
func parseStored(data []byte) (*v1.Manifest, error) {
	m, err := readManifest(data)
	if err != nil {
		return nil, err
	}
	if isEROFS(m) {
		return m, checkManifest(m, func(t types.MediaType) bool { return t == erofsLayer })
	}
	return m, checkManifest(m, isPublished)
}

func readManifest(data []byte) (*v1.Manifest, error) {
	doc, err := readDocument(data)
	if err != nil {
		return nil, err
	}
	if doc.manifest == nil {
		return nil, errors.New("manifest: an index where an image was expected")
	}
	return doc.manifest, nil
}

// isPublished reports whether layers of the type come from registries and in archives.
func isPublished(t types.MediaType) bool {
	switch t {
	case types.DockerLayer, types.DockerUncompressedLayer, types.OCILayer, types.OCIUncompressedLayer, types.OCILayerZStd:
		return true
	}
	return false
}

// checkManifest checks what later code relies on; isLayer tells which types layers may be of.
func checkManifest(m *v1.Manifest, isLayer func(types.MediaType) bool) error {
	switch m.Config.MediaType {
	case types.DockerConfigJSON, types.OCIConfigJSON:
	default:
		return fmt.Errorf("manifest: not a container image but %q", m.Config.MediaType)
	}
	if err := checkDescriptor(m.Config); err != nil {
		return fmt.Errorf("manifest: config: %w", err)
	}
	if m.Config.Size > maxConfigBytes {
		return fmt.Errorf("manifest: config: %d bytes, at most %d are read", m.Config.Size, maxConfigBytes)
	}
	if n := len(m.Layers); n == 0 || n > maxImageLayers {
		return fmt.Errorf("manifest: %d layers, must be 1 to %d", n, maxImageLayers)
	}
	for i, layer := range m.Layers {
		if !isLayer(layer.MediaType) {
			return fmt.Errorf("manifest: layer %d: media type %q is no file system layer that may be distributed", i, layer.MediaType)
		}
		if err := checkDescriptor(layer); err != nil {
			return fmt.Errorf("manifest: layer %d: %w", i, err)
		}
	}
	return nil
}

// checkDescriptor makes sure that the digest can name a file and that the content is where the manifest is.
func checkDescriptor(d v1.Descriptor) error {
	switch {
	case !usable(d.Digest):
		return fmt.Errorf("digest %q is not a sha256 one", d.Digest)
	case d.Size < 0:
		return fmt.Errorf("%s: size %d", d.Digest, d.Size)
	case len(d.URLs) > 0:
		return fmt.Errorf("%s: is to be fetched from elsewhere, which is not done", d.Digest)
	}
	return nil
}

// usable reports whether a digest is one the store works with. The JSON decoder has checked its form, if it was there.
func usable(h v1.Hash) bool {
	return h.Algorithm == "sha256" && len(h.Hex) == 64
}

// parseConfig reads an image's configuration and its diff ids, one per layer, base first.
func parseConfig(data []byte, layers int) (Config, []v1.Hash, error) {
	file, err := v1.ParseConfigFile(bytes.NewReader(data))
	if err != nil {
		return Config{}, nil, fmt.Errorf("config: %w", err)
	}
	ids := file.RootFS.DiffIDs
	if len(ids) != layers {
		return Config{}, nil, fmt.Errorf("config: %d diff ids for %d layers", len(ids), layers)
	}
	for _, id := range ids {
		if !usable(id) {
			return Config{}, nil, fmt.Errorf("config: diff id %q is not a sha256 one", id)
		}
	}
	c := Config{
		Entrypoint:   file.Config.Entrypoint,
		Cmd:          file.Config.Cmd,
		Env:          file.Config.Env,
		User:         file.Config.User,
		WorkingDir:   file.Config.WorkingDir,
		StopSignal:   file.Config.StopSignal,
		Labels:       file.Config.Labels,
		ExposedPorts: sortedKeys(file.Config.ExposedPorts),
		Volumes:      sortedKeys(file.Config.Volumes),
		OS:           file.OS,
		Architecture: file.Architecture,
		Variant:      file.Variant,
		Author:       file.Author,
		Created:      file.Created.Time,
	}
	run := slices.Concat(c.Entrypoint, c.Cmd, c.Env, []string{c.User, c.WorkingDir, c.StopSignal})
	for _, s := range run {
		if strings.ContainsRune(s, 0) {
			return Config{}, nil, fmt.Errorf("config: NUL in %q", s)
		}
	}
	return c, ids, nil
}

func sortedKeys(set map[string]struct{}) []string {
	var keys []string
	for key := range set {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	return keys
}
