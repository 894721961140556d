package sandbox

import (
	"context"
	"fmt"
	"io"

	"github.com/matchlock/matchlock/internal/agent"
	"github.com/matchlock/matchlock/internal/image"
)

// CommitOptions say how a sandbox becomes an image. The zero value is fine.
type CommitOptions struct {
	// Changes to the configuration, each as a line of a Dockerfile: CMD, ENTRYPOINT, ENV,
	// USER or WORKDIR.
	Changes []string
	// Author and Message are for the image's history; without an author it stays that of
	// the image that the sandbox was made from.
	Author, Message string
	// Running has the sandbox go on meanwhile. What it writes then may be in the image
	// half or not at all.
	Running bool
	// MaxBytes is the most that may have been written; 0: 64 GiB.
	MaxBytes int64
}

// Commit makes an image of the files of the sandbox as they are, and gives it a name in
// the local store, which is taken from the image that had it. What was written is one
// layer upon those of the image that the sandbox was made from, whose configuration it
// has too, with the changes: neither commands nor environment of the sandbox go into it.
// Nor does what is mounted, or what matchlock itself has written. The sandbox stands
// still until it is read. Commit returns the image's digest.
func (s *Sandbox) Commit(ctx context.Context, name string, c CommitOptions) (digest string, err error) {
	o := s.keeper.maker().withDefaults()
	home, err := o.home()
	if err != nil {
		return "", err
	}
	info, err := s.keeper.info(ctx)
	if err != nil {
		return "", err
	}
	store, err := image.Open(home.Images())
	if err != nil {
		return "", err
	}
	base := info.Image
	if known, err := store.Lookup(base); err == nil { // the name may be another image's by now
		if known.Digest == info.ImageDigest {
			base = known.Name
		}
		known.Release()
	}
	report := newTasks(o.Progress)
	defer report.end()
	explain := func(err error) error {
		if agent.IsGuestError(err) {
			return fmt.Errorf("sandbox %q: %w", info.Name, err)
		}
		return s.keeper.explain(ctx, err)
	}
	layer := func(ctx context.Context) (io.ReadCloser, error) {
		r, err := s.client.ReadLayer(ctx, !c.Running)
		if err != nil {
			return nil, explain(err)
		}
		return &explained{r, explain}, nil
	}
	img, err := store.Commit(ctx, name, info.ImageDigest, layer, image.CommitOptions{
		Changes: c.Changes, Author: c.Author, Message: c.Message, BaseName: base, MaxBytes: c.MaxBytes, Progress: report.layer,
	})
	if err != nil {
		return "", err
	}
	return img.Digest, img.Release()
}

// explained reads with errors that say what they mean for the sandbox.
type explained struct {
	io.ReadCloser
	explain func(error) error
}

func (e *explained) Read(p []byte) (int, error) {
	n, err := e.ReadCloser.Read(p)
	if err != nil && err != io.EOF {
		err = e.explain(err)
	}
	return n, err
}
