package names

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/matchlock/matchlock/api"
)

func TestLookup(t *testing.T) {
	up := newUpstream(t)
	r, err := NewResolver(&api.Network{Resolve: []api.HostIPMapping{{Host: "API.test", IP: "127.0.0.1"}, {Host: "api.test", IP: "::ffff:10.0.0.1"}}})
	if err != nil {
		t.Fatal(err)
	}
	r.net = ask([]netip.AddrPort{up.addr})
	for i := range 40 {
		up.has("TypeA many.example.", &dnsmessage.AResource{A: [4]byte{93, 184, 216, byte(i)}})
	}
	up.has("TypeAAAA two.example.", &dnsmessage.AAAAResource{AAAA: netip.MustParseAddr("2606:4700::1").As16()})
	up.has("TypeA two.example.", &dnsmessage.AResource{A: [4]byte{1, 1, 1, 1}})

	addrs, err := r.Lookup(t.Context(), "api.test")
	if want := []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("10.0.0.1")}; err != nil || !slices.Equal(addrs, want) {
		t.Errorf("what the user wrote: %v, %v", addrs, err)
	}
	if asked := up.wasAsked(); len(asked) > 0 {
		t.Errorf("asked for what the user wrote: %q", asked)
	}
	addrs, err = r.Lookup(t.Context(), "two.example")
	slices.SortFunc(addrs, netip.Addr.Compare)
	if want := []netip.Addr{netip.MustParseAddr("1.1.1.1"), netip.MustParseAddr("2606:4700::1")}; err != nil || !slices.Equal(addrs, want) {
		t.Errorf("both families: %v, %v", addrs, err)
	}
	if addrs, err = r.Lookup(t.Context(), "many.example"); err != nil || len(addrs) != maxAddresses {
		t.Errorf("%d addresses, %v", len(addrs), err)
	}
	up.wasAsked()
	var notFound *net.DNSError
	if _, err := r.Lookup(t.Context(), "missing.example"); !errors.As(err, &notFound) || !notFound.IsNotFound {
		t.Errorf("one that does not exist: %v", err)
	}
	for _, asked := range up.wasAsked() {
		if asked != "TypeA missing.example." && asked != "TypeAAAA missing.example." {
			t.Errorf("the host's search list: %q", asked)
		}
	}
	if _, err := r.Lookup(t.Context(), api.HostGateway); !errors.As(err, &notFound) || len(up.wasAsked()) > 0 {
		t.Errorf("the gateway's name: %v", err)
	}
	if _, err := NewResolver(&api.Network{Resolve: []api.HostIPMapping{{Host: "a..b", IP: "1.1.1.1"}}}); err == nil {
		t.Error("a name that is none was taken")
	}
	if _, err := NewResolver(&api.Network{Resolve: []api.HostIPMapping{{Host: "a", IP: "1.1.1"}}}); err == nil {
		t.Error("an address that is none was taken")
	}
}

// A server that is silent ends a lookup no later than the context does.
func TestLookupIsBounded(t *testing.T) {
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	r := &Resolver{net: ask([]netip.AddrPort{conn.LocalAddr().(*net.UDPAddr).AddrPort()})}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	begin := time.Now()
	if _, err := r.Lookup(ctx, "a.example"); err == nil || time.Since(begin) >= lookupTime {
		t.Errorf("%v after %s", err, time.Since(begin))
	}
}

func TestLimiter(t *testing.T) {
	var l limiter
	now := time.Unix(1000, 0)
	pass := func(key string, want bool, wantLost int64) {
		t.Helper()
		if ok, lost := l.pass(key, now); ok != want || lost != wantLost {
			t.Errorf("%s at %s: %t, %d lost", key, now, ok, lost)
		}
	}
	pass("a", true, 0)
	pass("a", false, 0) // the same: nothing is lost
	for i := range maxTold - 1 {
		pass(string(rune('b'+i)), true, 0)
	}
	pass("z1", false, 0)
	pass("z2", false, 0)
	now = now.Add(time.Second)
	pass("a", true, 2)
	pass("z1", true, 0)
}
