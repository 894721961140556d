package main

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/matchlock/matchlock/api"
	"github.com/matchlock/matchlock/sandbox"
)

func (a *app) completionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "completion SHELL",
		Short: "Print what makes a shell complete matchlock's commands",
		Long:  "Print what makes a shell complete matchlock's commands, flags and images: bash, zsh or fish.",
		Example: `  source <(matchlock completion bash)
  matchlock completion zsh > "${fpath[1]}/_matchlock"
  matchlock completion fish > ~/.config/fish/completions/matchlock.fish`,
		Args:      positional("SHELL"),
		ValidArgs: []string{"bash", "zsh", "fish"},
		RunE: func(cmd *cobra.Command, args []string) error {
			w, root := cmd.OutOrStdout(), cmd.Root()
			switch args[0] {
			case "bash":
				return root.GenBashCompletionV2(w, true)
			case "zsh":
				return root.GenZshCompletion(w)
			case "fish":
				return root.GenFishCompletion(w, true)
			}
			return usageError{fmt.Errorf("completion: shell %q: want bash, zsh or fish", args[0]), pathOf(cmd)}
		},
	}
}

// completeRest has all arguments and flags completed for which the commands do not say how:
// flags by their name, and nothing where no argument is taken. Otherwise the shell would
// offer files.
func (a *app) completeRest(cmd *cobra.Command) {
	byName := map[string]cobra.CompletionFunc{
		// Files and folders of the host.
		"disk": files, "env-file": files, "file": files, "output": files, "policy": files, "secret-file": nothing, "socket": files,
		"upstream-ca": files, "workspace": folders,
		// Names of things that there are.
		"env": variables("="), "filter": completeFilter, "image": a.completeImages(-1), "label-rm": a.completeLabels, "mount": a.completeOverlays, "secret": variables("@"),
		// Words.
		"address": words("127.0.0.1", "0.0.0.0", "::1"), "cap-add": capabilities, "cap-drop": capabilities,
		"change": beginnings("CMD ", "ENTRYPOINT ", "ENV ", "USER ", "WORKDIR "), "file-rule": beginnings("allow:", "deny:"),
		"log-format": words("text", "json"), "log-level": words("debug", "info", "warn", "error"), "platform": words("linux/amd64", "linux/arm64"),
		"secret-in": completeSecretIn, "signal": words(sandbox.Signals()...), "tail": words("all"), "ulimit": completeUlimit,
	}
	// What only the user can know.
	for _, name := range []string{
		"add-host", "allow-host", "author", "cmd", "copies", "cpus", "deny-host", "detach-keys", "disk-size", "dns", "entrypoint", "host-port", "hostname",
		"idle-timeout", "interval", "label", "max-size", "memory", "message", "mtu", "name", "publish", "resolve", "secret-cmd", "shm-size", "since", "size",
		"splice", "time", "timeout", "tmpfs", "ttl", "upstream-proxy", "user", "workdir",
	} {
		byName[name] = nothing
	}
	for _, c := range allCommands(cmd.Root()) {
		if !c.HasSubCommands() && c.ValidArgsFunction == nil && len(c.ValidArgs) == 0 && !takesArguments(c) {
			c.ValidArgsFunction = nothing
		}
		c.LocalFlags().VisitAll(func(f *pflag.Flag) {
			if f.NoOptDefVal != "" || byName[f.Name] == nil {
				return
			}
			if _, said := c.GetFlagCompletionFunc(f.Name); !said {
				_ = c.RegisterFlagCompletionFunc(f.Name, byName[f.Name]) // fails for none that there is
			}
		})
	}
}

// takesArguments tells whether a command takes any beside its flags.
func takesArguments(cmd *cobra.Command) bool {
	_, args, _ := strings.Cut(cmd.Use, " ")
	return args != "" && args != "[FLAGS]"
}

// nothing completes what only the user can know.
func nothing(*cobra.Command, []string, string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return nil, cobra.ShellCompDirectiveNoFileComp
}

// files completes files of the host.
func files(*cobra.Command, []string, string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return nil, cobra.ShellCompDirectiveDefault
}

// folders completes folders of the host.
func folders(*cobra.Command, []string, string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return nil, cobra.ShellCompDirectiveFilterDirs
}

// thenFiles completes the first argument by f, and files after it.
func thenFiles(f cobra.CompletionFunc) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return files(cmd, args, typed)
		}
		return f(cmd, args, typed)
	}
}

func words(all ...string) cobra.CompletionFunc {
	return cobra.FixedCompletions(all, cobra.ShellCompDirectiveNoFileComp)
}

// beginnings are words after which more is typed.
func beginnings(all ...string) cobra.CompletionFunc {
	return cobra.FixedCompletions(all, cobra.ShellCompDirectiveNoFileComp|cobra.ShellCompDirectiveNoSpace)
}

// variables completes names of this host's environment, each with what comes after it.
func variables(after string) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
		var names []string
		for _, v := range os.Environ() {
			name, _, _ := strings.Cut(v, "=")
			names = append(names, name+after)
		}
		slices.Sort(names)
		return beginnings(names...)(cmd, args, typed)
	}
}

func capabilities(cmd *cobra.Command, args []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return words(append(api.Capabilities(), "ALL")...)(cmd, args, typed)
}

func completeUlimit(cmd *cobra.Command, args []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
	var names []string
	for _, name := range api.UlimitNames() {
		names = append(names, name+"=")
	}
	return beginnings(names...)(cmd, args, typed)
}

// completeSecretIn completes the places of NAME=PLACE.
func completeSecretIn(cmd *cobra.Command, args []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
	name, _, ok := strings.Cut(typed, "=")
	if !ok {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var all []string
	for _, place := range []string{"header", "query", "path", "body"} {
		all = append(all, name+"="+place)
	}
	return words(all...)(cmd, args, typed)
}

// completeFilter completes the keys of --filter, and the values of a status.
func completeFilter(cmd *cobra.Command, args []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
	var all []string
	keys := cmd.Flag("filter").Annotations[keysOfFilter]
	if strings.HasPrefix(typed, "status=") && slices.Contains(keys, "status") {
		for _, s := range statuses {
			all = append(all, "status="+string(s))
		}
		return words(all...)(cmd, args, typed)
	}
	for _, key := range keys {
		all = append(all, key+"=")
	}
	return beginnings(all...)(cmd, args, typed)
}

// anyNumber of arguments.
const anyNumber = 1 << 10

// completeOf completes a sandbox, and after it up to n of what it has.
func (a *app) completeOf(which func(api.Info) bool, n int, has func(api.Info, api.Config) []string) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(args) == 0 || len(args) > n {
			return a.completeSandboxes(1, which)(cmd, args, typed)
		}
		info, err := a.options().Find(cmd.Context(), args[0])
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		config, err := a.options().Config(cmd.Context(), info.ID)
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		return slices.DeleteFunc(has(info, config), func(s string) bool { return slices.Contains(args[1:], s) }), cobra.ShellCompDirectiveNoFileComp
	}
}

func rulesOf(_ api.Info, c api.Config) (rules []string) {
	for _, r := range slices.Concat(c.Network.Allow, c.Network.Deny) {
		rules = append(rules, r.String())
	}
	return rules
}

func secretsOf(_ api.Info, c api.Config) (names []string) {
	for _, s := range c.Secrets {
		names = append(names, s.Name)
	}
	return names
}

func portsOf(i api.Info, _ api.Config) (ports []string) {
	for _, p := range i.Ports {
		text := strconv.Itoa(int(p.GuestPort))
		if p.Protocol == "udp" {
			text += "/udp"
		}
		ports = append(ports, text)
	}
	return ports
}

// completeLabels completes the names of the labels of the sandboxes that are named, or
// of all.
func (a *app) completeLabels(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	list, err := a.options().List(cmd.Context())
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	names := map[string]bool{}
	for _, i := range list {
		if len(args) == 0 || slices.Contains(args, i.Name) || slices.Contains(args, i.ID) {
			for name := range i.Labels {
				names[name] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(names)), cobra.ShellCompDirectiveNoFileComp
}

// completeOverlays completes the places of the overlays of the sandbox that is named.
func (a *app) completeOverlays(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) == 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	config, err := a.options().Config(cmd.Context(), args[0])
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	var places []string
	for _, m := range config.Mounts {
		if m.Mode == api.MountOverlay {
			places = append(places, m.Target)
		}
	}
	return places, cobra.ShellCompDirectiveNoFileComp
}

// complete names the values of a flag.
func complete(cmd *cobra.Command, flag string, values ...string) {
	// Fails only for a flag that does not exist, which a test would show.
	_ = cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp))
}

// completeImages completes arguments that are names of local images: the first
// n, all when n is negative.
func (a *app) completeImages(n int) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if n >= 0 && len(args) >= n {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		store, err := a.store()
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		images, err := store.List()
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		var names []cobra.Completion
		for _, img := range images {
			names = append(names, printable(img.Name))
		}
		return names, cobra.ShellCompDirectiveNoFileComp
	}
}
