package qemu

import (
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"

	"github.com/matchlock/matchlock/internal/machine"
)

// physicalMemory is the memory of a guest as its QEMU process has it mapped.
type physicalMemory struct {
	*os.File // mem of proc(5): that of this process, whoever has its number later
	start    uint64
	size     uint64
}

// The machine type microvm has up to 3 GiB of memory below 4 GiB, and the rest above.
const (
	lowMemory  = 3 << 30
	highMemory = 4 << 30
)

var errAddress = errors.New("no such address in the guest's memory")

// place is where in the process n bytes of the guest's memory are.
func (m *physicalMemory) place(address uint64, n int) (int64, error) {
	low := min(m.size, lowMemory)
	end := address + uint64(n)
	switch {
	case end < address:
	case end <= low:
		return int64(m.start + address), nil
	case address >= highMemory && end-highMemory <= m.size-low:
		return int64(m.start + low + address - highMemory), nil
	}
	return 0, errAddress
}

// ReadMemory implements machine.Memory.
func (m *physicalMemory) ReadMemory(p []byte, address uint64) error {
	at, err := m.place(address, len(p))
	if err == nil {
		_, err = io.ReadFull(io.NewSectionReader(m, at, int64(len(p))), p)
	}
	return err
}

// WriteMemory implements machine.Memory.
func (m *physicalMemory) WriteMemory(p []byte, address uint64) error {
	at, err := m.place(address, len(p))
	if err == nil {
		_, err = m.WriteAt(p, at)
	}
	return err
}

// Memory implements machine.Rememberer.
func (h *hypervisor) Memory() (machine.Memory, error) {
	h.mu.Lock()
	i := h.current
	h.mu.Unlock()
	if i == nil {
		return nil, net.ErrClosed
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.memory != nil {
		return i.memory, nil
	}
	pages, err := openGuestPages(i.process.os.Pid, h.memory)
	if err != nil {
		return nil, err
	}
	defer pages.close()
	f, err := os.OpenFile(procFile(pages.pid, "mem"), os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	i.memory = &physicalMemory{f, pages.start, pages.size}
	return i.memory, nil
}

// procFile is a file of proc(5) about a process.
func procFile(pid int, name string) string {
	return filepath.Join("/proc", strconv.Itoa(pid), name)
}
