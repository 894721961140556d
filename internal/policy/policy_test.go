package policy

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/matchlock/matchlock/api"
)

// config makes a configuration from words as flags have them: "allow pypi.org:443", "resolve a.test:127.0.0.1".
func config(t *testing.T, flags ...string) *api.Config {
	t.Helper()
	c := &api.Config{}
	n := &c.Network
	for _, flag := range flags {
		verb, value, _ := strings.Cut(flag, " ")
		var err error
		switch verb {
		case "allow", "deny":
			var r api.Rule
			err = r.UnmarshalText([]byte(value))
			if verb == "allow" {
				n.Allow = append(n.Allow, r)
			} else {
				n.Deny = append(n.Deny, r)
			}
		case "allow-private":
			n.AllowPrivate = true
		case "host-port":
			var p api.HostPort
			err = p.UnmarshalText([]byte(value))
			n.HostPorts = append(n.HostPorts, p)
		case "resolve", "add-host":
			var h api.HostIPMapping
			h, err = api.ParseHost(value)
			if verb == "resolve" {
				n.Resolve = append(n.Resolve, h)
			} else {
				n.AddHosts = append(n.AddHosts, h)
			}
		case "secret":
			var s api.Secret
			err = s.UnmarshalText([]byte(value))
			c.Secrets = append(c.Secrets, s)
		case "splice":
			n.Splice = append(n.Splice, value)
		case "intercept":
			n.Intercept = true
		case "hook":
			h := api.Hook{Name: "h", Action: api.HookBlock}
			if value != "" {
				h.Hosts = strings.Split(value, ",")
			}
			n.Hooks = append(n.Hooks, h)
		case "no-network":
			n.None = true
		default:
			t.Fatalf("flag %q", flag)
		}
		if err != nil {
			t.Fatalf("flag %q: %v", flag, err)
		}
	}
	return c
}

func compile(t *testing.T, flags ...string) *Policy {
	t.Helper()
	p, err := Compile(config(t, flags...))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// flow reads NAME@ADDR:PORT[/udp], where either may be missing.
func flow(t *testing.T, text string) Flow {
	t.Helper()
	text, udp := strings.CutSuffix(text, "/udp")
	name, addr, ok := strings.Cut(text, "@")
	if !ok {
		name, addr, _ = strings.Cut(text, ":")
		addr = "198.18.0.1:" + addr
	}
	at, err := netip.ParseAddrPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	return Flow{name, at.Addr(), at.Port(), udp}
}

func TestFlow(t *testing.T) {
	type row struct{ flow, rule, hint string } // rule "": refused by none
	for _, tt := range []struct {
		flags []string
		rows  []row
	}{
		{nil, []row{ // an empty list is an empty list
			{"pypi.org:443", "", "--allow-host pypi.org:443"},
			{"@93.184.216.34:80", "", "--allow-host 93.184.216.34:80"},
			{"@[2606:4700::1]:53/udp", "", "--allow-host [2606:4700::1]:53/udp"},
		}},
		{[]string{"no-network"}, []row{{"pypi.org:443", "", "--allow-host pypi.org:443"}}},
		{[]string{"allow-private"}, []row{{"@10.0.0.1:80", "", "--allow-host 10.0.0.1:80"}}},
		{[]string{"allow PyPI.org.:443", "allow *.example.com", "allow bücher.example:1-99/udp"}, []row{
			{"pypi.org:443", "allow PyPI.org.:443", ""},
			{"PYPI.ORG.:443", "allow PyPI.org.:443", ""},
			{"pypi.org:80", "", "--allow-host pypi.org:80"},
			{"pypi.org:443/udp", "", ""},
			{"files.pypi.org:443", "", "--allow-host files.pypi.org:443"},
			{"notpypi.org:443", "", "--allow-host notpypi.org:443"},
			{"example.com:22", "", "--allow-host example.com:22"},
			{"a.b.example.com:22", "allow *.example.com", ""},
			{"badexample.com:22", "", "--allow-host badexample.com:22"},
			{"a.example.com:22/udp", "", "--allow-host a.example.com:22/udp"}, // UDP only when written
			{"xn--bcher-kva.example:53/udp", "allow bücher.example:1-99/udp", ""},
			{"BÜCHER.example:53/udp", "allow bücher.example:1-99/udp", ""},
			{"xn--bcher-kva.example:53", "", "--allow-host xn--bcher-kva.example:53"},
			{"pypi.org@1.2.3.4:443", "allow PyPI.org.:443", ""},
			{"@198.18.0.1:443", "", ""}, // synthetic, and nobody's
		}},
		{[]string{"allow *", "deny evil.example", "deny *.bad.example:25", "deny 192.0.2.0/24", "deny 8.8.8.8:53-443"}, []row{
			{"any.name:1", "allow *", ""},
			{"@1.1.1.1:443", "allow *", ""},
			{"@[::ffff:1.1.1.1]:443", "allow *", ""},
			{"@[2606:4700::1111]:443", "allow *", ""},
			{"evil.example:443", "deny evil.example", ""},
			{"EVIL.example.:443", "deny evil.example", ""},
			{"sub.evil.example:443", "allow *", ""},
			{"a.bad.example:25", "deny *.bad.example:25", ""},
			{"a.bad.example:26", "allow *", ""},
			{"@8.8.8.8:443", "deny 8.8.8.8:53-443", ""},
			{"@[::ffff:8.8.8.8]:443", "deny 8.8.8.8:53-443", ""},
			{"@[64:ff9b::8.8.8.8]:443", "deny 8.8.8.8:53-443", ""},
			{"@[2002:808:808::1]:443", "deny 8.8.8.8:53-443", ""},
			{"dns.google@8.8.8.8:443", "deny 8.8.8.8:53-443", ""},
			{"@8.8.8.8:22", "allow *", ""},
			{"@127.0.0.1:22", "", "--allow-host 127.0.0.1:22"},
			{"@10.0.0.1:22", "", "--allow-host 10.0.0.1:22"},
			{"@169.254.169.254:80", "", "--allow-host 169.254.169.254:80"},
			{"@168.63.129.16:80", "", "--allow-host 168.63.129.16:80"},
			{"@[::ffff:169.254.169.254]:80", "", "--allow-host 169.254.169.254:80"},
			{"@[64:ff9b::a9fe:a9fe]:80", "", "--allow-host [64:ff9b::a9fe:a9fe]:80"},
			{"@[fe80::1]:80", "", "--allow-host [fe80::1]:80"},
			{"127.1:80", "", ""},
			{"host.matchlock.internal:80", "", "--host-port 80"},
		}},
		{[]string{"allow a.example", "deny *"}, []row{{"a.example:1", "deny *", ""}, {"@1.1.1.1:1", "deny *", ""}}},
		{[]string{"allow *", "deny *:25"}, []row{{"mx.example:25", "deny *:25", ""}, {"@1.1.1.1:25", "deny *:25", ""}, {"@1.1.1.1:26", "allow *", ""}}},
		{[]string{"allow 10.0.0.0/8:5432", "allow [fd00::1]:22", "allow 169.254.0.0/16", "allow ::ffff:172.16.0.0/108"}, []row{
			{"@10.9.9.9:5432", "allow 10.0.0.0/8:5432", ""},
			{"@[::ffff:10.9.9.9]:5432", "allow 10.0.0.0/8:5432", ""},
			{"@10.9.9.9:5433", "", "--allow-host 10.9.9.9:5433"},
			{"@[fd00::1]:22", "allow [fd00::1]:22", ""},
			{"@[fd00::2]:22", "", "--allow-host [fd00::2]:22"},
			{"@169.254.169.254:80", "allow 169.254.0.0/16", ""},
			{"@172.17.0.1:80", "allow ::ffff:172.16.0.0/108", ""},
			{"db.example@10.9.9.9:5432", "allow 10.0.0.0/8:5432", ""},
			{"db.example:5432", "", "--allow-host db.example:5432"},
		}},
		{[]string{"allow 0.0.0.0/0", "allow ::/0"}, []row{
			{"@1.1.1.1:1", "allow 0.0.0.0/0", ""}, {"@[2606:4700::1111]:1", "allow ::/0", ""},
			{"@127.0.0.1:1", "", "--allow-host 127.0.0.1:1"}, {"@[::1]:1", "", "--allow-host [::1]:1"}, {"a.example:1", "", "--allow-host a.example:1"},
		}},
		{[]string{"host-port 5432:15432", "deny *:1"}, []row{
			{"host.matchlock.internal@10.0.2.2:15432", "host-port 5432:15432", ""},
			{"host.matchlock.internal:5432", "", "--host-port 5432"},
			{"host.matchlock.internal:15432/udp", "", ""},
		}},
		{[]string{"allow *:443/udp"}, []row{{"a.example:443/udp", "", ""}}}, // QUIC
	} {
		p := compile(t, tt.flags...)
		for _, row := range tt.rows {
			got := p.Flow(flow(t, row.flow))
			if got.Rule != row.rule || got.Hint != row.hint || got.Allow != (row.rule != "" && !strings.HasPrefix(row.rule, "deny")) || got.Allow == (got.Reason != "") {
				t.Errorf("%q: flow %s: %+v, want rule %q, hint %q", tt.flags, row.flow, got, row.rule, row.hint)
			}
		}
	}
	for _, p := range []*Policy{nil, {}} {
		if v := p.Flow(Flow{Name: "a.example", Port: 1}); v.Allow {
			t.Error("a policy without rules allows")
		}
	}
	if v := compile(t, "allow *").Flow(Flow{Name: "a.example"}); v.Allow {
		t.Error("port 0 is allowed")
	}
}

func TestDial(t *testing.T) {
	type row struct{ flow, addr, rule, hint string }
	for _, tt := range []struct {
		flags []string
		rows  []row
	}{
		{[]string{"allow *"}, []row{
			{"a.example:443", "93.184.216.34", "allow *", ""},
			{"a.example:443", "::ffff:93.184.216.34", "allow *", ""},
			{"a.example:443", "64:ff9b::93.184.216.34", "allow *", ""},
			// Rebinding: a name of the public Internet that has such an address.
			{"a.example:443", "127.0.0.1", "", "--allow-host 127.0.0.1:443"},
			{"a.example:443", "::ffff:127.0.0.1", "", "--allow-host 127.0.0.1:443"},
			{"a.example:443", "::1", "", "--allow-host [::1]:443"},
			{"a.example:443", "0.0.0.0", "", "--allow-host 0.0.0.0:443"},
			{"a.example:443", "10.0.0.1", "", "--allow-private"},
			{"a.example:443", "100.64.0.1", "", "--allow-private"},
			{"a.example:443", "fd00::1", "", "--allow-private"},
			{"a.example:443", "64:ff9b::10.0.0.1", "", "--allow-host [64:ff9b::a00:1]:443"},
			{"a.example:443", "198.18.0.7", "", "--allow-host 198.18.0.7:443"},
			{"a.example:443", "", "", ""},
			{"@1.1.1.1:443", "1.1.1.1", "allow *", ""},
			{"@1.1.1.1:443", "1.1.1.2", "", ""},
			{"@127.0.0.1:443", "127.0.0.1", "", "--allow-host 127.0.0.1:443"},
		}},
		{[]string{"allow a.example", "allow-private"}, []row{
			{"a.example:443", "10.0.0.1", "allow-private", ""},
			{"a.example:443", "100.64.0.1", "allow-private", ""},
			{"a.example:443", "fd00::1", "allow-private", ""},
			{"a.example:443", "127.0.0.1", "", "--allow-host 127.0.0.1:443"},
			{"a.example:443", "169.254.1.1", "", "--allow-host 169.254.1.1:443"},
			{"a.example:80", "169.254.169.254", "", "--allow-host 169.254.169.254:80"},
			{"a.example:80", "100.100.100.200", "", "--allow-host 100.100.100.200:80"},
			{"a.example:80", "fd00:ec2::254", "", "--allow-host [fd00:ec2::254]:80"},
			{"a.example:80", "64:ff9b::10.0.0.1", "", "--allow-host [64:ff9b::a00:1]:80"},
			{"b.example:443", "10.0.0.1", "", "--allow-host b.example:443"}, // the flow itself is refused
		}},
		{[]string{"allow a.example", "allow 10.0.0.0/8:443", "allow 127.0.0.1"}, []row{
			{"a.example:443", "10.0.0.1", "allow 10.0.0.0/8:443", ""},
			{"a.example:444", "10.0.0.1", "", "--allow-private"},
			{"a.example:444", "127.0.0.1", "allow 127.0.0.1", ""},
			{"b.example:443", "10.0.0.1", "", "--allow-host b.example:443"},
		}},
		{[]string{"allow *", "allow 0.0.0.0/0"}, []row{{"a.example:443", "127.0.0.1", "", "--allow-host 127.0.0.1:443"}}},
		{[]string{"allow *", "deny 93.184.0.0/16", "deny [2606:4700::/32]:443"}, []row{
			{"a.example:443", "93.184.216.34", "deny 93.184.0.0/16", ""},
			{"a.example:443", "::ffff:93.184.216.34", "deny 93.184.0.0/16", ""},
			{"a.example:443", "64:ff9b::93.184.216.34", "deny 93.184.0.0/16", ""},
			{"a.example:443", "2606:4700::1", "deny [2606:4700::/32]:443", ""},
		}},
		{[]string{"allow api.test:8443", "resolve API.test:127.0.0.1", "add-host db:10.0.0.5", "allow db:5432", "add-host cache:10.0.0.6", "allow 10.0.0.6"}, []row{
			{"api.test:8443", "127.0.0.1", "resolve api.test:127.0.0.1", ""},
			{"api.test:8443", "127.0.0.2", "", "--allow-host 127.0.0.2:8443"},
			{"api.test:80", "127.0.0.1", "", "--allow-host api.test:80"},
			{"db@10.0.0.5:5432", "10.0.0.5", "add-host db:10.0.0.5", ""},
			{"db@10.0.0.5:22", "10.0.0.5", "", "--allow-host db:22"},
			{"cache@10.0.0.6:22", "10.0.0.6", "add-host cache:10.0.0.6", ""},
		}},
		{[]string{"allow api.test", "resolve api.test:127.0.0.1", "deny 127.0.0.0/8"}, []row{{"api.test:1", "127.0.0.1", "deny 127.0.0.0/8", ""}}},
		{[]string{"host-port 5432"}, []row{
			{"host.matchlock.internal:5432", "127.0.0.1", "host-port 5432:5432", ""},
			{"host.matchlock.internal:5432", "10.0.0.1", "", ""},
			{"host.matchlock.internal:22", "127.0.0.1", "", "--host-port 22"},
		}},
	} {
		p := compile(t, tt.flags...)
		for _, row := range tt.rows {
			addr, _ := netip.ParseAddr(row.addr)
			got := p.Dial(flow(t, row.flow), addr)
			if got.Rule != row.rule || got.Hint != row.hint || got.Allow != (row.rule != "" && !strings.HasPrefix(row.rule, "deny")) || got.Allow == (got.Reason != "") {
				t.Errorf("%q: %s at %s: %+v, want rule %q, hint %q", tt.flags, row.flow, row.addr, got, row.rule, row.hint)
			}
		}
	}
}

func TestName(t *testing.T) {
	for _, tt := range []struct {
		flags      []string
		name, rule string // rule "": refused
	}{
		{nil, "a.example", ""},
		{[]string{"allow 1.2.3.4"}, "a.example", ""},
		{[]string{"allow *"}, "a.example", "allow *"},
		{[]string{"allow *"}, "printer", "allow *"},
		{[]string{"allow *"}, "0x7f.1", ""},
		{[]string{"allow *"}, "host.matchlock.internal", ""},
		{[]string{"allow a.example/udp"}, "A.example.", "allow a.example/udp"},
		{[]string{"allow *.a.example:443"}, "_http._tcp.a.example", "allow *.a.example:443"},
		{[]string{"allow *.a.example:443"}, "a.example", ""},
		{[]string{"allow a.example", "deny a.example"}, "a.example", ""},
		{[]string{"allow a.example", "deny a.example:1-100"}, "a.example", "allow a.example"},
		{[]string{"allow a.example", "deny a.example:443"}, "a.example", "allow a.example"},
		{[]string{"allow a.example:443", "deny *.example:400-500"}, "a.example", ""},
		{[]string{"allow a.example:443-500", "deny *.example:400-499"}, "a.example", "allow a.example:443-500"},
		{[]string{"allow a.example:1-100", "deny a.example:1-50", "deny a.example:51-100"}, "a.example", ""},
		{[]string{"allow a.example/udp", "deny a.example"}, "a.example", "allow a.example/udp"},
		{[]string{"allow a.example:443/udp"}, "a.example", ""}, // QUIC
		{[]string{"allow *", "deny *"}, "a.example", ""},
		{[]string{"host-port 80"}, "host.matchlock.internal", "host-port 80:80"},
		{[]string{"add-host db:10.0.0.5", "allow 10.0.0.0/8"}, "db", "allow 10.0.0.0/8"},
		{[]string{"add-host db:10.0.0.5"}, "db", ""},
	} {
		got := compile(t, tt.flags...).Name(tt.name)
		if got.Allow != (tt.rule != "") || got.Allow && got.Rule != tt.rule || got.Allow == (got.Reason != "") {
			t.Errorf("%q: %q: %+v, want rule %q", tt.flags, tt.name, got, tt.rule)
		}
	}
}

func TestCompileFaults(t *testing.T) {
	for _, tt := range []struct {
		flags []string
		want  []string // in the errors
		hint  string
	}{
		{[]string{"allow a..b", "deny 0x7f.1", "allow -a.example"}, []string{`"a..b"`, `"0x7f.1"`, `"-a.example"`}, ""},
		{[]string{"secret T@api.example"}, []string{`secret "T": no rule allows api.example`}, "--allow-host api.example:443"},
		{[]string{"secret T@api.example", "allow api.example/udp"}, []string{`no rule allows`}, "--allow-host api.example:443"},
		{[]string{"secret T@api.example", "allow *", "deny api.example"}, []string{`no rule allows`}, "--allow-host api.example:443"},
		{[]string{"secret T@*.example", "allow api.test"}, []string{`no rule allows *.example`}, "--allow-host *.example:443"},
		{[]string{"add-host host.matchlock.internal:10.0.0.1"}, []string{`the host's own ports`}, "--host-port PORT"},
		{[]string{"add-host db:198.18.0.9"}, []string{`198.18.0.9 is of the range`}, ""},
		{[]string{"secret T@10.0.0.1", "allow *"}, []string{`an address`}, ""},
		{[]string{"secret T@*.example", "allow *", "splice a.example"}, []string{`--splice a.example forbids`}, "leave out --splice a.example"},
		{[]string{"hook a.example", "splice *.example"}, []string{`hook "h"`, `--splice *.example forbids`}, "leave out --splice *.example"},
	} {
		_, err := Compile(config(t, tt.flags...))
		if err == nil {
			t.Errorf("%q: no fault", tt.flags)
			continue
		}
		for _, want := range tt.want {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%q: %v, want %s in it", tt.flags, err, want)
			}
		}
		var hinted interface{ Hint() string }
		if errors.As(err, &hinted) != (tt.hint != "") || tt.hint != "" && hinted.Hint() != tt.hint {
			t.Errorf("%q: %v has another hint than %q", tt.flags, err, tt.hint)
		}
	}
	for _, flags := range [][]string{
		{"secret T@api.example", "allow api.example:443"},
		{"secret T@api.example", "allow *.example"},
		{"secret T@*.example", "allow api.example"},
		{"secret T@*.example", "allow *.deep.example", "deny _.example"},
		{"secret T@*.example", "allow *", "splice example"},
		{"secret T@host.matchlock.internal", "host-port 8443"},
		{"hook", "splice *.example"},
	} {
		if _, err := Compile(config(t, flags...)); err != nil {
			t.Errorf("%q: %v", flags, err)
		}
	}
}

// A refused name says what would help: no rule, where one denies it, else the one that is missing.
func TestNameHints(t *testing.T) {
	for _, tt := range []struct {
		flags      []string
		rule, hint string
	}{
		{nil, "", "--allow-host a.example"},
		{[]string{"deny *:25"}, "", "--allow-host a.example"},
		{[]string{"deny a.example"}, "deny a.example", ""},
		{[]string{"allow a.example:25", "deny *:25"}, "deny *:25", ""},
	} {
		if v := compile(t, tt.flags...).Name("a.example"); v.Allow || v.Rule != tt.rule || v.Hint != tt.hint {
			t.Errorf("%q: %+v, want rule %q, hint %q", tt.flags, v, tt.rule, tt.hint)
		}
	}
}

func TestWarnings(t *testing.T) {
	for want, flags := range map[string][]string{
		"":                               {"allow *", "deny a.example", "allow 10.0.0.0/8"},
		"other rules allow UDP":          {"allow *:53/udp", "deny a.example", "deny a.example/udp"},
		"QUIC is refused":                {"allow *:443/udp", "deny a.example"},
		"opened by --host-port":          {"allow host.matchlock.internal:80"},
		"need a rule of their own":       {"allow 0.0.0.0/0"},
		"goes to every name below a.com": {"allow *", "secret T@*.a.com"},
	} {
		got := compile(t, flags...).Warnings()
		if len(got) != min(len(want), 1) || !strings.Contains(strings.Join(got, ""), want) {
			t.Errorf("%q: warnings %q, want %q", flags, got, want)
		}
	}
}

func TestIntercept(t *testing.T) {
	p := compile(t, "allow *", "secret T@api.example,*.b.example", "secret U@api.example", "hook c.example", "splice *.pinned.example")
	for name, want := range map[string]bool{"api.example": true, "x.b.example": true, "b.example": false, "c.example": true, "d.example": false, "": false} {
		if got := p.Terminates(name); got != want {
			t.Errorf("terminates %q: %t", name, got)
		}
	}
	if got := p.Secrets("api.example"); strings.Join(got, " ") != "T U" {
		t.Errorf("secrets %q", got)
	}
	if scope := p.Scope("U"); !scope("api.example") || scope("x.b.example") || p.Scope("V")("api.example") {
		t.Error("another scope")
	}
	if w := p.Warnings(); len(w) != 1 || !strings.Contains(w[0], "below b.example") {
		t.Errorf("warnings %q", w)
	}
	p = compile(t, "intercept", "hook", "splice *.pinned.example")
	for name, want := range map[string]bool{"a.pinned.example": false, "pinned.example": true, "": true} {
		if got := p.Terminates(name); got != want {
			t.Errorf("with --intercept terminates %q: %t", name, got)
		}
	}
	if len(p.Hooks("x.example")) != 1 || len(p.Hooks("")) != 1 {
		t.Error("a hook without hosts is about all")
	}
}

func TestTerminating(t *testing.T) {
	p, err := Compile(&api.Config{Network: api.Network{Splice: []string{"pinned.test"}}})
	if err != nil {
		t.Fatal(err)
	}
	also, err := p.Terminating([]string{"web.test", "*.example.com", "pinned.test"})
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]bool{"web.test": true, "a.example.com": true, "pinned.test": false, "other.test": false} {
		if got := also.Terminates(name); got != want {
			t.Errorf("%s: %t, want %t", name, got, want)
		}
		if p.Terminates(name) {
			t.Errorf("%s: the policy that it was made of has changed", name)
		}
	}
	if _, err := p.Terminating([]string{"a b"}); err == nil {
		t.Error("a host that is none is taken")
	}
}
