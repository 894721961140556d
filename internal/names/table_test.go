package names

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/matchlock/matchlock/internal/policy"
)

func TestTableGivesEachNameItsOwn(t *testing.T) {
	table := NewTable()
	seen := map[netip.Addr]bool{}
	for i := range maxNames {
		name := fmt.Sprintf("n%d.example", i)
		addr, err := table.Address(name)
		if err != nil || seen[addr] || !policy.Synthetic(addr) || !slices.Equal(table.Names(addr), []string{name}) {
			t.Fatalf("%s: %s, %v", name, addr, err)
		}
		seen[addr] = true
	}
	if _, err := table.Address("one.more"); !errors.Is(err, ErrFull) {
		t.Errorf("full: %v", err)
	}
	if addr, err := table.Address("n7.example"); err != nil || addr != synthetic(7) {
		t.Errorf("a name that has one: %s, %v", addr, err)
	}
	for _, text := range []string{"198.18.0.0", "198.18.0.255", "198.19.255.254", "10.0.0.1", "::1"} {
		if names := table.Names(netip.MustParseAddr(text)); len(names) > 0 {
			t.Errorf("%s is %q", text, names)
		}
	}
	if names := table.Names(netip.Addr{}); len(names) > 0 {
		t.Errorf("no address is %q", names)
	}
}

func TestTableIsOneForAll(t *testing.T) {
	table := NewTable()
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range 200 {
				name := fmt.Sprintf("n%d.example", (i*7+g)%100)
				addr, err := table.Address(name)
				if err != nil || !slices.Equal(table.Names(addr), []string{name}) {
					t.Errorf("%s: %s, %v", name, addr, err)
				}
				table.Pin(name, []netip.Addr{netip.MustParseAddr("1.1.1.1")})
			}
		})
	}
	wg.Wait()
}

func TestTableIsKept(t *testing.T) {
	table := NewTable()
	for _, name := range []string{"a.example", "b.example"} {
		if _, err := table.Address(name); err != nil {
			t.Fatal(err)
		}
	}
	table.Pin("c.example", []netip.Addr{netip.MustParseAddr("93.184.216.34")})
	table.Fix("db", netip.MustParseAddr("10.0.0.5"))
	text, err := json.Marshal(table)
	if err != nil {
		t.Fatal(err)
	}
	var again Table // as a field of a record is read
	if err := json.Unmarshal(text, &again); err != nil {
		t.Fatal(err)
	}
	again.Fix("db", netip.MustParseAddr("10.0.0.6"))
	if addr, err := again.Address("c.example"); err != nil || addr.String() != "198.18.0.3" {
		t.Errorf("the next address: %s, %v", addr, err)
	}
	for addr, want := range map[string]string{"198.18.0.1": "a.example", "198.18.0.2": "b.example", "93.184.216.34": "c.example", "10.0.0.5": "", "10.0.0.6": "db"} {
		if got := strings.Join(again.Names(netip.MustParseAddr(addr)), " "); got != want {
			t.Errorf("%s is %q, want %q", addr, got, want)
		}
	}

	many := make([]string, maxNames+1)
	for i := range many {
		many[i] = fmt.Sprintf("n%d", i)
	}
	tooMany, err := json.Marshal(tableJSON{Names: many})
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{
		`{"names":["a","a"]}`, `{"names":["A"]}`, `{"names":["127.1"]}`, `{"names":[""]}`, `{"names":[7]}`, `[]`, string(tooMany),
		`{"pins":[{"name":"a","address":"127.0.0.1"}]}`, `{"pins":[{"name":"a","address":"198.18.0.1"}]}`, `{"pins":[{"name":"a","address":"::1"}]}`,
		`{"pins":[{"name":"a."  ,"address":"1.1.1.1"}]}`, `{"pins":[{"name":"a"}]}`,
	} {
		if err := json.Unmarshal([]byte(text), &again); err == nil {
			t.Errorf("%.60s was taken", text)
		}
	}
	if names := again.Names(netip.MustParseAddr("198.18.0.1")); !slices.Equal(names, []string{"a.example"}) {
		t.Errorf("after what was refused: %q", names)
	}
}

func TestPinsAreBounded(t *testing.T) {
	table := NewTable()
	at := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{100, byte(i >> 16), byte(i >> 8), byte(i)}) }
	table.Fix("db", at(0))
	for i := range maxPins + 10 {
		table.Pin("a.example", []netip.Addr{at(i)})
	}
	if len(table.pins) != maxPins || len(table.pinned) != maxPins {
		t.Errorf("%d pins, %d addresses", len(table.pins), len(table.pinned))
	}
	if got := table.Names(at(0)); !slices.Equal(got, []string{"db"}) {
		t.Errorf("a fixed one: %q", got)
	}
	if got := table.Names(at(10)); !slices.Equal(got, []string{"a.example"}) {
		t.Errorf("one that is left: %q", got)
	}
}

func FuzzTable(f *testing.F) {
	f.Add([]byte(`{"names":["a.example"],"pins":[{"name":"b","address":"1.1.1.1"}]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		table := NewTable()
		if table.UnmarshalJSON(text) != nil {
			return
		}
		for i, name := range table.names {
			if addr, err := table.Address(name); err != nil || addr != synthetic(i) {
				t.Errorf("%q: %s, %v", name, addr, err)
			}
		}
		again, err := table.MarshalJSON()
		if err != nil || NewTable().UnmarshalJSON(again) != nil {
			t.Errorf("%s is written as %s, %v", text, again, err)
		}
	})
}
