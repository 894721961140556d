package policy

import (
	"fmt"
	"iter"
	"net/netip"
	"slices"

	"github.com/matchlock/matchlock/api"
)

const noRule = "no rule allows it"

// Name says whether a name may be resolved: some rule allows it on some port that no rule denies.
func (p *Policy) Name(name string) Verdict {
	name, err := Normalize(name)
	if err != nil {
		return Verdict{Reason: err.Error()}
	}
	if p.sealed() {
		return Verdict{Reason: noRule, Hint: "--allow-host " + name}
	}
	if name == api.HostGateway {
		for _, h := range p.hostPorts {
			if v := p.Flow(Flow{Name: name, Port: h.GuestPort}); v.Allow {
				return v
			}
		}
		return Verdict{Reason: "no port of the host is open to the guest", Hint: "--host-port PORT"}
	}
	for _, udp := range []bool{false, true} {
		if r := p.mayReach(name, udp); r != nil {
			return Verdict{Allow: true, Rule: r.text}
		}
	}
	// A rule about one port is not what stands between the guest and a name that no rule allows.
	allowed := false
	for range p.about(name) {
		allowed = true
		break
	}
	for r := range p.deny.named(name) {
		if allowed || r.first == 1 && r.last == 65535 {
			return denied(r)
		}
	}
	return Verdict{Reason: noRule, Hint: "--allow-host " + name}
}

// mayReach returns a rule by which a name may be reached on some port. If there is such a port, one of them is the first
// of a rule that allows it or the next after a rule that denies it.
func (p *Policy) mayReach(name string, udp bool) *rule {
	if p.sealed() || name == api.HostGateway {
		return nil
	}
	var ports []uint16
	for r := range p.about(name) {
		if r.udp == udp {
			ports = append(ports, r.first)
		}
	}
	for r := range p.deny.named(name) {
		if r.udp == udp && r.last < 65535 {
			ports = append(ports, r.last+1)
		}
	}
	for _, port := range ports {
		if isQUIC(port, udp) || p.deny.name(name, port, udp) != nil {
			continue
		}
		for r := range p.about(name) {
			if r.about(port, udp) {
				return r
			}
		}
	}
	return nil
}

// about are the rules that allow a name, or an address that --add-host has given it: the guest dials that one.
func (p *Policy) about(name string) iter.Seq[*rule] {
	return func(yield func(*rule) bool) {
		for r := range p.allow.named(name) {
			if !yield(r) {
				return
			}
		}
		for _, addr := range p.addHosts[name] {
			for _, r := range p.allow.within {
				if r.prefix.Contains(addr) && !yield(r) {
					return
				}
			}
		}
	}
}

// QUIC is refused everywhere, so that clients fall back to what can be looked into.
func isQUIC(port uint16, udp bool) bool { return udp && port == 443 }

// Flow says whether a flow may begin. To an allowed one Dial says where it may lead.
func (p *Policy) Flow(f Flow) Verdict {
	f, err := f.normal()
	if err != nil {
		return Verdict{Reason: err.Error()}
	}
	hint := "--allow-host " + f.target()
	if p.sealed() {
		return Verdict{Reason: noRule, Hint: hint}
	}
	if r := p.deny.name(f.Name, f.Port, f.UDP); r != nil {
		return denied(r)
	}
	if f.Addr.IsValid() && f.Name != api.HostGateway {
		if r := p.deny.closing(f.Addr, f.Port, f.UDP); r != nil {
			return denied(r)
		}
	}
	if isQUIC(f.Port, f.UDP) {
		return Verdict{Reason: "QUIC is refused, so that clients fall back to TCP"}
	}
	if f.Name == api.HostGateway {
		if h, ok := p.hostPort(f); ok {
			return Verdict{Allow: true, Rule: hostPortText(h)}
		}
		v := Verdict{Reason: "this port of the host is not open to the guest"}
		if !f.UDP {
			v.Hint = fmt.Sprintf("--host-port %d", f.Port)
		}
		return v
	}
	if r := p.allow.name(f.Name, f.Port, f.UDP); r != nil {
		return Verdict{Allow: true, Rule: r.text}
	}
	if !f.Addr.IsValid() {
		return Verdict{Reason: noRule, Hint: hint}
	}
	// The guest may have asked for a name, and yet it dials an address that a rule names: in real mode, or by --add-host.
	if r := p.allow.opening(f.Addr, f.Port, f.UDP); r != nil {
		return Verdict{Allow: true, Rule: r.text}
	}
	if f.Name != "" {
		return Verdict{Reason: noRule, Hint: hint}
	}
	r := first(p.allow.any, f.Port, f.UDP)
	switch in, isSpecial := Special(f.Addr); {
	case r != nil && !isSpecial:
		return Verdict{Allow: true, Rule: r.text}
	case isSpecial:
		return Verdict{Reason: in.is(f.Addr) + ", and no rule names it", Hint: hint}
	}
	return Verdict{Reason: noRule, Hint: hint}
}

// Dial says whether a flow may lead to an address: one that its name has, or the one that the guest gave. It asks Flow
// too.
func (p *Policy) Dial(f Flow, addr netip.Addr) Verdict {
	flow := p.Flow(f)
	if !flow.Allow {
		return flow
	}
	f, err := f.normal()
	if err != nil || !addr.IsValid() || addr.Zone() != "" {
		return Verdict{Reason: "no address"}
	}
	addr = addr.Unmap()
	if r := p.deny.closing(addr, f.Port, f.UDP); r != nil {
		return denied(r)
	}
	if f.Name == api.HostGateway {
		if addr != netip.AddrFrom4([4]byte{127, 0, 0, 1}) {
			return Verdict{Reason: "a port of the host is at 127.0.0.1"}
		}
		return flow
	}
	if f.Name == "" {
		if addr != f.Addr {
			return Verdict{Reason: "not the address that the guest dialled"}
		}
		return flow // it has looked at the address
	}
	for _, written := range []struct {
		flag  string
		names map[string][]netip.Addr
	}{{"resolve", p.resolve}, {"add-host", p.addHosts}} {
		if slices.Contains(written.names[f.Name], addr) {
			return Verdict{Allow: true, Rule: fmt.Sprintf("%s %s:%s", written.flag, f.Name, addr)}
		}
	}
	in, isSpecial := Special(addr)
	if !isSpecial {
		return flow
	}
	if r := p.allow.opening(addr, f.Port, f.UDP); r != nil {
		return Verdict{Allow: true, Rule: r.text}
	}
	if in.private && p.allowPrivate {
		return Verdict{Allow: true, Rule: "allow-private"}
	}
	v := Verdict{Reason: f.Name + " is there: " + in.is(addr), Hint: "--allow-host " + Flow{Addr: addr, Port: f.Port, UDP: f.UDP}.target()}
	if in.private {
		v.Hint = "--allow-private"
	}
	return v
}

// HostPort returns the port of 127.0.0.1 on the host that a flow to api.HostGateway leads to. It judges nothing.
func (p *Policy) HostPort(f Flow) (uint16, bool) {
	h, ok := p.hostPort(f)
	return h.Port, ok
}

func (p *Policy) hostPort(f Flow) (api.HostPort, bool) {
	if p == nil || f.UDP || f.Name != api.HostGateway {
		return api.HostPort{}, false
	}
	i := slices.IndexFunc(p.hostPorts, func(h api.HostPort) bool { return h.GuestPort == f.Port })
	if i < 0 {
		return api.HostPort{}, false
	}
	return p.hostPorts[i], true
}

func hostPortText(h api.HostPort) string { return fmt.Sprintf("host-port %d:%d", h.Port, h.GuestPort) }

func (p *Policy) sealed() bool { return p == nil || p.allow == nil }

// normal brings a flow into the form that the rules are about.
func (f Flow) normal() (Flow, error) {
	if f.Port == 0 {
		return f, fmt.Errorf("no port")
	}
	if f.Addr.Zone() != "" {
		return f, fmt.Errorf("an address with a zone")
	}
	f.Addr = f.Addr.Unmap()
	if Synthetic(f.Addr) {
		if f.Name == "" {
			return f, fmt.Errorf("%s was given to no name", f.Addr)
		}
		f.Addr = netip.Addr{}
	}
	if f.Name == "" {
		if !f.Addr.IsValid() {
			return f, fmt.Errorf("neither a name nor an address")
		}
		return f, nil
	}
	var err error
	f.Name, err = Normalize(f.Name)
	return f, err
}

// target is how a rule names a flow.
func (f Flow) target() string {
	host := f.Name
	if host == "" {
		host = f.Addr.String()
	}
	text := join(host, f.Port)
	if f.UDP {
		text += "/udp"
	}
	return text
}

func denied(r *rule) Verdict { return Verdict{Rule: r.text, Reason: "a rule denies it"} }

func (r Range) is(addr netip.Addr) string {
	text := fmt.Sprintf("%s is %s", addr, r.Name)
	if r.RFC != "" {
		text += " (" + r.RFC + ")"
	}
	return text
}
