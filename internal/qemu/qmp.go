package qemu

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"syscall"

	"github.com/matchlock/matchlock/internal/wire"
)

// Limits on what is taken from QEMU. A guest may have taken QEMU over, so its
// end of the monitor is as hostile as the guest itself.
const (
	maxQMPLine   = 1 << 20  // bytes of one answer; the longest known, query-qmp-schema, has about 200 KB
	maxQMPEvent  = 64 << 10 // bytes of one event's line; real ones have a few hundred
	maxQMPDesc   = 1 << 10  // bytes of an error's text that are kept
	eventBacklog = 16       // events a subscriber may be behind
)

// errQMPEnded is wrapped by every error that a qmp returns because its
// connection is over: QEMU is gone, has broken the protocol, or Close was
// called. The wrapping error says which.
var errQMPEnded = errors.New("QEMU's monitor connection has ended")

// A qmpError is QEMU's refusal of a command. Desc is meant for people, not for
// programs.
type qmpError struct {
	Class string
	Desc  string
}

func (e *qmpError) Error() string { return fmt.Sprintf("%s: %s", e.Class, e.Desc) }

// A qmpEvent is something that QEMU says unasked: SHUTDOWN, STOP, RESUME,
// GUEST_PANICKED and others of its QMP reference manual.
type qmpEvent struct {
	Name string
	Data json.RawMessage // nil when the event has none
}

// A qmp is the client's end of one QEMU monitor in control mode (the QEMU
// Machine Protocol, docs/interop/qmp-spec in QEMU's source). Several goroutines
// may use it at once; each command is answered to the one that sent it. It owns
// its connection and two goroutines, which end with it; Close waits for them.
type qmp struct {
	version qmpVersion // from the greeting

	conn     *net.UnixConn
	requests chan qmpRequest // to the writer; unbuffered, so what is not taken was not sent
	done     chan struct{}   // closed by fail, after err is set
	loops    sync.WaitGroup

	mu      sync.Mutex
	err     error // why the connection is over
	lastID  uint64
	waiting map[uint64]chan<- qmpAnswer
	subs    map[*qmpSubscription]struct{}
}

// decode reads the event's data, whose sender is not to be trusted.
func (e qmpEvent) decode(data any) error {
	if err := json.Unmarshal(e.Data, data); err != nil {
		return fmt.Errorf("qmp event %s: %w", e.Name, err)
	}
	return nil
}

type qmpVersion struct {
	QEMU struct {
		Major int `json:"major"`
		Minor int `json:"minor"`
		Micro int `json:"micro"`
	} `json:"qemu"`
	Package string `json:"package"`
}

type qmpRequest struct {
	id   uint64
	line []byte
	file *os.File
}

type qmpAnswer struct {
	result json.RawMessage
	err    error
}

type qmpSubscription struct {
	names  []string
	events chan qmpEvent
}

// newQMP takes conn over and negotiates until commands may be sent. ctx bounds
// the negotiation alone. When it fails conn is closed.
func newQMP(ctx context.Context, conn *net.UnixConn) (*qmp, error) {
	q := &qmp{
		conn:     conn,
		requests: make(chan qmpRequest),
		done:     make(chan struct{}),
		waiting:  make(map[uint64]chan<- qmpAnswer),
		subs:     make(map[*qmpSubscription]struct{}),
	}
	greeting := make(chan qmpVersion, 1)
	q.loops.Go(func() { q.fail(q.read(greeting)) })
	q.loops.Go(q.write)

	err := func() error {
		select {
		case q.version = <-greeting:
			return q.Execute(ctx, "qmp_capabilities", nil, nil, nil)
		case <-q.done:
			return q.Err()
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}()
	if err != nil {
		q.Close()
		return nil, fmt.Errorf("qmp greeting: %w", err)
	}
	return q, nil
}

// Execute sends a command and waits for its answer, which is decoded into
// result unless that is nil. args is encoded as the command's arguments; nil
// means none. With a file its descriptor goes along (for getfd and add-fd);
// the file stays the caller's. The error is a *qmpError when QEMU refused, wraps
// errQMPEnded when there will be no answer, and is ctx's when that ended first:
// the command may then still be carried out.
func (q *qmp) Execute(ctx context.Context, command string, args any, file *os.File, result any) error {
	answer, err := q.execute(ctx, command, args, file)
	if err == nil && result != nil {
		err = json.Unmarshal(answer, result)
	}
	if err != nil {
		return fmt.Errorf("qmp %s: %w", command, err)
	}
	return nil
}

func (q *qmp) execute(ctx context.Context, command string, args any, file *os.File) (json.RawMessage, error) {
	answered := make(chan qmpAnswer, 1) // the reader never waits for us
	q.mu.Lock()
	q.lastID++
	id := q.lastID
	q.waiting[id] = answered
	q.mu.Unlock()
	defer func() {
		q.mu.Lock()
		delete(q.waiting, id)
		q.mu.Unlock()
	}()

	line, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
		ID        uint64 `json:"id"`
	}{command, args, id})
	if err != nil {
		return nil, err
	}
	select {
	case q.requests <- qmpRequest{id, append(line, '\n'), file}:
	case <-q.done:
		return nil, q.Err()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	select {
	case a := <-answered:
		return a.result, a.err
	case <-q.done:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	// QEMU answers quit, for one, and ends at once.
	select {
	case a := <-answered:
		return a.result, a.err
	default:
		return nil, q.Err()
	}
}

// Subscribe returns the events of the given names that arrive from now on. A
// receiver that is far behind loses the oldest; nobody waits for it. The channel
// is closed by cancel and at the connection's end.
func (q *qmp) Subscribe(names ...string) (events <-chan qmpEvent, cancel func()) {
	s := &qmpSubscription{names: names, events: make(chan qmpEvent, eventBacklog)}
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.err != nil {
		close(s.events)
		return s.events, func() {}
	}
	q.subs[s] = struct{}{}
	return s.events, func() {
		q.mu.Lock()
		defer q.mu.Unlock()
		q.unsubscribe(s)
	}
}

// unsubscribe is called with mu held, as often as one likes.
func (q *qmp) unsubscribe(s *qmpSubscription) {
	if _, ok := q.subs[s]; ok {
		delete(q.subs, s)
		close(s.events)
	}
}

// Done is closed when the connection is over; Err then says why.
func (q *qmp) Done() <-chan struct{} { return q.done }

// Err is nil while the connection lives.
func (q *qmp) Err() error {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.err
}

// Close ends the connection, and with it every waiting call, and waits for the
// goroutines. QEMU itself lives on. It may be called any number of times.
func (q *qmp) Close() error {
	q.fail(net.ErrClosed)
	q.loops.Wait()
	return nil
}

// fail ends the connection for the reason given; only the first counts.
func (q *qmp) fail(reason error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.err != nil {
		return
	}
	q.err = fmt.Errorf("%w: %w", errQMPEnded, reason)
	q.conn.Close() // wakes both loops; what it could report is over anyway
	for s := range q.subs {
		q.unsubscribe(s)
	}
	close(q.done)
}

// write is a loop of its own, so that a QEMU that reads no more holds up no
// caller beyond its context, and no line is ever left half sent.
func (q *qmp) write() {
	for {
		select {
		case r := <-q.requests:
			if err := q.send(r); err != nil {
				q.fail(err)
				return
			}
		case <-q.done:
			return
		}
	}
}

// send returns an error when the connection is spoilt. A file that is closed
// spoils only its own command.
func (q *qmp) send(r qmpRequest) error {
	if r.file == nil {
		_, err := q.conn.Write(r.line)
		return err
	}
	raw, err := r.file.SyscallConn()
	if err != nil {
		q.answer(r.id, qmpAnswer{err: err})
		return nil
	}
	// Control keeps the descriptor from being closed, and its number reused,
	// under us; it calls nothing when that has happened already.
	var sent int
	err = raw.Control(func(fd uintptr) {
		var sendErr error
		if sent, _, sendErr = q.conn.WriteMsgUnix(r.line, syscall.UnixRights(int(fd)), nil); sendErr != nil {
			q.fail(sendErr)
		}
	})
	if err != nil {
		q.answer(r.id, qmpAnswer{err: fmt.Errorf("%s: %w", r.file.Name(), err)})
		return nil
	}
	_, err = q.conn.Write(r.line[sent:]) // sendmsg on a stream may send less than asked
	return err
}

// A qmpMessage is any line that QEMU sends.
type qmpMessage struct {
	Greeting *struct {
		Version qmpVersion `json:"version"`
	} `json:"QMP"`
	Return json.RawMessage `json:"return"`
	Error  *qmpError       `json:"error"`
	ID     *uint64         `json:"id"`
	Event  string          `json:"event"`
	Data   json.RawMessage `json:"data"`
}

// read distributes what QEMU sends until the connection ends or breaks the
// protocol, and says which.
func (q *qmp) read(greeting chan<- qmpVersion) error {
	lines := bufio.NewScanner(q.conn)
	lines.Buffer(make([]byte, 0, 4<<10), maxQMPLine)
	greeted := false
	for lines.Scan() {
		m, err := parseQMP(lines.Bytes())
		switch {
		case err != nil:
			return err
		case !greeted:
			if m.Greeting == nil {
				return errors.New("no greeting")
			}
			greeted = true
			greeting <- m.Greeting.Version
		case m.Event != "":
			q.publish(qmpEvent{m.Event, m.Data})
		case m.ID != nil && m.Error != nil:
			q.answer(*m.ID, qmpAnswer{err: m.Error})
		case m.ID != nil && m.Return != nil:
			q.answer(*m.ID, qmpAnswer{result: m.Return})
		case m.Error != nil: // QEMU could not even read what we sent
			return m.Error
		default:
			return errors.New("a line that is no answer and no event")
		}
	}
	if err := lines.Err(); err != nil {
		return err
	}
	return io.EOF
}

// parseQMP checks one line of QEMU's for size and form, and cuts what is only
// for people to a readable length.
func parseQMP(line []byte) (*qmpMessage, error) {
	var m qmpMessage
	if err := json.Unmarshal(line, &m); err != nil {
		return nil, err
	}
	if m.Event != "" && len(line) > maxQMPEvent {
		return nil, fmt.Errorf("an event of %d bytes", len(line))
	}
	if m.Error != nil {
		m.Error.Class = wire.Printable(m.Error.Class[:min(len(m.Error.Class), maxQMPDesc)])
		m.Error.Desc = wire.Printable(m.Error.Desc[:min(len(m.Error.Desc), maxQMPDesc)])
	}
	return &m, nil
}

// answer hands an answer to its caller. One that nobody waits for belongs to a
// caller whose context ended, or is made up.
func (q *qmp) answer(id uint64, a qmpAnswer) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if answered, ok := q.waiting[id]; ok {
		delete(q.waiting, id)
		answered <- a // has room for one, and is sent one
	}
}

func (q *qmp) publish(e qmpEvent) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for s := range q.subs {
		if !slices.Contains(s.names, e.Name) {
			continue
		}
		if len(s.events) == cap(s.events) {
			select {
			case <-s.events:
			default: // the receiver was faster
			}
		}
		s.events <- e // there is room: only we send, and under mu
	}
}
