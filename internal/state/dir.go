package state

import (
	"context"
	"crypto/rand"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/matchlock/matchlock/internal/hostfs"
)

// Names beside the sandboxes' folders. Neither is an id.
const (
	gateName   = "lock"   // see gate
	deadPrefix = ".dead-" // begins the name of a folder that a sweep is removing
)

// lockName is the file in a sandbox's folder whose lock says that it is alive.
const lockName = "lock"

// Dir is the folder of a living sandbox. It belongs to the supervisor that
// made it; its methods may be called by several goroutines at once.
type Dir struct {
	ID   string // 12 characters of [a-z0-9]
	path string
	lock *os.File
}

// Create makes the folder of a new sandbox, mode 0700, below sandboxes and
// holds its lock until Close, or until this process is gone.
func Create(sandboxes string) (*Dir, error) {
	if err := hostfs.Private(sandboxes); err != nil {
		return nil, err
	}
	// Shared with all who create: a sweep, which takes the gate for itself, never
	// sees a folder that is not locked yet.
	gate, err := openGate(sandboxes, syscall.LOCK_SH)
	if err != nil {
		return nil, err
	}
	defer gate.Close()
	d := &Dir{ID: newID()}
	d.path = filepath.Join(sandboxes, d.ID)
	if err := os.Mkdir(d.path, 0o700); err != nil {
		return nil, err
	}
	if d.lock, err = hostfs.Lock(context.Background(), filepath.Join(d.path, lockName), os.O_RDWR|os.O_CREATE, syscall.LOCK_EX); err != nil {
		return nil, errors.Join(err, os.RemoveAll(d.path))
	}
	return d, nil
}

// Path returns the path of a file in the folder, of the folder itself without
// a name.
func (d *Dir) Path(name ...string) string {
	return filepath.Join(append([]string{d.path}, name...)...)
}

// Close removes the folder and all that is in it, then gives the lock back. A
// second Close does nothing.
func (d *Dir) Close() error {
	err := os.RemoveAll(d.path)
	if e := d.lock.Close(); !errors.Is(e, os.ErrClosed) {
		err = errors.Join(err, e)
	}
	return err
}

// Sweep removes the folders whose supervisors are gone. Any number of sweeps
// and creations may go on at once. A sweep that would have to wait for one
// leaves the work to the next.
func Sweep(sandboxes string) error {
	dead, err := condemn(sandboxes)
	for _, path := range dead {
		// Another sweep may be removing it too; one that is killed here leaves it
		// to the next.
		err = errors.Join(err, os.RemoveAll(path))
	}
	return err
}

// condemn renames the folders of the dead, so that removing them, which may
// take its time, holds up nobody.
func condemn(sandboxes string) (dead []string, err error) {
	gate, err := openGate(sandboxes, syscall.LOCK_EX|syscall.LOCK_NB)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.EWOULDBLOCK):
		return nil, nil // no sandbox has ever been, or somebody is at it
	case err != nil:
		return nil, err
	}
	defer gate.Close()
	entries, err := os.ReadDir(sandboxes)
	if err != nil {
		return nil, err
	}
	for _, entry := range entries {
		path := filepath.Join(sandboxes, entry.Name())
		if strings.HasPrefix(entry.Name(), deadPrefix) {
			dead = append(dead, path)
			continue
		}
		if !entry.IsDir() || alive(path) {
			continue
		}
		condemned := filepath.Join(sandboxes, deadPrefix+entry.Name())
		switch e := os.Rename(path, condemned); {
		case e == nil:
			dead = append(dead, condemned)
		case !errors.Is(e, fs.ErrNotExist): // its supervisor was removing it
			err = errors.Join(err, e)
		}
	}
	return dead, err
}

// alive tells whether anybody holds the lock of the folder at path. In doubt
// it is alive.
func alive(path string) bool {
	// Shared, so that of two who ask at once neither is taken for its supervisor.
	lock, err := hostfs.Lock(context.Background(), filepath.Join(path, lockName), os.O_RDWR, syscall.LOCK_SH|syscall.LOCK_NB)
	if err != nil {
		return !errors.Is(err, fs.ErrNotExist)
	}
	lock.Close()
	return false
}

// openGate takes the lock beside the sandboxes' folders: shared to make one,
// exclusive to decide which are dead. Either takes a moment.
func openGate(sandboxes string, how int) (*os.File, error) {
	flags := os.O_RDWR
	if how == syscall.LOCK_SH {
		flags |= os.O_CREATE
	}
	return hostfs.Lock(context.Background(), filepath.Join(sandboxes, gateName), flags, how)
}

// newID returns a random id. 36^12 of them make collisions no concern; were
// there one, Create would fail.
func newID() string {
	const letters = "abcdefghijklmnopqrstuvwxyz0123456789"
	id := make([]byte, 0, 12)
	for len(id) < cap(id) {
		var random [16]byte
		rand.Read(random[:]) // never fails
		for _, b := range random {
			// The last 4 of 256 values would make some letters likelier.
			if int(b) < 256/len(letters)*len(letters) && len(id) < cap(id) {
				id = append(id, letters[int(b)%len(letters)])
			}
		}
	}
	return string(id)
}
