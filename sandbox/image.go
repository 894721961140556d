package sandbox

import (
	"context"
	"errors"
	"fmt"
	"runtime"

	"github.com/matchlock/matchlock/api"
	"github.com/matchlock/matchlock/internal/image"
	"github.com/matchlock/matchlock/internal/state"
)

// image brings the configuration's image into the store and leases it.
func (o Options) image(ctx context.Context, home state.Home, c *api.Config) (*image.Image, error) {
	store, err := image.Open(home.Images())
	if err != nil {
		return nil, err
	}
	img, err := o.find(ctx, store, c)
	if err != nil {
		return nil, &ImageError{Image: c.Image, Err: err}
	}
	return img, nil
}

func (o Options) find(ctx context.Context, store *image.Store, c *api.Config) (*image.Image, error) {
	if c.Pull != api.PullAlways {
		img, err := store.Lookup(c.Image)
		if err == nil {
			if err := checkArch(c.Image, img); err != nil {
				return nil, errors.Join(err, img.Release())
			}
			return img, nil
		}
		if c.Pull == api.PullNever || !errors.Is(err, image.ErrNotFound) {
			return nil, err
		}
	}
	report := newTasks(o.Progress)
	defer report.end()
	return store.Pull(ctx, c.Image, image.PullOptions{Platform: c.Platform, Progress: report.layer})
}

// checkArch refuses an image for another processor, which the store may well hold.
func checkArch(ref string, img *image.Image) error {
	c := img.Config
	if c.Architecture == "" || c.Architecture == runtime.GOARCH {
		return nil
	}
	have := c.OS + "/" + c.Architecture
	return &hintError{
		fmt.Errorf("image %q: %w", ref, &image.PlatformError{Want: "linux/" + runtime.GOARCH, Have: []string{have}}),
		"`matchlock pull --platform linux/" + runtime.GOARCH + " IMAGE` fetches the one for this host, if there is one",
	}
}

// tasks turns what the parts tell into Progress.
type tasks struct {
	report func(Progress)
	open   map[string]bool // told of, not ended
}

func newTasks(report func(Progress)) *tasks {
	return &tasks{report, map[string]bool{}}
}

func (t *tasks) update(task string, done, total int64) {
	t.open[task] = true
	t.report(Progress{Task: task, Done: done, Total: total})
}

// layer is an image.Progress.
func (t *tasks) layer(e image.Event) {
	if e.State != image.Ready {
		t.update(e.Task(), e.Done, e.Total)
		return
	}
	delete(t.open, e.Task())
	t.report(Progress{Task: e.Task(), Done: e.Done, Total: e.Total, Ended: true})
}

// end tells the end of every task that did not come to one.
func (t *tasks) end() {
	for task := range t.open {
		t.report(Progress{Task: task, Ended: true})
	}
}
