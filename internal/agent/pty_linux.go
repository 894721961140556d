package agent

import (
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// A terminal is the master of a pseudoterminal (pty(7)).
type terminal struct {
	file *os.File
	raw  syscall.RawConn
}

// openTerminal makes a terminal. The slave is opened through the master: no
// name in the guest's file system stands between them.
func openTerminal(rows, cols uint16, owner *Credential) (t *terminal, slave *os.File, err error) {
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, &os.PathError{Op: "open", Path: "/dev/ptmx", Err: err}
	}
	master := os.NewFile(uintptr(fd), "terminal")
	defer func() {
		if err != nil {
			master.Close()
		}
	}()
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		return nil, nil, wrap("unlock", err)
	}
	peer, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if errno != 0 {
		return nil, nil, wrap("slave", errno)
	}
	slave = os.NewFile(peer, "terminal")
	giveTo(slave, owner)
	raw, err := master.SyscallConn()
	if err != nil {
		slave.Close()
		return nil, nil, err
	}
	t = &terminal{master, raw}
	t.resize(rows, cols)
	return t, slave, nil
}

// resize sets the size and tells the foreground group (SIGWINCH). A size of 0
// is left as it is, unknown.
func (t *terminal) resize(rows, cols uint16) {
	t.raw.Control(func(fd uintptr) {
		unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: cols})
	})
}

// foreground is the process group that reads the terminal, or 0.
func (t *terminal) foreground() (group int) {
	t.raw.Control(func(fd uintptr) { group, _ = unix.IoctlGetInt(int(fd), unix.TIOCGPGRP) })
	return group
}

// typeEOF types what ends the input in cooked mode. After an unfinished line,
// whose last byte is last, the first ^D sends off that line and the second ends
// the input (termios(3), VEOF). In raw mode there is no such thing.
func (t *terminal) typeEOF(last byte) {
	var mode *unix.Termios
	t.raw.Control(func(fd uintptr) { mode, _ = unix.IoctlGetTermios(int(fd), unix.TCGETS) })
	if mode == nil || mode.Lflag&unix.ICANON == 0 || mode.Cc[unix.VEOF] == 0 {
		return
	}
	keys := []byte{mode.Cc[unix.VEOF], mode.Cc[unix.VEOF]}
	if last == '\n' {
		keys = keys[:1]
	}
	t.file.Write(keys) // fails only when nobody is there to read
}
