package agent

import (
	"context"
	"errors"
	"maps"
	"net"
	"strconv"
	"sync"
	"time"

	"github.com/matchlock/matchlock/api"
	"github.com/matchlock/matchlock/internal/wire"
)

// Server is the guest's end: it does what a Client asks for. Its methods may be
// called by several goroutines at once.
type Server struct {
	starter Starter
	buffers sync.Pool // of *[wire.FrameHeader + chunk]byte

	life    context.Context // ends with Close
	end     context.CancelFunc
	serving sync.WaitGroup
	closing sync.Once
	waiting chan *wire.Incoming // to the goroutine that waits for a stream; nil ends it

	mu       sync.Mutex
	env      map[string]string
	commands map[uint64]*command // that run, by their ids
	lastID   uint64
	ready    *pipes     // of the next command; nil: none are
	root     *knownRoot // nil: not known
	sockets  []*socket  // that lead to the host, by their numbers

	layer *Layer // nil: there is none
}

// NewServer returns a server whose commands are started by starter, with env as
// the lowest layer of their environment.
func NewServer(starter Starter, env map[string]string) *Server {
	s := &Server{starter: starter, env: maps.Clone(env), commands: map[uint64]*command{}}
	if s.env == nil {
		s.env = make(map[string]string)
	}
	s.buffers.New = func() any { return new([wire.FrameHeader + chunk]byte) }
	s.life, s.end = context.WithCancel(context.Background())
	s.waiting = make(chan *wire.Incoming)
	s.serving.Go(s.wait)
	return s
}

// AddEnv lays env over the environment of commands that start from now on.
func (s *Server) AddEnv(env map[string]string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.env = maps.Clone(s.env) // the former one may be in use
	maps.Copy(s.env, env)
}

func (s *Server) baseEnv() map[string]string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.env
}

// Serve takes the streams of a session until that ends, and returns why it did.
// What they asked for ends with them.
func (s *Server) Serve(mux *wire.GuestMux) error {
	session, end := context.WithCancel(s.life)
	defer end()
	for {
		in, err := mux.Accept()
		if err != nil {
			return err
		}
		switch port := in.Port(); {
		case port == wire.PortAgent:
			select {
			case s.waiting <- in:
			default:
				s.serving.Go(func() { s.ServeConn(in.Accept()) })
			}
		case port >= wire.PortSocket && port < wire.PortSocket+api.MaxSockets:
			s.serving.Go(func() { s.awaitConnection(session, in, int(port-wire.PortSocket)) })
		case port > wire.PortForward && port <= wire.PortForward+65535:
			s.serving.Go(func() { s.forward(in, uint16(port-wire.PortForward)) })
		default:
			in.Refuse("no service at port " + strconv.FormatUint(uint64(port), 10))
		}
	}
}

// wait serves one stream at a time. Most often there is but one, and this
// goroutine has been made for it, with a stack that has grown.
func (s *Server) wait() {
	for in := <-s.waiting; in != nil; in = <-s.waiting {
		s.ServeConn(in.Accept())
	}
}

// Close kills the commands that run, ends what else is under way, and returns
// when nothing of it is left.
func (s *Server) Close() error {
	s.end()
	s.closing.Do(func() { s.waiting <- nil })
	s.serving.Wait()
	for _, k := range s.sockets {
		k.listener.Close()
	}
	if s.ready != nil {
		s.ready.close()
	}
	return nil
}

// WarmUp runs the program at path, by the name given, as a request of the host
// would, and waits for its end. It fails if that has any status but 0.
func (s *Server) WarmUp(path, name string) error {
	near, far := net.Pipe()
	ctx, cancel := context.WithTimeout(context.Background(), answerTime)
	defer cancel()
	s.serving.Go(func() {
		mux := wire.AwaitHost(far, 0)
		s.Serve(mux)
		mux.Close()
	})
	mux, err := wire.NewHostMux(ctx, near, 0)
	if err != nil {
		return wrap("warm-up", err)
	}
	defer mux.Close()
	ours, err := mux.Open(wire.PortAgent)
	if err != nil {
		return wrap("warm-up", err)
	}
	ours.SetDeadline(time.Now().Add(answerTime))
	request := execRequest{args: []string{path, name}, dir: "/"}
	if err := wire.NewFrameWriter(ours).WriteFrame(requestExec, request.encode()); err != nil {
		return wrap("warm-up", err)
	}
	for in := wire.NewFrameReader(ours); ; {
		switch kind, payload, err := in.Next(wire.MaxData); {
		case err != nil:
			return wrap("warm-up", err)
		case kind == frameFailed:
			return wrap("warm-up", decodeError(payload))
		case kind == frameExit:
			exit, err := decodeExit(payload)
			if err == nil && exit.Code != 0 {
				err = errors.New("status " + strconv.Itoa(exit.Code))
			}
			if err != nil {
				return wrap("warm-up", err)
			}
			return nil
		}
	}
}

// ServeConn serves one stream to wire.PortAgent, and closes it.
func (s *Server) ServeConn(conn net.Conn) {
	defer context.AfterFunc(s.life, func() { conn.Close() })()
	defer conn.Close()
	in, out := wire.NewFrameReader(conn), wire.NewFrameWriter(conn)
	conn.SetReadDeadline(time.Now().Add(answerTime))
	kind, payload, err := in.Next(wire.MaxRequest)
	if err != nil {
		return // the host has gone away, or nothing was asked
	}
	conn.SetReadDeadline(time.Time{})
	d := wire.NewDecoder(payload)
	switch kind {
	case requestExec:
		err = s.exec(conn, in, out, payload)
	case requestRunning:
		err = s.running(out, d)
	case requestResume:
		err = s.resume(in, out, d)
	case requestWrite:
		err = s.writeFile(in, out, d)
	case requestRead:
		err = s.readFile(out, d)
	case requestList:
		err = s.listFiles(out, d)
	case requestStat:
		err = s.stat(out, d)
	case requestMkdir:
		err = s.makeFolder(out, d)
	case requestRemove:
		err = s.remove(out, d)
	case requestReadTree:
		err = s.readTree(conn, d)
	case requestWriteTree:
		err = s.writeTree(in, out, d)
	case requestReadLayer:
		err = s.readLayer(conn, d)
	default:
		err = errors.New("unknown request")
	}
	if err != nil {
		out.WriteFrame(frameFailed, encodeError(err)) // fails only when nobody is there to be told
	}
}
