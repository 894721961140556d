package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/matchlock/matchlock/api"
	"github.com/matchlock/matchlock/internal/agent"
	"github.com/matchlock/matchlock/internal/hostfs"
	"github.com/matchlock/matchlock/internal/state"
	"github.com/matchlock/matchlock/internal/wire"
	"github.com/matchlock/matchlock/vm"
)

// Options say how sandboxes are made on this host. The zero value takes
// everything from the environment and from where matchlock is installed. Options
// are a value, which methods do not change and several goroutines may use.
//
// Where a method takes ref, that is a sandbox's name, its id, or the beginning of its id,
// looked up in that order; one that there is not is ErrNotFound.
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
	// else kernel/vmlinux in the data folder, else one is found or fetched.
	Kernel string
	// Accel is "auto", "kvm" or "tcg"; empty is auto.
	Accel string
	// NoJail runs the hypervisor with all that this user may do: where a host offers too
	// little to confine it, or to look for a fault.
	NoJail bool
	// Cold boots the guest, and neither uses nor makes a template of one that has
	// booted.
	Cold bool
	// Backend takes the place of QEMU. It is for tests: what a sandbox needs of a machine
	// beyond vm.Machine, backends of other modules cannot have so far.
	Backend vm.Backend
	// Name is the sandbox's, of [a-z0-9_.-]; empty: one is made up.
	Name string
	// Keep leaves the sandbox's folder when it ends, for Start and Remove.
	Keep bool
	// NeedCommand has New fail with ErrNoCommand, before anything boots, when
	// neither the configuration nor the image says what to run.
	NeedCommand bool

	// Hooks judge and change what goes over the network, in the order in which they
	// stand, after those of the configuration.
	Hooks []Hook

	// FileHooks judge, and may change, what the guest does with the files of its mounts,
	// in the order in which they stand, after the configuration's rules.
	FileHooks []FileHook

	// Logger takes what a person may want to know later; nil: warnings go to the
	// sandbox's log.
	Logger *slog.Logger
	// Progress, unless nil, is told how far what takes long has come. Calls do not
	// overlap.
	Progress func(Progress)
	// Timing, unless nil, is told how long each phase of a sandbox's life took.
	Timing func(phase string, took time.Duration)
	// Blocks, unless nil, is told before a sandbox ends how many blocks of its
	// guest's code are translated, if they are: by QEMU's TCG, that is.
	Blocks func(n int)

	warm func(made bool, err error) // is qemu.Options.Warm
}

// Progress tells how far something slow has come.
type Progress struct {
	Task  string // what it is, fit to be shown: "layer 3c1f…", "download linux-image…"
	Done  int64  // of Total
	Total int64  // 0 or less where it is not known
	Ended bool   // this task will not be heard of again
}

// Sandbox is a microVM that runs: one that this process made and looks after, or
// one of another process that this one is attached to. Its methods may be called
// by several goroutines at once. Who has one calls Close in the end.
//
// It ends when the configuration's TTL or IdleTimeout has passed, when another process
// stops it, or when its guest dies. Wait tells of that, and what needs the guest is
// ErrNotRunning then. That its first command has ended is no end of it: who wants that,
// as the program matchlock does, waits for Main and closes.
type Sandbox struct {
	id     string
	keeper keeper
	client *agent.Client
}

// keeper is who looks after a sandbox: this process, or another that is reached
// by a socket.
type keeper interface {
	// process is what the configuration and the image say of commands.
	process() *process
	// dial opens a stream to a port of the guest.
	dial(ctx context.Context, port uint32) (net.Conn, error)
	// explain says why an error of such a stream came about.
	explain(ctx context.Context, err error) error
	// startMain starts the first command, or takes hold of the one that runs.
	startMain(ctx context.Context, c *Cmd) (session, error)

	info(ctx context.Context) (api.Info, error)
	usage(ctx context.Context) (api.Usage, error)
	wait(ctx context.Context) (api.Info, error)
	stop(ctx context.Context, grace time.Duration) error
	signal(ctx context.Context, number int) error
	rename(ctx context.Context, name string) error
	pause(ctx context.Context, paused bool) error
	// stoodStill is how long the sandbox has been paused so far, and whether it is.
	stoodStill(ctx context.Context) (total time.Duration, paused bool)
	run(ctx context.Context, c Background) error
	rules(ctx context.Context, c ruleChange) (Rules, error)
	changeSecret(ctx context.Context, c secretChange) error
	save(ctx context.Context, care diskCare) (*Saved, error)
	// maker is how sandboxes are made where this one is.
	maker() Options
	close() error
}

func sandboxOf(id string, k keeper) *Sandbox {
	return &Sandbox{id: id, keeper: k, client: agent.NewClient(k.dial)}
}

// New is Options.New with the zero Options.
func New(ctx context.Context, config api.Config) (*Sandbox, error) {
	return Options{}.New(ctx, config)
}

// New makes a sandbox and returns when it is ready for commands; the first
// command of the configuration is not started: see Sandbox.Main. An image that is
// not there is pulled, as Config.Pull says. ctx bounds the making only. An error
// leaves nothing behind; it is what config.Validate says, an *ImageError,
// ErrNameTaken, ErrNoHelper, ErrDiskInUse, or another.
func (o Options) New(ctx context.Context, config api.Config) (*Sandbox, error) {
	if err := config.Validate(); err != nil {
		return nil, err
	}
	if err := fitsHost(&config); err != nil {
		return nil, err
	}
	if o.Name != "" {
		if err := state.CheckName(o.Name); err != nil {
			return nil, err
		}
	}
	config, err := withWholePaths(config.WithDefaults(), nil)
	if err != nil {
		return nil, err
	}
	s := newSupervisor(o, config)
	if err := s.start(ctx, nil); err != nil {
		return nil, errors.Join(err, s.close())
	}
	return sandboxOf(s.id, s), nil
}

// fitsHost tells whether the host has the memory for a machine.
func fitsHost(c *api.Config) error {
	if total, _ := hostMemory(); total > 0 && c.Memory > total {
		return fmt.Errorf("memory %s: the host has %s", api.FormatSize(c.Memory), api.FormatSize(total))
	}
	return nil
}

// withWholePaths has a configuration name files of the host from the root on: it may
// be started again in another folder. Links to mounts are followed now and never again:
// a guest that may write to a folder could lead those elsewhere that lie in it. known
// are mounts of which that was done before.
func withWholePaths(c api.Config, known []api.Mount) (api.Config, error) {
	c.Disks, c.Secrets = slices.Clone(c.Disks), slices.Clone(c.Secrets)
	c.Network.UpstreamCA, c.Network.Hooks = slices.Clone(c.Network.UpstreamCA), slices.Clone(c.Network.Hooks)
	var paths []*string
	c.Mounts, c.Sockets = slices.Clone(c.Mounts), slices.Clone(c.Sockets)
	for i := range c.Mounts {
		if m := &c.Mounts[i]; m.Source != "" && !m.IsVolume() {
			paths = append(paths, &m.Source)
		}
	}
	for i := range c.Disks {
		paths = append(paths, &c.Disks[i].File)
	}
	for i := range c.Sockets {
		paths = append(paths, &c.Sockets[i].Host)
	}
	for i := range c.Secrets {
		if c.Secrets[i].Source == api.SecretFile {
			paths = append(paths, &c.Secrets[i].Where)
		}
	}
	for i := range c.Network.UpstreamCA {
		paths = append(paths, &c.Network.UpstreamCA[i])
	}
	for i := range c.Network.Hooks {
		if c.Network.Hooks[i].Socket != "" {
			paths = append(paths, &c.Network.Hooks[i].Socket)
		}
	}
	for _, path := range paths {
		whole, err := filepath.Abs(*path)
		if err != nil {
			return c, err
		}
		*path = whole
	}
	for i := range c.Mounts {
		m := &c.Mounts[i]
		if !filepath.IsAbs(m.Source) || slices.ContainsFunc(known, func(k api.Mount) bool { return k.Source == m.Source }) {
			continue
		}
		real, err := filepath.EvalSymlinks(m.Source)
		if errors.Is(err, fs.ErrNotExist) {
			continue // which is said later
		}
		if err != nil {
			return c, fmt.Errorf("mount at %s: %w", m.Target, err)
		}
		m.Source = real
	}
	return c, nil
}

// Start makes a sandbox run again that has ended and was kept: its disk, its
// configuration and its name as they were, its logs appended to. The caller
// becomes its supervisor, as with New. One that runs is ErrRunning.
func (o Options) Start(ctx context.Context, ref string) (*Sandbox, error) {
	o.Keep = true
	home, err := o.home()
	if err != nil {
		return nil, err
	}
	dir, err := openStopped(ctx, home, ref)
	if err != nil {
		return nil, err
	}
	var config api.Config
	if err := hostfs.ReadRecord(dir.Path(configName), &config); err != nil {
		return nil, errors.Join(fmt.Errorf("sandbox %q: its configuration: %w", ref, err), dir.Close())
	}
	if o.Accel == "" {
		o.Accel = dir.Record().Accel
	}
	o.NoJail = o.NoJail || dir.Record().NoJail
	s := newSupervisor(o, config)
	if err := s.start(ctx, dir); err != nil {
		return nil, errors.Join(err, s.close())
	}
	return sandboxOf(s.id, s), nil
}

func (o Options) withDefaults() Options {
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
	if home, err = o.findHome(); err != nil {
		return state.Home{}, err
	}
	return home, home.Open()
}

func (o Options) findHome() (state.Home, error) {
	if o.Home != "" {
		return state.At(o.Home)
	}
	return state.Find(os.Getenv)
}

// ID is the sandbox's id: 12 characters of [a-z0-9].
func (s *Sandbox) ID() string { return s.id }

// Info tells what is known of the sandbox: its name, its state, its ports. The maker
// can ask after its end, too.
func (s *Sandbox) Info(ctx context.Context) (api.Info, error) { return s.keeper.info(ctx) }

// Wait returns when the sandbox has ended, by itself or by Stop or Close, with what is
// known of it then: how the first command ended, and what went wrong. That something
// did is no error of Wait. Of another process's sandbox it is the end after which that is
// not restarted.
func (s *Sandbox) Wait(ctx context.Context) (api.Info, error) { return s.keeper.wait(ctx) }

// Stop ends the sandbox as its first command would like it: that is sent its
// stop signal and, when grace has passed, killed; then the disks are synced. It
// returns when the sandbox has ended, which does not remove one that is kept. To stop
// what has ended is no error.
func (s *Sandbox) Stop(ctx context.Context, grace time.Duration) error {
	return s.keeper.stop(ctx, grace)
}

// Signal sends a signal, by its Linux number (see ParseSignal), to the first
// command's process group. It is ErrNoCommand where that was not started.
func (s *Sandbox) Signal(ctx context.Context, number int) error { return s.keeper.signal(ctx, number) }

// Rename gives the sandbox another name; one that is taken is ErrNameTaken.
func (s *Sandbox) Rename(ctx context.Context, name string) error { return s.keeper.rename(ctx, name) }

// Pause has the sandbox stand still until Resume: what runs in it is held and
// takes no processor time; timeouts of commands stand still too. What needs the
// guest meanwhile is ErrPaused, and a copy of files under way may fail. A pause of
// what is paused is no error.
func (s *Sandbox) Pause(ctx context.Context) error { return s.keeper.pause(ctx, true) }

// Resume has a sandbox go on that was paused, with its wall clock set.
func (s *Sandbox) Resume(ctx context.Context) error { return s.keeper.pause(ctx, false) }

// Background is a command that the sandbox's supervisor runs on its own account.
// Its output goes to the sandbox's log, its input is empty.
//
// Its fields are those of a Cmd, Env by name.
type Background struct {
	Args []string          `json:"args"`
	Dir  string            `json:"dir,omitempty"`
	Env  map[string]string `json:"env,omitempty"`
	User string            `json:"user,omitempty"`
	Tty  bool              `json:"tty,omitempty"`
	// Timeout, if positive, bounds its life.
	Timeout time.Duration `json:"timeout,omitempty"`
}

// Run starts a command in the background and returns when it runs; one that cannot be
// started is an *ExitError, as of Cmd.Start. It goes on when who is attached is gone, as
// long as the sandbox does. How it ends is told to nobody.
func (s *Sandbox) Run(ctx context.Context, c Background) error { return s.keeper.run(ctx, c) }

// FS returns the files of the sandbox as its root sees them. ctx bounds all that
// is done by those methods of FS that take none of their own. To make one costs nothing.
func (s *Sandbox) FS(ctx context.Context) *FS { return newFS(ctx, s.client) }

// DialContext connects to a TCP port of the guest's loopback, for http.Transport
// and its like: network is "tcp", address "localhost:8080". What listens on other
// addresses of the guest only is not reached. ctx bounds the dialling only; the
// connection has deadlines and CloseWrite as one of TCP has. Errors are *net.OpError.
func (s *Sandbox) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	port, err := guestPort(network, address)
	if err == nil {
		var conn net.Conn
		if conn, err = s.keeper.dial(ctx, wire.PortForward+uint32(port)); err == nil {
			return conn, nil
		}
		err = s.keeper.explain(ctx, err)
	}
	return nil, &net.OpError{Op: "dial", Net: network, Addr: guestAddr(address), Err: err}
}

// guestAddr is an address as a user gave it.
type guestAddr string

func (guestAddr) Network() string  { return "tcp" }
func (a guestAddr) String() string { return string(a) }

func guestPort(network, address string) (uint16, error) {
	switch network {
	case "tcp", "tcp4", "tcp6":
	default:
		return 0, net.UnknownNetworkError(network)
	}
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return 0, err
	}
	if ip := net.ParseIP(host); host != "" && host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return 0, fmt.Errorf("host %q: only the guest's localhost can be dialled", host)
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("port %q: want a number from 1 to 65535", port)
	}
	return uint16(n), nil
}

// Restart is what Config.Restart asks for: in the place of Close, for a sandbox that this
// process made and keeps. If the policy wants that, the sandbox is started again after a
// pause that begins with 100 ms and doubles, up to a minute, as long as it does not run for
// 10 s; to others it is restarting meanwhile, and can be stopped. The Sandbox that is
// returned then takes the place of this one, which is closed; its first command is to be
// started. Without an error and a Sandbox it was over. ctx bounds the pause and the making.
func (s *Sandbox) Restart(ctx context.Context) (*Sandbox, error) {
	ended, ok := s.keeper.(*supervisor)
	if !ok {
		return nil, fmt.Errorf("restart: %w: another process looks after the sandbox", errors.ErrUnsupported)
	}
	err := ended.finish()
	next := ended.successor()
	if err != nil || next == nil {
		return nil, errors.Join(err, ended.close())
	}
	if err := next.start(ctx, ended.dir); err != nil {
		return nil, errors.Join(err, next.close())
	}
	return sandboxOf(next.id, next), nil
}

// Close ends a sandbox that this process made and, unless it is kept, removes
// all that was made for it. What runs in it is killed; disks that stay are synced
// first. A sandbox that this process is attached to is only let go. It may be
// called again, and while other methods are at work, which return ErrNotRunning then.
func (s *Sandbox) Close() error { return s.keeper.close() }
