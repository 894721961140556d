package jail

import (
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/matchlock/matchlock/internal/seccomp"
)

// openings answers a program that opens a file for reading and writing.
//
// QEMU opens the file of its guest's memory so, by the name of a descriptor in /proc,
// though it maps it privately. It cannot be let: the file is others' too. What it gets
// in the place of a file opened anew is a copy of the descriptor that it has, which
// is for reading. A device that it may have is opened here, so that it need not be
// there, nor its user allowed to. Other files are opened as always; what may be, all
// else decides.
type openings struct {
	listener *os.File // of seccomp_unotify(2)
	pid      int
	devices  []string
	closed   sync.Once
	done     sync.WaitGroup
}

func serveOpenings(listener *os.File, pid int, devices []string) *openings {
	o := &openings{listener: listener, pid: pid, devices: devices}
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
			now, err := events(int(fd), unix.POLLIN)
			if err == nil && now == 0 {
				return false
			}
			if over = now&unix.POLLIN == 0; !over {
				o.answer(int(fd))
			}
			return true
		})
	}
}

// events are those that a descriptor has at present: of the ones that are asked for, and
// those that poll(2) tells of in any case.
func events(fd int, wanted int16) (int16, error) {
	for {
		ready := []unix.PollFd{{Fd: int32(fd), Events: wanted}}
		_, err := unix.Poll(ready, 0)
		if err != unix.EINTR { // as signals of Go's own runtime do
			return ready[0].Revents, err
		}
	}
}

// answer takes a call and decides on it.
func (o *openings) answer(listener int) {
	call, err := seccomp.Receive(listener)
	if err != nil {
		return
	}
	file, err := o.meant(o.name(uintptr(call.Args[1])))
	switch {
	case err != nil:
		call.Fail(listener, unix.EACCES)
	case file >= 0:
		call.Give(listener, file, uint32(call.Args[2])&unix.O_CLOEXEC)
		unix.Close(file)
	default:
		call.Continue(listener)
	}
}

// maxName is longer than any that is looked for.
const maxName = 64

// name reads a path in the program's memory, empty where there is none.
func (o *openings) name(at uintptr) string {
	text := make([]byte, maxName)
	local := unix.Iovec{Base: &text[0]}
	local.SetLen(len(text))
	// The end of a page may come before that of text.
	n, err := unix.ProcessVMReadv(o.pid, []unix.Iovec{local}, []unix.RemoteIovec{{Base: at, Len: len(text)}}, 0)
	if err != nil || n <= 0 {
		return ""
	}
	return unix.ByteSliceToString(text[:n])
}

// meant returns what is to be had in the place of a file, -1 where that is the file.
func (o *openings) meant(name string) (file int, err error) {
	if slices.Contains(o.devices, name) {
		return unix.Open(name, unix.O_RDWR|unix.O_CLOEXEC, 0)
	}
	fd, ok := descriptorOf(name)
	if !ok {
		return -1, nil
	}
	process, err := unix.PidfdOpen(o.pid, 0)
	if err != nil {
		return -1, err
	}
	defer unix.Close(process)
	return unix.PidfdGetfd(process, fd, 0)
}

// descriptorOf returns the descriptor that a path is the name of.
func descriptorOf(name string) (fd int, ok bool) {
	number, ok := strings.CutPrefix(name, descriptors+"/")
	if !ok {
		return 0, false
	}
	n, err := strconv.ParseUint(number, 10, 31)
	return int(n), err == nil
}
