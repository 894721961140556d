package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/matchlock/matchlock/api"
)

func (a *app) volumeCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "volume COMMAND",
		Short: "Keep data between sandboxes",
		Long: `Keep data between sandboxes: a volume is a disk that outlives them. "matchlock run
--volume NAME:PATH" gives it to one that may write to it, with :ro to any number that read.`,
		Args: cobra.ArbitraryArgs,
		RunE: showHelp,
	}
	cmd.AddCommand(a.volumeCreateCommand(), a.volumeListCommand(), a.volumeInspectCommand(), a.volumeRemoveCommand(), a.volumeCopyCommand())
	return cmd
}

func (a *app) volumeCreateCommand() *cobra.Command {
	var size int64
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "create [FLAGS] NAME",
		Short: "Make an empty volume",
		Long: `Make an empty volume, and print its name. It has an ext4 file system, whose folder belongs
to root. The host's disk is used only as it is written.`,
		Example: `  matchlock volume create data
  matchlock volume create --size 50g models`,
		Args:              positional("NAME"),
		ValidArgsFunction: nothing,
		RunE: func(cmd *cobra.Command, args []string) error {
			v, err := untilDone(cmd.Context(), func(ctx context.Context) (api.Volume, error) {
				return a.options().CreateVolume(ctx, args[0], size)
			})
			if err != nil {
				return err
			}
			return printEither(cmd.OutOrStdout(), asJSON, v, v.Name)
		},
	}
	parsed(cmd.Flags(), "size", "", "`SIZE` of the disk, bare in GiB (default 10)", &size, sizeIn(api.GiB))
	jsonFlag(cmd.Flags(), &asJSON)
	return cmd
}

func (a *app) volumeListCommand() *cobra.Command {
	return listCommand("List the volumes",
		`List the volumes: how large a disk each is, the room that it takes on the host, and the
sandboxes that have it now.`,
		func() ([]api.Volume, error) { return a.options().Volumes() }, printVolumes, func(v api.Volume) api.Info { return api.Info{Name: v.Name} }, "name")
}

func printVolumes(w io.Writer, volumes []api.Volume, now time.Time) error {
	table := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	fmt.Fprintln(table, "NAME\tSIZE\tUSED\tCHANGED\tIN USE BY")
	for _, v := range volumes {
		var users []string
		for _, u := range v.Users {
			users = append(users, printable(u.SandboxName))
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\n", v.Name, api.FormatSize(v.Size), api.FormatSize(v.Used), ago(now.Sub(v.Changed)), orDash(strings.Join(users, ", ")))
	}
	return table.Flush()
}

func (a *app) volumeInspectCommand() *cobra.Command {
	return inspectCommand("volumes", a.completeVolumes(-1), func(name string) (api.Volume, error) { return a.options().FindVolume(name) })
}

func (a *app) volumeRemoveCommand() *cobra.Command {
	return removeCommand("Remove volumes and what is in them", "Remove volumes and what is in them, and print their names. One that a sandbox has stays.",
		a.completeVolumes(-1), func(ctx context.Context, name string) error { return a.options().RemoveVolume(ctx, name) })
}

func (a *app) volumeCopyCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "cp [FLAGS] SRC DST",
		Short: "Copy a volume",
		Long: `Copy a volume to one that there is not yet. SRC or DST may be a file of the host, a raw
ext4 image, if its path has a slash. A volume that a sandbox writes to is not copied.`,
		Example: `  matchlock volume cp data data-before
  matchlock volume cp data ./data.ext4`,
		Args:              positional("SRC", "DST"),
		ValidArgsFunction: thenFiles(a.completeVolumes(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			v, err := untilDone(cmd.Context(), func(ctx context.Context) (api.Volume, error) {
				return a.options().CopyVolume(ctx, args[0], args[1])
			})
			if err != nil {
				return err
			}
			return printEither(cmd.OutOrStdout(), asJSON, v, args[1])
		},
	}
	jsonFlag(cmd.Flags(), &asJSON)
	return cmd
}

// completeVolumes completes the first n arguments, all if n is negative.
func (a *app) completeVolumes(n int) cobra.CompletionFunc {
	return func(_ *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if n >= 0 && len(args) >= n {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		volumes, err := a.options().Volumes()
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		var names []cobra.Completion
		for _, v := range volumes {
			if !slices.Contains(args, v.Name) {
				names = append(names, cobra.CompletionWithDesc(v.Name, api.FormatSize(v.Size)))
			}
		}
		return names, cobra.ShellCompDirectiveNoFileComp
	}
}

// completeVolumeFlag completes the names of volumes, beside files of the host.
func (a *app) completeVolumeFlag(*cobra.Command, []string, string) ([]cobra.Completion, cobra.ShellCompDirective) {
	volumes, err := a.options().Volumes()
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	var names []cobra.Completion
	for _, v := range volumes {
		names = append(names, v.Name+":")
	}
	return names, cobra.ShellCompDirectiveNoSpace
}
