package jail

import (
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// What Landlock can restrict, by the version of its interface (Linux,
// Documentation/userspace-api/landlock.rst).
const (
	landlockFiles    = 1<<13 - 1 // version 1, Linux 5.13
	landlockRefer    = 1 << 13   // 2
	landlockTruncate = 1 << 14   // 3
	landlockIoctl    = 1 << 15   // 5

	landlockNet = 1<<0 | 1<<1 // 4: bind and connect of TCP

	landlockScopes = 1<<0 | 1<<1 // 6: abstract unix sockets, signals

	landlockExecute  = 1 << 0
	landlockRead     = 1 << 2
	landlockReadDir  = 1 << 3
	landlockVersion  = 1 << 0 // a flag of landlock_create_ruleset
	landlockPathRule = 1
)

type landlockRuleset struct{ files, net, scopes uint64 }

// landlockPath is packed in C: the kernel reads 12 bytes.
type landlockPath struct {
	allowed uint64
	fd      int32
}

// fileRules has Landlock deny every file but those that the program is to open, and
// every mode but those. It holds where a mount does not, and the other way round. The
// rules are made while the files can still be reached; they hold from restrict on.
func (s *step) fileRules(parts []part) (_ *os.File, err error) {
	version, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, landlockVersion)
	if errno != 0 {
		return nil, errno
	}
	rules := landlockRuleset{files: landlockFiles}
	size := unsafe.Sizeof(rules.files)
	if version >= 2 {
		rules.files |= landlockRefer
	}
	if version >= 3 {
		rules.files |= landlockTruncate
	}
	if version >= 4 {
		rules.net, size = landlockNet, size+unsafe.Sizeof(rules.net)
	}
	if version >= 5 {
		rules.files |= landlockIoctl
	}
	if version >= 6 {
		rules.scopes, size = landlockScopes, unsafe.Sizeof(rules)
	}
	fd, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, uintptr(unsafe.Pointer(&rules)), size, 0)
	if errno != 0 {
		return nil, errno
	}
	ruleset := os.NewFile(fd, "landlock") // closed on exec
	defer func() {
		if err != nil {
			ruleset.Close()
		}
	}()

	allow := func(at int, access uint64) error {
		rule := landlockPath{access, int32(at)}
		if _, _, errno := unix.Syscall6(unix.SYS_LANDLOCK_ADD_RULE, fd, landlockPathRule, uintptr(unsafe.Pointer(&rule)), 0, 0, 0); errno != 0 {
			return errno
		}
		return nil
	}
	for _, p := range parts {
		access := uint64(landlockRead | landlockExecute)
		if p.dir {
			access |= landlockReadDir
		}
		if err := allow(p.fd, access); err != nil {
			return nil, fmt.Errorf("%s: %w", p.path, err)
		}
	}
	for fd := firstFD; fd < firstFD+s.Files; fd++ {
		if !readOnlyFile(fd) {
			continue
		}
		// A file of memfd_create(2) takes no rule, and needs none.
		if err := allow(fd, landlockRead); err != nil && !errors.Is(err, unix.EBADFD) {
			return nil, fmt.Errorf("descriptor %d: %w", fd, err)
		}
	}
	return ruleset, nil
}

// restrict holds this thread, and what becomes of it, to the rules.
func restrict(ruleset *os.File) error {
	defer ruleset.Close()
	if _, _, errno := unix.Syscall(unix.SYS_LANDLOCK_RESTRICT_SELF, ruleset.Fd(), 0, 0); errno != 0 {
		return errno
	}
	return nil
}
