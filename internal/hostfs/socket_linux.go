package hostfs

import (
	"fmt"
	"net"
	"os"
	"syscall"
)

// descriptorPath is a path that leads to what f is, and is short.
func descriptorPath(f *os.File) string { return fmt.Sprintf("/proc/self/fd/%d", f.Fd()) }

// Peer is the process at the other end of conn: the one that connected, or that called listen (unix(7), SO_PEERCRED).
func Peer(conn *net.UnixConn) (Process, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return Process{}, err
	}
	var cred *syscall.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) {
		cred, credErr = syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED)
	}); err != nil {
		return Process{}, err
	}
	if credErr != nil {
		return Process{}, credErr
	}
	return Process{PID: int(cred.Pid), UID: int(cred.Uid)}, nil
}
