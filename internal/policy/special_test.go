package policy

import (
	"net/netip"
	"testing"
)

func parseFlow(name, addr string, port uint16, udp bool) Flow {
	at, _ := netip.ParseAddr(addr) // the zero value is one of the cases
	return Flow{name, at, port, udp}
}

// TestSpecial has the edges of every range in the IANA's registries, and their neighbours.
func TestSpecial(t *testing.T) {
	for _, addr := range []string{
		"0.0.0.0", "0.255.255.255", "10.0.0.0", "10.255.255.255", "100.64.0.0", "100.127.255.255", "127.0.0.1", "127.255.255.255",
		"169.254.0.0", "169.254.169.254", "169.254.255.255", "172.16.0.0", "172.31.255.255", "192.0.0.0", "192.0.0.9", "192.0.0.170", "192.0.0.255",
		"192.0.2.0", "192.0.2.255", "192.31.196.1", "192.52.193.1", "192.88.99.1", "192.168.0.0", "192.168.255.255", "192.175.48.1",
		"198.18.0.0", "198.19.255.255", "198.51.100.0", "203.0.113.255", "224.0.0.0", "239.255.255.255", "240.0.0.0", "255.255.255.255",
		"168.63.129.16", "100.100.100.200",
		"::", "::1", "::2", "::127.0.0.1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:0:127.0.0.1", "64:ff9b::127.0.0.1", "64:ff9b::169.254.169.254",
		"64:ff9b:1::8.8.8.8", "64:ff9b:1:ffff::", "100::1", "100:0:0:1::1", "2001::1", "2001:0:4136:e378:8000:63bf:3fff:fdd2", "2001:1::1", "2001:2::1", "2001:3::1",
		"2001:4:112::1", "2001:10::1", "2001:20::1", "2001:30::1", "2001:1ff:ffff::", "2001:db8::1", "2002:808:808::1", "2002:7f00:1::", "2620:4f:8000::1", "3fff::1", "3fff:fff:ffff::",
		"5f00::1", "4000::1", "fc00::1", "fd00:ec2::254", "fdff::1", "fe80::1", "febf::1", "fec0::1", "ff02::1", "ffff::", "1::", "64:ff9a::1", "fe80::1%eth0",
	} {
		if r, ok := Special(netip.MustParseAddr(addr)); !ok || r.Name == "" {
			t.Errorf("%s is taken for public", addr)
		}
	}
	for _, addr := range []string{
		"1.0.0.0", "9.255.255.255", "11.0.0.0", "100.63.255.255", "100.128.0.0", "126.255.255.255", "128.0.0.0", "169.253.255.255", "169.255.0.0",
		"172.15.255.255", "172.32.0.0", "192.0.1.0", "192.0.3.0", "192.167.255.255", "192.169.0.0", "198.17.255.255", "198.20.0.0", "223.255.255.255", "8.8.8.8",
		"::ffff:8.8.8.8", "64:ff9b::8.8.8.8", "2001:200::1", "2001:4860:4860::8888", "2003::1", "2606:4700::1111", "2a00::1", "3ffe::1", "2001:db7::1", "2001:db9::1",
	} {
		if r, ok := Special(netip.MustParseAddr(addr)); ok {
			t.Errorf("%s is taken for %+v", addr, r)
		}
	}
	if _, ok := Special(netip.Addr{}); !ok {
		t.Error("no address is taken for public")
	}
}

func TestPrivate(t *testing.T) {
	for addr, want := range map[string]bool{
		"10.0.0.1": true, "172.16.0.1": true, "192.168.1.1": true, "100.64.0.1": true, "fd00::1": true, "::ffff:10.0.0.1": true,
		"127.0.0.1": false, "169.254.1.1": false, "100.100.100.200": false, "fd00:ec2::254": false, "64:ff9b::10.0.0.1": false, "2002:a00:1::": false, "224.0.0.1": false,
	} {
		if r, _ := Special(netip.MustParseAddr(addr)); r.private != want {
			t.Errorf("%s: private %t", addr, !want)
		}
	}
}

func TestInSpecial(t *testing.T) {
	for prefix, want := range map[string]bool{
		"10.0.0.0/8": true, "10.1.0.0/16": true, "127.0.0.1/32": true, "169.254.169.254/32": true, "fc00::/7": true, "fd00::/8": true, "64:ff9b::/96": true, "4000::/16": true,
		"0.0.0.0/0": false, "10.0.0.0/7": false, "128.0.0.0/1": false, "::/0": false, "8.0.0.0/8": false, "2000::/3": false, "2606:4700::/32": false,
	} {
		if got := inSpecial(netip.MustParsePrefix(prefix)); got != want {
			t.Errorf("%s: %t", prefix, got)
		}
	}
}

// Nobody opens what a rule does not mean: a rule for a whole Internet is not one for this host.
func TestWideRulesOpenNothingSpecial(t *testing.T) {
	p := compile(t, "allow 0.0.0.0/0", "allow ::/0", "allow *")
	for _, r := range specialRanges {
		addr := r.Prefix.Addr()
		for _, f := range []Flow{{"", addr, 80, false}, {"a.example", netip.MustParseAddr("198.18.0.1"), 80, false}} {
			if v := p.Dial(f, addr); v.Allow {
				t.Errorf("%s (%s): %+v", addr, r.Name, v)
			}
		}
	}
	if w := p.Warnings(); len(w) != 2 {
		t.Errorf("warnings %q", w)
	}
}
