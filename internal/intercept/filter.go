package intercept

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const (
	maxHead      = 64 << 10 // bytes of a request's line and headers
	maxTrailers  = 3 << 10  // net/http takes no more
	maxChunkLine = 256
)

// filter stands before net/http's server and hands on the guest's requests byte by
// byte, if every server would read them in the same way. What is malformed, or can
// be read in two ways, is replaced by one last request that the handler refuses,
// so that the guest is told why, behind the answers that it still gets.
//
// It looks at the form alone: whose requests they are is for the handler.
type filter struct {
	net.Conn
	refused string // method of that last request; nobody can guess it

	in      []byte // read, not looked at yet
	out     []byte // looked at, not handed on yet
	state   func(*filter) error
	left    int64 // bytes of a body or chunk
	done    error // after out
	skipped bool  // a blank line before the request
	scanned int   // bytes of in in which a head does not end
	heads   int   // handed on

	silent atomic.Bool // a deadline has passed before the first request

	mu       sync.Mutex
	fault    error // why the last request stands there
	upgrade  upgradeState
	unread   int           // requests handed on that are not answered
	patience time.Duration // see end
	wake     chan struct{} // closed, and made anew, when one of these has changed:
	deadline time.Time     // of reading
	closed   bool
}

type upgradeState int

const (
	noUpgrade upgradeState = iota
	asked                  // a request wants one; what is behind it has no form yet
	upgraded
)

func newFilter(c net.Conn, refused string, patience time.Duration) *filter {
	return &filter{Conn: c, refused: refused, state: (*filter).head, patience: patience, wake: make(chan struct{})}
}

// answered says that a request that was handed on is answered.
func (f *filter) answered() { f.change(func() { f.unread-- }) }

func (f *filter) change(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
	close(f.wake)
	f.wake = make(chan struct{})
}

// SetReadDeadline has net/http stop a Read that waits for the end of the answer.
func (f *filter) SetReadDeadline(t time.Time) error {
	f.change(func() { f.deadline = t })
	return f.Conn.SetReadDeadline(t)
}

// SetDeadline is SetReadDeadline, and that of writing.
func (f *filter) SetDeadline(t time.Time) error {
	f.change(func() { f.deadline = t })
	return f.Conn.SetDeadline(t)
}

// Close closes the connection.
func (f *filter) Close() error {
	f.change(func() { f.closed = true })
	return f.Conn.Close()
}

// end keeps the guest's end of its direction back while it waits for answers.
// net/http takes it for a guest that has gone, and gives up what it does for it; so
// does a guest that has gone mostly, but it may also have said all it wants to, as
// nc has at the end of its input.
func (f *filter) end() error {
	patience := time.NewTimer(f.patience)
	defer patience.Stop()
	for {
		f.mu.Lock()
		unread, wake, deadline, closed := f.unread, f.wake, f.deadline, f.closed
		f.mu.Unlock()
		switch {
		case unread <= 0 || closed:
			return io.EOF
		case !deadline.IsZero() && !deadline.After(time.Now()):
			return os.ErrDeadlineExceeded
		}
		select {
		case <-wake:
		case <-patience.C:
			return io.EOF
		}
	}
}

// Fault returns what was malformed, or nil.
func (f *filter) Fault() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.fault
}

// settle says whether an upgrade that was asked for has come to be. It is called
// before the guest can know.
func (f *filter) settle(s upgradeState) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.upgrade == asked {
		f.upgrade = s
	}
}

func (f *filter) upgradeState() upgradeState {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.upgrade
}

var errEarly = errors.New("bytes behind a request for an upgrade, before its answer")

// errNeed says that what is in does not suffice.
var errNeed = errors.New("more is needed")

func (f *filter) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for len(f.out) == 0 {
		if f.done != nil {
			return 0, f.done
		}
		if n, err := f.body(p); n > 0 || err != nil {
			return n, err
		}
		err := errNeed
		if len(f.in) > 0 {
			err = f.step()
		}
		switch {
		case err == errNeed:
			// Not the filter's own error: deadlines pass, and net/http reads again.
			if err := f.fill(); err != nil {
				return 0, err
			}
		case err != nil:
			f.refuse(err)
		}
	}
	n := copy(p, f.out)
	if f.out = f.out[n:]; len(f.out) == 0 {
		f.out = nil
	}
	return n, nil
}

// body hands on bytes of a body, or of what was upgraded to, as they are. It
// returns nothing elsewhere.
func (f *filter) body(p []byte) (int, error) {
	if f.upgradeState() == upgraded {
		if len(f.in) == 0 {
			return f.Conn.Read(p)
		}
		n := copy(p, f.in)
		f.in = f.in[n:]
		return n, nil
	}
	if f.left <= 0 {
		return 0, nil
	}
	p = p[:min(int64(len(p)), f.left)]
	var n int
	var err error
	if len(f.in) > 0 {
		n = copy(p, f.in)
		f.in = f.in[n:]
	} else {
		n, err = f.Conn.Read(p)
	}
	f.left -= int64(n)
	return n, err
}

func (f *filter) step() error {
	if f.upgradeState() == asked {
		return errEarly
	}
	return f.state(f)
}

func (f *filter) fill() error {
	if len(f.in) == 0 {
		f.in = nil
	}
	const least = 2 << 10
	b := slices.Grow(f.in, least)
	n, err := f.Conn.Read(b[len(b):cap(b)])
	f.in = b[:len(b)+n]
	if n > 0 {
		return nil
	}
	switch {
	case err == io.EOF && len(f.in) > 0:
		return io.ErrUnexpectedEOF
	case err == io.EOF:
		return f.end()
	case errors.Is(err, os.ErrDeadlineExceeded) && f.heads == 0:
		f.silent.Store(true)
	}
	return err
}

// refuse puts the last request in the place of what is not handed on.
func (f *filter) refuse(why error) {
	f.mu.Lock()
	f.fault = why
	f.mu.Unlock()
	f.in = nil
	f.done = io.EOF
	if f.inBody() {
		f.done = why // the handler is reading the body
		return
	}
	f.out = []byte(f.refused + " / HTTP/1.1\r\nHost: refused\r\nConnection: close\r\n\r\n")
}

// inBody reports whether the head of the request was handed on.
func (f *filter) inBody() bool { return f.left != 0 }

// line returns a line of in without its end.
func (f *filter) line(from, limit int, what string) ([]byte, error) {
	i := bytes.IndexByte(f.in[from:], '\n')
	if i > limit || i < 0 && len(f.in)-from > limit {
		return nil, fmt.Errorf("%s of more than %d bytes", what, limit)
	}
	if i < 0 {
		return nil, errNeed
	}
	line, ok := bytes.CutSuffix(f.in[from:from+i], []byte("\r"))
	if !ok {
		return nil, fmt.Errorf("%s ends with a bare line feed", what)
	}
	return line, nil
}

// pass hands on the first n bytes of in.
func (f *filter) pass(n int) {
	f.out = f.in[:n:n]
	f.in = f.in[n:]
}

// Beyond left == 0, which is between requests.
const (
	betweenChunks = -1 // where the line with a chunk's size is to come
)

// head reads a request's line and headers.
func (f *filter) head() error {
	if !f.skipped && f.in[0] == '\r' {
		if len(f.in) == 1 {
			return errNeed
		}
		if f.in[1] == '\n' { // one blank line is taken, RFC 9112, 2.2
			f.in, f.skipped = f.in[2:], true
			return nil
		}
	}
	// A head is looked at when it is whole, by whatever ends its lines.
	from := max(0, f.scanned-2)
	f.scanned = len(f.in)
	if !bytes.Contains(f.in[from:], []byte("\n\r\n")) && !bytes.Contains(f.in[from:], []byte("\n\n")) {
		if len(f.in) >= maxHead {
			return fmt.Errorf("headers of more than %d bytes", maxHead)
		}
		return errNeed
	}
	f.scanned = 0
	line, err := f.line(0, maxHead, "request line")
	if err != nil {
		return err
	}
	minor, err := checkRequestLine(line)
	if err != nil {
		return err
	}
	fields, size, err := f.fields(len(line)+2, maxHead)
	if err != nil {
		return err
	}
	return f.begin(minor, fields, size)
}

// begin hands on a request's head, and goes on with the body that it announces.
func (f *filter) begin(minor byte, fields []field, size int) error {
	hosts, lengths, codings := 0, 0, 0
	var length int64
	connectionUpgrade, websocket := false, false
	for _, h := range fields {
		switch h.name {
		case "host":
			hosts++
		case "content-length":
			lengths++
			n, err := strconv.ParseUint(h.value, 10, 63)
			if err != nil || strings.Trim(h.value, "0123456789") != "" {
				return fmt.Errorf("Content-Length %.40q", h.value)
			}
			length = int64(n)
		case "transfer-encoding":
			codings++
			if !strings.EqualFold(h.value, "chunked") {
				return fmt.Errorf("Transfer-Encoding %.40q", h.value)
			}
		case "connection":
			connectionUpgrade = connectionUpgrade || hasToken(h.value, "upgrade")
		case "upgrade":
			websocket = websocket || hasToken(h.value, "websocket")
		}
	}
	switch {
	case hosts != 1:
		return fmt.Errorf("%d Host headers", hosts)
	case lengths > 1:
		return errors.New("two Content-Length headers")
	case codings > 1:
		return errors.New("two Transfer-Encoding headers")
	case codings == 1 && lengths == 1:
		return errors.New("both Content-Length and Transfer-Encoding")
	case codings == 1 && minor == '0':
		return errors.New("Transfer-Encoding in HTTP/1.0")
	}
	f.pass(size)
	f.heads++
	f.mu.Lock()
	f.unread++
	f.mu.Unlock()
	f.skipped = false
	switch {
	case codings == 1:
		f.left, f.state = betweenChunks, (*filter).chunk
	case length > 0:
		f.left = length
	case connectionUpgrade && websocket:
		f.mu.Lock()
		f.upgrade = asked
		f.mu.Unlock()
	}
	return nil
}

// chunk reads the line before a chunk.
func (f *filter) chunk() error {
	line, err := f.line(0, maxChunkLine, "chunk's size")
	if err != nil {
		return err
	}
	digits, extension, extended := strings.Cut(string(line), ";")
	size, err := strconv.ParseUint(digits, 16, 60)
	if err != nil || strings.Trim(digits, "0123456789abcdefABCDEF") != "" {
		return fmt.Errorf("chunk's size %.40q", digits)
	}
	if extended && !isText(extension) {
		return errors.New("chunk's extension")
	}
	if size == 0 {
		f.pass(len(line) + 2)
		f.state = (*filter).trailers
		return nil
	}
	f.pass(len(line) + 2)
	f.left, f.state = int64(size), (*filter).chunkEnd
	return nil
}

// chunkEnd reads the line's end behind a chunk.
func (f *filter) chunkEnd() error {
	f.left = betweenChunks
	if len(f.in) < 2 {
		return errNeed
	}
	if f.in[0] != '\r' || f.in[1] != '\n' {
		return errors.New("chunk longer than its size")
	}
	f.pass(2)
	f.state = (*filter).chunk
	return nil
}

// trailers reads what is behind the last chunk.
func (f *filter) trailers() error {
	fields, size, err := f.fields(0, maxTrailers)
	if err != nil {
		return err
	}
	for _, h := range fields {
		if slices.Contains(notInTrailers, h.name) {
			return fmt.Errorf("%s in the trailers", h.name)
		}
	}
	f.pass(size)
	f.left, f.state = 0, (*filter).head
	return nil
}

// fields reads headers from an offset to the blank line, and returns also where
// that ends.
func (f *filter) fields(from, limit int) (fields []field, end int, err error) {
	for at := from; ; {
		line, err := f.line(at, limit-at, "headers")
		if err != nil {
			return nil, 0, err
		}
		at += len(line) + 2
		if len(line) == 0 {
			return fields, at, nil
		}
		h, err := parseField(line)
		if err != nil {
			return nil, 0, err
		}
		fields = append(fields, h)
	}
}
