package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/matchlock/matchlock/api"
	"github.com/matchlock/matchlock/sandbox"
)

// execFlags say how a command runs in a sandbox that there is.
type execFlags struct {
	stdioFlags
	envFiles, env []string
	user, dir     string
	detach        bool
	timeout       time.Duration
}

func (f *execFlags) define(fs *pflag.FlagSet) {
	f.stdioFlags.define(fs)
	fs.StringArrayVarP(&f.env, "env", "e", nil, "set an environment variable, `NAME=VALUE`; NAME alone copies the host's")
	fs.StringArrayVar(&f.envFiles, "env-file", nil, "set those in `FILE`, one a line")
	fs.StringVarP(&f.user, "user", "u", "", "run as `USER`: name, uid, uid:gid or name:group (default the sandbox's)")
	fs.StringVarP(&f.dir, "workdir", "w", "", "run in `FOLDER`, made when missing (default the sandbox's)")
}

func (a *app) execCommand() *cobra.Command {
	var f execFlags
	cmd := &cobra.Command{
		Use:   "exec [FLAGS] SANDBOX COMMAND [ARG…]",
		Short: "Run a command in a sandbox that runs",
		Long: `Run a command in a sandbox that runs, beside what runs there already. The exit status is
the command's; 124 if its time ran out. With --detach it runs in the background, and its
output goes to the sandbox's log.`,
		Example: `  matchlock exec web ps
  matchlock exec -i db psql < dump.sql
  matchlock exec -u nobody -w /tmp web sh -c 'id; pwd'`,
		Args:              positional("SANDBOX", "COMMAND…"),
		ValidArgsFunction: thenFiles(a.completeSandboxes(1, isAlive)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.exec(cmd, &f, args[0], args[1:])
		},
	}
	cmd.Flags().SetInterspersed(false)
	f.define(cmd.Flags())
	cmd.Flags().BoolVarP(&f.detach, "detach", "d", false, "run it in the background")
	parsed(cmd.Flags(), "timeout", "", "`DURATION` after which the command is ended: 90s, 2h", &f.timeout, parseDuration)
	return cmd
}

func (a *app) shellCommand() *cobra.Command {
	var f execFlags
	cmd := &cobra.Command{
		Use:   "shell [FLAGS] SANDBOX",
		Short: "Run a shell in a sandbox that runs",
		Long:  "Run a shell in a sandbox that runs: bash where the image has it, else sh.",
		Example: `  matchlock shell web
  matchlock shell -u root web`,
		Args:              positional("SANDBOX"),
		ValidArgsFunction: a.completeSandboxes(1, isAlive),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.exec(cmd, &f, args[0], []string{"/bin/sh", "-c", "command -v bash >/dev/null && exec bash; exec sh"})
		},
	}
	f.define(cmd.Flags())
	return cmd
}

// exec runs a command in a sandbox that runs.
func (a *app) exec(cmd *cobra.Command, f *execFlags, ref string, argv []string) error {
	if err := f.check(pathOf(cmd)); err != nil {
		return err
	}
	if f.detach && f.interactive {
		return usageError{errors.New("--detach and --interactive: a command in the background has no input"), pathOf(cmd)}
	}
	env, err := environment(f.envFiles, f.env, os.LookupEnv, pathOf(cmd))
	if err != nil {
		return err
	}
	// The same is wrong here as with run.
	command := api.Config{Image: "its own", Command: argv, Env: env, User: f.user, WorkDir: f.dir, Timeout: f.timeout}
	if err := command.Validate(); err != nil {
		return usageError{err, pathOf(cmd)}
	}
	sb, err := a.options().Attach(cmd.Context(), ref)
	if err != nil {
		return err
	}
	defer sb.Close()
	if f.detach {
		return statusOf(sb.Run(cmd.Context(), sandbox.Background{
			Args: argv, Dir: f.dir, Env: env, User: f.user, Tty: f.tty, Timeout: f.timeout,
		}))
	}
	dropSIGPIPE()
	return a.foreground(cmd.Context(), f.stdio(), func(ctx context.Context) *sandbox.Cmd {
		c := sb.Command(ctx, argv[0], argv[1:]...)
		c.Dir, c.User, c.Timeout = f.dir, f.user, f.timeout
		for name, value := range env {
			c.Env = append(c.Env, name+"="+value)
		}
		return c
	})
}

func (a *app) attachCommand() *cobra.Command {
	var noStdin bool
	detachKeys := []byte{'p' - '`', 'q' - '`'} // ctrl-p, ctrl-q
	cmd := &cobra.Command{
		Use:   "attach [FLAGS] SANDBOX",
		Short: "Connect to the first command of a sandbox",
		Long: `Show what the first command of a sandbox says from now on, and pass it what is typed, if
the sandbox was started with --interactive, and signals. The exit status is the command's.
The keys ctrl-p ctrl-q, on a terminal, let go of it again; so does the end of this program.`,
		Example: `  matchlock run -dit --name box busybox
  matchlock attach box`,
		Args:              positional("SANDBOX"),
		ValidArgsFunction: a.completeSandboxes(1, isAlive),
		RunE: func(cmd *cobra.Command, args []string) error {
			sb, err := a.options().Attach(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			defer sb.Close()
			info, err := sb.Info(cmd.Context())
			if err != nil {
				return err
			}
			dropSIGPIPE()
			flags := stdioFlags{interactive: info.Stdin && !noStdin, tty: info.Tty, noTTY: !info.Tty}
			stdio := flags.stdio()
			stdio.hold, stdio.detach = true, detachKeys
			err = a.foreground(cmd.Context(), stdio, sb.Main)
			if errors.Is(err, errDetached) {
				fmt.Fprintf(os.Stderr, "\r\nmatchlock: detached from %s, which runs on\n", info.Name)
				return nil
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&noStdin, "no-stdin", false, "pass nothing that is typed")
	parsed(cmd.Flags(), "detach-keys", "", "`KEYS` that let go, with commas between (default ctrl-p,ctrl-q); \"\" for none", &detachKeys, parseKeys)
	return cmd
}
