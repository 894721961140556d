package workspace

import (
	"strings"
	"syscall"
	"unicode/utf8"
)

const (
	// maxXattr is the most bytes of an xattr's value, and of a list of names, as in Linux.
	maxXattr = 64 << 10
	// maxXattrs is what all of one file in a tree of ours may take.
	maxXattrs = 64 << 10
)

// The flags of setxattr(2).
const (
	xattrCreate  = 1
	xattrReplace = 2
)

// noXattr is ENODATA, which package syscall does not have on all systems by Linux's
// number.
const noXattr = syscall.Errno(61)

// guestXattr tells whether an xattr is the guest's.
func guestXattr(name string) bool {
	return strings.HasPrefix(name, "user.") && len(name) > len("user.") && len(name) <= maxName &&
		name != recordName && strings.IndexByte(name, 0) < 0 && utf8.ValidString(name)
}

// checkSetxattr refuses what no file takes.
func checkSetxattr(value []byte, flags int) error {
	switch {
	case flags != 0 && flags != xattrCreate && flags != xattrReplace:
		return syscall.EINVAL
	case len(value) > maxXattr:
		return syscall.E2BIG
	}
	return nil
}
