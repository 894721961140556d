package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/matchlock/matchlock/api"
)

func (a *app) cacheCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "cache COMMAND",
		Short: "Work with the templates that sandboxes are copies of",
		Long: `Work with templates: machines that have booted, by which sandboxes begin as copies. The
first sandbox of an image, or "matchlock warm", makes one. All may be removed at any time.`,
		Args: cobra.ArbitraryArgs,
		RunE: showHelp,
	}
	cmd.AddCommand(a.cacheListCommand(), a.cacheVerifyCommand(), a.cachePruneCommand())
	return cmd
}

func (a *app) cacheListCommand() *cobra.Command {
	var asJSON, quiet bool
	cmd := &cobra.Command{
		Use:     "ls [FLAGS]",
		Aliases: []string{"list"},
		Short:   "List the templates",
		Long: `List the templates, the last used first: the image that each was made for, the machine's
processors and memory, and the room that it takes.`,
		Args: positional(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			templates, err := a.options().Templates()
			if err != nil {
				return err
			}
			w := cmd.OutOrStdout()
			if !asJSON && !quiet {
				return printTemplates(w, templates, time.Now())
			}
			for _, t := range templates {
				if err := printEither(w, asJSON, t, printable(t.ID)); err != nil {
					return err
				}
			}
			return nil
		},
	}
	jsonFlag(cmd.Flags(), &asJSON)
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "print ids only")
	onlyOne(cmd, "json", "quiet")
	return cmd
}

func printTemplates(w io.Writer, templates []api.Template, now time.Time) error {
	table := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	fmt.Fprintln(table, "ID\tIMAGE\tCPUS\tMEMORY\tSIZE\tUSED")
	for _, t := range templates {
		used := ago(now.Sub(t.Used))
		if fault := cmp.Or(t.Damage, t.Stale); fault != "" {
			used = "unusable: " + printable(fault)
		}
		fmt.Fprintf(table, "%s\t%s\t%d\t%s\t%s\t%s\n", shortTemplate(t), orDash(shortImage(t.Image)), t.CPUs, api.FormatSize(t.Memory), api.FormatSize(t.Size), used)
	}
	return table.Flush()
}

// shortTemplate is enough of an id to tell templates apart.
func shortTemplate(t api.Template) string { return printable(t.ID[:min(12, len(t.ID))]) }

func (a *app) cacheVerifyCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "verify [FLAGS]",
		Short: "Look for damaged templates and remove them",
		Long: `Compare all that the templates hold with what was written, and remove those that are
damaged. They are printed, with --json the others too, and the exit status is 1 then. A
start looks at less of them.`,
		Args: positional(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			all, err := a.options().VerifyTemplates(cmd.Context())
			errs := []error{err}
			damaged := 0
			for _, t := range all {
				if t.Damage != "" {
					damaged++
				}
				if asJSON {
					errs = append(errs, printJSON(cmd.OutOrStdout(), t))
				} else if t.Damage != "" {
					_, err := fmt.Fprintf(cmd.OutOrStdout(), "%s %s: %s\n", shortTemplate(t), orDash(shortImage(t.Image)), printable(t.Damage))
					errs = append(errs, err)
				}
			}
			if !asJSON {
				fmt.Fprintf(cmd.ErrOrStderr(), "looked at %s, %d damaged\n", countTemplates(len(all)), damaged)
			}
			if err := errors.Join(errs...); err != nil {
				return err
			}
			if damaged > 0 {
				return exitStatus(statusNo)
			}
			return nil
		},
	}
	jsonFlag(cmd.Flags(), &asJSON)
	return cmd
}

func countTemplates(n int) string {
	if n == 1 {
		return "1 template"
	}
	return fmt.Sprintf("%d templates", n)
}

func (a *app) cachePruneCommand() *cobra.Command {
	var all, asJSON bool
	cmd := &cobra.Command{
		Use:   "prune [FLAGS]",
		Short: "Remove templates of no further use",
		Long: `Remove the templates that no sandbox will be a copy of, as the image, the kernel or QEMU
is another by now; those not used for 30 days; and the least used ones of more than
8 GiB. With --all remove all. Sandboxes that run go on. A start that makes a template
does the same on its way.`,
		Args: positional(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			removed, err := a.options().PruneTemplates(cmd.Context(), all)
			errs := []error{err}
			var freed int64
			for _, t := range removed {
				freed += t.Size
				errs = append(errs, printEither(cmd.OutOrStdout(), asJSON, t, shortTemplate(t)+" "+orDash(shortImage(t.Image))))
			}
			if !asJSON {
				fmt.Fprintf(cmd.ErrOrStderr(), "freed %s in %s\n", api.FormatSize(freed), countTemplates(len(removed)))
			}
			return errors.Join(errs...)
		},
	}
	cmd.Flags().BoolVarP(&all, "all", "a", false, "all templates")
	jsonFlag(cmd.Flags(), &asJSON)
	return cmd
}
