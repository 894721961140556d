// Package wire holds what host and guest agree on, byte for byte: frames and
// their limits, the stream multiplexer, the service ports, the boot parameters
// and the version of it all. It does not know what is said over a stream; that
// is the business of the packages that hold both ends of a protocol.
//
// The host treats every byte that comes out of this package as hostile: what
// is read has been bounded here, and means nothing more.
package wire

// Version numbers the agreement. Host and guest binary are built together; a
// differing version is refused at the first hello.
const Version = 7

// Service ports of the guest. Only the host dials.
const (
	PortAgent   = 1 // commands and files: internal/agent
	PortControl = 2 // the control port, which is beside the multiplexer, not in it
	PortFiles   = 3 // the port of files, likewise: internal/fuse

	// PortSocket + N is the guest's N-th unix socket that leads to the host. A stream
	// to it is accepted when a process of the guest connects, and is that connection.
	PortSocket = 256
	// PortForward + N is TCP port N of the guest's loopback.
	PortForward = 10000
)

// Names of the virtio-serial ports.
const (
	DataPortName    = "matchlock.data" // a Mux: everything that runs by streams
	ControlPortName = "matchlock.ctl"  // one request and answer at a time, idle otherwise
	// What the guest's kernel asks of the host's files; before any of that a byte from the
	// host, if the machine goes on from where one was prepared.
	FilesPortName = "matchlock.fs"
)
