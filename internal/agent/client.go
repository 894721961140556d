package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"github.com/matchlock/matchlock/internal/wire"
)

// A Dialer opens a stream to a service port of the guest.
type Dialer func(ctx context.Context, port uint32) (net.Conn, error)

// Client is the host's end: it asks a guest's Server. Its methods may be called
// by several goroutines at once; each request has a stream of its own.
type Client struct{ dial Dialer }

// NewClient returns a client that reaches the guest by dial.
func NewClient(dial Dialer) *Client { return &Client{dial} }

// errGuest is the cause of errors about answers that no honest guest gives.
var errGuest = errors.New("impossible answer of the guest")

// call is a request under way.
type call struct {
	conn net.Conn
	in   *wire.FrameReader
	out  *wire.FrameWriter
}

// request opens a stream and asks. The end of ctx breaks the stream as long as
// release has not been called; release reports whether it was in time.
func (c *Client) request(ctx context.Context, kind byte, payload []byte) (_ *call, release func() bool, err error) {
	if len(payload) > wire.MaxRequest {
		return nil, nil, fmt.Errorf("request of %d bytes: %w to be sent", len(payload), ErrTooLarge)
	}
	dialCtx, cancel := context.WithTimeoutCause(ctx, answerTime, errSilent)
	defer cancel()
	conn, err := c.dial(dialCtx, wire.PortAgent)
	if err != nil {
		return nil, nil, err // says itself what cannot be reached
	}
	k := &call{conn, wire.NewFrameReader(conn), wire.NewFrameWriter(conn)}
	release = context.AfterFunc(ctx, k.abort)
	if err := k.send(kind, payload); err != nil {
		release()
		k.abort()
		return nil, nil, cause(ctx, err)
	}
	return k, release, nil
}

var errSilent = fmt.Errorf("no answer for %v", answerTime)

// send writes one frame, which the guest has to take in time.
func (k *call) send(kind byte, payload []byte) error {
	k.conn.SetWriteDeadline(time.Now().Add(answerTime))
	return k.out.WriteFrame(kind, payload)
}

// next reads one frame, which has to come in time.
func (k *call) next() (kind byte, payload []byte, err error) {
	k.conn.SetReadDeadline(time.Now().Add(answerTime))
	kind, payload, err = k.in.Next(wire.MaxData)
	if err == nil && kind == frameFailed {
		err = decodeError(payload)
	}
	return kind, payload, err
}

// done reads the answer that all is done.
func (k *call) done() error {
	kind, _, err := k.next()
	if err == nil && kind != frameEnd {
		err = errGuest
	}
	return err
}

// abort breaks the stream, so that the guest does not take what it has for all.
func (k *call) abort() { wire.Reset(k.conn) }

// cause is why a request failed: the end of its context comes first, since
// the end of the stream is only its effect.
func cause(ctx context.Context, err error) error {
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case IsGuestError(err):
		return err
	case errors.Is(err, io.EOF):
		err = io.ErrUnexpectedEOF // the end of the stream is not that of a file
	case errors.Is(err, os.ErrDeadlineExceeded):
		err = errSilent
	}
	return fmt.Errorf("guest agent: %w", err)
}
