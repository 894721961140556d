package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/matchlock/matchlock/api"
	"github.com/matchlock/matchlock/internal/disk"
	"github.com/matchlock/matchlock/internal/hostfs"
	"github.com/matchlock/matchlock/internal/state"
)

// A volume is a file in a folder of its own kind: a disk with ext4 that no host ever
// mounts. Who makes one holds a lock on it under another name, so that what was left
// by somebody who was killed can be told and removed.
const (
	volumeSuffix = ".ext4"
	makingPrefix = ".new-"
)

func volumePath(home state.Home, name string) string {
	return filepath.Join(home.Volumes(), name+volumeSuffix)
}

func volumeNotFound(name string) error {
	return &hintError{fmt.Errorf("volume %q: %w", name, ErrNotFound), fmt.Sprintf("`matchlock volume create %s` makes it, `matchlock volume ls` lists those that there are", name)}
}

func checkVolumeName(name string) error {
	if !api.IsVolumeName(name) {
		return fmt.Errorf("volume %q: a name has letters, digits, '_', '.' and '-', at most 64, and begins with a letter or digit", name)
	}
	return nil
}

// CreateVolume makes an empty volume of a size in bytes, a multiple of 4096; 0 is
// api.DefaultVolumeSize. The host's disk is used only as it is written. One that there
// is already is ErrVolumeTaken.
func (o Options) CreateVolume(ctx context.Context, name string, size int64) (api.Volume, error) {
	home, err := o.homeOfVolume(name)
	if err != nil {
		return api.Volume{}, err
	}
	switch {
	case size == 0:
		size = api.DefaultVolumeSize
	case size < disk.MinScratch:
		return api.Volume{}, fmt.Errorf("volume %q: size %s: at least %s is needed", name, api.FormatSize(size), api.FormatSize(disk.MinScratch))
	}
	if err := makeImage(volumePath(home, name), func(file *os.File) error { return disk.CreateVolume(ctx, file, size) }); err != nil {
		return api.Volume{}, withHint(fmt.Errorf("volume %q: %w", name, pathless(err)))
	}
	return o.FindVolume(name)
}

// CopyVolume makes a volume of another, with all that is in it; either may be a path
// too, which has a slash, of such an image. One that a sandbox writes to is
// ErrDiskInUse, and what there is already is ErrVolumeTaken.
func (o Options) CopyVolume(ctx context.Context, from, to string) (api.Volume, error) {
	home, err := o.home()
	if err != nil {
		return api.Volume{}, err
	}
	src, err := imageAt(home, from)
	if err != nil {
		return api.Volume{}, err
	}
	dst, err := imageAt(home, to)
	if err != nil {
		return api.Volume{}, err
	}
	if dst.volume != "" {
		if err := hostfs.Private(home.Volumes()); err != nil {
			return api.Volume{}, err
		}
	}
	// A copy of what was not unmounted is recovered as that would be.
	file, err := src.lock(ctx, home, "")
	if err == nil {
		defer file.Close()
		err = userDisk{}.check(file)
	}
	if src.volume != "" && errors.Is(err, fs.ErrNotExist) {
		return api.Volume{}, volumeNotFound(src.volume)
	}
	if err != nil {
		return api.Volume{}, fmt.Errorf("%s: %w", src, pathless(err))
	}
	if err := makeImage(dst.path, func(copy *os.File) error { return disk.CopySparse(copy, file) }); err != nil {
		return api.Volume{}, fmt.Errorf("%s: %w", dst, pathless(err))
	}
	return describeVolume(dst, nil)
}

// imageAt is what a name of a volume, or a path with a slash, stands for.
func imageAt(home state.Home, ref string) (userDisk, error) {
	if strings.ContainsRune(ref, '/') {
		return userDisk{path: ref, readOnly: true}, nil
	}
	return userDisk{path: volumePath(home, ref), volume: ref, readOnly: true}, checkVolumeName(ref)
}

// homeOfVolume finds the home folder, and makes that of its volumes.
func (o Options) homeOfVolume(name string) (state.Home, error) {
	if err := checkVolumeName(name); err != nil {
		return state.Home{}, err
	}
	home, err := o.home()
	if err == nil {
		err = hostfs.Private(home.Volumes())
	}
	return home, err
}

// makeImage has fill make a file that gets its name when it is whole, and on the
// host's disk. A name that is taken is ErrVolumeTaken.
func makeImage(path string, fill func(*os.File) error) (err error) {
	if _, err := os.Lstat(path); err == nil {
		return ErrVolumeTaken
	}
	making := filepath.Join(filepath.Dir(path), makingPrefix+filepath.Base(path))
	file, err := hostfs.Lock(context.Background(), making, os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return ErrVolumeTaken // in a moment
	}
	if err != nil {
		return err
	}
	defer file.Close()
	// Whoever had the lock may have finished, and what we hold be theirs.
	if isAt(file, making) != nil {
		return ErrVolumeTaken
	}
	if err := checkOwn(file); err != nil {
		return fmt.Errorf("%s: %w", making, err)
	}
	defer os.Remove(making)
	if err := file.Truncate(0); err != nil { // of what a maker left that was killed
		return err
	}
	if err := errors.Join(fill(file), file.Sync()); err != nil {
		return err
	}
	folder, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer folder.Close()
	if err := os.Link(making, path); errors.Is(err, fs.ErrExist) {
		return ErrVolumeTaken
	} else if err != nil {
		return err
	}
	if err := folder.Sync(); err != nil {
		return errors.Join(err, os.Remove(path)) // none that a crash may take
	}
	return nil
}

// checkOwn makes sure that a file is ours alone: in a folder that others may write to,
// they may have put it there to have what is written.
func checkOwn(file *os.File) error {
	info, err := file.Stat()
	if err != nil {
		return err
	}
	st := info.Sys().(*syscall.Stat_t)
	if !info.Mode().IsRegular() || info.Mode().Perm()&0o077 != 0 || int(st.Uid) != os.Geteuid() || st.Nlink != 1 {
		return errors.New("it is there already, and not ours alone")
	}
	return nil
}

// Volumes lists the volumes that there are, by name.
func (o Options) Volumes() ([]api.Volume, error) {
	home, err := o.home()
	if err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(home.Volumes())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	users := diskUsers(home)
	var volumes []api.Volume
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), volumeSuffix)
		if !ok || !api.IsVolumeName(name) {
			continue
		}
		path := volumePath(home, name)
		if v, err := describeVolume(userDisk{path: path, volume: name}, users[path]); err == nil { // else it went since we looked
			volumes = append(volumes, v)
		}
	}
	return volumes, err
}

// FindVolume returns what is known of a volume. One that there is not is ErrNotFound.
func (o Options) FindVolume(name string) (api.Volume, error) {
	home, err := o.home()
	if err == nil {
		err = checkVolumeName(name)
	}
	if err != nil {
		return api.Volume{}, err
	}
	path := volumePath(home, name)
	v, err := describeVolume(userDisk{path: path, volume: name}, diskUsers(home)[path])
	if errors.Is(err, fs.ErrNotExist) {
		err = volumeNotFound(name)
	}
	return v, err
}

func describeVolume(d userDisk, users []api.VolumeUser) (api.Volume, error) {
	info, err := os.Stat(d.path)
	if err != nil {
		return api.Volume{}, err
	}
	return api.Volume{
		Name: d.volume, Path: d.path, Size: info.Size(), Changed: info.ModTime(),
		Used:  info.Sys().(*syscall.Stat_t).Blocks * 512, // stat(2)
		Users: append([]api.VolumeUser{}, users...),
	}, nil
}

// RemoveVolume removes a volume. One that a sandbox has is ErrDiskInUse.
func (o Options) RemoveVolume(ctx context.Context, name string) error {
	home, err := o.home()
	if err == nil {
		err = checkVolumeName(name)
	}
	if err != nil {
		return err
	}
	d := userDisk{path: volumePath(home, name), volume: name}
	file, err := d.lock(ctx, home, "")
	if errors.Is(err, fs.ErrNotExist) {
		return volumeNotFound(name)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", d, pathless(err))
	}
	return errors.Join(os.Remove(d.path), file.Close()) // the lock last: who waits for it finds the file gone
}

// removeUnmade removes what was left by those who were killed while they made a
// volume.
func removeUnmade(folder string) error {
	entries, err := os.ReadDir(folder)
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	errs := []error{err}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), makingPrefix) {
			continue
		}
		path := filepath.Join(folder, e.Name())
		file, err := hostfs.Lock(context.Background(), path, os.O_RDWR|syscall.O_NOFOLLOW, syscall.LOCK_EX|syscall.LOCK_NB)
		if err != nil {
			continue // it is being made, or gone
		}
		if isAt(file, path) == nil {
			errs = append(errs, os.Remove(path))
		}
		errs = append(errs, file.Close())
	}
	return errors.Join(errs...)
}
