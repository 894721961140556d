package policy

import (
	"encoding/binary"
	"net/netip"
)

// A Range is of addresses that are not the public Internet's.
type Range struct {
	Prefix netip.Prefix
	Name   string // follows "is" in a sentence
	RFC    string // where it is defined; empty for what a vendor has chosen

	private bool // --allow-private opens it
}

// Synthetic tells whether an address is one of those that the guest is given for names, 198.18.0.0/15. They mean
// nothing outside.
func Synthetic(addr netip.Addr) bool { return syntheticRange().Contains(addr.Unmap()) }

func syntheticRange() netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 18, 0, 0}), 15)
}

// Special returns the special-purpose range that an address is in, if it is in one. An IPv6 address that leads to an
// IPv4 one is special where either is.
func Special(addr netip.Addr) (Range, bool) {
	forms, n := addressForms(addr)
	for i, form := range forms[:n] {
		for _, r := range specialRanges {
			if r.Prefix.Contains(form) {
				r.private = r.private && i == 0 // RFC 6052, §3.1: no private address by way of another
				return r, true
			}
		}
	}
	if n == 0 {
		return Range{Name: "no address"}, true
	}
	// Everything else in IPv6 is not given out yet, but for NAT64's prefix, which is as good as what it leads to.
	if form := forms[0]; form.Is6() && !globalUnicast.Contains(form) && !nat64.Contains(form) {
		return Range{Prefix: netip.PrefixFrom(netip.IPv6Unspecified(), 0), Name: "outside the public IPv6 range", RFC: "RFC 4291"}, true
	}
	return Range{}, false
}

var (
	globalUnicast = netip.MustParsePrefix("2000::/3")
	nat64         = netip.MustParsePrefix("64:ff9b::/96")
	nat64Local    = netip.MustParsePrefix("64:ff9b:1::/48")
	sixToFour     = netip.MustParsePrefix("2002::/16")
	teredo        = netip.MustParsePrefix("2001::/32")
	compatible    = netip.MustParsePrefix("::/96")
	translated    = netip.MustParsePrefix("::ffff:0:0:0/96")
)

// addressForms returns an address, an IPv4-mapped one as IPv4, and the IPv4 addresses within that packets to it may
// end at: n of them.
func addressForms(addr netip.Addr) (forms [3]netip.Addr, n int) {
	if !addr.IsValid() {
		return forms, 0
	}
	addr = addr.Unmap().WithZone("")
	forms[0], n = addr, 1
	if addr.Is4() {
		return forms, n
	}
	b := addr.As16()
	embed := func(v4 uint32) {
		forms[n] = netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, v4)))
		n++
	}
	last := binary.BigEndian.Uint32(b[12:])
	switch {
	case nat64.Contains(addr), nat64Local.Contains(addr), translated.Contains(addr), compatible.Contains(addr):
		embed(last)
	case sixToFour.Contains(addr):
		embed(binary.BigEndian.Uint32(b[2:]))
	case teredo.Contains(addr):
		embed(binary.BigEndian.Uint32(b[4:])) // the server
		embed(^last)                          // the client
	}
	return forms, n
}

func special(prefix, name, rfc string) Range {
	return Range{Prefix: netip.MustParsePrefix(prefix), Name: name, RFC: rfc}
}

func private(prefix, name, rfc string) Range {
	return Range{Prefix: netip.MustParsePrefix(prefix), Name: name, RFC: rfc, private: true}
}

func metadata(prefix, cloud string) Range {
	return Range{Prefix: netip.MustParsePrefix(prefix), Name: "a metadata service of " + cloud}
}

// specialRanges are read from the top: what stands first names an address. They are the IANA's special-purpose
// registries for IPv4 and IPv6 as of 2025-10, with those entries too that are reachable globally (relays and sinks that
// no program asks for by name), and multicast. Where entries lie in one another the outer one stands here.
var specialRanges = []Range{
	// These are in ranges that --allow-private opens, or in public ones, and hand out credentials to whoever asks.
	metadata("169.254.169.254/32", "most clouds"),
	metadata("169.254.170.2/32", "AWS"),
	metadata("100.100.100.200/32", "Alibaba Cloud"),
	metadata("168.63.129.16/32", "Azure"),
	metadata("fd00:ec2::/32", "AWS"),
	metadata("fd20:ce::/32", "Google Cloud"),
	metadata("fd00:c1::/32", "Oracle Cloud"),
	metadata("fd00:42::/32", "Scaleway"),

	special("0.0.0.0/8", "of this network", "RFC 791"),
	private("10.0.0.0/8", "private", "RFC 1918"),
	private("100.64.0.0/10", "shared among a carrier's customers", "RFC 6598"),
	special("127.0.0.0/8", "loopback", "RFC 1122"),
	special("169.254.0.0/16", "link-local", "RFC 3927"),
	private("172.16.0.0/12", "private", "RFC 1918"),
	special("192.0.0.0/24", "reserved for protocols", "RFC 6890"),
	special("192.0.2.0/24", "for documentation", "RFC 5737"),
	special("192.31.196.0/24", "a sink for reverse queries (AS112)", "RFC 7535"),
	special("192.52.193.0/24", "for multicast relays", "RFC 7450"),
	special("192.88.99.0/24", "of 6to4 relays", "RFC 7526"),
	private("192.168.0.0/16", "private", "RFC 1918"),
	special("192.175.48.0/24", "a sink for reverse queries (AS112)", "RFC 7534"),
	special("198.18.0.0/15", "for benchmarks, and what the guest is given for names", "RFC 2544"),
	special("198.51.100.0/24", "for documentation", "RFC 5737"),
	special("203.0.113.0/24", "for documentation", "RFC 5737"),
	special("224.0.0.0/4", "multicast", "RFC 5771"),
	special("255.255.255.255/32", "broadcast", "RFC 8190"),
	special("240.0.0.0/4", "reserved", "RFC 1112"),

	special("::/128", "unspecified", "RFC 4291"),
	special("::1/128", "loopback", "RFC 4291"),
	special("::/96", "IPv4-compatible", "RFC 4291"),
	special("::ffff:0:0/96", "IPv4-mapped", "RFC 4291"), // they are judged as IPv4 before; this is for rules
	special("::ffff:0:0:0/96", "IPv4-translated", "RFC 2765"),
	special("64:ff9b:1::/48", "a network's own NAT64", "RFC 8215"),
	special("100::/64", "a sink", "RFC 6666"),
	special("100:0:0:1::/64", "a dummy", "RFC 9780"),
	special("2001::/32", "Teredo", "RFC 4380"),
	special("2001:2::/48", "for benchmarks", "RFC 5180"),
	special("2001:3::/32", "for multicast relays", "RFC 7450"),
	special("2001:4:112::/48", "a sink for reverse queries (AS112)", "RFC 7535"),
	special("2001:10::/28", "an identifier (ORCHID)", "RFC 4843"),
	special("2001:20::/28", "an identifier (ORCHIDv2)", "RFC 7343"),
	special("2001:30::/28", "a drone's identifier", "RFC 9374"),
	special("2001::/23", "reserved for protocols", "RFC 2928"), // with 2001:1::1, ::2 and ::3 of RFC 7723, 8155 and 9665
	special("2001:db8::/32", "for documentation", "RFC 3849"),
	special("2002::/16", "6to4", "RFC 3056"),
	special("2620:4f:8000::/48", "a sink for reverse queries (AS112)", "RFC 7534"),
	special("3fff::/20", "for documentation", "RFC 9637"),
	special("5f00::/16", "a segment identifier (SRv6)", "RFC 9602"),
	private("fc00::/7", "unique local", "RFC 4193"),
	special("fe80::/10", "link-local", "RFC 4291"),
	special("fec0::/10", "site-local", "RFC 3879"),
	special("ff00::/8", "multicast", "RFC 4291"),
}

// inSpecial tells whether a prefix lies in one of the special ranges: who writes it means what is special there. One
// that is wider means the public addresses in it.
func inSpecial(prefix netip.Prefix) bool {
	if r, ok := Special(prefix.Addr()); ok && r.Prefix.Bits() == 0 {
		// Not given out yet. The narrowest such range is ::/3's rest; what is written is meant.
		return prefix.Bits() >= 3
	}
	for _, r := range specialRanges {
		if r.Prefix.Bits() <= prefix.Bits() && r.Prefix.Contains(prefix.Addr()) {
			return true
		}
	}
	// What leads to a special IPv4 address by way of NAT64.
	return nat64.Bits() <= prefix.Bits() && nat64.Contains(prefix.Addr())
}
