package main

import (
	"context"
	"errors"
	"time"

	"github.com/spf13/cobra"

	"github.com/matchlock/matchlock/api"
	"github.com/matchlock/matchlock/sandbox"
)

func (a *app) updateCommand() *cobra.Command {
	var c sandbox.Change
	var labels []string
	cmd := a.deedCommand(deed{
		use:   "update",
		short: "Change labels and limits of sandboxes",
		long: `Change labels and limits of sandboxes, running or not. What is said holds at once, and at
the next start; --cpus and --memory want a sandbox that does not run.`,
		example: `  matchlock update --ttl 2h -l job=17 web
  matchlock update --idle-timeout 0 --restart always web
  matchlock stop web && matchlock update -m 2g web && matchlock start web`,
		sandboxes: anyStatus,
		do: func(ctx context.Context, o sandbox.Options, info api.Info) error {
			return o.Update(ctx, info.ID, c)
		},
	})
	fs := cmd.Flags()
	fs.StringArrayVarP(&labels, "label", "l", nil, "set the label `NAME=VALUE`")
	fs.StringArrayVar(&c.DropLabels, "label-rm", nil, "take the label `NAME` away")
	parsed(fs, "ttl", "", "`DURATION` after its last start at which it is stopped; 0 for no such", &c.TTL, parseLimit)
	parsed(fs, "idle-timeout", "", "`DURATION` without use after which it is stopped; 0 for no such", &c.IdleTimeout, parseLimit)
	parsed(fs, "restart", "", "`WHEN` it runs again after its end: no, on-failure[:N] or always", &c.Restart, func(text string) (*api.RestartPolicy, error) {
		p := api.RestartPolicy(text)
		return &p, p.Validate()
	})
	parsed(fs, "cpus", "", "share of processors, `NUMBER`", &c.CPUs, pointer(parseNumber))
	parsed(fs, "memory", "m", "`SIZE` of the memory, bare in MiB", &c.Memory, pointer(sizeIn(api.MiB)))
	completeRestart(cmd)
	cmd.PreRunE = func(cmd *cobra.Command, _ []string) error {
		changes := false
		for _, name := range []string{"label", "label-rm", "ttl", "idle-timeout", "restart", "cpus", "memory"} {
			changes = changes || cmd.Flags().Changed(name)
		}
		if !changes {
			return usageError{errors.New("update: it is not said what is to change"), pathOf(cmd)}
		}
		c.Labels = pairs(labels)
		return nil
	}
	return cmd
}

func completeRestart(cmd *cobra.Command) {
	complete(cmd, "restart", string(api.RestartNo), string(api.RestartOnFailure), string(api.RestartAlways))
}

// pointer has a parser return where the value is.
func pointer[T any](parse func(string) (T, error)) func(string) (*T, error) {
	return func(text string) (*T, error) {
		v, err := parse(text)
		return &v, err
	}
}

// parseLimit parses a duration that may be 0.
func parseLimit(text string) (*time.Duration, error) {
	if text == "0" {
		return new(time.Duration), nil
	}
	return pointer(parseDuration)(text)
}
