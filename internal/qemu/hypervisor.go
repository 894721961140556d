package qemu

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/matchlock/matchlock/internal/hostfs"
	"github.com/matchlock/matchlock/internal/jail"
	"github.com/matchlock/matchlock/internal/machine"
	"github.com/matchlock/matchlock/internal/saved"
	"github.com/matchlock/matchlock/internal/wire"
	"github.com/matchlock/matchlock/vm"
)

// hypervisor is a machine.Hypervisor: what a machine is made of, and the QEMU
// process that runs it at present.
type hypervisor struct {
	config *machine.Config
	log    *slog.Logger

	// Acquired by Backend.acquire, released by Close.
	path              string                   // of QEMU
	first             func() (*os.File, error) // the jail's first step; nil: there is no jail
	parts             []string                 // what QEMU opens by name
	accel             Accel
	tscKHz            uint64 // 0: the guest finds out itself
	reserved          int    // of the processors, those that user code may not use
	boot              BootFiles
	kernel, initramfs *os.File                    // copies in memory, emptied when the guest runs; nil: none was needed
	templates         string                      // their folder
	shape             shape                       // of the machine
	copyable          bool                        // templates of the shape are used and made
	origin            origin                      // of a template that is made
	warm              func(made bool, err error)  // see Options.Warm
	scratch           func(context.Context) error // makes the upper, if it is to be made
	template          *template                   // that the machine is a copy of; nil: of none
	snapshot          *vm.Snapshot                // that it goes on from; nil: from none
	needs             requirements                // of a snapshot of the machine
	dir               string                      // private; sockets until they are connected, and the root's copy
	console           *console
	disks             []blockDevice
	link              *os.File // the guest's end; nil: no network

	startOnce sync.Once
	memory    *os.File   // what the guest's memory began as; the guest's own is what it has written
	answered  bool       // the guest has said something; guarded by mu
	monitor   *os.File   // listening socket for a person; nil: none
	settling  sync.Mutex // held while one process takes over from another

	background sync.WaitGroup
	life       context.Context // of what goes on there; ends with Close
	end        context.CancelFunc

	mu      sync.Mutex
	closed  bool
	current *instance // nil before the first and between two
	jailed  jail.Report

	ended  chan struct{} // closed when no process runs the machine any more and endErr is set
	endErr error
}

var (
	_ machine.Hypervisor  = (*hypervisor)(nil)
	_ machine.Narrator    = (*hypervisor)(nil)
	_ machine.Settler     = (*hypervisor)(nil)
	_ machine.Pauser      = (*hypervisor)(nil)
	_ machine.Snapshotter = (*hypervisor)(nil)
	_ machine.Accelerated = (*hypervisor)(nil)
	_ machine.Confined    = (*hypervisor)(nil)
	_ machine.Counter     = (*hypervisor)(nil)
	_ machine.Rememberer  = (*hypervisor)(nil)
)

// openLink makes the guest's link unless the caller's end is given, and
// returns our end of it.
func (h *hypervisor) openLink() (ours *os.File, err error) {
	switch {
	case h.config.NoNetwork:
		return nil, nil
	case h.config.NetworkFD > 0:
		h.link, err = duplicateFD(h.config.NetworkFD, "link")
		return nil, err
	}
	ours, h.link, err = socketPair(socketDatagram, "link")
	return ours, err
}

// Start implements machine.Hypervisor.
func (h *hypervisor) Start(ctx context.Context) error {
	err := errors.New("qemu: started before")
	h.startOnce.Do(func() { err = h.start(ctx) })
	return err
}

func (h *hypervisor) start(ctx context.Context) (err error) {
	if h.config.SocketPath != "" {
		if h.monitor, err = listenAt(h.config.SocketPath); err != nil {
			return fmt.Errorf("control socket: %w", err)
		}
	}
	if h.snapshot != nil {
		return h.startSnapshot(ctx)
	}
	if h.template != nil {
		err := h.startCopy(ctx)
		if err == nil || ctx.Err() != nil || h.isClosed() {
			return err
		}
		h.log.Warn("a template cannot be used; the guest boots instead", "error", err)
		if err := h.forgetTemplate(ctx); err != nil {
			return err
		}
	}
	return h.startCold(ctx)
}

// startCold boots the guest.
func (h *hypervisor) startCold(ctx context.Context) (err error) {
	if h.memory, err = guestMemory(h.config.MemoryMB); err != nil {
		return fmt.Errorf("guest memory: %w", err)
	}
	if h.kernel, err = memoryCopy("kernel", h.boot.Kernel); err != nil {
		return fmt.Errorf("kernel: %w", err)
	}
	if h.initramfs, err = memoryCopy("initramfs", h.boot.Initramfs); err != nil {
		return fmt.Errorf("initramfs: %w", err)
	}
	return h.bootGuest(ctx)
}

func (h *hypervisor) isClosed() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.closed
}

// startInstance starts a process and makes it the one that runs the machine,
// unless Close came first. Its guest boots, or goes on from state unless that is
// nil. It returns when the process answers. The end of one that is on trial is not
// the machine's.
func (h *hypervisor) startInstance(ctx context.Context, state io.Reader, trial bool) (*instance, error) {
	i, child, err := newInstance(h.console, h.dir, h.snapshot != nil)
	defer child.close()
	if err == nil && state != nil {
		err = i.hand(state, child)
		if err == nil && h.snapshot == nil {
			err = i.wake()
		}
	}
	if err != nil {
		return nil, err
	}
	i.trial = trial
	child.memory, child.monitor, child.link = h.memory, h.monitor, h.link
	line := h.invocation(child.channels)
	h.log.Debug("starting qemu", "args", strings.Join(line.args, " "))
	if err := h.launch(i, line, child.output); err != nil {
		i.close()
		return nil, err
	}
	child.close() // from now on these connections end with QEMU
	if err := i.greet(ctx); err != nil {
		if trial {
			return nil, errors.Join(err, h.drop(i))
		}
		return nil, h.notStarted(err)
	}
	if i.confined != nil {
		h.mu.Lock()
		h.jailed = i.confined.Report
		h.mu.Unlock()
		h.log.Info("qemu is confined", "by", i.confined.Applied, "missing", i.confined.Missing)
	}
	i.tellDiskFaults(h.log)
	return i, nil
}

// drop ends an instance whose end is not the machine's.
func (h *hypervisor) drop(i *instance) error {
	h.mu.Lock()
	if h.closed {
		h.mu.Unlock()
		return net.ErrClosed // Close ends it
	}
	if h.current == i {
		h.current = nil
	}
	h.mu.Unlock()
	i.process.kill()
	i.awaitEnd()
	i.close()
	os.Remove(filepath.Join(h.dir, dataSocket)) // if it is there
	return nil
}

// launch starts the instance's process and sees to its end.
func (h *hypervisor) launch(i *instance, line *invocation, output *os.File) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return net.ErrClosed
	}
	process, err := startProcess(func() (*exec.Cmd, error) {
		if h.first == nil {
			return startFree(h.path, line, output)
		}
		first, err := h.first()
		if err != nil {
			return nil, err
		}
		confined, err := jail.Start(h.confinement(first, line, output))
		if err != nil {
			return nil, err
		}
		i.confined = confined
		return confined.Cmd, nil
	})
	if err != nil {
		return fmt.Errorf("qemu: %w", err)
	}
	i.process = process
	h.current = i
	go func() {
		i.awaitEnd()
		h.mu.Lock()
		defer h.mu.Unlock()
		if h.current != i || i.trial && !h.closed {
			return // another takes over
		}
		switch {
		case h.closed:
		case i.fault != nil:
			h.endErr = fmt.Errorf("the guest was killed: %w", i.fault)
		default:
			h.endErr = endReason(process.err, i.answered(), h.console.lastLines())
		}
		close(h.ended)
	}()
	return nil
}

// startFree starts QEMU without a jail.
func startFree(path string, line *invocation, output *os.File) (*exec.Cmd, error) {
	cmd := exec.Command(path, line.args...)
	cmd.ExtraFiles = line.files
	cmd.Stdout, cmd.Stderr = output, output
	cmd.Env = []string{} // nothing of the host's environment
	cmd.Dir = "/"
	setParentDeathSignal(cmd)
	return cmd, cmd.Start()
}

// notStarted puts what QEMU said last in the place of an error that came of its
// end.
func (h *hypervisor) notStarted(err error) error {
	if errors.Is(err, errQMPEnded) {
		select {
		case <-h.ended: // a moment after its connections
			if h.endErr != nil {
				return h.endErr
			}
		case <-time.After(endGrace):
		}
	}
	return fmt.Errorf("qemu did not start: %w", err)
}

// endGrace is how much later than its connections a process may end.
const endGrace = time.Second

// endReason tells of a guest that ended unasked. QEMU ends with status 0 when
// its guest resets, and a kernel that panics does so too: the console knows
// more than QEMU.
func endReason(exit error, ran bool, lastLines string) error {
	reason := "the guest's kernel ended"
	switch {
	case exit != nil:
		reason = "qemu ended: " + exit.Error()
	case !ran:
		reason = "qemu ended at once"
	}
	if lastLines != "" {
		reason += "; it said last: " + lastLines
	}
	return errors.New(reason)
}

// Wait implements machine.Hypervisor.
func (h *hypervisor) Wait(ctx context.Context) error {
	select {
	case <-h.ended:
		return h.endErr
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// LastLines implements machine.Narrator.
func (h *hypervisor) LastLines() string { return h.console.lastLines() }

// PID implements machine.Hypervisor.
func (h *hypervisor) PID() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.current == nil || h.current.process.over() {
		return 0
	}
	return h.current.process.os.Pid
}

// Pause implements machine.Pauser.
func (h *hypervisor) Pause(ctx context.Context) error { return h.execute(ctx, "stop") }

// Resume implements machine.Pauser.
func (h *hypervisor) Resume(ctx context.Context) error { return h.execute(ctx, "cont") }

// execute has the process that runs the machine do something.
func (h *hypervisor) execute(ctx context.Context, command string) error {
	h.mu.Lock()
	i := h.current
	h.mu.Unlock()
	if i == nil {
		return net.ErrClosed
	}
	return i.qmp.Execute(ctx, command, nil, nil, nil)
}

// Accelerator implements machine.Accelerated.
func (h *hypervisor) Accelerator() (name, reason string) { return h.accel.Name, h.accel.Reason }

// Jail implements machine.Confined.
func (h *hypervisor) Jail() (applied, missing []string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.jailed.Applied, h.jailed.Missing
}

// DialVsock implements machine.Hypervisor.
func (h *hypervisor) DialVsock(ctx context.Context, port uint32) (net.Conn, error) {
	h.mu.Lock()
	i := h.current
	h.mu.Unlock()
	if i == nil {
		return nil, net.ErrClosed
	}
	if port == wire.PortControl || port == wire.PortFiles {
		conn, err := i.take(port)
		if err != nil || port == wire.PortFiles {
			return conn, err
		}
		return &controlConn{Conn: conn, answered: sync.OnceFunc(h.hasAnswered)}, nil
	}
	var epoch uint64 // of a guest's first session
	if h.snapshot != nil {
		epoch = h.config.Epoch
	}
	mux, err := i.channel(ctx, h.dir, epoch, func(err error) { h.giveUp(i, err) })
	if err != nil {
		return nil, err
	}
	if port == wire.PortAgent {
		return mux.Open(port) // served for sure, so the request need not wait for the acceptance
	}
	return mux.Dial(ctx, port)
}

// giveUp kills a guest that has broken the session on its data port: nothing more can
// be asked of it, and what it does then nobody can know.
func (h *hypervisor) giveUp(i *instance, fault error) {
	h.mu.Lock()
	i.fault = fault
	h.mu.Unlock()
	h.log.Error("the guest is killed", "error", fault)
	i.process.kill()
}

// controlConn tells when the guest has said something.
type controlConn struct {
	net.Conn
	answered func()
}

func (c *controlConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n > 0 {
		c.answered()
	}
	return n, err
}

func (h *hypervisor) hasAnswered() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.answered = true
}

// Close implements machine.Hypervisor.
func (h *hypervisor) Close() error {
	h.mu.Lock()
	first := !h.closed
	h.closed = true
	i := h.current
	h.mu.Unlock()
	if i != nil {
		i.process.kill()
		<-h.ended
	}
	if !first {
		return nil
	}
	h.end()
	h.background.Wait()
	h.settling.Lock() // no process is started any more
	defer h.settling.Unlock()
	if i == nil {
		close(h.ended)
	} else {
		i.close()
	}
	var errs []error
	if h.first != nil {
		if first, err := h.first(); err == nil { // else launch has told
			errs = append(errs, first.Close())
		}
	}
	for _, f := range []*os.File{h.kernel, h.initramfs, h.link, h.memory, h.monitor} {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	for _, d := range h.disks {
		errs = append(errs, closeLayers(d.layers))
	}
	if h.console != nil {
		errs = append(errs, h.console.close())
	}
	if h.monitor != nil {
		os.Remove(h.config.SocketPath)
	}
	if h.dir != "" {
		errs = append(errs, os.RemoveAll(h.dir))
	}
	if h.snapshot != nil {
		errs = append(errs, h.snapshot.Close())
	}
	if h.template != nil {
		h.template.Close()
		if !h.answered { // who knows why; the next start makes another
			errs = append(errs, saved.Remove(h.template.dir))
		}
	}
	return errors.Join(errs...)
}

// listenAt makes a listening socket, as a file to be handed on.
func listenAt(path string) (*os.File, error) {
	listener, err := hostfs.Listen(path)
	if err != nil {
		return nil, err
	}
	defer listener.UnixListener.Close() // the socket stays
	return listener.File()
}
