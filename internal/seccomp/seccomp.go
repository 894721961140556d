//go:build linux

// Package seccomp writes the filters of system calls that user code in a guest and
// the hypervisor on the host are held to. What each may not call is theirs to say.
package seccomp

import (
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Offsets in struct seccomp_data (linux/seccomp.h).
const (
	dataNr   = 0
	dataArch = 4
	dataArgs = 16
)

// A Filter judges each system call, the first rule that fits deciding. A call of a
// foreign architecture, whose numbers mean something else, ends the process; one that
// no rule fits is allowed.
type Filter struct{ program []unix.SockFilter }

// New makes a filter without rules.
func New() *Filter {
	f := new(Filter)
	f.add(load(dataArch),
		jump(unix.BPF_JEQ, auditArch, 1, 0),
		ret(unix.SECCOMP_RET_KILL_PROCESS),
		load(dataNr),
		jump(unix.BPF_JGE, foreignCalls, 0, 1),
		ret(unix.SECCOMP_RET_KILL_PROCESS))
	return f
}

// Deny has calls fail with an error.
func (f *Filter) Deny(errno unix.Errno, calls ...uint32) {
	for _, nr := range calls {
		f.add(jump(unix.BPF_JEQ, nr, 0, 1), refuse(errno))
	}
}

// DenyUnless has a call fail with an error unless its argument, of which the low 32
// bits count, has all bits of mask as in value.
func (f *Filter) DenyUnless(errno unix.Errno, nr uint32, argument int, mask, value uint32) {
	f.add(jump(unix.BPF_JEQ, nr, 0, 5),
		load(dataArgs+8*uint32(argument)),
		bpf(unix.BPF_ALU|unix.BPF_AND|unix.BPF_K, mask),
		jump(unix.BPF_JEQ, value, 0, 1),
		allow,
		refuse(errno))
}

// NotifyIf has a call wait for what the listener of LoadListening decides, if its
// argument, of which the low 32 bits count, is value under mask.
func (f *Filter) NotifyIf(nr uint32, argument int, mask, value uint32) {
	f.add(jump(unix.BPF_JEQ, nr, 0, 5),
		load(dataArgs+8*uint32(argument)),
		bpf(unix.BPF_ALU|unix.BPF_AND|unix.BPF_K, mask),
		jump(unix.BPF_JEQ, value, 0, 1),
		ret(unix.SECCOMP_RET_USER_NOTIF),
		allow)
}

// Program is the filter as the kernel takes it.
func (f *Filter) Program() []unix.SockFilter {
	return append(f.program[:len(f.program):len(f.program)], allow)
}

// Load puts the filter on the calling thread, which must be locked to its goroutine,
// and on what it starts. It takes no_new_privs, or CAP_SYS_ADMIN.
func (f *Filter) Load() error {
	_, err := f.load(0)
	return err
}

// LoadListening is Load for a filter that notifies, and returns the descriptor to
// listen on (seccomp_unotify(2)).
func (f *Filter) LoadListening() (listener int, err error) {
	return f.load(unix.SECCOMP_FILTER_FLAG_NEW_LISTENER)
}

func (f *Filter) load(flags uintptr) (int, error) {
	filter := f.Program()
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	fd, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, flags, uintptr(unsafe.Pointer(&program)))
	runtime.KeepAlive(filter)
	if errno != 0 {
		return -1, errno
	}
	return int(fd), nil
}

func (f *Filter) add(instructions ...unix.SockFilter) { f.program = append(f.program, instructions...) }

var allow = ret(unix.SECCOMP_RET_ALLOW)

// refuse has the call fail with an error.
func refuse(errno unix.Errno) unix.SockFilter { return ret(unix.SECCOMP_RET_ERRNO | uint32(errno)) }

func ret(action uint32) unix.SockFilter { return bpf(unix.BPF_RET|unix.BPF_K, action) }

func load(offset uint32) unix.SockFilter { return bpf(unix.BPF_LD|unix.BPF_W|unix.BPF_ABS, offset) }

func bpf(code uint16, k uint32) unix.SockFilter { return unix.SockFilter{Code: code, K: k} }

// jump skips ifTrue or ifFalse instructions.
func jump(condition uint16, k uint32, ifTrue, ifFalse uint8) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_JMP | condition | unix.BPF_K, K: k, Jt: ifTrue, Jf: ifFalse}
}
