package names

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"

	"github.com/matchlock/matchlock/api"
	"github.com/matchlock/matchlock/internal/policy"
)

const (
	maxNames = 10_000 // that a sandbox is given addresses for
	maxPins  = 10_000 // pairs of name and address
)

// ErrFull says that a Table gives out no more addresses. An address is never given to a second name, since programs
// keep what they were told.
var ErrFull = fmt.Errorf("all %d addresses for names are in use", maxNames)

// A Table knows which names an address that the guest dials may stand for:
//
//   - synthetic addresses, of one name each for the sandbox's life,
//   - pinned ones, which names really have: with --dns-mode real, the last 10,000,
//   - fixed ones, of --add-host and of the gateway.
//
// Any number of goroutines may use it. Its JSON keeps the first two, for restarts, snapshots and forks.
type Table struct {
	mu     sync.Mutex
	names  []string // the index says which address
	index  map[string]int
	pins   []pin // the oldest first
	pinned map[netip.Addr][]string
	fixed  map[netip.Addr][]string
	hosts  map[string][]netip.Addr // fixed, by name
}

type pin struct {
	Name string     `json:"name"`
	Addr netip.Addr `json:"address"`
}

type tableJSON struct {
	Names []string `json:"names,omitempty"` // in the order of their addresses
	Pins  []pin    `json:"pins,omitempty"`
}

// NewTable makes an empty one.
func NewTable() *Table {
	return &Table{index: map[string]int{}, pinned: map[netip.Addr][]string{}, fixed: map[netip.Addr][]string{}, hosts: map[string][]netip.Addr{}}
}

// Address returns the synthetic address of a name, which is given one if it has none, or ErrFull. The name must be as
// policy.Normalize returns it.
func (t *Table) Address(name string) (netip.Addr, error) {
	addr, _, err := t.address(name)
	return addr, err
}

// address tells also whether it has just been given.
func (t *Table) address(name string) (addr netip.Addr, fresh bool, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	i, ok := t.index[name]
	if !ok {
		if i = len(t.names); i >= maxNames {
			return netip.Addr{}, false, ErrFull
		}
		t.names = append(t.names, name)
		t.index[name] = i
	}
	return synthetic(i), !ok, nil
}

// The last byte of an address is none of 0 and 255, which some programs take for a network's and broadcast's.
func synthetic(i int) netip.Addr {
	high := i / 254
	return netip.AddrFrom4([4]byte{198, 18 + byte(high>>8), byte(high), byte(1 + i%254)})
}

func syntheticIndex(addr netip.Addr) (int, bool) {
	b := addr.As4()
	if b[3] == 0 || b[3] == 255 {
		return 0, false
	}
	return (int(b[1]-18)<<8|int(b[2]))*254 + int(b[3]) - 1, true
}

// Names are what an address stands for: one name if it is synthetic, maybe several if it is pinned or fixed, the fixed
// ones first. None: the guest gave an address that it was not told.
func (t *Table) Names(addr netip.Addr) []string {
	addr = addr.Unmap()
	t.mu.Lock()
	defer t.mu.Unlock()
	if policy.Synthetic(addr) {
		if i, ok := syntheticIndex(addr); ok && i < len(t.names) {
			return []string{t.names[i]}
		}
		return nil
	}
	return slices.Concat(t.fixed[addr], t.pinned[addr])
}

// Fix says that a name is at an address for good, as --add-host and the gateway's name are. The name must be as
// policy.Normalize returns it.
func (t *Table) Fix(name string, addr netip.Addr) {
	addr = addr.Unmap()
	t.mu.Lock()
	defer t.mu.Unlock()
	if !slices.Contains(t.hosts[name], addr) {
		t.hosts[name] = append(t.hosts[name], addr)
		t.fixed[addr] = append(t.fixed[addr], name)
	}
}

func (t *Table) host(name string) []netip.Addr {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.hosts[name])
}

// Pin notes addresses that a name really has, and returns those that the guest may be told. That is IPv4 alone, and not
// what would lead it to itself, to the gateway, or to another name's synthetic address. The oldest pins go when there
// are too many.
func (t *Table) Pin(name string, addrs []netip.Addr) []netip.Addr {
	t.mu.Lock()
	defer t.mu.Unlock()
	var pinned []netip.Addr
	for _, addr := range addrs {
		if addr = addr.Unmap(); canPin(addr) && !slices.Contains(t.fixed[addr], api.HostGateway) {
			t.pin(pin{name, addr})
			pinned = append(pinned, addr)
		}
	}
	return pinned
}

func (t *Table) pin(p pin) {
	if slices.Contains(t.pinned[p.Addr], p.Name) {
		return
	}
	if len(t.pins) == maxPins {
		old := t.pins[0]
		t.pins = t.pins[1:]
		names := slices.DeleteFunc(t.pinned[old.Addr], func(n string) bool { return n == old.Name })
		if t.pinned[old.Addr] = names; len(names) == 0 {
			delete(t.pinned, old.Addr)
		}
	}
	t.pins = append(t.pins, p)
	t.pinned[p.Addr] = append(t.pinned[p.Addr], p.Name)
}

func canPin(addr netip.Addr) bool {
	return addr.Is4() && addr.As4()[0] != 0 && !addr.IsLoopback() && addr.As4()[0] < 224 && !policy.Synthetic(addr)
}

// MarshalJSON keeps what the guest was told.
func (t *Table) MarshalJSON() ([]byte, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return json.Marshal(tableJSON{t.names, t.pins})
}

// UnmarshalJSON reads what MarshalJSON has written, in the place of what the table has now but for fixed addresses. It
// may come from another host: what no Table can have written is an error.
func (t *Table) UnmarshalJSON(text []byte) error {
	var from tableJSON
	if err := json.Unmarshal(text, &from); err != nil {
		return fmt.Errorf("table of names: %w", err)
	}
	if len(from.Names) > maxNames || len(from.Pins) > maxPins {
		return fmt.Errorf("table of names: %d names and %d pins, at most %d and %d", len(from.Names), len(from.Pins), maxNames, maxPins)
	}
	read := NewTable()
	for i, name := range from.Names {
		if err := checkNormal(name); err != nil {
			return fmt.Errorf("table of names: %w", err)
		}
		if _, ok := read.index[name]; ok {
			return fmt.Errorf("table of names: %q has two addresses", name)
		}
		read.index[name] = i
	}
	for _, p := range from.Pins {
		if err := checkNormal(p.Name); err != nil {
			return fmt.Errorf("table of names: %w", err)
		}
		if !canPin(p.Addr) {
			return fmt.Errorf("table of names: %q at %s", p.Name, p.Addr)
		}
		read.pin(p)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.names, t.index, t.pins, t.pinned = from.Names, read.index, read.pins, read.pinned
	if t.fixed == nil {
		t.fixed, t.hosts = read.fixed, read.hosts
	}
	return nil
}

func checkNormal(name string) error {
	if normal, err := policy.Normalize(name); err != nil {
		return err
	} else if normal != name {
		return errors.New("a name is not in its normal form")
	}
	return nil
}
