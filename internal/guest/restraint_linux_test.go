package guest

import (
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

func TestSeccompFilter(t *testing.T) {
	tests := map[string]struct {
		capabilities uint64
		nr           uint32
		denied       bool
	}{
		"an ordinary call":        {0, unix.SYS_READ, false},
		"mount":                   {0, unix.SYS_MOUNT, true},
		"mount, lifted":           {lift(unix.CAP_SYS_ADMIN), unix.SYS_MOUNT, false},
		"bpf, lifted by a second": {lift(unix.CAP_BPF), unix.SYS_BPF, false},
		"what nothing lifts":      {^uint64(0), unix.SYS_KEYCTL, true},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			denied := slices.ContainsFunc(seccompFilter(test.capabilities).Program(), func(in unix.SockFilter) bool {
				return in.Code == unix.BPF_JMP|unix.BPF_JEQ|unix.BPF_K && in.K == test.nr
			})
			if denied != test.denied {
				t.Errorf("denied: %v, want %v", denied, test.denied)
			}
		})
	}
}

// The kernel takes programs of at most 4096 instructions.
func TestSeccompFilterFits(t *testing.T) {
	if n := len(seccompFilter(0).Program()); n > unix.BPF_MAXINSNS {
		t.Errorf("%d instructions", n)
	}
}
