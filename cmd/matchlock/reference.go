package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
)

// manCommand writes the man pages, for packages: a page for each command, of what its
// help says.
func (a *app) manCommand() *cobra.Command {
	return &cobra.Command{
		Use:    "__man FOLDER",
		Hidden: true,
		Args:   positional("FOLDER"),
		RunE: func(cmd *cobra.Command, args []string) error {
			var errs []error
			for _, c := range allCommands(cmd.Root()) {
				name := strings.ReplaceAll(c.CommandPath(), " ", "-") + ".1"
				errs = append(errs, os.WriteFile(filepath.Join(args[0], name), manPage(c), 0o644))
			}
			return errors.Join(errs...)
		},
	}
}

// allCommands are a command and those below it, as help lists them.
func allCommands(cmd *cobra.Command) []*cobra.Command {
	all := []*cobra.Command{cmd}
	for _, sub := range cmd.Commands() {
		if sub.IsAvailableCommand() {
			all = append(all, allCommands(sub)...)
		}
	}
	return all
}

// helpOf is what a command's --help says.
func helpOf(cmd *cobra.Command) string {
	var b bytes.Buffer
	out := cmd.OutOrStdout()
	cmd.SetOut(&b)
	help(cmd, nil)
	cmd.SetOut(out)
	return b.String()
}

// manPage is a command's page, man(7).
func manPage(cmd *cobra.Command) []byte {
	var b bytes.Buffer
	name := strings.ReplaceAll(cmd.CommandPath(), " ", "-")
	fmt.Fprintf(&b, ".TH %s 1 \"\" \"matchlock %s\" \"User Commands\"\n", roff(strings.ToUpper(name)), roff(version))
	fmt.Fprintf(&b, ".SH NAME\n%s \\- %s\n", roff(name), roff(cmd.Short))
	fmt.Fprintf(&b, ".SH SYNOPSIS\n.nf\n%s\n.fi\n.SH DESCRIPTION\n.nf\n", roff(usageLine(cmd)))
	for line := range strings.Lines(helpOf(cmd)) {
		b.WriteString(roff(line))
	}
	b.WriteString(".fi\n")
	if also := seeAlso(cmd); len(also) > 0 {
		fmt.Fprintf(&b, ".SH SEE ALSO\n%s\n", strings.Join(also, ", "))
	}
	return b.Bytes()
}

// seeAlso are the pages above and below a command's.
func seeAlso(cmd *cobra.Command) (pages []string) {
	page := func(c *cobra.Command) string {
		return "\\fB" + roff(strings.ReplaceAll(c.CommandPath(), " ", "-")) + "\\fR(1)"
	}
	if cmd.HasParent() {
		pages = append(pages, page(cmd.Parent()))
	}
	for _, sub := range cmd.Commands() {
		if sub.IsAvailableCommand() {
			pages = append(pages, page(sub))
		}
	}
	return pages
}

// roff is text as roff(7) prints it as it is.
func roff(text string) string {
	text = strings.NewReplacer(`\`, `\e`, "-", `\-`).Replace(text)
	if strings.HasPrefix(text, ".") || strings.HasPrefix(text, "'") {
		text = `\&` + text
	}
	return text
}

// writeReference writes docs/commands.md.
func writeReference(w io.Writer, root *cobra.Command) {
	fmt.Fprint(w, `# What does each command take?

What `+"`matchlock COMMAND --help`"+` says, in one place. It is made of the program:
`+"`go test ./cmd/matchlock -run Reference -update`"+` writes it anew.

`)
	all := allCommands(root)
	for _, cmd := range all[1:] {
		path := cmd.CommandPath()
		depth := strings.Count(path, " ")
		fmt.Fprintf(w, "%s- [`%s`](#%s): %s\n", strings.Repeat("  ", depth-1), path, strings.ReplaceAll(path, " ", "-"), cmd.Short)
	}
	for _, cmd := range all {
		fmt.Fprintf(w, "\n## %s\n\n```text\n%s```\n", cmd.CommandPath(), helpOf(cmd))
	}
}
