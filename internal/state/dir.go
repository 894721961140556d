package state

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/matchlock/matchlock/api"
	"github.com/matchlock/matchlock/internal/hostfs"
)

// Names beside the sandboxes' folders. Neither is an id.
const (
	gateName   = "lock"   // see openGate
	deadPrefix = ".dead-" // begins the name of a folder that is being removed
)

// lockName is the file in a sandbox's folder whose lock says that it is alive.
const lockName = "lock"

// ErrAlive says that a supervisor looks after the sandbox.
var ErrAlive = errors.New("sandbox is running")

// Dir is the folder of a sandbox in the hands of its supervisor, or of whoever
// removes it. Its methods may be called by several goroutines at once.
type Dir struct {
	ID   string // 12 characters of [a-z0-9]
	path string
	lock *os.File

	mu     sync.Mutex
	record Record
}

// Create makes the folder of a new sandbox, mode 0700, below sandboxes, with
// r for its record, and holds its lock until Close, or until this process is
// gone. Without a name it gets one that is made up; one that another sandbox
// has is ErrNameTaken.
func Create(ctx context.Context, sandboxes string, r Record) (*Dir, error) {
	if err := hostfs.Private(sandboxes); err != nil {
		return nil, err
	}
	gate, err := openGate(ctx, sandboxes, os.O_CREATE)
	if err != nil {
		return nil, err
	}
	defer gate.Close()
	entries, err := List(sandboxes)
	if err != nil {
		return nil, err
	}
	d := &Dir{ID: newID(), record: r}
	d.record.ID = d.ID
	if d.record.Name, err = takeName(entries, r.Name, d.ID); err != nil {
		return nil, err
	}
	d.path = filepath.Join(sandboxes, d.ID)
	if err := os.Mkdir(d.path, 0o700); err != nil {
		return nil, err
	}
	if d.lock, err = lockFolder(ctx, d.path, os.O_CREATE); err == nil {
		err = writeRecord(d.path, &d.record)
	}
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(d.path), d.Close())
	}
	return d, nil
}

// Open takes over the folder of a sandbox that has no supervisor: to start it
// again, or to remove it. One that has is ErrAlive.
func Open(ctx context.Context, e Entry) (*Dir, error) {
	if e.Status.Alive() {
		return nil, fmt.Errorf("sandbox %q: %w", e.Name, ErrAlive)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, lockTime, fmt.Errorf("sandbox %q: %w", e.Name, ErrAlive))
	defer cancel()
	lock, err := lockFolder(ctx, e.Path, 0)
	if err != nil {
		return nil, err
	}
	d := &Dir{ID: e.ID, path: e.Path, lock: lock, record: e.Record}
	// While we waited, it may have been started and ended, or removed.
	if r, err := readRecord(e.Path); err == nil {
		d.record = r
	} else if errors.Is(err, fs.ErrNotExist) {
		return nil, errors.Join(&NotFoundError{Ref: e.Name}, d.Close())
	}
	return d, nil
}

// lockTime is how long others may hold a lock who only look who is alive.
const lockTime = time.Second

// lockFolder takes the lock that means being alive.
func lockFolder(ctx context.Context, path string, flags int) (*os.File, error) {
	return hostfs.Lock(ctx, filepath.Join(path, lockName), os.O_RDWR|flags, syscall.LOCK_EX)
}

// Path returns the path of a file in the folder, of the folder itself without
// a name.
func (d *Dir) Path(name ...string) string {
	return filepath.Join(append([]string{d.path}, name...)...)
}

// Temporary returns a new file in the folder that has no name, and goes with its last
// descriptor.
func (d *Dir) Temporary() (*os.File, error) {
	f, err := os.CreateTemp(d.path, ".temporary-*")
	if err == nil {
		err = os.Remove(f.Name())
	}
	return f, err
}

// Record returns what is known of the sandbox.
func (d *Dir) Record() Record {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.record
}

// Update changes the record, for other processes too.
func (d *Dir) Update(change func(*Record)) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	change(&d.record)
	return writeRecord(d.path, &d.record)
}

// Note changes what Record returns, and nothing that other processes see. It never
// fails.
func (d *Dir) Note(change func(*Record)) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	change(&d.record)
	return nil
}

// Rename gives the sandbox another name.
func (d *Dir) Rename(ctx context.Context, name string) error {
	sandboxes := filepath.Dir(d.path)
	gate, err := openGate(ctx, sandboxes, os.O_CREATE)
	if err != nil {
		return err
	}
	defer gate.Close()
	entries, err := List(sandboxes)
	if err != nil {
		return err
	}
	if name == "" {
		return CheckName(name)
	}
	if name, err = takeName(entries, name, d.ID); err != nil {
		return err
	}
	return d.Update(func(r *Record) { r.Name = name })
}

// Close gives the lock back; the folder stays. A second Close does nothing.
func (d *Dir) Close() error {
	if d.lock == nil {
		return nil
	}
	if err := d.lock.Close(); !errors.Is(err, os.ErrClosed) {
		return err
	}
	return nil
}

// Remove removes the folder and all that is in it, then gives the lock back. A
// second Remove does nothing.
func (d *Dir) Remove() error {
	condemned, err := condemn(d.path)
	if errors.Is(err, fs.ErrNotExist) {
		err = nil // a second call's
	}
	// The lock last, for those who await the end.
	entries, _ := os.ReadDir(condemned) // what is not listed RemoveAll removes, or tells of
	for _, entry := range entries {
		if entry.Name() != lockName {
			os.RemoveAll(filepath.Join(condemned, entry.Name()))
		}
	}
	return errors.Join(err, os.RemoveAll(condemned), d.Close())
}

// condemn has the folder at path be no sandbox from one moment to the next, and returns
// where it is to be removed: a removal that is killed is finished by a sweep.
func condemn(path string) (dead string, err error) {
	dead = deadPath(path)
	if err = os.Rename(path, dead); err == nil || errors.Is(err, fs.ErrNotExist) {
		return dead, err
	}
	// A full disk may have no room for another name. Without a record it is none either.
	if e := os.Remove(filepath.Join(path, recordName)); e != nil && !errors.Is(e, fs.ErrNotExist) {
		return path, errors.Join(err, e)
	}
	return path, nil
}

// deadPath is where the folder at path is while it is being removed.
func deadPath(path string) string {
	return filepath.Join(filepath.Dir(path), deadPrefix+filepath.Base(path))
}

// Entry is a sandbox as others than its supervisor see it.
type Entry struct {
	Record
	Path    string // its folder
	Problem error  // the record cannot be read; ID, Path and Status are known even so
}

// List returns the sandboxes that exist, the oldest first. What is being made
// or removed is not among them.
func List(sandboxes string) ([]Entry, error) {
	folders, err := os.ReadDir(sandboxes)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, nil
		}
		return nil, err
	}
	var entries []Entry
	for _, folder := range folders {
		if !folder.IsDir() || strings.HasPrefix(folder.Name(), ".") {
			continue
		}
		if e, ok := look(filepath.Join(sandboxes, folder.Name())); ok {
			entries = append(entries, e)
		}
	}
	slices.SortFunc(entries, func(a, b Entry) int {
		return cmp.Or(a.Created.Compare(b.Created), strings.Compare(a.ID, b.ID))
	})
	return entries, nil
}

// look reads the folder at path. It is no sandbox until it has a record.
func look(path string) (Entry, bool) {
	// The lock first: who dies in between has left a record that says less than
	// the truth, never more.
	living := alive(path)
	r, err := readRecord(path)
	if errors.Is(err, fs.ErrNotExist) {
		return Entry{}, false
	}
	e := Entry{Record: r, Path: path, Problem: err}
	e.ID = filepath.Base(path)
	switch {
	case living && !e.Status.Alive():
		// Between its first moment and its first record, or after its last.
		e.Status = api.StatusStopping
		if err != nil {
			e.Status = api.StatusRunning
		}
	case !living && e.Status != api.StatusStopped:
		e.Status = api.StatusDead
	}
	return e, true
}

// Lookup returns the sandbox that a user calls ref: by its name, else its id,
// else the beginning of its id. The error is a *NotFoundError or an
// *AmbiguousError.
func Lookup(sandboxes, ref string) (Entry, error) {
	entries, err := List(sandboxes)
	if err != nil {
		return Entry{}, err
	}
	return match(entries, ref)
}

// AwaitEnd returns when no supervisor holds the folder of an entry any more,
// which one that removes it does until it is gone; or with the cause of ctx's end.
func AwaitEnd(ctx context.Context, e Entry) error {
	lock, err := hostfs.Lock(ctx, filepath.Join(e.Path, lockName), os.O_RDWR, syscall.LOCK_SH)
	if errors.Is(err, fs.ErrNotExist) {
		lock, err = hostfs.Lock(ctx, filepath.Join(deadPath(e.Path), lockName), os.O_RDWR, syscall.LOCK_SH)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return lock.Close()
}

// Sweep removes what dead supervisors have left of sandboxes that were to go
// with them, and returns their ids. Any number of sweeps and creations may go on
// at once.
func Sweep(ctx context.Context, sandboxes string) (removed []string, err error) {
	dead, err := condemnAll(ctx, sandboxes)
	for _, path := range dead {
		// Another sweep may be removing it too; one that is killed here leaves it
		// to the next.
		if e := os.RemoveAll(path); e != nil {
			err = errors.Join(err, e)
			continue
		}
		removed = append(removed, strings.TrimPrefix(filepath.Base(path), deadPrefix))
	}
	return removed, err
}

// condemnAll condemns the folders of the dead, so that removing them, which may
// take its time, holds up nobody.
func condemnAll(ctx context.Context, sandboxes string) (dead []string, err error) {
	gate, err := openGate(ctx, sandboxes, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // no sandbox has ever been
	}
	if err != nil {
		return nil, err
	}
	defer gate.Close()
	folders, err := os.ReadDir(sandboxes)
	if err != nil {
		return nil, err
	}
	for _, folder := range folders {
		path := filepath.Join(sandboxes, folder.Name())
		if strings.HasPrefix(folder.Name(), deadPrefix) {
			dead = append(dead, path)
			continue
		}
		if !folder.IsDir() || alive(path) || !forsaken(path) {
			continue
		}
		switch condemned, e := condemn(path); {
		case e == nil:
			dead = append(dead, condemned)
		case !errors.Is(e, fs.ErrNotExist): // its supervisor was removing it
			err = errors.Join(err, e)
		}
	}
	return dead, err
}

// forsaken tells whether a folder without a supervisor is of use to nobody: it
// was to go with its supervisor, or has never come to have a record. One whose
// record cannot be read may hold somebody's work.
func forsaken(path string) bool {
	r, err := readRecord(path)
	return errors.Is(err, fs.ErrNotExist) || err == nil && r.AutoRemove
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

// openGate takes the lock beside the sandboxes' folders, by which one at a time
// makes or names a sandbox or decides which are dead. Each takes a moment. flags
// may be O_CREATE.
func openGate(ctx context.Context, sandboxes string, flags int) (*os.File, error) {
	return hostfs.Lock(ctx, filepath.Join(sandboxes, gateName), os.O_RDWR|flags, syscall.LOCK_EX)
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
