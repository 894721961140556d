package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/matchlock/matchlock/api"
	"github.com/matchlock/matchlock/internal/logs"
	"github.com/matchlock/matchlock/internal/netstack"
	"github.com/matchlock/matchlock/internal/state"
)

// eventsName is the file in a sandbox's folder that has its events, each as JSON on
// a line of a log, which is rotated and followed as the others are.
const (
	eventsName  = "events.log"
	eventStream = "event"
)

// eventLog writes down what the guest did. Those who tell it never
// wait: what there is no room for is counted.
type eventLog struct {
	log   *logs.Writer
	queue chan api.Event
	done  chan struct{} // closed when all is written
	// deny is told of the last refusals, in the goroutine that writes; it may block.
	deny func(last []api.Event)

	mu     sync.Mutex
	closed bool
	lost   int64 // since the last one that was told
}

const (
	eventQueue   = 1024
	maxEventPath = 2048 // bytes
	lastDenials  = 20
	// denialPause is how long refusals are collected before the guest is told of
	// them.
	denialPause = 100 * time.Millisecond
)

func openEvents(path string, onError func(error), deny func([]api.Event)) (*eventLog, error) {
	log, err := logs.Open(path, logs.Options{OnError: onError})
	if err != nil {
		return nil, fmt.Errorf("log of events: %w", err)
	}
	l := &eventLog{log: log, queue: make(chan api.Event, eventQueue), done: make(chan struct{}), deny: deny}
	go l.write()
	return l, nil
}

// openEvents is the supervisor's.
func (s *supervisor) openEvents() (err error) {
	s.events, err = openEvents(s.dir.Path(eventsName), func(err error) { s.complain("events are not logged", "error", err) }, s.tellDenied)
	if err == nil {
		s.unwind.push(s.events.close)
	}
	return err
}

// add takes an event. It never blocks.
func (l *eventLog) add(e api.Event) {
	if e.Time.IsZero() {
		e.Time = time.Now()
	}
	e.Path, e.NewPath = e.Path[:min(len(e.Path), maxEventPath)], e.NewPath[:min(len(e.NewPath), maxEventPath)] // one record of the log has them all
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return
	}
	if l.lost > 0 {
		select {
		case l.queue <- api.Event{Time: time.Now(), Kind: api.EventLost, Verdict: api.Failed, Lost: l.lost}:
			l.lost = 0
		default:
		}
	}
	select {
	case l.queue <- e:
	default:
		l.lost++
	}
}

// note takes what the stack has to say.
func (l *eventLog) note(n netstack.Note) {
	l.add(api.Event{Kind: api.EventFrame, Verdict: api.Denied, Reason: fmt.Sprintf("%v (%d)", n.Reason, n.Count)})
}

func (l *eventLog) write() {
	defer close(l.done)
	out := l.log.Stream(eventStream)
	var last []api.Event
	var due <-chan time.Time
	for {
		select {
		case e, ok := <-l.queue:
			if !ok {
				return
			}
			line, err := json.Marshal(e)
			if err != nil {
				continue // of strings and numbers: it does not happen
			}
			out.Write(append(line, '\n')) // OnError tells of a full disk
			if e.Verdict == api.Denied && e.Kind != api.EventFrame && e.Kind != api.EventFile {
				if last = append(last, e); len(last) > lastDenials {
					last = last[1:]
				}
				if due == nil {
					due = time.After(denialPause)
				}
			}
		case <-due:
			due = nil
			l.deny(last)
		}
	}
}

// close writes what is left.
func (l *eventLog) close() error {
	l.mu.Lock()
	closed := l.closed
	l.closed = true
	l.mu.Unlock()
	if !closed {
		close(l.queue)
	}
	<-l.done
	return l.log.Close()
}

// deniedName is the guest's file that tells its programs what was refused, and what
// would have allowed it.
const deniedName = "/run/matchlock/denied"

// tellDenied writes it.
func (s *supervisor) tellDenied(last []api.Event) {
	m := s.guest()
	if m == nil {
		return
	}
	ctx, cancel := context.WithTimeout(s.life, 5*time.Second)
	defer cancel()
	var text strings.Builder
	for _, e := range last {
		text.WriteString(DenialText(e) + "\n")
	}
	// A guest that has no memory left for it, or stands still, is none the worse.
	if err := m.WriteFile(ctx, deniedName, []byte(text.String()), 0o644); err != nil {
		s.log.Debug("the guest is not told what was refused", "error", err)
	}
}

// DenialText is a refusal in a line for people and programs: when, what, why, and
// the flag that would have allowed it.
func DenialText(e api.Event) string {
	text := e.Time.UTC().Format(time.RFC3339) + " " + string(e.Kind)
	if what := e.Target(); what != "" {
		text += " " + what
	}
	if e.Method != "" {
		text += " " + e.Method + " " + e.Path
	}
	reason := e.Reason
	if e.Rule != "" {
		reason = strings.TrimSpace(reason + " (rule " + e.Rule + ")")
	}
	if reason != "" {
		text += ": " + reason
	}
	if e.Hint != "" {
		text += "; would be allowed by " + e.Hint
	}
	return text
}

// tell writes down what became of the sandbox: among its events, and in the journal of all.
func (s *supervisor) tell(action api.LifeAction, reason string, exitCode *int) {
	e := lifeEvent(s.dir.Record().Info, action, reason)
	e.ExitCode = exitCode
	if s.events != nil { // else its start did not come so far
		s.events.add(e)
	}
	if err := s.journal.Append(e); err != nil {
		s.complain("what became of the sandbox is not in the journal", "action", action, "error", err)
	}
}

// complain warns of what is no reason to end the sandbox. A start that fails has more to say
// of a full disk than that.
func (s *supervisor) complain(what string, args ...any) {
	s.mu.Lock()
	ready := s.ready
	s.mu.Unlock()
	level := slog.LevelDebug
	if ready {
		level = slog.LevelWarn
	}
	s.log.Log(context.Background(), level, what, args...)
}

// tell writes down what became of a sandbox that does not run.
func (o Options) tell(home state.Home, i api.Info, action api.LifeAction, reason string) {
	if err := home.Journal().Append(lifeEvent(i, action, reason)); err != nil && o.Logger != nil {
		o.Logger.Warn("what became of a sandbox is not in the journal", "sandbox", i.ID, "action", action, "error", err)
	}
}

func lifeEvent(i api.Info, action api.LifeAction, reason string) api.Event {
	return api.Event{
		Time: time.Now(), Kind: api.EventLife, Action: action, Reason: reason,
		Sandbox: &api.EventSandbox{ID: i.ID, Name: i.Name, Image: i.Image, Labels: i.Labels},
	}
}

// EventQuery says what of a sandbox's events is read.
type EventQuery struct {
	// Denied leaves out what was not refused.
	Denied bool
	// Kinds, unless there are none, leave out all other kinds.
	Kinds []api.EventKind
	// Since, unless zero, leaves out what was before.
	Since time.Time
	// Follow goes on with what happens from then on, until the sandbox ends.
	Follow bool
}

// fits tells whether an event is wanted. That some are missing always is.
func (q *EventQuery) fits(e api.Event) bool {
	return e.Kind == api.EventLost || !e.Time.Before(q.Since) && (!q.Denied || e.Verdict == api.Denied) && (len(q.Kinds) == 0 || slices.Contains(q.Kinds, e.Kind))
}

// Events yields what became of the sandbox and what happened on its network since it was
// made, with what it was denied of files, and goes on with what happens until it ends. It
// may be ranged over again, and by several goroutines, each of which sees all; one that is slow
// holds up nobody, but misses what the log does not have any more. An error is the last
// that is yielded; the end of ctx is one.
func (s *Sandbox) Events(ctx context.Context) iter.Seq2[api.Event, error] {
	return func(yield func(api.Event, error) bool) {
		stopped := errors.New("no more events are wanted")
		err := s.keeper.maker().Events(ctx, s.id, EventQuery{Follow: true}, func(e api.Event) error {
			if !yield(e, nil) {
				return stopped
			}
			return nil
		})
		if err != nil && err != stopped {
			yield(api.Event{}, err)
		}
	}
}

// Events calls each for what a query finds among the events of a sandbox, running
// or not, in the order in which they were written. Without a sandbox, of ref "", it finds
// what became of all sandboxes, also of those that are gone: events of the kind
// api.EventLife, of which the last few thousand are kept; Follow goes on until ctx ends.
func (o Options) Events(ctx context.Context, ref string, q EventQuery, each func(api.Event) error) error {
	wanted := func(e api.Event) error {
		if !q.fits(e) {
			return nil
		}
		return each(e)
	}
	if ref == "" {
		home, err := o.home()
		if err != nil {
			return err
		}
		return home.Journal().Read(ctx, q.Follow, wanted)
	}
	query := LogQuery{events: true, Since: q.Since, Follow: q.Follow}
	return o.Logs(ctx, ref, query, func(r LogRecord) error {
		var e api.Event
		if r.Stream != eventStream || json.Unmarshal(r.Content, &e) != nil {
			return nil // the log's own words, or half an event after a full disk
		}
		return wanted(e)
	})
}
