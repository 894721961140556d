package control

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/matchlock/matchlock/internal/hostfs"
)

// Client calls the supervisor of a sandbox. It holds nothing: each call is a
// connection of its own. Its methods may be called by several goroutines at
// once.
type Client struct {
	path string
	id   string
}

// NewClient returns a client for the sandbox id, whose folder is given. Whether
// anybody answers shows with the first call.
func NewClient(folder, id string) *Client {
	return &Client{path: filepath.Join(folder, SocketName), id: id}
}

// Call calls a method that ends with its result, which is read into result
// unless that is nil. It waits for the result as long as ctx lasts. The error is
// an *Error when it is the server's answer, and ErrNotListening when there is no
// server, or it ended before it answered.
func (c *Client) Call(ctx context.Context, method string, params, result any) error {
	k, err := c.begin(ctx, method, params)
	if err != nil {
		return err
	}
	defer k.conn.Close()
	defer context.AfterFunc(ctx, func() { k.conn.Close() })()
	return k.finish(ctx, result, time.Time{})
}

// Dial calls a method that goes on as a connection. ctx bounds the call, not the
// connection.
func (c *Client) Dial(ctx context.Context, method string, params any) (*Conn, error) {
	k, err := c.stream(ctx, method, params, nil)
	if err != nil {
		return nil, err
	}
	return newConn(k.conn, k.in), nil
}

// Attach calls a method that goes on as an attachment. ctx bounds the call, not
// the attachment.
func (c *Client) Attach(ctx context.Context, method string, params, result any) (*Attachment, error) {
	k, err := c.stream(ctx, method, params, result)
	if err != nil {
		return nil, err
	}
	return newAttachment(k.conn, k.in), nil
}

// Peer is the process that listens at the socket, as the kernel knows it, and
// a connection to it. As long as that is not broken the process is alive.
func (c *Client) Peer(ctx context.Context) (pid int, conn net.Conn, err error) {
	dialed, err := c.dial(ctx)
	if err != nil {
		return 0, nil, err
	}
	peer, err := hostfs.Peer(dialed)
	if err != nil {
		return 0, nil, errors.Join(err, dialed.Close())
	}
	return peer.PID, dialed, nil
}

// outgoing is a call under way at the client's end.
type outgoing struct {
	conn *net.UnixConn
	in   *bufio.Reader
}

func (c *Client) dial(ctx context.Context) (*net.UnixConn, error) {
	ctx, cancel := context.WithTimeout(ctx, lineTime)
	defer cancel()
	conn, err := hostfs.Dial(ctx, c.path)
	switch {
	case errors.Is(err, os.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return nil, ErrNotListening
	case errors.Is(err, syscall.EAGAIN): // more wait already than it lets wait
		return nil, ErrSilent
	case err != nil:
		return nil, fmt.Errorf("control socket: %w", err)
	}
	return conn, nil
}

// begin connects, hears the hello and sends the request.
func (c *Client) begin(ctx context.Context, method string, params any) (_ *outgoing, err error) {
	conn, err := c.dial(ctx)
	if err != nil {
		return nil, err
	}
	k := &outgoing{conn, bufio.NewReader(conn)}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer func() {
		stop()
		if err != nil {
			conn.Close()
			err = broken(ctx, err)
		}
	}()
	conn.SetDeadline(time.Now().Add(lineTime))
	line, err := readLine(k.in, maxAnswer)
	if err != nil {
		return nil, err
	}
	var h hello
	if err := json.Unmarshal(line, &h); err != nil {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	if h.Version != Version && h.Version != Version-1 || h.Version < 1 {
		return nil, &VersionError{h.Version}
	}
	if h.ID != c.id {
		return nil, fmt.Errorf("control socket: it is that of sandbox %q", h.ID)
	}
	r := request{Method: method}
	if params != nil {
		if r.Params, err = json.Marshal(params); err != nil {
			return nil, err
		}
	}
	if err := writeLine(conn, r); err != nil {
		return nil, err
	}
	conn.SetDeadline(time.Time{})
	return k, nil
}

// finish reads the answer.
func (k *outgoing) finish(ctx context.Context, result any, deadline time.Time) error {
	k.conn.SetReadDeadline(deadline)
	defer k.conn.SetReadDeadline(time.Time{})
	line, err := readLine(k.in, maxAnswer)
	if err != nil {
		return broken(ctx, err)
	}
	var a answer
	if err := json.Unmarshal(line, &a); err != nil {
		return fmt.Errorf("control socket: %w", err)
	}
	if a.Error != nil {
		return a.Error
	}
	if result == nil || len(a.Result) == 0 {
		return nil
	}
	if err := json.Unmarshal(a.Result, result); err != nil {
		return fmt.Errorf("control socket: %w", err)
	}
	return nil
}

// streamTime is how long a supervisor may take to begin a stream: it may have to
// reach a guest first.
const streamTime = time.Minute

func (c *Client) stream(ctx context.Context, method string, params, result any) (*outgoing, error) {
	k, err := c.begin(ctx, method, params)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { k.conn.Close() })
	err = k.finish(ctx, result, time.Now().Add(streamTime))
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		k.conn.Close()
		return nil, err
	}
	return k, nil
}

// broken says why a connection ended: the end of the caller's context comes
// first, since that closes it.
func broken(ctx context.Context, err error) error {
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case slices.ContainsFunc(gone, func(g error) bool { return errors.Is(err, g) }):
		return ErrNotListening
	case errors.Is(err, os.ErrDeadlineExceeded):
		return ErrSilent
	}
	return err
}

// gone are the errors of a server that has ended.
var gone = []error{io.EOF, io.ErrUnexpectedEOF, syscall.ECONNRESET, syscall.EPIPE}
