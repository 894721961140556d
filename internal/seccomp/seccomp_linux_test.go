package seccomp

import (
	"testing"

	"golang.org/x/sys/unix"
)

// judge runs a filter as the kernel would (Documentation/userspace-api/seccomp_filter.rst,
// classic BPF), as far as our filters go.
func judge(t *testing.T, program []unix.SockFilter, data map[uint32]uint32) uint32 {
	t.Helper()
	var accumulator uint32
	for pc := 0; pc < len(program); pc++ {
		switch in := program[pc]; in.Code {
		case unix.BPF_LD | unix.BPF_W | unix.BPF_ABS:
			accumulator = data[in.K]
		case unix.BPF_ALU | unix.BPF_AND | unix.BPF_K:
			accumulator &= in.K
		case unix.BPF_RET | unix.BPF_K:
			return in.K
		case unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K:
			taken := accumulator == in.K
			if in.Code&0xf0 == unix.BPF_JGE {
				taken = accumulator >= in.K
			}
			if taken {
				pc += int(in.Jt)
			} else {
				pc += int(in.Jf)
			}
		default:
			t.Fatalf("instruction %d: code %#x", pc, in.Code)
		}
	}
	t.Fatal("the program runs past its end")
	return 0
}

func TestFilter(t *testing.T) {
	f := New()
	f.Deny(unix.EPERM, unix.SYS_ACCT, unix.SYS_MOUNT)
	f.Deny(unix.ENOSYS, unix.SYS_CLONE3)
	f.DenyUnless(unix.EPERM, unix.SYS_CLONE, 0, unix.CLONE_THREAD|unix.CLONE_VM, unix.CLONE_THREAD|unix.CLONE_VM)
	f.NotifyIf(unix.SYS_OPENAT, 0, unix.O_ACCMODE, unix.O_RDWR)
	f.Deny(unix.EPERM, unix.SYS_UMOUNT2)
	const eperm = unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)
	tests := map[string]struct {
		arch, nr, argument uint32
		want               uint32
	}{
		"an ordinary call":       {auditArch, unix.SYS_READ, 0, unix.SECCOMP_RET_ALLOW},
		"the last of all calls":  {auditArch, 500, 0, unix.SECCOMP_RET_ALLOW},
		"the first denied":       {auditArch, unix.SYS_ACCT, 0, eperm},
		"the last denied":        {auditArch, unix.SYS_UMOUNT2, 0, eperm},
		"one of another error":   {auditArch, unix.SYS_CLONE3, 0, unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)},
		"a foreign architecture": {unix.AUDIT_ARCH_I386, unix.SYS_READ, 0, unix.SECCOMP_RET_KILL_PROCESS},
		"a foreign ABI":          {auditArch, foreignCalls + 1, 0, unix.SECCOMP_RET_KILL_PROCESS},
		"a thread":               {auditArch, unix.SYS_CLONE, unix.CLONE_THREAD | unix.CLONE_VM | unix.CLONE_FS, unix.SECCOMP_RET_ALLOW},
		"a process":              {auditArch, unix.SYS_CLONE, uint32(unix.SIGCHLD), eperm},
		"open for reading":       {auditArch, unix.SYS_OPENAT, unix.O_CLOEXEC, unix.SECCOMP_RET_ALLOW},
		"open for both":          {auditArch, unix.SYS_OPENAT, unix.O_RDWR | unix.O_CLOEXEC, unix.SECCOMP_RET_USER_NOTIF},
		"half a thread":          {auditArch, unix.SYS_CLONE, unix.CLONE_VM, eperm},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			if got := judge(t, f.Program(), map[uint32]uint32{dataArch: test.arch, dataNr: test.nr, dataArgs: test.argument}); got != test.want {
				t.Errorf("got %#x, want %#x", got, test.want)
			}
		})
	}
}
