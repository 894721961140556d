//go:build linux

package guest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// port is one open virtio-serial port: a byte stream to the host. It can be
// opened once at a time.
//
// The driver reports a host that is not connected as the end of the file. That
// is no end here: a host connects when it is ready and, after a fork, again.
type port struct {
	file *os.File
	raw  syscall.RawConn
}

// portTimeout is how long the kernel may take to find its virtio devices.
const portTimeout = 10 * time.Second

// waitForPort waits for the port that the host has given a name and returns that
// of its device.
func waitForPort(name string) (device string, err error) {
	device, err = waitFor(portTimeout, func() (string, bool) { return findPort(name) })
	if err != nil {
		err = fmt.Errorf("port %s: %w", name, err)
	}
	return device, err
}

// openPort opens a port by its device. devices is the kernel's own /dev, which
// user code never sees.
func openPort(devices *os.Root, device string) (*port, error) {
	// Non-blocking from the start, so that the runtime's poller takes it and
	// Close wakes whoever reads or writes.
	file, err := devices.OpenFile(device, os.O_RDWR|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	raw, err := file.SyscallConn()
	if err != nil {
		file.Close()
		return nil, err
	}
	return &port{file, raw}, nil
}

// openUnpolled opens a device that is no business of the runtime's, whose poller waits for
// all that it opens: who reads it waits by itself. Of two that wait for a port, one takes
// what would wake the other.
func openUnpolled(devices *os.Root, device string) (*os.File, error) {
	dir, err := devices.Open(".")
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	fd, err := unix.Openat(int(dir.Fd()), device, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", device, err)
	}
	return os.NewFile(uintptr(fd), device), nil
}

func findPort(name string) (device string, ok bool) {
	names, _ := filepath.Glob("/sys/class/virtio-ports/*/name")
	for _, path := range names {
		if text, err := os.ReadFile(path); err == nil && strings.TrimSpace(string(text)) == name {
			return filepath.Base(filepath.Dir(path)), true
		}
	}
	return "", false
}

// waitFor asks probe, more and more rarely, until it answers: the kernel finds
// devices in its own time, and tells of it only by their being there.
func waitFor(timeout time.Duration, probe func() (string, bool)) (string, error) {
	deadline := time.Now().Add(timeout)
	for pause := time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		if found, ok := probe(); ok {
			return found, nil
		}
		if time.Now().After(deadline) {
			return "", errors.New("no such device")
		}
		time.Sleep(pause)
	}
}

// Read waits for bytes of the host, connected or not; it fails only when the
// port is closed here.
func (p *port) Read(b []byte) (n int, err error) {
	if len(b) == 0 {
		return 0, nil
	}
	// The poller is edge-triggered and the driver wakes it when the host
	// connects, so that waiting costs nothing.
	waitErr := p.raw.Read(func(fd uintptr) (done bool) {
		for {
			n, err = unix.Read(int(fd), b)
			if err != unix.EINTR {
				break
			}
		}
		return n > 0 || err != nil && err != unix.EAGAIN
	})
	if waitErr != nil {
		return 0, waitErr
	}
	return n, err
}

func (p *port) Write(b []byte) (int, error) { return p.file.Write(b) }

// Close wakes readers and writers.
func (p *port) Close() error { return p.file.Close() }
