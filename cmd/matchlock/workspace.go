package main

import (
	"errors"
	"io"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/matchlock/matchlock/api"
	"github.com/matchlock/matchlock/sandbox"
)

// workspacePlace is where --workspace has its folder in the guest.
const workspacePlace = "/workspace"

// parseWorkspace reads DIR[:rw|ro|overlay].
func parseWorkspace(text string) (api.Mount, error) {
	dir, mode := text, api.MountOverlay
	for _, m := range []api.MountMode{api.MountReadWrite, api.MountReadOnly, api.MountOverlay} {
		if rest, ok := strings.CutSuffix(text, ":"+string(m)); ok {
			dir, mode = rest, m
			break
		}
	}
	if dir == "" {
		return api.Mount{}, errors.New("want DIR[:rw|ro|overlay]; DIR may be . for the present folder")
	}
	if m := (api.Mount{Source: dir}); m.IsVolume() {
		dir = "./" + dir // a folder in any case
	}
	return api.Mount{Source: dir, Target: workspacePlace, Mode: mode}, nil
}

func (a *app) workspaceCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "workspace COMMAND",
		Short: "See, take over or forget what a sandbox changed in an overlay",
		Long: `See, take over or forget what a sandbox changed in a folder that it has as an overlay
("matchlock run --workspace DIR", or -v DIR:PATH:overlay). The sandbox may run, or be
stopped.`,
		Args: cobra.ArbitraryArgs,
		RunE: showHelp,
	}
	cmd.AddCommand(a.workspaceDiffCommand(), a.workspaceApplyCommand(), a.workspaceDiscardCommand())
	return cmd
}

// mountFlag says which overlay.
func mountFlag(fs *pflag.FlagSet, target *string) {
	fs.StringVar(target, "mount", "", "the overlay at `PATH` in the sandbox (default the only one)")
}

func (a *app) workspaceDiffCommand() *cobra.Command {
	var target string
	var asPatch, asJSON bool
	cmd := &cobra.Command{
		Use:   "diff [FLAGS] SANDBOX",
		Short: "Show what it changed",
		Long: `Show what the sandbox changed: A is added, M modified, D deleted. After ! stands why a change
is not applied unless that is asked for: a program of the host could run what is there, or
follow it elsewhere, or the host has changed the file too.`,
		Example: `  matchlock workspace diff web
  matchlock workspace diff --patch web | less`,
		Args:              positional("SANDBOX"),
		ValidArgsFunction: a.completeSandboxes(1, anyStatus),
		RunE: func(cmd *cobra.Command, args []string) error {
			overlay := a.options().Overlay(args[0], target)
			if asPatch {
				w := cmd.OutOrStdout()
				if isTerminal(w) { // which does what the guest's text says
					w = &linesWriter{w: w}
				}
				return overlay.Patch(cmd.Context(), w)
			}
			changes, err := overlay.Changes(cmd.Context())
			if err != nil {
				return err
			}
			return printChanges(cmd.OutOrStdout(), asJSON, changes)
		},
	}
	mountFlag(cmd.Flags(), &target)
	cmd.Flags().BoolVarP(&asPatch, "patch", "p", false, "as a patch, for reading and for \"git apply\"")
	jsonFlag(cmd.Flags(), &asJSON)
	onlyOne(cmd, "patch", "json")
	return cmd
}

func printChanges(w io.Writer, asJSON bool, changes []api.FileChange) error {
	for _, c := range changes {
		letter := strings.ToUpper(string(c.Kind[:1]))
		name := c.Path
		if name == "" {
			name = "."
		}
		line := letter + " " + printable(name)
		for _, why := range []string{c.Danger, c.Conflict} {
			if why != "" {
				line += "  ! " + printable(why)
			}
		}
		if err := printEither(w, asJSON, c, line); err != nil {
			return err
		}
	}
	return nil
}

func (a *app) workspaceApplyCommand() *cobra.Command {
	var target string
	var asJSON bool
	var o sandbox.ApplyOptions
	cmd := &cobra.Command{
		Use:   "apply [FLAGS] SANDBOX",
		Short: "Put on the host what it changed",
		Long: `Put on the host what the sandbox changed, each file as a whole, and print what was done.
What is applied is no change any more. Owners and set-id bits stay behind.

If a program of the host could run what a change makes, or follow it elsewhere (hooks of git,
.envrc, a link that leads out of the folder), or if the host has changed the same file, nothing
is applied: see "matchlock workspace diff".`,
		Args:              positional("SANDBOX"),
		ValidArgsFunction: a.completeSandboxes(1, anyStatus),
		RunE: func(cmd *cobra.Command, args []string) error {
			done, err := a.options().Overlay(args[0], target).Apply(cmd.Context(), o)
			return errors.Join(err, printChanges(cmd.OutOrStdout(), asJSON, done))
		},
	}
	mountFlag(cmd.Flags(), &target)
	cmd.Flags().BoolVar(&o.Unsafe, "unsafe", false, "what programs of the host could run or follow, too")
	cmd.Flags().BoolVar(&o.Force, "force", false, "over what the host has changed since")
	jsonFlag(cmd.Flags(), &asJSON)
	return cmd
}

func (a *app) workspaceDiscardCommand() *cobra.Command {
	var target string
	var asJSON bool
	cmd := &cobra.Command{
		Use:               "discard [FLAGS] SANDBOX",
		Short:             "Forget what it changed",
		Long:              "Forget what the sandbox changed: it has the host's files again.",
		Args:              positional("SANDBOX"),
		ValidArgsFunction: a.completeSandboxes(1, anyStatus),
		RunE: func(cmd *cobra.Command, args []string) error {
			info, err := a.options().Find(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if err := a.options().Overlay(info.ID, target).Discard(cmd.Context()); err != nil {
				return err
			}
			return printEither(cmd.OutOrStdout(), asJSON, info, args[0])
		},
	}
	mountFlag(cmd.Flags(), &target)
	jsonFlag(cmd.Flags(), &asJSON)
	return cmd
}
