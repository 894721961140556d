package sandbox

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"sync"

	"github.com/matchlock/matchlock/api"
	"github.com/matchlock/matchlock/internal/hostfs"
	"github.com/matchlock/matchlock/internal/intercept"
	"github.com/matchlock/matchlock/internal/names"
	"github.com/matchlock/matchlock/internal/netstack"
	"github.com/matchlock/matchlock/internal/policy"
	"github.com/matchlock/matchlock/internal/qemu"
	"github.com/matchlock/matchlock/internal/secret"
	"github.com/matchlock/matchlock/internal/state"
)

// The guest's network. It is its own, so that the same addresses serve all.
var (
	gateway      = netip.MustParseAddr("192.168.100.1")
	subnet       = netip.PrefixFrom(gateway, 24)
	guestAddress = netip.MustParseAddr("192.168.100.2")
)

// network is all that is at the host's end of the guest's link.
type network struct {
	config  api.Config // whose rules and secrets hold at present; guarded by mu
	names   *names.Server
	flows   *intercept.Interceptor
	secrets *secret.Set
	ca      *intercept.CA
	events  *eventLog
	stack   *netstack.Stack // nil until the link is there

	mu     sync.Mutex
	policy *policy.Policy
	// placeholders are those of all secrets that the guest has ever been told of.
	placeholders map[string]string // not changed any more
	// scopes are their hosts, as they were when they last had a value. Not changed any more.
	scopes map[string][]string
	values map[string]secret.Value
}

// networkName is the file in a sandbox's folder that has what of its network
// outlives a run.
const networkName = "network.json"

// networkRecord is what of a network outlives a run of its sandbox, or goes on in
// a copy: programs keep addresses, and secrets' placeholders.
type networkRecord struct {
	Names        json.RawMessage   `json:"names"`                  // names.Table, as it was
	Placeholders map[string]string `json:"placeholders,omitempty"` // by the secrets' names
	// Scopes are the hosts of secrets by their names: of one that has no value any
	// more, too, whose placeholder must not pass there unseen.
	Scopes map[string][]string `json:"scopes,omitempty"`
	// CA is of a copy, whose programs trust it already; never in a file that leaves
	// this host.
	CA []byte `json:"ca,omitempty"`
	// Connections are those that programs in a copy take for theirs.
	Connections []netstack.Connection `json:"connections,omitempty"`
}

// openNetwork makes ready all but the link: what can be wrong with rules and
// secrets is told before anything boots. past is what a former run or another
// sandbox has left, given the values that are known already.
func openNetwork(ctx context.Context, config *api.Config, past networkRecord, given map[string]secret.Value, events *eventLog, o Options) (n *network, err error) {
	n = &network{config: *config, events: events, placeholders: map[string]string{}, scopes: map[string][]string{}, values: map[string]secret.Value{}}
	maps.Copy(n.placeholders, past.Placeholders)
	maps.Copy(n.scopes, past.Scopes)
	known := slices.Collect(maps.Keys(n.scopes))
	for _, s := range config.Secrets {
		n.scopes[s.Name] = s.Hosts
	}
	if n.policy, err = n.compile(config, known); err != nil {
		return nil, err
	}
	secrets, err := n.readSecrets(ctx, given)
	if err != nil {
		return nil, err
	}
	if n.secrets, err = secret.NewSet(secrets); err != nil {
		return nil, err
	}
	if past.CA != nil {
		n.ca, err = intercept.ParseCA(past.CA)
	} else {
		n.ca, err = intercept.NewCA()
	}
	if err != nil {
		return nil, err
	}
	table := names.NewTable()
	if past.Names != nil {
		if err := json.Unmarshal(past.Names, table); err != nil {
			return nil, fmt.Errorf("names that the guest knows: %w", err)
		}
	}
	if err := nameHosts(&config.Network, table); err != nil {
		return nil, err
	}
	resolver, err := names.NewResolver(&config.Network)
	if err != nil {
		return nil, err
	}
	options := intercept.Options{
		Policy: n.policy, Names: table, Resolver: resolver, Secrets: n.secrets, CA: n.ca, Gateway: gateway,
		Hooks: config.Network.Hooks, Callbacks: callbacks(o.Hooks), Event: events.add, Logger: o.Logger,
	}
	if options.UpstreamRoots, err = upstreamRoots(config.Network.UpstreamCA); err != nil {
		return nil, err
	}
	if proxy := config.Network.UpstreamProxy; proxy != "" {
		if options.UpstreamProxy, err = url.Parse(proxy); err != nil {
			return nil, errors.New("upstream proxy: not a URL") // it may hold a password
		}
	}
	if n.flows, err = intercept.New(options); err != nil {
		return nil, err
	}
	n.names = &names.Server{
		Table: table, Mode: config.Network.DNSMode, Resolver: resolver, Event: events.add,
		Permit: func(name string) policy.Verdict { return n.current().Name(name) },
	}
	return n, nil
}

// openNetwork is the supervisor's; again says that the sandbox has run before.
func (s *supervisor) openNetwork(ctx context.Context, again bool) (err error) {
	if s.config.Network.None {
		return nil
	}
	var past networkRecord
	var given map[string]secret.Value
	switch {
	case s.origin != nil && s.origin.record.Network != nil:
		past, given = *s.origin.record.Network, s.origin.values
	case again:
		if err := hostfs.ReadRecord(s.dir.Path(networkName), &past); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("network of the former run: %w", err) // else a name could get another's address
		}
	}
	o := s.options
	o.Logger = s.log
	if s.network, err = openNetwork(ctx, &s.config, past, given, s.events, o); err != nil {
		return err
	}
	for _, warning := range s.network.policy.Warnings() {
		s.log.Warn(warning)
	}
	if s.config.Network.UpstreamProxy != "" {
		s.log.Warn("connections go through a proxy, which resolves their names and judges the addresses")
	}
	s.unwind.push(func() error {
		err := s.network.close()
		if !s.goes() {
			err = errors.Join(err, s.network.keep(s.dir))
		}
		return err
	})
	if s.dir.Record().AutoRemove {
		return nil // it is not started again, however it ends
	}
	return s.network.keep(s.dir)
}

// attachNetwork serves the machine's link, from before its guest runs until after.
func (s *supervisor) attachNetwork() error {
	if s.network == nil {
		return s.publish() // by the guest's loopback
	}
	link, err := s.machine.NetworkFD()
	if err == nil {
		err = s.network.attach(s.life, link, s.config.Network.MTU, s.log)
	}
	if err != nil {
		return err
	}
	return s.publish()
}

// goOn tells a guest that was copied that its connections are not there any more.
func (n *network) goOn(past *networkRecord) {
	if len(past.Connections) == 0 {
		return
	}
	n.stack.Reset(past.Connections)
	n.events.add(api.Event{Kind: api.EventFlow, Verdict: api.Failed, Reason: fmt.Sprintf("%d connections of the sandbox that this one goes on from are cut", len(past.Connections))})
}

// nameHosts gives names to the addresses that the guest does not have from its
// queries.
func nameHosts(c *api.Network, table *names.Table) error {
	if len(c.HostPorts) > 0 {
		table.Fix(api.HostGateway, gateway)
	}
	for _, h := range c.AddHosts {
		name, err := policy.Normalize(h.Host)
		if err != nil {
			return fmt.Errorf("host %q: %w", h.Host, err)
		}
		addr, err := netip.ParseAddr(h.IP)
		if err != nil {
			return fmt.Errorf("host %q: %w", h.Host, err)
		}
		table.Fix(name, addr)
	}
	return nil
}

// maxUpstreamCA bounds a file of certificates, in bytes.
const maxUpstreamCA = 4 << 20

// upstreamRoots are the host's, and those in files.
func upstreamRoots(files []string) (*x509.CertPool, error) {
	if len(files) == 0 {
		return nil, nil
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		pool = x509.NewCertPool() // a host without any
	}
	for _, path := range files {
		pem, err := hostfs.ReadLimited(path, maxUpstreamCA)
		if err != nil {
			return nil, fmt.Errorf("upstream CA: %w", err)
		}
		if !pool.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("upstream CA %q: no certificate in it", path)
		}
	}
	return pool, nil
}

// compile is policy.Compile, with TLS looked into wherever a secret of the guest
// went, whether or not it has a value now.
func (n *network) compile(config *api.Config, known []string) (*policy.Policy, error) {
	p, err := policy.Compile(config, known...)
	if err != nil {
		return nil, err
	}
	return p.Terminating(slices.Concat(slices.Collect(maps.Values(n.scopes))...))
}

func (n *network) current() *policy.Policy {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.policy
}

// attach has the stack serve the host end of the link, which it takes over.
func (n *network) attach(ctx context.Context, link, mtu int, log *slog.Logger) (err error) {
	_, flows := descriptors()
	n.stack, err = netstack.New(ctx, netstack.Config{
		Link: os.NewFile(uintptr(link), "link"), Gateway: subnet, Guest: guestAddress, GuestMAC: qemu.GuestMAC(), MTU: mtu, Logger: log,
		Limits: netstack.Limits{Flows: flows},
	}, netstack.Handler{
		TCP:  func(ctx context.Context, f *netstack.TCPFlow) { n.flows.TCP(ctx, tcpFlow{f}) },
		UDP:  func(ctx context.Context, f *netstack.UDPFlow) { n.flows.UDP(ctx, udpFlow{f}) },
		DNS:  n.names.Answer,
		Note: n.events.note,
	})
	return err
}

// close ends all flows.
func (n *network) close() error {
	err := n.flows.Close()
	if n.stack != nil {
		err = errors.Join(err, n.stack.Close())
	}
	return err
}

// record is what outlives the run; with forCopy what goes on in a copy.
func (n *network) record(forCopy bool) (r networkRecord, err error) {
	if r.Names, err = json.Marshal(n.names.Table); err == nil && forCopy {
		r.CA, err = n.ca.Marshal()
	}
	r.Placeholders, r.Scopes = n.placeholders, n.scopes
	return r, err
}

// revealed are the values of the secrets at present.
func (n *network) revealed() map[string]secret.Value {
	n.mu.Lock()
	defer n.mu.Unlock()
	return maps.Clone(n.values)
}

// keep writes it down.
func (n *network) keep(dir *state.Dir) error {
	r, err := n.record(false)
	if err != nil {
		return err
	}
	return hostfs.WriteRecord(dir.Path(networkName), r)
}

// change has other rules hold from now on, of which edit makes those that hold.
// Flows that they refuse are cut.
func (n *network) change(edit func(*api.Network) error) (api.Network, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	config := n.config
	config.Network.Allow, config.Network.Deny = slices.Clone(config.Network.Allow), slices.Clone(config.Network.Deny)
	if err := edit(&config.Network); err != nil {
		return api.Network{}, err
	}
	compiled, err := n.compile(&config, slices.Collect(maps.Keys(n.scopes)))
	if err != nil {
		return api.Network{}, err
	}
	n.config, n.policy = config, compiled
	n.flows.SetPolicy(compiled)
	return config.Network, nil
}

// Rules are what a sandbox may reach.
type Rules struct {
	Allow []api.Rule `json:"allow"`
	Deny  []api.Rule `json:"deny"`
}

// Policy is what a sandbox that runs may reach. It may be changed, by several goroutines
// and processes at once.
type Policy struct{ keeper keeper }

// Policy returns that of the sandbox.
func (s *Sandbox) Policy() Policy { return Policy{s.keeper} }

// Rules tells what rules hold at present. A sandbox without a network has ErrNoNetwork.
func (p Policy) Rules(ctx context.Context) (Rules, error) { return p.keeper.rules(ctx, ruleChange{}) }

// Allow adds rules by which hosts may be reached, and returns those that hold now. They
// hold at once, and when the sandbox starts again.
func (p Policy) Allow(ctx context.Context, rules ...api.Rule) (Rules, error) {
	return p.keeper.rules(ctx, ruleChange{Allow: rules})
}

// Delete takes rules away by which hosts may be reached. Connections that no rule
// allows any more are cut. A rule that there is not is ErrNotFound, and none is
// taken away then.
func (p Policy) Delete(ctx context.Context, rules ...api.Rule) (Rules, error) {
	return p.keeper.rules(ctx, ruleChange{Delete: rules})
}

// ruleChange says how rules change.
type ruleChange struct {
	Allow  []api.Rule `json:"allow,omitempty"`
	Delete []api.Rule `json:"delete,omitempty"`
}

// noNetwork says why there is nothing to change.
func (s *supervisor) noNetwork() error {
	return fmt.Errorf("sandbox %q: %w", s.dir.Record().Name, ErrNoNetwork)
}

func (s *supervisor) rules(_ context.Context, c ruleChange) (Rules, error) {
	if s.network == nil {
		return Rules{}, s.noNetwork()
	}
	if len(c.Allow)+len(c.Delete) == 0 {
		s.network.mu.Lock()
		defer s.network.mu.Unlock()
		return rulesOf(&s.network.config.Network), nil
	}
	var events []api.Event
	event := func(r api.Rule, what string) {
		events = append(events, api.Event{Kind: api.EventPolicy, Verdict: api.Allowed, Reason: "rule " + r.String() + " " + what})
	}
	changed, err := s.network.change(func(n *api.Network) error {
		for _, r := range c.Allow {
			if !slices.Contains(n.Allow, r) {
				n.Allow = append(n.Allow, r)
				event(r, "added")
			}
		}
		for _, r := range c.Delete {
			i := slices.Index(n.Allow, r)
			if i < 0 {
				return &hintError{fmt.Errorf("rule %q: %w", r, ErrNotFound), "`matchlock allow-list show` lists them"}
			}
			n.Allow = slices.Delete(n.Allow, i, i+1)
			event(r, "deleted")
		}
		return nil
	})
	if err != nil {
		return Rules{}, err
	}
	for _, e := range events {
		s.network.events.add(e)
	}
	return rulesOf(&changed), s.keepRules()
}

// keepRules writes down which rules and secrets hold now, for copies and the next
// start.
func (s *supervisor) keepRules() error {
	n := s.network
	n.mu.Lock() // until it is kept, as in keepConfig
	defer n.mu.Unlock()
	return s.keepConfig(func(c *api.Config) error {
		c.Network, c.Secrets, c.SecretIn = n.config.Network, n.config.Secrets, n.config.SecretIn
		return nil
	})
}

func rulesOf(n *api.Network) Rules {
	return Rules{Allow: append([]api.Rule{}, n.Allow...), Deny: append([]api.Rule{}, n.Deny...)}
}

// tcpFlow and udpFlow are flows as package intercept has them.
type (
	tcpFlow struct{ *netstack.TCPFlow }
	udpFlow struct{ *netstack.UDPFlow }
)

func (f tcpFlow) Accept() (net.Conn, error) { return f.TCPFlow.Accept() }
func (f udpFlow) Accept() (net.Conn, error) { return f.UDPFlow.Accept() }
