//go:build linux

package guest

import (
	"errors"
	"fmt"
	"math"
	"os"
	"runtime"
	"slices"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/matchlock/matchlock/internal/agent"
	"github.com/matchlock/matchlock/internal/fuse"
)

// standby is a process that is there before it is known what it is to run: in its
// control group, under its restraints, with its descriptors. It waits to be told,
// and then has nothing left to do but execve(2). In a machine that is copied, what
// was done before the copy costs nothing after it.
//
// Until then it shares the memory of PID 1, as a child of vfork(2) does, so that
// none of it need be copied. User code must not run while it waits: some could
// stop it or send it signals, which PID 1 itself is safe from.
type standby struct {
	pid   int
	files []*os.File // its descriptors 0, 1, 2
	child *child
	stack []byte
}

// child is what the process and PID 1 know of each other.
type child struct {
	files [3]int
	mask  unix.Sigset_t // of signals, as a command is to have it

	relay   *fuse.Relay // one that passes on files is a loop of; nil: it runs a program
	answers bool        // which of the two

	listens bool   // it runs its program when it hears something at its descriptor 1
	heard   uint32 // what that was; 0: nothing yet

	order        uint32 // futex, if it does not listen; what follows is valid once it is orderRun
	path, dir    *byte  // dir is nil for the present one, "/"
	argv, env    **byte
	credential   *agent.Credential // nil: the present one, root's
	groups       *uint32
	errno        syscall.Errno // why it ended
	sharesMemory uint32        // futex; the kernel makes it 0 when the process has loaded a program or ended
}

// What the process is to do.
const (
	orderWait uint32 = iota
	orderRun
	orderEnd
)

// childStack is the size of the stack of a process that only makes system calls.
const childStack = 16 << 10

// newStandby starts one. The calling thread's restraints are the process's; it
// must be locked to its goroutine.
func newStandby(cgroup *os.File, files []*os.File) (*standby, error) {
	return new(child).standby(cgroup, files)
}

// standby makes c one.
func (c *child) standby(cgroup *os.File, files []*os.File) (*standby, error) {
	s := &standby{files: slices.Clone(files), child: c, stack: make([]byte, childStack)}
	var fds [3]int
	for i, f := range files {
		fds[i] = int(f.Fd())
	}
	var err error
	if s.pid, err = s.child.start(s.stack, fds, cgroup); err != nil {
		return nil, fmt.Errorf("standby: %w", err)
	}
	return s, nil
}

// start starts the child, with its descriptors 0, 1 and 2, and returns its pid. The
// stack must stay as long as it lives.
func (c *child) start(stack []byte, files [3]int, cgroup *os.File) (pid int, err error) {
	if slices.Min(files[:]) < len(files) {
		return 0, errors.New("its files are in each other's way")
	}
	c.files = files
	// A signal must not have it run the handler of a runtime whose thread it is not.
	var all unix.Sigset_t
	for i := range all.Val {
		all.Val[i] = math.MaxUint64
	}
	if err := unix.PthreadSigmask(unix.SIG_SETMASK, &all, &c.mask); err != nil {
		return 0, err
	}
	c.sharesMemory = 1
	arguments := cloneArgs{
		flags:      unix.CLONE_VM | unix.CLONE_CHILD_CLEARTID,
		childTID:   uint64(uintptr(unsafe.Pointer(&c.sharesMemory))),
		exitSignal: uint64(unix.SIGCHLD),
		stack:      uint64(uintptr(unsafe.Pointer(unsafe.SliceData(stack)))),
		stackSize:  uint64(len(stack)),
	}
	if cgroup != nil {
		arguments.flags |= unix.CLONE_INTO_CGROUP
		arguments.cgroup = uint64(cgroup.Fd())
	}
	pid = spawn(&arguments, unsafe.Sizeof(arguments), c)
	err = unix.PthreadSigmask(unix.SIG_SETMASK, &c.mask, nil)
	if pid < 0 {
		err = syscall.Errno(-pid)
	}
	return pid, err
}

// run has the process run a program. It returns when that is loaded.
func (s *standby) run(path string, argv []string, attr *agent.ProcAttr) (err error) {
	if err := s.child.setProgram(path, argv, attr); err != nil {
		s.end()
		return err
	}
	s.tell(orderRun)
	s.await()
	if errno := s.child.errno; errno != 0 {
		return errno
	}
	return nil
}

// setProgram says what is to be run.
func (c *child) setProgram(path string, argv []string, attr *agent.ProcAttr) (err error) {
	if c.path, err = syscall.BytePtrFromString(path); err != nil {
		return err
	}
	if attr.Dir != "" && attr.Dir != "/" {
		c.dir, err = syscall.BytePtrFromString(attr.Dir)
	}
	arguments, err1 := syscall.SlicePtrFromStrings(argv)
	env, err2 := syscall.SlicePtrFromStrings(attr.Env)
	if err := errors.Join(err, err1, err2); err != nil {
		return err
	}
	c.argv, c.env = &arguments[0], &env[0]
	if who := attr.Credential; who != nil && (who.UID != 0 || who.GID != 0 || len(who.Groups) > 0) {
		c.credential, c.groups = who, unsafe.SliceData(who.Groups)
	}
	return nil
}

// waits tells whether the process is still there.
func (s *standby) waits() bool { return atomic.LoadUint32(&s.child.sharesMemory) != 0 }

// end ends the process, which runs no program yet.
func (s *standby) end() {
	s.tell(orderEnd)
	s.await()
}

// tell gives an order, and await returns when the process has loaded a program, or ended.
func (s *standby) tell(order uint32) {
	atomic.StoreUint32(&s.child.order, order)
	unix.Syscall6(unix.SYS_FUTEX, uintptr(unsafe.Pointer(&s.child.order)), futexWake|futexPrivate, 1, 0, 0, 0)
}

func (s *standby) await() {
	for s.waits() {
		unix.Syscall6(unix.SYS_FUTEX, uintptr(unsafe.Pointer(&s.child.sharesMemory)), futexWait, 1, 0, 0, 0)
	}
	runtime.KeepAlive(s.stack)
}

// Operations of futex(2).
const (
	futexWait    = 0
	futexWake    = 1
	futexPrivate = 128 // of one process's memory; the kernel's own waking is not
)

// cloneArgs is struct clone_args of clone(2).
type cloneArgs struct {
	flags, _, childTID, _, exitSignal, stack, stackSize, _, _, _, cgroup uint64
}

// spawn calls clone3(2). The child calls standBy on its own stack. It returns the
// child's number, or that of an error, negative.
//
//go:noescape
func spawn(arguments *cloneArgs, size uintptr, c *child) (pid int)

// failed is the exit status of a process that ran nothing.
const failed = 253

// standBy is the child's life. In it, nothing may run but system calls: it is no
// thread of the runtime, which knows nothing of it. It does not return.
//
//go:norace
//go:nosplit
func standBy(c *child) {
	c.errno = c.standBy()
	for {
		unix.RawSyscall(unix.SYS_EXIT_GROUP, failed, 0, 0)
	}
}

// standBy returns only an error. What it calls is not inlined: for what may not be
// split a linker allows 792 bytes of stack in all, and a frame for all of it would be long.
//
//go:norace
//go:nosplit
func (c *child) standBy() syscall.Errno {
	if errno := c.settle(); errno != 0 {
		return errno
	}
	if c.relay == nil {
		return c.become()
	}
	if c.answers {
		c.relay.PassAnswers(0, 1)
	} else {
		c.relay.PassRequests(0, 1)
	}
	return unix.ECANCELED
}

// settle makes it a process with descriptors of its own.
//
//go:norace
//go:nosplit
//go:noinline
func (c *child) settle() syscall.Errno {
	if _, _, errno := unix.RawSyscall(unix.SYS_SETSID, 0, 0, 0); errno != 0 {
		return errno
	}
	for i, fd := range c.files {
		if _, _, errno := unix.RawSyscall(unix.SYS_DUP3, uintptr(fd), uintptr(i), 0); errno != 0 {
			return errno
		}
	}
	// Of PID 1's descriptors it holds none: what PID 1 closes must be closed.
	_, _, errno := unix.RawSyscall(unix.SYS_CLOSE_RANGE, uintptr(len(c.files)), math.MaxUint32, 0)
	return errno
}

// become waits and runs the program.
//
//go:norace
//go:nosplit
//go:noinline
func (c *child) become() syscall.Errno {
	if c.listens {
		// What it hears is nothing but that. Where it cannot, it is at its end soon.
		unix.RawSyscall(unix.SYS_READ, uintptr(unix.Stdout), uintptr(unsafe.Pointer(&c.heard)), 1)
		c.order = orderRun
	}
	for c.order == orderWait {
		unix.RawSyscall6(unix.SYS_FUTEX, uintptr(unsafe.Pointer(&c.order)), futexWait|futexPrivate, uintptr(orderWait), 0, 0, 0)
	}
	if c.order == orderEnd {
		return unix.ECANCELED
	}
	if who := c.credential; who != nil {
		if _, _, errno := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(who.Groups)), uintptr(unsafe.Pointer(c.groups)), 0); errno != 0 {
			return errno
		}
		if _, _, errno := unix.RawSyscall(unix.SYS_SETGID, uintptr(who.GID), 0, 0); errno != 0 {
			return errno
		}
		if _, _, errno := unix.RawSyscall(unix.SYS_SETUID, uintptr(who.UID), 0, 0); errno != 0 {
			return errno
		}
	}
	if c.dir != nil {
		if _, _, errno := unix.RawSyscall(unix.SYS_CHDIR, uintptr(unsafe.Pointer(c.dir)), 0, 0); errno != 0 {
			return errno
		}
	}
	if _, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(&c.mask)), 0, unsafe.Sizeof(c.mask.Val[0]), 0, 0); errno != 0 {
		return errno
	}
	_, _, errno := unix.RawSyscall(unix.SYS_EXECVE, uintptr(unsafe.Pointer(c.path)), uintptr(unsafe.Pointer(c.argv)), uintptr(unsafe.Pointer(c.env)))
	return errno
}
