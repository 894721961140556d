package hostfs

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
)

// Listener is a unix socket of ours: mode 0600, and only this user's processes are let in.
type Listener struct {
	*net.UnixListener
	path string
	once sync.Once
}

// maxSocketPath is the most bytes that a socket's path may have (unix(7), sun_path less its NUL).
const maxSocketPath = 107

// Listen listens on a unix socket at path, which must not exist, however long it is. Closing the listener removes it.
func Listen(path string) (*Listener, error) {
	l := &Listener{path: path}
	// Between bind and chmod the socket has the mode that the umask leaves it; nobody is accepted before Listen returns,
	// and who connects is asked for the uid then.
	err := withShortPath(path, func(short string) (err error) {
		l.UnixListener, err = net.ListenUnix("unix", &net.UnixAddr{Name: short, Net: "unix"})
		return err
	})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false) // by a name that may mean something else by then
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

// Accept returns the next connection of a process of this user.
func (l *Listener) Accept() (*net.UnixConn, error) {
	for {
		conn, err := l.AcceptUnix()
		if err != nil {
			return nil, err
		}
		if peer, err := Peer(conn); err == nil && peer.UID == os.Geteuid() {
			return conn, nil
		}
		conn.Close()
	}
}

// Close stops listening and removes the socket, unless another has taken its place already.
func (l *Listener) Close() (err error) {
	l.once.Do(func() { os.Remove(l.path) }) // if it is gone, so much the better
	return l.UnixListener.Close()
}

// Dial connects to the unix socket at path, however long that is.
func Dial(ctx context.Context, path string) (conn *net.UnixConn, err error) {
	err = withShortPath(path, func(short string) error {
		c, err := new(net.Dialer).DialContext(ctx, "unix", short)
		if err == nil {
			conn = c.(*net.UnixConn)
		}
		return err
	})
	return conn, err
}

// withShortPath calls use with a path that fits into a socket's address.
func withShortPath(path string, use func(short string) error) error {
	if len(path) <= maxSocketPath {
		return use(path)
	}
	folder, err := os.OpenFile(filepath.Dir(path), syscall.O_RDONLY|syscall.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer folder.Close()
	return use(filepath.Join(descriptorPath(folder), filepath.Base(path)))
}

// Process is who is at the other end of a connection.
type Process struct{ PID, UID int }
