package names

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/matchlock/matchlock/api"
	"github.com/matchlock/matchlock/internal/policy"
)

const (
	lookupTime   = 5 * time.Second
	maxAddresses = 16 // of one name
	maxRecords   = 16 // in an answer
	maxTXT       = 4096
)

// A Resolver asks on the host's side what names are. Any number of goroutines may use it.
type Resolver struct {
	static map[string][]netip.Addr
	net    *net.Resolver
}

// NewResolver returns one that knows n.Resolve, and for other names asks n.DNS, or, where that is empty, does what the
// host's programs do.
func NewResolver(n *api.Network) (*Resolver, error) {
	r := &Resolver{static: map[string][]netip.Addr{}, net: &net.Resolver{}}
	for _, h := range n.Resolve {
		name, err := policy.Normalize(h.Host)
		if err != nil {
			return nil, err
		}
		addr, err := netip.ParseAddr(h.IP)
		if err != nil {
			return nil, fmt.Errorf("host %q: %w", h.Host, err)
		}
		r.static[name] = append(r.static[name], addr.Unmap())
	}
	if len(n.DNS) > 0 {
		var servers []netip.AddrPort
		for _, addr := range n.DNS {
			servers = append(servers, netip.AddrPortFrom(addr, 53))
		}
		r.net = ask(servers)
	}
	return r, nil
}

// ask returns a resolver of these servers. Go's own has a try at each server of the host's resolv.conf, twice or so, and
// every try goes to the next of ours.
func ask(servers []netip.AddrPort) *net.Resolver {
	var tries atomic.Uint32
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		server := servers[int(tries.Add(1)-1)%len(servers)]
		return new(net.Dialer).DialContext(ctx, network, server.String())
	}}
}

// Lookup returns up to 16 addresses of a name, IPv4-mapped ones as IPv4, within 5 seconds. A name that does not exist is
// a *net.DNSError. The name must be as policy.Normalize returns it. What the addresses are is not judged.
func (r *Resolver) Lookup(ctx context.Context, name string) ([]netip.Addr, error) {
	if addrs, ok := r.static[name]; ok {
		return append([]netip.Addr(nil), addrs...), nil
	}
	if name == api.HostGateway {
		return nil, &net.DNSError{Err: "no name of the host's side", Name: name, IsNotFound: true}
	}
	ctx, cancel := context.WithTimeout(ctx, lookupTime)
	defer cancel()
	found, err := r.net.LookupNetIP(ctx, "ip", name+".") // with the dot: nothing of the host's search list
	if err != nil {
		return nil, err
	}
	var addrs []netip.Addr
	for _, addr := range found {
		if addr.Zone() == "" && len(addrs) < maxAddresses {
			addrs = append(addrs, addr.Unmap())
		}
	}
	return addrs, nil
}

func (r *Resolver) txt(ctx context.Context, name string) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, lookupTime)
	defer cancel()
	return r.net.LookupTXT(ctx, name+".")
}

func (r *Resolver) mx(ctx context.Context, name string) ([]*net.MX, error) {
	ctx, cancel := context.WithTimeout(ctx, lookupTime)
	defer cancel()
	return r.net.LookupMX(ctx, name+".")
}

func (r *Resolver) srv(ctx context.Context, name string) ([]*net.SRV, error) {
	ctx, cancel := context.WithTimeout(ctx, lookupTime)
	defer cancel()
	_, records, err := r.net.LookupSRV(ctx, "", "", name+".")
	return records, err
}
