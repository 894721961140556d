package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/matchlock/matchlock/api"
)

func (a *app) snapshotCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "snapshot COMMAND",
		Short: "Keep sandboxes as they are at a moment",
		Long: `Keep sandboxes as they are at a moment, processes and their memory among it, for others to
go on from: "matchlock run --snapshot NAME". Snapshots outlive the sandbox, and a reboot.`,
		Args: cobra.ArbitraryArgs,
		RunE: showHelp,
	}
	cmd.AddCommand(a.snapshotCreateCommand(), a.snapshotListCommand(), a.snapshotInspectCommand(), a.snapshotRemoveCommand(),
		a.snapshotExportCommand(), a.snapshotImportCommand())
	return cmd
}

func (a *app) snapshotCreateCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "create [FLAGS] SANDBOX [NAME]",
		Short: "Keep a sandbox as it is now",
		Long: `Keep a sandbox that runs as it is now, under NAME or one made of its own, which is
printed. It stands still for some tens of milliseconds and goes on.

All that is in its memory is in the snapshot: keys and the values of its environment too.
Volumes and disks of yours are not: nothing goes on from it when they have changed.`,
		Example: `  matchlock snapshot create web
  matchlock snapshot create agent prepared && matchlock run --snapshot prepared`,
		Args:              positional("SANDBOX", "[NAME]"),
		ValidArgsFunction: a.completeSandboxes(1, isAlive),
		RunE: func(cmd *cobra.Command, args []string) error {
			sb, err := a.options().Attach(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			defer sb.Close()
			name := ""
			if len(args) == 2 {
				if name = args[1]; name == "" {
					return usageError{errors.New("snapshot create: NAME is empty"), pathOf(cmd)}
				}
			}
			s, err := sb.Snapshot(cmd.Context(), name)
			if err != nil {
				return err
			}
			return printEither(cmd.OutOrStdout(), asJSON, s, s.Name)
		},
	}
	jsonFlag(cmd.Flags(), &asJSON)
	return cmd
}

func (a *app) snapshotListCommand() *cobra.Command {
	return listCommand("List the snapshots",
		`List the snapshots, the last used first: the sandbox that each is of, its image and memory,
and the room that it takes. What it shares with others counts.`,
		func() ([]api.Snapshot, error) { return a.options().Snapshots() }, printSnapshots, func(s api.Snapshot) api.Info {
			return api.Info{ID: s.Sandbox, Name: s.Name, Image: s.Image, Labels: s.Labels}
		}, "label", "name", "image")
}

// listCommand lists what there is, as a table, by names or as JSON. filters are the keys by
// which they are filtered, and as is what these are compared with.
func listCommand[T any](short, long string, all func() ([]T, error), table func(io.Writer, []T, time.Time) error, as func(T) api.Info, filters ...string) *cobra.Command {
	var asJSON, quiet bool
	var only filter
	cmd := &cobra.Command{
		Use:     "ls [FLAGS]",
		Aliases: []string{"list"},
		Short:   short,
		Long:    long,
		Args:    positional(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			things, err := all()
			if err != nil {
				return err
			}
			things = slices.DeleteFunc(things, func(thing T) bool { return !only.fits(as(thing)) })
			w := cmd.OutOrStdout()
			if !asJSON && !quiet {
				return table(w, things, time.Now())
			}
			for _, thing := range things {
				if err := printEither(w, asJSON, thing, printable(as(thing).Name)); err != nil {
					return err
				}
			}
			return nil
		},
	}
	only.define(cmd.Flags(), filters...)
	jsonFlag(cmd.Flags(), &asJSON)
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "print names only")
	onlyOne(cmd, "json", "quiet")
	return cmd
}

func printSnapshots(w io.Writer, snapshots []api.Snapshot, now time.Time) error {
	table := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	fmt.Fprintln(table, "NAME\tSANDBOX\tIMAGE\tCOMMAND\tMEMORY\tSIZE\tCREATED")
	for _, s := range snapshots {
		if s.Damage != "" {
			fmt.Fprintf(table, "%s\t-\t-\t-\t-\t%s\tunusable: %s\n", printable(s.Name), api.FormatSize(s.Size), printable(s.Damage))
			continue
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", printable(s.Name), orDash(s.SandboxName), orDash(shortImage(s.Image)), shortCommand(s.Command),
			api.FormatSize(s.Memory), api.FormatSize(s.Size), ago(now.Sub(s.Created)))
	}
	return table.Flush()
}

func (a *app) snapshotInspectCommand() *cobra.Command {
	return inspectCommand("snapshots", a.completeSnapshots(-1), func(name string) (api.Snapshot, error) { return a.options().FindSnapshot(name) })
}

// inspectCommand shows what find returns of each name.
func inspectCommand[T any](things string, complete cobra.CompletionFunc, find func(name string) (T, error)) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:               "inspect [FLAGS] NAME…",
		Short:             "Show what is known of " + things,
		Long:              "Show what is known of " + things + ", as JSON; with --json one line each.",
		Args:              positional("NAME…"),
		ValidArgsFunction: complete,
		RunE: func(cmd *cobra.Command, names []string) error {
			show := printIndented
			if asJSON {
				show = printJSON
			}
			return each(cmd.Context(), names, func(name string) error {
				found, err := find(name)
				if err != nil {
					return err
				}
				return show(cmd.OutOrStdout(), found)
			})
		},
	}
	jsonFlag(cmd.Flags(), &asJSON)
	return cmd
}

func (a *app) snapshotRemoveCommand() *cobra.Command {
	return removeCommand("Remove snapshots", "Remove snapshots, and print their names. Sandboxes that go on from them do so.",
		a.completeSnapshots(-1), func(_ context.Context, name string) error { return a.options().RemoveSnapshot(name) })
}

// removeCommand removes what has each name.
func removeCommand(short, long string, complete cobra.CompletionFunc, remove func(ctx context.Context, name string) error) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:               "rm [FLAGS] NAME…",
		Aliases:           []string{"remove"},
		Short:             short,
		Long:              long,
		Args:              positional("NAME…"),
		ValidArgsFunction: complete,
		RunE: func(cmd *cobra.Command, names []string) error {
			return each(cmd.Context(), names, func(name string) error {
				if err := remove(cmd.Context(), name); err != nil {
					return err
				}
				return printEither(cmd.OutOrStdout(), asJSON, removed{name}, name)
			})
		},
	}
	jsonFlag(cmd.Flags(), &asJSON)
	return cmd
}

// removed is what `rm --json` tells of a thing that is gone.
type removed struct {
	Name string `json:"name"`
}

func (a *app) snapshotExportCommand() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "export [FLAGS] NAME",
		Short: "Write a snapshot to one file",
		Long: `Write a snapshot, with the layers of its image, to one file for another host, on standard
output or in a file. It is packed, and has sums of all that is in it. Volumes do not go
with it: what goes on elsewhere is given them by "run --volume", with what was in them.

All that was in the sandbox's memory is in the file: keys and the values of its environment too.`,
		Example: `  matchlock snapshot export -o prepared.snapshot prepared
  matchlock snapshot export prepared | ssh other matchlock snapshot import prepared`,
		Args:              positional("NAME"),
		ValidArgsFunction: a.completeSnapshots(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return writeArchive(cmd, "snapshot export", output, func(w io.Writer) error {
				return a.options().ExportSnapshot(cmd.Context(), args[0], w)
			})
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "", "write to `FILE`")
	return cmd
}

func (a *app) snapshotImportCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "import [FLAGS] NAME [FILE]",
		Short: "Make a snapshot of such a file",
		Long: `Make a snapshot of what "matchlock snapshot export" has written; without FILE, or with -,
of what comes on standard input. Nothing of it is used before all of it is there and its
sums are right.

The sums do not say who made it. What goes on from it runs what is in its memory, and
QEMU reads a state of devices that came with it: import what you trust.`,
		Example: `  matchlock snapshot import prepared prepared.snapshot
  matchlock run --snapshot prepared`,
		Args:              positional("NAME", "[FILE]"),
		ValidArgsFunction: thenFiles(nothing),
		RunE: func(cmd *cobra.Command, args []string) error {
			in := os.Stdin
			if len(args) == 2 && args[1] != "-" {
				f, err := os.Open(args[1])
				if err != nil {
					return err
				}
				defer f.Close()
				in = f
			} else if isTerminal(in) {
				return usageError{errors.New("snapshot import: standard input is a terminal; give a FILE or redirect one"), pathOf(cmd)}
			}
			s, err := untilDone(cmd.Context(), func(ctx context.Context) (api.Snapshot, error) {
				return a.options().ImportSnapshot(ctx, args[0], in)
			})
			if err != nil {
				return err
			}
			fmt.Fprintln(cmd.ErrOrStderr(), "matchlock: note: the sums are right; they do not say who made it, or what is in it")
			return printEither(cmd.OutOrStdout(), asJSON, s, s.Name)
		},
	}
	jsonFlag(cmd.Flags(), &asJSON)
	return cmd
}

// each does something with all that are named, whatever becomes of the others.
func each(ctx context.Context, names []string, do func(name string) error) error {
	var errs []error
	for _, name := range names {
		if ctx.Err() != nil {
			break
		}
		errs = append(errs, do(name))
	}
	return errors.Join(errs...)
}

// completeSnapshots completes the first n arguments, all if n is negative.
func (a *app) completeSnapshots(n int) cobra.CompletionFunc {
	return func(_ *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if n >= 0 && len(args) >= n {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		snapshots, err := a.options().Snapshots()
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		var names []cobra.Completion
		for _, s := range snapshots {
			if !slices.Contains(args, s.Name) {
				names = append(names, cobra.CompletionWithDesc(s.Name, printable("of "+s.SandboxName+", "+s.Image)))
			}
		}
		return names, cobra.ShellCompDirectiveNoFileComp
	}
}

// fixed are the flags of what cannot be another in what goes on from a snapshot.
var fixed = []string{
	"cpus", "memory", "disk-size", "shm-size", "ulimit", "tmpfs", "read-only", "cap-add", "cap-drop", "allow-setuid", "privileged",
	"pull", "platform", "cold", "no-network", "mtu", "dns-mode",
}

// checkFixed refuses flags that --snapshot leaves no choice of.
func checkFixed(cmd *cobra.Command) error {
	for _, name := range fixed {
		if cmd.Flags().Changed(name) {
			return usageError{fmt.Errorf("--%s and --snapshot: only one may be given, since what goes on from a snapshot has what that had", name), pathOf(cmd)}
		}
	}
	return nil
}
