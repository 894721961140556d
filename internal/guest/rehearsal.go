//go:build linux

package guest

import (
	"debug/elf"
	"encoding/binary"
	"fmt"
	"os"
	"slices"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/matchlock/matchlock/internal/agent"
)

// rehearsal is a process that waits, as a standby does, to run a program that ends at once.
//
// Where the guest is translated, by QEMU's TCG, a copy of a prepared machine has nothing
// translated yet, and a first command's time is that of the kernel's code on its way. While
// the copy is set up another processor has nothing to do: it goes that way ahead. It is
// the host that has it begin, at the port of files, which nobody else reads yet: PID 1 hears
// of what it is to do only when much more has been translated.
type rehearsal struct {
	standby *standby
	port    *os.File // that of files
}

// prepareRehearsal starts the process, which begins when something can be read from the
// port. Its program is its standard input: it has no other file.
func (s *starter) prepareRehearsal(port *os.File) (*rehearsal, error) {
	program, err := rehearsalProgram()
	if err != nil {
		return nil, fmt.Errorf("rehearsal: %w", err)
	}
	c := &child{listens: true}
	if err := c.setProgram(fmt.Sprintf("/proc/self/fd/%d", unix.Stdin), []string{"rehearsal"}, &agent.ProcAttr{}); err != nil {
		return nil, err
	}
	r := &rehearsal{port: port}
	s.fork(func() { r.standby, err = c.standby(s.cgroup, []*os.File{program, port, program}) })
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.someChild.Signal() // who reaps it
	return r, nil
}

// end returns when the process shares the memory of PID 1 no more, as it must when user
// code runs. In a machine that is no copy it has not begun, and never does. Nobody
// depends on how it ends.
func (r *rehearsal) end() {
	heard := atomic.LoadUint32(&r.standby.child.heard) != 0 || !r.standby.waits()
	if !heard {
		unix.Kill(r.standby.pid, unix.SIGKILL)
	}
	r.standby.await()
	if !heard {
		r.forget()
	}
}

// forget reads what the process was told too late, as files have another use for the port.
func (r *rehearsal) forget() {
	fds := []unix.PollFd{{Fd: int32(r.port.Fd()), Events: unix.POLLIN}}
	var told [16]byte
	for range told {
		if ready, err := unix.Poll(fds, 0); ready == 0 || err != nil && err != unix.EINTR {
			return
		}
		if n, _ := unix.Read(int(fds[0].Fd), told[:]); n <= 0 { // nobody is connected
			return
		}
	}
}

// rehearsalProgram is the program as a file in memory, for reading.
func rehearsalProgram() (*os.File, error) {
	fd, err := unix.MemfdCreate("rehearsal", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	writable := os.NewFile(uintptr(fd), "rehearsal")
	defer writable.Close() // what is open for writing cannot be run
	if _, err := writable.Write(elfProgram()); err != nil {
		return nil, err
	}
	return os.Open(fmt.Sprintf("/proc/self/fd/%d", fd))
}

// Where the program is in memory. Its second page is for what it writes.
const (
	rehearsalBase = 0x400000
	rehearsalPage = 0x1000
	rehearsalRoom = rehearsalBase + rehearsalPage
)

// rehearsalCode asks the kernel for what the C library asks it for before main, and ends.
func rehearsalCode() []byte {
	const thread, sequences, answer = rehearsalRoom, rehearsalRoom + 0x100, rehearsalRoom + 0x200
	return slices.Concat(
		touchCode(rehearsalRoom-1), // it has a copy of the first page then
		touchCode(answer),
		heapCode(0x21000),
		threadCode(thread),
		callCode(unix.SYS_SET_TID_ADDRESS, thread),
		callCode(unix.SYS_SET_ROBUST_LIST, thread, 24),
		callCode(unix.SYS_RSEQ, sequences, 32, 0, 0x53053053),
		callCode(unix.SYS_PRLIMIT64, 0, unix.RLIMIT_STACK, 0, answer),
		callCode(unix.SYS_GETRANDOM, answer, 8, unix.GRND_NONBLOCK),
		callCode(unix.SYS_MPROTECT, rehearsalBase, rehearsalPage, unix.PROT_READ|unix.PROT_EXEC),
		callCode(unix.SYS_EXIT_GROUP, 0),
	)
}

// elfProgram is what is in the file, elf(5): a header, one of a segment, and the code.
func elfProgram() []byte {
	const header, segment = 64, 56
	code := rehearsalCode()
	le := binary.LittleEndian
	b := []byte("\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00")
	b = le.AppendUint16(b, uint16(elf.ET_EXEC))
	b = le.AppendUint16(b, uint16(rehearsalMachine))
	b = le.AppendUint32(b, uint32(elf.EV_CURRENT))
	for _, n := range []uint64{rehearsalBase + header + segment, header, 0} { // where it begins, where the segment's header is; no sections
		b = le.AppendUint64(b, n)
	}
	b = le.AppendUint32(b, 0)
	for _, n := range []uint16{header, segment, 1, 0, 0, 0} { // sizes and numbers of headers
		b = le.AppendUint16(b, n)
	}
	size := uint64(header + segment + len(code))
	b = le.AppendUint32(b, uint32(elf.PT_LOAD))
	b = le.AppendUint32(b, uint32(elf.PF_R|elf.PF_W|elf.PF_X))
	for _, n := range []uint64{0, rehearsalBase, rehearsalBase, size, 2 * rehearsalPage, rehearsalPage} { // in the file, in memory, sizes there, alignment
		b = le.AppendUint64(b, n)
	}
	return append(b, code...)
}
