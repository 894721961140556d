// Package machine makes a vm.Machine out of a Hypervisor, which boots a guest
// and carries bytes to it, and the agent's client, which knows what to say. It
// does so once for all platforms: what differs between hypervisors is behind
// the six methods of Hypervisor and nowhere else.
package machine

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/matchlock/matchlock/api"
	"github.com/matchlock/matchlock/internal/agent"
	"github.com/matchlock/matchlock/internal/hostfs"
	"github.com/matchlock/matchlock/internal/wire"
	"github.com/matchlock/matchlock/vm"
)

// A Hypervisor boots one guest and opens connections to it. It knows nothing
// of what is said over them. Its methods may be called by several goroutines
// at once, Close at any time.
type Hypervisor interface {
	// Start returns when the guest's processors run. Its kernel may still boot, or
	// hang. ctx bounds the call alone.
	Start(ctx context.Context) error

	// Wait returns when the hypervisor's process is gone: nil when the guest
	// powered off by itself or was closed, else why.
	Wait(ctx context.Context) error

	// Close kills what is left and releases everything. It may be called again.
	Close() error

	// PID is the hypervisor's process id, 0 when none runs.
	PID() int

	// DialVsock opens a stream to a service port of the guest, and for
	// wire.PortControl and wire.PortFiles those ports, which have one stream only.
	DialVsock(ctx context.Context, port uint32) (net.Conn, error)
}

// A Narrator is a Hypervisor that keeps the end of what the guest's console
// says.
type Narrator interface {
	// LastLines returns it on one line, bounded and printable, "" for nothing.
	LastLines() string
}

// A Settler is a Hypervisor that wants to rearrange itself, or to copy its
// guest, when that is prepared and not yet set up: it knows nothing then that is
// not the same in all guests of its shape, and nothing is under way.
type Settler interface {
	// Settle returns when the guest runs on. If fresh, the connections made before
	// are over, and the guest has lost the time that it took.
	Settle(ctx context.Context) (fresh bool, err error)
}

// An Accelerated is a Hypervisor that can run its guest in more than one way.
type Accelerated interface {
	// Accelerator returns what runs it, in lower case, "kvm" or "tcg", and why, a
	// phrase.
	Accelerator() (name, reason string)
}

// A Confined is a Hypervisor whose process may be kept from its host.
type Confined interface {
	// Jail returns what holds it, and what could not be had, with the reason.
	Jail() (applied, missing []string)
}

// A Pauser is a Hypervisor that can have its guest stand still.
type Pauser interface {
	Pause(ctx context.Context) error
	Resume(ctx context.Context) error
}

// A Snapshotter is a Hypervisor that can copy its guest while that runs.
type Snapshotter interface {
	// Snapshot calls hold when all is done that can be done while the guest runs, and
	// release when it runs again. Of a guest that is paused it does neither.
	Snapshot(ctx context.Context, o vm.SnapshotOptions, paused bool, hold func(context.Context) (release func() error, err error)) (*vm.Snapshot, error)
}

// A Counter is a Hypervisor that may translate its guest's code, and counts how
// much: a measure of what the guest has run for the first time, which other work
// on the host does not change.
type Counter interface {
	// Blocks is how many blocks of code have been translated and are kept. It is
	// errors.ErrUnsupported where the guest runs untranslated.
	Blocks(ctx context.Context) (int, error)
}

// A Memory is the guest's memory by physical addresses, reached from outside. What the
// guest writes there meanwhile is its own affair.
type Memory interface {
	ReadMemory(p []byte, address uint64) error
	WriteMemory(p []byte, address uint64) error
}

// A Rememberer is a Hypervisor that can reach its guest's memory.
type Rememberer interface {
	// Memory is that of the process that runs the guest now.
	Memory() (Memory, error)
}

const (
	bootTimeout   = 2 * time.Minute  // for the kernel to boot: 3 s under TCG, ten times that on a busy host
	stopGrace     = 10 * time.Second // for the guest to sync and power off
	clockInterval = 10 * time.Second // between settings of the guest's clock: it has no other reference
	setupTimeout  = 30 * time.Second // for each step of the set-up after the guest has booted, and for the clock
	freezeTimeout = 2 * time.Minute  // for user code to stand still: what it has written to disks goes there first
	endGrace      = time.Second      // for the hypervisor's end to be noticed after a connection broke
	entropyBytes  = 64               // twice the pool of the kernel's generator
)

// Machine is a vm.Machine, vm.InteractiveMachine, vm.VsockDialer, vm.Booter,
// vm.Pauser and vm.Snapshotter.
type Machine struct {
	config  *Config
	hv      Hypervisor
	link    *os.File // host end of the guest's link; nil: none of ours
	rootfs  string
	client  *agent.Client
	control *agent.Control // set by Start, closed by Close

	// life ends with the guest; its cause says why and wraps vm.ErrNotRunning.
	life    context.Context
	end     context.CancelCauseFunc
	running atomic.Bool // the agent has answered
	stopped atomic.Bool // we asked for the end

	mu       sync.Mutex
	started  bool
	closed   bool
	booted   bool // Boot was called, or need not be
	executed bool // user code has run
	sockets  []io.Closer
	serving  sync.WaitGroup

	clock    lock      // held while user code is stopped, too
	clockSet time.Time // when the guest's clock was last set; guarded by clock
	execs    atomic.Int64

	serveFiles func(net.Conn, Memory) // nil: nobody serves them

	pausing lock // held by Pause, Resume and Snapshot
	paused  atomic.Bool
	held    atomic.Bool // it goes on from a snapshot, and Boot has not been called
}

var (
	_ vm.InteractiveMachine = (*Machine)(nil)
	_ vm.VsockDialer        = (*Machine)(nil)
	_ vm.Booter             = (*Machine)(nil)
	_ vm.Pauser             = (*Machine)(nil)
	_ vm.Snapshotter        = (*Machine)(nil)
)

// New makes a machine that is not yet started. It takes over hv and link, the
// host end of the guest's link or nil; rootfs is the image that the guest will
// write to.
func New(config *Config, hv Hypervisor, link *os.File, rootfs string) *Machine {
	m := &Machine{config: config, hv: hv, link: link, rootfs: rootfs, booted: config.Boot != nil, clock: newLock(), pausing: newLock()}
	m.life, m.end = context.WithCancelCause(context.Background())
	m.client = agent.NewClient(hv.DialVsock)
	return m
}

// Start implements vm.Machine.
func (m *Machine) Start(ctx context.Context) error {
	m.mu.Lock()
	if m.started || m.closed {
		defer m.mu.Unlock()
		if m.closed {
			return m.notRunning()
		}
		return errors.New("start: the machine was started before")
	}
	m.started = true
	m.mu.Unlock()

	if err := m.start(ctx); err != nil {
		return errors.Join(err, m.Close(context.WithoutCancel(ctx)))
	}
	m.running.Store(true)
	return nil
}

func (m *Machine) start(ctx context.Context) error {
	inner, leave := m.enter(ctx)
	defer leave()
	if err := m.hv.Start(inner); err != nil {
		return err // says why by itself
	}
	m.serving.Go(m.watch)
	return m.Explain(ctx, m.setUp(inner))
}

// setUp waits for the guest to answer and makes it what the configuration says.
func (m *Machine) setUp(ctx context.Context) error {
	hello, err := m.connect(ctx)
	if err != nil {
		return err
	}
	// A guest that is a copy of a prepared one is prepared.
	if !hello.Prepared {
		if err := m.prepare(ctx); err != nil {
			return err
		}
	}
	params := m.config.Params
	setup := agent.Setup{
		Hostname:  params.Hostname,
		MachineID: machineID(m.config.ID),
		BootID:    newUUID(),
		Env:       m.config.Env,
		Hosts:     m.config.AddHosts,
		Entropy:   make([]byte, entropyBytes),
		Time:      time.Now(),
	}
	if !params.NoNetwork || len(params.Disks) > 0 {
		setup.Params = params.String()
	}
	rand.Read(setup.Entropy)
	setupCtx, cancel := within(ctx, setupTimeout)
	defer cancel()
	if err := m.offerFiles(ctx); err != nil {
		return err
	}
	if hello.SetUp {
		err = m.renew(setupCtx, setup)
	} else {
		setup.Boot = m.config.Boot
		err = m.control.Setup(setupCtx, setup)
	}
	if agent.IsGuestError(err) {
		return err // says by itself what it is about
	}
	if err != nil {
		return fmt.Errorf("guest set-up: %w", err)
	}
	m.clockSet = setup.Time
	m.serving.Go(m.keepClock)
	return m.listenVsock()
}

// ServeFiles has serve called by Start, when the guest is about to be set up, with
// the connection by which its kernel asks for the host's files; memory is nil where it
// cannot be reached. It must return at once.
func (m *Machine) ServeFiles(serve func(conn net.Conn, memory Memory)) { m.serveFiles = serve }

func (m *Machine) offerFiles(ctx context.Context) error {
	if m.serveFiles == nil {
		return nil
	}
	conn, err := m.hv.DialVsock(ctx, wire.PortFiles)
	if err != nil {
		return fmt.Errorf("port of files: %w", err)
	}
	var memory Memory
	if hv, ok := m.hv.(Rememberer); ok {
		memory, _ = hv.Memory() // without, files go by the connection, which is slower
	}
	m.serveFiles(conn, memory)
	return nil
}

// renew makes a guest that goes on from a snapshot another one, with a session of
// its own. Its user code stands still until Boot.
func (m *Machine) renew(ctx context.Context, setup agent.Setup) error {
	m.held.Store(true)
	if err := m.control.Renew(ctx, setup); err != nil {
		return err
	}
	return m.control.Reset(ctx, m.config.Epoch)
}

// newUUID makes a random UUID (RFC 9562, version 4).
func newUUID() string {
	var b [16]byte
	rand.Read(b[:])
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// machineID is the guest's, as machine-id(5) has it: the same each time that the
// machine starts, and no other's as long as their names differ.
func machineID(id string) string {
	sum := sha256.Sum256([]byte("matchlock machine-id " + id))
	return hex.EncodeToString(sum[:16])
}

// prepare has the guest do what is the same in all guests of its shape, and lets
// the hypervisor rearrange itself after that.
func (m *Machine) prepare(ctx context.Context) error {
	ctx, cancel := within(ctx, setupTimeout)
	defer cancel()
	p := agent.Preparation{Params: m.config.Params.String(), Time: time.Now()}
	if m.config.UseInterception {
		p.Roots = hostRoots()
	}
	if err := m.control.Prepare(ctx, p); err != nil {
		return fmt.Errorf("guest preparation: %w", err)
	}
	settler, ok := m.hv.(Settler)
	if !ok {
		return nil
	}
	fresh, err := settler.Settle(ctx)
	if err != nil || !fresh {
		return err
	}
	m.control.Close()
	_, err = m.connect(ctx)
	return err
}

// connect opens the control port and waits for the guest to answer.
func (m *Machine) connect(ctx context.Context) (hello agent.Hello, err error) {
	conn, err := m.hv.DialVsock(ctx, wire.PortControl)
	if err != nil {
		return hello, fmt.Errorf("control port: %w", err)
	}
	control := agent.NewControl(conn)
	m.mu.Lock()
	m.control = control // for Close from now on; it is used when the machine runs
	m.mu.Unlock()
	if hello, err = m.greet(ctx, control); err != nil {
		return hello, err
	}
	if hello.Version != wire.Version {
		return hello, fmt.Errorf("guest speaks version %d, the host %d", hello.Version, wire.Version)
	}
	return hello, nil
}

// greet returns the guest's first answer. One that does not come is told with
// what the console knows about it, if anybody asks that.
func (m *Machine) greet(ctx context.Context, control *agent.Control) (agent.Hello, error) {
	inner, cancel := within(ctx, bootTimeout)
	defer cancel()
	hello, err := control.Hello(inner)
	if err == nil {
		return hello, nil
	}
	if hv, ok := m.hv.(Narrator); ok && ctx.Err() == nil && inner.Err() != nil {
		if last := hv.LastLines(); last != "" {
			err = fmt.Errorf("%w; its console said last: %s", context.Cause(inner), last)
		}
	}
	return agent.Hello{}, fmt.Errorf("guest did not come up: %w", err)
}

// watch ends the machine's life with the hypervisor's.
func (m *Machine) watch() {
	err := m.hv.Wait(context.Background())
	switch {
	case m.stopped.Load():
		err = fmt.Errorf("%w: it was stopped", vm.ErrNotRunning)
	case err == nil:
		err = fmt.Errorf("%w: the guest powered off", vm.ErrNotRunning)
	default:
		err = &deathError{err}
	}
	m.end(err)
}

// deathError is the end of a guest that nobody asked for.
type deathError struct{ cause error }

func (e *deathError) Error() string   { return vm.ErrNotRunning.Error() + ": " + e.cause.Error() }
func (e *deathError) Unwrap() []error { return []error{vm.ErrNotRunning, e.cause} }

// enter returns a context that ends with ctx or with the guest, whichever is first.
func (m *Machine) enter(ctx context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	detach := context.AfterFunc(m.life, func() { cancel(context.Cause(m.life)) })
	return ctx, func() { detach(); cancel(nil) }
}

// within bounds how long an answer of the guest is waited for.
func within(ctx context.Context, limit time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, limit, fmt.Errorf("no answer within %v", limit))
}

// lock is a mutex that is held while the guest is asked, which may never answer: who
// wants it waits for it only as long as a context lasts.
type lock chan struct{}

func newLock() lock { return make(lock, 1) }

func (l lock) take(ctx context.Context) error {
	select {
	case l <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (l lock) give() { <-l }

// ask makes one call to the running guest.
func ask[T any](ctx context.Context, m *Machine, call func(context.Context) (T, error)) (answer T, err error) {
	if m.life.Err() != nil || !m.running.Load() {
		return answer, m.notRunning()
	}
	if m.paused.Load() {
		return answer, vm.ErrPaused
	}
	inner, leave := m.enter(ctx)
	defer leave()
	answer, err = call(inner)
	return answer, m.Explain(ctx, err)
}

// tell is ask for a call that answers nothing.
func tell(ctx context.Context, m *Machine, call func(context.Context) error) error {
	_, err := ask(ctx, m, func(ctx context.Context) (struct{}, error) { return struct{}{}, call(ctx) })
	return err
}

// run is ask for a call that runs user code.
func run[T any](ctx context.Context, m *Machine, call func(context.Context) (T, error)) (answer T, err error) {
	return ask(ctx, m, func(ctx context.Context) (answer T, err error) {
		if err := m.beginExec(ctx); err != nil {
			return answer, err
		}
		defer m.execs.Add(-1)
		return call(ctx)
	})
}

// beginExec prepares for user code: from here on Boot is refused, and the
// guest's clock is right. The caller counts m.execs down again at the end.
func (m *Machine) beginExec(ctx context.Context) error {
	if m.held.Load() {
		return errors.New("exec: the machine goes on from a snapshot, and Boot comes first")
	}
	m.mu.Lock()
	if !m.booted && (m.config.UseInterception || m.config.Workspace != "") {
		m.mu.Unlock()
		return errors.New("exec: Boot, which brings the CA and the workspace, comes first")
	}
	m.executed = true
	m.mu.Unlock()
	if err := m.setClock(ctx); err != nil {
		return err
	}
	m.execs.Add(1)
	return nil
}

// notRunning says why there is no guest.
func (m *Machine) notRunning() error {
	if m.life.Err() != nil {
		return context.Cause(m.life)
	}
	return fmt.Errorf("%w: it has not been started", vm.ErrNotRunning)
}

// brokenConnection are the errors of which the guest's end may be the cause.
var brokenConnection = []error{
	io.EOF, io.ErrUnexpectedEOF, io.ErrClosedPipe, net.ErrClosed, syscall.EPIPE, syscall.ECONNRESET, wire.ErrReset, wire.ErrStopped,
	os.ErrProcessDone, syscall.ESRCH,
}

// Explain puts the guest's end in the place of an error that came of it. ctx
// is the caller's: an error of its end stays as it is.
func (m *Machine) Explain(ctx context.Context, err error) error {
	if err == nil || ctx.Err() != nil {
		return err
	}
	if errors.Is(err, agent.ErrTooLarge) {
		return fmt.Errorf("%w: %w", vm.ErrTooLarge, err)
	}
	if !slices.ContainsFunc(brokenConnection, func(b error) bool { return errors.Is(err, b) }) {
		return err
	}
	// It breaks a moment before the process is reaped.
	select {
	case <-m.life.Done():
		return context.Cause(m.life)
	case <-ctx.Done():
	case <-time.After(endGrace):
	}
	return err
}

// Boot implements vm.Booter.
func (m *Machine) Boot(ctx context.Context, data *api.BootData) error {
	if err := checkBootData(data); err != nil {
		return err
	}
	if m.config.Workspace != "" {
		whole := *data
		whole.Mounts = append(slices.Clone(data.Mounts), api.GuestMount{Path: m.config.Workspace, Root: true})
		data = &whole
	}
	return tell(ctx, m, func(ctx context.Context) error {
		if err := m.beginBoot(); err != nil {
			return err
		}
		ctx, cancel := within(ctx, setupTimeout)
		defer cancel()
		if err := m.control.Boot(ctx, data); err != nil {
			return err
		}
		m.held.Store(false)
		return nil
	})
}

func (m *Machine) beginBoot() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.booted:
		return errors.New("boot: called before")
	case m.executed:
		return errors.New("boot: user code has run")
	}
	m.booted = true
	return nil
}

func checkBootData(data *api.BootData) error {
	if data == nil {
		return errors.New("boot: no data")
	}
	var errs []error
	for key, value := range data.Env {
		errs = append(errs, CheckEnv(key, value))
	}
	for _, h := range data.Hosts {
		errs = append(errs, CheckHost(h.Host, h.IP))
	}
	if len(data.CA) > maxCA {
		errs = append(errs, fmt.Errorf("CA: %d bytes, at most %d can be", len(data.CA), maxCA))
	}
	_, err := data.Confinement.CapabilitySet()
	return errors.Join(append(errs, err)...)
}

// maxCA bounds api.BootData.CA in bytes: in the guest there is room for so much.
const maxCA = 1800

// hostRoots are the certificates that the host trusts, for images that bring none:
// with a CA alone to trust they could reach nobody else. Nil where they are not
// found.
func hostRoots() []byte {
	for _, path := range agent.Bundles() {
		if roots, err := hostfs.ReadLimited(path, agent.MaxRoots); err == nil {
			return roots
		}
	}
	return nil
}

// setClock sets the guest's clock when that is due.
func (m *Machine) setClock(ctx context.Context) error {
	ctx, cancel := within(ctx, setupTimeout)
	defer cancel()
	if err := m.clock.take(ctx); err != nil {
		return fmt.Errorf("guest's clock: %w", err)
	}
	defer m.clock.give()
	if time.Since(m.clockSet) < clockInterval || m.paused.Load() {
		return nil
	}
	now := time.Now()
	if err := m.control.SetClock(ctx, now); err != nil {
		return fmt.Errorf("guest's clock: %w", err)
	}
	m.clockSet = now
	return nil
}

// keepClock keeps the guest's clock near the host's while something runs. An
// idle guest is left alone; its clock is set before the next command.
func (m *Machine) keepClock() {
	tick := time.NewTicker(clockInterval)
	defer tick.Stop()
	for {
		select {
		case <-m.life.Done():
			return
		case <-tick.C:
			if m.execs.Load() > 0 {
				ctx, cancel := context.WithTimeout(m.life, clockInterval)
				m.setClock(ctx) // the next tick tries again, and a dead guest has ended life
				cancel()
			}
		}
	}
}

// Exec implements vm.Machine.
func (m *Machine) Exec(ctx context.Context, command string, opts *api.ExecOptions) (*api.ExecResult, error) {
	return run(ctx, m, func(ctx context.Context) (*api.ExecResult, error) { return m.client.Exec(ctx, command, opts) })
}

// ExecInteractive implements vm.InteractiveMachine.
func (m *Machine) ExecInteractive(ctx context.Context, command string, opts *api.ExecOptions, rows, cols uint16, stdin io.Reader, stdout io.Writer, resizeCh <-chan [2]uint16) (int, error) {
	return run(ctx, m, func(ctx context.Context) (int, error) {
		return m.client.ExecInteractive(ctx, command, opts, rows, cols, stdin, stdout, resizeCh)
	})
}

// WriteFile implements vm.Machine.
func (m *Machine) WriteFile(ctx context.Context, path string, content []byte, mode uint32) error {
	return tell(ctx, m, func(ctx context.Context) error { return m.client.WriteFile(ctx, path, content, mode) })
}

// ReadFile implements vm.Machine.
func (m *Machine) ReadFile(ctx context.Context, path string) ([]byte, error) {
	return ask(ctx, m, func(ctx context.Context) ([]byte, error) { return m.client.ReadFile(ctx, path) })
}

// ListFiles implements vm.Machine.
func (m *Machine) ListFiles(ctx context.Context, path string) ([]api.FileInfo, error) {
	return ask(ctx, m, func(ctx context.Context) ([]api.FileInfo, error) { return m.client.ListFiles(ctx, path) })
}

// Dial opens a stream to the agent, for those who ask it by a client of their own,
// to a user's port, or to a unix socket, where it waits for a program to connect, as
// long as ctx lasts. As long as one to the agent is open, user code counts as running.
// Explain says what its errors mean.
func (m *Machine) Dial(ctx context.Context, port uint32) (net.Conn, error) {
	if port != wire.PortAgent {
		socket := port >= wire.PortSocket && port < wire.PortSocket+api.MaxSockets
		if port < firstUserPort && !socket {
			return nil, reservedPort(port)
		}
		return ask(ctx, m, func(ctx context.Context) (net.Conn, error) {
			if !socket {
				var cancel context.CancelFunc
				ctx, cancel = within(ctx, setupTimeout)
				defer cancel()
			}
			return m.hv.DialVsock(ctx, port)
		})
	}
	return ask(ctx, m, func(ctx context.Context) (net.Conn, error) {
		if err := m.beginExec(ctx); err != nil {
			return nil, err
		}
		conn, err := m.hv.DialVsock(ctx, port)
		if err != nil {
			m.execs.Add(-1)
			return nil, err
		}
		return wire.UntilClosed(conn, func() { m.execs.Add(-1) }), nil
	})
}

// Pause implements vm.Pauser. User code comes to a halt first, so that what stands
// still can be copied.
func (m *Machine) Pause(ctx context.Context) error {
	return m.pause(ctx, true, func(hv Pauser) error {
		if err := m.freeze(ctx); err != nil {
			return err
		}
		if err := hv.Pause(ctx); err != nil {
			return errors.Join(err, m.thaw(ctx))
		}
		return nil
	})
}

// Resume implements vm.Pauser.
func (m *Machine) Resume(ctx context.Context) error {
	return m.pause(ctx, false, func(hv Pauser) error {
		if err := hv.Resume(ctx); err != nil {
			return err
		}
		return m.thaw(ctx)
	})
}

func (m *Machine) pause(ctx context.Context, paused bool, do func(Pauser) error) error {
	hv, ok := m.hv.(Pauser)
	if !ok {
		return fmt.Errorf("pause: %w", errors.ErrUnsupported)
	}
	if err := m.pausing.take(ctx); err != nil {
		return err
	}
	defer m.pausing.give()
	if m.life.Err() != nil || !m.running.Load() {
		return m.notRunning()
	}
	if m.paused.Load() == paused {
		return nil
	}
	if err := m.clock.take(ctx); err != nil {
		return err
	}
	defer m.clock.give()
	if err := do(hv); err != nil {
		return m.Explain(ctx, err)
	}
	m.paused.Store(paused)
	return nil
}

// freeze has user code stand still. The caller holds clock.
func (m *Machine) freeze(ctx context.Context) error {
	inner, cancel := within(ctx, freezeTimeout)
	defer cancel()
	err := m.control.Freeze(inner)
	if err != nil && !agent.IsGuestError(err) {
		// It was not waited for, and may yet happen.
		err = errors.Join(err, m.thaw(ctx))
	}
	return err
}

// thaw has user code go on, with the clock set. The caller holds clock.
func (m *Machine) thaw(ctx context.Context) error {
	ctx, cancel := within(context.WithoutCancel(ctx), setupTimeout)
	defer cancel()
	now := time.Now()
	if err := m.control.Thaw(ctx, now); err != nil {
		return fmt.Errorf("the guest does not go on: %w", err)
	}
	m.clockSet = now
	return nil
}

// hold has user code stand still, and sees to it that nothing is asked of the guest
// until release.
func (m *Machine) hold(ctx context.Context) (release func() error, err error) {
	if err := m.clock.take(ctx); err != nil {
		return nil, err
	}
	if err := m.freeze(ctx); err != nil {
		m.clock.give()
		return nil, err
	}
	return func() error {
		defer m.clock.give()
		return m.thaw(ctx)
	}, nil
}

// Snapshot implements vm.Snapshotter.
func (m *Machine) Snapshot(ctx context.Context, o vm.SnapshotOptions) (*vm.Snapshot, error) {
	hv, ok := m.hv.(Snapshotter)
	if !ok {
		return nil, fmt.Errorf("snapshot: %w", errors.ErrUnsupported)
	}
	if err := m.pausing.take(ctx); err != nil {
		return nil, err
	}
	defer m.pausing.give()
	if m.life.Err() != nil || !m.running.Load() {
		return nil, m.notRunning()
	}
	if m.held.Load() {
		return nil, errors.New("snapshot: the machine goes on from one, and Boot comes first")
	}
	snapshot, err := hv.Snapshot(ctx, o, m.paused.Load(), m.hold)
	return snapshot, m.Explain(ctx, err)
}

// Accelerator returns what runs the guest and why, "" where that is no question.
func (m *Machine) Accelerator() (name, reason string) {
	if hv, ok := m.hv.(Accelerated); ok {
		return hv.Accelerator()
	}
	return "", ""
}

// Jail returns what holds the hypervisor's process, and what could not be had.
func (m *Machine) Jail() (applied, missing []string) {
	if hv, ok := m.hv.(Confined); ok {
		return hv.Jail()
	}
	return nil, nil
}

// PID implements vm.Machine.
func (m *Machine) PID() int { return m.hv.PID() }

// RootfsPath implements vm.Machine.
func (m *Machine) RootfsPath() string { return m.rootfs }

// Wait implements vm.Machine.
func (m *Machine) Wait(ctx context.Context) error {
	m.mu.Lock()
	started := m.started
	m.mu.Unlock()
	if !started {
		return m.notRunning()
	}
	select {
	case <-m.life.Done():
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	var death *deathError
	if errors.As(context.Cause(m.life), &death) {
		return death.cause
	}
	return nil
}

// Stop implements vm.Machine.
func (m *Machine) Stop(ctx context.Context) error {
	if !m.running.Load() || m.life.Err() != nil {
		return nil
	}
	m.stopped.Store(true)
	ctx, cancel := context.WithTimeout(ctx, stopGrace)
	defer cancel()
	inner, leave := m.enter(ctx)
	defer leave()
	// One that stands still cannot write its disks. Should it not go on, it is killed.
	_ = m.Resume(inner)
	// The guest's answer to the request is its end; when it says no or nothing,
	// killing it is what is left.
	_ = m.control.PowerOff(inner)
	select {
	case <-m.life.Done():
	case <-ctx.Done():
	}
	if err := m.hv.Close(); err != nil {
		return err
	}
	<-m.life.Done()
	return nil
}

// Close implements vm.Machine.
func (m *Machine) Close(context.Context) error {
	m.mu.Lock()
	first := !m.closed
	m.closed = true
	sockets := m.sockets
	m.sockets = nil
	control := m.control
	m.mu.Unlock()

	m.stopped.Store(true)
	err := m.hv.Close()
	m.end(fmt.Errorf("%w: it was closed", vm.ErrNotRunning)) // for one that never ran
	for _, socket := range sockets {
		err = errors.Join(err, socket.Close())
	}
	if first && control != nil {
		err = errors.Join(err, control.Close())
	}
	if first && m.link != nil {
		err = errors.Join(err, m.link.Close())
	}
	m.serving.Wait()
	return err
}

// Blocks is Counter's of the hypervisor, errors.ErrUnsupported of one that is none.
func (m *Machine) Blocks(ctx context.Context) (int, error) {
	if hv, ok := m.hv.(Counter); ok {
		return hv.Blocks(ctx)
	}
	return 0, errors.ErrUnsupported
}
