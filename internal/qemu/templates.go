package qemu

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/matchlock/matchlock/api"
	"github.com/matchlock/matchlock/internal/hostfs"
)

const (
	templateAge  = 30 * 24 * time.Hour // since its last use
	templateRoom = 8 << 30             // bytes on the disk, of all of them
)

// Templates tells what templates there are, the last used first. Of their own
// files it looks at the record only.
func Templates(folder string) ([]api.Template, error) {
	entries, err := readFolder(folder)
	var all []api.Template
	for _, entry := range entries {
		if strings.HasPrefix(entry.Name(), ".") {
			continue // not yet one, or not any more
		}
		t, err := describe(filepath.Join(folder, entry.Name()))
		if err == nil { // else it went since we looked
			all = append(all, t)
		}
	}
	slices.SortFunc(all, func(a, b api.Template) int { return b.Used.Compare(a.Used) })
	return all, err
}

// readFolder is os.ReadDir of a folder that need not be there.
func readFolder(folder string) ([]fs.DirEntry, error) {
	entries, err := os.ReadDir(folder)
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return entries, err
}

// describe fails only where there is nothing.
func describe(dir string) (api.Template, error) {
	t := api.Template{ID: filepath.Base(dir)}
	if _, err := os.Stat(dir); err != nil {
		return t, err
	}
	for _, name := range []string{templateMemory, templateState, templateUpper, templateRecord} {
		if info, err := os.Stat(filepath.Join(dir, name)); err == nil {
			t.Size += info.Sys().(*syscall.Stat_t).Blocks * 512 // stat(2)
			if name == templateRecord {
				t.Used = info.ModTime() // see openTemplate
			}
		}
	}
	var r record
	if err := r.read(dir); err != nil {
		t.Damage = err.Error()
		return t, nil
	}
	t.Image, t.ImageDigest = r.Image, r.ImageDigest
	t.CPUs, t.Memory, t.DiskSize, t.Accel = r.Shape.VCPUs, int64(r.Shape.MemoryMB)<<20, r.Shape.Upper, r.Shape.Accel
	t.Stale = r.Shape.stale()
	return t, nil
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
		if err := context.Cause(ctx); err != nil {
			return all[:i], errors.Join(append(errs, err)...)
		}
		dir := filepath.Join(folder, all[i].ID)
		if damage := verifyTemplate(dir); damage != nil {
			all[i].Damage = damage.Error()
			errs = append(errs, removeTemplate(dir))
		}
	}
	return all, errors.Join(errs...)
}

// verifyTemplate says how a template is damaged. One that is removed or replaced
// meanwhile is not.
func verifyTemplate(dir string) error {
	before, err := os.Stat(dir)
	if err != nil {
		return nil
	}
	t := &template{dir: dir}
	damage := t.open(true)
	t.close()
	if after, err := os.Stat(dir); err != nil || !os.SameFile(before, after) {
		return nil
	}
	return damage
}

// PruneTemplates removes the templates that are of no use any more or have not
// been used for long, the least used ones of those that take too much room, and
// what makers left that were killed; or all, but those that are being made. What
// uses a template that is removed goes on. It ends with ctx, between two of them.
func PruneTemplates(ctx context.Context, folder string, all bool) (removed []api.Template, err error) {
	errs := []error{removeRemains(folder)}
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
		if err := removeTemplate(filepath.Join(folder, t.ID)); err != nil {
			errs = append(errs, err)
			continue
		}
		removed = append(removed, t)
	}
	return removed, errors.Join(errs...)
}

// removeRemains removes what was left by those who were killed while they made
// or removed a template.
func removeRemains(folder string) error {
	entries, err := readFolder(folder)
	errs := []error{err}
	for _, entry := range entries {
		dir := filepath.Join(folder, entry.Name())
		switch {
		case strings.HasPrefix(entry.Name(), oldTemplatePrefix):
			errs = append(errs, os.RemoveAll(dir))
		case strings.HasPrefix(entry.Name(), newTemplatePrefix):
			if lock, err := lockMaking(dir); err == nil {
				errs = append(errs, os.RemoveAll(dir), lock.Close())
			}
		}
	}
	return errors.Join(errs...)
}
