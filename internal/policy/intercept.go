package policy

import (
	"slices"

	"github.com/matchlock/matchlock/api"
)

// Terminates tells whether TLS on a flow with this name is terminated and looked into: everything is with --intercept,
// else what a secret or a hook needs. The empty name is a flow to an address.
func (p *Policy) Terminates(name string) bool {
	if p == nil || p.Spliced(name) {
		return false
	}
	return p.intercept || p.terminate.match(name) || len(p.Secrets(name)) > 0 || len(p.Hooks(name)) > 0
}

// Terminating returns p with TLS to more hosts terminated: to those of secrets that have no value any more, so that
// their placeholders are seen, and do not pass.
func (p *Policy) Terminating(hosts []string) (*Policy, error) {
	more, err := parsePatterns(hosts)
	if err != nil {
		return nil, err
	}
	also := *p
	also.terminate = slices.Concat(p.terminate, more)
	return &also, nil
}

// Spliced tells whether TLS on a flow with this name must be left alone.
func (p *Policy) Spliced(name string) bool { return p != nil && p.splice.match(name) }

// Scope returns whether a name is one that a secret may go to. Of an unknown secret none is.
func (p *Policy) Scope(name string) func(host string) bool {
	if p != nil {
		for _, s := range p.secrets {
			if s.name == name {
				return s.scope.match
			}
		}
	}
	return func(string) bool { return false }
}

// Secrets are the names of those that may go to a name, in the order in which they were given.
func (p *Policy) Secrets(host string) []string {
	if p == nil {
		return nil
	}
	var names []string
	for _, s := range p.secrets {
		if s.scope.match(host) {
			names = append(names, s.name)
		}
	}
	return names
}

// Hooks are those that are about a name, of both phases, in the order in which they were given. The empty name is a
// flow to an address, which hooks without a list of hosts are about.
func (p *Policy) Hooks(host string) []api.Hook {
	if p == nil {
		return nil
	}
	var hooks []api.Hook
	for _, h := range p.hooks {
		if len(h.hosts) == 0 || h.hosts.match(host) {
			hooks = append(hooks, h.Hook)
		}
	}
	return hooks
}
