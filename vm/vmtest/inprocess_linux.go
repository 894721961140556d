package vmtest

import (
	"context"
	"errors"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/matchlock/matchlock/api"
	"github.com/matchlock/matchlock/internal/agent"
	"github.com/matchlock/matchlock/internal/machine"
	"github.com/matchlock/matchlock/internal/wire"
	"github.com/matchlock/matchlock/vm"
)

// InProcess is a backend without a VM: its guest is the agent in this process,
// over pipes, and commands run on the host. All that is between a machine's
// methods and its guest's processes is real; the guest itself is not.
type InProcess struct{}

// Name implements vm.Backend.
func (InProcess) Name() string { return "in process" }

// Create implements vm.Backend.
func (InProcess) Create(_ context.Context, config *vm.VMConfig) (vm.Machine, error) {
	c, err := machine.Resolve(config)
	if err != nil {
		return nil, err
	}
	h := &inProcess{server: agent.NewServer(agent.HostStarter{}, nil), ended: make(chan struct{})}
	var link *os.File // nobody is at its guest's end
	if !config.NoNetwork && config.NetworkFD <= 0 {
		pair, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_DGRAM|syscall.SOCK_CLOEXEC|syscall.SOCK_NONBLOCK, 0)
		if err != nil {
			return nil, os.NewSyscallError("socketpair", err)
		}
		link, h.link = os.NewFile(uintptr(pair[0]), "link"), os.NewFile(uintptr(pair[1]), "link of the guest")
	}
	return machine.New(c, h, link, config.OverlayUpperPath), nil
}

// inProcess is a machine.Hypervisor and the guest's agent.ControlHandler.
type inProcess struct {
	server  *agent.Server
	serving sync.WaitGroup
	link    *os.File // nil: there is none

	mu     sync.Mutex
	mux    *wire.HostMux
	closed bool
	ended  chan struct{}
}

func (h *inProcess) PID() int {
	select {
	case <-h.ended:
		return 0
	default:
		return os.Getpid()
	}
}

func (h *inProcess) Start(ctx context.Context) error {
	ours, theirs := net.Pipe()
	h.serving.Go(func() {
		if mux, err := wire.NewGuestMux(context.Background(), theirs, 0); err == nil {
			h.server.Serve(mux)
			mux.Close()
		}
	})
	mux, err := wire.NewHostMux(ctx, ours, 0)
	if err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.mux = mux
	return nil
}

func (h *inProcess) Wait(ctx context.Context) error {
	select {
	case <-h.ended:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (h *inProcess) Close() error {
	h.end()
	h.serving.Wait()
	if h.link != nil {
		h.link.Close()
	}
	return h.server.Close()
}

// end is the guest's end, whoever wants it.
func (h *inProcess) end() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return
	}
	h.closed = true
	if h.mux != nil {
		h.mux.Close()
	}
	close(h.ended)
}

func (h *inProcess) DialVsock(ctx context.Context, port uint32) (net.Conn, error) {
	if port != wire.PortControl {
		return h.mux.Dial(ctx, port)
	}
	ours, theirs := net.Pipe()
	go agent.ServeControl(theirs, h) // ends with the machine's end of the pipe
	return ours, nil
}

func (h *inProcess) Prepared() bool                     { return false }
func (h *inProcess) IsSetUp() bool                      { return false }
func (h *inProcess) Prepare(p *agent.Preparation) error { return nil } // the host is as it is
func (h *inProcess) Setup(s *agent.Setup) error         { h.server.AddEnv(s.Env); return nil }
func (h *inProcess) Boot(data *api.BootData) error {
	h.server.AddEnv(data.Env)
	return h.server.Listen(data.Sockets)
}
func (h *inProcess) SetClock(time.Time) error { return nil } // the host's is right
func (h *inProcess) Reset(uint64) error       { return nil }
func (h *inProcess) Renew(*agent.Setup) error { return errors.ErrUnsupported }
func (h *inProcess) Freeze() error            { return errors.ErrUnsupported }
func (h *inProcess) Thaw(time.Time) error     { return errors.ErrUnsupported }
func (h *inProcess) PowerOff() error          { go h.end(); return nil }
