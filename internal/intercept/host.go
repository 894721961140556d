package intercept

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/matchlock/matchlock/internal/policy"
)

// checkHost compares whom the request is for with the flow's name and port.
func (x *exchange) checkHost() error {
	f := x.flow
	host, port, err := splitHost(x.r.Host)
	if err != nil {
		return &malformed{refusal{reason: err.Error()}}
	}
	if port != 0 && port != f.destination.Port() {
		return &misdirected{refusal{reason: fmt.Sprintf("Host %q, on a connection to port %d", x.r.Host, f.destination.Port())}}
	}
	addr, _ := netip.ParseAddr(host)
	addr = addr.Unmap()
	switch {
	case f.named() && addr.IsValid() && f.gateway && addr == f.destination.Addr():
		return nil // an address of the host that only the gateway has
	case f.named() && addr.IsValid():
		return &misdirected{refusal{reason: fmt.Sprintf("Host %s, on a connection to %s", host, f.host())}}
	case f.named():
		if err = f.choose("Host", host); err == nil {
			// The server is told what was compared, not how it was written.
			x.r.Host = f.host()
			if port != 0 {
				x.r.Host += ":" + strconv.Itoa(int(port))
			}
			return nil
		}
	default:
		err = f.checkFree("Host", host)
	}
	if no := (*refusal)(nil); errors.As(err, &no) {
		return &misdirected{*no}
	}
	return err
}

// splitHost takes a Host header apart; a port that is not there is 0.
func splitHost(s string) (host string, port uint16, err error) {
	host = s
	if i := strings.LastIndexByte(s, ':'); i >= 0 && !strings.HasSuffix(s, "]") {
		n, err := strconv.ParseUint(s[i+1:], 10, 16)
		if err != nil || n == 0 {
			return "", 0, fmt.Errorf("malformed Host %.260q", s)
		}
		host, port = s[:i], uint16(n)
	}
	if inner, ok := strings.CutPrefix(host, "["); ok {
		host = strings.TrimSuffix(inner, "]")
		if addr, err := netip.ParseAddr(host); err != nil || !addr.Is6() || addr.Zone() != "" {
			return "", 0, fmt.Errorf("malformed Host %.260q", s)
		}
		return host, port, nil
	}
	if host == "" || len(host) > 255 || strings.ContainsAny(host, ":/\\@?#%[] ") {
		return "", 0, fmt.Errorf("malformed Host %.260q", s)
	}
	return host, port, nil
}

// checkFree judges a name that the guest gives on a flow to an address: any but
// one that a rule denies.
func (f *flow) checkFree(what, name string) error {
	if name == "" {
		return nil
	}
	if _, err := netip.ParseAddr(name); err == nil {
		return nil
	}
	normal, err := policy.Normalize(name)
	if err != nil {
		return &refusal{reason: fmt.Sprintf("%s %q: not a name", what, name)}
	}
	if v := f.i.policy.Load().Name(normal); !v.Allow && v.Rule != "" {
		return &refusal{v.Rule, fmt.Sprintf("%s %s: %s", what, normal, v.Reason), v.Hint}
	}
	return nil
}

// choose compares a name that the guest gives with those that the flow may have,
// and has the flow be of that from now on.
func (f *flow) choose(what, name string) error {
	normal, err := policy.Normalize(name)
	if err != nil {
		return &refusal{reason: fmt.Sprintf("%s %q: not a name", what, name)}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if normal == f.name {
		f.names = nil
		return nil
	}
	if !slices.Contains(f.names, normal) {
		return &refusal{
			reason: fmt.Sprintf("%s %s, on a connection to %s", what, normal, f.name),
			hint:   "--allow-host " + normal + ", and connect to that",
		}
	}
	p := f.i.policy.Load()
	v := p.Flow(f.policyFlow(normal))
	if dialed := f.address.Addr(); v.Allow && !f.proxied() {
		if no := p.Dial(f.policyFlow(normal), dialed); !no.Allow {
			v = no
		}
	}
	if !v.Allow {
		return refused(v)
	}
	f.name, f.rule, f.names = normal, v.Rule, nil
	return nil
}
