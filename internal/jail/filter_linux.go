package jail

import (
	"golang.org/x/sys/unix"

	"github.com/matchlock/matchlock/internal/seccomp"
)

// deniedCalls are those that a hypervisor has no use for, and whoever has taken it
// over might. QEMU's own filter comes on top, which also denies execve(2).
var deniedCalls = append([]uint32{
	// Sockets beside those that it was given.
	unix.SYS_SOCKET, unix.SYS_CONNECT,
	// Other processes, and new programs.
	unix.SYS_EXECVEAT, unix.SYS_KILL, unix.SYS_TKILL, unix.SYS_RT_SIGQUEUEINFO, unix.SYS_RT_TGSIGQUEUEINFO,
	unix.SYS_PTRACE, unix.SYS_PROCESS_VM_READV, unix.SYS_PROCESS_VM_WRITEV, unix.SYS_PROCESS_MADVISE,
	unix.SYS_PIDFD_OPEN, unix.SYS_PIDFD_GETFD, unix.SYS_PIDFD_SEND_SIGNAL, unix.SYS_KCMP,
	// Memory that no limit counts.
	unix.SYS_MEMFD_CREATE, unix.SYS_MEMFD_SECRET, unix.SYS_SHMGET, unix.SYS_MSGGET, unix.SYS_SEMGET,
	// What a file is, beside its content.
	unix.SYS_FCHMOD, unix.SYS_FCHMODAT, unix.SYS_FCHMODAT2, unix.SYS_FCHOWN, unix.SYS_FCHOWNAT, unix.SYS_UTIMENSAT,
	unix.SYS_SETXATTR, unix.SYS_LSETXATTR, unix.SYS_FSETXATTR, unix.SYS_REMOVEXATTR, unix.SYS_LREMOVEXATTR, unix.SYS_FREMOVEXATTR,
	unix.SYS_OPEN_BY_HANDLE_AT, unix.SYS_NAME_TO_HANDLE_AT, unix.SYS_MKNODAT,
	// Mounts and namespaces.
	unix.SYS_MOUNT, unix.SYS_UMOUNT2, unix.SYS_PIVOT_ROOT, unix.SYS_CHROOT, unix.SYS_UNSHARE, unix.SYS_SETNS,
	unix.SYS_FSOPEN, unix.SYS_FSCONFIG, unix.SYS_FSMOUNT, unix.SYS_FSPICK, unix.SYS_OPEN_TREE, unix.SYS_MOVE_MOUNT, unix.SYS_MOUNT_SETATTR,
	// Large parts of the kernel, each with a history.
	unix.SYS_BPF, unix.SYS_PERF_EVENT_OPEN, unix.SYS_USERFAULTFD, unix.SYS_IO_URING_SETUP, unix.SYS_IO_URING_ENTER, unix.SYS_IO_URING_REGISTER,
	unix.SYS_KEYCTL, unix.SYS_ADD_KEY, unix.SYS_REQUEST_KEY, unix.SYS_PERSONALITY, unix.SYS_SYSLOG, unix.SYS_FANOTIFY_INIT, unix.SYS_QUOTACTL,
}, deniedOnThisArch...)

// threadFlags mark a clone(2) that makes a thread.
const threadFlags = unix.CLONE_VM | unix.CLONE_THREAD

// loadFilter has the kernel deny what a hypervisor need not call, to this thread and
// what becomes of it. The listener is openings's.
func loadFilter() (listener int, err error) {
	f := seccomp.New()
	f.Deny(unix.EPERM, deniedCalls...)
	// Its flags lie in memory, where a filter cannot look. Without it, clone is called.
	f.Deny(unix.ENOSYS, unix.SYS_CLONE3)
	f.DenyUnless(unix.EPERM, unix.SYS_CLONE, 0, threadFlags, threadFlags)
	// A thread may be sent a signal if it is one's own.
	f.DenyUnless(unix.EPERM, unix.SYS_TGKILL, 0, 1<<32-1, uint32(unix.Getpid()))
	f.NotifyIf(unix.SYS_OPENAT, 2, unix.O_ACCMODE, unix.O_RDWR)
	return f.LoadListening()
}
