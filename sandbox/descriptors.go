package sandbox

import "syscall"

// What a guest can have this process open is less than the process may have: the rest
// is for QEMU, for those who are attached, and for other sandboxes of a program.
const (
	maxOpenFiles = 8192
	maxFlows     = 4096
)

// descriptors is how many files and flows of a guest may be open at a time.
func descriptors() (files, flows int) {
	var limit syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit) != nil {
		limit.Cur = 1024 // what processes begin with
	}
	return share(uint64(limit.Cur))
}

// share divides a limit: a half is for files, a quarter for flows.
func share(limit uint64) (files, flows int) {
	return int(min(limit/2, maxOpenFiles)), int(min(limit/4, maxFlows))
}
