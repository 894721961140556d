package image

import (
	"context"
	"fmt"
	"io"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// PullOptions say how an image is pulled. The zero value is fine.
type PullOptions struct {
	Platform string // "linux/arm64"; empty: this host's
	Force    bool   // fetch and unpack again what the store has already
	Insecure bool   // plain HTTP is fine; for registries on this host it always is
	MaxBytes int64  // that the image may unpack to; 0: DefaultMaxBytes
	Progress Progress
}

// Pull fetches an image from its registry and stores it under its full name (see [Expand]), which it takes from the
// image that had it. Layers that are in the store are not fetched again, unless o says so; those that were finished
// stay there when the pull fails. Credentials come from docker's configuration and its helpers, a proxy from the
// environment. A name with a digest is checked against it, and needs no registry if the store has the image.
//
// Errors that callers may care about are *NotFoundError, *PlatformError, ErrDenied and ErrTooLarge.
func (s *Store) Pull(ctx context.Context, ref string, o PullOptions) (*Image, error) {
	platform, err := parsePlatform(o.Platform)
	if err != nil {
		return nil, err
	}
	var nameOptions []name.Option
	if o.Insecure {
		nameOptions = append(nameOptions, name.Insecure)
	}
	parsed, err := parseRef(ref, nameOptions...)
	if err != nil {
		return nil, err
	}
	full := fullName(parsed)
	if _, pinned := parsed.(name.Digest); pinned && !o.Force {
		if image, err := s.Lookup(full); err == nil {
			if checkPlatform(image.Config, platform) == nil {
				return image, nil
			}
			image.Release()
		}
	}
	w, err := s.begin()
	if err != nil {
		return nil, fmt.Errorf("image store: %w", err)
	}
	defer w.end()
	in := w.intake(full, o.MaxBytes, o.Progress)
	in.force = o.Force
	image, err := in.pull(ctx, parsed, platform)
	if err != nil {
		return nil, explain(full, err)
	}
	return image, nil
}

func (in *intake) pull(ctx context.Context, ref name.Reference, platform v1.Platform) (*Image, error) {
	reg, err := in.dial(ctx, ref.Context())
	if err != nil {
		return nil, err
	}
	defer reg.close()
	var p published
	if p.manifest, err = reg.manifest(ctx, ref.Identifier()); err != nil {
		return nil, err
	}
	digest := descriptorOf(p.manifest, "").Digest
	if pin, ok := ref.(name.Digest); ok && digest.String() != pin.DigestStr() {
		return nil, fmt.Errorf("the registry sent %s instead", digest)
	}
	fetch := func(ctx context.Context, d v1.Descriptor, limit int64) ([]byte, error) {
		if d.MediaType.IsImage() || d.MediaType.IsIndex() {
			data, err := reg.manifest(ctx, d.Digest.String())
			if err != nil {
				return nil, err
			}
			return data, checkBlob(data, d.Digest)
		}
		blob := reg.blob(ctx, d)
		defer blob.Close()
		data, err := readAll(blob, limit)
		if err != nil {
			return nil, err
		}
		return data, checkBlob(data, d.Digest)
	}
	if _, err := resolve(ctx, &p, platform, fetch); err != nil {
		return nil, err
	}
	p.pulled = digest.String()
	p.open = func(ctx context.Context, d v1.Descriptor) (io.ReadCloser, error) { return reg.blob(ctx, d), nil }
	return in.takePublished(ctx, p)
}
