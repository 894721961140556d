package agent

import (
	"context"
	"errors"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/matchlock/matchlock/internal/wire"
)

// command is one command from its request to its exit status. Four goroutines
// work for it: the one that serves the stream, a reader of the host's frames,
// and, where there is an input or an output, one for each.
type command struct {
	listener
	process Process
	input   *input  // nil: it has none
	stdout  *output // of a terminal: all there is
	stderr  *output // nil: it goes where stdout goes
	tty     *terminal
	ended   chan struct{} // of one with a terminal: closed when it has
	ending  sync.Once
}

// exec runs the command of a request. Its error is the answer that it could not
// be started.
func (s *Server) exec(conn net.Conn, in *wire.FrameReader, out *wire.FrameWriter, payload []byte) error {
	req, err := decodeExecRequest(payload)
	if err != nil {
		return wrap("exec", err)
	}
	path, attr, err := s.prepare(req)
	if err != nil {
		return err
	}
	c := new(command)
	attr.Files, err = s.open(c, req, attr.Credential)
	if err != nil {
		return err
	}
	started := time.Now()
	c.process, err = s.start(path, req.args, attr)
	closeAll(attr.Files)
	if err != nil {
		c.close()
		return err
	}

	id := s.register(c)
	defer s.forget(id)
	out.WriteFrame(frameStarted, encodeStarted(c.process.PID(), id)) // if the host is gone, obey will see it
	c.begin(out)
	var drained sync.WaitGroup
	drained.Add(1)
	s.serving.Go(func() { s.pump(frameStdout, c.stdout, &c.listener, drained.Done) })
	if c.stderr != nil {
		drained.Add(1)
		s.serving.Go(func() { s.pump(frameStderr, c.stderr, &c.listener, drained.Done) })
	}
	if c.input != nil {
		s.serving.Go(func() { c.input.pump(&c.listener) })
	}
	s.serving.Go(func() { c.obey(in, out) })
	defer context.AfterFunc(s.life, func() { c.signal(unix.SIGKILL); c.leave() })()

	status, err := c.process.Wait()
	if c.ended != nil {
		close(c.ended)
	}
	duration := time.Since(started)
	c.ending.Do(func() {}) // from here on the end of the stream is no reason to end what lives on
	if c.input != nil {
		c.input.stop()
	}
	for _, o := range []*output{c.stdout, c.stderr} {
		if o != nil {
			o.file.SetReadDeadline(past) // what is to come is what is there now
		}
	}
	drained.Wait()
	if err != nil {
		return wrap("exec", err)
	}
	exit := Exit{Code: status.Code, Signal: int(status.Signal), Duration: duration}
	if status.Signal != 0 {
		exit.Code = 128 + int(status.Signal)
	}
	c.sayLast(frameExit, exit.encode())
	return nil
}

// resume lets another host have a command, in a copy of the machine that it was
// started in, and returns when that has ended or is the next host's.
func (s *Server) resume(in *wire.FrameReader, out *wire.FrameWriter, d *wire.Decoder) error {
	id, withInput := d.Uvarint(), d.Bool()
	if err := d.Done(); err != nil {
		return wrap("resume", err)
	}
	s.mu.Lock()
	c := s.commands[id]
	s.mu.Unlock()
	if c == nil {
		return wrap("resume", errors.New("no such command"))
	}
	if !c.awaited() {
		return wrap("resume", errors.New("the command has a host"))
	}
	out.WriteFrame(frameStarted, encodeStarted(c.process.PID(), id))
	if c.input != nil {
		c.input.nextHost()
		if !withInput {
			c.input.end()
		}
	}
	c.begin(out)
	c.obey(in, out)
	return nil
}

// running tells the host which commands there are.
func (s *Server) running(out *wire.FrameWriter, d *wire.Decoder) error {
	if err := d.Done(); err != nil {
		return wrap("commands", err)
	}
	var e wire.Encoder
	s.mu.Lock()
	e.Uvarint(uint64(len(s.commands)))
	for id, c := range s.commands {
		e.Uvarint(id)
		e.Bool(c.tty != nil)
		e.Bool(c.input != nil && c.input.open())
	}
	s.mu.Unlock()
	return out.WriteFrame(frameCommands, e.Encoded())
}

// register makes a command known until forget.
func (s *Server) register(c *command) (id uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lastID++
	s.commands[s.lastID] = c
	return s.lastID
}

func (s *Server) forget(id uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.commands, id)
}

// Keep has the commands that run outlive the session in which they were asked
// for, which is about to be cut: the machine is a copy, and has another host. What
// they say waits for one that resumes them.
func (s *Server) Keep() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.commands {
		c.keep()
	}
}

// past is a deadline that interrupts.
var past = time.Unix(1, 0)

// open makes the command's pipes or terminal. It returns the command's ends.
func (s *Server) open(c *command, req *execRequest, owner *Credential) (files []*os.File, err error) {
	if req.tty {
		var slave *os.File
		if c.tty, slave, err = openTerminal(req.rows, req.cols, owner); err != nil {
			return nil, wrap("terminal", err)
		}
		c.ended = make(chan struct{})
		c.stdout = &output{file: c.tty.file, raw: c.tty.raw, until: c.ended}
		if req.stdin {
			c.input = newInput(c.tty.file, c.tty)
		}
		return []*os.File{slave, slave, slave}, nil
	}
	p, err := s.takePipes(req.merged)
	if err != nil {
		return nil, err
	}
	for _, f := range p.theirs {
		giveTo(f, owner)
	}
	if req.stdin {
		c.input = newInput(pollable(p.stdin), nil)
	} else {
		unix.Close(p.stdin)
	}
	c.stdout, c.stderr = p.stdout, p.stderr
	return p.theirs, nil
}

// PrepareCommand makes what the next command needs, whatever that is.
func (s *Server) PrepareCommand() error {
	p, err := openPipes(false)
	if err != nil {
		return err
	}
	if preparer, ok := s.starter.(Preparer); ok {
		err = preparer.Prepare(p.theirs)
	}
	if err != nil {
		p.close()
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ready = p
	return nil
}

// takePipes returns pipes, those that are ready if they will do.
func (s *Server) takePipes(merged bool) (*pipes, error) {
	s.mu.Lock()
	p := s.ready
	s.ready = nil
	s.mu.Unlock()
	if p != nil && !merged {
		return p, nil
	}
	if p != nil {
		p.close()
	}
	return openPipes(merged)
}

// close closes the server's ends of a command that did not start.
func (c *command) close() {
	if c.input != nil {
		c.input.file.Close()
	}
	for _, o := range []*output{c.stdout, c.stderr} {
		if o != nil {
			o.file.Close()
		}
	}
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close() // one that is there twice is closed the first time
	}
}

// obey does what the host says. When the stream ends before the command, that is
// ended, unless it is kept for another host.
func (c *command) obey(in *wire.FrameReader, out *wire.FrameWriter) {
	if !c.obeyRules(in) {
		c.distrust()
		c.terminate(unix.SIGHUP)
		return
	}
	if c.end(out) {
		c.terminate(unix.SIGHUP)
	}
}

// obeyRules returns at the stream's end, or false when the host broke the rules.
func (c *command) obeyRules(in *wire.FrameReader) bool {
	for {
		kind, payload, err := in.Next(wire.MaxData)
		if err != nil {
			return true
		}
		d := wire.NewDecoder(payload)
		switch kind {
		case frameStdin:
			if d = wire.NewDecoder(nil); c.input == nil || !c.input.put(payload) {
				d.Fail(errors.New("input that was not agreed on"))
			}
		case frameStdinEnd:
			if c.input != nil {
				c.input.end()
			}
		case frameSignal:
			c.process.Signal(syscall.Signal(d.Uint8())) // a process that has ended needs none
		case frameResize:
			rows, cols := d.Uint32(), d.Uint32()
			if c.tty != nil {
				c.tty.resize(uint16(rows), uint16(cols))
			}
		case frameTerminate:
			c.terminate(unix.SIGTERM)
		case frameCloseOutput:
			o := c.stdout
			if d.Uint8() == frameStderr {
				o = c.stderr
			}
			if o != nil {
				o.file.Close() // the writer gets SIGPIPE
			}
		default:
			d.Fail(errors.New("unknown frame"))
		}
		if d.Done() != nil {
			return false
		}
	}
}

// terminate ends the command's group: SIGTERM, or on a terminal sig, and what is
// left after killGrace gets SIGKILL. It returns at once.
func (c *command) terminate(sig syscall.Signal) {
	c.ending.Do(func() {
		if c.tty == nil {
			sig = unix.SIGTERM
		}
		c.signal(sig)
		time.AfterFunc(killGrace, func() { c.signal(unix.SIGKILL) })
	})
}

// signal reaches the command's group and, on a terminal, the one in the
// foreground, which a shell makes another.
func (c *command) signal(sig syscall.Signal) {
	c.process.Signal(sig)
	if c.tty == nil {
		return
	}
	if group := c.tty.foreground(); group > 1 && group != c.process.PID() {
		unix.Kill(-group, sig)
	}
}
