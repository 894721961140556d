package qemu

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/matchlock/matchlock/internal/hostfs"
	"github.com/matchlock/matchlock/internal/jail"
	"github.com/matchlock/matchlock/internal/wire"
)

// instance is one QEMU process with what connects it to us. It is made by
// newInstance and started by hypervisor.launch.
type instance struct {
	process  *process
	confined *jail.Process   // nil: it is not
	memory   *physicalMemory // nil until somebody asks for it
	trial    bool            // guarded by hypervisor.mu
	collects sync.WaitGroup  // of what the console and the process say, and what it was given
	watches  sync.WaitGroup  // of what the monitor says
	monitor  *os.File        // our end of QMP's connection, until qmp is on it

	mu   sync.Mutex
	qmp  *qmp
	ctl  net.Conn // until it is handed out
	fs   net.Conn // likewise
	data net.Conn // until the multiplexer is on it; nil: not yet connected

	sessionMu sync.Mutex
	session   *session // made by the first dial
	fault     error    // why it is killed, guarded by hypervisor.mu; nil: no fault of the guest's
}

// session is what there is of the multiplexer on the data port.
type session struct {
	greeted chan struct{} // closed when one of these is set
	mux     *wire.HostMux
	err     error

	cancel context.CancelFunc // of the handshake
	over   sync.WaitGroup
}

// childEnds are the process's ends of an instance's connections. They are
// closed here when the process has them.
type childEnds struct {
	channels
	output *os.File // for its standard output and error
	files  []*os.File
}

func (c *childEnds) own(f *os.File) *os.File {
	c.files = append(c.files, f)
	return f
}

func (c *childEnds) close() {
	for _, f := range c.files {
		f.Close()
	}
	c.files = nil
}

// newInstance makes the connections of a process yet to be started; what it
// says goes to the console. After an error all that is left to do is to close
// the child's ends.
//
// The guest's ports are connected from the start, which is no news to a guest that
// goes on: news would be code to be translated. The data port may be left for
// later: to whom its guest still speaks there, none may listen who was not meant.
func newInstance(console *console, dir string, dataLater bool) (*instance, *childEnds, error) {
	i, child := new(instance), new(childEnds)
	ours, theirs, err := socketPair(socketStream, "console")
	if err != nil {
		return nil, child, err
	}
	child.console = child.own(theirs)
	i.collects.Go(func() { console.collect(ours) })
	output, input, err := os.Pipe()
	if err != nil {
		return nil, child, err
	}
	child.output = child.own(input)
	i.collects.Go(func() { console.collect(output) })
	if dataLater {
		child.dataLater = true
		child.data, err = listenAt(filepath.Join(dir, dataSocket))
	} else {
		i.data, child.data, err = portPair(wire.DataPortName)
	}
	if err != nil {
		return nil, child, err
	}
	child.own(child.data)
	if i.ctl, child.control, err = portPair(wire.ControlPortName); err != nil {
		return nil, child, err
	}
	child.own(child.control)
	if i.fs, child.fs, err = portPair(wire.FilesPortName); err != nil {
		return nil, child, err
	}
	child.own(child.fs)
	if i.monitor, child.qmp, err = socketPair(socketStream, "qmp"); err != nil {
		return nil, child, err
	}
	child.own(child.qmp)
	return i, child, nil
}

// portPair connects us to a port of the guest.
func portPair(name string) (ours net.Conn, theirs *os.File, err error) {
	end, theirs, err := socketPair(socketStream, name)
	if err != nil {
		return nil, nil, err
	}
	defer end.Close()
	if ours, err = net.FileConn(end); err != nil {
		theirs.Close()
		return nil, nil, err
	}
	return ours, theirs, nil
}

// hand gives the process, which is yet to be started, the state that its guest
// goes on from.
func (i *instance) hand(state io.Reader, child *childEnds) error {
	theirs, ours, err := os.Pipe()
	if err != nil {
		return err
	}
	child.state = child.own(theirs)
	i.collects.Go(func() {
		defer ours.Close()
		io.Copy(ours, state) // fails when the process has ended, or not started
	})
	return nil
}

// wake has something waiting for a guest that goes on from where it was prepared: what
// it can do before it is told more it begins with that. At the port of files nobody else
// waits yet; one more port would cost the guest half a MiB.
func (i *instance) wake() error {
	_, err := i.fs.Write([]byte{1})
	return err
}

// dataSocket is the socket of a data port that is connected later, in the
// machine's folder until it is.
const dataSocket = "data"

// greetingTime is how long QEMU may take until its monitor answers. It needs
// 30 ms where nothing else goes on.
const greetingTime = 20 * time.Second

// greet waits until the process answers.
func (i *instance) greet(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, greetingTime, fmt.Errorf("no answer within %v", greetingTime))
	defer cancel()
	conn, err := net.FileConn(i.monitor)
	if err != nil {
		return err
	}
	qmp, err := newQMP(ctx, conn.(*net.UnixConn))
	if i.confined != nil {
		i.confined.Ready()
	}
	if err != nil {
		return err
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.qmp = qmp
	return nil
}

// answered tells whether the process ever did.
func (i *instance) answered() bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.qmp != nil
}

// connectData makes the one connection that there is to the data port for the
// process's life: nobody else gets in.
func connectData(ctx context.Context, dir string) (net.Conn, error) {
	path := filepath.Join(dir, dataSocket)
	conn, err := hostfs.Dial(ctx, path)
	if err != nil {
		return nil, err
	}
	if err := os.Remove(path); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return conn, nil
}

// take hands out the connection of a port that has one.
func (i *instance) take(port uint32) (net.Conn, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	conn := &i.ctl
	if port == wire.PortFiles {
		conn = &i.fs
	}
	if *conn == nil {
		return nil, fmt.Errorf("port %d: in use, or the machine is closed", port)
	}
	taken := *conn
	*conn = nil
	return taken, nil
}

// channel returns the multiplexer on the data port; the first call makes it. How long
// the guest takes to shake hands is one thing, how long a caller waits for it another:
// one that gives up leaves it to the next. fail is called, by another goroutine, when the
// guest has broken the session, now or later.
func (i *instance) channel(ctx context.Context, dir string, epoch uint64, fail func(error)) (*wire.HostMux, error) {
	i.sessionMu.Lock()
	s := i.session
	if s == nil {
		s = &session{greeted: make(chan struct{})}
		var life context.Context
		life, s.cancel = context.WithCancel(context.Background())
		s.over.Go(func() {
			if err := i.hold(life, s, dir, epoch); err != nil {
				fail(err)
			}
		})
		i.session = s
	}
	i.sessionMu.Unlock()
	select {
	case <-s.greeted:
		return s.mux, s.err
	case <-ctx.Done():
		return nil, fmt.Errorf("data port: %w", context.Cause(ctx))
	}
}

// hold opens a session and returns why it is over; nil where that comes of the
// process's end, or was asked for.
func (i *instance) hold(ctx context.Context, s *session, dir string, epoch uint64) error {
	s.mux, s.err = i.greetData(ctx, dir, epoch)
	close(s.greeted)
	err := s.err
	if err == nil {
		<-s.mux.Done()
		err = fmt.Errorf("data port: %w", s.mux.Err())
	}
	// Of a process that ends this is seen a moment sooner.
	select {
	case <-i.process.ended:
		return nil
	case <-ctx.Done():
		return nil
	case <-time.After(endGrace):
		return err
	}
}

func (i *instance) greetData(ctx context.Context, dir string, epoch uint64) (*wire.HostMux, error) {
	i.mu.Lock()
	data := i.data
	i.data = nil
	i.mu.Unlock()
	if data == nil {
		var err error
		if data, err = connectData(ctx, dir); err != nil {
			return nil, fmt.Errorf("data port: %w", err)
		}
	}
	mux, err := wire.NewHostMux(ctx, data, epoch)
	if err != nil {
		return nil, fmt.Errorf("data port: %w", err)
	}
	return mux, nil
}

// endSession ends the session, if there is one.
func (i *instance) endSession() {
	i.sessionMu.Lock()
	defer i.sessionMu.Unlock()
	if i.session == nil {
		return
	}
	i.session.cancel()
	<-i.session.greeted
	if i.session.mux != nil {
		i.session.mux.Close()
	}
	i.session.over.Wait()
}

// tellDiskFaults logs what the guest, which sees but an I/O error, cannot know:
// the host's disk is full, for one. Once is enough.
func (i *instance) tellDiskFaults(log *slog.Logger) {
	faults, cancel := i.qmp.Subscribe("BLOCK_IO_ERROR")
	i.watches.Go(func() { defer cancel(); tellDiskFault(faults, log) })
}

func tellDiskFault(faults <-chan qmpEvent, log *slog.Logger) {
	for fault := range faults {
		var f struct {
			Node      string `json:"node-name"`
			Operation string `json:"operation"`
			Reason    string `json:"reason"`
		}
		if fault.decode(&f) != nil {
			continue
		}
		log.Warn("a disk of the guest fails on the host",
			"disk", wire.Printable(f.Node), "operation", wire.Printable(f.Operation), "error", wire.Printable(f.Reason))
		return
	}
}

// awaitEnd returns when the process is gone and what it said last has arrived.
func (i *instance) awaitEnd() {
	<-i.process.ended
	i.collects.Wait()
}

// close closes our ends. The process, if there is one, has ended.
func (i *instance) close() {
	i.endSession()
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.qmp != nil {
		i.qmp.Close()
		i.watches.Wait()
	}
	for _, conn := range []net.Conn{i.ctl, i.data, i.fs} {
		if conn != nil {
			conn.Close()
		}
	}
	i.monitor.Close()
	if i.memory != nil {
		i.memory.Close()
	}
	if i.confined != nil {
		i.confined.Close()
	}
}
