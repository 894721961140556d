package sandbox

import (
	"context"
	"errors"
	"fmt"

	"github.com/matchlock/matchlock/api"
	"github.com/matchlock/matchlock/internal/qemu"
)

// Warm sees to it that the next sandbox of the configuration's image and size
// begins as a copy of a template, and tells whether one had to be made for that.
// It starts a sandbox as New would and closes it again: one that is there is
// known to work then. What of Options is about a sandbox's name and its end
// does not count, nor does Cold.
func (o Options) Warm(ctx context.Context, config api.Config) (made bool, err error) {
	if o.Backend != nil || len(config.Disks) > 0 {
		return false, fmt.Errorf("a template for a sandbox with another backend or disks: %w", errors.ErrUnsupported)
	}
	o.Name, o.Keep, o.NeedCommand, o.Cold = "", false, false, false
	for {
		result := errors.New("such sandboxes are not copies of any")
		o.warm = func(m bool, e error) { made, result = m, e }
		sb, err := o.New(ctx, config)
		if err != nil {
			return false, err
		}
		if err := sb.Close(); err != nil {
			return made, err
		}
		if result == nil {
			return made, nil
		}
		if !errors.Is(result, qemu.ErrTemplateBeingMade) { // else it is there the next time
			return false, fmt.Errorf("image %q: no template was made: %w", config.Image, result)
		}
	}
}
