//go:build linux

package guest

import (
	"fmt"
	"os"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/matchlock/matchlock/internal/agent"
)

// starter is the agent.Starter of the guest. Commands are forked from one
// thread, which is under the restraints that they are to inherit, and by the
// shortest way there is; and all children, theirs and adopted ones, are reaped
// in one place, as PID 1 must.
type starter struct {
	cgroup *os.File // commands start in it
	limits []limit

	unshielded []*process // of ours

	forks chan func() // run by the restrained thread
	gate  sync.Mutex  // held by a start, and while none may be: see hold

	mu        sync.Mutex
	standby   *standby         // until the first command; nil: there is none
	processes map[int]*process // that have not been reaped
	someChild sync.Cond        // there may be a child to wait for
}

func newStarter() *starter {
	s := &starter{processes: map[int]*process{}}
	s.someChild.L = &s.mu
	go s.reap()
	return s
}

// restrain sets what commands are held to from now on; nil is nothing.
func (s *starter) restrain(r *restraint) error {
	s.takeStandby(nil)
	if s.forks != nil {
		close(s.forks)
	}
	s.forks = make(chan func())
	applied := make(chan error)
	go func(forks <-chan func()) {
		// Never unlocked: the thread ends with the goroutine, and nothing else
		// ever runs on it.
		runtime.LockOSThread()
		err := unix.Setpriority(unix.PRIO_PROCESS, unix.Gettid(), 0) // which commands inherit
		if err == nil && r != nil {
			err = r.apply()
		}
		applied <- err
		for fork := range forks {
			fork()
		}
	}(s.forks)
	return <-applied
}

// Prepare implements agent.Preparer.
func (s *starter) Prepare(files []*os.File) error {
	made, err := (*standby)(nil), error(nil)
	s.fork(func() { made, err = newStandby(s.cgroup, files) })
	s.mu.Lock()
	defer s.mu.Unlock()
	s.standby = made
	s.someChild.Signal()
	return err
}

// takeStandby returns the standby if it has the files. If not, it is of no use
// any more: what is started now could get at it.
func (s *starter) takeStandby(files []*os.File) *standby {
	s.mu.Lock()
	defer s.mu.Unlock()
	taken := s.standby
	s.standby = nil
	if taken != nil && !slices.Equal(taken.files, files) {
		taken.end()
		return nil
	}
	return taken
}

// fork has the restrained thread run a function.
func (s *starter) fork(f func()) {
	done := make(chan struct{})
	s.forks <- func() {
		defer close(done)
		f()
	}
	<-done
}

// hold returns when no command is being started, and has those to come wait until
// letGo: a process between its birth and its program has the descriptors of PID 1.
func (s *starter) hold()  { s.gate.Lock() }
func (s *starter) letGo() { s.gate.Unlock() }

// Start implements agent.Starter.
func (s *starter) Start(path string, argv []string, attr *agent.ProcAttr) (agent.Process, error) {
	s.hold()
	defer s.letGo()
	if ready := s.takeStandby(attr.Files); ready != nil {
		if len(s.limits) == 0 && ready.waits() {
			defer s.shield(ready.pid)
			return s.runStandby(ready, path, argv, attr)
		}
		ready.end()
	}
	s.shield(0)
	files := make([]uintptr, len(attr.Files))
	for i, f := range attr.Files {
		files[i] = f.Fd()
	}
	if len(s.limits) > 0 {
		path, argv = limited(s.limits, path, argv)
	}
	sys := &syscall.SysProcAttr{Setsid: true, UseCgroupFD: true, CgroupFD: int(s.cgroup.Fd())}
	if attr.TTY {
		sys.Setctty, sys.Ctty = true, 0
	}
	if c := attr.Credential; c != nil {
		sys.Credential = &syscall.Credential{Uid: c.UID, Gid: c.GID, Groups: c.Groups}
	}
	var p *process
	var err error
	s.fork(func() {
		// Until the process is in the table the reaper must not see its end.
		s.mu.Lock()
		defer s.mu.Unlock()
		var pid int
		pid, err = syscall.ForkExec(path, argv, &syscall.ProcAttr{Dir: attr.Dir, Env: attr.Env, Files: files, Sys: sys})
		if err == nil {
			p = s.add(pid)
		}
	})
	runtime.KeepAlive(attr.Files)
	if err != nil {
		return nil, err
	}
	return p, nil
}

// add puts a process into the table, with mu held.
func (s *starter) add(pid int) *process {
	p := &process{starter: s, pid: pid, ended: make(chan struct{})}
	s.processes[pid] = p
	s.someChild.Signal()
	return p
}

// startChild starts a process of ours, which runs no program.
func (s *starter) startChild(c *child, stack []byte, files [3]int) (*process, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	s.mu.Lock()
	defer s.mu.Unlock()
	pid, err := c.start(stack, files, nil)
	if err != nil {
		return nil, err
	}
	p := s.add(pid)
	s.unshielded = append(s.unshielded, p)
	return p, nil
}

// shield has the kernel take the memory of others when it has none left. That holds for
// all who share a process's memory but PID 1, as the standby has done: first is what has
// been one, 0 if there is none. It gets its own memory a moment after it has told so,
// and until then what one of them is given the others have too.
//
// What cannot be shielded goes on without.
func (s *starter) shield(first int) {
	score := func(pid int) string { return fmt.Sprintf("/proc/%d/oom_score_adj", pid) }
	for _, p := range s.unshielded {
		for range 100 {
			_ = os.WriteFile(score(p.pid), []byte("-1000"), 0)
			_ = os.WriteFile(score(first), []byte("0"), 0)
			if now, err := os.ReadFile(score(p.pid)); err != nil || string(now) == "-1000\n" {
				break
			}
			time.Sleep(100 * time.Microsecond)
		}
	}
	s.unshielded = nil
}

// runStandby is Start with a process that waits for it.
func (s *starter) runStandby(ready *standby, path string, argv []string, attr *agent.ProcAttr) (agent.Process, error) {
	s.mu.Lock()
	p := s.add(ready.pid)
	s.mu.Unlock()
	if err := ready.run(path, argv, attr); err != nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.processes, ready.pid) // it ends by itself
		return nil, err
	}
	return p, nil
}

// ignoreChildSignals takes SIGCHLD from the runtime, which would handle it only to
// drop it. The end of a child is told by waitid(2), and commands inherit nothing.
func ignoreChildSignals() error {
	var byDefault [4]uint64 // struct sigaction of the kernel: SIG_DFL, no flags
	_, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(unix.SIGCHLD), uintptr(unsafe.Pointer(&byDefault)), 0, 8, 0, 0)
	if errno != 0 {
		return fmt.Errorf("SIGCHLD: %w", errno)
	}
	return nil
}

// reap waits for children for ever.
func (s *starter) reap() {
	for {
		// Leave the child as it is: its number must stay taken until the table
		// knows of its end, or a signal for it could reach another.
		err := unix.Waitid(unix.P_ALL, 0, nil, unix.WEXITED|unix.WNOWAIT, nil)
		s.mu.Lock()
		if err == unix.ECHILD && len(s.processes) == 0 {
			s.someChild.Wait()
		}
		for {
			var status unix.WaitStatus
			pid, err := unix.Wait4(-1, &status, unix.WNOHANG, nil)
			if err == unix.EINTR {
				continue
			}
			if err != nil || pid <= 0 {
				break
			}
			if p := s.processes[pid]; p != nil {
				delete(s.processes, pid)
				p.status = status
				close(p.ended)
			}
		}
		s.mu.Unlock()
	}
}

// process is an agent.Process.
type process struct {
	starter *starter
	pid     int
	ended   chan struct{}
	status  unix.WaitStatus // once ended
}

func (p *process) PID() int { return p.pid }

func (p *process) Wait() (agent.ExitStatus, error) {
	<-p.ended
	return agent.StatusOf(syscall.WaitStatus(p.status)), nil
}

func (p *process) Signal(sig syscall.Signal) error {
	p.starter.mu.Lock() // holds up the reaper
	defer p.starter.mu.Unlock()
	return agent.SignalGroup(p.pid, p.starter.processes[p.pid] != p, sig)
}
