//go:build linux

package guest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/matchlock/matchlock/api"
	"github.com/matchlock/matchlock/internal/agent"
	"github.com/matchlock/matchlock/internal/wire"
)

// Main is /init. It returns only an error, and with it the machine ends: the
// kernel panics when PID 1 does.
func Main() error {
	if os.Getpid() != 1 {
		if os.Args[0] == limitsName {
			return runLimited(os.Args[1:])
		}
		if len(os.Args) == 2 && os.Args[1] == warmName {
			os.Exit(0)
		}
		return errors.New("this is the init of a matchlock guest; it runs as PID 1 only")
	}
	// Unhandled, these would end the runtime and with it the machine. They are
	// caught and dropped, not ignored: commands would inherit that.
	signal.Notify(make(chan os.Signal, 1), unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGTERM, unix.SIGPIPE, unix.SIGUSR1, unix.SIGUSR2)
	if err := ignoreChildSignals(); err != nil {
		return err
	}
	unix.Umask(0o022)
	if err := syscall.Setrlimit(unix.RLIMIT_NOFILE, &syscall.Rlimit{Cur: 1024, Max: maxOpenFiles}); err != nil {
		return err
	}
	if err := mountKernelFileSystems(); err != nil {
		return err
	}
	// The kernel has booted, and its warnings, which the host looks at, were those of
	// its boot. From now on user code could cause them, and the console is slow. A
	// kernel that says nothing at all has no such file.
	_ = os.WriteFile("/proc/sys/kernel/printk", []byte("4"), 0)
	if err := goFirst(); err != nil {
		return err
	}
	devices, err := os.OpenRoot("/dev")
	if err != nil {
		return err
	}
	cmdline, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return err
	}
	params, err := wire.ParseParams(wire.Params{}, string(cmdline))
	if err != nil {
		return err
	}
	if err := loadModules("/modules"); err != nil {
		return err
	}
	device, err := waitForPort(wire.ControlPortName)
	if err != nil {
		return err
	}
	control, err := openPort(devices, device)
	if err != nil {
		return err
	}
	return agent.ServeControl(control, &guest{devices: devices, params: params})
}

// priority is that of this program, as nice(2) has it: the host is answered however
// busy user code is.
const priority = -10

// goFirst gives all threads of this program their priority; those to come inherit
// it.
func goFirst() error {
	ids, err := threads()
	if err != nil {
		return err
	}
	for _, id := range ids {
		if err := unix.Setpriority(unix.PRIO_PROCESS, id, priority); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("priority: %w", err)
		}
	}
	return nil
}

// threads are those of this program, the oldest first.
func threads() (ids []int, err error) {
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return nil, err
	}
	for _, task := range tasks {
		id, err := strconv.Atoi(task.Name())
		if err != nil {
			return nil, fmt.Errorf("thread: %w", err)
		}
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids, nil
}

// guest is the one guest there is. The control port calls its methods one at a
// time.
type guest struct {
	devices  *os.Root // the kernel's own /dev, out of user code's reach
	params   wire.Params
	starter  *starter
	server   *agent.Server
	identity identity
	random   *os.File // the kernel's generator, for writing
	files    files
	trust    *trust // nil: nobody's certificate is to come

	stillness *stillness
	rehearsal *rehearsal // until the set-up

	isPrepared, isSetUp, isBooted, isFrozen, isCopy bool

	mu       sync.Mutex
	mounts   []string      // where something was mounted that the sandbox adds
	data     *port         // while open
	epoch    uint64        // of the session on it
	reopened chan struct{} // closed when the port is open again; nil: nobody waits for it
}

// loadModules loads the modules of a folder in the order of their names, which
// the host has made the order of their dependence, and deletes them: they are
// in memory twice otherwise.
func loadModules(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil // all is built in
	}
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if entry.IsDir() {
			continue // for later
		}
		path := filepath.Join(dir, entry.Name())
		if err := loadModule(path); err != nil {
			return fmt.Errorf("module %s: %w", entry.Name(), err)
		}
		os.Remove(path)
	}
	return nil
}

func loadModule(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil && !errors.Is(err, unix.EEXIST) {
		return err
	}
	return nil
}

// Prepared implements agent.ControlHandler.
func (g *guest) Prepared() bool { return g.isPrepared }

// IsSetUp implements agent.ControlHandler.
func (g *guest) IsSetUp() bool { return g.isSetUp }

// Prepare implements agent.ControlHandler: all that is the same in every sandbox
// of one image and shape. It makes nothing that must differ between two of them,
// and no byte of the image is executed: the machine may become a template.
func (g *guest) Prepare(p *agent.Preparation) error {
	if g.isPrepared {
		return errors.New("prepared before")
	}
	g.isPrepared = true
	params, err := wire.ParseParams(g.params, p.Params)
	if err != nil {
		return err
	}
	g.params = params
	if err := setClock(p.Time); err != nil {
		return err
	}
	if err := prepareNetwork(params); err != nil {
		return err
	}
	g.starter = newStarter()
	if g.starter.cgroup, err = makeCgroup(params.CPUs); err != nil {
		return err
	}
	if g.stillness, err = newStillness(g.starter); err != nil {
		return err
	}
	if err := g.files.prepare(g.devices); err != nil {
		return err
	}
	if err := assembleRoot(params.Root); err != nil {
		return err
	}
	layers, err := openLayers(params.Root)
	if err != nil {
		return err
	}
	if err := enterRoot(params); err != nil {
		return err
	}
	if g.identity, err = makeIdentity(); err != nil {
		return err
	}
	if params.Trust {
		if g.trust, err = prepareTrust(p.Roots); err != nil {
			return err
		}
	}
	if g.random, err = g.devices.OpenFile("urandom", os.O_WRONLY, 0); err != nil {
		return err
	}
	g.server = agent.NewServer(g.starter, nil)
	if layers != nil {
		g.server.ServeLayer(&agent.Layer{Upper: layers.upper, Below: layers.below, Hold: g.hold, Ours: g.ours})
	}
	if err := g.confine(api.Confinement{}); err != nil {
		return err
	}
	if err := g.warmUp(); err != nil {
		return err
	}
	if err := watchSeldom(); err != nil {
		return err
	}
	// A copy finds the port open, and nothing that was said on it.
	device, err := waitForPort(wire.DataPortName)
	if err != nil {
		return err
	}
	opened := make(chan struct{})
	go g.serveData(device, sync.OnceFunc(func() { close(opened) }))
	<-opened
	g.server.RememberRoot()
	if g.rehearsal, err = g.starter.prepareRehearsal(g.files.port); err != nil {
		return err
	}
	return g.server.PrepareCommand()
}

// Setup implements agent.ControlHandler: clock, entropy, network, name and disks,
// all of what the machine's configuration implies beyond its shape. It comes
// before any user code, and fails closed: a copy of a machine that keeps what
// the other had never runs any.
func (g *guest) Setup(s *agent.Setup) error {
	if g.isSetUp || !g.isPrepared {
		return errors.New("set up before, or not prepared")
	}
	g.isSetUp = true
	defer g.rehearsal.end()
	params := g.params
	if s.Params != "" {
		var err error
		if params, err = wire.ParseParams(params, s.Params); err != nil {
			return err
		}
	}
	params.Hostname = s.Hostname
	if err := setClock(s.Time); err != nil {
		return err
	}
	if err := addEntropy(g.random, s.Entropy); err != nil {
		return err
	}
	if err := changeNetwork(g.params, params); err != nil {
		return err
	}
	g.params = params
	if err := g.identity.write(params, s); err != nil {
		return err
	}
	if err := mountDisks(params.Disks, g.devices); err != nil {
		return err
	}
	g.server.AddEnv(s.Env)
	return nil
}

// Renew implements agent.ControlHandler. The machine is a copy of one in which
// user code ran, which stands still until all of this is done.
func (g *guest) Renew(s *agent.Setup) error {
	if !g.isSetUp {
		return errors.New("not set up, so there is nothing to be renewed")
	}
	if !g.isFrozen {
		return errors.New("user code runs")
	}
	g.isBooted, g.isCopy = false, true
	if err := setClock(s.Time); err != nil {
		return err
	}
	if err := addEntropy(g.random, s.Entropy); err != nil {
		return err
	}
	return g.identity.renew(&g.params, s)
}

// Freeze implements agent.ControlHandler. What stands still is processes that run a
// program: in a copy none must hold the data port, which is to be opened anew. What
// they have written to disks that others can have is there then; most of it is
// written before, while they run.
func (g *guest) Freeze() error {
	if g.isFrozen {
		return errors.New("frozen before")
	}
	syncDisks(g.params.Disks)
	if err := g.stillness.begin(); err != nil {
		return err
	}
	// A copy's host answers nothing that was asked of another.
	if err := g.files.settle(); err != nil {
		return errors.Join(err, g.stillness.end())
	}
	syncDisks(g.params.Disks)
	g.isFrozen = true
	return nil
}

// Thaw implements agent.ControlHandler.
func (g *guest) Thaw(t time.Time) error {
	return errors.Join(setClock(t), g.thaw())
}

func (g *guest) thaw() error {
	if !g.isFrozen {
		return errors.New("not frozen")
	}
	if err := g.stillness.end(); err != nil {
		return err
	}
	g.isFrozen = false
	return nil
}

// Boot implements agent.ControlHandler: what the sandbox adds, before any user
// code. In a copy, whose user code has its limits and mounts, that goes on then.
func (g *guest) Boot(b *api.BootData) error {
	if !g.isSetUp || g.isBooted {
		return errors.New("not set up, or booted before")
	}
	g.isBooted = true
	if err := g.identity.addHosts(b.Hosts); err != nil {
		return err
	}
	if err := g.trustCA(b); err != nil {
		return err
	}
	if g.isCopy {
		if err := g.server.Listen(b.Sockets); err != nil {
			return err
		}
		g.server.AddEnv(b.Env)
		return g.thaw()
	}
	if err := sizeShm(b.ShmSize); err != nil {
		return err
	}
	g.noteMounts(b)
	if err := g.mountAdded(b); err != nil {
		return err
	}
	if err := g.server.Listen(b.Sockets); err != nil {
		return err
	}
	if b.ReadOnlyRoot || g.params.Privileged { // which can make it so itself
		if err := g.trust.release(); err != nil {
			return err
		}
	}
	if b.ReadOnlyRoot {
		if err := unix.Mount("", "/", "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""); err != nil {
			return fmt.Errorf("read-only root: %w", err)
		}
	}
	limits, err := parseLimits(b.Ulimits)
	if err != nil {
		return err
	}
	if err := allow(limits); err != nil {
		return err
	}
	g.starter.limits = limits
	g.server.AddEnv(b.Env)
	if c := b.Confinement; len(c.CapAdd)+len(c.CapDrop) == 0 && !c.AllowSetuid {
		return nil // as Setup has left it
	}
	return g.confine(b.Confinement)
}

// trustCA has user code trust who terminates its TLS. A machine that is made for
// that never runs any without.
func (g *guest) trustCA(b *api.BootData) error {
	switch {
	case b.CA != nil && g.trust == nil:
		return errors.New("CA: the machine is made for none")
	case b.CA == nil && g.trust != nil && !g.isCopy: // a copy has one
		return errors.New("CA: none is given, and the machine is made for one")
	}
	if b.CA == nil {
		return nil
	}
	if err := g.trust.install(b.CA, g.isCopy); err != nil {
		return err
	}
	g.server.AddEnv(g.trust.environment(b.Env))
	return nil
}

// confine sets what user code is held to from now on.
func (g *guest) confine(c api.Confinement) error {
	if g.params.Privileged {
		return g.starter.restrain(nil)
	}
	set, err := c.CapabilitySet()
	if err != nil {
		return err
	}
	return g.starter.restrain(&restraint{capabilities: set, allowSetuid: c.AllowSetuid})
}

// SetClock implements agent.ControlHandler.
func (g *guest) SetClock(t time.Time) error { return setClock(t) }

// Reset implements agent.ControlHandler: whoever is at the other end of the
// data port now, nothing of what was said before reaches them. Commands go on.
func (g *guest) Reset(epoch uint64) error {
	g.server.Keep()
	reopened := make(chan struct{})
	g.mu.Lock()
	g.epoch, g.reopened = epoch, reopened
	err := g.data.Close()
	g.mu.Unlock()
	if err != nil && !errors.Is(err, os.ErrClosed) { // it may be between two sessions
		return err
	}
	<-reopened
	return nil
}

// PowerOff implements agent.ControlHandler. Nothing is left to answer with.
func (g *guest) PowerOff() error {
	g.trust.release() // if it cannot be done, the next boot has a journal to replay
	unix.Sync()
	unmountDisks(g.params.Disks)
	unix.Mount("", "/", "", unix.MS_REMOUNT|unix.MS_RDONLY, "")
	unix.Sync()
	// The machine is told to end instead of rebooting, and a reboot needs no
	// power management.
	return unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
}

func setClock(t time.Time) error {
	ts := unix.NsecToTimespec(t.UnixNano())
	if err := unix.ClockSettime(unix.CLOCK_REALTIME, &ts); err != nil {
		return fmt.Errorf("clock: %w", err)
	}
	return nil
}

// addEntropy mixes the host's entropy into the kernel's generator and makes it
// take effect at once (random(4), RNDADDENTROPY and RNDRESEEDCRNG).
func addEntropy(random *os.File, seed []byte) error {
	if len(seed) == 0 {
		return errors.New("entropy: none given")
	}
	pool := make([]byte, 8, 8+len(seed))
	binary.NativeEndian.PutUint32(pool[0:], uint32(8*len(seed))) // struct rand_pool_info: bits, bytes
	binary.NativeEndian.PutUint32(pool[4:], uint32(len(seed)))
	pool = append(pool, seed...)
	for _, request := range []uintptr{unix.RNDADDENTROPY, unix.RNDRESEEDCRNG} {
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, random.Fd(), request, uintptr(unsafe.Pointer(&pool[0]))); errno != 0 {
			return fmt.Errorf("entropy: %w", errno)
		}
	}
	return nil
}

// wholeCPUs is the number of processors that user code with a share of cpus may
// run on; 0 is all there are.
func wholeCPUs(cpus float64) int { return int(math.Ceil(cpus)) }

// firstCPUs names the first n processors as the kernel does.
func firstCPUs(n int) string {
	if n == 1 {
		return "0"
	}
	return "0-" + strconv.Itoa(n-1)
}

// makeCgroup makes the control group of user code, with a share of the
// processors where that is asked for. It stays out of user code's reach.
//
// Half of all processes and threads are kept from it: PID 1 ends, and with it
// the machine, when it needs a thread and there is none.
func makeCgroup(cpus float64) (*os.File, error) {
	const dir, period = "/cgroup", 100_000 // µs
	if err := (mount{"cgroup2", dir, "cgroup2", 0, ""}).do(); err != nil {
		return nil, err
	}
	if err := os.Mkdir(dir+"/user", 0o755); err != nil {
		return nil, err
	}
	threads, err := os.ReadFile("/proc/sys/kernel/threads-max")
	if err != nil {
		return nil, err
	}
	most, err := strconv.Atoi(strings.TrimSpace(string(threads)))
	if err != nil {
		return nil, fmt.Errorf("threads-max: %w", err)
	}
	limits := []struct{ controller, file, value string }{{"pids", "pids.max", strconv.Itoa(most / 2)}}
	whole := wholeCPUs(cpus)
	if cpus != float64(whole) {
		limits = append(limits, struct{ controller, file, value string }{"cpu", "cpu.max", fmt.Sprintf("%d %d", int(cpus*period), period)})
	}
	if 0 < whole && whole < runtime.NumCPU() {
		limits = append(limits, struct{ controller, file, value string }{"cpuset", "cpuset.cpus", firstCPUs(whole)})
	}
	for _, l := range limits {
		if err := os.WriteFile(dir+"/cgroup.subtree_control", []byte("+"+l.controller), 0); err != nil {
			return nil, fmt.Errorf("controller %s: %w", l.controller, err)
		}
		if err := os.WriteFile(dir+"/user/"+l.file, []byte(l.value), 0); err != nil {
			return nil, err
		}
	}
	return os.Open(dir + "/user")
}

// serveData serves the agent on the data port, and again on a new session each
// time the host has reset it. opened is told of each time that the port is open.
func (g *guest) serveData(device string, opened func()) {
	for {
		g.mu.Lock() // Reset holds it until it has closed the port, which is open once only
		data, err := openPort(g.devices, device)
		if err != nil {
			fatal(err)
		}
		g.data = data
		epoch := g.epoch
		if g.reopened != nil {
			close(g.reopened)
			g.reopened = nil
		}
		g.mu.Unlock()
		mux := wire.AwaitHost(data, epoch)
		opened()
		g.server.Serve(mux)
		mux.Close()
	}
}

// fatal ends the machine: without its agent it is of no use to anybody.
func fatal(err error) {
	fmt.Fprintln(os.Stderr, "matchlock-guest:", err)
	os.Exit(1)
}
