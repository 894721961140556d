package guest

import (
	"testing"

	"golang.org/x/sys/unix"
)

// judge runs a filter as the kernel would (Documentation/userspace-api/seccomp_filter.rst,
// classic BPF), as far as our filters go.
func judge(t *testing.T, program []unix.SockFilter, arch, nr uint32) uint32 {
	t.Helper()
	data := map[uint32]uint32{dataArch: arch, dataNr: nr}
	var accumulator uint32
	for pc := 0; pc < len(program); pc++ {
		switch in := program[pc]; in.Code {
		case unix.BPF_LD | unix.BPF_W | unix.BPF_ABS:
			accumulator = data[in.K]
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

func TestSeccompFilter(t *testing.T) {
	const eperm = unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)
	tests := map[string]struct {
		capabilities uint64
		arch, nr     uint32
		want         uint32
	}{
		"an ordinary call":        {0, auditArch, unix.SYS_READ, unix.SECCOMP_RET_ALLOW},
		"the last of all calls":   {0, auditArch, 500, unix.SECCOMP_RET_ALLOW},
		"the first denied":        {0, auditArch, unix.SYS_ACCT, eperm},
		"mount":                   {0, auditArch, unix.SYS_MOUNT, eperm},
		"mount, lifted":           {lift(unix.CAP_SYS_ADMIN), auditArch, unix.SYS_MOUNT, unix.SECCOMP_RET_ALLOW},
		"bpf, lifted by a second": {lift(unix.CAP_BPF), auditArch, unix.SYS_BPF, unix.SECCOMP_RET_ALLOW},
		"what nothing lifts":      {^uint64(0), auditArch, unix.SYS_KEYCTL, eperm},
		"a foreign architecture":  {^uint64(0), unix.AUDIT_ARCH_I386, unix.SYS_READ, unix.SECCOMP_RET_KILL_PROCESS},
		"a foreign ABI":           {^uint64(0), auditArch, foreignCalls + 1, unix.SECCOMP_RET_KILL_PROCESS},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			if got := judge(t, seccompFilter(test.capabilities), test.arch, test.nr); got != test.want {
				t.Errorf("got %#x, want %#x", got, test.want)
			}
		})
	}
}

// The kernel takes programs of at most 4096 instructions.
func TestSeccompFilterFits(t *testing.T) {
	if n := len(seccompFilter(0)); n > unix.BPF_MAXINSNS {
		t.Errorf("%d instructions", n)
	}
}
