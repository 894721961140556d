//go:build linux

package guest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/matchlock/matchlock/api"
	"github.com/matchlock/matchlock/internal/wire"
)

// mounting is a file system that is there, and has yet to get its place.
type mounting struct {
	path  string
	mount func() error
}

// mountAdded mounts what the sandbox adds: files of the host, and what is in memory.
// The disks, which are in their places already, are taken up and mounted with them:
// what lies below another one comes after it.
func (g *guest) mountAdded(b *api.BootData) error {
	mounts, err := g.hostFiles(b)
	if err != nil {
		return err
	}
	for _, m := range b.Tmpfs {
		mounts = append(mounts, mounting{m.Path, func() error { return mountTmpfs(m) }})
	}
	if len(mounts) == 0 {
		return nil
	}
	disks, err := takeUp(g.params.Disks)
	if err != nil {
		return err
	}
	mounts = append(mounts, disks...)
	slices.SortStableFunc(mounts, func(a, b mounting) int {
		return strings.Compare(filepath.Clean(a.path), filepath.Clean(b.path))
	})
	for _, m := range mounts {
		if err := m.mount(); err != nil {
			return err
		}
	}
	return nil
}

// takeUp takes disks away from where they are mounted, the last one first.
func takeUp(disks []wire.Disk) (mounts []mounting, err error) {
	for _, d := range slices.Backward(disks) {
		tree, err := openTree(d.Mount)
		if err == nil {
			err = unix.Unmount(d.Mount, 0)
		}
		if err != nil {
			return nil, fmt.Errorf("disk for %s: %w", d.Mount, err)
		}
		mounts = append(mounts, mounting{d.Mount, func() error {
			if err := place(tree, d.Mount, false); err != nil {
				return fmt.Errorf("disk for %s: %w", d.Mount, err)
			}
			return nil
		}})
	}
	return mounts, nil
}

// openTree makes another mount of what is at a path, without a place.
func openTree(path string) (tree int, err error) {
	return unix.OpenTree(unix.AT_FDCWD, path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
}

// place gives a tree its place, which is made if it is not there, and closes it.
func place(tree int, path string, isFile bool) error {
	defer unix.Close(tree)
	dir := path
	if isFile {
		dir = filepath.Dir(path)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if isFile {
		if err := makeFile(path); err != nil {
			return err
		}
	}
	return unix.MoveMount(tree, "", unix.AT_FDCWD, path, unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_SYMLINKS)
}

// makeFile makes an empty file if there is none. What else is there stays: it may be
// the host's.
func makeFile(path string) error {
	info, err := os.Stat(path)
	if err == nil && info.IsDir() {
		return fmt.Errorf("%s: %w", path, unix.EISDIR)
	}
	if !errors.Is(err, os.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	return f.Close()
}

// mountTmpfs mounts a file system in memory.
func mountTmpfs(m api.Tmpfs) error {
	data := "mode=1777"
	if m.Size > 0 {
		data += fmt.Sprintf(",size=%d", m.Size)
	}
	return mount{"tmpfs", m.Path, "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, data}.do()
}

// sizeShm sizes /dev/shm; 0 leaves it as it is.
func sizeShm(size int64) error {
	if size <= 0 {
		return nil
	}
	err := unix.Mount("tmpfs", shmDir, "tmpfs", unix.MS_REMOUNT|unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, fmt.Sprintf("mode=1777,size=%d", size))
	if err != nil {
		return fmt.Errorf("%s: %w", shmDir, err)
	}
	return nil
}
