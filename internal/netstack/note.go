package netstack

import (
	"sync"
	"time"
)

// Reason says why something of the guest was dropped or refused.
type Reason int

const (
	Malformed      Reason = iota + 1 // truncated, oversize, or not what it says it is
	ForeignMAC                       // not from the guest's hardware address
	ForeignAddress                   // not from the guest's IPv4 address, by ARP or IPv4
	NotForGateway                    // to another hardware address than ours
	NotUnicast                       // to an IPv4 address that is no host's: broadcast, multicast, loopback, the guest itself
	IPv6                             // not served
	OtherProtocol                    // neither ARP nor IPv4; or IPv4 with options, or neither TCP, UDP nor ICMP
	OtherICMP                        // anything but an echo request to the gateway
	FlowLimit                        // Limits.Flows reached
	HalfOpenLimit                    // Limits.HalfOpen reached
	QueryLimit                       // Limits.Queries reached
	reasons

	// Of these nothing is told.
	closing      // the stack closes
	announcement // QEMU's own, see judge
)

var reasonNames = [reasons]string{
	Malformed:      "malformed frame",
	ForeignMAC:     "foreign hardware address",
	ForeignAddress: "foreign address",
	NotForGateway:  "not for the gateway",
	NotUnicast:     "not to a host",
	IPv6:           "IPv6",
	OtherProtocol:  "other protocol",
	OtherICMP:      "other ICMP",
	FlowLimit:      "too many flows",
	HalfOpenLimit:  "too many half-open flows",
	QueryLimit:     "too many DNS queries",
}

func (r Reason) String() string {
	if r <= 0 || r >= reasons {
		return "unknown reason"
	}
	return reasonNames[r]
}

// Note says that frames or flows of the guest were dropped.
type Note struct {
	Reason Reason
	Count  uint64 // since the last note of the same reason
}

// NoteInterval is the least time between two notes of one reason.
const NoteInterval = time.Minute

// notes counts by reason, and tells of it now and then.
type notes struct {
	tell func(Note) // may be nil
	now  func() time.Time

	mu    sync.Mutex
	total [reasons]uint64
	told  [reasons]uint64
	when  [reasons]time.Time // a note was given
}

func newNotes(tell func(Note)) *notes { return &notes{tell: tell, now: time.Now} }

func (n *notes) count(r Reason) {
	if r > reasons {
		return
	}
	n.mu.Lock()
	n.total[r]++
	note := Note{Reason: r, Count: n.total[r] - n.told[r]}
	now := n.now()
	due := n.tell != nil && (n.told[r] == 0 || now.Sub(n.when[r]) >= NoteInterval)
	if due {
		n.told[r], n.when[r] = n.total[r], now
	}
	n.mu.Unlock()
	if due {
		n.tell(note)
	}
}

func (n *notes) totals() map[Reason]uint64 {
	n.mu.Lock()
	defer n.mu.Unlock()
	totals := make(map[Reason]uint64)
	for r, count := range n.total {
		if count > 0 {
			totals[Reason(r)] = count
		}
	}
	return totals
}
