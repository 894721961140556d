package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/matchlock/matchlock/api"
	"github.com/matchlock/matchlock/internal/image"
	"github.com/matchlock/matchlock/sandbox"
)

func (a *app) psCommand(name string) *cobra.Command {
	var all, quiet, asJSON bool
	var only filter
	cmd := &cobra.Command{
		Use:     name + " [FLAGS]",
		Aliases: []string{"list", "ls"},
		Short:   "List sandboxes",
		Long:    "List the sandboxes that run; with --all those too that have ended and were kept.",
		Args:    positional(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			list, err := a.options().List(cmd.Context())
			if err != nil {
				return err
			}
			list = slices.DeleteFunc(list, func(i api.Info) bool { return !all && !i.Status.Alive() || !only.fits(i) })
			w := cmd.OutOrStdout()
			if !quiet && !asJSON {
				return printSandboxes(w, list, time.Now())
			}
			for _, info := range list {
				if err := printEither(w, asJSON, info, info.ID); err != nil {
					return err
				}
			}
			return nil
		},
	}
	cmd.Flags().BoolVarP(&all, "all", "a", false, "those that have ended too")
	only.define(cmd.Flags())
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "print ids only")
	jsonFlag(cmd.Flags(), &asJSON)
	onlyOne(cmd, "json", "quiet")
	return cmd
}

func printSandboxes(w io.Writer, list []api.Info, now time.Time) error {
	table := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	fmt.Fprintln(table, "ID\tNAME\tIMAGE\tCOMMAND\tCREATED\tSTATUS")
	for _, i := range list {
		created := "-"
		if !i.Created.IsZero() {
			created = ago(now.Sub(i.Created))
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\n", i.ID, orDash(i.Name), orDash(shortImage(i.Image)), shortCommand(i.Command), created, statusText(i, now))
	}
	return table.Flush()
}

func orDash(text string) string {
	if text == "" {
		return "-"
	}
	return printable(text)
}

// shortImage leaves out what every name from docker's registry begins with.
func shortImage(name string) string {
	return printable(strings.TrimPrefix(strings.TrimPrefix(name, "docker.io/"), "library/"))
}

// maxCommand is how much of a command a table shows.
const maxCommand = 30

func shortCommand(argv []string) string {
	if len(argv) == 0 {
		return "-"
	}
	text := []rune(printable(strings.Join(argv, " ")))
	if len(text) > maxCommand {
		text = append(text[:maxCommand-1], '…')
	}
	return string(text)
}

// statusText is what has become of a sandbox, and when.
func statusText(i api.Info, now time.Time) string {
	switch i.Status {
	case api.StatusRunning:
		return "running for " + age(now.Sub(i.Started))
	case api.StatusRestarting:
		return fmt.Sprintf("restarting, exited (%d) %s", exitCode(i), ago(now.Sub(i.Finished)))
	case api.StatusStopped:
		text := "stopped "
		if i.ExitCode != nil {
			text = fmt.Sprintf("exited (%d) ", *i.ExitCode)
		} else if notStarted(i) {
			text = "start failed "
		}
		return text + ago(now.Sub(i.Finished))
	case api.StatusDead:
		if i.Error != "" { // what it says of itself cannot be read
			return printable(i.Error)
		}
		return "dead: its supervisor was killed"
	}
	return string(i.Status)
}

// notStarted tells whether a sandbox could not be started again, or its first
// command could not.
func notStarted(i api.Info) bool {
	return i.Status == api.StatusStopped && i.Error != "" && (i.ExitCode == nil || *i.ExitCode == 126 || *i.ExitCode == 127)
}

func (a *app) inspectCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "inspect [FLAGS] SANDBOX…",
		Short: "Show all that is known of sandboxes",
		Long: `Show all that is known of sandboxes, as JSON; with --json one line each. The values of
environment variables are left out: keys are often among them.`,
		Args:              positional("SANDBOX…"),
		ValidArgsFunction: a.completeSandboxes(-1, anyStatus),
		RunE: func(cmd *cobra.Command, refs []string) error {
			var errs []error
			for _, ref := range refs {
				inspection, err := a.options().Inspect(cmd.Context(), ref)
				if err == nil {
					show := printIndented
					if asJSON {
						show = printJSON
					}
					err = show(cmd.OutOrStdout(), inspection)
				}
				errs = append(errs, err)
			}
			return errors.Join(errs...)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "one object a line")
	return cmd
}

// deed is a command that does something to each of the sandboxes it is given,
// goes on after an error, and prints what it was given where it succeeded.
type deed struct {
	use, short, long, example string
	aliases                   []string
	sandboxes                 func(api.Info) bool // that are completed, and that a filter chooses from
	do                        func(ctx context.Context, o sandbox.Options, info api.Info) error
}

func (a *app) deedCommand(d deed) *cobra.Command {
	var asJSON bool
	var only filter
	cmd := &cobra.Command{
		Use:               d.use + " [FLAGS] SANDBOX…",
		Aliases:           d.aliases,
		Short:             d.short,
		Long:              d.long,
		Example:           d.example,
		Args:              only.orNamed,
		ValidArgsFunction: a.completeSandboxes(-1, d.sandboxes),
		RunE: func(cmd *cobra.Command, refs []string) error {
			o := a.options()
			refs, err := only.choose(cmd.Context(), o, refs, d.sandboxes)
			if err != nil {
				return err
			}
			var errs []error
			for _, ref := range refs {
				info, err := o.Find(cmd.Context(), ref)
				if err == nil {
					err = d.do(cmd.Context(), o, info)
				}
				if err == nil {
					if asJSON { // it is another by now
						if now, err := o.Find(cmd.Context(), info.ID); err == nil {
							info = now // else it is gone, as it may have been asked to be
						}
					}
					err = printEither(cmd.OutOrStdout(), asJSON, info, ref)
				}
				errs = append(errs, err)
			}
			return errors.Join(errs...)
		},
	}
	only.define(cmd.Flags())
	jsonFlag(cmd.Flags(), &asJSON)
	return cmd
}

// graceFlag says how long a first command has to end by itself: a duration, or
// as docker has it a number of seconds.
func graceFlag(cmd *cobra.Command, grace *time.Duration) {
	*grace = stopGrace
	parsed(cmd.Flags(), "time", "t", "`DURATION` that its first command has to end by itself (default 10s)", grace, func(text string) (time.Duration, error) {
		if d, err := time.ParseDuration(text + "s"); err == nil && d >= 0 {
			return d, nil
		}
		d, err := time.ParseDuration(text)
		if err != nil || d < 0 {
			return 0, errors.New("want seconds, or a duration like 90s")
		}
		return d, nil
	})
}

// stop stops a sandbox. One that does not run is left as it is.
func stop(ctx context.Context, o sandbox.Options, info api.Info, grace time.Duration) error {
	sb, err := o.Attach(ctx, info.ID)
	if errors.Is(err, sandbox.ErrNotRunning) || errors.Is(err, sandbox.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	defer sb.Close()
	return sb.Stop(ctx, grace)
}

func (a *app) stopCommand() *cobra.Command {
	var grace time.Duration
	cmd := a.deedCommand(deed{
		use:   "stop",
		short: "Stop sandboxes",
		long: `Send the first command its stop signal, which is the image's or SIGTERM, kill it when its
time is up, sync the disks and end the sandbox. One that was kept can be started again.`,
		sandboxes: isAlive,
		do:        func(ctx context.Context, o sandbox.Options, info api.Info) error { return stop(ctx, o, info, grace) },
	})
	graceFlag(cmd, &grace)
	return cmd
}

// start starts a sandbox again. One that runs is left as it is.
func (a *app) start(ctx context.Context, info api.Info) error {
	if info.Status.Alive() && !info.Ending() {
		return nil
	}
	_, err := a.supervise(ctx, order{Start: info.ID, Stdin: info.Stdin, Tty: info.Tty})
	return err
}

func (a *app) startCommand() *cobra.Command {
	return a.deedCommand(deed{
		use:   "start",
		short: "Start sandboxes again that have ended",
		long: `Start sandboxes again that have ended and were kept: the same first command on the disk
as it was, the same name and settings. Logs are appended to.`,
		sandboxes: func(i api.Info) bool { return !i.Status.Alive() },
		do:        func(ctx context.Context, _ sandbox.Options, info api.Info) error { return a.start(ctx, info) },
	})
}

func (a *app) restartCommand() *cobra.Command {
	var grace time.Duration
	cmd := a.deedCommand(deed{
		use:       "restart",
		short:     "Stop sandboxes and start them again",
		long:      "Stop sandboxes, as far as they run, and start them again.",
		sandboxes: anyStatus,
		do: func(ctx context.Context, o sandbox.Options, info api.Info) error {
			if info.AutoRemove {
				return fmt.Errorf("sandbox %q: it is removed when it ends, so it cannot be started again", info.Name)
			}
			if err := stop(ctx, o, info, grace); err != nil {
				return err
			}
			info, err := o.Find(ctx, info.ID)
			if err != nil {
				return err
			}
			return a.start(ctx, info)
		},
	})
	graceFlag(cmd, &grace)
	return cmd
}

func (a *app) killCommand() *cobra.Command {
	number := 9
	cmd := a.deedCommand(deed{
		use:   "kill",
		short: "Send a signal to the first command of sandboxes",
		long: `Send a signal, SIGKILL unless --signal says otherwise, to the first command of sandboxes.
A sandbox ends with its first command. One that idles ends with any signal that would end
a command.`,
		sandboxes: isAlive,
		do:        attached(func(ctx context.Context, sb *sandbox.Sandbox) error { return sb.Signal(ctx, number) }),
	})
	parsed(cmd.Flags(), "signal", "s", "`SIGNAL`, by name or number (default KILL)", &number, sandbox.ParseSignal)
	return cmd
}

func (a *app) pauseCommand() *cobra.Command {
	return a.deedCommand(deed{
		use:   "pause",
		short: "Have sandboxes stand still",
		long: `Have sandboxes stand still: what runs in them is held, takes no processor time and keeps
its memory, its connections and the time that it has left. ` + "`matchlock resume`" + ` has them go on.`,
		sandboxes: func(i api.Info) bool { return i.Status == api.StatusRunning },
		do:        attached(func(ctx context.Context, sb *sandbox.Sandbox) error { return sb.Pause(ctx) }),
	})
}

func (a *app) resumeCommand() *cobra.Command {
	return a.deedCommand(deed{
		use:       "resume",
		aliases:   []string{"unpause"},
		short:     "Have sandboxes go on that stand still",
		long:      "Have sandboxes go on that `matchlock pause` has made stand still, their clocks set.",
		sandboxes: func(i api.Info) bool { return i.Status == api.StatusPaused },
		do:        attached(func(ctx context.Context, sb *sandbox.Sandbox) error { return sb.Resume(ctx) }),
	})
}

// attached makes a deed of what is done to a sandbox that runs.
func attached(do func(context.Context, *sandbox.Sandbox) error) func(context.Context, sandbox.Options, api.Info) error {
	return func(ctx context.Context, o sandbox.Options, info api.Info) error {
		sb, err := o.Attach(ctx, info.ID)
		if err != nil {
			return err
		}
		defer sb.Close()
		return do(ctx, sb)
	}
}

func (a *app) removeCommand() *cobra.Command {
	var force bool
	cmd := a.deedCommand(deed{
		use:       "rm",
		aliases:   []string{"remove"},
		short:     "Remove sandboxes and all that they have written",
		long:      "Remove sandboxes that have ended, with all that they have written; with --force those too that run.",
		sandboxes: anyStatus,
		do: func(ctx context.Context, o sandbox.Options, info api.Info) error {
			return o.Remove(ctx, info.ID, force)
		},
	})
	cmd.Flags().BoolVarP(&force, "force", "f", false, "end those that run")
	return cmd
}

func (a *app) renameCommand() *cobra.Command {
	return &cobra.Command{
		Use:               "rename SANDBOX NAME",
		Short:             "Give a sandbox another name",
		Args:              positional("SANDBOX", "NAME"),
		ValidArgsFunction: a.completeSandboxes(1, anyStatus),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.options().Rename(cmd.Context(), args[0], args[1])
		},
	}
}

func (a *app) waitCommand() *cobra.Command {
	var asJSON bool
	var only filter
	cmd := &cobra.Command{
		Use:   "wait [FLAGS] SANDBOX…",
		Short: "Wait for sandboxes to end and print their exit codes",
		Long: `Wait for sandboxes to end, and print the exit code of each one's first command: 128+N if
signal N ended it, 124 if its time ran out, 125 if nobody knows, 0 of one that idled.`,
		Args:              only.orNamed,
		ValidArgsFunction: a.completeSandboxes(-1, isAlive),
		RunE: func(cmd *cobra.Command, refs []string) error {
			refs, err := only.choose(cmd.Context(), a.options(), refs, isAlive)
			if err != nil {
				return err
			}
			var errs []error
			for _, ref := range refs {
				info, err := await(cmd.Context(), a.options(), ref)
				if err == nil {
					err = printEither(cmd.OutOrStdout(), asJSON, info, strconv.Itoa(exitCode(info)))
				}
				errs = append(errs, err)
			}
			return errors.Join(errs...)
		},
	}
	only.define(cmd.Flags())
	jsonFlag(cmd.Flags(), &asJSON)
	return cmd
}

// await returns what is known of a sandbox when it has ended.
func await(ctx context.Context, o sandbox.Options, ref string) (api.Info, error) {
	info, err := o.Find(ctx, ref)
	if err != nil || !info.Status.Alive() {
		return info, err
	}
	sb, err := o.Attach(ctx, info.ID)
	if err == nil {
		defer sb.Close()
		var ended api.Info
		if ended, err = sb.Wait(ctx); err == nil {
			return ended, nil
		}
	}
	if errors.Is(err, sandbox.ErrNotRunning) { // since we looked, or its supervisor was killed
		return o.Find(ctx, info.ID)
	}
	return info, err
}

// exitCode is the code with which a sandbox that has ended ended.
func exitCode(info api.Info) int {
	switch {
	case info.ExitCode != nil:
		return *info.ExitCode
	case info.Status == api.StatusDead, notStarted(info):
		return statusFault
	}
	return 0
}

func (a *app) pruneCommand() *cobra.Command {
	var asJSON bool
	var only filter
	cmd := &cobra.Command{
		Use:   "prune [FLAGS]",
		Short: "Remove all sandboxes that have ended",
		Args:  positional(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			removed, err := a.options().Prune(cmd.Context(), func(i api.Info) bool { return !only.fits(i) })
			for _, info := range removed {
				err = errors.Join(err, printEither(cmd.OutOrStdout(), asJSON, info, info.Name))
			}
			return err
		},
	}
	only.define(cmd.Flags())
	jsonFlag(cmd.Flags(), &asJSON)
	return cmd
}

func (a *app) gcCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "gc [FLAGS]",
		Short: "Remove what killed processes have left",
		Long: `Remove what is left where supervisors of sandboxes were killed: sandboxes that were to be
removed at their end, and files of no use in the others. What runs, and what was kept,
stays. Every start does the same on its way.`,
		Args: positional(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			garbage, err := a.options().GC(cmd.Context())
			if asJSON {
				return errors.Join(err, printJSON(cmd.OutOrStdout(), garbage))
			}
			for _, name := range slices.Concat(garbage.Sandboxes, garbage.Files) {
				_, e := fmt.Fprintln(cmd.OutOrStdout(), printable(name))
				err = errors.Join(err, e)
			}
			return err
		},
	}
	jsonFlag(cmd.Flags(), &asJSON)
	return cmd
}

// imageNeeds are the images that are needed by what does not run.
func (a *app) imageNeeds(ctx context.Context) (image.Needs, error) {
	list, err := a.options().List(ctx)
	var needs image.Needs
	for _, info := range list {
		needs.Sandboxes = append(needs.Sandboxes, info.ImageDigest)
	}
	if err != nil {
		return needs, err
	}
	snapshots, err := a.options().Snapshots()
	needs.Snapshots = map[string]string{}
	for _, s := range snapshots {
		needs.Snapshots[s.ImageDigest] = s.Name
	}
	return needs, err
}

// Which sandboxes a shell completes.
func anyStatus(api.Info) bool    { return true }
func isAlive(info api.Info) bool { return info.Status.Alive() }

// completeSandboxes completes arguments that are sandboxes: the first n, all when
// n is negative.
func (a *app) completeSandboxes(n int, which func(api.Info) bool) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if n >= 0 && len(args) >= n {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		list, err := a.options().List(cmd.Context())
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		var names []cobra.Completion
		for _, info := range list {
			if which(info) && info.Name != "" && !slices.Contains(args, info.Name) {
				names = append(names, cobra.CompletionWithDesc(info.Name, info.Image+", "+string(info.Status)))
			}
		}
		return names, cobra.ShellCompDirectiveNoFileComp
	}
}
