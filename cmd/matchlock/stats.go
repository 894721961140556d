package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/matchlock/matchlock/api"
	"github.com/matchlock/matchlock/sandbox"
)

func (a *app) statsCommand() *cobra.Command {
	var once, asJSON bool
	var only filter
	every := 2 * time.Second
	cmd := &cobra.Command{
		Use:   "stats [FLAGS] [SANDBOX…]",
		Short: "Show what sandboxes take of processors, memory, disk and network",
		Long: `Show what SANDBOX, or every one that runs, takes of the host: the share of a processor in
the time between two looks, the host's memory that is its own, the guest's that is in use,
the room on the disk, and what connections have carried. On a terminal, and with --json,
it goes on until it is interrupted.`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return nil
			}
			return only.orNamed(cmd, args)
		},
		ValidArgsFunction: a.completeSandboxes(-1, isAlive),
		RunE: func(cmd *cobra.Command, refs []string) error {
			return a.stats(cmd.Context(), cmd.OutOrStdout(), refs, only, every, once, asJSON)
		},
	}
	only.define(cmd.Flags())
	cmd.Flags().BoolVar(&once, "no-stream", false, "show it once")
	parsed(cmd.Flags(), "interval", "", "`DURATION` between two looks (default 2s)", &every, parseDuration)
	jsonFlag(cmd.Flags(), &asJSON)
	return cmd
}

// share is how the processors were used between two looks.
type share struct {
	api.Usage
	CPUs float64 `json:"cpus"` // processors that it kept busy
}

// stats shows usage until ctx ends, or once.
func (a *app) stats(ctx context.Context, w io.Writer, refs []string, only filter, every time.Duration, once, asJSON bool) error {
	out, _ := w.(*os.File)
	live := out != nil && isTerminal(out) && !once
	once = once || !live && !asJSON
	if once {
		every = min(every, time.Second)
	}
	type look struct {
		usage api.Usage
		at    time.Time // by a clock that does not jump, which that of usage may
	}
	before := map[string]look{}
	for first := true; ; first = false {
		usages, err := a.usages(ctx, refs, only)
		if err != nil && (first || ctx.Err() != nil) {
			return err
		}
		var shares []share
		for _, u := range usages {
			now := time.Now()
			if b, ok := before[u.ID]; ok {
				shares = append(shares, share{u, float64(u.CPU-b.usage.CPU) / float64(now.Sub(b.at))})
			}
			before[u.ID] = look{u, now}
		}
		if !first {
			if err := showShares(w, shares, live, asJSON); err != nil || once {
				return err
			}
		}
		select {
		case <-time.After(every):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// usages asks the sandboxes, all at once. Of all that run, one that ends meanwhile is left
// out.
func (a *app) usages(ctx context.Context, refs []string, only filter) ([]api.Usage, error) {
	o := a.options()
	named := len(refs) > 0
	if !named {
		list, err := o.List(ctx)
		if err != nil {
			return nil, err
		}
		for _, info := range list {
			if (info.Status == api.StatusRunning || info.Status == api.StatusPaused) && only.fits(info) {
				refs = append(refs, info.ID)
			}
		}
	}
	found, errs := make([]*api.Usage, len(refs)), make([]error, len(refs))
	var asking sync.WaitGroup
	for i, ref := range refs {
		asking.Go(func() {
			sb, err := o.Attach(ctx, ref)
			if err == nil {
				defer sb.Close()
				var u api.Usage
				if u, err = sb.Usage(ctx); err == nil {
					found[i] = &u
				}
			}
			if named || !errors.Is(err, sandbox.ErrNotRunning) && !errors.Is(err, sandbox.ErrNotFound) {
				errs[i] = err
			}
		})
	}
	asking.Wait()
	var usages []api.Usage
	for _, u := range found {
		if u != nil {
			usages = append(usages, *u)
		}
	}
	return usages, errors.Join(errs...)
}

// Sequences of ECMA-48: to the first place of the screen, and clear what is behind.
const (
	screenHome  = "\x1b[H"
	clearBehind = "\x1b[J"
	clearLine   = "\x1b[K"
)

func showShares(w io.Writer, shares []share, live, asJSON bool) error {
	if asJSON {
		return printJSONLines(w, shares)
	}
	var b bytes.Buffer
	table := tabwriter.NewWriter(&b, 0, 0, 3, ' ', 0)
	fmt.Fprintln(table, "ID\tNAME\tCPU\tMEMORY\tIN THE GUEST\tDISK\tSENT\tRECEIVED\tFLOWS")
	for _, s := range shares {
		guest := "-"
		if s.GuestTotal > 0 {
			guest = api.FormatSize(s.GuestMemory) + " of " + api.FormatSize(s.GuestTotal)
		}
		fmt.Fprintf(table, "%s\t%s\t%.1f %%\t%s\t%s\t%s\t%s\t%s\t%d\n", s.ID, orDash(s.Name), s.CPUs*100, api.FormatSize(s.Memory), guest,
			api.FormatSize(s.Disk), api.FormatSize(s.Sent), api.FormatSize(s.Received), s.Flows)
	}
	if err := table.Flush(); err != nil {
		return err
	}
	text := b.String()
	if live {
		text = screenHome + strings.ReplaceAll(text, "\n", clearLine+"\n") + clearBehind
	}
	_, err := io.WriteString(w, text)
	return err
}

func (a *app) topCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "top [FLAGS] SANDBOX",
		Short: "List the processes of a sandbox",
		Long: `List the processes of a sandbox but for its kernel's, as the guest says. The image needs no
ps for it.`,
		Args:              positional("SANDBOX"),
		ValidArgsFunction: a.completeSandboxes(1, isAlive),
		RunE: func(cmd *cobra.Command, args []string) error {
			sb, err := a.options().Attach(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			defer sb.Close()
			processes, err := sb.Processes(cmd.Context())
			if err != nil {
				return err
			}
			w := cmd.OutOrStdout()
			if asJSON {
				return printJSONLines(w, processes)
			}
			table := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
			fmt.Fprintln(table, "PID\tPARENT\tUSER\tSTATE\tCPU\tMEMORY\tCOMMAND")
			for _, p := range processes {
				fmt.Fprintf(table, "%d\t%d\t%s\t%s\t%.2f s\t%s\t%s\n", p.PID, p.Parent, orDash(p.User), printable(p.State), p.CPU.Seconds(), api.FormatSize(p.Memory), printable(p.Command))
			}
			return table.Flush()
		},
	}
	jsonFlag(cmd.Flags(), &asJSON)
	return cmd
}
