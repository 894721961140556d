package policy

import (
	"strings"
	"testing"
)

func TestExplain(t *testing.T) {
	p := compile(t, "allow *.example.com:443", "allow plain.example:80", "allow api.test:8443", "allow bad.test", "deny b.example.com",
		"resolve api.test:127.0.0.1", "add-host db:10.0.0.5", "allow 10.0.0.5:5432", "host-port 5432", "secret T@api.example.com",
		"hook api.example.com,plain.example", "splice pin.example.com", "resolve bad.test:169.254.169.254", "deny 169.254.0.0/16")
	for _, tt := range []struct {
		target, protocol, rule string
		allow                  bool
		more                   string // terminated, spliced, secret T, hook h
	}{
		{"https://api.example.com/v1?q", "https", "allow *.example.com:443", true, "terminated secret hook"},
		{"API.example.com", "tcp", "allow *.example.com:443", true, "terminated secret hook"},
		{"https://pin.example.com", "https", "allow *.example.com:443", true, "spliced"},
		{"c.example.com:443", "tcp", "allow *.example.com:443", true, ""},
		{"http://api.example.com", "http", "", false, "hook"},
		{"http://plain.example/x", "http", "allow plain.example:80", true, "hook"},
		{"b.example.com", "tcp", "deny b.example.com", false, ""},
		{"api.test:8443/tcp", "tcp", "allow api.test:8443", true, ""},
		{"bad.test:80", "tcp", "allow bad.test", false, ""},
		{"db:5432", "tcp", "allow 10.0.0.5:5432", true, ""},
		{"db:5433", "tcp", "", false, ""},
		{"10.0.0.5:5432", "tcp", "allow 10.0.0.5:5432", true, ""},
		{"[::1]:80", "tcp", "", false, ""},
		{"::1", "tcp", "", false, ""},
		{"1.1.1.1:53/udp", "udp", "", false, ""},
		{"host.matchlock.internal:5432", "tcp", "host-port 5432:5432", true, ""},
		{"ssh://c.example.com", "tcp", "", false, ""},
	} {
		e, err := p.Explain(tt.target)
		if err != nil {
			t.Errorf("%s: %v", tt.target, err)
			continue
		}
		var more []string
		if e.Terminated {
			more = append(more, "terminated")
		}
		if e.Spliced {
			more = append(more, "spliced")
		}
		if len(e.Secrets) > 0 {
			more = append(more, "secret")
		}
		if len(e.Hooks) > 0 {
			more = append(more, "hook")
		}
		if got := strings.Join(more, " "); e.Protocol != tt.protocol || e.Flow.Rule != tt.rule || e.Allow != tt.allow || got != tt.more {
			t.Errorf("%s: %+v, %q, want %s, rule %q, %t, %q", tt.target, e, got, tt.protocol, tt.rule, tt.allow, tt.more)
		}
	}
	for _, target := range []string{"", "https://", "ftp://a.example", "a.example:0", "a.example:x", "127.1", "a b", "https://[::1%25eth0]/", "fe80::1%eth0"} {
		if e, err := p.Explain(target); err == nil {
			t.Errorf("%q: %+v", target, e)
		}
	}
	if e, err := new(Policy).Explain("a.example"); err != nil || e.Allow {
		t.Errorf("without rules: %+v, %v", e, err)
	}
}
