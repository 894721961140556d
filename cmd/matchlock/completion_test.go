package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// A shell completes each argument, and each flag's value: by what there is, by
// files, or by nothing where only the user can know. None is forgotten.
func TestEverythingIsCompleted(t *testing.T) {
	a := &app{}
	root := a.command()
	a.completeRest(root)
	for _, cmd := range allCommands(root) {
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

// Keys of what is printed as JSON are in snake_case.
func TestJSONKeys(t *testing.T) {
	key := regexp.MustCompile("`json:\"([^\",]*)")
	snake := regexp.MustCompile(`^([a-z][a-z0-9]*(_[a-z0-9]+)*|-|)$`)
	seen := 0
	for _, dir := range []string{".", "../../api", "../../sandbox"} {
		paths, err := filepath.Glob(filepath.Join(dir, "*.go"))
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range paths {
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range key.FindAllSubmatch(text, -1) {
				if seen++; !snake.Match(m[1]) {
					t.Errorf("%s: key %q", path, m[1])
				}
			}
		}
	}
	if seen == 0 {
		t.Error("no keys were found")
	}
}

// A usage line says whether there are flags.
func TestUsageLines(t *testing.T) {
	for _, cmd := range allCommands((&app{}).command())[1:] {
		flags := cmd.LocalNonPersistentFlags()
		own := false
		flags.VisitAll(func(f *pflag.Flag) { own = own || f.Name != "help" })
		if strings.Contains(cmd.Use, "[FLAGS]") != own {
			t.Errorf("`%s`: has flags: %v", usageLine(cmd), own)
		}
	}
}
