package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/matchlock/matchlock/api"
	"github.com/matchlock/matchlock/sandbox"
)

func (a *app) commitCommand() *cobra.Command {
	var o sandbox.CommitOptions
	var pause, asJSON bool
	cmd := &cobra.Command{
		Use:   "commit [FLAGS] SANDBOX IMAGE",
		Short: "Make an image of a sandbox's files",
		Long: `Make an image of the files of a sandbox that runs, as they are now, and give it the name
IMAGE. What the sandbox has written is one layer upon those of the image that it was made
from, which the store has once. The configuration is that image's, with the changes: what
"run" was told, variables and commands, is not in it.

Volumes, folders of the host, and what is in memory (/run, --tmpfs) are left out, and what
matchlock itself puts there: the CA of its network, hosts, names.

The sandbox stands still until its files are read. With --pause=false it goes on, and what
it writes then may be in the image half or not at all.`,
		Example: `  matchlock commit web web:ready
  matchlock commit -m 'with ruff' -c 'CMD ["ruff", "check"]' tools ruff
  matchlock commit web snap && matchlock image save snap | docker load`,
		Args:              positional("SANDBOX", "IMAGE"),
		ValidArgsFunction: a.completeCommit,
		RunE: func(cmd *cobra.Command, args []string) error {
			bars := a.newBars()
			defer bars.close()
			options := a.options()
			options.Progress = bars.progress
			sb, err := options.Attach(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			defer sb.Close()
			o.Running = !pause
			digest, err := sb.Commit(cmd.Context(), args[1], o)
			if err != nil {
				return err
			}
			bars.close()
			if !asJSON {
				_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s %s\n", args[1], digest)
				return err
			}
			store, err := a.store()
			if err != nil {
				return err
			}
			return inspectImage(cmd, store, args[1], printJSON)
		},
	}
	flags := cmd.Flags()
	changeFlag(flags, &o.Changes)
	flags.StringVarP(&o.Author, "author", "a", "", "`AUTHOR` of the image, for its history (default the other image's)")
	flags.StringVarP(&o.Message, "message", "m", "", "`TEXT` for the image's history")
	flags.BoolVar(&pause, "pause", true, "have the sandbox stand still meanwhile")
	parsed(flags, "max-size", "", "`SIZE` of what the sandbox may have written (default 64g)", &o.MaxBytes, sizeIn(api.GiB))
	jsonFlag(flags, &asJSON)
	return cmd
}

// completeCommit completes a sandbox that runs, then an image: a name may be taken again.
func (a *app) completeCommit(cmd *cobra.Command, args []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) == 0 {
		return a.completeSandboxes(1, isAlive)(cmd, args, typed)
	}
	return a.completeImages(2)(cmd, args, typed)
}
