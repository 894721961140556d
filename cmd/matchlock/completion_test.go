package main

import (
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// A shell completes each argument, and each flag's value: by what there is, by
// files, or by nothing where only the user can know. None is forgotten.
func TestEverythingIsCompleted(t *testing.T) {
	for _, cmd := range allCommands((&app{}).command()) {
		if !cmd.HasSubCommands() && cmd.ValidArgsFunction == nil && len(cmd.ValidArgs) == 0 {
			t.Errorf("`%s`: nothing says how its arguments are completed", cmd.UseLine())
		}
		cmd.LocalFlags().VisitAll(func(f *pflag.Flag) {
			if _, said := cmd.GetFlagCompletionFunc(f.Name); takesValue(f) && !said {
				t.Errorf("`%s --%s`: nothing says how its value is completed; see completeRest", cmd.CommandPath(), f.Name)
			}
		})
	}
}

// What prints a result prints it as JSON too, and where that is a list by names alone.
func TestEverythingIsJSON(t *testing.T) {
	// These print nothing of ours, or nothing.
	without := map[string]string{
		"run": "prints what the command says", "exec": "prints what the command says", "shell": "prints what the command says",
		"attach": "prints what the command says", "cp": "an archive", "image save": "an archive", "snapshot export": "a file",
		"completion": "a script", "rename": "nothing", "image tag": "nothing", "policy check": "nothing",
		"secret rotate": "nothing", "secret revoke": "nothing",
	}
	for _, cmd := range allCommands((&app{}).command()) {
		path := pathOf(cmd)
		if cmd.HasSubCommands() {
			continue
		}
		if (cmd.Flag("json") == nil) != (without[path] != "") {
			t.Errorf("`%s`: has --json: %v, prints: %q", path, cmd.Flag("json") != nil, without[path])
		}
		if isList(cmd) && cmd.Flags().ShorthandLookup("q") == nil {
			t.Errorf("`%s`: a list without -q", path)
		}
	}
}

func isList(cmd *cobra.Command) bool {
	return cmd.Name() == "ps" || cmd.Name() == "ls" || strings.HasSuffix(cmd.Name(), "images")
}
