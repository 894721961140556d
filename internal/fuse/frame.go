package fuse

import (
	"encoding/binary"
	"errors"
	"io"

	"github.com/matchlock/matchlock/internal/workspace"
)

// Messages go over the port one after the other, each behind a frame's head. What is
// long lies in the guest's memory, in one of a few slots that the host reads and
// writes there: the port moves 4096 bytes at a time.
//
// A slot belongs to one side at a time. Those of requests are the relay's until it
// sends one, and again when the host has released it. Those of answers are the
// host's until it sends one, and again when the relay has used it up, which it says
// in the head of a later frame.
const (
	frameHead = 16

	slotCount = 3         // for requests, and as many for answers
	slotSize  = 516 << 10 // a head and maxMessage
	slotArea  = 2 << 20   // in which the slots of one direction lie

	// maxInline is how long a message can be that is better sent by the port.
	maxInline = 3 << 10
)

// head is that of a frame. All numbers are the guest's, in its own order.
type head struct {
	length  uint32 // of the message's bytes that follow
	slot    uint32 // 1 + the number of the slot in which the others are; 0: none
	inSlot  uint32 // how many these are
	counter uint32 // from the guest: answers' slots that it has used up; from the host: 1 + the slot of a request that is released, or 0
}

func (h head) append(b []byte) []byte {
	for _, v := range []uint32{h.length, h.slot, h.inSlot, h.counter} {
		b = binary.NativeEndian.AppendUint32(b, v)
	}
	return b
}

var errFrame = errors.New("the guest's relay: impossible frame")

// readHead reads the head of a frame from the guest.
func readHead(r io.Reader) (h head, err error) {
	var b [frameHead]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return h, err
	}
	for i, v := range []*uint32{&h.length, &h.slot, &h.inSlot, &h.counter} {
		*v = binary.NativeEndian.Uint32(b[4*i:])
	}
	if h.slot > slotCount || (h.slot == 0) != (h.inSlot == 0) || h.length > maxMessage || h.inSlot > maxMessage ||
		h.length+h.inSlot > maxMessage || h.length+h.inSlot < inHeaderSize {
		return h, errFrame
	}
	return h, nil
}

// Memory is the guest's, by physical addresses. Its methods are not told of a guest
// that writes there meanwhile.
type Memory interface {
	ReadMemory(p []byte, address uint64) error
	WriteMemory(p []byte, address uint64) error
}

// Slots say where in the guest's memory slots are: the addresses of the two areas, 0
// where there are none.
type Slots struct{ Requests, Answers uint64 }

func slotAddress(area uint64, slot int) uint64 { return area + uint64(slot)*slotSize }

// markPlace is where in an area the mark of a greeting is: behind the slots, which are in
// use when the host looks.
const markPlace = slotCount * slotSize

// slotsReached is the counter of a frame without anything else, by which the host says
// that it reaches the slots.
const slotsReached = 1 << 31

// greeting is what the relay says first. The mark stands in both areas.
type greeting struct {
	slots Slots
	mark  [16]byte
	owner workspace.Owner
}

const greetingSize = 8 + 8 + 8 + 16 + 8

const greetingMagic = 0x6d61_7463_6866_7331 // "matchfs1"

func (g greeting) append(b []byte) []byte {
	b = binary.NativeEndian.AppendUint64(b, greetingMagic)
	b = binary.NativeEndian.AppendUint64(b, g.slots.Requests)
	b = binary.NativeEndian.AppendUint64(b, g.slots.Answers)
	b = append(b, g.mark[:]...)
	b = binary.NativeEndian.AppendUint32(b, g.owner.UID)
	return binary.NativeEndian.AppendUint32(b, g.owner.GID)
}

func readGreeting(r io.Reader) (g greeting, err error) {
	var b [greetingSize]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return g, err
	}
	if binary.NativeEndian.Uint64(b[:]) != greetingMagic {
		return g, errFrame
	}
	g.slots = Slots{binary.NativeEndian.Uint64(b[8:]), binary.NativeEndian.Uint64(b[16:])}
	copy(g.mark[:], b[24:])
	g.owner = workspace.Owner{UID: binary.NativeEndian.Uint32(b[40:]), GID: binary.NativeEndian.Uint32(b[44:])}
	return g, nil
}
