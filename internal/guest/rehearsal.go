//go:build linux

package guest

import (
	"debug/elf"
	"encoding/binary"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/matchlock/matchlock/internal/agent"
)

// rehearsal is a process that waits, as a standby does, to run a program that ends at once.
//
// Where the guest is translated, by QEMU's TCG, a copy of a prepared machine has nothing
// translated yet, and a first command's time is that of the kernel's code on its way. While
// the copy is set up another processor has nothing to do: it goes that way ahead.
type rehearsal struct{ standby *standby }

// prepareRehearsal starts the process, with its program as its standard input: it has no
// other file.
func (s *starter) prepareRehearsal(null *os.File) (*rehearsal, error) {
	program, err := endingProgram()
	if err != nil {
		return nil, fmt.Errorf("rehearsal: %w", err)
	}
	r := &rehearsal{}
	s.fork(func() { r.standby, err = newStandby(s.cgroup, []*os.File{program, null, null}) })
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.someChild.Signal() // who reaps it
	return r, nil
}

// begin has it run, and returns what waits until it shares the memory of PID 1 no more, as
// it must when user code runs. Nobody depends on how it ends.
func (r *rehearsal) begin() (wait func()) {
	loaded := make(chan struct{})
	go func() {
		defer close(loaded)
		r.standby.run(fmt.Sprintf("/proc/self/fd/%d", unix.Stdin), []string{"rehearsal"}, &agent.ProcAttr{})
	}()
	return func() { <-loaded }
}

// endingProgram is a file of a program that ends at once, in memory, for reading.
func endingProgram() (*os.File, error) {
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

// elfProgram is what is in it, elf(5): a header, one of a segment, and endingCode.
func elfProgram() []byte {
	const base, header, segment = 0x400000, 64, 56
	le := binary.LittleEndian
	b := []byte("\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00")
	b = le.AppendUint16(b, uint16(elf.ET_EXEC))
	b = le.AppendUint16(b, uint16(endingMachine))
	b = le.AppendUint32(b, uint32(elf.EV_CURRENT))
	for _, n := range []uint64{base + header + segment, header, 0} { // where it begins, where the segment's header is; no sections
		b = le.AppendUint64(b, n)
	}
	b = le.AppendUint32(b, 0)
	for _, n := range []uint16{header, segment, 1, 0, 0, 0} { // sizes and numbers of headers
		b = le.AppendUint16(b, n)
	}
	size := uint64(header + segment + len(endingCode))
	b = le.AppendUint32(b, uint32(elf.PT_LOAD))
	b = le.AppendUint32(b, uint32(elf.PF_R|elf.PF_X))
	for _, n := range []uint64{0, base, base, size, size, 0x1000} { // in the file, in memory, sizes there, alignment
		b = le.AppendUint64(b, n)
	}
	return append(b, endingCode...)
}
