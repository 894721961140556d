package api

import (
	"encoding"
	"strings"
	"testing"
)

// TestNetworkTexts reads each form and writes it again, as want.
func TestNetworkTexts(t *testing.T) {
	type text interface {
		encoding.TextMarshaler
		encoding.TextUnmarshaler
	}
	for _, tt := range []struct {
		into       text
		text, want string
	}{
		{new(Rule), "pypi.org", "pypi.org"},
		{new(Rule), "*.pypi.org:443", "*.pypi.org:443"},
		{new(Rule), "*:8000-8010/tcp", "*:8000-8010"},
		{new(Rule), "10.0.0.0/8:53/udp", "10.0.0.0/8:53/udp"},
		{new(Rule), "10.1.2.3", "10.1.2.3"},
		{new(Rule), "fd00::/8", "fd00::/8"},
		{new(Rule), "::1/udp", "::1/udp"},
		{new(Rule), "[fd00::1]:22", "[fd00::1]:22"},
		{new(Rule), "bücher.example", "bücher.example"}, // policy normalises
		{new(HostPort), "5432", "5432:5432"},
		{new(HostPort), "5432:15432", "5432:15432"},
		{new(Publish), "8080:80", "8080:80"},
		{new(Publish), ":80", "0:80"},
		{new(Publish), "0.0.0.0:8080:80/udp", "0.0.0.0:8080:80/udp"},
		{new(Publish), "[::1]:8080:80", "[::1]:8080:80"},
		{new(Secret), "TOKEN@api.example", "TOKEN@api.example"},
		{new(Secret), "T@a.example,*.b.example=file:/run/t", "T@a.example,*.b.example=file:/run/t"},
		{new(Secret), "T@a.example=cmd:pass show x=y", "T@a.example=cmd:pass show x=y"},
		{new(SecretPlaces), "T=header", "T=header"},
		{new(SecretPlaces), "T=body,query", "T=header,query,body"},
	} {
		if err := tt.into.UnmarshalText([]byte(tt.text)); err != nil {
			t.Errorf("%T %q: %v", tt.into, tt.text, err)
			continue
		}
		if got, _ := tt.into.MarshalText(); string(got) != tt.want {
			t.Errorf("%T %q is written as %q, want %q", tt.into, tt.text, got, tt.want)
		}
	}
	for _, tt := range []struct {
		into text
		text string
	}{
		{new(Rule), ""}, {new(Rule), ":443"}, {new(Rule), "a:0"}, {new(Rule), "a:65536"}, {new(Rule), "a:9-8"}, {new(Rule), "a:"},
		{new(Rule), "a/icmp"}, {new(Rule), "http://a"}, {new(Rule), "a.*.b"}, {new(Rule), "*a"}, {new(Rule), "[::1"}, {new(Rule), "[::1]x"},
		{new(Rule), "fe80::1%eth0"}, {new(Rule), "10.0.0.0/33"}, {new(Rule), "1.2.3"}, {new(Rule), "a b"}, {new(Rule), "user@a"}, {new(Rule), "*."},
		{new(HostPort), ""}, {new(HostPort), "1:2:3"}, {new(HostPort), "0"},
		{new(Publish), "80"}, {new(Publish), "a:80"}, {new(Publish), "1.2.3:1:2"}, {new(Publish), "1:0"}, {new(Publish), "1:2/sctp"},
		{new(Secret), "TOKEN"}, {new(Secret), "TOKEN=value"}, {new(Secret), "T@a=value"}, {new(SecretPlaces), "T"}, {new(SecretPlaces), "T=cookie"},
	} {
		if err := tt.into.UnmarshalText([]byte(tt.text)); err == nil {
			t.Errorf("%T %q was taken", tt.into, tt.text)
		} else if _, isSecret := tt.into.(*Secret); isSecret && strings.Contains(err.Error(), "value\"") {
			t.Errorf("%q: the error repeats what may be a value: %v", tt.text, err)
		}
	}
}

func FuzzRule(f *testing.F) {
	for _, text := range []string{"*.a:1-2/udp", "[::1]:22", "10.0.0.0/8:53/udp", "*"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		var r, again Rule
		if r.UnmarshalText([]byte(text)) != nil {
			return
		}
		if err := again.UnmarshalText([]byte(r.String())); err != nil || again != r {
			t.Errorf("%q is %+v, written as %q, which is %+v, %v", text, r, r, again, err)
		}
	})
}

func TestValidateNetwork(t *testing.T) {
	rule := func(text string) (r Rule) {
		if err := r.UnmarshalText([]byte(text)); err != nil {
			t.Fatal(err)
		}
		return r
	}
	for want, change := range map[string]func(*Config){
		"no network: rules":     func(c *Config) { c.Network.None, c.Network.Allow = true, []Rule{rule("a.example")} },
		`secret "": want the`:   func(c *Config) { c.Secrets = []Secret{{Name: "", Hosts: []string{"a"}}, {Name: "T", Hosts: nil}} },
		`secret "T": no host`:   func(c *Config) { c.Secrets = []Secret{{Name: "T"}} },
		`is an address; a name`: func(c *Config) { c.Secrets = []Secret{{Name: "T", Hosts: []string{"10.0.0.1"}}} },
		`secret "T": the env`: func(c *Config) {
			c.Secrets, c.Env = []Secret{{Name: "T", Hosts: []string{"a"}}}, map[string]string{"T": "x"}
		},
		`places of secret "U"`: func(c *Config) { c.SecretIn = []SecretPlaces{{Name: "U"}} },
		"MTU 100":              func(c *Config) { c.Network.MTU = 100 },
		`DNS mode "x"`:         func(c *Config) { c.Network.DNSMode = "x" },
		"upstream proxy":       func(c *Config) { c.Network.UpstreamProxy = "socks5://p" },
		"published port 80: stan": func(c *Config) {
			c.Network.Publish = []Publish{{HostPort: 80, GuestPort: 1}, {HostPort: 80, GuestPort: 2}}
		},
		`hook "h": action ""`: func(c *Config) { c.Network.Hooks = []Hook{{Name: "h"}} },
		`hook "h": asks`:      func(c *Config) { c.Network.Hooks = []Hook{{Name: "h", Action: HookAsk}} },
	} {
		c := Config{Image: "i"}
		change(&c)
		if err := c.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q in it", err, want)
		}
	}
	c := Config{Image: "i"}
	c.Network.Publish = []Publish{{GuestPort: 1}, {GuestPort: 2}}
	c.Network.Allow = []Rule{rule("*")}
	c.Secrets = []Secret{{Name: "T", Hosts: []string{"*.a.example"}}}
	if err := c.Validate(); err != nil {
		t.Errorf("what is right: %v", err)
	}
}
