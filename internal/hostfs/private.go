// Package hostfs answers one question: how are files kept on the host beside other users and other processes? In
// private folders, under locks, and replaced as a whole; sockets too.
//
// Where files are and what is in them is for others to know. It opens nothing for a guest.
package hostfs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"
)

// Private makes dir, with mode 0700, unless it is there. One that belongs to another user or that others may write is
// a *FolderError: what lies in it would be run as root of a guest, or believed to be ours.
func Private(dir string) error {
	// What is there may be a link of the user's to a larger disk; what counts is where it leads.
	info, err := os.Stat(dir)
	if errors.Is(err, fs.ErrNotExist) {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
		info, err = os.Stat(dir)
	}
	if err != nil {
		return err
	}
	if !info.IsDir() {
		return &FolderError{Path: dir, Fault: "is not a folder", Fix: "move it away"}
	}
	if owner := info.Sys().(*syscall.Stat_t).Uid; int(owner) != os.Geteuid() {
		return &FolderError{
			Path:  dir,
			Fault: fmt.Sprintf("belongs to user %d, and this is user %d", owner, os.Geteuid()),
			Fix:   "run matchlock as the folder's owner, or set MATCHLOCK_HOME to a folder of your own",
		}
	}
	if mode := info.Mode().Perm(); mode&0o022 != 0 {
		return &FolderError{Path: dir, Fault: fmt.Sprintf("may be written by others (mode %04o)", mode), Fix: "chmod go-w " + dir}
	}
	return nil
}

// FolderError is a folder of ours that cannot be trusted.
type FolderError struct {
	Path  string
	Fault string // follows the path in a sentence
	Fix   string // what the user can do about it
}

func (e *FolderError) Error() string { return fmt.Sprintf("folder %s %s", e.Path, e.Fault) }

// Hint is the way out.
func (e *FolderError) Hint() string { return e.Fix }
