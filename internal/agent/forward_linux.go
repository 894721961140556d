package agent

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/matchlock/matchlock/internal/wire"
)

// forward connects a stream to a TCP port of the guest's loopback.
func (s *Server) forward(in *wire.Incoming, port uint32) {
	ctx, cancel := context.WithTimeout(s.life, 10*time.Second)
	defer cancel()
	conn, err := dialLoopback(ctx, int(port))
	if err != nil {
		in.Refuse(err.Error())
		return
	}
	stream := in.Accept()
	defer context.AfterFunc(s.life, func() { conn.Close(); stream.Close() })()
	defer conn.Close()
	defer stream.Close()

	// Each direction ends by itself. A broken one breaks the other, and is a reset
	// on the far side too: nobody takes half an answer for a whole one.
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := io.Copy(stream, conn); err != nil {
			stream.Reset()
			conn.Close()
			return
		}
		stream.CloseWrite()
	})
	if _, err := io.Copy(conn, stream); err != nil {
		conn.SetLinger(0)
		conn.Close()
		stream.Reset()
	} else {
		conn.CloseWrite()
	}
	wg.Wait()
}

// dialLoopback connects to the loopback by IPv4, else by IPv6.
func dialLoopback(ctx context.Context, port int) (*net.TCPConn, error) {
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "tcp4", (&net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port}).String())
	if errors.Is(err, unix.ECONNREFUSED) {
		var err6 error
		if conn, err6 = dialer.DialContext(ctx, "tcp6", (&net.TCPAddr{IP: net.IPv6loopback, Port: port}).String()); err6 == nil {
			err = nil
		}
	}
	if err != nil {
		return nil, err
	}
	return conn.(*net.TCPConn), nil
}
