// Command matchlock runs commands from container images inside microVMs that
// are thrown away.
//
// What holds for every command:
//
// Results go to standard output, everything else (progress, warnings, errors,
// hints) to standard error. With --json a result is one object, or one object a
// line where there may be many; names are in snake_case and stay, times are
// RFC 3339, sizes bytes. Bars are drawn on a terminal only, and there is no
// colour anywhere, so that NO_COLOR has nothing to turn off.
//
// Flags end at the first argument that is not one: what follows IMAGE is the
// command's own. A flag that may be given several times is repeated, never
// split at commas.
//
// A command that runs another ends with that one's status, 128+N if signal N
// ended it, 127 if it was not found, 126 if it could not be run, 124 if its time
// ran out. Others end with 0, or with 1 when the answer is no. What is the
// fault of the usage, the host or ourselves is 125. An error is one line a
// fault, each beginning "matchlock: error: ", and where we know the way out a
// line "matchlock: hint: " follows.
package main

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/matchlock/matchlock/internal/image"
	"github.com/matchlock/matchlock/internal/state"
	"github.com/matchlock/matchlock/sandbox"
	"github.com/matchlock/matchlock/vm"
)

// version is set by the build.
var version = "dev"

// guestFiles has the guest's /init, if the build laid it there first.
//
//go:embed all:guest
var guestFiles embed.FS

// guestBinary is the guest's /init and its SHA-256, nil in a program that was
// built without. It is a part of this program's file that stays on the disk
// unless it is read.
func guestBinary() (guest *io.SectionReader, sum string) {
	file, err := guestFiles.Open("guest/matchlock-guest")
	if err != nil {
		return nil, ""
	}
	info, err := file.Stat()
	if err != nil {
		return nil, ""
	}
	text, _ := guestFiles.ReadFile("guest/matchlock-guest.sum") // without it, the sum is computed
	return io.NewSectionReader(file.(io.ReaderAt), 0, info.Size()), strings.TrimSpace(string(text))
}

func main() {
	// What net/http finds odd in a server's answer it quotes there, and an answer may
	// hold a secret.
	log.SetOutput(io.Discard)
	// Secrets are in memory, and a core dump is a file.
	syscall.Setrlimit(syscall.RLIMIT_CORE, &syscall.Rlimit{})
	os.Exit(run(os.Args[1:]))
}

// run does what the arguments say and returns the exit status.
func run(args []string) int {
	ctx, stop := untilSignal(context.Background())
	defer stop()
	a := &app{}
	root := a.command()
	if len(args) > 0 && (args[0] == cobra.ShellCompRequestCmd || args[0] == cobra.ShellCompNoDescRequestCmd) {
		a.completeRest(root) // which no other start has to wait for
	}
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	var status exitStatus
	switch ended, ok := errors.AsType[*signalError](context.Cause(ctx)); {
	case errors.As(err, &status):
		return int(status)
	case err != nil && ok:
		return ended.status()
	case err != nil:
		printError(os.Stderr, err)
		return statusFault
	}
	return 0
}

// app is what the commands share. It is filled in before they run.
type app struct {
	logLevel, logFormat string
	logger              *slog.Logger
	stderr              stderr
}

// command returns the tree of all commands.
func (a *app) command() *cobra.Command {
	root := &cobra.Command{
		Use:   "matchlock COMMAND",
		Short: "Run commands from container images inside throw-away microVMs",
		Long: `matchlock runs untrusted code. Each run boots a Linux kernel of its own in a microVM,
with a container image for its files, and leaves nothing behind.

What it keeps, images and kernels, is in the folder that MATCHLOCK_HOME names, else in
~/.local and ~/.cache. MATCHLOCK_KERNEL and MATCHLOCK_QEMU name a kernel and a QEMU to
use instead of those that are found.`,
		Example: `  matchlock run debian:12 cat /etc/os-release
  matchlock run -i busybox wc -l < data.txt`,
		Args:              cobra.ArbitraryArgs,
		RunE:              showHelp,
		SilenceErrors:     true,
		SilenceUsage:      true,
		PersistentPreRunE: func(*cobra.Command, []string) error { return a.openLog() },
	}
	root.CompletionOptions.DisableDefaultCmd = true
	root.SetHelpCommand(&cobra.Command{Hidden: true}) // --help is enough
	root.SetHelpFunc(help)
	root.SetFlagErrorFunc(flagError)
	flags := root.PersistentFlags()
	flags.StringVar(&a.logLevel, "log-level", defaultLogLevel, "`LEVEL` of what is logged: debug, info, warn or error")
	flags.StringVar(&a.logFormat, "log-format", "text", "`FORM` of what is logged: text or json")
	flags.BoolP("help", "h", false, "show this help")

	root.AddCommand(
		a.runCommand(), a.psCommand("ps"), a.execCommand(), a.shellCommand(), a.attachCommand(), a.logsCommand(), a.cpCommand(),
		a.inspectCommand(), a.pauseCommand(), a.resumeCommand(), a.forkCommand(), a.snapshotCommand(), a.commitCommand(), a.waitCommand(), a.killCommand(), a.stopCommand(), a.startCommand(), a.restartCommand(),
		a.renameCommand(), a.updateCommand(), a.removeCommand(), a.pruneCommand(), a.gcCommand(),
		a.initCommand(), a.trustCommand(),
		a.pullCommand(), a.imageCommand(), a.warmCommand(), a.cacheCommand(), a.volumeCommand(), a.workspaceCommand(),
		a.statsCommand(), a.topCommand(), a.eventsCommand(), a.allowListCommand(), a.policyCommand(), a.secretCommand(), a.portCommand(), a.portForwardCommand(),
		a.systemCommand(), a.diagnoseCommand(), a.versionCommand(), a.completionCommand(), a.guestCommand(), a.supervisorCommand(), a.manCommand(),
	)
	root.AddCommand(a.aliases()...)
	return root
}

// defaultLogLevel is the least that is logged unless --log-level says otherwise.
const defaultLogLevel = "warn"

// openLog makes the logger that the flags ask for.
func (a *app) openLog() error {
	var level slog.Level
	if err := level.UnmarshalText([]byte(a.logLevel)); err != nil || strings.ContainsAny(a.logLevel, "+-") {
		return usageError{fmt.Errorf("--log-level %q: want debug, info, warn or error", a.logLevel), ""}
	}
	options := &slog.HandlerOptions{Level: level}
	switch a.logFormat {
	case "text":
		a.logger = slog.New(slog.NewTextHandler(&a.stderr, options))
	case "json":
		a.logger = slog.New(slog.NewJSONHandler(&a.stderr, options))
	default:
		return usageError{fmt.Errorf("--log-format %q: want text or json", a.logFormat), ""}
	}
	return nil
}

// options are what sandboxes are made with.
func (a *app) options() sandbox.Options {
	guest, sum := guestBinary()
	return sandbox.Options{Guest: guest, GuestSum: sum, Logger: a.logger, Backend: backend}
}

// backend takes the place of QEMU in tests of this program without VMs.
var backend vm.Backend

// store opens the image store of this user.
func (a *app) store() (*image.Store, error) {
	home, err := state.Find(os.Getenv)
	if err != nil {
		return nil, err
	}
	if err := home.Open(); err != nil {
		return nil, err
	}
	return image.Open(home.Images())
}

// signalError is the end of a command because a signal was sent to us.
type signalError struct{ signal syscall.Signal }

func (e *signalError) Error() string { return fmt.Sprintf("ended by signal: %v", e.signal) }
func (e *signalError) status() int   { return 128 + int(e.signal) }

// untilSignal returns a context that ends with the first SIGINT, SIGTERM, SIGHUP
// or SIGQUIT; the second has its usual effect.
func untilSignal(ctx context.Context) (_ context.Context, stop func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	signals := make(chan os.Signal, 1)
	notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT)
	go func() {
		select {
		case s := <-signals:
			signal.Stop(signals)
			cancel(&signalError{s.(syscall.Signal)})
		case <-ctx.Done():
		}
	}()
	return ctx, func() { signal.Stop(signals); cancel(nil) }
}

// notify is signal.Notify but for signals that we were started to ignore, as
// under nohup: they stay ignored.
func notify(c chan<- os.Signal, signals ...os.Signal) {
	for _, s := range signals {
		if !signal.Ignored(s) {
			signal.Notify(c, s)
		}
	}
}
