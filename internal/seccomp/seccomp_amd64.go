//go:build linux

package seccomp

import "golang.org/x/sys/unix"

const (
	auditArch = unix.AUDIT_ARCH_X86_64

	// foreignCalls is where the numbers of the x32 ABI begin, which has the same
	// architecture value (__X32_SYSCALL_BIT).
	foreignCalls = 0x40000000
)
