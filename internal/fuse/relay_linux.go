package fuse

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"os"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/matchlock/matchlock/internal/workspace"
)

// Relay is the guest's half: it passes messages on between /dev/fuse and a port. Two
// loops do it, each to be run by a thread or process of its own in the memory in
// which the Relay was made. They are no goroutines, for the runtime's part in each
// wait would take longer than the message, and nothing that happens to the runtime
// may hold them up. So they make system calls and do nothing else: they neither
// allocate nor call what does.
type Relay struct {
	requests, answers unsafe.Pointer // the areas of the slots
	inbox             unsafe.Pointer // what comes by the port, inboxSize
	slots             Slots          // where the areas are in the guest's memory, if that is known

	bySlot   uint32            // the host reaches the slots
	owned    [slotCount]uint32 // slots of requests that are not the host's
	released uint32            // futex, counts what is given back
	usedUp   uint32            // answers that came in slots
}

const inboxSize = 2 * (maxMessage + frameHead)

// NewRelay makes the memory for one. If memory is large enough for huge pages, which
// stay where they are, the host may reach it.
func NewRelay() (*Relay, error) {
	r := &Relay{}
	for i := range r.owned {
		r.owned[i] = 1
	}
	var errs [3]error
	var huge [2]bool
	r.requests, huge[0], errs[0] = area(slotArea)
	r.answers, huge[1], errs[1] = area(slotArea)
	r.inbox, errs[2] = mapped(inboxSize, 0)
	if err := errors.Join(errs[:]...); err != nil {
		return nil, fmt.Errorf("memory of the file relay: %w", err)
	}
	if huge[0] && huge[1] {
		// Who may not know stays with the port.
		requests, err1 := physical(r.requests)
		answers, err2 := physical(r.answers)
		if err1 == nil && err2 == nil {
			r.slots = Slots{requests, answers}
		}
	}
	return r, nil
}

// area maps memory in one piece, if there is such a piece.
func area(size uintptr) (p unsafe.Pointer, huge bool, err error) {
	if p, err = mapped(size, unix.MAP_HUGETLB|unix.MAP_POPULATE); err == nil {
		return p, true, nil
	}
	p, err = mapped(size, 0)
	return p, false, err
}

func mapped(size uintptr, flags int) (unsafe.Pointer, error) {
	return unix.MmapPtr(-1, 0, nil, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|flags)
}

// physical is where memory that is mapped, and stays, is in the machine
// (Documentation/admin-guide/mm/pagemap.rst).
func physical(p unsafe.Pointer) (uint64, error) {
	f, err := os.Open("/proc/self/pagemap")
	if err != nil {
		return 0, err
	}
	defer f.Close()
	var b [8]byte
	if _, err := f.ReadAt(b[:], int64(uintptr(p)/4096*8)); err != nil {
		return 0, err
	}
	const present, frame = 1 << 63, 1<<55 - 1
	entry := binary.NativeEndian.Uint64(b[:])
	if entry&present == 0 || entry&frame == 0 {
		return 0, errors.New("not in memory")
	}
	return entry & frame * 4096, nil
}

// Hello tells the host where the slots are, before the loops run. What is in them
// then lets it see that it means the same place.
//
// owner is whom files belong to whose owner the host leaves open.
func (r *Relay) Hello(port int, owner workspace.Owner) error {
	hello := greeting{slots: r.slots, owner: owner}
	if r.slots != (Slots{}) {
		if _, err := unix.Getrandom(hello.mark[:], 0); err != nil {
			return err
		}
		for _, area := range []unsafe.Pointer{r.requests, r.answers} {
			copy(unsafe.Slice((*byte)(unsafe.Add(area, markPlace)), len(hello.mark)), hello.mark[:])
		}
	}
	_, err := unix.Write(port, hello.append(nil))
	return err
}

// PassRequests passes on what the kernel asks, until the file system is unmounted or
// the port is closed.
//
//go:norace
//go:nosplit
func (r *Relay) PassRequests(device, port uintptr) {
	for {
		slot := r.ownSlot()
		base := unsafe.Add(r.requests, slot*slotSize)
		n, _, errno := unix.RawSyscall(unix.SYS_READ, device, uintptr(base)+frameHead, slotSize-frameHead)
		switch errno {
		case 0:
		case unix.EINTR, unix.EAGAIN, unix.ENOENT: // the last: a request that was given up
			continue
		default:
			return
		}
		h := (*head)(base)
		*h = head{length: uint32(n), counter: atomic.LoadUint32(&r.usedUp)}
		left := n + frameHead
		if n > maxInline && atomic.LoadUint32(&r.bySlot) != 0 {
			h.length, h.slot, h.inSlot = 0, uint32(slot+1), uint32(n)
			left = frameHead
			atomic.StoreUint32(&r.owned[slot], 0)
		}
		for at := uintptr(base); left > 0; {
			n, _, errno := unix.RawSyscall(unix.SYS_WRITE, port, at, left)
			if errno == unix.EINTR {
				continue
			}
			if errno != 0 {
				return
			}
			at += n
			left -= n
		}
	}
}

// ownSlot returns a slot for a request.
//
//go:norace
//go:nosplit
func (r *Relay) ownSlot() int {
	for {
		released := atomic.LoadUint32(&r.released)
		for i := 0; i < slotCount; i++ {
			if atomic.LoadUint32(&r.owned[i]) != 0 {
				return i
			}
		}
		unix.RawSyscall6(unix.SYS_FUTEX, uintptr(unsafe.Pointer(&r.released)), futexWait, uintptr(released), 0, 0, 0)
	}
}

const (
	futexWait = 0
	futexWake = 1
)

// PassAnswers passes on what the host answers.
//
//go:norace
//go:nosplit
func (r *Relay) PassAnswers(device, port uintptr) {
	var from, to uintptr // what of the inbox has been read and not passed on
	for {
		for to-from < frameHead {
			if n := r.receive(port, &from, &to); n == 0 {
				return
			}
		}
		h := (*head)(unsafe.Add(r.inbox, from))
		if h.length > maxMessage || h.slot > slotCount || h.inSlot > slotSize {
			return // no host of ours
		}
		length, slot, inSlot, counter := uintptr(h.length), uintptr(h.slot), uintptr(h.inSlot), h.counter
		for to-from < frameHead+length {
			if n := r.receive(port, &from, &to); n == 0 {
				return
			}
		}
		parts := [2]struct{ base, length uintptr }{{uintptr(r.inbox) + from + frameHead, length}}
		count := uintptr(1)
		if slot != 0 {
			parts[1].base, parts[1].length = uintptr(r.answers)+(slot-1)*slotSize, inSlot
			count = 2
		}
		if length != 0 {
			// An answer that the kernel waits for no more is not its affair.
			unix.RawSyscall(unix.SYS_WRITEV, device, uintptr(unsafe.Pointer(&parts)), count)
		}
		from += frameHead + length
		if slot != 0 {
			atomic.AddUint32(&r.usedUp, 1)
		}
		switch {
		case counter == slotsReached:
			atomic.StoreUint32(&r.bySlot, 1)
		case counter != 0 && counter <= slotCount:
			atomic.StoreUint32(&r.owned[counter-1], 1)
			atomic.AddUint32(&r.released, 1)
			unix.RawSyscall6(unix.SYS_FUTEX, uintptr(unsafe.Pointer(&r.released)), futexWake, math.MaxInt32, 0, 0, 0)
		}
	}
}

// receive reads more into the inbox. It returns 0 when nothing comes any more.
//
//go:norace
//go:nosplit
func (r *Relay) receive(port uintptr, from, to *uintptr) uintptr {
	if *from == *to {
		*from, *to = 0, 0
	} else if *from > inboxSize/2 {
		for i := uintptr(0); i < *to-*from; i++ {
			*(*byte)(unsafe.Add(r.inbox, i)) = *(*byte)(unsafe.Add(r.inbox, *from+i))
		}
		*from, *to = 0, *to-*from
	}
	for {
		n, _, errno := unix.RawSyscall(unix.SYS_READ, port, uintptr(r.inbox)+*to, inboxSize-*to)
		if errno == unix.EINTR {
			continue
		}
		if errno != 0 || n > inboxSize {
			return 0
		}
		*to += n
		return n
	}
}
