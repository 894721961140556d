//go:build linux

package guest

import "golang.org/x/sys/unix"

const (
	auditArch    = unix.AUDIT_ARCH_AARCH64
	foreignCalls = 0x80000000 // none: there is one ABI
)

var deniedOnThisArch []denied
