//go:build linux

package guest

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/matchlock/matchlock/internal/seccomp"
)

// restraint is what user code is held to, beside its user. It is put on one
// thread, and what that thread starts inherits it; programs cannot take it off.
type restraint struct {
	capabilities uint64 // the most that root holds, bit N for capability N
	allowSetuid  bool   // no no_new_privs
}

// apply restrains the calling thread, which must be locked to its goroutine and
// must never run anything else again.
func (r *restraint) apply() error {
	for c := 0; c < 64; c++ {
		if r.capabilities&(1<<c) != 0 {
			continue
		}
		// Only the bounding set: the thread itself must still be able to change
		// user for its children, who lose the rest at exec (capabilities(7)).
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(c), 0, 0, 0); err == unix.EINVAL {
			break // past the last capability of this kernel
		} else if err != nil {
			return fmt.Errorf("drop capability %d: %w", c, err)
		}
	}
	if !r.allowSetuid {
		if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
			return fmt.Errorf("no_new_privs: %w", err)
		}
	}
	if err := seccompFilter(r.capabilities).Load(); err != nil {
		return fmt.Errorf("seccomp: %w", err)
	}
	return nil
}

// denied is a system call that user code may not make unless it holds one of
// the capabilities.
type denied struct {
	nr     uint32
	lifted uint64
}

// deniedCalls is what container runtimes refuse by default and that is not a
// matter of capabilities alone: new attack surface of the kernel, and what
// would see beside the restraints. Namespaces are closed by
// /proc/sys/user/max_user_namespaces, so clone is not among them.
var deniedCalls = append([]denied{
	{unix.SYS_ACCT, lift(unix.CAP_SYS_PACCT)},
	{unix.SYS_ADD_KEY, 0},
	{unix.SYS_BPF, lift(unix.CAP_SYS_ADMIN, unix.CAP_BPF)},
	{unix.SYS_CLOCK_ADJTIME, lift(unix.CAP_SYS_TIME)},
	{unix.SYS_CLOCK_SETTIME, lift(unix.CAP_SYS_TIME)},
	{unix.SYS_DELETE_MODULE, lift(unix.CAP_SYS_MODULE)},
	{unix.SYS_FANOTIFY_INIT, lift(unix.CAP_SYS_ADMIN)},
	{unix.SYS_FINIT_MODULE, lift(unix.CAP_SYS_MODULE)},
	{unix.SYS_FSCONFIG, lift(unix.CAP_SYS_ADMIN)},
	{unix.SYS_FSMOUNT, lift(unix.CAP_SYS_ADMIN)},
	{unix.SYS_FSOPEN, lift(unix.CAP_SYS_ADMIN)},
	{unix.SYS_FSPICK, lift(unix.CAP_SYS_ADMIN)},
	{unix.SYS_INIT_MODULE, lift(unix.CAP_SYS_MODULE)},
	{unix.SYS_IO_URING_ENTER, 0},
	{unix.SYS_IO_URING_REGISTER, 0},
	{unix.SYS_IO_URING_SETUP, 0},
	{unix.SYS_KCMP, lift(unix.CAP_SYS_PTRACE)},
	{unix.SYS_KEXEC_FILE_LOAD, lift(unix.CAP_SYS_BOOT)},
	{unix.SYS_KEXEC_LOAD, lift(unix.CAP_SYS_BOOT)},
	{unix.SYS_KEYCTL, 0},
	{unix.SYS_MOUNT, lift(unix.CAP_SYS_ADMIN)},
	{unix.SYS_MOUNT_SETATTR, lift(unix.CAP_SYS_ADMIN)},
	{unix.SYS_MOVE_MOUNT, lift(unix.CAP_SYS_ADMIN)},
	{unix.SYS_NFSSERVCTL, 0},
	{unix.SYS_OPEN_BY_HANDLE_AT, lift(unix.CAP_DAC_READ_SEARCH)},
	{unix.SYS_OPEN_TREE, lift(unix.CAP_SYS_ADMIN)},
	{unix.SYS_PERF_EVENT_OPEN, lift(unix.CAP_SYS_ADMIN, unix.CAP_PERFMON)},
	{unix.SYS_PIVOT_ROOT, lift(unix.CAP_SYS_ADMIN)},
	{unix.SYS_QUOTACTL, lift(unix.CAP_SYS_ADMIN)},
	{unix.SYS_REBOOT, lift(unix.CAP_SYS_BOOT)},
	{unix.SYS_REQUEST_KEY, 0},
	{unix.SYS_SETDOMAINNAME, lift(unix.CAP_SYS_ADMIN)},
	{unix.SYS_SETHOSTNAME, lift(unix.CAP_SYS_ADMIN)},
	{unix.SYS_SETNS, lift(unix.CAP_SYS_ADMIN)},
	{unix.SYS_SETTIMEOFDAY, lift(unix.CAP_SYS_TIME)},
	{unix.SYS_SWAPOFF, lift(unix.CAP_SYS_ADMIN)},
	{unix.SYS_SWAPON, lift(unix.CAP_SYS_ADMIN)},
	{unix.SYS_SYSLOG, lift(unix.CAP_SYSLOG)},
	{unix.SYS_UMOUNT2, lift(unix.CAP_SYS_ADMIN)},
	{unix.SYS_UNSHARE, lift(unix.CAP_SYS_ADMIN)},
	{unix.SYS_USERFAULTFD, lift(unix.CAP_SYS_PTRACE)},
	{unix.SYS_VHANGUP, lift(unix.CAP_SYS_TTY_CONFIG)},
}, deniedOnThisArch...)

func lift(capabilities ...int) (set uint64) {
	for _, c := range capabilities {
		set |= 1 << c
	}
	return set
}

// seccompFilter refuses what none of the capabilities lifts.
func seccompFilter(capabilities uint64) *seccomp.Filter {
	f := seccomp.New()
	for _, d := range deniedCalls {
		if d.lifted&capabilities == 0 {
			f.Deny(unix.EPERM, d.nr)
		}
	}
	return f
}
