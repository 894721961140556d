package image

import (
	"context"
	"errors"
	"fmt"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// maxIndexDepth is how many indexes may lie in each other. One is usual.
const maxIndexDepth = 3

// fetchBlob returns a small blob, which it has checked against its digest.
type fetchBlob func(ctx context.Context, d v1.Descriptor, limit int64) ([]byte, error)

// resolve finds the image for a platform. p.manifest is a manifest or an index; when resolve returns, it is the image's
// manifest, which is returned as well, and p.config is its configuration.
func resolve(ctx context.Context, p *published, want v1.Platform, fetch fetchBlob) (*v1.Manifest, error) {
	for range maxIndexDepth {
		doc, err := parseDocument(p.manifest)
		if err != nil {
			return nil, err
		}
		if doc.index != nil {
			desc, err := choose(doc.index, want)
			if err != nil {
				return nil, err
			}
			if err := checkDescriptor(desc); err != nil {
				return nil, fmt.Errorf("image index: %w", err)
			}
			if p.manifest, err = fetch(ctx, desc, maxManifestBytes); err != nil {
				return nil, err
			}
			continue
		}
		manifest := doc.manifest
		if p.config, err = fetch(ctx, manifest.Config, maxConfigBytes); err != nil {
			return nil, fmt.Errorf("config: %w", err)
		}
		config, _, err := parseConfig(p.config, len(manifest.Layers))
		if err != nil {
			return nil, err
		}
		return manifest, checkPlatform(config, want)
	}
	return nil, errors.New("image index: too many indexes in each other")
}

func checkPlatform(c Config, want v1.Platform) error {
	have := v1.Platform{OS: c.OS, Architecture: c.Architecture, Variant: c.Variant}
	if !runsOn(have, want) {
		return &PlatformError{Want: platformString(want), Have: []string{platformString(have)}}
	}
	return nil
}
