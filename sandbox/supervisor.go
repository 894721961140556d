package sandbox

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/matchlock/matchlock/api"
	"github.com/matchlock/matchlock/internal/hostfs"
	"github.com/matchlock/matchlock/internal/logs"
	"github.com/matchlock/matchlock/internal/qemu"
	"github.com/matchlock/matchlock/internal/state"
	"github.com/matchlock/matchlock/internal/wire"
	"github.com/matchlock/matchlock/vm"
)

// Files in a sandbox's folder, beside those of package state and the socket of
// package control.
const (
	configName  = "config.json"
	outputName  = "output.log"
	consoleName = "console.log"
)

// Streams of the output log, beside logs.Own, which is the supervisor's.
const (
	stdoutStream     = "stdout"
	stderrStream     = "stderr"
	backgroundStream = "exec"
)

// supervisor is the keeper in the process that looks after a sandbox: it owns
// all that the sandbox has, and serves the control socket. It is the same in the
// foreground, in a process of its own and in somebody's Go program.
type supervisor struct {
	id      string
	options Options
	config  api.Config
	proc    process
	log     *slog.Logger

	origin  *origin // nil: it goes on from none
	dir     *state.Dir
	journal state.Journal // of all sandboxes
	output  *logs.Writer
	machine guestMachine
	network *network  // nil: there is none
	files   *files    // of the host; nil: there are none
	events  *eventLog // nil until it is open
	ports   []api.PublishedPort
	disks   []heldDisk // that it was given, in the guest's order

	rest  time.Duration   // before it begins, since it is restarted; 0: somebody started it
	life  context.Context // of what it starts; its cause says why it ends
	end   context.CancelCauseFunc
	begun context.Context // ends when start has, well or not
	begin context.CancelFunc
	over  context.Context // ends when the sandbox has ended and its record says so
	done  context.CancelFunc

	starting sync.Mutex // held by start, so that close undoes all of it
	closing  sync.Once
	unwind   unwind
	dying    <-chan error // of a machine that is killed; nil: none is
	err      error        // of close

	keeping      sync.Mutex    // of keepConfig
	limitsChange chan struct{} // has limitLife look at the configuration

	mu      sync.Mutex
	asked   bool   // somebody wants it to end
	again   bool   // it has ended, and holds its folder to be restarted
	between bool   // it is restarted, and its turn has not come
	fresh   bool   // start made the folder
	ready   bool   // start succeeded
	remove  bool   // the folder goes, whatever was said before
	failure string // why it did not start, or ended unasked
	main    *firstCommand
	expired string // why it was stopped by itself; empty: it was not
	active  activity

	pausedAt time.Time     // zero: it does not stand still
	still    time.Duration // how long it stood still before that
}

// errStopped is why what runs ends when somebody stops the sandbox.
var errStopped = fmt.Errorf("the sandbox was stopped: %w", ErrNotRunning)

func newSupervisor(o Options, config api.Config) *supervisor {
	s := &supervisor{options: o.withDefaults(), config: config, log: o.Logger, limitsChange: make(chan struct{}, 1)}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler) // until there is a log
	}
	s.life, s.end = context.WithCancelCause(context.Background())
	s.begun, s.begin = context.WithCancel(context.Background())
	s.over, s.done = context.WithCancel(context.Background())
	return s
}

// start does what New and Start promise; dir is that of the sandbox to start
// again, nil for a new one. What it acquired close undoes, whether or not it
// succeeds.
func (s *supervisor) start(ctx context.Context, dir *state.Dir) error {
	s.starting.Lock()
	defer s.starting.Unlock()
	defer s.begin()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(s.life, func() { cancel(context.Cause(s.life)) })()
	err := s.assemble(ctx, dir)
	if err != nil && s.life.Err() != nil {
		err = context.Cause(s.life)
	}
	if err == nil {
		err = s.dir.Update(func(r *state.Record) { r.Status, r.Started, r.Ports = api.StatusRunning, time.Now(), s.ports })
	}
	s.mu.Lock()
	s.ready = err == nil
	if err != nil && (!s.between || ctx.Err() == nil) {
		s.failure = err.Error()
	}
	s.mu.Unlock()
	if err != nil {
		return err
	}
	how := ""
	if s.rest > 0 {
		how = "by its restart policy"
	}
	s.tell(api.LifeStarted, how, nil)
	go s.limitLife()
	return nil
}

// assemble acquires what a sandbox needs, step by step.
func (s *supervisor) assemble(ctx context.Context, dir *state.Dir) error {
	clock := newStopwatch(s.options.Timing)
	if dir != nil {
		s.take(dir, s.rest > 0)
		s.unwind.push(s.recordEnd) // of a start that does not come to the point below
		if _, err := tidy(dir); err != nil {
			return fmt.Errorf("sandbox folder: %w", err)
		}
	}
	home, err := s.options.home()
	if err != nil {
		return err
	}
	s.journal = home.Journal()
	if _, err := s.options.sweep(ctx, home); err != nil {
		s.log.Warn("sweeping up after dead sandboxes", "error", err)
	}
	clock.lap("prepare")

	wanted := s.config
	if dir != nil {
		wanted.Image, wanted.Pull = dir.Record().ImageDigest, api.PullNever // its layers are what its disk goes with
	} else if s.origin != nil {
		wanted.Image, wanted.Pull = s.origin.record.ImageDigest, api.PullNever
	}
	img, err := s.options.image(ctx, home, &wanted)
	if err != nil {
		return err
	}
	// Until then the folder, which names the image, goes on needing it.
	s.unwind = append(unwind{img.Release}, s.unwind...)
	s.proc = processOf(&s.config, &img.Config)
	if s.options.NeedCommand && len(s.proc.Argv) == 0 {
		return noCommand(s.config.Image)
	}
	clock.lap("image")

	if dir == nil {
		if err := s.createFolder(ctx, home, img.Digest); errors.Is(err, ErrNameTaken) {
			return err
		} else if err != nil {
			return fmt.Errorf("sandbox folder: %w", err)
		}
	}
	if err := s.serve(); err != nil {
		return err
	}
	if err := s.openLog(); err != nil {
		return err
	}
	if err := s.openEvents(); err != nil {
		return err
	}
	s.unwind.push(s.recordEnd)
	if dir == nil {
		s.tell(api.LifeCreated, s.madeFrom(), nil)
	}
	if err := s.awaitTurn(ctx); err != nil {
		return err
	}
	if err := errors.Join(checkSockets(s.config.Sockets), checkReach(&s.config)); err != nil {
		return err
	}
	if err := s.openNetwork(ctx, dir != nil); err != nil {
		return err
	}
	if err := s.openFiles(); err != nil {
		return err
	}
	if err := s.openDisks(ctx, home); err != nil {
		return err
	}
	clock.lap("disks")

	scratch := func(ctx context.Context) error { return createScratch(ctx, home, s.dir, s.config.DiskSize) }
	if dir != nil || s.origin != nil {
		scratch = nil // it is there, or the origin's
	}
	backend := s.options.Backend
	if backend == nil {
		options := qemu.Options{
			Accel: s.options.Accel,
			Guest: func(ctx context.Context) (*io.SectionReader, error) {
				guest, err := s.options.guest(ctx)
				if err == nil {
					s.options.Guest = guest // a helper that hands it out takes its time, and Boot asks again
				}
				return guest, err
			},
			NoJail:      s.options.NoJail,
			CacheDir:    home.Cache,
			RunDir:      s.dir.Path(),
			Scratch:     scratch,
			ScratchSize: s.config.DiskSize,
			Logger:      s.log,
			Boot: func(ctx context.Context, _ string) (qemu.BootFiles, error) {
				clock.lap("host")
				defer clock.lap("kernel")
				return s.options.bootFiles(ctx, home)
			},
		}
		if s.origin != nil {
			options.Snapshot = s.origin.machine
		}
		if !s.options.Cold {
			options.Templates, options.Warm = home.Templates(), s.options.warm
			options.Image, options.ImageDigest = s.config.Image, img.Digest
		}
		backend = qemu.New(options)
	} else if scratch != nil {
		if err := scratch(ctx); err != nil {
			return err
		}
	}
	config, data := vmConfig(s.dir, &s.config, img.Layers, s.disks), bootData(s.id, &s.config, &img.Config, s.network)
	data.User, data.Mounts = s.proc.User, s.files.mounts()
	if s.origin != nil {
		data.Hosts = s.origin.hosts
		if n := s.origin.record.Network; n != nil && n.CA != nil {
			data.CA = nil // its programs trust it already
		}
	} else {
		config.Boot = data
	}
	made, err := backend.Create(ctx, config)
	if err != nil {
		return withHint(err)
	}
	machine, ok := made.(guestMachine)
	if !ok {
		return errors.Join(fmt.Errorf("backend %s: %w: boot data and streams", backend.Name(), errors.ErrUnsupported), made.Close(ctx))
	}
	s.mu.Lock()
	s.machine = machine
	s.mu.Unlock()
	s.unwind.push(s.endMachine)
	if err := s.attachNetwork(); err != nil {
		return err
	}
	if err := s.attachFiles(); err != nil {
		return err
	}
	clock.lap("machine")
	if err := machine.Start(ctx); err != nil {
		return err
	}
	go s.watch()
	clock.lap("boot")
	if s.origin != nil {
		if err := machine.Boot(ctx, data); err != nil {
			return err
		}
		if err := s.goOn(ctx); err != nil {
			return err
		}
		if s.network != nil && s.origin.record.Network != nil {
			s.network.goOn(s.origin.record.Network)
		}
	}
	s.forwardSockets()
	clock.lap("set-up")
	return nil
}

// take makes dir the sandbox's folder. What restarts goes on to say how it ended.
func (s *supervisor) take(dir *state.Dir, restarts bool) {
	s.dir, s.id = dir, dir.ID
	s.unwind.push(s.leave)
	if restarts {
		return
	}
	// A full disk shows with the first file that matters.
	_ = dir.Update(func(r *state.Record) {
		r.Status, r.PID, r.ExitCode, r.Error, r.Expired, r.Restarts = api.StatusStarting, os.Getpid(), nil, "", false, 0
	})
}

// createFolder makes the folder of a new sandbox.
func (s *supervisor) createFolder(ctx context.Context, home state.Home, digest string) error {
	var parent, snapshot string
	if s.origin != nil {
		parent, snapshot = s.origin.record.ID, s.origin.record.Snapshot
	}
	dir, err := state.Create(ctx, home.Sandboxes(), state.Record{
		Accel: s.options.Accel, NoJail: s.options.NoJail,
		Info: api.Info{
			Parent: parent, Snapshot: snapshot,
			Name: s.options.Name, Status: api.StatusStarting, PID: os.Getpid(),
			Image: s.config.Image, ImageDigest: digest, Command: append([]string{}, s.proc.Argv...), Labels: s.config.Labels,
			Created: time.Now(), AutoRemove: !s.options.Keep,
		},
	})
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.fresh = true
	s.mu.Unlock()
	s.take(dir, false)
	if s.origin != nil {
		if err := s.takeCopies(); err != nil {
			return err
		}
	}
	return hostfs.WriteRecord(dir.Path(configName), &s.config)
}

// openDisks opens the disks that the sandbox is given. What goes on from another has
// them as they were.
func (s *supervisor) openDisks(ctx context.Context, home state.Home) error {
	for _, d := range userDisks(home, &s.config) {
		if slices.ContainsFunc(s.disks, func(other heldDisk) bool { return other.path == d.path && !(other.readOnly && d.readOnly) }) {
			return fmt.Errorf("%s: it is given twice, and not only to be read", d)
		}
		file, err := d.open(ctx, home, s.id)
		if err != nil {
			return err
		}
		s.unwind.push(file.Close)
		s.disks = append(s.disks, heldDisk{d, file})
	}
	if s.origin == nil {
		return nil
	}
	for i, mark := range s.origin.record.Disks { // as many, and in the same order: see Saved.checkDisks
		if mark.Copied {
			continue
		}
		if err := mark.check(ctx, s.disks[i].file); err != nil {
			return fmt.Errorf("%s: %w", s.disks[i], err)
		}
	}
	return nil
}

// openLog opens the log of the commands' output.
func (s *supervisor) openLog() (err error) {
	s.output, err = logs.Open(s.dir.Path(outputName), logs.Options{
		OnError: func(err error) {
			// Else s.log writes to this log, maybe this very line: it tells itself what was lost.
			if s.options.Logger != nil {
				s.log.Warn("output is not logged", "error", err)
			}
		},
	})
	if err != nil {
		return fmt.Errorf("log: %w", err)
	}
	s.unwind.push(s.output.Close)
	if s.options.Logger == nil {
		s.log = slog.New(slog.NewTextHandler(s.output.Stream(logs.Own), &slog.HandlerOptions{Level: slog.LevelWarn}))
	}
	return nil
}

// watch ends the sandbox when its guest has ended.
func (s *supervisor) watch() {
	err := s.machine.Wait(context.Background())
	if s.life.Err() == nil { // nobody asked for it
		s.mu.Lock()
		s.failure = "the guest powered off"
		if err != nil {
			s.failure = err.Error()
		}
		s.mu.Unlock()
	}
	s.finish() // whoever made the sandbox gets the error too
}

// lastWords is how long those who are attached may take for the end of what
// there is to read.
const lastWords = 5 * time.Second

// close implements keeper.
func (s *supervisor) close() error { return errors.Join(s.finish(), s.forgo()) }

// finish ends the sandbox and undoes all that start did, but that the folder of one that is
// to be restarted stays held.
func (s *supervisor) finish() error {
	s.closing.Do(func() {
		s.end(errStopped)
		s.starting.Lock()
		defer s.starting.Unlock()
		s.tellBlocks()
		clock := newStopwatch(s.options.Timing)
		s.err = s.unwind.run()
		s.done() // of a sandbox that never had a record
		clock.lap("close")
	})
	return s.err
}

// countTime is how long the hypervisor may take to answer for it.
const countTime = time.Second

func (s *supervisor) tellBlocks() {
	counter, ok := s.guest().(blockCounter)
	if !ok || s.options.Blocks == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), countTime)
	defer cancel()
	if n, err := counter.Blocks(ctx); err == nil { // else there is nothing to tell
		s.options.Blocks(n)
	}
}

// endMachine ends the machine: where a disk outlives it, it is asked to stop and
// so to sync, else it is killed, and dies while the rest is undone: see leave.
func (s *supervisor) endMachine() error {
	if !s.goes() || slices.ContainsFunc(s.disks, func(d heldDisk) bool { return !d.readOnly && filepath.Dir(d.path) != s.dir.Path() }) {
		err := s.machine.Stop(context.Background()) // bounded by itself
		return errors.Join(err, s.machine.Close(context.Background()))
	}
	dying := make(chan error, 1)
	s.dying = dying
	go func() { dying <- s.machine.Close(context.Background()) }()
	return nil
}

// goes tells whether the folder goes with the sandbox.
func (s *supervisor) goes() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.remove || s.fresh && !s.ready || s.dir.Record().AutoRemove
}

// recordEnd writes down how the sandbox has ended. A second call does nothing.
func (s *supervisor) recordEnd() error {
	if s.over.Err() != nil {
		return nil
	}
	defer s.done()
	// The first command's end is known a moment after the machine's.
	if m := s.first(); m != nil {
		select {
		case <-m.over.Done():
		case <-time.After(time.Second):
		}
	}
	s.mu.Lock()
	failure, main, ready, expired, between := s.failure, s.main, s.ready, s.expired, s.between
	s.mu.Unlock()
	update := s.dir.Update
	if s.goes() {
		update = s.dir.Note // nobody will read it; those who wait are told from memory
	}
	if between && failure == "" { // it stays ended as it was
		return update(func(r *state.Record) { r.Status, r.PID = api.StatusStopped, 0 })
	}
	var code *int
	switch {
	case main != nil && main.over.Err() != nil:
		code = &main.exit.Code
		failure = cmp.Or(failure, main.failure)
	case failure != "" && ready:
		code = new(statusUnknown)
	}
	limited := failure == "" && expired != ""
	if limited {
		failure = "stopped: " + expired
		if main == nil {
			code = new(0) // it idled
		}
	}
	again := s.endsForNow(code)
	defer func() { s.tell(api.LifeEnded, failure, code) }()
	return update(func(r *state.Record) {
		r.Status, r.Finished, r.PID, r.ExitCode, r.Error, r.Expired, r.Ports = api.StatusStopped, time.Now(), 0, code, failure, limited, nil
		if again {
			r.Status, r.PID = api.StatusRestarting, os.Getpid()
			r.Restarts++
		}
	})
}

// leave gives the folder back, when nothing runs any more.
func (s *supervisor) leave() error {
	var err error
	if s.dying != nil {
		err = <-s.dying
	}
	if s.goes() {
		err = errors.Join(err, s.dir.Remove())
		if s.over.Err() != nil { // it had begun
			s.tell(api.LifeRemoved, "", nil)
		}
		return err
	}
	if s.keepsFolder() {
		return err
	}
	return errors.Join(err, s.forgo(), s.dir.Close())
}

func (s *supervisor) process() *process { return &s.proc }

// dial is for those who use the sandbox: as long as one holds a connection it is not idle.
func (s *supervisor) dial(ctx context.Context, port uint32) (net.Conn, error) {
	conn, err := s.connect(ctx, port)
	if err != nil {
		return nil, err
	}
	return wire.UntilClosed(conn, s.active.begin()), nil
}

// connect opens a stream to a port of the guest.
func (s *supervisor) connect(ctx context.Context, port uint32) (net.Conn, error) {
	s.mu.Lock()
	between := s.between
	s.mu.Unlock()
	if between {
		return nil, &stateError{s.dir.Record().Name, "is restarting", ErrNotRunning}
	}
	select {
	case <-s.begun.Done():
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	m := s.guest()
	if m == nil {
		return nil, ErrNotRunning
	}
	return m.Dial(ctx, port)
}

func (s *supervisor) guest() guestMachine {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.machine
}

func (s *supervisor) explain(ctx context.Context, err error) error {
	if m := s.guest(); m != nil {
		return m.Explain(ctx, err)
	}
	return err
}

func (s *supervisor) info(context.Context) (api.Info, error) { return s.dir.Record().Info, nil }

func (s *supervisor) wait(ctx context.Context) (api.Info, error) {
	select {
	case <-s.over.Done():
		return s.info(ctx)
	case <-ctx.Done():
		return api.Info{}, context.Cause(ctx)
	}
}

func (s *supervisor) pause(ctx context.Context, paused bool) error {
	m, ok := s.guest().(vm.Pauser)
	if !ok {
		return errors.ErrUnsupported
	}
	do, status := m.Resume, api.StatusRunning
	if paused {
		do, status = m.Pause, api.StatusPaused
	}
	if err := do(ctx); err != nil {
		return fmt.Errorf("sandbox %q: %w", s.dir.Record().Name, s.explain(ctx, err))
	}
	s.mu.Lock()
	changes := paused == s.pausedAt.IsZero()
	switch now := time.Now(); {
	case paused && s.pausedAt.IsZero():
		s.pausedAt = now
	case !paused && !s.pausedAt.IsZero():
		s.still, s.pausedAt = s.still+now.Sub(s.pausedAt), time.Time{}
	}
	s.mu.Unlock()
	if err := s.dir.Update(func(r *state.Record) { r.Status = status }); err != nil || !changes {
		return err
	}
	action := api.LifeResumed
	if paused {
		action = api.LifePaused
	}
	s.tell(action, "", nil)
	return nil
}

func (s *supervisor) stoodStill(context.Context) (total time.Duration, paused bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pausedAt.IsZero() {
		return s.still, false
	}
	return s.still + time.Since(s.pausedAt), true
}

func (s *supervisor) rename(ctx context.Context, name string) error {
	was := s.dir.Record().Name
	err := s.dir.Rename(ctx, name)
	if err == nil {
		s.tell(api.LifeRenamed, "from "+was, nil)
	}
	return err
}
