package main

import (
	"fmt"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// kept are the capabilities of root that a supervisor has a use for.
var kept = []int{
	unix.CAP_CHOWN, unix.CAP_FOWNER, unix.CAP_DAC_OVERRIDE, unix.CAP_DAC_READ_SEARCH, // the folders that it serves
	unix.CAP_SYS_ADMIN, unix.CAP_SETUID, unix.CAP_SETGID, unix.CAP_SETPCAP, unix.CAP_SETFCAP, // the jail
	unix.CAP_SYS_PTRACE, unix.CAP_KILL, // what is in it
	unix.CAP_NET_BIND_SERVICE, // published ports
}

// dropCapabilities gives up the others for good, as the guest may have found a way to
// have this process do what it wants. It does nothing for a user who has none.
func dropCapabilities() error {
	var set [2]unix.CapUserData
	for _, c := range kept {
		set[c/32].Permitted |= 1 << (c % 32)
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var have [2]unix.CapUserData
	if err := unix.Capget(&header, &have[0]); err != nil {
		return fmt.Errorf("capget: %w", err)
	}
	for i := range set {
		set[i].Permitted &= have[i].Permitted
		set[i].Effective = set[i].Permitted
	}
	if set == have {
		return nil
	}
	// Then no program that it runs gets more than it has, as root would (capabilities(7)). To
	// drop them from the bounding set does the same by 30 calls, each of which stops all threads.
	_, _, errno := syscall.AllThreadsSyscall6(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0, 0)
	if errno == unix.ENOTSUP {
		return nil // a test, which is built with cgo
	} else if errno != 0 {
		return fmt.Errorf("no_new_privs: %w", errno)
	}
	_, _, errno = syscall.AllThreadsSyscall(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&header)), uintptr(unsafe.Pointer(&set[0])), 0)
	if errno != 0 {
		return fmt.Errorf("capset: %w", errno)
	}
	return nil
}
