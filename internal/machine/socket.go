package machine

import (
	"net"
	"os"
	"syscall"
)

// socketPair returns a connected pair: our end, and the caller's as a bare
// close-on-exec descriptor.
func socketPair() (*net.UnixConn, int, error) {
	syscall.ForkLock.RLock()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	if err == nil {
		syscall.CloseOnExec(fds[0])
		syscall.CloseOnExec(fds[1])
	}
	syscall.ForkLock.RUnlock()
	if err != nil {
		return nil, -1, os.NewSyscallError("socketpair", err)
	}
	file := os.NewFile(uintptr(fds[0]), "vsock")
	defer file.Close()
	conn, err := net.FileConn(file)
	if err != nil {
		syscall.Close(fds[1])
		return nil, -1, err
	}
	return conn.(*net.UnixConn), fds[1], nil
}

// duplicate returns a close-on-exec duplicate of f's descriptor.
func duplicate(f *os.File) (int, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return -1, err
	}
	dup := -1
	var dupErr error
	err = raw.Control(func(fd uintptr) {
		syscall.ForkLock.RLock()
		defer syscall.ForkLock.RUnlock()
		if dup, dupErr = syscall.Dup(int(fd)); dupErr == nil {
			syscall.CloseOnExec(dup)
		}
	})
	if err != nil {
		return -1, err
	}
	return dup, os.NewSyscallError("dup", dupErr)
}
