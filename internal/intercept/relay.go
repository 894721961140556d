package intercept

import (
	"errors"
	"io"
	"net"
	"sync"
)

const (
	// A direction in which nothing is on its way keeps a small buffer, one in which
	// much is has a large one, until it has not.
	smallBuffer = 4 << 10
	largeBuffer = 128 << 10
)

var largeBuffers = sync.Pool{New: func() any { return new([largeBuffer]byte) }}

// relay passes bytes both ways until both sides have ended, or one was reset.
func relay(guest, server net.Conn) error {
	var up error
	done := make(chan struct{})
	go func() {
		defer close(done)
		up = relayOneWay(server, guest)
	}()
	down := relayOneWay(guest, server)
	<-done
	return errors.Join(up, down)
}

// relayOneWay passes bytes on until the end, which it passes on too. A reset, or
// another error, resets both.
func relayOneWay(to, from net.Conn) error {
	err := pass(to, from)
	if err == nil {
		if err = closeWrite(to); err == nil {
			return nil
		}
	}
	abort(to)
	abort(from)
	return err
}

// pass copies until from ends.
func pass(to io.Writer, from io.Reader) error {
	small := make([]byte, smallBuffer)
	var large *[largeBuffer]byte
	defer func() {
		if large != nil {
			largeBuffers.Put(large)
		}
	}()
	buffer := small
	for {
		n, err := from.Read(buffer)
		if n > 0 {
			if _, err := to.Write(buffer[:n]); err != nil {
				return err
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		switch {
		case large == nil && n == smallBuffer:
			large = largeBuffers.Get().(*[largeBuffer]byte)
			buffer = large[:]
		case large != nil && n < smallBuffer:
			largeBuffers.Put(large)
			large, buffer = nil, small
		}
	}
}
