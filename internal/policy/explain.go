package policy

import (
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/matchlock/matchlock/api"
)

// An Explanation says what would become of a flow, and why.
type Explanation struct {
	Name     string `json:"name,omitempty"`    // normalised
	Address  string `json:"address,omitempty"` // where no name is given
	Port     uint16 `json:"port"`
	Protocol string `json:"protocol"` // tcp, udp; http, https where it is known
	Allow    bool   `json:"allow"`
	// Resolved is whether the name is; nil without one.
	Resolved *Verdict `json:"resolved,omitempty"`
	Flow     Verdict  `json:"flow"`
	// Dials are the addresses that are known beforehand, of --resolve, --add-host and --host-port, or the one given.
	// Others are judged when they are dialled.
	Dials []Dialled `json:"dials,omitempty"`
	// Terminated is whether TLS is looked into, Spliced whether that was forbidden.
	Terminated bool     `json:"terminated"`
	Spliced    bool     `json:"spliced"`
	Secrets    []string `json:"secrets,omitempty"` // that would be put in
	Hooks      []string `json:"hooks,omitempty"`   // that would be asked
}

// Dialled is an address with its verdict.
type Dialled struct {
	Address string  `json:"address"`
	Verdict Verdict `json:"verdict"`
}

// Explain says what would become of a URL, or of HOST[:PORT][/tcp|/udp], where PORT is 443 if it is missing.
func (p *Policy) Explain(target string) (Explanation, error) {
	f, protocol, err := parseTarget(target)
	if err != nil {
		return Explanation{}, fmt.Errorf("%q: %w", target, err)
	}
	if addrs := p.known(f); f.Name != "" && f.Name != api.HostGateway && len(addrs) > 0 && len(p.resolve[f.Name]) == 0 {
		f.Addr = addrs[0] // the guest's hosts file has it
	}
	e := Explanation{Name: f.Name, Port: f.Port, Protocol: protocol, Flow: p.Flow(f)}
	e.Allow = e.Flow.Allow
	if f.Name != "" {
		v := p.Name(f.Name)
		e.Resolved, e.Allow = &v, e.Allow && v.Allow
	} else {
		e.Address = f.Addr.String()
	}
	for _, addr := range p.known(f) {
		e.Dials = append(e.Dials, Dialled{addr.String(), p.Dial(f, addr)})
	}
	if len(e.Dials) > 0 && !slices.ContainsFunc(e.Dials, func(d Dialled) bool { return d.Verdict.Allow }) {
		e.Allow = false
	}
	e.Spliced = p.Spliced(f.Name)
	if f.UDP {
		return e, nil
	}
	e.Terminated = p.Terminates(f.Name) && protocol != "http"
	if e.Terminated || protocol == "http" {
		for i, h := range p.Hooks(f.Name) {
			if h.Name == "" {
				h.Name = "#" + strconv.Itoa(i+1)
			}
			e.Hooks = append(e.Hooks, h.Name)
		}
	}
	if e.Terminated {
		e.Secrets = p.Secrets(f.Name)
	}
	return e, nil
}

// known are the addresses of a flow that need no resolver.
func (p *Policy) known(f Flow) []netip.Addr {
	switch {
	case p.sealed():
		return nil
	case f.Name == "":
		return []netip.Addr{f.Addr}
	case f.Name == api.HostGateway:
		return []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1})}
	case len(p.resolve[f.Name]) > 0:
		return p.resolve[f.Name]
	}
	return p.addHosts[f.Name]
}

func parseTarget(target string) (Flow, string, error) {
	f, protocol := Flow{Port: 443}, "tcp"
	host := target
	if strings.Contains(target, "://") {
		u, err := url.Parse(target)
		if err != nil {
			return f, "", fmt.Errorf("no URL")
		}
		switch protocol = u.Scheme; protocol {
		case "https", "wss":
			protocol = "https"
		case "http", "ws":
			protocol, f.Port = "http", 80
		case "ssh":
			protocol, f.Port = "tcp", 22
		default:
			if protocol = "tcp"; u.Port() == "" {
				return f, "", fmt.Errorf("which port %s: has is not known; name it", u.Scheme)
			}
		}
		if host = u.Host; host == "" {
			return f, "", fmt.Errorf("no host")
		}
	} else if rest, ok := strings.CutSuffix(target, "/udp"); ok {
		host, protocol, f.UDP = rest, "udp", true
	} else {
		host = strings.TrimSuffix(target, "/tcp")
	}
	if addr, err := netip.ParseAddr(strings.Trim(host, "[]")); err == nil && addr.Zone() == "" {
		f.Addr = addr.Unmap()
		return f, protocol, nil
	}
	if i := strings.LastIndexByte(host, ':'); i >= 0 {
		port, err := strconv.ParseUint(host[i+1:], 10, 16)
		if err != nil || port == 0 {
			return f, "", fmt.Errorf("%q is no port", host[i+1:])
		}
		f.Port, host = uint16(port), host[:i]
	}
	if addr, err := netip.ParseAddr(strings.Trim(host, "[]")); err == nil && addr.Zone() == "" {
		f.Addr = addr.Unmap()
		return f, protocol, nil
	}
	var err error
	f.Name, err = Normalize(host)
	return f, protocol, err
}
