package main

import (
	"fmt"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/matchlock/matchlock/api"
)

func (a *app) systemCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "system COMMAND", Short: "Show what matchlock takes of this host", Args: cobra.ArbitraryArgs, RunE: showHelp}
	cmd.AddCommand(a.systemDFCommand())
	return cmd
}

func (a *app) systemDFCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "df [FLAGS]",
		Short: "Show the room that things take on the disk, and what frees it",
		Args:  positional(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			rooms, err := a.options().Room(cmd.Context())
			if err != nil {
				return err
			}
			w := cmd.OutOrStdout()
			if asJSON {
				return printJSONLines(w, rooms)
			}
			table := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
			fmt.Fprintln(table, "KIND\tCOUNT\tSIZE\tNOT IN USE\tFREED BY")
			for _, r := range rooms {
				command := "-"
				if r.Command != "" {
					command = "matchlock " + r.Command
				}
				free := "-"
				if r.Free > 0 {
					free = api.FormatSize(r.Free)
				}
				fmt.Fprintf(table, "%s\t%d\t%s\t%s\t%s\n", r.Kind, r.Count, api.FormatSize(r.Size), free, command)
			}
			return table.Flush()
		},
	}
	jsonFlag(cmd.Flags(), &asJSON)
	return cmd
}
