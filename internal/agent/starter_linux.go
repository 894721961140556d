package agent

import (
	"errors"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// HostStarter starts processes of this program, for a server that runs in no
// guest. Without root's rights, every process runs as the present user.
type HostStarter struct{}

// Start implements Starter.
func (HostStarter) Start(path string, argv []string, attr *ProcAttr) (Process, error) {
	sys := &syscall.SysProcAttr{Setsid: true, Setctty: attr.TTY}
	if c := attr.Credential; c != nil && os.Geteuid() == 0 {
		sys.Credential = &syscall.Credential{Uid: c.UID, Gid: c.GID, Groups: c.Groups}
	}
	p, err := os.StartProcess(path, argv, &os.ProcAttr{Dir: attr.Dir, Env: attr.Env, Files: attr.Files, Sys: sys})
	if err != nil {
		return nil, err
	}
	return &hostProcess{process: p}, nil
}

type hostProcess struct {
	process *os.Process

	mu     sync.Mutex
	reaped bool
}

func (p *hostProcess) PID() int { return p.process.Pid }

func (p *hostProcess) Wait() (ExitStatus, error) {
	// First without reaping: the number stays taken until reaped says that it is not.
	for {
		err := unix.Waitid(unix.P_PID, p.process.Pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
		if err == nil {
			break
		}
		if !errors.Is(err, unix.EINTR) {
			return ExitStatus{}, wrap("wait", err)
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	state, err := p.process.Wait()
	if err != nil {
		return ExitStatus{}, err
	}
	p.reaped = true
	return StatusOf(state.Sys().(syscall.WaitStatus)), nil
}

func (p *hostProcess) Signal(sig syscall.Signal) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return SignalGroup(p.process.Pid, p.reaped, sig)
}

// StatusOf translates what wait4(2) says of an ended process.
func StatusOf(status syscall.WaitStatus) ExitStatus {
	if status.Signaled() {
		return ExitStatus{Signal: status.Signal()}
	}
	return ExitStatus{Code: status.ExitStatus()}
}

// SignalGroup sends sig to the process group led by pid, for an implementation
// of Process.Signal: the caller makes sure that the leader is not reaped in the
// meantime, or says that it has been. The kernel gives a number to no other
// process while a group has it, so where there is a process of a reaped
// leader's number the group is gone.
func SignalGroup(pid int, reaped bool, sig syscall.Signal) error {
	if reaped && !errors.Is(unix.Kill(pid, 0), unix.ESRCH) {
		return os.ErrProcessDone
	}
	err := unix.Kill(-pid, sig)
	if errors.Is(err, unix.ESRCH) {
		return os.ErrProcessDone
	}
	return err
}
