package qemu

import (
	"os"
	"os/exec"
	"runtime"
)

// process is the hypervisor's process, which dies with ours.
type process struct {
	os    *os.Process
	ended chan struct{}
	err   error // of Wait, once ended
}

// startProcess has start start a process so that the kernel kills it when this one
// ends, by kill -9 too. The kernel's parent-death signal goes by thread, not by
// process: it fires when the thread that forked ends, and Go ends threads. So
// the thread that forks is kept for as long as the child lives.
func startProcess(start func() (*exec.Cmd, error)) (*process, error) {
	p := &process{ended: make(chan struct{})}
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		cmd, err := start()
		if err == nil {
			p.os = cmd.Process
		}
		started <- err
		if err != nil {
			return
		}
		endGroup(cmd.Process.Pid)
		p.err = cmd.Wait()
		close(p.ended)
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	return p, nil
}

// kill ends the process and waits for its end.
func (p *process) kill() {
	p.os.Kill() // an error says that it has ended
	<-p.ended
}

// over tells whether the process has ended.
func (p *process) over() bool {
	select {
	case <-p.ended:
		return true
	default:
		return false
	}
}
