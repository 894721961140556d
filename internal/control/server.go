package control

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/matchlock/matchlock/internal/hostfs"
	"github.com/matchlock/matchlock/internal/wire"
)

// A Method does what a call asks for and returns its result, to be written as
// JSON. ctx ends when the server closes and, unless it is a stream's, when the
// client hangs up.
type Method func(ctx context.Context, c *Call) (result any, err error)

// Methods are what a server offers, by name. Calls are the ones that end with
// their result, Streams those that go on after Call.AcceptConn or Call.Attach.
type Methods struct {
	Calls, Streams map[string]Method
}

// Server answers calls on a sandbox's socket.
type Server struct {
	id       string
	methods  Methods
	code     func(error) string
	listener *hostfs.Listener

	life  context.Context // ends when calls are to end
	end   context.CancelFunc
	calls sync.WaitGroup
	slots chan struct{}

	mu    sync.Mutex
	conns map[net.Conn]bool // whose client has not sent its request yet: nothing is lost with them
}

// Serve listens in the folder of the sandbox id, whose lock the caller holds: a
// socket that is there is a dead supervisor's, and is replaced. code finds the
// Error.Code of an error, or "".
func Serve(folder, id string, methods Methods, code func(error) string) (*Server, error) {
	path := filepath.Join(folder, SocketName)
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	listener, err := hostfs.Listen(path)
	if err != nil {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	s := &Server{id: id, methods: methods, code: code, listener: listener, slots: make(chan struct{}, maxCalls), conns: map[net.Conn]bool{}}
	s.life, s.end = context.WithCancel(context.Background())
	s.calls.Go(s.accept)
	return s, nil
}

// Close accepts no more calls, lets those under way come to their end, but for
// no longer than grace, and then ends them.
func (s *Server) Close(grace time.Duration) error {
	err := s.listener.Close()
	s.mu.Lock()
	for conn := range s.conns {
		conn.Close()
	}
	s.mu.Unlock()
	overdue := time.AfterFunc(grace, s.end)
	s.calls.Wait()
	overdue.Stop()
	s.end()
	return err
}

func (s *Server) accept() {
	for {
		conn, err := s.listener.Accept()
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			// Too many open files, for one: to wait is all there is to do.
			select {
			case <-time.After(acceptPause):
				continue
			case <-s.life.Done():
				return
			}
		}
		select {
		case s.slots <- struct{}{}:
		default:
			conn.Close()
			continue
		}
		s.calls.Go(func() {
			defer func() { <-s.slots }()
			s.serve(conn)
		})
	}
}

const acceptPause = 100 * time.Millisecond

// Call is one call under way. It belongs to its Method.
type Call struct {
	method string
	params json.RawMessage
	conn   *net.UnixConn
	in     *bufio.Reader
	taken  bool // the result has been sent; conn is the method's
}

// serve answers one connection, and closes it.
func (s *Server) serve(conn *net.UnixConn) {
	defer conn.Close()
	c := &Call{conn: conn, in: bufio.NewReader(conn)}
	method, stream, err := s.begin(c)
	if method == nil && err == nil {
		return // nothing was asked
	}
	var result any
	if err == nil {
		ctx, cancel := context.WithCancel(s.life)
		defer cancel()
		if !stream {
			// A client that waits for its answer says nothing: what comes is its end.
			go func() { c.in.Peek(1); cancel() }()
		}
		result, err = method(ctx, c)
	}
	if c.taken {
		return
	}
	c.conn.SetWriteDeadline(time.Now().Add(lineTime))
	c.answer(result, s.asError(err)) // fails only when nobody is there to be told
}

// begin says hello and reads the request. Without a method and an error nothing
// was asked.
func (s *Server) begin(c *Call) (method Method, stream bool, err error) {
	s.mu.Lock()
	s.conns[c.conn] = true
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.conns, c.conn)
	}()
	c.conn.SetDeadline(time.Now().Add(lineTime))
	if err := writeLine(c.conn, hello{Version, s.id}); err != nil {
		return nil, false, nil
	}
	line, err := readLine(c.in, maxRequest)
	if err != nil {
		if errors.Is(err, errLongLine) {
			return nil, false, err
		}
		return nil, false, nil
	}
	var r request
	if err := decodeStrictly(line, &r); err != nil {
		return nil, false, fmt.Errorf("request: %w", err)
	}
	c.conn.SetDeadline(time.Time{})
	c.method, c.params = r.Method, r.Params
	if method = s.methods.Calls[r.Method]; method != nil {
		return method, false, nil
	}
	if method = s.methods.Streams[r.Method]; method != nil {
		return method, true, nil
	}
	return nil, false, &Error{Code: CodeNoSuchMethod, Message: fmt.Sprintf("its supervisor has no method %q", wire.Printable(r.Method))}
}

// asError is what the client is told of an error.
func (s *Server) asError(err error) *Error {
	if err == nil {
		return nil
	}
	if e, ok := err.(*Error); ok {
		return e
	}
	e := &Error{Code: s.code(err), Message: err.Error()}
	var hinted interface{ Hint() string }
	if errors.As(err, &hinted) {
		e.HintText = hinted.Hint()
	}
	return e
}

// answer sends the server's line.
func (c *Call) answer(result any, e *Error) error {
	var a answer
	if e != nil {
		a.Error = e
	} else {
		var err error
		if a.Result, err = json.Marshal(result); err != nil {
			return err
		}
	}
	return writeLine(c.conn, a)
}

// Params reads the call's parameters. A field that v does not have is an error:
// a request that is understood in part only might do something else.
func (c *Call) Params(v any) error {
	if len(c.params) == 0 {
		return nil
	}
	if err := decodeStrictly(c.params, v); err != nil {
		return fmt.Errorf("method %q: %w", c.method, err)
	}
	return nil
}

// take sends the result; from then on the connection is the method's, until it
// returns.
func (c *Call) take(result any) error {
	c.taken = true
	c.conn.SetWriteDeadline(time.Now().Add(lineTime))
	defer c.conn.SetWriteDeadline(time.Time{})
	return c.answer(result, nil)
}

// AcceptConn answers with result and goes on as a connection.
func (c *Call) AcceptConn(result any) (*Conn, error) {
	if err := c.take(result); err != nil {
		return nil, err
	}
	return newConn(c.conn, c.in), nil
}

// Attach answers with result and goes on as the giving end of an attachment.
func (c *Call) Attach(result any) (*Source, error) {
	if err := c.take(result); err != nil {
		return nil, err
	}
	return newSource(c.conn, c.in), nil
}

var errLongLine = errors.New("line is too long")

// readLine reads a line of at most limit bytes.
func readLine(in *bufio.Reader, limit int) ([]byte, error) {
	var line []byte
	for {
		part, err := in.ReadSlice('\n')
		if len(line)+len(part) > limit {
			return nil, errLongLine
		}
		line = append(line, part...)
		if err == nil {
			return line, nil
		}
		if err != bufio.ErrBufferFull {
			return nil, err
		}
	}
}

func writeLine(conn net.Conn, v any) error {
	var line bytes.Buffer
	encoder := json.NewEncoder(&line)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(v); err != nil {
		return err
	}
	_, err := conn.Write(line.Bytes())
	return err
}

func decodeStrictly(data []byte, v any) error {
	decoder := json.NewDecoder(strings.NewReader(string(data)))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(v); err != nil {
		return err
	}
	if decoder.More() {
		return errors.New("more than one value")
	}
	return nil
}
