package hostfs

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"
)

// Reclaim takes from others the right to write dir, so that Private takes it again, and tells whether they had it. It
// changes nothing else, and that only where dir is the caller's own folder, no link, and was not used by others: what
// is in it belongs to the caller, and has names that ours, unless nil, says yes to. Otherwise it is a *FolderError. What is
// not there, or not the caller's, is left to Private.
func Reclaim(dir string, ours func(name string) bool) (changed bool, err error) {
	f, err := os.OpenFile(dir, os.O_RDONLY|syscall.O_DIRECTORY|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return false, nil // Private tells what it is
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return false, err
	}
	mode := info.Mode()
	if int(info.Sys().(*syscall.Stat_t).Uid) != os.Geteuid() || mode.Perm()&0o022 == 0 {
		return false, nil
	}
	refuse := func(fault string) error {
		return &FolderError{Path: dir, Fault: fmt.Sprintf("may be written by others (mode %04o), and %s", mode.Perm(), fault), Fix: "set MATCHLOCK_HOME to a folder of your own"}
	}
	if mode&os.ModeSticky != 0 {
		return false, refuse("is meant to be")
	}
	for {
		entries, err := f.ReadDir(1000)
		for _, entry := range entries {
			inside, err := entry.Info()
			switch {
			case errors.Is(err, fs.ErrNotExist): // since it was listed
			case err != nil:
				return false, err
			case int(inside.Sys().(*syscall.Stat_t).Uid) != os.Geteuid():
				return false, refuse(fmt.Sprintf("%q in it belongs to user %d", entry.Name(), inside.Sys().(*syscall.Stat_t).Uid))
			case ours != nil && !ours(entry.Name()):
				return false, refuse(fmt.Sprintf("has %q in it, which is not matchlock's", entry.Name()))
			}
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return false, err
		}
	}
	return true, f.Chmod(mode &^ 0o022)
}
