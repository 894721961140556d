package jail

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// descriptors is where a program finds what it has open, by name.
const descriptors = "/proc/self/fd"

// A part is a file or folder of the host that the program opens by name.
type part struct {
	path string
	fd   int // of it: where there is a root, of a mount of it that is nowhere yet
	dir  bool
}

// takeParts opens all parts, Program the last.
func (s *step) takeParts() (parts []part, err error) {
	if s.Namespaces {
		// Mounts of the host come and go without us, and ours without it.
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			return nil, fmt.Errorf("make the mounts private: %w", err)
		}
	}
	for _, path := range append(s.Paths[:len(s.Paths):len(s.Paths)], s.Program) {
		p := part{path: path}
		if s.Namespaces {
			p.fd, err = clone(path, unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV)
		} else {
			p.fd, err = unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
		}
		var st unix.Stat_t
		if err == nil {
			err = unix.Fstat(p.fd, &st)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		p.dir = st.Mode&unix.S_IFMT == unix.S_IFDIR
		parts = append(parts, p)
	}
	return parts, nil
}

// enterRoot makes a root of the parts and leaves the host's.
func (s *step) enterRoot(parts []part) error {
	if err := s.guardFiles(); err != nil {
		return err
	}
	// Of /proc it is this process's descriptors alone.
	own, err := clone(descriptors, unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC)
	if err != nil {
		return fmt.Errorf("%s: %w", descriptors, err)
	}
	defer unix.Close(own)
	// Any folder will do: it is gone in a moment.
	if err := unix.Mount("jail", "/proc", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=755,size=1m"); err != nil {
		return fmt.Errorf("tmpfs: %w", err)
	}
	if err := os.Chdir("/proc"); err != nil {
		return err
	}
	for _, p := range append(parts[:len(parts):len(parts)], part{descriptors, own, true}) {
		if err := p.place(); err != nil {
			return fmt.Errorf("%s: %w", p.path, err)
		}
	}
	// pivot_root(2): the old root ends up on top of the new one.
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot_root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("leave the host's root: %w", err)
	}
	if err := os.Chdir("/"); err != nil {
		return err
	}
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
	return os.NewSyscallError("mount_setattr", unix.MountSetattr(unix.AT_FDCWD, "/", 0, &attr))
}

// clone returns a mount of what is at path, held to attributes, that is nowhere.
func clone(path string, attributes uint64) (tree int, err error) {
	tree, err = unix.OpenTree(unix.AT_FDCWD, path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return -1, os.NewSyscallError("open_tree", err)
	}
	attr := unix.MountAttr{Attr_set: attributes}
	if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		unix.Close(tree)
		return -1, os.NewSyscallError("mount_setattr", err)
	}
	return tree, nil
}

// place mounts the part where it is to be, below the working directory.
func (p *part) place() error {
	to := strings.TrimPrefix(filepath.Clean(p.path), "/")
	at := to
	if !p.dir {
		at = filepath.Dir(to)
	}
	if err := os.MkdirAll(at, 0o755); err != nil {
		return cause(err)
	}
	if !p.dir {
		f, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o444)
		if errors.Is(err, fs.ErrExist) {
			return nil // in a folder that is a part
		} else if err != nil {
			return cause(err)
		}
		f.Close()
	}
	return os.NewSyscallError("move_mount", unix.MoveMount(p.fd, "", unix.AT_FDCWD, to, unix.MOVE_MOUNT_F_EMPTY_PATH))
}

// guardFiles replaces the descriptors of files that the program is to read by ones
// from a mount that is read-only. By /proc/self/fd it could otherwise open them anew
// for writing, and fchmod(2) what it owns.
func (s *step) guardFiles() error {
	for fd := firstFD; fd < firstFD+s.Files; fd++ {
		if !readOnlyFile(fd) {
			continue
		}
		if err := guardFile(fd); err != nil {
			s.missing(fmt.Sprintf("read-only mount of descriptor %d", fd), err)
		}
	}
	return nil
}

// readOnlyFile tells whether fd is a file that cannot be written to by it.
func readOnlyFile(fd int) bool {
	var st unix.Stat_t
	if unix.Fstat(fd, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		return false
	}
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	return err == nil && flags&unix.O_ACCMODE == unix.O_RDONLY
}

func guardFile(fd int) error {
	var was, is unix.Stat_t
	if err := unix.Fstat(fd, &was); err != nil {
		return err
	}
	path, err := os.Readlink(fmt.Sprintf("%s/%d", descriptors, fd))
	if err != nil {
		return cause(err)
	}
	if seals, err := unix.FcntlInt(uintptr(fd), unix.F_GET_SEALS, 0); err == nil && seals&unix.F_SEAL_WRITE != 0 {
		return nil // nobody writes to it any more
	}
	// A descriptor's own mount is the host's, which cannot be cloned from here.
	tree, err := clone(path, unix.MOUNT_ATTR_RDONLY)
	if err != nil {
		return err
	}
	defer unix.Close(tree)
	guarded, err := unix.Open(fmt.Sprintf("%s/%d", descriptors, tree), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(guarded)
	if err := unix.Fstat(guarded, &is); err != nil {
		return err
	}
	if is.Dev != was.Dev || is.Ino != was.Ino {
		return errors.New("another file has its name now")
	}
	return unix.Dup3(guarded, fd, 0)
}
