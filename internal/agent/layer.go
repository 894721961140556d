package agent

import (
	"context"
	"io"

	"github.com/matchlock/matchlock/internal/wire"
)

// ReadLayer returns what was written to the guest's root file system as a tar, as OCI's
// image specification has layers: what is deleted is in it as a whiteout. What is mounted
// anywhere is not, nor what matchlock itself has written. With still set, user code stands
// still until the reader has come to its end or is closed.
//
// The tar is the guest's word, as long as the guest likes, and no more to be believed
// than one from a registry. It ends with an error if the guest has not sent all of it.
func (c *Client) ReadLayer(ctx context.Context, still bool) (io.ReadCloser, error) {
	var e wire.Encoder
	e.Bool(still)
	k, release, err := c.request(ctx, requestReadLayer, e.Encoded())
	if err != nil {
		return nil, err
	}
	return &layerStream{ctx: ctx, call: k, release: release}, nil
}

// layerStream reads the frames of a layer.
type layerStream struct {
	ctx     context.Context
	call    *call
	release func() bool
	data    []byte
	err     error // when data has been read
}

func (l *layerStream) Read(p []byte) (int, error) {
	for len(l.data) == 0 && l.err == nil {
		l.data, l.err = l.next()
	}
	n := copy(p, l.data)
	l.data = l.data[n:]
	if n == 0 && len(p) > 0 {
		return 0, l.err
	}
	return n, nil
}

func (l *layerStream) next() ([]byte, error) {
	kind, payload, err := l.call.next()
	switch {
	case err != nil:
		return nil, cause(l.ctx, err)
	case kind == frameEnd:
		return nil, io.EOF
	case kind != frameData || len(payload) == 0:
		return nil, errGuest
	}
	return payload, nil
}

// Close ends the request.
func (l *layerStream) Close() error {
	l.release()
	l.call.abort()
	return nil
}
