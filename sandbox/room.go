package sandbox

import (
	"context"
	"errors"
	"io/fs"
	"path/filepath"
	"syscall"

	"github.com/matchlock/matchlock/api"
	"github.com/matchlock/matchlock/internal/image"
)

// Room tells how much of the disk matchlock's things take, by kind.
func (o Options) Room(ctx context.Context) ([]api.Room, error) {
	home, err := o.home()
	if err != nil {
		return nil, err
	}
	var errs []error
	store, err := image.Open(home.Images())
	if err != nil {
		return nil, err
	}
	images, err := store.List()
	errs = append(errs, err)
	sandboxes, err := o.List(ctx)
	errs = append(errs, err)
	snapshots, err := o.Snapshots()
	errs = append(errs, err)
	volumes, err := o.Volumes()
	errs = append(errs, err)
	templates, err := o.Templates()
	errs = append(errs, err)
	ended := int64(0)
	for _, info := range sandboxes {
		if !info.Status.Alive() {
			ended += roomOf(filepath.Join(home.Sandboxes(), info.ID))
		}
	}
	ofTemplates := roomOf(home.Templates())
	return []api.Room{
		{Kind: "images", Count: len(images), Size: roomOf(home.Images()), Command: "image prune"},
		{Kind: "sandboxes", Count: len(sandboxes), Size: roomOf(home.Sandboxes()), Free: ended, Command: "prune"},
		{Kind: "snapshots", Count: len(snapshots), Size: roomOf(home.Snapshots()), Command: "snapshot rm"},
		{Kind: "volumes", Count: len(volumes), Size: roomOf(home.Volumes()), Command: "volume rm"},
		{Kind: "templates", Count: len(templates), Size: ofTemplates, Free: ofTemplates, Command: "cache prune --all"},
		{Kind: "kernels and empty disks", Size: roomOf(home.Cache) - ofTemplates},
	}, errors.Join(errs...)
}

// roomOf is what the files of a folder take on the disk, as far as they can be looked at.
func roomOf(folder string) (size int64) {
	type file struct{ device, inode uint64 }
	seen := map[file]bool{}
	if real, err := filepath.EvalSymlinks(folder); err == nil {
		folder = real
	}
	filepath.WalkDir(folder, func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil
		}
		info, err := d.Info()
		if err != nil {
			return nil
		}
		if st, ok := info.Sys().(*syscall.Stat_t); ok && !seen[file{uint64(st.Dev), st.Ino}] {
			seen[file{uint64(st.Dev), st.Ino}] = true
			size += st.Blocks * 512
		}
		return nil
	})
	return size
}
