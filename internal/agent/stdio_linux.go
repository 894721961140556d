package agent

import (
	"context"
	"errors"
	"io"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/matchlock/matchlock/internal/wire"
)

// pipe makes a pipe.
func pipe() (ends [2]int, err error) {
	if err := unix.Pipe2(ends[:], unix.O_CLOEXEC); err != nil {
		return ends, wrap("pipe", err)
	}
	return ends, nil
}

// pollable makes a file of our end of a pipe. It is the poller's: waiting for it
// takes no thread and can be interrupted.
func pollable(fd int) *os.File {
	unix.SetNonblock(fd, true) // of a pipe this cannot fail
	return os.NewFile(uintptr(fd), "pipe")
}

// pipes are those of a command without a terminal.
type pipes struct {
	stdin          int        // our end, not yet pollable: most commands have no input
	stdout, stderr *output    // stderr is nil when it goes where stdout goes
	theirs         []*os.File // the command's descriptors 0, 1, 2
}

func openPipes(merged bool) (_ *pipes, err error) {
	ends, err := pipe()
	if err != nil {
		return nil, err
	}
	p := &pipes{stdin: ends[1], theirs: []*os.File{os.NewFile(uintptr(ends[0]), "pipe")}}
	defer func() {
		if err != nil {
			p.close()
		}
	}()
	var theirs *os.File
	if p.stdout, theirs, err = openOutput(); err != nil {
		return nil, err
	}
	p.theirs = append(p.theirs, theirs)
	if !merged {
		if p.stderr, theirs, err = openOutput(); err != nil {
			return nil, err
		}
	}
	p.theirs = append(p.theirs, theirs)
	return p, nil
}

func (p *pipes) close() {
	closeAll(p.theirs)
	unix.Close(p.stdin)
	for _, o := range []*output{p.stdout, p.stderr} {
		if o != nil {
			o.file.Close()
		}
	}
}

// giveTo makes owner the owner of a pipe or terminal, who may then open it by
// name (/dev/stderr). Where that cannot be had nothing else depends on it.
func giveTo(f *os.File, owner *Credential) {
	if owner.UID != 0 && os.Geteuid() == 0 {
		f.Chown(int(owner.UID), -1)
	}
}

// An input carries what the host sends to the command.
type input struct {
	file *os.File
	tty  *terminal // nil: file is a pipe, and is closed after the last byte

	mu      sync.Mutex
	change  sync.Cond
	queue   []byte
	host    int  // how many have typed so far
	others  int  // bytes at the queue's start that another host has typed
	held    int  // bytes that the host has not been told of as taken, the queue's among them
	last    byte // typed so far
	ended   bool // nothing comes after the queue
	stopped bool
}

func newInput(file *os.File, tty *terminal) *input {
	i := &input{file: file, tty: tty, last: '\n'}
	i.change.L = &i.mu
	return i
}

// put queues p. It reports whether the host kept to the window.
func (i *input) put(p []byte) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.ended || i.held+len(p) > stdinWindow {
		return false
	}
	i.held += len(p)
	if !i.stopped {
		i.queue = append(i.queue, p...)
		i.change.Signal()
	}
	return true
}

func (i *input) end() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.ended = true
	i.change.Signal()
}

// open reports whether there is still something to be typed.
func (i *input) open() bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	return !i.ended && !i.stopped
}

// nextHost has another host type, who knows nothing of what is in the queue.
func (i *input) nextHost() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.host++
	i.others, i.held = len(i.queue), 0
}

// isTypedBy reports whether a host is still the one that types.
func (i *input) isTypedBy(host int) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.host == host
}

// stop drops what the command will not read any more.
func (i *input) stop() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.stopped = true
	i.queue = nil
	i.change.Signal()
	i.file.SetWriteDeadline(past) // wakes pump
}

// pump writes the queue to the command and tells the host how much it took.
func (i *input) pump(l *listener) {
	if i.tty == nil {
		defer i.file.Close()
	}
	for {
		i.mu.Lock()
		for len(i.queue) == 0 && !i.ended && !i.stopped {
			i.change.Wait()
		}
		p, host, others := i.queue, i.host, i.others
		i.queue, i.others = nil, 0
		stopped := i.stopped
		i.mu.Unlock()
		if stopped {
			return
		}
		if len(p) == 0 {
			if i.tty != nil {
				i.tty.typeEOF(i.last)
			}
			return
		}
		if _, err := i.file.Write(p); err != nil {
			i.stop()
			l.say(func(out *wire.FrameWriter) error { return out.WriteFrame(frameStdinClosed, nil) })
			return
		}
		i.last = p[len(p)-1]
		i.mu.Lock()
		taken := 0 // of what the host has typed
		if host == i.host {
			taken = len(p) - others
		}
		i.held -= taken
		i.mu.Unlock()
		if taken == 0 {
			continue
		}
		var e wire.Encoder
		e.Uvarint(uint64(taken))
		l.say(func(out *wire.FrameWriter) error {
			if !i.isTypedBy(host) {
				return nil // the next one knows nothing of it
			}
			return out.WriteFrame(frameStdinTaken, e.Encoded())
		})
	}
}

// An output is the server's end of a command's output.
type output struct {
	file *os.File
	raw  syscall.RawConn
	// until, of a terminal, is closed when the command has ended. Many close their
	// standard streams a moment before; were the terminal closed then, they would be
	// sent SIGHUP.
	until <-chan struct{}
}

func openOutput() (*output, *os.File, error) {
	ends, err := pipe()
	if err != nil {
		return nil, nil, err
	}
	ours, theirs := pollable(ends[0]), os.NewFile(uintptr(ends[1]), "pipe")
	raw, err := ours.SyscallConn()
	if err != nil {
		ours.Close()
		theirs.Close()
		return nil, nil, wrap("pipe", err)
	}
	return &output{file: ours, raw: raw}, theirs, nil
}

// leftover is how much, beside what a pipe says it holds, is read from an output
// after the command's end: more than a terminal holds, and little enough for a
// child that never stops writing.
const leftover = 128 << 10

// pump sends what the command writes until there is no more: the end of the
// file, or, after a deadline has said that the command has ended, what is there
// at that time. Then it calls drained, and drops what is written by the
// children that live on.
func (s *Server) pump(kind byte, o *output, l *listener, drained func()) {
	defer func() {
		if o.until != nil {
			<-o.until
		}
		o.file.Close()
	}()
	frame := s.buffers.Get().(*[wire.FrameHeader + chunk]byte)
	space := frame[wire.FrameHeader:]
	say := func(n int) {
		// If nobody is there any more the command is ended, but until then it may write.
		l.say(func(out *wire.FrameWriter) error { return out.WriteFilled(kind, frame[:wire.FrameHeader+n]) })
	}
	var err error
	for err == nil {
		var n int
		n, err = readOutput(o.file, space)
		if n > 0 {
			say(n)
		}
	}
	alive := errors.Is(err, os.ErrDeadlineExceeded)
	if alive {
		o.file.SetReadDeadline(time.Time{})
		for rest := max(o.holds(), leftover); rest > 0; {
			n, err := o.readNow(space)
			if n <= 0 {
				alive = errors.Is(err, unix.EAGAIN)
				break
			}
			say(n)
			rest -= n
		}
	}
	s.buffers.Put(frame)
	drained()
	if alive {
		s.drop(o.file)
	}
}

// readOutput reads a command's output. That a terminal is closed (EIO) must be said
// twice: Linux looks whether something has come before it looks whether the terminal
// is closed, and misses what somebody writes and closes in between.
func readOutput(r io.Reader, p []byte) (int, error) {
	n, err := r.Read(p)
	if errors.Is(err, unix.EIO) {
		n, err = r.Read(p)
	}
	return n, err
}

// holds is how many bytes can be read at once.
func (o *output) holds() (n int) {
	o.raw.Control(func(fd uintptr) { n, _ = unix.IoctlGetInt(int(fd), unix.TIOCINQ) })
	return n
}

// readNow reads what there is, without waiting.
func (o *output) readNow(p []byte) (n int, err error) {
	waitErr := o.raw.Read(func(fd uintptr) bool {
		for {
			n, err = unix.Read(int(fd), p)
			if !errors.Is(err, unix.EINTR) {
				return true
			}
		}
	})
	if waitErr != nil {
		return 0, waitErr
	}
	return n, err
}

// drop reads file to its end, or the server's.
func (s *Server) drop(file *os.File) {
	defer context.AfterFunc(s.life, func() { file.Close() })()
	p := make([]byte, 4096)
	for {
		if _, err := file.Read(p); err != nil {
			return
		}
	}
}
