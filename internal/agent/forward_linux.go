package agent

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"github.com/matchlock/matchlock/internal/wire"
)

// forward connects a stream to a TCP port of the guest's loopback.
func (s *Server) forward(in *wire.Incoming, port uint16) {
	ctx, cancel := context.WithTimeout(s.life, 10*time.Second)
	defer cancel()
	conn, err := dialLoopback(ctx, port)
	if err != nil {
		in.Refuse(err.Error())
		return
	}
	s.join(in, conn)
}

// join accepts a stream for a connection, and passes on what comes by either.
func (s *Server) join(in *wire.Incoming, conn net.Conn) {
	stream := in.Accept()
	defer context.AfterFunc(s.life, func() { conn.Close(); stream.Close() })()
	defer conn.Close()
	defer stream.Close()
	wire.Join(stream, conn)
}

// dialLoopback connects to the loopback by IPv4, else by IPv6. Names are left
// out of it: their resolver would be a tenth of the guest's binary.
func dialLoopback(ctx context.Context, port uint16) (*net.TCPConn, error) {
	var dialer net.Dialer
	conn, err := dialer.DialTCP(ctx, "tcp4", netip.AddrPort{}, netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), port))
	if errors.Is(err, unix.ECONNREFUSED) {
		if conn, err := dialer.DialTCP(ctx, "tcp6", netip.AddrPort{}, netip.AddrPortFrom(netip.IPv6Loopback(), port)); err == nil {
			return conn, nil
		}
	}
	return conn, err
}
