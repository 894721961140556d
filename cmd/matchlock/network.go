package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/matchlock/matchlock/api"
	"github.com/matchlock/matchlock/sandbox"
)

// networkFlags say what a sandbox may reach, and what its requests may carry.
type networkFlags struct {
	network api.Network
	secrets []api.Secret
	places  []api.SecretPlaces
	file    string
	presets []string
}

func (f *networkFlags) define(cmd *cobra.Command) {
	n := &f.network
	group(cmd, "Network", func(fs *pflag.FlagSet) {
		list(fs, "allow-host", "let the guest reach `TARGET`[:PORT[-PORT]][/tcp|/udp]: a name, *.suffix, *, an address, a CIDR", &n.Allow, fromText[api.Rule])
		list(fs, "deny-host", "but not `TARGET`; what is denied is not allowed by any other rule", &n.Deny, fromText[api.Rule])
		fs.BoolVar(&n.AllowPrivate, "allow-private", false, "names that are allowed may have private addresses")
		list(fs, "host-port", "let it reach `PORT`[:GUESTPORT] of this host's 127.0.0.1, at "+api.HostGateway, &n.HostPorts, fromText[api.HostPort])
		fs.StringArrayVar(&f.presets, "preset", nil, "let it reach what `NAME` needs: "+strings.Join(sandbox.Presets(), ", "))
		fs.StringVar(&f.file, "policy", "", "take rules, secrets and hooks from `FILE`, too")
		fs.BoolVar(&n.None, "no-network", false, "give it no network at all")
		list(fs, "publish", "lead a port of this host to one of the guest, `[IP:]HOSTPORT:GUESTPORT[/udp]`", &n.Publish, fromText[api.Publish])
		fs.Lookup("publish").Shorthand = "p"
	})
	group(cmd, "Names", func(fs *pflag.FlagSet) {
		list(fs, "add-host", "add `NAME:IP` to the guest's hosts file", &n.AddHosts, api.ParseHost)
		list(fs, "resolve", "say what a name is on this host's side, `NAME:IP`", &n.Resolve, api.ParseHost)
		list(fs, "dns", "resolve names by asking the server at `IP` (default as this host does)", &n.DNS, api.ParseIP)
		choice(fs, "dns-mode", "`MODE` of the addresses that the guest is told: synthetic or real (default synthetic)", &n.DNSMode, api.DNSSynthetic, api.DNSReal)
		fs.IntVar(&n.MTU, "mtu", 0, "`BYTES` of a packet (default 1500)")
	})
	group(cmd, "Secrets and interception", func(fs *pflag.FlagSet) {
		list(fs, "secret", "let requests to HOST carry the value of this host's variable NAME, `NAME@HOST[,HOST…]`", &f.secrets, parseSecret(""))
		list(fs, "secret-file", "the same with what is in a file, `NAME@HOST[,HOST…]=FILE`", &f.secrets, parseSecret(api.SecretFile))
		list(fs, "secret-cmd", "the same with what a command prints, `NAME@HOST[,HOST…]=COMMAND`", &f.secrets, parseSecret(api.SecretCommand))
		list(fs, "secret-in", "where it may stand, `NAME=PLACE[,PLACE…]`: header, query, path, body (default header)", &f.places, fromText[api.SecretPlaces])
		fs.BoolVar(&n.Intercept, "intercept", false, "look into all TLS, not only where a secret or a hook needs it")
		fs.StringArrayVar(&n.Splice, "splice", nil, "never look into TLS to `HOST`")
		fs.StringArrayVar(&n.UpstreamCA, "upstream-ca", nil, "trust servers signed by the certificates in `FILE`, too")
		fs.StringVar(&n.UpstreamProxy, "upstream-proxy", "", "go through the proxy at `URL`, which then sees to addresses")
	})
}

func completeNetworkFlags(cmd *cobra.Command) {
	complete(cmd, "dns-mode", string(api.DNSSynthetic), string(api.DNSReal))
	complete(cmd, "preset", sandbox.Presets()...)
}

// parseSecret reads a secret whose value is found in a way. A text that may be a
// value is not repeated.
func parseSecret(source api.SecretSource) func(string) (api.Secret, error) {
	return func(text string) (s api.Secret, err error) {
		if source != "" {
			spec, where, ok := strings.Cut(text, "=")
			if !ok || where == "" {
				return s, fmt.Errorf("want NAME@HOST[,HOST…]=%s", map[api.SecretSource]string{api.SecretFile: "FILE", api.SecretCommand: "COMMAND"}[source])
			}
			text = spec + "=" + string(source) + ":" + where
		} else if spec, _, ok := strings.Cut(text, "="); ok {
			name, _, _ := strings.Cut(spec, "@")
			return s, fmt.Errorf("secret %q: a value on the command line would be seen by all; give NAME@HOST, and the value in the environment", name)
		}
		return s, s.UnmarshalText([]byte(text))
	}
}

// into lays what the flags say over a configuration: they add to its lists.
func (f *networkFlags) into(c *api.Config) error {
	c.AddNetwork(f.network)
	c.Secrets, c.SecretIn = append(c.Secrets, f.secrets...), append(c.SecretIn, f.places...)
	return sandbox.ApplyPolicy(c, f.file, f.presets)
}

func (a *app) allowListCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "allow-list COMMAND", Short: "Show and change what a sandbox may reach while it runs", Args: cobra.ArbitraryArgs, RunE: showHelp}
	show := func(cmd *cobra.Command, rules sandbox.Rules, asJSON bool) error {
		if asJSON {
			return printJSON(cmd.OutOrStdout(), rules)
		}
		for _, r := range rules.Allow {
			if _, err := fmt.Fprintln(cmd.OutOrStdout(), "allow", r); err != nil {
				return err
			}
		}
		for _, r := range rules.Deny {
			if _, err := fmt.Fprintln(cmd.OutOrStdout(), "deny", r); err != nil {
				return err
			}
		}
		return nil
	}
	for _, c := range []struct {
		use, short, long string
		do               func(sandbox.Policy, context.Context, ...api.Rule) (sandbox.Rules, error)
	}{
		{"show", "Show the rules", "Show the rules that hold at present.", func(p sandbox.Policy, ctx context.Context, _ ...api.Rule) (sandbox.Rules, error) { return p.Rules(ctx) }},
		{"add", "Let it reach more", "Let the sandbox reach more, from now on and when it starts again.", sandbox.Policy.Allow},
		{"delete", "Let it reach less", "Take rules away. Connections that no rule allows any more are cut; without a rule the\nsandbox is sealed.", sandbox.Policy.Delete},
	} {
		var asJSON bool
		use, args := c.use+" [FLAGS] SANDBOX", positional("SANDBOX")
		if c.use != "show" {
			use, args = c.use+" [FLAGS] SANDBOX TARGET[:PORT[-PORT]][/tcp|/udp]…", positional("SANDBOX", "TARGET…")
		}
		sub := &cobra.Command{
			Use: use, Short: c.short, Long: c.long, Args: args,
			ValidArgsFunction: a.completeSandboxes(1, isAlive),
			RunE: func(cmd *cobra.Command, args []string) error {
				rules, err := api.ParseRules(args[1:]...)
				if err != nil {
					return usageError{err, pathOf(cmd)}
				}
				sb, err := a.options().Attach(cmd.Context(), args[0])
				if err != nil {
					return err
				}
				defer sb.Close()
				now, err := c.do(sb.Policy(), cmd.Context(), rules...)
				if err != nil {
					return err
				}
				return show(cmd, now, asJSON)
			},
		}
		if c.use == "delete" {
			sub.ValidArgsFunction = a.completeOf(isAlive, anyNumber, rulesOf)
		}
		jsonFlag(sub.Flags(), &asJSON)
		cmd.AddCommand(sub)
	}
	return cmd
}

func (a *app) secretCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "secret COMMAND", Short: "Change the secrets of a sandbox while it runs", Args: cobra.ArbitraryArgs, RunE: showHelp}
	var file, command string
	rotate := &cobra.Command{
		Use:   "rotate [FLAGS] SANDBOX NAME",
		Short: "Give a secret another value",
		Long: `Give a secret another value, which holds at once. It is read from this host's environment
variable NAME, or as the flags say. The former value is still taken out of responses.`,
		Args:              positional("SANDBOX", "NAME"),
		ValidArgsFunction: a.completeOf(isAlive, 1, secretsOf),
		RunE: func(cmd *cobra.Command, args []string) error {
			s := api.Secret{Name: args[1]}
			switch {
			case file != "":
				s.Source, s.Where = api.SecretFile, file
			case command != "":
				s.Source, s.Where = api.SecretCommand, command
			}
			sb, err := a.options().Attach(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			defer sb.Close()
			return sb.Secrets().RotateFrom(cmd.Context(), s)
		},
	}
	rotate.Flags().StringVar(&file, "file", "", "read it from `FILE`")
	rotate.Flags().StringVar(&command, "cmd", "", "take what `COMMAND` prints")
	onlyOne(rotate, "file", "cmd")
	revoke := &cobra.Command{
		Use:               "revoke SANDBOX NAME",
		Short:             "Take a secret's value away",
		Long:              "Take a secret's value away. Requests that have its placeholder are refused from now on.",
		Args:              positional("SANDBOX", "NAME"),
		ValidArgsFunction: a.completeOf(isAlive, 1, secretsOf),
		RunE: func(cmd *cobra.Command, args []string) error {
			sb, err := a.options().Attach(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			defer sb.Close()
			return sb.Secrets().Revoke(cmd.Context(), args[1])
		},
	}
	cmd.AddCommand(rotate, revoke)
	return cmd
}

func (a *app) portCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "port [FLAGS] SANDBOX [GUESTPORT[/udp]]",
		Short: "Show which ports of this host lead to a sandbox",
		Long: `Show which ports of this host lead to a sandbox; with GUESTPORT just where that one is.
The exit status is 1 when none does.`,
		Args:              positional("SANDBOX", "[GUESTPORT]"),
		ValidArgsFunction: a.completeOf(isAlive, 1, portsOf),
		RunE: func(cmd *cobra.Command, args []string) error {
			info, err := a.options().Find(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			ports := info.Ports
			if len(args) == 2 {
				text, proto := args[1], "tcp"
				if rest, udp := strings.CutSuffix(text, "/udp"); udp {
					text, proto = rest, "udp"
				}
				number, err := strconv.ParseUint(strings.TrimSuffix(text, "/tcp"), 10, 16)
				if err != nil || number == 0 {
					return usageError{fmt.Errorf("port: %q: want GUESTPORT[/udp]", args[1]), pathOf(cmd)}
				}
				ports = slices.DeleteFunc(slices.Clone(ports), func(p api.PublishedPort) bool {
					return p.GuestPort != uint16(number) || p.Protocol != proto
				})
			}
			for _, p := range ports {
				text := p.Host.String()
				if len(args) == 1 {
					text = fmt.Sprintf("%d/%s -> %s", p.GuestPort, p.Protocol, p.Host)
				}
				if err := printEither(cmd.OutOrStdout(), asJSON, p, text); err != nil {
					return err
				}
			}
			if len(ports) == 0 {
				return exitStatus(1)
			}
			return nil
		},
	}
	jsonFlag(cmd.Flags(), &asJSON)
	return cmd
}

func (a *app) portForwardCommand() *cobra.Command {
	address := netip.AddrFrom4([4]byte{127, 0, 0, 1})
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "port-forward [FLAGS] SANDBOX [LOCALPORT:]GUESTPORT…",
		Short: "Lead ports of this host to a sandbox's localhost, as long as this runs",
		Long: `Listen on ports of this host, and pass what connects there on to TCP ports of the sandbox's
localhost, until it is interrupted. A LOCALPORT that is empty or 0 is any that is free.
Where it listens is printed. It works without a network, too.`,
		Example:           "  matchlock port-forward web 8080:80\n  matchlock port-forward web :5432",
		Args:              positional("SANDBOX", "GUESTPORT…"),
		ValidArgsFunction: a.completeSandboxes(1, isAlive),
		RunE: func(cmd *cobra.Command, args []string) error {
			var wanted []api.Publish
			for _, text := range args[1:] {
				if !strings.Contains(text, ":") {
					text = text + ":" + text
				}
				var p api.Publish
				if err := p.UnmarshalText([]byte(text)); err != nil || p.UDP || p.IP.IsValid() {
					return usageError{fmt.Errorf("port %q: want [LOCALPORT:]GUESTPORT", text), pathOf(cmd)}
				}
				wanted = append(wanted, p)
			}
			sb, err := a.options().Attach(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			defer sb.Close()
			ctx, cancel := context.WithCancel(cmd.Context())
			defer cancel()
			ended := make(chan error, len(wanted))
			for _, p := range wanted {
				ready := make(chan net.Addr, 1)
				failed := make(chan error, 1)
				go func() {
					err := sb.ListenFor(ctx, netip.AddrPortFrom(address, p.HostPort).String(), p.GuestPort, func(at net.Addr) { ready <- at })
					failed <- err
					ended <- err
				}()
				select {
				case at := <-ready:
					published := api.PublishedPort{GuestPort: p.GuestPort, Protocol: "tcp"}
					published.Host, err = netip.ParseAddrPort(at.String())
					if err := errors.Join(err, printEither(cmd.OutOrStdout(), asJSON, published, fmt.Sprintf("%s -> %d", at, p.GuestPort))); err != nil {
						return err
					}
				case err := <-failed:
					return err
				}
			}
			go func() {
				sb.Wait(ctx)
				cancel()
			}()
			err = <-ended
			cancel()
			return err
		},
	}
	parsed(cmd.Flags(), "address", "", "`IP` of this host to listen at (default 127.0.0.1)", &address, api.ParseIP)
	jsonFlag(cmd.Flags(), &asJSON)
	return cmd
}

func (a *app) policyCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "policy COMMAND", Short: "Try out what rules would do", Args: cobra.ArbitraryArgs, RunE: showHelp}
	var f networkFlags
	var asJSON bool
	explain := &cobra.Command{
		Use:   "explain [FLAGS] [SANDBOX] URL",
		Short: "Say what would become of a connection, and which rule decides",
		Long: `Say what would become of a connection to URL (https://NAME/PATH, NAME:PORT), and which rule
decides: by the rules of a sandbox, or by those that the flags give. Nothing is resolved
and nothing is sent. The exit status is 1 when it would be refused.`,
		Example:           "  matchlock policy explain --preset pypi https://pypi.org/simple\n  matchlock policy explain agent ssh.github.com:22",
		Args:              positional("URL", "[URL]"),
		ValidArgsFunction: a.completeSandboxes(1, anyStatus),
		RunE: func(cmd *cobra.Command, args []string) error {
			config := api.Config{Image: "none"}
			if len(args) == 2 {
				var err error
				if config, err = a.options().Config(cmd.Context(), args[0]); err != nil {
					return err
				}
			}
			if err := f.into(&config); err != nil {
				return err
			}
			if err := config.Validate(); err != nil {
				return usageError{err, pathOf(cmd)}
			}
			if err := sandbox.CheckUpstreamCA(f.network.UpstreamCA); err != nil {
				return err
			}
			explanation, err := sandbox.Explain(config, args[len(args)-1])
			if err != nil {
				return err
			}
			if err := printEither(cmd.OutOrStdout(), asJSON, explanation, explanationText(explanation)); err != nil {
				return err
			}
			if !explanation.Allow {
				return exitStatus(1)
			}
			return nil
		},
	}
	f.define(explain)
	completeNetworkFlags(explain)
	jsonFlag(explain.Flags(), &asJSON)
	check := &cobra.Command{
		Use:   "check FILE",
		Short: "Check a file of rules",
		Long:  "Check a file that --policy would take, and tell of every fault.",
		Args:  positional("FILE"),

		ValidArgsFunction: files,
		RunE: func(cmd *cobra.Command, args []string) error {
			config := api.Config{Image: "none"}
			if err := sandbox.ApplyPolicy(&config, args[0], nil); err != nil {
				return err
			}
			return nil
		},
	}
	cmd.AddCommand(explain, check)
	return cmd
}

// explanationText is an explanation in some lines.
func explanationText(e sandbox.Explanation) string {
	what := e.Name
	if what == "" {
		what = e.Address
	}
	verdict := "denied"
	if e.Allow {
		verdict = "allowed"
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s (%s)", net.JoinHostPort(what, strconv.Itoa(int(e.Port))), verdict, e.Protocol)
	line := func(what string, v sandbox.Verdict) {
		text := "allowed"
		if !v.Allow {
			text = "denied"
		}
		fmt.Fprintf(&b, "\n  %-10s %s", what, text)
		if v.Rule != "" {
			fmt.Fprintf(&b, " by rule %s", v.Rule)
		}
		if v.Reason != "" {
			fmt.Fprintf(&b, ": %s", v.Reason)
		}
		if v.Hint != "" {
			fmt.Fprintf(&b, "; would be allowed by %s", v.Hint)
		}
	}
	if e.Resolved != nil {
		line("name", *e.Resolved)
	}
	line("connection", e.Flow)
	for _, d := range e.Dials {
		line(d.Address, d.Verdict)
	}
	switch {
	case !e.Allow || e.Protocol == "udp":
	case e.Protocol == "http":
		b.WriteString("\n  each request is looked into")
	case e.Terminated:
		b.WriteString("\n  TLS is ended here, and each request looked into")
	default:
		b.WriteString("\n  TLS passes unchanged and unseen")
	}
	if len(e.Secrets) > 0 {
		fmt.Fprintf(&b, "\n  secrets that may be put in: %s", strings.Join(e.Secrets, ", "))
	}
	if len(e.Hooks) > 0 {
		fmt.Fprintf(&b, "\n  hooks that are asked: %s", strings.Join(e.Hooks, ", "))
	}
	return b.String()
}
