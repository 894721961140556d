package qemu

import (
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

const (
	socketStream   = unix.SOCK_STREAM
	socketDatagram = unix.SOCK_DGRAM
)

// guestMemory makes the file that is the memory of a guest that boots.
func guestMemory(megabytes int) (*os.File, error) {
	f, err := memoryFile("guest-memory")
	if err != nil {
		return nil, err
	}
	if err := f.Truncate(int64(megabytes) << 20); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// memoryCopy copies a file that machines share into memory of one machine's
// own: a QEMU that its guest has taken over holds no descriptor of the shared
// one.
func memoryCopy(name, path string) (*os.File, error) {
	from, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer from.Close()
	return memoryFileOf(name, from)
}

func memoryFileOf(name string, from io.Reader) (*os.File, error) {
	to, err := memoryFile(name)
	if err != nil {
		return nil, err
	}
	if _, err := io.Copy(to, from); err != nil {
		to.Close()
		return nil, err
	}
	return to, nil
}

func memoryFile(name string) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// empty gives the memory of a memoryCopy back, also of those who have mapped
// it. They read zeros from then on.
func empty(f *os.File) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	return os.NewSyscallError("fallocate", unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, info.Size()))
}

// socketPair returns a connected pair of unix sockets, ours in the runtime's
// poller.
func socketPair(kind int, name string) (ours, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	unix.SetNonblock(fds[0], true)
	return os.NewFile(uintptr(fds[0]), name), os.NewFile(uintptr(fds[1]), name), nil
}

// duplicateFD returns a file of our own for a caller's descriptor.
func duplicateFD(fd int, name string) (*os.File, error) {
	dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, fmt.Errorf("descriptor %d: %w", fd, err)
	}
	return os.NewFile(uintptr(dup), name), nil
}

// reopen opens a file anew, in a mode of its own.
func reopen(f *os.File, mode int) (*os.File, error) {
	return os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), mode, 0)
}
