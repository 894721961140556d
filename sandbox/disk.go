package sandbox

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/matchlock/matchlock/api"
	"github.com/matchlock/matchlock/internal/hostfs"
	"github.com/matchlock/matchlock/internal/saved"
	"github.com/matchlock/matchlock/internal/state"
)

// userDisk is a disk that a sandbox is given: an image of the user's, or a volume.
type userDisk struct {
	path     string // of the image
	volume   string // its name; empty: it is none
	mount    string // in the guest
	readOnly bool
}

// userDisks are the disks of a configuration, in the order in which the guest has
// them: that of where they are mounted, so that one below another comes after it, and
// what goes on from a saved sandbox has the same order, whatever the images.
func userDisks(home state.Home, c *api.Config) []userDisk {
	var disks []userDisk
	for _, d := range c.Disks {
		disks = append(disks, userDisk{path: d.File, mount: path.Clean(d.Mount), readOnly: d.ReadOnly})
	}
	for _, m := range c.Mounts {
		if m.IsVolume() {
			disks = append(disks, userDisk{volumePath(home, m.Source), m.Source, path.Clean(m.Target), m.Mode == api.MountReadOnly})
		}
	}
	slices.SortFunc(disks, func(a, b userDisk) int { return strings.Compare(a.mount, b.mount) })
	return disks
}

// withoutVolumes are the mounts that are no disks; nil: there are none.
func withoutVolumes(mounts []api.Mount) (others []api.Mount) {
	for _, m := range mounts {
		if !m.IsVolume() {
			others = append(others, m)
		}
	}
	return others
}

func (d userDisk) String() string {
	if d.volume != "" {
		return fmt.Sprintf("volume %q", d.volume)
	}
	return fmt.Sprintf("disk %q", d.path)
}

// open makes sure that a disk is what it is said to be and that no two sandboxes
// write to it at once, nor one while others read; any number may read. That holds
// until all that have the file have closed it or are gone, the hypervisor among them.
// self is the id of the sandbox that asks.
func (d userDisk) open(ctx context.Context, home state.Home, self string) (*os.File, error) {
	file, err := d.lock(ctx, home, self)
	if err == nil {
		if err = d.check(file); err != nil {
			file.Close()
		}
	}
	if d.volume != "" && errors.Is(err, fs.ErrNotExist) {
		return nil, volumeNotFound(d.volume)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", d, pathless(err))
	}
	return file, nil
}

// goneTime is how long a hypervisor may take to be gone whose supervisor was killed:
// until then it may write.
const goneTime = 2 * time.Second

func (d userDisk) lock(ctx context.Context, home state.Home, self string) (*os.File, error) {
	mode, how := os.O_RDWR, syscall.LOCK_EX
	if d.readOnly {
		mode, how = os.O_RDONLY, syscall.LOCK_SH
	}
	mode |= syscall.O_NONBLOCK // a fifo would wait for its writer
	file, err := hostfs.Lock(context.Background(), d.path, mode, how|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		users := othersOf(home, d.path, self)
		if len(users) == 0 {
			ctx, cancel := context.WithTimeoutCause(ctx, goneTime, syscall.EWOULDBLOCK)
			defer cancel()
			file, err = hostfs.Lock(ctx, d.path, mode, how)
		}
		if errors.Is(err, syscall.EWOULDBLOCK) {
			err = &inUseError{users}
		}
	}
	if err != nil {
		return nil, err
	}
	// It may have been removed, or replaced, before we had the lock.
	if err := isAt(file, d.path); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return file, nil
}

// isAt makes sure that an open file is what its path names; else it is fs.ErrNotExist.
func isAt(file *os.File, path string) error {
	held, err := file.Stat()
	if err != nil {
		return err
	}
	there, err := os.Stat(path)
	if err == nil && !os.SameFile(held, there) {
		err = fs.ErrNotExist
	}
	return err
}

// othersOf are the sandboxes that live and have the disk, but for one.
func othersOf(home state.Home, path, self string) []api.VolumeUser {
	return slices.DeleteFunc(diskUsers(home)[path], func(u api.VolumeUser) bool { return u.Sandbox == self })
}

// diskUsers are the sandboxes that live and were given disks, by the paths of these.
// It is for people: what counts are locks.
func diskUsers(home state.Home) map[string][]api.VolumeUser {
	entries, err := state.List(home.Sandboxes())
	if err != nil {
		return nil
	}
	users := map[string][]api.VolumeUser{}
	for _, e := range entries {
		var config api.Config
		if !e.Status.Alive() || hostfs.ReadRecord(filepath.Join(e.Path, configName), &config) != nil {
			continue
		}
		for _, d := range userDisks(home, &config) {
			users[d.path] = append(users[d.path], api.VolumeUser{Sandbox: e.ID, SandboxName: e.Name, Mount: d.mount, ReadOnly: d.readOnly})
		}
	}
	return users
}

// inUseError is ErrDiskInUse, and says by whom as far as that is known.
type inUseError struct{ users []api.VolumeUser }

func (e *inUseError) Error() string {
	var names []string
	for _, u := range e.users {
		names = append(names, fmt.Sprintf("%q", u.SandboxName))
	}
	switch len(names) {
	case 0:
		return ErrDiskInUse.Error()
	case 1:
		return "in use by sandbox " + names[0]
	}
	return "in use by sandboxes " + strings.Join(names, ", ")
}

func (e *inUseError) Is(target error) bool { return target == ErrDiskInUse }

// Offsets in a file of ext4, whose superblock begins at 1024
// (Documentation/filesystems/ext4/super.rst).
const (
	ext4MagicOffset    = 1024 + 0x38
	ext4IncompatOffset = 1024 + 0x60
)

// ext4NeedsRecovery is the flag, among the incompatible features, that says that the
// journal has what is not in its place yet.
const ext4NeedsRecovery = 0x4

// check looks whether a file can be the disk. Whoever wrote it may have been a guest:
// no more of it is read here than what it is.
func (d userDisk) check(file *os.File) error {
	info, err := file.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return errors.New("not a regular file")
	}
	var superblock [1024]byte
	if _, err := file.ReadAt(superblock[:], 1024); err != nil && err != io.EOF {
		return err
	}
	if binary.LittleEndian.Uint16(superblock[ext4MagicOffset-1024:]) != 0xef53 {
		return &hintError{errors.New("not an ext4 file system"), "`mkfs.ext4 FILE` makes one, without partitions; it is attached as it is"}
	}
	// To be read only, it takes no replay of its journal either, and without that what
	// was synced may not be there.
	if d.readOnly && binary.LittleEndian.Uint32(superblock[ext4IncompatOffset-1024:])&ext4NeedsRecovery != 0 {
		return &hintError{errors.New("it was not unmounted, and must be recovered before it is only read"), "a run that may write to it, without :ro, recovers it"}
	}
	return nil
}

// pathless takes the path from an error that names it by itself.
func pathless(err error) error {
	if e, ok := errors.AsType[*os.PathError](err); ok {
		return e.Err
	}
	return err
}

// heldDisk is a disk that a sandbox has.
type heldDisk struct {
	userDisk
	file *os.File
}

// diskMark is what is known of a disk at the moment when its sandbox was saved.
type diskMark struct {
	Mount    string `json:"mount"`
	ReadOnly bool   `json:"read_only,omitempty"`
	Size     int64  `json:"size"`
	// Copied says that what was in it goes with what was saved.
	Copied bool `json:"copied,omitempty"`
	// What the file was, for as long as it stays on this host; else Sum is what was in
	// it, by saved.Sum.
	Inode    uint64 `json:"inode,omitempty"`
	Change   int64  `json:"change,omitempty"`   // of anything, in nanoseconds of Unix time
	Modified int64  `json:"modified,omitempty"` // of its content, likewise
	Sum      string `json:"sum,omitempty"`
}

// mark marks the disk. The guest stands still.
func (d *heldDisk) mark() (diskMark, error) {
	if !d.readOnly {
		// A file's time is as coarse as the kernel's ticks, and this one might be that of
		// a write to come. A second ago it is not.
		t := syscall.NsecToTimeval(time.Now().Add(-time.Second).UnixNano())
		if err := syscall.Futimes(int(d.file.Fd()), []syscall.Timeval{t, t}); err != nil {
			return diskMark{}, fmt.Errorf("%s: %w", d, err)
		}
	}
	info, err := d.file.Stat()
	if err != nil {
		return diskMark{}, fmt.Errorf("%s: %w", d, err)
	}
	m := diskMark{Mount: d.mount, ReadOnly: d.readOnly}
	m.identify(info)
	return m, nil
}

func (m *diskMark) identify(info fs.FileInfo) {
	id := hostfs.IdentityOf("", info)
	m.Size, m.Inode, m.Change, m.Modified = id.Size, id.Inode, id.Change, info.ModTime().UnixNano()
}

// check makes sure that a disk is what it was.
func (m diskMark) check(ctx context.Context, file *os.File) error {
	info, err := file.Stat()
	if err != nil {
		return err
	}
	now := m
	if now.identify(info); m.Sum != "" {
		now.Inode, now.Change, now.Modified = 0, 0, 0
		if now.Size == m.Size {
			if now.Sum, err = saved.Sum(ctx, file); err != nil {
				return err
			}
		}
	}
	switch {
	case now == m:
		return nil
	case m.Sum != "":
		return &hintError{errors.New("in it is not what there was when the sandbox was saved"),
			"`matchlock volume cp NAME ./FILE`, where the snapshot was made, copies the volume to a file"}
	}
	return &hintError{errors.New("it was changed since the sandbox was saved"),
		"what goes on finds its disks as they were; `matchlock fork --volumes copy` copies them"}
}
