package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/matchlock/matchlock/api"
	"github.com/matchlock/matchlock/internal/control"
	"github.com/matchlock/matchlock/internal/qemu"
	"github.com/matchlock/matchlock/internal/saved"
	"github.com/matchlock/matchlock/internal/state"
)

// Garbage is what supervisors have left that were killed.
type Garbage struct {
	// Sandboxes are the ids of those that were to go with their supervisors.
	Sandboxes []string `json:"sandboxes"`
	// Files are what was of use to a supervisor only, in folders that stay.
	Files []string `json:"files"`
}

// GC removes what supervisors have left that were killed. It does no harm to
// what runs, nor to a sandbox that was kept; New and Start do most of it on
// their way.
func (o Options) GC(ctx context.Context) (Garbage, error) {
	home, err := o.home()
	if err != nil {
		return Garbage{}, err
	}
	g := Garbage{Sandboxes: []string{}, Files: []string{}} // lists in JSON too
	swept, err := o.sweep(ctx, home)
	g.Sandboxes = append(g.Sandboxes, swept...)
	if err != nil {
		return g, err
	}
	entries, err := state.List(home.Sandboxes())
	if err != nil {
		return g, err
	}
	var errs []error
	for _, e := range entries {
		if e.Status.Alive() || e.Problem != nil {
			continue
		}
		dir, err := state.Open(ctx, e)
		if errors.Is(err, state.ErrAlive) || errors.Is(err, fs.ErrNotExist) {
			continue // since we looked
		}
		if err == nil {
			var removed []string
			removed, err = tidy(dir)
			g.Files = append(g.Files, removed...)
			err = errors.Join(err, dir.Close())
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("sandbox %q: %w", e.Name, err))
		}
	}
	qemu.Sweep()
	errs = append(errs, saved.RemoveRemains(home.Snapshots()), removeUnmade(home.Volumes()))
	return g, errors.Join(errs...)
}

// sweep removes the sandboxes that were to go with supervisors that were killed.
func (o Options) sweep(ctx context.Context, home state.Home) (removed []string, err error) {
	removed, err = state.Sweep(ctx, home.Sandboxes())
	for _, id := range removed {
		o.tell(home, api.Info{ID: id}, api.LifeRemoved, "its supervisor was killed")
	}
	return removed, err
}

// lasting are the files of a folder that outlive a supervisor, by their names or
// what these begin with.
var lasting = []string{configName, "state.json", "lock", scratchName, copyPrefix, overlaysName, outputName, consoleName, eventsName, networkName}

// tidy removes what a supervisor that was killed has left in a folder and the
// next one has no use for.
func tidy(dir *state.Dir) (removed []string, err error) {
	entries, err := os.ReadDir(dir.Path())
	if err != nil {
		return nil, err
	}
	for _, entry := range entries {
		name := entry.Name()
		if name != control.SocketName && slices.ContainsFunc(lasting, func(l string) bool { return strings.HasPrefix(name, l) }) {
			continue
		}
		if e := os.RemoveAll(dir.Path(name)); e != nil {
			err = errors.Join(err, e)
			continue
		}
		removed = append(removed, filepath.Join(dir.ID, name))
	}
	return removed, err
}
