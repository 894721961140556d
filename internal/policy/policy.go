package policy

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/matchlock/matchlock/api"
)

// A Policy judges what the guest wants. It never changes, and any number of goroutines may ask it. The zero value and
// nil refuse everything.
type Policy struct {
	allow, deny  *rules
	allowPrivate bool
	hostPorts    []api.HostPort
	resolve      map[string][]netip.Addr
	addHosts     map[string][]netip.Addr

	intercept bool
	terminate patterns // beside what secrets and hooks need
	splice    patterns
	secrets   []secret
	hooks     []hook
	warnings  []string
}

type secret struct {
	name  string
	scope patterns
}

type hook struct {
	api.Hook
	hosts patterns // none: all
}

// A Flow is what the guest opens: a TCP connection, or datagrams between two ports.
type Flow struct {
	// Name is what the guest asked for. Empty: it gave an address.
	Name string
	// Addr is what the guest dialled. A synthetic one says nothing beside a name.
	Addr netip.Addr
	Port uint16
	UDP  bool // else TCP
}

// A Verdict is an answer with its reason.
type Verdict struct {
	Allow bool `json:"allow"`
	// Rule is the text of what decided: "allow pypi.org:443", "deny 10.0.0.0/8", "host-port 5432:5432",
	// "resolve api.test:127.0.0.1", "add-host db:10.0.0.1", "allow-private". Empty: nothing did, see Reason.
	Rule   string `json:"rule,omitempty"`
	Reason string `json:"reason,omitempty"` // a phrase; empty where it is allowed
	// Hint is the flag that would allow it: "--allow-host pypi.org:443". Empty where none would.
	Hint string `json:"hint,omitempty"`
}

// A Fault is one thing that is wrong with a configuration.
type Fault struct {
	Err error
	Fix string // the flag that mends it, or ""
}

func (e *Fault) Error() string { return e.Err.Error() }
func (e *Fault) Unwrap() error { return e.Err }

// Hint is the way out.
func (e *Fault) Hint() string { return e.Fix }

// Compile makes the policy that c.Network and c.Secrets say. The error holds every fault, as errors.Join does; each that
// has a way out is a *Fault. What c points to must not change afterwards. A host of a secret that no rule allows is a
// fault, but for secrets in known: those of a sandbox that runs, or has run, whose rules have become fewer.
func Compile(c *api.Config, known ...string) (*Policy, error) {
	n := &c.Network
	if n.None {
		return &Policy{}, nil
	}
	var faults []error
	fault := func(err error) { faults = append(faults, err) }
	p := &Policy{
		allow: compileRules("allow", n.Allow, fault), deny: compileRules("deny", n.Deny, fault),
		allowPrivate: n.AllowPrivate, hostPorts: slices.Clone(n.HostPorts), intercept: n.Intercept,
		resolve: addresses(n.Resolve, fault), addHosts: addresses(n.AddHosts, fault),
	}
	for name, addrs := range p.addHosts {
		for _, addr := range addrs {
			if Synthetic(addr) {
				fault(fmt.Errorf("host %q: %s is of the range from which names are given addresses", name, addr))
			}
		}
	}
	var err error
	if p.splice, err = parsePatterns(n.Splice); err != nil {
		fault(fmt.Errorf("splice: %w", err))
	}
	for i := range n.Hooks {
		hosts, err := parsePatterns(n.Hooks[i].Hosts)
		if err != nil {
			fault(fmt.Errorf("hook %q: %w", n.Hooks[i].Name, err))
		}
		p.hooks = append(p.hooks, hook{n.Hooks[i], hosts})
	}
	for _, s := range c.Secrets {
		scope, err := parsePatterns(s.Hosts)
		if err != nil {
			fault(fmt.Errorf("secret %q: %w", s.Name, err))
		} else if len(scope) == 0 {
			fault(fmt.Errorf("secret %q: no host is named", s.Name))
		}
		p.secrets = append(p.secrets, secret{s.Name, scope})
	}
	p.checkSecrets(known, fault)
	p.checkSpliced(fault)
	p.warn()
	if len(faults) > 0 {
		return nil, errors.Join(faults...)
	}
	return p, nil
}

func addresses(mappings []api.HostIPMapping, fault func(error)) map[string][]netip.Addr {
	m := map[string][]netip.Addr{}
	for _, h := range mappings {
		name, err := Normalize(h.Host)
		if err != nil {
			fault(err)
			continue
		}
		if name == api.HostGateway {
			fault(&Fault{fmt.Errorf("host %q: it is where the host's own ports are", h.Host), "--host-port PORT"})
			continue
		}
		addr, err := netip.ParseAddr(h.IP)
		if err != nil || addr.Zone() != "" {
			fault(fmt.Errorf("host %q: %q is not an IP address", h.Host, h.IP))
			continue
		}
		m[name] = append(m[name], addr.Unmap())
	}
	return m
}

// checkSecrets finds secrets that no request could carry. A secret grants nothing, so its hosts need rules.
func (p *Policy) checkSecrets(known []string, fault func(error)) {
	for _, s := range p.secrets {
		for _, host := range s.scope {
			if !p.reachable(host) && !slices.Contains(known, s.name) {
				fault(&Fault{fmt.Errorf("secret %q: no rule allows %s", s.name, host), "--allow-host " + host.String() + ":443"})
			}
		}
	}
}

// checkSpliced finds secrets and hooks that would be passed over in silence, since --splice keeps us out.
func (p *Policy) checkSpliced(fault func(error)) {
	for _, spliced := range p.splice {
		check := func(what string, hosts patterns) {
			for _, host := range hosts {
				if host.meets(spliced) {
					fault(&Fault{fmt.Errorf("%s: it needs to look into TLS to %s, which --splice %s forbids", what, host, spliced),
						"leave out --splice " + spliced.String()})
				}
			}
		}
		for _, s := range p.secrets {
			check(fmt.Sprintf("secret %q", s.name), s.scope)
		}
		for _, h := range p.hooks {
			check(fmt.Sprintf("hook %q", h.Name), h.hosts)
		}
	}
}

// reachable tells whether some name that the pattern matches may be reached over TCP.
func (p *Policy) reachable(host pattern) bool {
	if !host.below {
		return p.mayReach(host.name, false) != nil || host.name == api.HostGateway && p.Name(host.name).Allow
	}
	// A name deep enough that no rule about names is closer to it than the pattern itself, and each that a rule is about.
	if p.mayReach("_."+host.name, false) != nil {
		return true
	}
	for _, q := range p.allow.patterns {
		name := q.name
		if q.below {
			name = "_." + name
		}
		if host.match(name) && p.mayReach(name, false) != nil {
			return true
		}
	}
	return false
}

func (p *Policy) warn() {
	for _, s := range p.secrets {
		for _, host := range s.scope {
			if host.below {
				p.warnings = append(p.warnings, fmt.Sprintf("secret %q goes to every name below %s", s.name, host.name))
			}
		}
	}
	for _, r := range p.allow.within {
		if !r.inSpecial && r.prefix.Bits() < 8 {
			p.warnings = append(p.warnings, fmt.Sprintf("rule %q opens the public addresses in it; private and other special ranges need a rule of their own", r.text))
		}
	}
	opensUDP := false
	for _, r := range p.allow.list {
		if r.udp && r.first == 443 && r.last == 443 {
			p.warnings = append(p.warnings, fmt.Sprintf("rule %q opens nothing: QUIC is refused, so that clients fall back to TCP", r.text))
			continue
		}
		opensUDP = opensUDP || r.udp
	}
	for _, r := range p.allow.exact[api.HostGateway] {
		p.warnings = append(p.warnings, fmt.Sprintf("rule %q opens nothing: ports of the host are opened by --host-port", r.text))
	}
	for _, r := range p.deny.list {
		if opensUDP && !r.udp {
			p.warnings = append(p.warnings, fmt.Sprintf("rule %q is about TCP, and other rules allow UDP: /udp denies that", r.text))
		}
	}
	slices.Sort(p.warnings)
}

// Warnings are what the user should know of a policy that is as it was written, and may not be as it was meant.
func (p *Policy) Warnings() []string { return slices.Clone(p.warnings) }

func (p pattern) String() string {
	if p.below {
		return "*." + p.name
	}
	return p.name
}

func join(host string, port uint16) string {
	if strings.Contains(host, ":") {
		return fmt.Sprintf("[%s]:%d", host, port)
	}
	return fmt.Sprintf("%s:%d", host, port)
}
