package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/matchlock/matchlock/api"
)

// warmth is what `matchlock warm --json` tells of an image.
type warmth struct {
	Image string `json:"image"`
	Made  bool   `json:"made"` // else it was there
}

func (a *app) warmCommand() *cobra.Command {
	var config api.Config
	var accel string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "warm [FLAGS] IMAGE…",
		Short: "Have the next sandboxes of images start fast",
		Long: `Make templates of images ahead: machines that have booted, by which sandboxes begin as
copies. Else the first sandbox of an image makes one, and takes the time. What is said
here of the machine, its memory for one, a sandbox must ask for too to be a copy.

An image that is not in the local store is pulled.`,
		Example: `  matchlock warm debian:12 python:3.13
  matchlock warm --cpus 2 -m 1g debian:12 && matchlock run --cpus 2 -m 1g debian:12 true`,
		Args:              positional("IMAGE…"),
		ValidArgsFunction: a.completeImages(-1),
		RunE: func(cmd *cobra.Command, images []string) error {
			var errs []error
			for _, image := range images {
				config.Image = image
				made, err := a.warm(cmd, accel, config)
				switch {
				case err != nil:
				case asJSON:
					err = printJSON(cmd.OutOrStdout(), warmth{image, made})
				case made:
					_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s: made a template\n", image)
				default:
					_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s: its template is there\n", image)
				}
				errs = append(errs, err)
				if cmd.Context().Err() != nil {
					break
				}
			}
			return errors.Join(errs...)
		},
	}
	group(cmd, "The machine", func(fs *pflag.FlagSet) {
		machineFlags(fs, &config)
		fs.BoolVar(&config.Privileged, "privileged", false, "for sandboxes without restrictions")
	})
	group(cmd, "Image and accelerator", func(fs *pflag.FlagSet) { imageFlags(fs, &config, &accel) })
	completeImageFlags(cmd)
	jsonFlag(cmd.Flags(), &asJSON)
	return cmd
}

func (a *app) warm(cmd *cobra.Command, accel string, config api.Config) (made bool, err error) {
	bars := a.newBars()
	defer bars.close()
	options := a.options()
	options.Accel, options.Progress = accel, bars.progress
	return options.Warm(cmd.Context(), config)
}
