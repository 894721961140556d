package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/matchlock/matchlock/internal/machine"
	"github.com/matchlock/matchlock/internal/wire"
)

// hypervisor is a machine.Hypervisor: one QEMU process and what it is made of.
type hypervisor struct {
	config *machine.Config
	log    *slog.Logger

	// Acquired by Backend.acquire, released by Close.
	path              string // of QEMU
	accel             Accel
	tscKHz            uint64 // 0: the guest finds out itself
	hz                int
	kernel, initramfs *os.File // copies in memory, emptied when the guest runs
	dir               string   // private; sockets until they are connected, and the root's copy
	console           *console
	disks             []blockDevice
	link              *os.File // the guest's end; nil: no network

	startOnce sync.Once
	monitor   string         // path of the socket for a person, once it is there
	collects  sync.WaitGroup // of what the console and QEMU say
	watching  sync.WaitGroup // for what its monitor says

	mu      sync.Mutex
	closed  bool
	process *process
	qmp     *qmp
	ctl     net.Conn // until it is handed out
	data    net.Conn // until the multiplexer is on it

	muxMu sync.Mutex
	mux   *wire.HostMux // made by the first dial

	ended  chan struct{} // closed when the process is gone and endErr is set
	endErr error
}

var (
	_ machine.Hypervisor = (*hypervisor)(nil)
	_ machine.Narrator   = (*hypervisor)(nil)
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

func (h *hypervisor) start(ctx context.Context) error {
	var ends channels
	var child []*os.File // ends that are the child's alone
	closeChild := func() {
		for _, f := range child {
			f.Close()
		}
		child = nil
	}
	defer closeChild()
	own := func(f *os.File, err error) (*os.File, error) {
		if err == nil {
			child = append(child, f)
		}
		return f, err
	}
	var err error
	if ends.memory, err = own(guestMemory(h.config.MemoryMB)); err != nil {
		return fmt.Errorf("guest memory: %w", err)
	}
	ourQMP, theirQMP, err := socketPair(socketStream, "qmp")
	if err != nil {
		return err
	}
	defer ourQMP.Close()
	ends.qmp, _ = own(theirQMP, nil)
	ourConsole, theirConsole, err := socketPair(socketStream, "console")
	if err != nil {
		return err
	}
	ends.console, _ = own(theirConsole, nil)
	ourOutput, theirOutput, err := os.Pipe()
	if err != nil {
		ourConsole.Close()
		return err
	}
	child = append(child, theirOutput)
	h.collects.Go(func() { h.console.collect(ourConsole) })
	h.collects.Go(func() { h.console.collect(ourOutput) })

	dir, err := os.Open(h.dir)
	if err != nil {
		return err
	}
	defer dir.Close()
	if ends.data, err = own(listenIn(dir, "data")); err != nil {
		return err
	}
	if ends.control, err = own(listenIn(dir, "ctl")); err != nil {
		return err
	}
	if h.config.SocketPath != "" {
		if ends.monitor, err = own(listenAt(h.config.SocketPath)); err != nil {
			return fmt.Errorf("control socket: %w", err)
		}
		h.monitor = h.config.SocketPath
	}
	ends.link = h.link

	line := h.invocation(ends)
	cmd := exec.Command(h.path, line.args...)
	cmd.ExtraFiles = line.files
	cmd.Stdout, cmd.Stderr = theirOutput, theirOutput
	cmd.Env = []string{} // nothing of the host's environment
	cmd.Dir = "/"
	h.log.Debug("starting qemu", "args", strings.Join(line.args, " "))
	if err := h.launch(cmd); err != nil {
		return err
	}
	closeChild() // from now on these connections end with QEMU
	return h.connect(ctx, ourQMP, dir)
}

// greetingTime is how long QEMU may take until its monitor answers. It needs
// 30 ms where nothing else goes on.
const greetingTime = 20 * time.Second

// connect makes the connections to QEMU and, through it, to the guest.
func (h *hypervisor) connect(ctx context.Context, monitor, dir *os.File) error {
	ctx, cancel := context.WithTimeoutCause(ctx, greetingTime, fmt.Errorf("no answer within %v", greetingTime))
	defer cancel()
	conn, err := net.FileConn(monitor)
	if err != nil {
		return err
	}
	qmp, err := newQMP(ctx, conn.(*net.UnixConn))
	if err != nil {
		return h.notStarted(err)
	}
	ctl, err := dialIn(ctx, dir, "ctl")
	if err != nil {
		return errors.Join(err, qmp.Close())
	}
	data, err := dialIn(ctx, dir, "data")
	if err != nil {
		return errors.Join(err, qmp.Close(), ctl.Close())
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return errors.Join(net.ErrClosed, qmp.Close(), ctl.Close(), data.Close())
	}
	h.qmp, h.ctl, h.data = qmp, ctl, data
	faults, cancel := qmp.Subscribe("BLOCK_IO_ERROR")
	h.watching.Go(func() { defer cancel(); h.tellDiskFault(faults) })
	// One connection each for the machine's life: nobody else gets in.
	return errors.Join(os.Remove(filepath.Join(h.dir, "ctl")), os.Remove(filepath.Join(h.dir, "data")))
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

// launch starts the process, unless Close came first, and sees to its end.
func (h *hypervisor) launch(cmd *exec.Cmd) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return net.ErrClosed
	}
	process, err := startProcess(cmd)
	if err != nil {
		return fmt.Errorf("qemu: %w", err)
	}
	h.process = process
	go func() {
		<-process.ended
		h.collects.Wait() // what was said last may still be on its way
		h.mu.Lock()
		if !h.closed {
			h.endErr = endReason(process.err, h.qmp != nil, h.console.lastLines())
		}
		h.mu.Unlock()
		close(h.ended)
	}()
	return nil
}

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

// tellDiskFault says what the guest, which sees but an I/O error, cannot know:
// the host's disk is full, for one. Once is enough.
func (h *hypervisor) tellDiskFault(faults <-chan qmpEvent) {
	for fault := range faults {
		var f struct {
			Node      string `json:"node-name"`
			Operation string `json:"operation"`
			Reason    string `json:"reason"`
		}
		if err := json.Unmarshal(fault.Data, &f); err != nil {
			continue // its sender is not to be trusted
		}
		h.log.Warn("a disk of the guest fails on the host",
			"disk", wire.Printable(f.Node), "operation", wire.Printable(f.Operation), "error", wire.Printable(f.Reason))
		return
	}
}

// LastLines implements machine.Narrator.
func (h *hypervisor) LastLines() string { return h.console.lastLines() }

// PID implements machine.Hypervisor.
func (h *hypervisor) PID() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.process == nil {
		return 0
	}
	select {
	case <-h.ended:
		return 0
	default:
		return h.process.os.Pid
	}
}

// DialVsock implements machine.Hypervisor.
func (h *hypervisor) DialVsock(ctx context.Context, port uint32) (net.Conn, error) {
	if port == wire.PortControl {
		h.mu.Lock()
		defer h.mu.Unlock()
		if h.ctl == nil {
			return nil, errors.New("control port: in use, or the machine is closed")
		}
		conn := h.ctl
		h.ctl = nil
		return conn, nil
	}
	mux, err := h.channel(ctx)
	if err != nil {
		return nil, err
	}
	if port == wire.PortAgent {
		return mux.Open(port) // served for sure, so the request need not wait for the acceptance
	}
	return mux.Dial(ctx, port)
}

// channel returns the multiplexer on the data port; the first call makes it.
func (h *hypervisor) channel(ctx context.Context) (*wire.HostMux, error) {
	h.muxMu.Lock()
	defer h.muxMu.Unlock()
	if h.mux != nil {
		return h.mux, nil
	}
	h.mu.Lock()
	data := h.data
	h.data = nil
	h.mu.Unlock()
	if data == nil {
		return nil, fmt.Errorf("data port: %w", net.ErrClosed)
	}
	mux, err := wire.NewHostMux(ctx, data, 0)
	if err != nil {
		return nil, fmt.Errorf("data port: %w", err)
	}
	h.mux = mux
	// The guest runs from its own memory now, and never boots again. QEMU would
	// keep what it has loaded for as long as it lives.
	return mux, errors.Join(empty(h.kernel), empty(h.initramfs))
}

// Close implements machine.Hypervisor.
func (h *hypervisor) Close() error {
	h.mu.Lock()
	first := !h.closed
	h.closed = true
	process := h.process
	h.mu.Unlock()
	if process != nil {
		process.kill()
		<-h.ended
	}
	if !first {
		return nil
	}
	if process == nil {
		close(h.ended)
	}
	var errs []error
	h.muxMu.Lock() // not held up: a handshake under way ended with the process
	if h.mux != nil {
		h.mux.Close()
	}
	h.muxMu.Unlock()
	if h.qmp != nil {
		h.qmp.Close()
		h.watching.Wait()
	}
	for _, conn := range []net.Conn{h.ctl, h.data} {
		if conn != nil {
			conn.Close()
		}
	}
	for _, f := range []*os.File{h.kernel, h.initramfs, h.link} {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	for _, d := range h.disks {
		errs = append(errs, d.image.Close())
	}
	if h.console != nil {
		errs = append(errs, h.console.close())
	}
	if h.monitor != "" {
		os.Remove(h.monitor)
	}
	if h.dir != "" {
		errs = append(errs, os.RemoveAll(h.dir))
	}
	return errors.Join(errs...)
}

// listenAt makes the listening socket by which a person may look in.
func listenAt(path string) (*os.File, error) {
	listener, err := machine.ListenPrivate(path)
	if err != nil {
		return nil, err
	}
	defer listener.Close()
	listener.SetUnlinkOnClose(false)
	return listener.File()
}
