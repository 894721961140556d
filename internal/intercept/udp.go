package intercept

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// udpIdle is how long datagrams may be away, either way.
	udpIdle = 60 * time.Second
	// maxDatagram is the most that UDP carries, in bytes.
	maxDatagram = 65507
)

var datagrams = sync.Pool{New: func() any { return new([maxDatagram]byte) }}

// relayDatagrams passes datagrams on, both ways, until there were none for a
// while, or nobody takes them.
func (f *flow) relayDatagrams(guest *guestConn, server *upstreamConn) error {
	var last atomic.Int64 // when there was one, in nanoseconds
	last.Store(time.Now().UnixNano())
	var ended atomic.Bool
	one := func(to, from net.Conn) error {
		// Whoever ends first ends both.
		defer func() {
			ended.Store(true)
			to.SetReadDeadline(past)
		}()
		b := datagrams.Get().(*[maxDatagram]byte)
		defer datagrams.Put(b)
		for {
			until := time.Unix(0, last.Load()).Add(udpIdle)
			if err := from.SetReadDeadline(until); err != nil {
				return nil // closed, by its own idle timer
			}
			if ended.Load() {
				return nil
			}
			n, err := from.Read(b[:])
			if errors.Is(err, os.ErrDeadlineExceeded) && time.Now().Before(time.Unix(0, last.Load()).Add(udpIdle)) {
				continue
			}
			switch {
			case err == nil:
			case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, net.ErrClosed), errors.Is(err, io.EOF):
				return nil
			default:
				return err
			}
			last.Store(time.Now().UnixNano())
			if _, err := to.Write(b[:n]); err != nil && !errors.Is(err, net.ErrClosed) {
				return err
			}
		}
	}
	var up error
	var both sync.WaitGroup
	both.Go(func() { up = one(server, guest) })
	down := one(guest, server)
	both.Wait()
	return errors.Join(up, down)
}
