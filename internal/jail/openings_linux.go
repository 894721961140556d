package jail

import (
	"fmt"
	"os"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// openings answers a program that opens a file for reading and writing.
//
// QEMU opens the file of its guest's memory so, by the name of a descriptor in /proc,
// though it maps it privately. It cannot be let: the file is others' too. What it gets
// in the place of a file opened anew is a copy of the descriptor that it has, which
// is for reading. Other files are opened as always; what may be, all else decides.
type openings struct {
	listener *os.File // of seccomp_unotify(2)
	pid      int
	closed   sync.Once
	done     sync.WaitGroup
}

func serveOpenings(listener *os.File, pid int) *openings {
	o := &openings{listener: listener, pid: pid}
	o.done.Go(o.serve)
	return o
}

func (o *openings) close() {
	o.closed.Do(func() {
		o.listener.Close()
		o.done.Wait()
	})
}

// serve ends with the program or the listener.
func (o *openings) serve() {
	conn, err := o.listener.SyscallConn()
	if err != nil {
		return
	}
	for over := false; !over && err == nil; {
		err = conn.Read(func(fd uintptr) bool {
			ready := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
			if n, _ := unix.Poll(ready, 0); n == 0 {
				return false
			}
			if over = ready[0].Revents&unix.POLLIN == 0; !over {
				o.answer(fd)
			}
			return true
		})
	}
}

// Linux, include/uapi/linux/seccomp.h.
const (
	notifReceive = 0xC0502100
	notifSend    = 0xC0182101
	notifAddFD   = 0x40182103

	notifContinue = 1 << 0
)

type (
	notification struct {
		id         uint64
		pid, flags uint32
		nr         int32
		arch       uint32
		ip         uint64
		args       [6]uint64
	}
	notificationAnswer struct {
		id    uint64
		value int64
		errno int32
		flags uint32
	}
	notificationFD struct {
		id                          uint64
		flags, from, to, descriptor uint32
	}
)

// answer takes a call and decides on it. That it has been given up meanwhile, its
// thread having been killed, is no matter.
func (o *openings) answer(listener uintptr) {
	var call notification
	if control(listener, notifReceive, unsafe.Pointer(&call)) != nil {
		return
	}
	answer := notificationAnswer{id: call.id, flags: notifContinue}
	if fd, ok := o.named(uintptr(call.args[1])); ok {
		answer.flags = 0
		copied, err := o.copyInto(listener, call.id, fd, uint32(call.args[3])&unix.O_CLOEXEC)
		if answer.value = int64(copied); err != nil {
			answer.value, answer.errno = 0, -int32(unix.EACCES)
		}
	}
	control(listener, notifSend, unsafe.Pointer(&answer))
}

// named returns the descriptor that a path in the program's memory is the name of.
func (o *openings) named(path uintptr) (fd int, ok bool) {
	text := make([]byte, len(descriptors)+len("/1234567890")+1)
	local, remote := unix.Iovec{Base: &text[0]}, unix.RemoteIovec{Base: path, Len: len(text)}
	local.SetLen(len(text))
	// The end of a page may come before that of text.
	n, err := unix.ProcessVMReadv(o.pid, []unix.Iovec{local}, []unix.RemoteIovec{remote}, 0)
	if err != nil || n == 0 {
		return 0, false
	}
	name := unix.ByteSliceToString(text[:n])
	if _, err := fmt.Sscanf(name, descriptors+"/%d", &fd); err != nil {
		return 0, false
	}
	return fd, name == fmt.Sprintf("%s/%d", descriptors, fd)
}

// copyInto gives the program a copy of a descriptor of its own.
func (o *openings) copyInto(listener uintptr, id uint64, fd int, flags uint32) (copied int, err error) {
	process, err := unix.PidfdOpen(o.pid, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(process)
	ours, err := unix.PidfdGetfd(process, fd, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(ours)
	added := notificationFD{id: id, from: uint32(ours), descriptor: flags}
	n, _, errno := unix.Syscall(unix.SYS_IOCTL, listener, notifAddFD, uintptr(unsafe.Pointer(&added)))
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

func control(fd uintptr, request uintptr, argument unsafe.Pointer) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, fd, request, uintptr(argument)); errno != 0 {
		return errno
	}
	return nil
}
