// Package sandbox is matchlock as a Go library: how does a program get a Linux
// machine of its own, made from a container image, and run commands in it?
//
//	sb, err := sandbox.New(ctx, api.Config{Image: "debian:12"})
//	if err != nil {
//		return err
//	}
//	defer sb.Close()
//	out, err := sb.Command(ctx, "uname", "-a").Output()
//
// A sandbox is a microVM: its kernel is its own, its files are the image's with
// a disk for what is written over them, and it ends, files and all, with Close
// or with the process that made it. There is no daemon.
//
// The package joins the parts and owns what they acquire; it does not itself
// fetch images, speak to hypervisors or know the guest's protocol.
//
// An error whose way out is known has, somewhere in its chain, a method
// Hint() string with a phrase for the user.
package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/matchlock/matchlock/api"
	"github.com/matchlock/matchlock/internal/agent"
	"github.com/matchlock/matchlock/internal/boot"
	"github.com/matchlock/matchlock/internal/disk"
	"github.com/matchlock/matchlock/internal/hostfs"
	"github.com/matchlock/matchlock/internal/image"
	"github.com/matchlock/matchlock/internal/machine"
	"github.com/matchlock/matchlock/internal/qemu"
	"github.com/matchlock/matchlock/internal/state"
	"github.com/matchlock/matchlock/vm"
)

// Options say how sandboxes are made on this host. The zero value takes
// everything from the environment and from where matchlock is installed.
type Options struct {
	// Home is the folder of all that matchlock keeps. Empty: MATCHLOCK_HOME, else
	// the folders of the XDG base directory specification.
	Home string
	// Helper is the path of the program matchlock, which brings the guest's /init.
	// Empty: MATCHLOCK_HELPER, else matchlock beside this executable, else on PATH.
	Helper string
	// Guest is the guest's /init itself; the helper is not needed then.
	Guest *io.SectionReader
	// GuestSum is the SHA-256 of Guest in hex; empty: it is computed at each start.
	GuestSum string
	// Kernel is the guest's kernel, a vmlinux or bzImage. Empty: MATCHLOCK_KERNEL,
	// else one is found or fetched.
	Kernel string
	// Accel is "auto", "kvm" or "tcg"; empty is auto.
	Accel string
	// Backend takes the place of QEMU.
	Backend vm.Backend
	// NeedCommand has New fail with ErrNoCommand, before anything boots, when
	// neither the configuration nor the image says what to run.
	NeedCommand bool

	// Logger takes what a person may want to know later; nil: nobody does.
	Logger *slog.Logger
	// Progress, unless nil, is told how far what takes long has come. Calls do not
	// overlap.
	Progress func(Progress)
	// Timing, unless nil, is told how long each phase of a sandbox's life took.
	Timing func(phase string, took time.Duration)
}

// Progress tells how far something slow has come.
type Progress struct {
	Task  string // what it is, fit to be shown: "layer 3c1f…", "download linux-image…"
	Done  int64  // of Total
	Total int64  // 0 or less where it is not known
	Ended bool   // this task will not be heard of again
}

// Sandbox is a running microVM. Its methods may be called by several goroutines
// at once.
type Sandbox struct {
	id      string
	config  api.Config
	options Options
	process process // what the configuration and the image say of commands
	machine guestMachine

	close  sync.Once
	unwind unwind
	err    error // of Close
}

// New is Options.New with the zero Options.
func New(ctx context.Context, config api.Config) (*Sandbox, error) {
	return Options{}.New(ctx, config)
}

// New makes a sandbox and returns when it is ready for commands; the first
// command of the configuration is not started: see Sandbox.Main. ctx bounds the
// making only. An error leaves nothing behind.
func (o Options) New(ctx context.Context, config api.Config) (*Sandbox, error) {
	if err := config.Validate(); err != nil {
		return nil, err
	}
	if total, _ := hostMemory(); total > 0 && config.Memory > total {
		return nil, fmt.Errorf("memory %s: the host has %s", api.FormatSize(config.Memory), api.FormatSize(total))
	}
	s := &Sandbox{config: config.WithDefaults(), options: o.withDefaults()}
	if err := s.start(ctx); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

func (o Options) withDefaults() Options {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Progress == nil {
		o.Progress = func(Progress) {}
	}
	if o.Timing == nil {
		o.Timing = func(string, time.Duration) {}
	}
	if o.Kernel == "" {
		o.Kernel = os.Getenv("MATCHLOCK_KERNEL")
	}
	return o
}

// home finds and checks the folders that Options.Home or the environment names.
func (o Options) home() (home state.Home, err error) {
	if o.Home != "" {
		home, err = state.At(o.Home)
	} else {
		home, err = state.Find(os.Getenv)
	}
	if err != nil {
		return state.Home{}, err
	}
	return home, home.Open()
}

// ID is the sandbox's id: 12 characters of [a-z0-9].
func (s *Sandbox) ID() string { return s.id }

// start does what New promises, step by step. What it acquired is on the
// unwind stack, whether or not it succeeds.
func (s *Sandbox) start(ctx context.Context) error {
	clock := newStopwatch(s.options.Timing)
	home, err := s.options.home()
	if err != nil {
		return err
	}
	if err := state.Sweep(home.Sandboxes()); err != nil {
		s.options.Logger.Warn("sweeping up after dead sandboxes", "error", err)
	}
	clock.lap("prepare")

	img, err := s.options.image(ctx, home, &s.config)
	if err != nil {
		return err
	}
	s.unwind.push(img.Release)
	s.process = processOf(&s.config, &img.Config)
	if s.options.NeedCommand && len(s.process.argv) == 0 {
		return noCommand(s.config.Image)
	}
	clock.lap("image")

	dir, err := state.Create(home.Sandboxes())
	if err != nil {
		return fmt.Errorf("sandbox folder: %w", err)
	}
	s.unwind.push(dir.Close)
	s.id = dir.ID
	if err := writeConfig(dir.Path("config.json"), &s.config); err != nil {
		return fmt.Errorf("sandbox folder: %w", err)
	}
	for _, d := range s.config.Disks {
		release, err := lockDisk(d)
		if err != nil {
			return err
		}
		s.unwind.push(release)
	}
	if err := s.createScratch(ctx, home, dir); err != nil {
		return err
	}
	clock.lap("disks")

	backend := s.options.Backend
	if backend == nil {
		backend = qemu.New(qemu.Options{
			Accel:    s.options.Accel,
			CacheDir: home.Cache,
			RunDir:   dir.Path(),
			Logger:   s.options.Logger,
			Boot: func(ctx context.Context, _ string) (qemu.BootFiles, error) {
				clock.lap("host")
				defer clock.lap("kernel")
				return s.options.bootFiles(ctx, home)
			},
		})
	}
	made, err := backend.Create(ctx, vmConfig(dir, &s.config, img.Layers))
	if err != nil {
		return withHint(err)
	}
	var ok bool
	if s.machine, ok = made.(guestMachine); !ok {
		return errors.Join(fmt.Errorf("backend %s: %w: boot data and sessions", backend.Name(), errors.ErrUnsupported), made.Close(ctx))
	}
	s.unwind.push(s.endMachine)
	clock.lap("machine")
	if err := s.machine.Start(ctx); err != nil {
		return err
	}
	clock.lap("boot")
	if err := s.machine.Boot(ctx, bootData(s.id, &s.config, &img.Config)); err != nil {
		return err
	}
	clock.lap("set-up")
	return nil
}

// bootFiles finds kernel and initramfs.
func (o Options) bootFiles(ctx context.Context, home state.Home) (qemu.BootFiles, error) {
	guest, err := o.guest(ctx)
	if err != nil {
		return qemu.BootFiles{}, err
	}
	report := newTasks(o.Progress)
	defer report.end()
	files, err := boot.Prepare(ctx, boot.Options{
		Kernel:   o.Kernel,
		CacheDir: home.Cache,
		Guest:    guest,
		GuestSum: o.GuestSum,
		Logger:   o.Logger,
		Progress: report.update,
	})
	if err != nil {
		return qemu.BootFiles{}, err
	}
	return qemu.BootFiles{Kernel: files.Kernel, Initramfs: files.Initramfs, HZ: files.HZ}, nil
}

// scratchName is the file in a sandbox's folder that takes the writes to "/".
const scratchName = "upper.ext4"

func (s *Sandbox) createScratch(ctx context.Context, home state.Home, dir *state.Dir) error {
	cache := home.Disks()
	if err := hostfs.Private(cache); err != nil {
		return err
	}
	return withHint(disk.CreateScratch(ctx, dir.Path(scratchName), s.config.DiskSize, cache))
}

// vmConfig says what machine the configuration asks for.
func vmConfig(dir *state.Dir, c *api.Config, layers []image.Layer) *vm.VMConfig {
	m := &vm.VMConfig{
		ID:               dir.ID,
		OverlayEnabled:   true,
		OverlayUpperPath: dir.Path(scratchName),
		CPUs:             c.CPUs,
		MemoryMB:         int(c.Memory >> 20),
		LogPath:          dir.Path("console.log"),
		Hostname:         hostname(dir.ID, c),
		Privileged:       c.Privileged,
		NoNetwork:        true,
	}
	for _, l := range layers {
		m.OverlayLowerPaths = append(m.OverlayLowerPaths, l.Path)
		m.OverlayLowerFSTypes = append(m.OverlayLowerFSTypes, l.FSType)
	}
	for _, d := range c.Disks {
		m.ExtraDisks = append(m.ExtraDisks, vm.DiskConfig{HostPath: d.File, GuestMount: d.Mount, ReadOnly: d.ReadOnly})
	}
	return m
}

// bootData says what makes this machine this sandbox.
func bootData(id string, c *api.Config, img *image.Config) *api.BootData {
	return &api.BootData{
		Env:          environment(hostname(id, c), img.Env, c.Env),
		Hosts:        c.Network.AddHosts,
		Confinement:  c.Confinement(),
		ReadOnlyRoot: c.ReadOnly,
		Tmpfs:        c.Tmpfs,
		ShmSize:      c.ShmSize,
		Ulimits:      c.Ulimits,
	}
}

func hostname(id string, c *api.Config) string {
	if c.Hostname != "" {
		return c.Hostname
	}
	return id
}

func writeConfig(path string, config *api.Config) error {
	data, err := json.MarshalIndent(config, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(data, '\n'), 0o600)
}

// Close ends the sandbox and removes all that was made for it. What runs in it
// is killed; disks of the user's are synced first. It may be called again.
func (s *Sandbox) Close() error {
	s.close.Do(func() {
		clock := newStopwatch(s.options.Timing)
		s.err = s.unwind.run()
		clock.lap("close")
	})
	return s.err
}

// endMachine kills the machine, for what it wrote is thrown away. Where a disk
// outlives it, it is asked to stop and so to sync.
func (s *Sandbox) endMachine() error {
	var err error
	if slices.ContainsFunc(s.config.Disks, func(d api.Disk) bool { return !d.ReadOnly }) {
		err = s.machine.Stop(context.Background()) // bounded by itself
	}
	return errors.Join(err, s.machine.Close(context.Background()))
}

// guestMachine is what a sandbox needs of a machine beyond vm.Machine: to be
// told what makes it this sandbox, and all that one can do to a running command.
type guestMachine interface {
	vm.Machine
	vm.Booter
	Session(ctx context.Context, cmd agent.Command) (*machine.Session, error)
}

// unwind is a stack of undoings.
type unwind []func() error

// push takes what undoes something that has just been done.
func (u *unwind) push(undo func() error) { *u = append(*u, undo) }

// run undoes everything, last first. A fault does not stop it.
func (u *unwind) run() error {
	var errs []error
	for _, undo := range slices.Backward(*u) {
		errs = append(errs, undo())
	}
	*u = nil
	return errors.Join(errs...)
}

// stopwatch tells how long phases take.
type stopwatch struct {
	report func(phase string, took time.Duration)
	last   time.Time
}

func newStopwatch(report func(string, time.Duration)) *stopwatch {
	return &stopwatch{report, time.Now()}
}

// lap ends a phase and begins the next.
func (w *stopwatch) lap(phase string) {
	now := time.Now()
	w.report(phase, now.Sub(w.last))
	w.last = now
}
