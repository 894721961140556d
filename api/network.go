package api

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"path"
	"slices"
	"strconv"
	"strings"
)

// Network is what the guest can reach, and what it knows of hosts. The zero value
// has an interface and reaches nothing.
type Network struct {
	// None leaves the guest without an interface.
	None bool `json:"none,omitempty"`
	// Allow and Deny are the rules. What is denied is not allowed, whatever their
	// order; without a rule that allows it nothing passes.
	Allow []Rule `json:"allow,omitempty"`
	Deny  []Rule `json:"deny,omitempty"`
	// AllowPrivate lets names that are allowed have private addresses: RFC 1918,
	// those of carriers (RFC 6598) and unique local ones.
	AllowPrivate bool `json:"allow_private,omitempty"`
	// HostPorts are services on 127.0.0.1 of the host that the guest reaches at
	// host.matchlock.internal.
	HostPorts []HostPort `json:"host_ports,omitempty"`
	// Publish are ports of the host that lead to the guest's.
	Publish []Publish `json:"publish,omitempty"`
	// Resolve says what names are on the host's side.
	Resolve []HostIPMapping `json:"resolve,omitempty"`
	// AddHosts are lines of the guest's hosts file. They name the flows to those
	// addresses.
	AddHosts []HostIPMapping `json:"add_hosts,omitempty"`
	// DNS is the resolver that the host's side asks; empty is the host's own.
	DNS []netip.Addr `json:"dns,omitempty"`
	// DNSMode says what addresses the guest is given for names; empty is DNSSynthetic.
	DNSMode DNSMode `json:"dns_mode,omitempty"`
	// MTU of the guest's interface in bytes; 0 is 1500.
	MTU int `json:"mtu,omitempty"`

	// Intercept has all TLS terminated and looked into, not only where a secret or
	// a hook needs it.
	Intercept bool `json:"intercept,omitempty"`
	// Splice are names whose TLS is never terminated: of a client that knows its
	// server's certificate.
	Splice []string `json:"splice,omitempty"`
	// UpstreamCA are files of certificates, in PEM, that servers may be signed with
	// beside those that the host trusts.
	UpstreamCA []string `json:"upstream_ca,omitempty"`
	// UpstreamProxy is an http:// or https:// proxy through which all flows go, by
	// CONNECT with their names. What addresses they come to is its affair.
	UpstreamProxy string `json:"upstream_proxy,omitempty"`
	// Hooks judge and change requests and responses.
	Hooks []Hook `json:"hooks,omitempty"`
}

// DNSMode says what addresses the guest is given for names.
type DNSMode string

// The modes.
const (
	DNSSynthetic DNSMode = "synthetic" // one of its own for each name, of 198.18.0.0/15
	DNSReal      DNSMode = "real"      // the name's, which then lead there and nowhere else
)

// HostGateway is the name by which the guest reaches the ports of the host that
// Network.HostPorts lets it.
const HostGateway = "host.matchlock.internal"

// Rule says what hosts and ports it is about: TARGET[:PORT[-PORT]][/tcp|/udp].
type Rule struct {
	// Target is a name, "*.suffix" (what is below it at any depth, not itself), "*"
	// (every name and every public address), an address or a CIDR.
	Target string
	// First and Last are the ports from and to; both 0: all.
	First, Last uint16
	UDP         bool // else TCP
}

// HostPort is a service on 127.0.0.1 of the host, PORT[:GUESTPORT].
type HostPort struct {
	Port      uint16 // of the host
	GuestPort uint16 // at which the guest finds it; not 0
}

// Publish is a port of the host that leads to one of the guest,
// [IP:]HOSTPORT:GUESTPORT[/udp].
type Publish struct {
	IP        netip.Addr // of the host; the zero value is 127.0.0.1
	HostPort  uint16     // 0: any that is free
	GuestPort uint16
	UDP       bool // else TCP
}

// Secret is a credential that requests of the guest carry and the guest never
// sees: NAME@HOST[,HOST…][=SOURCE:WHERE]. The guest's environment variable Name
// holds a placeholder, which is replaced on its way to Hosts.
type Secret struct {
	Name string
	// Hosts are names, or "*.suffix". A secret lets the guest reach none of them.
	Hosts []string
	// Source says how Where leads to the value: SecretEnv, SecretFile or
	// SecretCommand. Without it the value is in the host's environment variable Name.
	Source SecretSource
	Where  string
}

// SecretSource says where a secret's value comes from.
type SecretSource string

// The sources.
const (
	SecretEnv     SecretSource = "env"  // an environment variable of the host
	SecretFile    SecretSource = "file" // a file, without its last line feed
	SecretCommand SecretSource = "cmd"  // what a command of /bin/sh prints, without its last line feed
)

// SecretPlaces say where in a request a secret may stand beside its headers:
// NAME=PLACE[,PLACE…] of header, query, path and body.
type SecretPlaces struct {
	Name              string
	Query, Path, Body bool
}

// Hook judges or changes the requests it is about, or their responses. An empty
// list of hosts or methods is about all. Requests are seen with placeholders in
// the place of secrets, responses with the secrets taken out.
type Hook struct {
	Name    string     `json:"name,omitempty"`
	Phase   HookPhase  `json:"phase,omitempty"`   // empty: HookBefore
	Hosts   []string   `json:"hosts,omitempty"`   // names, or "*.suffix"
	Methods []string   `json:"methods,omitempty"` // GET, POST …
	Path    string     `json:"path,omitempty"`    // glob of path.Match; "" is all, a last "/**" what is below
	Action  HookAction `json:"action"`

	SetHeaders    map[string]string `json:"set_headers,omitempty"` // of the request, or after it of the response
	DeleteHeaders []string          `json:"delete_headers,omitempty"`
	SetQuery      map[string]string `json:"set_query,omitempty"` // parameters of the request
	DeleteQuery   []string          `json:"delete_query,omitempty"`
	RewritePath   string            `json:"rewrite_path,omitempty"` // the whole path, in the place of the request's
	// Replace is done in the body, in the data of events where it is a stream of those.
	Replace []Replacement `json:"replace,omitempty"`

	// Socket is a unix socket of the host where HookAsk asks; see docs/network.md.
	Socket string `json:"socket,omitempty"`
	// TimeoutMS bounds HookAsk in milliseconds; 0 is 5000. An error, or no answer,
	// blocks.
	TimeoutMS int `json:"timeout_ms,omitempty"`
}

// HookPhase says when a hook is asked.
type HookPhase string

// HookAction says what a hook does.
type HookAction string

// Phases and actions.
const (
	HookBefore HookPhase = "before" // the request goes out
	HookAfter  HookPhase = "after"  // the response has come

	HookAllow  HookAction = "allow"  // and ask no further hook
	HookBlock  HookAction = "block"  // with a 403
	HookMutate HookAction = "mutate" // as the other fields say
	HookAsk    HookAction = "ask"    // who listens at Socket
)

// Replacement is a text in the place of another.
type Replacement struct {
	Find    string `json:"find"`
	Replace string `json:"replace"`
}

const ruleForm = "want TARGET[:PORT[-PORT]][/tcp|/udp]"

// UnmarshalText reads a rule. An IPv6 address with ports stands in brackets.
func (r *Rule) UnmarshalText(text []byte) error {
	rest := string(text)
	*r = Rule{}
	if strings.Contains(rest, "://") {
		return fmt.Errorf("rule %q: a URL; %s", text, ruleForm)
	}
	// A CIDR has a slash too.
	if i := strings.LastIndexByte(rest, '/'); i >= 0 {
		switch rest[i+1:] {
		case "udp":
			r.UDP, rest = true, rest[:i]
		case "tcp":
			rest = rest[:i]
		}
	}
	target, ports, hasPorts := rest, "", false
	if inner, ok := strings.CutPrefix(rest, "["); ok {
		if target, ports, ok = strings.Cut(inner, "]"); !ok {
			return fmt.Errorf("rule %q: a bracket is open; %s", text, ruleForm)
		}
		if ports != "" {
			if ports, hasPorts = strings.CutPrefix(ports, ":"); !hasPorts {
				return fmt.Errorf("rule %q: %q after the bracket; %s", text, ports, ruleForm)
			}
		}
	} else if strings.Count(rest, ":") == 1 { // else it is an IPv6 address, or none at all
		target, ports, hasPorts = strings.Cut(rest, ":")
	}
	r.Target = target
	if hasPorts {
		first, last, isRange := strings.Cut(ports, "-")
		if !isRange {
			last = first
		}
		var errs [2]error
		r.First, errs[0] = parsePort(first)
		r.Last, errs[1] = parsePort(last)
		if err := errors.Join(errs[:]...); err != nil || r.First > r.Last {
			return fmt.Errorf("rule %q: %q is no port or range of ports; %s", text, ports, ruleForm)
		}
	}
	if err := r.check(); err != nil {
		return fmt.Errorf("rule %q: %w; %s", text, err, ruleForm)
	}
	return nil
}

// ParseRules reads rules, each as UnmarshalText does, and reports every fault.
func ParseRules(texts ...string) ([]Rule, error) {
	rules, errs := make([]Rule, len(texts)), make([]error, len(texts))
	for i, text := range texts {
		errs[i] = rules[i].UnmarshalText([]byte(text))
	}
	return rules, errors.Join(errs...)
}

// check tells whether the target can be one. Names are normalised, and checked
// further, by package policy.
func (r *Rule) check() error {
	if (r.First == 0) != (r.Last == 0) || r.First > r.Last {
		return fmt.Errorf("ports %d-%d", r.First, r.Last)
	}
	if r.Target == "*" {
		return nil
	}
	if strings.Contains(r.Target, "/") {
		_, err := netip.ParsePrefix(r.Target)
		return err
	}
	if addr, err := netip.ParseAddr(r.Target); err == nil {
		if addr.Zone() != "" {
			return errors.New("an address with a zone")
		}
		return nil
	}
	return checkName(r.Target)
}

// IsAddress tells whether the target is an address or a CIDR.
func (r Rule) IsAddress() bool {
	_, err := netip.ParseAddr(r.Target)
	return err == nil || strings.Contains(r.Target, "/")
}

// checkName tells whether a name, or "*.suffix", can be one.
func checkName(pattern string) error {
	name := strings.TrimPrefix(pattern, "*.")
	switch trimmed := strings.TrimSuffix(name, "."); {
	case trimmed == "" || len(name) > 253:
		return errors.New("no host name")
	case strings.Contains(name, "*"):
		return errors.New("a star stands alone, or first before a dot")
	case strings.ContainsFunc(name, func(c rune) bool { return isControlOrBlank(c) || strings.ContainsRune(`/:@,[]\"'<>%`, c) }):
		return errors.New("no host name")
	case strings.Trim(trimmed, "0123456789.") == "":
		return errors.New("neither an address nor a name")
	}
	return nil
}

// String is the form that UnmarshalText reads.
func (r Rule) String() string {
	text := r.Target
	if r.First != 0 {
		if strings.Contains(text, ":") {
			text = "[" + text + "]"
		}
		text += ":" + strconv.Itoa(int(r.First))
		if r.Last != r.First {
			text += "-" + strconv.Itoa(int(r.Last))
		}
	}
	if r.UDP {
		text += "/udp"
	}
	return text
}

// MarshalText is String.
func (r Rule) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

func parsePort(text string) (uint16, error) {
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("port %q: want a number from 1 to 65535", text)
	}
	return uint16(n), nil
}

// UnmarshalText reads a service of the host, PORT[:GUESTPORT].
func (p *HostPort) UnmarshalText(text []byte) error {
	port, guest, both := strings.Cut(string(text), ":")
	if !both {
		guest = port
	}
	var errs [2]error
	p.Port, errs[0] = parsePort(port)
	p.GuestPort, errs[1] = parsePort(guest)
	if errors.Join(errs[:]...) != nil {
		return fmt.Errorf("host port %q: want PORT[:GUESTPORT]", text)
	}
	return nil
}

// MarshalText is the form that UnmarshalText reads.
func (p HostPort) MarshalText() ([]byte, error) {
	return fmt.Appendf(nil, "%d:%d", p.Port, p.GuestPort), nil
}

// UnmarshalText reads a published port, [IP:]HOSTPORT:GUESTPORT[/udp].
func (p *Publish) UnmarshalText(text []byte) error {
	*p = Publish{}
	fault := fmt.Errorf("published port %q: want [IP:]HOSTPORT:GUESTPORT[/udp]", text)
	rest, udp := strings.CutSuffix(string(text), "/udp")
	p.UDP = udp
	if !udp {
		rest = strings.TrimSuffix(rest, "/tcp")
	}
	i := strings.LastIndexByte(rest, ':')
	if i < 0 {
		return fault
	}
	var err error
	if p.GuestPort, err = parsePort(rest[i+1:]); err != nil {
		return fault
	}
	host := rest[:i]
	if i := strings.LastIndexByte(host, ':'); i >= 0 {
		ip := strings.TrimSuffix(strings.TrimPrefix(host[:i], "["), "]")
		if p.IP, err = netip.ParseAddr(ip); err != nil || p.IP.Zone() != "" {
			return fault
		}
		host = host[i+1:]
	}
	if host != "" && host != "0" {
		if p.HostPort, err = parsePort(host); err != nil {
			return fault
		}
	}
	return nil
}

// MarshalText is the form that UnmarshalText reads.
func (p Publish) MarshalText() ([]byte, error) {
	text := fmt.Sprintf("%d:%d", p.HostPort, p.GuestPort)
	if p.IP.IsValid() {
		text = netip.AddrPortFrom(p.IP, p.HostPort).String() + ":" + strconv.Itoa(int(p.GuestPort))
	}
	if p.UDP {
		text += "/udp"
	}
	return []byte(text), nil
}

// UnmarshalText reads a secret, NAME@HOST[,HOST…][=env:NAME|=file:FILE|=cmd:COMMAND].
func (s *Secret) UnmarshalText(text []byte) error {
	spec, source, hasSource := strings.Cut(string(text), "=")
	name, hosts, ok := strings.Cut(spec, "@")
	if !ok {
		return errors.New("secret: want NAME@HOST[,HOST…]") // what stands there may be the value
	}
	*s = Secret{Name: name, Hosts: strings.Split(hosts, ",")}
	if hasSource {
		kind, where, ok := strings.Cut(source, ":")
		if s.Source, s.Where = SecretSource(kind), where; !ok || !slices.Contains([]SecretSource{SecretEnv, SecretFile, SecretCommand}, s.Source) {
			return fmt.Errorf("secret %q: a value is not taken here; name where it is: env:NAME, file:FILE or cmd:COMMAND", name)
		}
	}
	return nil
}

// MarshalText is the form that UnmarshalText reads.
func (s Secret) MarshalText() ([]byte, error) {
	text := s.Name + "@" + strings.Join(s.Hosts, ",")
	if s.Source != "" {
		text += "=" + string(s.Source) + ":" + s.Where
	}
	return []byte(text), nil
}

// UnmarshalText reads the places of a secret, NAME=PLACE[,PLACE…].
func (p *SecretPlaces) UnmarshalText(text []byte) error {
	name, places, ok := strings.Cut(string(text), "=")
	*p = SecretPlaces{Name: name}
	for place := range strings.SplitSeq(places, ",") {
		switch place {
		case "header":
		case "query":
			p.Query = true
		case "path":
			p.Path = true
		case "body":
			p.Body = true
		default:
			ok = false
		}
	}
	if !ok {
		return fmt.Errorf("places of a secret %q: want NAME=header[,query][,path][,body]", text)
	}
	return nil
}

// MarshalText is the form that UnmarshalText reads.
func (p SecretPlaces) MarshalText() ([]byte, error) {
	text := p.Name + "=header"
	for _, place := range []struct {
		on   bool
		name string
	}{{p.Query, ",query"}, {p.Path, ",path"}, {p.Body, ",body"}} {
		if place.on {
			text += place.name
		}
	}
	return []byte(text), nil
}

// ParseIP reads an address without a zone.
func ParseIP(text string) (netip.Addr, error) {
	addr, err := netip.ParseAddr(text)
	if err != nil || addr.Zone() != "" {
		return netip.Addr{}, fmt.Errorf("%q is not an IP address", text)
	}
	return addr, nil
}

// AddNetwork adds what more says: its lists to the configuration's, and the rest in
// the place of what that has.
func (c *Config) AddNetwork(more Network) {
	n := &c.Network
	n.None = n.None || more.None
	n.AllowPrivate = n.AllowPrivate || more.AllowPrivate
	n.Intercept = n.Intercept || more.Intercept
	n.Allow, n.Deny = slices.Concat(n.Allow, more.Allow), slices.Concat(n.Deny, more.Deny)
	n.HostPorts, n.Publish = slices.Concat(n.HostPorts, more.HostPorts), slices.Concat(n.Publish, more.Publish)
	n.Resolve, n.AddHosts = slices.Concat(n.Resolve, more.Resolve), slices.Concat(n.AddHosts, more.AddHosts)
	n.DNS, n.Splice = slices.Concat(n.DNS, more.DNS), slices.Concat(n.Splice, more.Splice)
	n.UpstreamCA, n.Hooks = slices.Concat(n.UpstreamCA, more.UpstreamCA), slices.Concat(n.Hooks, more.Hooks)
	if more.DNSMode != "" {
		n.DNSMode = more.DNSMode
	}
	if more.MTU != 0 {
		n.MTU = more.MTU
	}
	if more.UpstreamProxy != "" {
		n.UpstreamProxy = more.UpstreamProxy
	}
}

func (c *Config) validateNetwork(v *faults) {
	if c.Hostname != "" && !isHostname(c.Hostname, maxHostname) {
		v.add("hostname %q: want up to %d letters, digits, '-', '.' and '_'", c.Hostname, maxHostname)
	}
	n := &c.Network
	for _, r := range slices.Concat(n.Allow, n.Deny) {
		if err := r.check(); err != nil {
			v.add("rule %q: %w", r, err)
		}
	}
	for _, hosts := range [][]HostIPMapping{n.AddHosts, n.Resolve} {
		for _, h := range hosts {
			if !isHostname(h.Host, 253) {
				v.add("host %q: not a host name", h.Host)
			}
			if addr, err := netip.ParseAddr(h.IP); err != nil || addr.Zone() != "" {
				v.add("host %q: %q is not an IP address", h.Host, h.IP)
			}
		}
	}
	taken := map[uint16]bool{}
	for _, p := range n.HostPorts {
		switch {
		case p.Port == 0 || p.GuestPort == 0:
			v.add("host port %d:%d: want ports from 1 to 65535", p.Port, p.GuestPort)
		case p.GuestPort == 53:
			v.add("host port %d:53: names are answered there", p.Port)
		case taken[p.GuestPort]:
			v.add("host port %d:%d: the guest's port is taken by another", p.Port, p.GuestPort)
		}
		taken[p.GuestPort] = true
	}
	for i, p := range n.Publish {
		switch same := func(o Publish) bool { return o.HostPort == p.HostPort && o.IP == p.IP && o.UDP == p.UDP }; {
		case p.GuestPort == 0:
			v.add("published port %d: none of the guest", p.HostPort)
		case p.HostPort != 0 && slices.ContainsFunc(n.Publish[:i], same):
			v.add("published port %d: stands there twice", p.HostPort)
		case p.UDP && n.None:
			v.add("published port %d/udp: there is no network", p.HostPort)
		}
	}
	for _, server := range n.DNS {
		if !server.IsValid() || server.Zone() != "" {
			v.add("DNS server %q: not an IP address", server)
		}
	}
	if n.DNSMode != "" && n.DNSMode != DNSSynthetic && n.DNSMode != DNSReal {
		v.add("DNS mode %q: neither synthetic nor real", n.DNSMode)
	}
	if n.MTU != 0 && (n.MTU < minMTU || n.MTU > maxMTU) {
		v.add("MTU %d: not between %d and %d", n.MTU, minMTU, maxMTU)
	}
	for _, name := range n.Splice {
		if err := checkName(name); err != nil {
			v.add("splice %q: %w", name, err)
		}
	}
	if n.UpstreamProxy != "" {
		if u, err := url.Parse(n.UpstreamProxy); err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
			v.add("upstream proxy: want http://HOST:PORT or https://HOST:PORT") // it may hold a password
		}
	}
	if n.None && (len(n.Allow)+len(n.Deny)+len(n.HostPorts)+len(n.Resolve)+len(n.Splice)+len(n.UpstreamCA)+len(n.Hooks)+len(c.Secrets) > 0 ||
		n.AllowPrivate || n.Intercept || n.UpstreamProxy != "") {
		v.add("no network: rules, secrets and the like have no place beside it")
	}
	for i := range n.Hooks {
		if err := n.Hooks[i].check(); err != nil {
			v.add("hook %q: %w", n.Hooks[i].Name, err)
		}
	}
}

func (h *Hook) check() error {
	if h.Phase != "" && h.Phase != HookBefore && h.Phase != HookAfter {
		return fmt.Errorf("phase %q: neither before nor after", h.Phase)
	}
	switch h.Action {
	case HookAllow, HookBlock, HookMutate:
	case HookAsk:
		if h.Socket == "" {
			return errors.New("asks, and no socket is named")
		}
	default:
		return fmt.Errorf("action %q: neither allow, block, mutate nor ask", h.Action)
	}
	for _, name := range h.Hosts {
		if err := checkName(name); err != nil {
			return fmt.Errorf("host %q: %w", name, err)
		}
	}
	if _, err := path.Match(strings.TrimSuffix(h.Path, "/**"), ""); err != nil {
		return fmt.Errorf("path %q: %w", h.Path, err)
	}
	for _, r := range h.Replace {
		if r.Find == "" || len(r.Find) > 4096 || len(r.Replace) > 65536 {
			return errors.New("a replacement finds up to 4096 bytes, and puts up to 65536 there")
		}
	}
	if h.TimeoutMS < 0 || h.TimeoutMS > 60_000 {
		return fmt.Errorf("timeout of %d ms: not between 0 and 60000", h.TimeoutMS)
	}
	return nil
}

func (c *Config) validateSecrets(v *faults) {
	known := map[string]bool{}
	for _, s := range c.Secrets {
		switch {
		case !isVariable(s.Name):
			v.add("secret %q: want the name of an environment variable", s.Name)
		case known[s.Name]:
			v.add("secret %q: stands there twice", s.Name)
		case s.Source != "" && s.Where == "":
			v.add("secret %q: no %s is named", s.Name, s.Source)
		}
		known[s.Name] = true
		if len(s.Hosts) == 0 {
			v.add("secret %q: no host is named", s.Name)
		}
		for _, host := range s.Hosts {
			if _, err := netip.ParseAddr(host); err == nil {
				v.add("secret %q: host %q is an address; a name is wanted, whose certificate can be checked", s.Name, host)
			} else if err := checkName(host); err != nil {
				v.add("secret %q: host %q: %w", s.Name, host, err)
			}
		}
		if _, ok := c.Env[s.Name]; ok {
			v.add("secret %q: the environment has a variable of that name too", s.Name)
		}
	}
	for _, p := range c.SecretIn {
		if !known[p.Name] {
			v.add("places of secret %q: there is none of that name", p.Name)
		}
	}
}

// isVariable tells whether a name is one that every shell takes.
func isVariable(name string) bool {
	return name != "" && len(name) <= 128 && strings.Trim(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_") == "" &&
		!strings.Contains("0123456789", name[:1])
}
