package qemu

import (
	"os/exec"
	"syscall"
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
