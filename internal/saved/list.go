package saved

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// An Entry is what can be told of a machine without a look into its files.
type Entry[About any] struct {
	Name     string
	Size     int64           // bytes that its files take on the disk; what it shares with others counts
	Used     time.Time       // when it was made, or last opened
	Requires json.RawMessage // see vm.Snapshot
	About    About           // what its owner noted
	// Damage says why its record cannot be read; the fields above but Name and Size mean nothing then.
	Damage error
}

// List tells what machines there are in a folder, which need not be there, the last used first.
func List[About any](folder string) ([]Entry[About], error) {
	entries, err := readFolder(folder)
	var all []Entry[About]
	for _, entry := range entries {
		if strings.HasPrefix(entry.Name(), ".") {
			continue // not yet one, or not any more
		}
		if e, err := Describe[About](filepath.Join(folder, entry.Name())); err == nil { // else it went since we looked
			all = append(all, e)
		}
	}
	slices.SortFunc(all, func(a, b Entry[About]) int { return b.Used.Compare(a.Used) })
	return all, err
}

// Describe tells what List does of one machine. It fails only where there is nothing.
func Describe[About any](dir string) (Entry[About], error) {
	e := Entry[About]{Name: filepath.Base(dir)}
	if _, err := os.Stat(dir); err != nil {
		return e, err
	}
	files, err := os.ReadDir(dir)
	if err != nil {
		return e, err
	}
	for _, f := range files {
		if info, err := f.Info(); err == nil {
			e.Size += info.Sys().(*syscall.Stat_t).Blocks * 512 // stat(2)
			if f.Name() == recordName {
				e.Used = info.ModTime()
			}
		}
	}
	r, err := readRecord(dir)
	if err == nil && len(r.About) > 0 {
		if err = json.Unmarshal(r.About, &e.About); err != nil {
			err = fmt.Errorf("%s: %w", recordName, err)
		}
	}
	if err != nil {
		e.Damage = err
		return e, nil
	}
	e.Requires = r.Requires
	return e, nil
}
