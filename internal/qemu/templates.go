package qemu

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

const (
	templateAge  = 30 * 24 * time.Hour // since its last use
	templateRoom = 8 << 30             // bytes on the disk, of all of them
)

// PruneTemplates removes the templates that have not been used for long, the
// least used ones of those that take too much room, and what makers left that
// were killed. What uses a template that is removed goes on.
func PruneTemplates(folder string) error {
	entries, err := os.ReadDir(folder)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	type known struct {
		dir  string
		used time.Time
		size int64
	}
	var all []known
	var errs []error
	for _, entry := range entries {
		dir := filepath.Join(folder, entry.Name())
		switch {
		case strings.HasPrefix(entry.Name(), oldTemplatePrefix):
			errs = append(errs, os.RemoveAll(dir))
			continue
		case strings.HasPrefix(entry.Name(), newTemplatePrefix):
			if lock, err := lockMaking(dir); err == nil {
				errs = append(errs, os.RemoveAll(dir), lock.Close())
			}
			continue
		}
		k := known{dir: dir}
		if info, err := os.Stat(filepath.Join(dir, templateRecord)); err == nil {
			k.used = info.ModTime()
		}
		for _, name := range []string{templateMemory, templateState, templateUpper} {
			if info, err := os.Stat(filepath.Join(dir, name)); err == nil {
				k.size += info.Sys().(*syscall.Stat_t).Blocks * 512 // stat(2)
			}
		}
		all = append(all, k)
	}
	slices.SortFunc(all, func(a, b known) int { return b.used.Compare(a.used) }) // the last used first
	var total int64
	for _, k := range all {
		total += k.size
		if total > templateRoom || time.Since(k.used) > templateAge {
			errs = append(errs, removeTemplate(k.dir))
		}
	}
	return errors.Join(errs...)
}
