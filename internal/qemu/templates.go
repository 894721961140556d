package qemu

import (
	"context"
	"errors"
	"io/fs"
	"path/filepath"
	"time"

	"github.com/matchlock/matchlock/api"
	"github.com/matchlock/matchlock/internal/hostfs"
	"github.com/matchlock/matchlock/internal/saved"
)

const (
	templateAge  = 30 * 24 * time.Hour // since its last use
	templateRoom = 8 << 30             // bytes on the disk, of all of them
)

// Templates tells what templates there are, the last used first. Of their own
// files it looks at the record only.
func Templates(folder string) ([]api.Template, error) {
	entries, err := saved.List[templateAbout](folder)
	var all []api.Template
	for _, e := range entries {
		all = append(all, describe(e))
	}
	return all, err
}

func describe(e saved.Entry[templateAbout]) api.Template {
	t := api.Template{ID: e.Name, Size: e.Size, Used: e.Used}
	if e.Damage != nil {
		t.Damage = e.Damage.Error()
		return t
	}
	t.Image, t.ImageDigest = e.About.Image, e.About.ImageDigest
	s := e.About.Shape
	t.CPUs, t.Memory, t.DiskSize, t.Accel = s.VCPUs-s.Reserved, int64(s.MemoryMB)<<20, s.Upper, s.Accel
	t.Stale = s.stale()
	return t
}

// stale says why no machine will have the shape again, "" where one may: each of
// the files would have to be what it was.
func (s shape) stale() string {
	for _, was := range append([]hostfs.FileID{s.QEMU, s.Kernel, s.Initramfs}, s.Layers...) {
		switch now, err := hostfs.Identify(was.Path); {
		case errors.Is(err, fs.ErrNotExist):
			return was.Path + " is gone"
		case err == nil && now != was:
			return was.Path + " has changed"
		}
	}
	return ""
}

// VerifyTemplates compares all that templates hold with what was written, and
// removes those that are damaged. It returns all, the damaged ones with Damage.
func VerifyTemplates(ctx context.Context, folder string) ([]api.Template, error) {
	all, err := Templates(folder)
	if err != nil {
		return nil, err
	}
	var errs []error
	for i := range all {
		dir := filepath.Join(folder, all[i].ID)
		damage := saved.Verify(ctx, dir)
		if err := context.Cause(ctx); err != nil {
			return all[:i], errors.Join(append(errs, err)...)
		}
		if damage != nil {
			all[i].Damage = damage.Error()
			errs = append(errs, saved.Remove(dir))
		}
	}
	return all, errors.Join(errs...)
}

// PruneTemplates removes the templates that are of no use any more or have not
// been used for long, the least used ones of those that take too much room, and
// what makers left that were killed; or all, but those that are being made. What
// uses a template that is removed goes on. It ends with ctx, between two of them.
func PruneTemplates(ctx context.Context, folder string, all bool) (removed []api.Template, err error) {
	errs := []error{saved.RemoveRemains(folder)}
	templates, err := Templates(folder)
	if err != nil {
		return nil, err
	}
	var kept int64
	for _, t := range templates {
		goes := all || t.Stale != "" || t.Damage != "" || time.Since(t.Used) > templateAge
		if !goes {
			kept += t.Size
			goes = kept > templateRoom
		}
		if !goes {
			continue
		}
		if err := context.Cause(ctx); err != nil {
			return removed, errors.Join(append(errs, err)...)
		}
		if err := saved.Remove(filepath.Join(folder, t.ID)); err != nil {
			errs = append(errs, err)
			continue
		}
		removed = append(removed, t)
	}
	return removed, errors.Join(errs...)
}
