package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/matchlock/matchlock/sandbox"
)

func (a *app) logsCommand() *cobra.Command {
	var query sandbox.LogQuery
	var times, asJSON bool
	cmd := &cobra.Command{
		Use:   "logs [FLAGS] SANDBOX",
		Short: "Show what the commands of a sandbox have said",
		Long: `Show what the first command of a sandbox has said, on standard output what went there, on
standard error the rest; and what commands in the background have (exec --detach), on
standard output. A sandbox that could not be started tells why first, with what its kernel
said.

Logs are kept until the sandbox is removed, the last 32 MiB of them.`,
		Example: `  matchlock logs -f web
  matchlock logs --since 10m --tail 100 -t web
  matchlock logs --console web`,
		Args:              positional("SANDBOX"),
		ValidArgsFunction: a.completeSandboxes(1, anyStatus),
		RunE: func(cmd *cobra.Command, args []string) error {
			dropSIGPIPE()
			o := a.options()
			info, err := o.Find(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			out := &logPrinter{stdout: os.Stdout, stderr: os.Stderr, times: times, json: asJSON, middle: map[string]bool{}}
			if notStarted(info) && !query.Console {
				fmt.Fprintf(os.Stderr, "matchlock: it did not start: %s\n", printable(info.Error))
				console := query
				console.Console, console.Follow = true, false
				if err := o.Logs(cmd.Context(), info.ID, console, out.print); err != nil {
					return err
				}
			}
			err = o.Logs(cmd.Context(), info.ID, query, out.print)
			if ended, ok := errors.AsType[*signalError](err); ok {
				return exitStatus(ended.status())
			}
			return statusOf(err)
		},
	}
	flags := cmd.Flags()
	flags.BoolVarP(&query.Follow, "follow", "f", false, "go on with what is said, until the sandbox ends")
	parsed(flags, "since", "", "only what was said since `TIME`: 2026-11-26T15:04:05Z, or a duration ago like 10m", &query.Since, parseSince)
	parsed(flags, "tail", "n", "only the last `NUMBER` lines of what is there, or all", &query.Tail, parseTail)
	flags.BoolVarP(&times, "timestamps", "t", false, "begin each line with its time")
	flags.BoolVar(&query.Console, "console", false, "what the guest's kernel said instead")
	flags.BoolVar(&asJSON, "json", false, "one object a line, with time and stream")
	onlyOne(cmd, "json", "timestamps")
	return cmd
}

func parseSince(text string) (time.Time, error) {
	if d, err := time.ParseDuration(text); err == nil && d >= 0 {
		return time.Now().Add(-d), nil
	}
	t, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return t, errors.New("want a time like 2026-11-26T15:04:05Z, or a duration like 10m")
	}
	return t, nil
}

func parseTail(text string) (int, error) {
	if text == "all" {
		return 0, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 0 {
		return 0, errors.New("want a number of lines, or all")
	}
	if n == 0 {
		n = -1
	}
	return n, nil
}

// logPrinter prints records of a log.
type logPrinter struct {
	stdout, stderr io.Writer
	times, json    bool
	middle         map[string]bool // streams of which a line is not at its end
}

// logLine is a record as JSON.
type logLine struct {
	sandbox.LogRecord
	Text string `json:"text"` // what is not UTF-8 is replaced
}

func (p *logPrinter) print(r sandbox.LogRecord) error {
	if p.json {
		return printJSON(p.stdout, logLine{r, string(r.Content)})
	}
	if p.times && !p.middle[r.Stream] {
		r.Content = append([]byte(r.Time.Format("2006-01-02T15:04:05.000000Z07:00 ")), r.Content...)
	}
	p.middle[r.Stream] = r.Partial
	return r.Write(p.stdout, p.stderr)
}
