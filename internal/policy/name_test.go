package policy

import (
	"strings"
	"testing"

	"github.com/matchlock/matchlock/api"
)

func TestNormalize(t *testing.T) {
	label := strings.Repeat("a", 63)
	longest := strings.Join([]string{label, label, label, label[:61]}, ".")
	for name, want := range map[string]string{
		"pypi.org":                     "pypi.org",
		"PyPI.ORG.":                    "pypi.org",
		"printer":                      "printer",
		"_dmarc.Example.com":           "_dmarc.example.com",
		"_http._tcp.mirror.example":    "_http._tcp.mirror.example",
		"r3---sn-abc.googlevideo.com":  "r3---sn-abc.googlevideo.com", // no IDNA, for all its hyphens
		"bücher.example":               "xn--bcher-kva.example",
		"BÜCHER.example":               "xn--bcher-kva.example",
		"xn--bcher-kva.example":        "xn--bcher-kva.example",
		"XN--BCHER-KVA.example":        "xn--bcher-kva.example",
		"faß.example":                  "xn--fa-hia.example", // not "fass": UTS #46, nontransitional
		"ｐｙｐｉ．ｏｒｇ":                     "pypi.org",
		"pypi。org":                     "pypi.org",
		"1.2.3.4.in-addr.arpa":         "1.2.3.4.in-addr.arpa",
		"1e100.net":                    "1e100.net",
		"0x7f.example":                 "0x7f.example",
		"0xg":                          "0xg",
		longest:                        longest,
		longest + ".":                  longest,
		"_" + label[:62] + ".example.": "_" + label[:62] + ".example",
		"xn--80ak6aa92e.com":           "xn--80ak6aa92e.com", // looks like apple.com, and is another name
		"аpple.com":                    "xn--pple-43d.com",   // with a Cyrillic а
	} {
		if got, err := Normalize(name); err != nil || got != want {
			t.Errorf("Normalize(%q) = %q, %v, want %q", name, got, err, want)
		}
	}
	for _, name := range []string{
		"", ".", "..", "a..b", ".a", "a.b..", "-a.example", "a-.example", "a b", "a\x00b", "a/b", "a:443", "user@a", "*.a", "a%2eb", "a,b", "a\\b",
		label + "a.example", longest + "a", strings.Repeat("a.", 2000), strings.Repeat("ü", 3000),
		"127.0.0.1", "127.1", "0x7f.1", "0x7f000001", "0X7F.0X1", "2130706433", "0177.0.0.1", "1.2.3.4.", "1.2.3.0x", "0x", "a.0x1f", "a.1", "1.2.3.4.5",
		"::1", "[::1]", "::ffff:127.0.0.1", "fe80::1%eth0", "１２７．１", "127。0。0。1", "①.①", "[127.0.0.1]",
		"xn--a.example", "xn--.example", "xn--abc-.example", "a\u200bb.example\u2028", "\xff.example", "xn--" + label[:59] + ".example",
	} {
		if got, err := Normalize(name); err == nil {
			t.Errorf("Normalize(%.80q) = %q", name, got)
		} else if len(err.Error()) > 2000 {
			t.Errorf("Normalize(%.80q): an error of %d bytes", name, len(err.Error()))
		}
	}
}

func TestHosts(t *testing.T) {
	match, err := Hosts([]string{"API.example.", "*.b.example"})
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]bool{"api.example": true, "x.api.example": false, "b.example": false, "x.b.example": true, "x.y.b.example": true, "xb.example": false, "": false} {
		if match(name) != want {
			t.Errorf("%q: %t", name, !want)
		}
	}
	for _, pattern := range []string{"*", "*.", "a.*", "*.*.a", "10.0.0.1", "*.1"} {
		if _, err := Hosts([]string{"a.example", pattern}); err == nil {
			t.Errorf("%q is taken for a pattern", pattern)
		}
	}
}

func FuzzNormalize(f *testing.F) {
	for _, name := range []string{"PyPI.org.", "bücher.example", "xn--bcher-kva.example", "0x7f.1", "１２７．１", "_a.b", "a。b"} {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, name string) {
		normal, err := Normalize(name)
		if err != nil {
			return
		}
		if again, err := Normalize(normal); err != nil || again != normal {
			t.Errorf("%q is %q, which is %q, %v", name, normal, again, err)
		}
		if upper, err := Normalize(strings.ToUpper(normal) + "."); err != nil || upper != normal {
			t.Errorf("%q is %q, which in upper case is %q, %v", name, normal, upper, err)
		}
		if len(normal) > maxName || strings.Trim(normal, "abcdefghijklmnopqrstuvwxyz0123456789-_.") != "" {
			t.Errorf("%q is %q", name, normal)
		}
	})
}

// FuzzRules compiles what may stand in a flag, and sees to it that nothing passes which is denied in the same words.
func FuzzRules(f *testing.F) {
	f.Add("*.example.com:1-2/udp", "a.example.com", "10.0.0.1", uint16(1), true)
	f.Add("10.0.0.0/8", "x", "::ffff:10.1.1.1", uint16(1), false)
	f.Add("64:ff9b::/96", "", "64:ff9b::1", uint16(1), false)
	f.Fuzz(func(t *testing.T, text, name, at string, port uint16, udp bool) {
		var r api.Rule
		if r.UnmarshalText([]byte(text)) != nil {
			return
		}
		sealed := api.Config{Network: api.Network{Allow: []api.Rule{r}, Deny: []api.Rule{r}}}
		p, err := Compile(&sealed)
		if err != nil {
			return
		}
		flow := parseFlow(name, at, port, udp)
		if v := p.Flow(flow); v.Allow {
			t.Errorf("%q allowed and denied: %+v: %+v", text, flow, v)
		}
		if v := p.Dial(flow, flow.Addr); v.Allow {
			t.Errorf("%q allowed and denied: %+v is dialled: %+v", text, flow, v)
		}
		open, err := Compile(&api.Config{Network: api.Network{Allow: []api.Rule{{Target: "*"}, {Target: "*", UDP: true}}}})
		if err != nil {
			t.Fatal(err)
		}
		if _, isSpecial := Special(flow.Addr); isSpecial && open.Dial(flow, flow.Addr).Allow {
			t.Errorf("a star opens %s", flow.Addr)
		}
	})
}
