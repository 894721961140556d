package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/matchlock/matchlock/api"
	"github.com/matchlock/matchlock/sandbox"
)

// runFlags are the flags of `matchlock run`, and what they fill in.
type runFlags struct {
	config api.Config

	envFiles, env []string
	sshAgent      bool
	entrypoint    string
	labels        []string

	name           string
	detach, remove bool
	stdioFlags
	networkFlags
	accel        string
	workspace    api.Mount // without a source: none
	snapshot     string    // empty: an image
	project      string    // the file of the project, or its folder
	ofProject    bool
	cold, timing bool
	noJail       bool
}

func (a *app) runCommand() *cobra.Command {
	f := &runFlags{}
	cmd := &cobra.Command{
		Use:   "run [FLAGS] [IMAGE [COMMAND [ARG…]]]",
		Short: "Run a command in a new sandbox",
		Long: `Run a command in a new sandbox, a microVM made from a container image, and remove the
sandbox when the command ends. The exit status is the command's.

An image that is not in the local store is pulled. Without COMMAND the image's own runs.

With --detach the sandbox runs on by itself: its id is printed when the command has
started, its output goes to its log, and it is kept, to be started again, until it is
removed. Without any command it idles.

Without IMAGE the project's sandbox runs: what matchlock.yaml says, in this folder or one
above, or what --file names, which COMMAND may follow. Flags come over it.

With --snapshot in the place of IMAGE the sandbox goes on from there: its first command is
the one that runs in it, or COMMAND beside what runs.`,
		Example: `  matchlock run busybox echo hello
  matchlock run -d --name web python:3.13 python3 -m http.server
  matchlock run -it debian:12 bash
  matchlock run --file . make test
  matchlock run -e TOKEN -w /src --timeout 5m python:3.13 python3 build.py
  matchlock run -v data:/data busybox sh -c 'date >> /data/log'
  tar c . | matchlock run -i busybox sh -c 'tar x -C /tmp && ls /tmp'`,
		Args: func(cmd *cobra.Command, args []string) error {
			if f.snapshot != "" && f.project != "" {
				return usageError{errors.New("--file and --snapshot: only one may be given"), pathOf(cmd)}
			}
			return nil
		},
		ValidArgsFunction: thenFiles(a.completeImages(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			f.ofProject = f.snapshot == "" && (f.project != "" || len(args) == 0)
			if f.snapshot == "" && !f.ofProject {
				f.config.Image, args = args[0], args[1:]
			}
			if len(args) > 0 {
				f.config.Command = args
			}
			return a.run(cmd, f)
		},
	}
	cmd.Flags().SetInterspersed(false)
	c := &f.config
	group(cmd, "The command", func(fs *pflag.FlagSet) {
		fs.StringArrayVarP(&f.env, "env", "e", nil, "set an environment variable, `NAME=VALUE`; NAME alone copies the host's")
		fs.StringArrayVar(&f.envFiles, "env-file", nil, "set those in `FILE`, one a line")
		fs.StringVarP(&c.User, "user", "u", "", "run as `USER`: name, uid, uid:gid or name:group")
		fs.StringVarP(&c.WorkDir, "workdir", "w", "", "run in `FOLDER`, made when missing")
		fs.StringVar(&f.entrypoint, "entrypoint", "", "`PROGRAM` in the place of the image's entry point; \"\" clears it")
		parsed(fs, "timeout", "", "`DURATION` after which the command is ended: 90s, 2h", &c.Timeout, parseDuration)
	})
	group(cmd, "Life", func(fs *pflag.FlagSet) {
		fs.BoolVarP(&f.detach, "detach", "d", false, "run on in the background, and print the id")
		fs.StringVar(&f.name, "name", "", "`NAME` of the sandbox (default one that is made up)")
		parsed(fs, "ttl", "", "`DURATION` after which the sandbox is stopped", &c.TTL, parseDuration)
		parsed(fs, "idle-timeout", "", "`DURATION` without a command of yours or a byte on its network after which it is stopped", &c.IdleTimeout, parseDuration)
		fs.StringVar((*string)(&c.Restart), "restart", "", "`WHEN` a sandbox in the background runs again after its end: no, on-failure[:N] or always (default no)")
		fs.BoolVar(&f.remove, "rm", false, "remove the sandbox when the command ends (default, without --detach)")
	})
	group(cmd, "Input and terminal", f.stdioFlags.define)
	group(cmd, "Resources", func(fs *pflag.FlagSet) {
		machineFlags(fs, c)
		parsed(fs, "shm-size", "", "`SIZE` of /dev/shm, bare in MiB (default 64)", &c.ShmSize, sizeIn(api.MiB))
		list(fs, "ulimit", "resource `LIMIT`, NAME=SOFT[:HARD]", &c.Ulimits, fromText[api.Ulimit])
	})
	group(cmd, "Files", func(fs *pflag.FlagSet) {
		fs.VarP(&value[api.Mount]{set: func(m api.Mount) { c.Mounts = append(c.Mounts, m) }, parse: fromText[api.Mount]},
			"volume", "v", "mount a folder or file of the host, or a volume, `HOST:PATH[:rw|ro|overlay]`; :PATH:memory an empty folder in memory. To it may be added ,hide=GLOB ,protect=GLOB ,quota=SIZE ,uid=N ,gid=N")
		parsed(fs, "workspace", "", "have the folder `DIR[:rw|ro|overlay]` at /workspace, as an overlay unless it is said, and work there", &f.workspace, parseWorkspace)
		list(fs, "file-rule", "allow or deny what is done with files of mounts, `ACTION:OPS:PATTERN`, like deny:write,create:*.lock", &c.FileRules, fromText[api.FileRule])
		fs.BoolVar(&c.FileEvents, "file-events", false, "show what is changed in mounts among the events")
		fs.BoolVar(&c.Coherent, "coherent", false, "see what others change in the host's folders at once, not within a second")
		list(fs, "disk", "attach an ext4 image, `FILE:PATH[:ro]`", &c.Disks, fromText[api.Disk])
		list(fs, "tmpfs", "mount a file system in memory, `PATH[:SIZE]`", &c.Tmpfs, fromText[api.Tmpfs])
		fs.BoolVar(&c.ReadOnly, "read-only", false, "make / read-only")
		list(fs, "socket", "let the guest reach the unix socket HOST of this host at GUEST, `HOST:GUEST`", &c.Sockets, fromText[api.Socket])
		fs.BoolVar(&f.sshAgent, "ssh-agent", false, "let it use the keys of this host's ssh-agent, as long as it runs")
	})
	f.networkFlags.define(cmd)
	group(cmd, "Name and labels", func(fs *pflag.FlagSet) {
		fs.StringVar(&c.Hostname, "hostname", "", "`NAME` of the machine (default the sandbox's id)")
		fs.StringArrayVarP(&f.labels, "label", "l", nil, "label the sandbox, `NAME=VALUE`")
	})
	group(cmd, "Restrictions inside the machine", func(fs *pflag.FlagSet) {
		fs.StringArrayVar(&c.CapAdd, "cap-add", nil, "give a `CAPABILITY`, or ALL")
		fs.StringArrayVar(&c.CapDrop, "cap-drop", nil, "take a `CAPABILITY`, or ALL")
		fs.BoolVar(&c.AllowSetuid, "allow-setuid", false, "let set-id programs like sudo work")
		fs.BoolVar(&c.Privileged, "privileged", false, "lift all of them")
	})
	group(cmd, "Image and machine", func(fs *pflag.FlagSet) {
		imageFlags(fs, c, &f.accel)
		fs.StringVar(&f.project, "file", "", "run the sandbox of the project that `FILE` describes, or matchlock.yaml in a folder")
		fs.StringVar(&f.snapshot, "snapshot", "", "go on from the snapshot `NAME` in the place of an image")
		fs.BoolVar(&f.cold, "cold", false, "boot the machine, though a copy of one that has booted would do")
		fs.BoolVar(&f.noJail, "no-jail", false, "run the hypervisor with all that you may do, unconfined")
		fs.BoolVar(&f.timing, "timing", false, "tell how long each phase took, and how much code was translated for it")
	})
	completeImageFlags(cmd)
	completeRestart(cmd)
	completeNetworkFlags(cmd)
	cmd.RegisterFlagCompletionFunc("volume", a.completeVolumeFlag)
	cmd.RegisterFlagCompletionFunc("snapshot", a.completeSnapshots(-1))
	return cmd
}

// machineFlags say how large a machine is.
func machineFlags(fs *pflag.FlagSet, c *api.Config) {
	parsed(fs, "cpus", "", "share of processors, `NUMBER` (default 1)", &c.CPUs, parseNumber)
	parsed(fs, "memory", "m", "`SIZE` of the memory, bare in MiB (default 512)", &c.Memory, sizeIn(api.MiB))
	parsed(fs, "disk-size", "", "`SIZE` of the disk for what is written, bare in GiB (default 5)", &c.DiskSize, sizeIn(api.GiB))
}

// imageFlags say where the image comes from and what runs it.
func imageFlags(fs *pflag.FlagSet, c *api.Config, accel *string) {
	c.Pull, *accel = api.PullMissing, "auto"
	choice(fs, "pull", "`WHEN` to ask the registry: missing, always or never", &c.Pull, api.PullMissing, api.PullAlways, api.PullNever)
	fs.StringVar(&c.Platform, "platform", "", "`PLATFORM` of the image, os/arch (default the host's)")
	choice(fs, "accel", "`HOW` the machine runs: auto, kvm or tcg", accel, accels...)
}

// accels are what --accel takes.
var accels = []string{"auto", "kvm", "tcg"}

func completeImageFlags(cmd *cobra.Command) {
	complete(cmd, "accel", accels...)
	complete(cmd, "pull", string(api.PullMissing), string(api.PullAlways), string(api.PullNever))
}

// parsed defines a flag whose value parse turns into what target holds.
func parsed[T any](fs *pflag.FlagSet, name, short, usage string, target *T, parse func(string) (T, error)) {
	fs.VarP(&value[T]{set: func(v T) { *target = v }, parse: parse}, name, short, usage)
}

// choice defines a flag that takes one of some words; what target holds is the default.
func choice[T ~string](fs *pflag.FlagSet, name, usage string, target *T, words ...T) {
	fs.Var(&value[T]{text: string(*target), set: func(v T) { *target = v }, parse: func(text string) (T, error) {
		if slices.Contains(words, T(text)) {
			return T(text), nil
		}
		return "", fmt.Errorf("want %s", oneOf(words))
	}}, name, usage)
}

// oneOf says words as people do: "a, b or c".
func oneOf[T ~string](words []T) string {
	var s strings.Builder
	for i, w := range words {
		switch {
		case i > 0 && i == len(words)-1:
			s.WriteString(" or ")
		case i > 0:
			s.WriteString(", ")
		}
		s.WriteString(string(w))
	}
	return s.String()
}

// list defines a flag that may be repeated.
func list[T any](fs *pflag.FlagSet, name, usage string, target *[]T, parse func(string) (T, error)) {
	fs.Var(&value[T]{set: func(v T) { *target = append(*target, v) }, parse: parse}, name, usage)
}

// value is a pflag.Value.
type value[T any] struct {
	text  string
	parse func(string) (T, error)
	set   func(T)
}

func (v *value[T]) String() string { return v.text }
func (v *value[T]) Type() string   { return "string" }
func (v *value[T]) Set(text string) error {
	parsed, err := v.parse(text)
	if err != nil {
		return err
	}
	v.text = text
	v.set(parsed)
	return nil
}

func parseNumber(text string) (float64, error) {
	n, err := strconv.ParseFloat(text, 64)
	if err != nil || !(n > 0) {
		return 0, errors.New("not a positive number")
	}
	return n, nil
}

func parseDuration(text string) (time.Duration, error) {
	d, err := time.ParseDuration(text)
	if err != nil || d <= 0 {
		return 0, errors.New("want a duration like 90s or 2h")
	}
	return d, nil
}

// sizeIn parses sizes whose bare numbers count units, and that are not 0.
func sizeIn(unit int64) func(string) (int64, error) {
	return func(text string) (int64, error) {
		size, err := api.ParseSize(text, unit)
		if err == nil && size == 0 {
			err = errors.New("nothing is no size")
		}
		return size, err
	}
}

func fromText[T any, P interface {
	*T
	UnmarshalText([]byte) error
}](text string) (T, error) {
	var v T
	err := P(&v).UnmarshalText([]byte(text))
	return v, err
}

// finish turns what the flags collected into the configuration.
func (f *runFlags) finish(flags *pflag.FlagSet) error {
	env, err := environment(f.envFiles, f.env, os.LookupEnv, "run")
	if err != nil {
		return err
	}
	f.config.Env = env
	if f.sshAgent {
		if err := f.addSSHAgent(os.Getenv("SSH_AUTH_SOCK")); err != nil {
			return err
		}
	}
	if f.workspace.Source != "" {
		f.config.Mounts = append(f.config.Mounts, f.workspace)
		f.config.WorkDir = cmp.Or(f.config.WorkDir, workspacePlace)
	}
	f.config.Labels = pairs(f.labels)
	if flags.Changed("entrypoint") {
		f.config.Entrypoint = []string{}
		if f.entrypoint != "" {
			f.config.Entrypoint = []string{f.entrypoint}
		}
	}
	if !flags.Changed("rm") {
		f.remove = !f.detach
	}
	if !flags.Changed("pull") {
		f.config.Pull = ""
	}
	if f.config.Restart != "" {
		if err := f.config.Restart.Validate(); err != nil {
			return usageError{fmt.Errorf("--restart: %w", err), "run"}
		}
		if !f.detach || f.remove {
			return usageError{errors.New("--restart: wants --detach, and no --rm: what runs again is kept, and is in the background"), "run"}
		}
	}
	return f.check("run")
}

// sshAgentPath is where the guest finds the host's ssh-agent.
const sshAgentPath = "/run/matchlock/ssh-agent.sock"

// addSSHAgent leads the guest to the ssh-agent that listens at path.
func (f *runFlags) addSSHAgent(path string) error {
	if path == "" {
		return noSSHAgent{}
	}
	f.config.Sockets = append(f.config.Sockets, api.Socket{Host: path, Guest: sshAgentPath})
	f.config.Env["SSH_AUTH_SOCK"] = sshAgentPath
	return nil
}

// noSSHAgent is the error that there is no agent to be reached.
type noSSHAgent struct{}

func (noSSHAgent) Error() string {
	return "--ssh-agent: SSH_AUTH_SOCK is not set, so there is no agent"
}
func (noSSHAgent) Hint() string {
	return "`eval $(ssh-agent)` starts one, and `ssh-add` gives it a key; sudo takes the variable away unless told otherwise"
}

// run makes a sandbox, runs its first command on our input, output and
// terminal, and returns the command's status as an exitStatus.
func (a *app) run(cmd *cobra.Command, f *runFlags) error {
	if err := f.finish(cmd.Flags()); err != nil {
		return err
	}
	if f.snapshot == "" {
		if err := a.underlie(f); err != nil {
			return err
		}
	}
	o := order{
		Config: f.config, Name: f.name, Remove: f.remove, Accel: f.accel, Cold: f.cold, NoJail: f.noJail,
		Stdin: f.interactive, Tty: f.tty, Timing: f.timing,
	}
	begin := func(ctx context.Context, options sandbox.Options) (*sandbox.Sandbox, error) {
		return options.New(ctx, f.config)
	}
	goesOn := false // the first command runs already
	if f.snapshot != "" {
		if err := checkFixed(cmd); err != nil {
			return err
		}
		saved, err := a.options().OpenSnapshot(cmd.Context(), f.snapshot)
		if err != nil {
			return err
		}
		defer saved.Close()
		under := saved.Config()
		under.Hostname = "" // it is another machine
		if o.Config, err = f.laidOver(under); err != nil {
			return err
		}
		if err := o.goOnFrom(saved); err != nil {
			return err
		}
		begin = func(ctx context.Context, options sandbox.Options) (*sandbox.Sandbox, error) {
			return options.Restore(ctx, saved, o.Config)
		}
		goesOn = saved.Running() && o.Config.Command == nil && o.Config.Entrypoint == nil
	}
	if f.detach {
		return a.runDetached(cmd, o)
	}
	return a.runForeground(cmd, f, goesOn, begin)
}

func (a *app) runForeground(cmd *cobra.Command, f *runFlags, goesOn bool, begin func(context.Context, sandbox.Options) (*sandbox.Sandbox, error)) error {
	dropSIGPIPE()
	a.dropCapabilities()
	stdio := f.stdio()
	bars := a.newBars()
	defer bars.close()
	options := a.options()
	options.Name, options.Keep = f.name, !f.remove
	options.Accel, options.Cold, options.NoJail = f.accel, f.cold, f.noJail
	options.NeedCommand = true
	options.Progress = bars.progress
	if f.timing {
		options.Timing, options.Blocks = a.printTiming, a.printBlocks
	}

	began := time.Now()
	sb, err := begin(cmd.Context(), options)
	bars.close()
	if err != nil {
		return err
	}
	prepare := sb.Main
	if goesOn { // with the input and the terminal that it has
		info, err := sb.Info(cmd.Context())
		if err != nil {
			return errors.Join(err, sb.Close())
		}
		flags := stdioFlags{interactive: info.Stdin, tty: info.Tty, noTTY: !info.Tty}
		stdio = flags.stdio()
		prepare = func(ctx context.Context) *sandbox.Cmd {
			c := sb.Main(ctx)
			c.Past = true
			return c
		}
	}
	commandBegan := time.Now()
	err = a.foreground(cmd.Context(), stdio, prepare)
	if f.timing {
		a.printTiming("command", time.Since(commandBegan))
	}
	err = errors.Join(err, sb.Close())
	if info, e := sb.Info(context.Background()); e == nil && info.Expired {
		fmt.Fprintf(&a.stderr, "matchlock: %s\n", printable(info.Error))
	}
	if f.timing {
		a.printTiming("total", time.Since(began))
	}
	return err
}

func (a *app) printTiming(phase string, took time.Duration) {
	fmt.Fprintf(&a.stderr, "matchlock: timing: %-8s %8.1f ms\n", phase, float64(took.Microseconds())/1000)
}

func (a *app) printBlocks(n int) {
	fmt.Fprintf(&a.stderr, "matchlock: timing: %-8s %8d\n", "blocks", n)
}

// environment joins env files and single variables; later ones win.
func environment(files, single []string, lookup func(string) (string, bool), command string) (map[string]string, error) {
	env := map[string]string{}
	for _, path := range files {
		fromFile, err := readEnvFile(path, lookup)
		if err != nil {
			return nil, fmt.Errorf("env file %q: %w", path, err)
		}
		maps.Copy(env, fromFile)
	}
	for _, text := range single {
		key, value, err := variable(text, lookup)
		if err != nil {
			return nil, usageError{fmt.Errorf("--env %w", err), command}
		}
		env[key] = value
	}
	return env, nil
}

// pairs reads NAME=VALUE; NAME alone has an empty value.
func pairs(texts []string) map[string]string {
	if len(texts) == 0 {
		return nil
	}
	m := make(map[string]string, len(texts))
	for _, text := range texts {
		key, value := cut(text)
		m[key] = value
	}
	return m
}
