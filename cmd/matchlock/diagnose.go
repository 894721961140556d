package main

import (
	"context"
	"fmt"
	"io"
	"runtime"
	"runtime/debug"
	"slices"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/matchlock/matchlock/sandbox"
)

func (a *app) diagnoseCommand() *cobra.Command {
	var asJSON, fix bool
	accel := "auto"
	cmd := &cobra.Command{
		Use:   "diagnose [FLAGS]",
		Short: "Tell whether this host can run sandboxes, and what to do if not",
		Long: `Tell whether this host can run sandboxes, and what to do if not. The exit status is 1
when something is missing; warnings do not count.

With --fix it first mends what can be mended without a question, and says what that was:
folders of matchlock's that others may write, what killed processes and damaged templates
have left, a kernel or an initramfs that is not there yet. Nothing else is changed: what is
for root or a package manager to do stays a command for you to type.`,
		Example: `  matchlock diagnose
  matchlock diagnose --fix --json | jq -r 'select(.status == "fail") | .fix'`,
		Args: positional(),
		RunE: func(cmd *cobra.Command, args []string) error {
			options := a.options()
			options.Accel = accel
			bars := a.newBars()
			defer bars.close()
			options.Progress = bars.progress
			look := sandbox.Diagnose
			if fix {
				look = sandbox.Repair
			}
			findings := look(cmd.Context(), options)
			bars.close()
			if err := context.Cause(cmd.Context()); err != nil {
				return err
			}
			if err := printFindings(cmd.OutOrStdout(), findings, asJSON); err != nil {
				return err
			}
			if slices.ContainsFunc(findings, func(f sandbox.Finding) bool { return f.Status == sandbox.Fail }) {
				return exitStatus(statusNo)
			}
			return nil
		},
	}
	jsonFlag(cmd.Flags(), &asJSON)
	cmd.Flags().BoolVar(&fix, "fix", false, "mend what needs no question, first")
	choice(cmd.Flags(), "accel", "`HOW` machines are to run: auto, kvm or tcg", &accel, accels...)
	complete(cmd, "accel", accels...)
	return cmd
}

func printFindings(w io.Writer, findings []sandbox.Finding, asJSON bool) error {
	if asJSON {
		return printJSONLines(w, findings)
	}
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, f := range findings {
		fmt.Fprintf(table, "%s\t%s\t%s\n", f.Status, f.Name, f.Message)
		if f.Fix != "" {
			fmt.Fprintf(table, "\t\tfix: %s\n", f.Fix)
		}
	}
	return table.Flush()
}

// versionDetails is what `version --json` tells.
type versionDetails struct {
	Version  string `json:"version"`
	Revision string `json:"revision,omitempty"`
	Go       string `json:"go"`
	Platform string `json:"platform"`
	Guest    bool   `json:"guest"` // the guest binary is inside
}

func (a *app) versionCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "version [FLAGS]",
		Short: "Tell the version",
		Args:  positional(),
		RunE: func(cmd *cobra.Command, args []string) error {
			guest, _ := guestBinary()
			v := versionDetails{Version: version, Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH, Guest: guest != nil}
			if info, ok := debug.ReadBuildInfo(); ok {
				for _, s := range info.Settings {
					if s.Key == "vcs.revision" {
						v.Revision = s.Value
					}
				}
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), v)
			}
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "matchlock %s %s %s\n", v.Version, v.Platform, v.Go)
			return err
		},
	}
	jsonFlag(cmd.Flags(), &asJSON)
	return cmd
}

// guestCommand hands out the guest binary to library users; see sandbox.Options.Helper.
func (a *app) guestCommand() *cobra.Command {
	return &cobra.Command{
		Use:    sandbox.HelperCommand,
		Hidden: true,
		Args:   positional(),
		RunE: func(cmd *cobra.Command, args []string) error {
			guest, _ := guestBinary()
			return sandbox.WriteGuest(cmd.OutOrStdout(), guest)
		},
	}
}
