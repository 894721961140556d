package main

import (
	"fmt"

	"github.com/spf13/cobra"
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

// complete names the values of a flag.
func complete(cmd *cobra.Command, flag string, values ...string) {
	// Fails only for a flag that does not exist, which a test would show.
	_ = cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp))
}

// completeImages completes arguments that are names of local images: the first
// n, all when n is negative. What follows is for the shell.
func (a *app) completeImages(n int) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if n >= 0 && len(args) >= n {
			return nil, cobra.ShellCompDirectiveDefault
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
