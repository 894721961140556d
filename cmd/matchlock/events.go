package main

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/matchlock/matchlock/api"
	"github.com/matchlock/matchlock/sandbox"
)

func (a *app) eventsCommand() *cobra.Command {
	var q sandbox.EventQuery
	var asJSON bool
	var only filter
	cmd := &cobra.Command{
		Use:   "events [FLAGS] [SANDBOX]",
		Short: "Show what a sandbox did, or tried, and what became of it, or of all",
		Long: `Show what a sandbox did, or tried, on its network: the names that it asked for, its
connections, and the requests within those that were looked into. What was refused says
why, and which flag would have allowed it. What it did with files of the host is there if
that was refused, and with "matchlock run --file-events" if it changed them. What became
of it is there too: created, started, paused, resumed, copied, renamed, ended.

Without SANDBOX show what became of all sandboxes, with those that are gone: the last few
thousand events.`,
		Example: `  matchlock events --denied web
  matchlock events -f --json web
  matchlock events -f --filter label=job=17
  matchlock events --since 1h`,
		Args:              positional("[SANDBOX]"),
		ValidArgsFunction: a.completeSandboxes(1, anyStatus),
		RunE: func(cmd *cobra.Command, args []string) error {
			var ref string
			if len(args) == 1 {
				ref = args[0]
				if len(only) > 0 {
					return usageError{errors.New("events: --filter is for those of all sandboxes"), "events"}
				}
			}
			return a.options().Events(cmd.Context(), ref, q, func(e api.Event) error {
				if e.Sandbox != nil && !only.fits(api.Info{ID: e.Sandbox.ID, Name: e.Sandbox.Name, Image: e.Sandbox.Image, Labels: e.Sandbox.Labels}) {
					return nil
				}
				return printEither(cmd.OutOrStdout(), asJSON, e, printable(eventText(e)))
			})
		},
	}
	cmd.Flags().BoolVarP(&q.Follow, "follow", "f", false, "go on with what happens, until the sandbox ends")
	cmd.Flags().BoolVar(&q.Denied, "denied", false, "only what was refused")
	list(cmd.Flags(), "kind", "only events of `KIND`: "+strings.Join(eventKinds(), ", "), &q.Kinds, parseEventKind)
	parsed(cmd.Flags(), "since", "", "only what was since `TIME`: 2026-11-26T15:04:05Z, or a duration ago like 10m", &q.Since, parseSince)
	only.define(cmd.Flags(), "label", "name", "image", "id")
	jsonFlag(cmd.Flags(), &asJSON)
	complete(cmd, "kind", eventKinds()...)
	return cmd
}

func eventKinds() (names []string) {
	for _, k := range []api.EventKind{api.EventLife, api.EventName, api.EventFlow, api.EventRequest, api.EventFile, api.EventPolicy, api.EventFrame} {
		names = append(names, string(k))
	}
	return names
}

func parseEventKind(text string) (api.EventKind, error) {
	if !slices.Contains(eventKinds(), text) {
		return "", fmt.Errorf("want one of %s", strings.Join(eventKinds(), ", "))
	}
	return api.EventKind(text), nil
}

// eventText is an event on one line.
func eventText(e api.Event) string {
	if e.Verdict == api.Denied {
		return "denied  " + sandbox.DenialText(e)
	}
	if e.Kind == api.EventLife {
		return lifeText(e)
	}
	words := []string{fmt.Sprintf("%-7s %s %s", e.Verdict, e.Time.UTC().Format(time.RFC3339), e.Kind)}
	if what := e.Target(); what != "" {
		words = append(words, what)
	}
	if e.Protocol != "" {
		words = append(words, e.Protocol)
	}
	if e.Method != "" {
		words = append(words, e.Method, e.Path, strconv.Itoa(e.Status))
	}
	if e.Kind == api.EventFlow {
		words = append(words, fmt.Sprintf("sent %d B, received %d B, %.1f ms", e.Sent, e.Received, e.Millis))
		if e.Protocol == "tls" && !e.Inspected {
			words = append(words, "not inspected")
		}
	}
	if e.Kind == api.EventLost {
		words = append(words, fmt.Sprintf("%d events are missing here", e.Lost))
	}
	if len(e.Secrets) > 0 {
		words = append(words, "with "+strings.Join(e.Secrets, ", "))
	}
	if e.Reason != "" {
		words = append(words, "("+e.Reason+")")
	}
	return strings.Join(words, " ")
}

// lifeText is what became of a sandbox, on one line.
func lifeText(e api.Event) string {
	words := []string{"life   ", e.Time.UTC().Format(time.RFC3339), e.Sandbox.ID, cmp.Or(e.Sandbox.Name, "-"), string(e.Action)}
	if e.ExitCode != nil {
		words = append(words, "exit code "+strconv.Itoa(*e.ExitCode))
	}
	if e.Reason != "" {
		words = append(words, "("+e.Reason+")")
	}
	return strings.Join(words, " ")
}
