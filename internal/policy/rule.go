package policy

import (
	"fmt"
	"iter"
	"net/netip"
	"strings"

	"github.com/matchlock/matchlock/api"
)

// A rule is one of api.Rule, compiled.
type rule struct {
	text        string // "allow pypi.org:443"
	prefix      netip.Prefix
	inSpecial   bool // prefix lies in a special-purpose range
	first, last uint16
	udp         bool
}

func (r *rule) about(port uint16, udp bool) bool {
	return r.udp == udp && r.first <= port && port <= r.last
}

// rules are either those that allow or those that deny, found by what they are about.
type rules struct {
	list     []*rule
	patterns []pattern          // the names and suffixes in them
	exact    map[string][]*rule // by name
	below    map[string][]*rule // by suffix
	within   []*rule            // by prefix
	any      []*rule
}

// compileRules goes on where a rule is faulty, so that all faults are told at once.
func compileRules(verb string, from []api.Rule, fault func(error)) *rules {
	rs := &rules{exact: map[string][]*rule{}, below: map[string][]*rule{}}
	for _, from := range from {
		r := &rule{text: verb + " " + from.String(), first: from.First, last: from.Last, udp: from.UDP}
		if r.first == 0 && r.last == 0 {
			r.first, r.last = 1, 65535
		}
		if r.first == 0 || r.first > r.last {
			fault(fmt.Errorf("rule %q: ports %d-%d", from, r.first, r.last))
			continue
		}
		rs.list = append(rs.list, r)
		if from.Target == "*" {
			rs.any = append(rs.any, r)
			continue
		}
		if prefix, isAddress, err := parsePrefix(from.Target); isAddress {
			if err != nil {
				fault(fmt.Errorf("rule %q: %w", from, err))
				continue
			}
			r.prefix, r.inSpecial = prefix, inSpecial(prefix)
			rs.within = append(rs.within, r)
			continue
		}
		p, err := parsePattern(from.Target)
		if err != nil {
			fault(fmt.Errorf("rule %q: %w", from, err))
			continue
		}
		rs.patterns = append(rs.patterns, p)
		if p.below {
			rs.below[p.name] = append(rs.below[p.name], r)
		} else {
			rs.exact[p.name] = append(rs.exact[p.name], r)
		}
	}
	return rs
}

// parsePrefix reads an address or a CIDR, and says whether it is meant to be one. What is IPv4-mapped is IPv4.
func parsePrefix(target string) (netip.Prefix, bool, error) {
	if addr, err := netip.ParseAddr(target); err == nil {
		if addr.Zone() != "" {
			return netip.Prefix{}, true, fmt.Errorf("an address with a zone")
		}
		addr = addr.Unmap()
		return netip.PrefixFrom(addr, addr.BitLen()), true, nil
	}
	if !strings.Contains(target, "/") {
		return netip.Prefix{}, false, nil
	}
	prefix, err := netip.ParsePrefix(target)
	if err != nil {
		return netip.Prefix{}, true, err
	}
	if addr := prefix.Addr(); addr.Is4In6() {
		if prefix.Bits() < 96 {
			return netip.Prefix{}, true, fmt.Errorf("a part of what is IPv4-mapped: write it as IPv4")
		}
		prefix = netip.PrefixFrom(addr.Unmap(), prefix.Bits()-96)
	}
	return prefix.Masked(), true, nil
}

// named are the rules whose target a name matches, the closest first. No name matches none.
func (rs *rules) named(name string) iter.Seq[*rule] {
	return func(yield func(*rule) bool) {
		if name == "" {
			return
		}
		lists := [][]*rule{rs.exact[name]}
		for rest := name; len(rs.below) > 0; {
			_, suffix, ok := strings.Cut(rest, ".")
			if !ok {
				break
			}
			lists = append(lists, rs.below[suffix])
			rest = suffix
		}
		for _, list := range append(lists, rs.any) {
			for _, r := range list {
				if !yield(r) {
					return
				}
			}
		}
	}
}

// opening returns the rule that allows an address as such: one whose prefix has it, where the address is special a
// prefix that is special too. Only the address itself counts, not what is embedded in it.
func (rs *rules) opening(addr netip.Addr, port uint16, udp bool) *rule {
	addr = addr.Unmap()
	_, isSpecial := Special(addr)
	for _, r := range rs.within {
		if r.about(port, udp) && r.prefix.Contains(addr) && (r.inSpecial || !isSpecial) {
			return r
		}
	}
	return nil
}

// closing returns the rule that denies an address in any of its forms. Deny rules with "*" are about every address.
func (rs *rules) closing(addr netip.Addr, port uint16, udp bool) *rule {
	forms, n := addressForms(addr)
	for _, r := range rs.within {
		for _, form := range forms[:n] {
			if r.about(port, udp) && r.prefix.Contains(form) {
				return r
			}
		}
	}
	return first(rs.any, port, udp)
}

func first(list []*rule, port uint16, udp bool) *rule {
	for _, r := range list {
		if r.about(port, udp) {
			return r
		}
	}
	return nil
}

func (rs *rules) name(name string, port uint16, udp bool) *rule {
	for r := range rs.named(name) {
		if r.about(port, udp) {
			return r
		}
	}
	return nil
}
