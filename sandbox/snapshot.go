package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strconv"

	"github.com/matchlock/matchlock/api"
	"github.com/matchlock/matchlock/internal/saved"
	"github.com/matchlock/matchlock/internal/state"
)

// Snapshot keeps the sandbox as it is at this moment, by Save, under a name, of
// [a-z0-9_.-]; empty, one is made of the sandbox's. It outlives the sandbox, and a
// reboot of the host. One that there is already is ErrSnapshotTaken. Volumes and
// disks of the user's are not in it: while anything in them is another than it was,
// nothing goes on from it.
func (s *Sandbox) Snapshot(ctx context.Context, name string) (api.Snapshot, error) {
	o := s.keeper.maker()
	home, err := o.home()
	if err != nil {
		return api.Snapshot{}, err
	}
	if name != "" {
		if err := checkFree(home, name); err != nil {
			return api.Snapshot{}, err
		}
	}
	m, err := s.keeper.save(ctx, keepDisks)
	if err != nil {
		return api.Snapshot{}, err
	}
	defer m.Close()
	if name, err = m.keep(ctx, home, name); err != nil {
		return api.Snapshot{}, err
	}
	return o.FindSnapshot(name)
}

// checkFree tells whether a snapshot can have a name.
func checkFree(home state.Home, name string) error {
	if err := state.CheckName(name); err != nil {
		return err
	}
	if _, err := saved.Describe[savedRecord](snapshotPath(home, name)); err == nil {
		return snapshotTaken(name)
	}
	return nil
}

func snapshotTaken(name string) error {
	return &hintError{fmt.Errorf("snapshot %q: %w", name, ErrSnapshotTaken), "choose another name; `matchlock snapshot rm` removes one"}
}

func snapshotPath(home state.Home, name string) string {
	return filepath.Join(home.Snapshots(), name)
}

// maxTries is how many names are tried where one is made up.
const maxTries = 10_000

// keep makes a snapshot of what was saved.
func (s *Saved) keep(ctx context.Context, home state.Home, name string) (string, error) {
	if name != "" {
		return name, s.keepAs(ctx, home, name)
	}
	for i := 1; ; i++ {
		name := s.record.Name + "-" + strconv.Itoa(i)
		if state.CheckName(name) != nil { // it is too long now
			name = s.record.ID + "-" + strconv.Itoa(i)
		}
		err := s.keepAs(ctx, home, name)
		if !errors.Is(err, ErrSnapshotTaken) || i == maxTries {
			return name, err
		}
	}
}

func (s *Saved) keepAs(ctx context.Context, home state.Home, name string) error {
	err := saved.Make(ctx, home.Snapshots(), name, s.machine, s.record)
	switch {
	case errors.Is(err, fs.ErrExist), errors.Is(err, saved.ErrBeingMade):
		return snapshotTaken(name)
	case err != nil:
		return fmt.Errorf("snapshot %q: %w", name, err)
	}
	return nil
}

// OpenSnapshot opens a snapshot, for Restore, and makes sure of its files: each
// time of the devices' state, of the rest after a boot of the host. One that there
// is not is ErrNotFound.
func (o Options) OpenSnapshot(ctx context.Context, name string) (*Saved, error) {
	home, _, err := o.locateSnapshot(name)
	if err != nil {
		return nil, err
	}
	s := new(Saved)
	if s.machine, err = saved.Open(ctx, snapshotPath(home, name), &s.record); err != nil {
		return nil, &hintError{fmt.Errorf("snapshot %q: %w", name, err), "`matchlock snapshot rm` removes it; nothing can go on from it"}
	}
	s.record.Requires, s.record.Snapshot = s.machine.Requires, name
	return s, nil
}

// Snapshots lists the snapshots that there are, the last used first. Their own
// files are not looked at.
func (o Options) Snapshots() ([]api.Snapshot, error) {
	home, err := o.home()
	if err != nil {
		return nil, err
	}
	entries, err := saved.List[savedRecord](home.Snapshots())
	list := make([]api.Snapshot, 0, len(entries))
	for _, e := range entries {
		list = append(list, snapshotOf(e))
	}
	return list, err
}

// FindSnapshot returns what is known of a snapshot. One that there is not is
// ErrNotFound.
func (o Options) FindSnapshot(name string) (api.Snapshot, error) {
	_, e, err := o.locateSnapshot(name)
	if err != nil {
		return api.Snapshot{}, err
	}
	return snapshotOf(e), nil
}

// locateSnapshot finds a snapshot below the home folder, which it returns too. One
// that there is not is ErrNotFound.
func (o Options) locateSnapshot(name string) (home state.Home, e saved.Entry[savedRecord], err error) {
	if home, err = o.home(); err != nil {
		return home, e, err
	}
	if err = state.CheckName(name); err == nil {
		e, err = saved.Describe[savedRecord](snapshotPath(home, name))
	}
	if err != nil {
		err = &hintError{fmt.Errorf("snapshot %q: %w", name, ErrNotFound), "`matchlock snapshot ls` lists them"}
	}
	return home, e, err
}

func snapshotOf(e saved.Entry[savedRecord]) api.Snapshot {
	r := e.About
	s := api.Snapshot{
		Name: e.Name, Created: r.Taken, Sandbox: r.ID, SandboxName: r.Name,
		Image: r.Config.Image, ImageDigest: r.ImageDigest, Command: append(append([]string{}, r.Config.Entrypoint...), r.Config.Command...), Labels: r.Config.Labels, Running: r.Main != nil,
		CPUs: r.Config.CPUs, Memory: r.Config.Memory, DiskSize: r.Config.DiskSize, Size: e.Size, Imported: r.Imported,
	}
	for _, d := range r.Disks {
		s.Disks = append(s.Disks, api.SnapshotDisk{Mount: d.Mount, ReadOnly: d.ReadOnly})
	}
	if e.Damage != nil {
		s.Damage = e.Damage.Error()
	}
	return s
}

// RemoveSnapshot removes a snapshot. What goes on from it does.
func (o Options) RemoveSnapshot(name string) error {
	home, _, err := o.locateSnapshot(name)
	if err != nil {
		return err
	}
	if err := saved.Remove(snapshotPath(home, name)); err != nil {
		return fmt.Errorf("snapshot %q: %w", name, err)
	}
	return saved.RemoveRemains(home.Snapshots())
}
