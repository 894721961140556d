package qemu

import (
	"errors"
	"os/exec"
	"syscall"

	"golang.org/x/sys/unix"
)

// setParentDeathSignal has cmd killed when the calling thread ends. The
// runtime's fork code checks the parent again after the prctl, so a parent
// that died in between is noticed too.
//
// The child gets a session of its own: a ^C at the terminal is for the
// command in the guest, not for the machine under it.
func setParentDeathSignal(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setsid: true}
}

// endGroup waits for the end of a child and kills what it leaves in its process
// group: what the user named as QEMU may be a script that waits for the real one.
// It leaves the child to be reaped, until when nobody else can have its number.
func endGroup(pid int) {
	for errors.Is(unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil), unix.EINTR) {
	}
	unix.Kill(-pid, unix.SIGKILL) // the child itself is in it, so there is one to kill
}
