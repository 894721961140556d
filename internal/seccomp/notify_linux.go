package seccomp

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// Requests of seccomp_unotify(2), include/uapi/linux/seccomp.h.
const (
	requestReceive = 0xC0502100
	requestSend    = 0xC0182101
	requestAddFD   = 0x40182103

	flagContinue = 1 << 0
)

// A Call waits for an answer by the listener of LoadListening. That it has been given up
// meanwhile, its thread having been killed, is no matter.
type Call struct {
	id   uint64
	PID  uint32 // of the thread
	_    uint32 // flags
	Nr   int32
	_    uint32 // architecture
	_    uint64 // instruction pointer
	Args [6]uint64
}

type response struct {
	id    uint64
	value int64
	errno int32
	flags uint32
}

type addition struct {
	id                          uint64
	flags, from, to, descriptor uint32
}

// Receive takes a call, or fails if it has been given up, or a signal came first: the call
// is still there then.
func Receive(listener int) (*Call, error) {
	c := new(Call)
	if _, errno := request(listener, requestReceive, unsafe.Pointer(c)); errno != 0 {
		return nil, errno
	}
	return c, nil
}

// Continue lets the call be made as it is.
func (c *Call) Continue(listener int) {
	c.answer(listener, response{id: c.id, flags: flagContinue})
}

// Fail has it fail.
func (c *Call) Fail(listener int, errno unix.Errno) {
	c.answer(listener, response{id: c.id, errno: -int32(errno)})
}

// Give has it return a descriptor of file, with flags of O_CLOEXEC.
func (c *Call) Give(listener, file int, flags uint32) {
	added := addition{id: c.id, from: uint32(file), descriptor: flags}
	n, errno := untilDone(listener, requestAddFD, unsafe.Pointer(&added))
	if errno != 0 {
		c.Fail(listener, errno)
		return
	}
	c.answer(listener, response{id: c.id, value: int64(n)})
}

func (c *Call) answer(listener int, r response) {
	untilDone(listener, requestSend, unsafe.Pointer(&r)) // fails where nobody waits any more
}

// untilDone makes a request again that a signal interrupts, as those of Go's own runtime
// do: the program would wait for ever for an answer that is lost.
func untilDone(listener int, what uintptr, argument unsafe.Pointer) (n uintptr, errno unix.Errno) {
	for {
		if n, errno = request(listener, what, argument); errno != unix.EINTR {
			return n, errno
		}
	}
}

func request(listener int, what uintptr, argument unsafe.Pointer) (n uintptr, errno unix.Errno) {
	n, _, errno = unix.Syscall(unix.SYS_IOCTL, uintptr(listener), what, uintptr(argument))
	return n, errno
}
