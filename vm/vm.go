// Package vm is the contract between a sandbox and whatever runs its virtual
// machine: a [Backend] makes a [Machine] out of a [VMConfig]. Backends live in
// internal/qemu and its siblings; what is said here holds for all of them and
// is tested by vm/vmtest, whose conformance suite takes any Backend.
//
//	m, err := backend.Create(ctx, &vm.VMConfig{ID: "box", RootfsPath: "rootfs.ext4"})
//	if err != nil {
//		return err
//	}
//	defer m.Close(ctx)
//	if err := m.Start(ctx); err != nil {
//		return err
//	}
//	result, err := m.Exec(ctx, "uname -a", nil)
//
// A machine is made, started once, and ends by Stop, by Close, or with the process that
// made it. What not every backend can do is an interface of its own, asked for by a type
// assertion: [InteractiveMachine], [VsockDialer], [Booter], [Pauser], [Snapshotter].
//
// The package starts nothing itself, and it knows neither images nor policy: programs
// that want a sandbox use package sandbox.
package vm

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"slices"

	"github.com/matchlock/matchlock/api"
)

// ErrNotRunning is wrapped by every error that a Machine returns because its
// guest is not there: not started yet, stopped, or dead. The wrapping error
// says why.
var ErrNotRunning = errors.New("machine is not running")

// ErrTooLarge is wrapped by the error of a call that would have to hold more
// than its documented limit in memory. The streaming calls of package sandbox
// have no such limit.
var ErrTooLarge = errors.New("too large to hold in memory")

// Backend makes machines on one kind of hypervisor. Its methods may be called
// by several goroutines at once.
type Backend interface {
	// Create validates config, reporting every fault at once, and returns a
	// machine that is not yet started. It touches nothing outside the machine;
	// what it acquired, Machine.Close releases. ctx bounds the call alone.
	Create(ctx context.Context, config *VMConfig) (Machine, error)

	// Name is the hypervisor's, in lower case: "qemu".
	Name() string
}

// Machine is one guest, from its creation to its end. Its methods may be called
// by several goroutines at once. After the guest has died every method returns
// at once with an error that wraps ErrNotRunning and says why.
type Machine interface {
	// Start boots the guest and returns when its agent answers. ctx bounds the
	// start only, not the machine's life. A second Start is an error.
	Start(ctx context.Context) error

	// Stop syncs the guest's file systems, powers it off and waits until it is
	// gone; after 10 s, or when ctx ends, it is killed. Stopping what is stopped
	// is no error.
	Stop(ctx context.Context) error

	// Wait returns when the guest is gone: nil after a clean end or a Stop, else
	// why, with the console's last lines.
	Wait(ctx context.Context) error

	// Exec runs command by /bin/sh -c in the guest, or, with opts.Args set and
	// command empty, that argument vector without a shell. Nil opts are the
	// defaults of api.ExecOptions.
	//
	// It returns when the process has exited and what it wrote has arrived; what
	// children of it write later is discarded. A non-zero exit status is a
	// result, not an error: an error means that it is not known how the command
	// ended. When ctx ends, the command's process group is sent SIGTERM, 2 s
	// later SIGKILL, and ctx's error is returned.
	Exec(ctx context.Context, command string, opts *api.ExecOptions) (*api.ExecResult, error)

	// WriteFile replaces the file at an absolute path of the guest atomically,
	// as the guest's root. Missing parents are made 0755; mode 0 means 0644.
	WriteFile(ctx context.Context, path string, content []byte, mode uint32) error

	// ReadFile returns a regular file of at most MaxReadFile bytes; a larger one
	// is an error that wraps ErrTooLarge.
	ReadFile(ctx context.Context, path string) ([]byte, error)

	// ListFiles returns the entries of a folder in name order, without "." and "..".
	ListFiles(ctx context.Context, path string) ([]api.FileInfo, error)

	// NetworkFD returns the host end of the guest's link: a unix datagram socket
	// on which one read or write is one Ethernet frame. Each call makes a new
	// duplicate (close-on-exec), the caller's to close. It is an error when
	// VMConfig.NetworkFD gave the guest's end away or when there is no network.
	NetworkFD() (int, error)

	// VsockFD returns a new stream socket, the caller's to close, that speaks the
	// hybrid vsock protocol for one connection: the caller writes
	// "CONNECT <port>\n", reads "OK <n>\n", and then has the stream.
	VsockFD() (int, error)

	// PID is the hypervisor's process id, 0 when none runs.
	PID() int

	// Close kills the guest and releases all that the machine holds. It may be
	// called at any time, any number of times.
	Close(ctx context.Context) error

	// RootfsPath is the image that the guest writes to: the copy of
	// VMConfig.RootfsPath, PrebuiltRootfs, or the overlay's upper.
	RootfsPath() string
}

// ErrPaused is wrapped by the errors of calls that need a guest which stands
// still at present.
var ErrPaused = errors.New("machine is paused")

// MaxReadFile is the largest file, in bytes, that Machine.ReadFile returns.
const MaxReadFile = 64 << 20

// InteractiveMachine is a Machine whose guest has terminals.
type InteractiveMachine interface {
	Machine

	// ExecInteractive runs a command, given as for Exec, on a new terminal of
	// rows × cols. resizeCh delivers new sizes as {rows, cols}; nil and a closed
	// channel are fine. The end of stdin is typed as ^D. It returns the exit
	// status when the last output byte has been written to stdout.
	ExecInteractive(ctx context.Context, command string, opts *api.ExecOptions, rows, cols uint16, stdin io.Reader, stdout io.Writer, resizeCh <-chan [2]uint16) (int, error)
}

// VsockDialer is implemented by machines that can be dialled by vsock port.
type VsockDialer interface {
	// DialVsock connects to a service port of the guest. A program that listens
	// on TCP port N of the guest's loopback is reached at 10000+N; an agent's
	// own port is refused.
	DialVsock(port uint32) (net.Conn, error)
}

// Booter is implemented by machines that take boot data.
type Booter interface {
	// Boot hands over what must be in place before user code runs. It is called
	// once, right after Start and before the first Exec. A machine without a call
	// of Boot runs with what its VMConfig alone implies.
	Boot(ctx context.Context, data *api.BootData) error
}

// Pauser is implemented by machines whose guests can stand still.
type Pauser interface {
	// Pause has the guest stand still until Resume: what runs in it is held, with
	// its connections and its memory, and takes no processor time. Calls that need
	// the guest are ErrPaused meanwhile; Stop, Close and Wait are not among them. To
	// pause what is paused is no error.
	Pause(ctx context.Context) error

	// Resume has the guest go on, with its wall clock set.
	Resume(ctx context.Context) error
}

// Snapshotter is implemented by machines that can be copied while they run.
type Snapshotter interface {
	// Snapshot returns the machine as it is at one moment. For that it stands still,
	// for a time that what it writes to its memory meanwhile decides, some tens of
	// milliseconds; it then goes on, with its connections. One that is paused stays
	// so.
	Snapshot(ctx context.Context, o SnapshotOptions) (*Snapshot, error)
}

// SnapshotOptions say what becomes of VMConfig.ExtraDisks. With the zero value, a
// snapshot of a machine that writes to any of them is errors.ErrUnsupported: what
// goes on from it would find them changed.
type SnapshotOptions struct {
	// CopyDisks has the snapshot hold copies of those that the machine writes to.
	CopyDisks bool
	// Still, unless nil, is called while the machine stands still and all that it has
	// written is in the disks' files. An error is the snapshot's.
	Still func() error
}

// Snapshot is a machine at one moment, as files that do not change any more. How
// a Backend makes machines that go on from it is the backend's affair.
type Snapshot struct {
	Memory *os.File   // as large as the guest's; what is a hole is zeros
	State  *os.File   // of the processors and devices
	Disk   []*os.File // that takes the writes to the root: a raw image, and what lies above it
	// Extra are the copies of ExtraDisks, in their order, nil where there is none. They
	// have no name, and go with their last descriptor.
	Extra []*os.File
	// Files is for the caller, who may put there what else goes with the machine. Nil:
	// nothing does.
	Files *os.File
	// Requires is what must be the same where it goes on, for the backend to compare.
	Requires json.RawMessage
}

// Close closes the files.
func (s *Snapshot) Close() error {
	var errs []error
	for _, f := range slices.Concat([]*os.File{s.Memory, s.State, s.Files}, s.Disk, s.Extra) {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	return errors.Join(errs...)
}
