package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"sync"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/matchlock/matchlock/api"
	"github.com/matchlock/matchlock/internal/state"
	"github.com/matchlock/matchlock/sandbox"
)

// maxForks is how many copies are made at once: each is a machine.
const maxForks = 256

func (a *app) forkCommand() *cobra.Command {
	n := 1
	var name, volumes string
	var remove, noSecrets, asJSON bool
	var labels []string
	cmd := &cobra.Command{
		Use:   "fork [FLAGS] SANDBOX",
		Short: "Copy a sandbox that runs",
		Long: `Make sandboxes that go on from what another one is at this moment: with its processes,
their memory, and its files. The sandbox itself stands still for some tens of milliseconds
and goes on. Each copy has a name, an id, a hostname, a clock and randomness of its own;
what its commands say goes to its log, and commands that were run by exec have no input
any more. The ids are printed.

Of a volume that it writes to, or a disk of yours, "--volumes copy" gives each copy one of
its own, which goes with it.`,
		Example: `  matchlock fork web
  matchlock fork -n 8 --name try agent
  matchlock fork --json web | jq -r .id`,
		Args:              positional("SANDBOX"),
		ValidArgsFunction: a.completeSandboxes(1, isAlive),
		RunE: func(cmd *cobra.Command, args []string) error {
			save := (*sandbox.Sandbox).Save
			if volumes == "copy" {
				save = (*sandbox.Sandbox).SaveWithDisks
			}
			copies, err := a.fork(cmd, args[0], n, save, order{Name: name, Remove: remove}, pairs(labels), noSecrets)
			for _, info := range copies {
				err = errors.Join(err, printEither(cmd.OutOrStdout(), asJSON, info, info.ID))
			}
			return err
		},
	}
	parsed(cmd.Flags(), "copies", "n", "`NUMBER` of copies (default 1)", &n, func(text string) (int, error) {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 || n > maxForks {
			return 0, fmt.Errorf("want a number from 1 to %d", maxForks)
		}
		return n, nil
	})
	group(cmd, "The copies", func(fs *pflag.FlagSet) {
		fs.StringVar(&name, "name", "", "`NAME` of the copy; of several NAME-1, NAME-2 … (default one that is made up)")
		fs.BoolVar(&remove, "rm", false, "remove each when its first command ends")
		fs.BoolVar(&noSecrets, "no-secrets", false, "leave out the values of secrets; requests with their placeholders are refused")
		choice(fs, "volumes", "`HOW` they get the volumes and disks that the sandbox writes to: copy (default not at all, which is an error)", &volumes, "copy")
		fs.StringArrayVarP(&labels, "label", "l", nil, "label them, `NAME=VALUE`, beside the labels of the sandbox")
	})
	jsonFlag(cmd.Flags(), &asJSON)
	complete(cmd, "volumes", "copy")
	return cmd
}

// fork saves a sandbox and has supervisors go on from that, one for each copy. It
// returns those that came to run.
func (a *app) fork(cmd *cobra.Command, ref string, n int, save func(*sandbox.Sandbox, context.Context) (*sandbox.Saved, error), o order, labels map[string]string, noSecrets bool) ([]api.Info, error) {
	if o.Name != "" {
		if err := state.CheckName(o.Name); err != nil {
			return nil, err
		}
	}
	if err := (&api.Config{Image: "its own", Labels: labels}).Validate(); err != nil {
		return nil, usageError{err, pathOf(cmd)}
	}
	sb, err := a.options().Attach(cmd.Context(), ref)
	if err != nil {
		return nil, err
	}
	defer sb.Close()
	saved, err := save(sb, cmd.Context())
	if err != nil {
		return nil, err
	}
	defer saved.Close()
	if noSecrets {
		saved.DropSecrets()
	}
	o.Config = saved.Config()
	o.Config.Labels = merged(o.Config.Labels, labels)
	if err := o.goOnFrom(saved); err != nil {
		return nil, err
	}
	infos, errs := make([]api.Info, n), make([]error, n)
	var starting sync.WaitGroup
	turns := make(chan struct{}, sandbox.ForksAtOnce())
	for i := range n {
		o := o
		if o.Name != "" && n > 1 {
			o.Name += "-" + strconv.Itoa(i+1)
		}
		turns <- struct{}{}
		starting.Go(func() {
			defer func() { <-turns }()
			infos[i], errs[i] = a.supervise(cmd.Context(), o)
		})
	}
	starting.Wait()
	var copies []api.Info
	for i, err := range errs {
		if err == nil {
			copies = append(copies, infos[i])
		}
	}
	return copies, errors.Join(errs...)
}

// goOnFrom has the sandbox of the order go on from one that was saved, which stays
// open until its supervisor runs.
func (o *order) goOnFrom(saved *sandbox.Saved) (err error) {
	o.Saved, err = json.Marshal(saved)
	o.files = saved.Files()
	o.Files = len(o.files)
	return err
}
