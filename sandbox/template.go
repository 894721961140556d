package sandbox

import (
	"context"
	"errors"
	"fmt"

	"github.com/matchlock/matchlock/api"
	"github.com/matchlock/matchlock/internal/qemu"
	"github.com/matchlock/matchlock/internal/state"
)

// Warm sees to it that the next sandbox of the configuration's image and size
// begins as a copy of a template, and tells whether one had to be made for that.
// It starts a sandbox as New would and closes it again: one that is there is
// known to work then. What of Options is about a sandbox's name and its end
// does not count, nor does Cold.
func (o Options) Warm(ctx context.Context, config api.Config) (made bool, err error) {
	if err := config.Validate(); err != nil {
		return false, err
	}
	if o.Backend != nil || len(userDisks(state.Home{}, &config)) > 0 {
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

// Templates lists the templates in the cache, the last used first.
func (o Options) Templates() ([]api.Template, error) {
	home, err := o.home()
	if err != nil {
		return nil, err
	}
	return qemu.Templates(home.Templates())
}

// VerifyTemplates compares all that the templates hold with what was written,
// and removes those that are damaged. It returns all, the damaged ones with
// Damage.
func (o Options) VerifyTemplates(ctx context.Context) ([]api.Template, error) {
	home, err := o.home()
	if err != nil {
		return nil, err
	}
	return qemu.VerifyTemplates(ctx, home.Templates())
}

// PruneTemplates removes the templates that are of no use any more, were last
// used a month ago, or take more than 8 GiB together; or all. What runs goes on.
// A start that makes a template does the same.
func (o Options) PruneTemplates(ctx context.Context, all bool) (removed []api.Template, err error) {
	home, err := o.home()
	if err != nil {
		return nil, err
	}
	return qemu.PruneTemplates(ctx, home.Templates(), all)
}
