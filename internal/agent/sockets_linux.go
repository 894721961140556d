package agent

import (
	"context"
	"errors"
	"net"
	"os"
	"path"
	"time"

	"golang.org/x/sys/unix"

	"github.com/matchlock/matchlock/api"
	"github.com/matchlock/matchlock/internal/wire"
)

// socket is a unix socket in the guest whose connections go to the host. What the
// host takes none of waits in the kernel.
type socket struct {
	path     string
	listener *net.UnixListener
	turn     chan struct{} // holds one value while somebody waits for a connection
}

// socketBacklog is how many connections may wait for the host.
const socketBacklog = 128

// Listen has the guest listen at unix sockets, each at its path, and at no others
// that lead to the host: streams to wire.PortSocket + N wait for connections to the
// N-th. What listens there already goes on, so that programs of a copied machine find
// it. It is called when no user code runs.
func (s *Server) Listen(paths []string) error {
	if len(paths) > api.MaxSockets {
		return wrap("sockets", ErrTooLarge)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	former := s.sockets
	s.sockets = nil
	var errs []error
	for _, path := range paths {
		k := takeSocket(&former, path)
		if k == nil {
			listener, err := listenUnix(path)
			if err != nil {
				errs = append(errs, pathError("socket", path, err))
				continue
			}
			k = &socket{path, listener, make(chan struct{}, 1)}
		}
		s.sockets = append(s.sockets, k)
	}
	for _, k := range former {
		k.listener.Close() // its file stays, and refuses who connects
	}
	return errors.Join(errs...)
}

// takeSocket takes the one with a path out of all; nil: there is none.
func takeSocket(all *[]*socket, path string) *socket {
	for i, k := range *all {
		if k.path == path {
			*all = append((*all)[:i:i], (*all)[i+1:]...)
			return k
		}
	}
	return nil
}

// listenUnix listens at a path that every user may connect to. A socket that is
// there is of a former run, and is replaced; anything else is left alone.
func listenUnix(name string) (*net.UnixListener, error) {
	if err := checkPath(name); err != nil {
		return nil, err
	}
	name = path.Clean(name)
	folder, err := openFolder(path.Dir(name))
	if err != nil {
		return nil, err
	}
	defer unix.Close(folder)
	base := path.Base(name)
	var there unix.Stat_t
	switch err := unix.Fstatat(folder, base, &there, unix.AT_SYMLINK_NOFOLLOW); {
	case err == nil && there.Mode&unix.S_IFMT != unix.S_IFSOCK:
		return nil, unix.EEXIST
	case err == nil:
		if err := unix.Unlinkat(folder, base, 0); err != nil {
			return nil, err
		}
	case err != unix.ENOENT:
		return nil, err
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close() // the listener has a duplicate
	// There is no bindat(2). That the path leads into the folder still is certain as
	// long as no user code runs.
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: name}); err != nil {
		return nil, err
	}
	if err := unix.Fchmodat(folder, base, 0o666, 0); err != nil { // over the umask
		return nil, err
	}
	if err := unix.Listen(fd, socketBacklog); err != nil {
		return nil, err
	}
	listener, err := net.FileListener(f)
	if err != nil {
		return nil, err
	}
	return listener.(*net.UnixListener), nil
}

// openFolder opens a folder, which is made when missing, and those above it. The
// kernel's own links, those of /proc/self/fd, are not followed: by them an image
// could name what this process has open.
func openFolder(dir string) (fd int, err error) {
	fd, err = unix.Openat2(unix.AT_FDCWD, dir, &unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_MAGICLINKS})
	if err != unix.ENOENT || dir == "/" {
		return fd, err
	}
	above, err := openFolder(path.Dir(dir))
	if err != nil {
		return -1, err
	}
	defer unix.Close(above)
	// A link that leads nowhere is in the way.
	if err := unix.Mkdirat(above, path.Base(dir), 0o755); err != nil {
		return -1, err
	}
	return unix.Openat(above, path.Base(dir), unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
}

// awaitConnection makes a stream the next connection to a socket, when that comes.
func (s *Server) awaitConnection(session context.Context, in *wire.Incoming, number int) {
	s.mu.Lock()
	var k *socket
	if number < len(s.sockets) {
		k = s.sockets[number]
	}
	s.mu.Unlock()
	if k == nil {
		in.Refuse("no such socket")
		return
	}
	conn, err := k.accept(session)
	if err != nil {
		in.Refuse(err.Error())
		return
	}
	s.join(in, conn)
}

// accept returns the next connection. When ctx ends none is taken any more: it is for
// who asks then.
func (k *socket) accept(ctx context.Context) (net.Conn, error) {
	select {
	case k.turn <- struct{}{}:
		defer func() { <-k.turn }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	interrupted := make(chan struct{})
	release := context.AfterFunc(ctx, func() {
		k.listener.SetDeadline(past)
		close(interrupted)
	})
	conn, err := k.listener.Accept()
	if !release() {
		<-interrupted
		k.listener.SetDeadline(time.Time{})
	}
	return conn, err
}
