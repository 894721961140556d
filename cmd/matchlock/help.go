package main

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// showHelp runs a command that only has others below it.
func showHelp(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		help(cmd, nil)
		return nil
	}
	err := fmt.Errorf("unknown command %q", strings.TrimSpace(pathOf(cmd)+" "+args[0]))
	for cmd.SuggestionsMinimumDistance = 1; cmd.SuggestionsMinimumDistance <= 2; cmd.SuggestionsMinimumDistance++ { // the nearest first
		if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
			// Letters are swapped more often than they are lost.
			sameLength := slices.IndexFunc(near, func(name string) bool { return len(name) == len(args[0]) })
			best := near[max(0, sameLength)]
			err = fmt.Errorf("%w; did you mean %q?", err, strings.TrimSpace(pathOf(cmd)+" "+best))
			break
		}
	}
	return usageError{err, pathOf(cmd)}
}

// groupKey is the annotation by which help sorts flags under headings.
const groupKey = "group"

// group adds the flags that define makes, under a heading of the help.
func group(cmd *cobra.Command, heading string, define func(*pflag.FlagSet)) {
	flags := pflag.NewFlagSet(heading, pflag.ContinueOnError)
	flags.SortFlags = false
	define(flags)
	flags.VisitAll(func(f *pflag.Flag) { flags.SetAnnotation(f.Name, groupKey, []string{heading}) })
	cmd.Flags().AddFlagSet(flags)
}

// help prints what a command is for and takes.
func help(cmd *cobra.Command, _ []string) {
	w := cmd.OutOrStdout()
	about := cmd.Long
	if about == "" {
		about = cmd.Short + "."
	}
	fmt.Fprintf(w, "%s\n\nUsage:\n  %s\n", about, usageLine(cmd))
	if len(cmd.Aliases) > 0 {
		fmt.Fprintf(w, "\nAlso:\n  %s\n", strings.Join(cmd.Aliases, ", "))
	}
	if cmd.Example != "" {
		fmt.Fprintf(w, "\nExamples:\n%s\n", cmd.Example)
	}
	if cmd.HasAvailableSubCommands() {
		fmt.Fprintf(w, "\nCommands:\n")
		for _, sub := range cmd.Commands() {
			if sub.IsAvailableCommand() {
				fmt.Fprintf(w, "  %-*s %s\n", sub.NamePadding(), sub.Name(), sub.Short)
			}
		}
	}
	flagHelp(w, cmd)
}

func usageLine(cmd *cobra.Command) string {
	if cmd.HasParent() {
		return cmd.Parent().CommandPath() + " " + cmd.Use
	}
	return cmd.Use
}

// flagHelp prints the flags heading by heading, in the order they were defined.
func flagHelp(w io.Writer, cmd *cobra.Command) {
	var headings []string
	sets := map[string]*pflag.FlagSet{}
	add := func(heading string, f *pflag.Flag) {
		if sets[heading] == nil {
			headings = append(headings, heading)
			sets[heading] = pflag.NewFlagSet(heading, pflag.ContinueOnError)
			sets[heading].SortFlags = false
		}
		sets[heading].AddFlag(f)
	}
	everywhere := cmd.Root().PersistentFlags()
	own := cmd.Flags()
	own.SortFlags = false
	own.VisitAll(func(f *pflag.Flag) {
		if everywhere.Lookup(f.Name) != nil {
			return
		}
		heading := "Flags"
		if groups := f.Annotations[groupKey]; len(groups) > 0 {
			heading = groups[0]
		}
		add(heading, f)
	})
	everywhere.VisitAll(func(f *pflag.Flag) { add("Everywhere", f) })
	for _, heading := range headings {
		fmt.Fprintf(w, "\n%s:\n%s", heading, sets[heading].FlagUsages())
	}
}
