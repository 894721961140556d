package sandbox

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"path/filepath"
	"time"

	"github.com/matchlock/matchlock/api"
	"github.com/matchlock/matchlock/internal/control"
	"github.com/matchlock/matchlock/internal/logs"
	"github.com/matchlock/matchlock/internal/state"
)

// LogQuery says what of a sandbox's log is read. The zero value is all that its
// commands have written.
type LogQuery struct {
	// Console reads what the guest's kernel said in the place of what commands have
	// written.
	Console bool
	// Since, unless zero, leaves out what was said before.
	Since time.Time
	// Tail, if positive, is how many of the last lines are read, of those that are
	// there; negative is none of them.
	Tail int
	// Follow goes on with what is said from then on, until the sandbox ends.
	Follow bool

	events bool // reads what happened on the network
}

// file is the log that is meant.
func (q LogQuery) file() string {
	switch {
	case q.events:
		return eventsName
	case q.Console:
		return consoleName
	}
	return outputName
}

// LogRecord is a line of a log, or a part of one.
type LogRecord struct {
	Time time.Time `json:"time"`
	// Stream is "stdout" or "stderr" of the first command, "exec" for commands in
	// the background, "console", or "matchlock" for what its supervisor had to say.
	Stream string `json:"stream"`
	// Partial says that no newline followed Content.
	Partial bool `json:"partial,omitempty"`
	// Content is any bytes but newline. The guest chose them: they may act on a
	// terminal. Valid during the call that it is passed to.
	Content []byte `json:"-"`
}

// Write writes what the record holds as the command wrote it: to stdout what it
// said, to stderr its errors and the supervisor's words.
func (r LogRecord) Write(stdout, stderr io.Writer) error {
	return writeRecord(logs.Record(r), stdout, stderr)
}

// Logs calls each for what a query finds in the log of a sandbox, running or
// not, in the order in which it was said.
func (o Options) Logs(ctx context.Context, ref string, q LogQuery, each func(LogRecord) error) error {
	home, e, err := o.locate(ref)
	if err != nil {
		return err
	}
	if !q.Follow || !e.Status.Alive() {
		return readLogs(ctx, e, q, each)
	}
	for {
		last := time.Now()
		err := newRemote(o, home, e).logs(ctx, q, func(r LogRecord) error {
			if r.Time.After(last) {
				last = r.Time
			}
			return each(r)
		})
		if err != nil {
			return err
		}
		now, err := state.Lookup(home.Sandboxes(), e.ID)
		if err != nil || now.Status != api.StatusRestarting && now.Restarts <= e.Restarts {
			return nil
		}
		// It is restarted, and goes on to say something.
		e, q.Tail, q.Since = now, 0, last.Add(1)
	}
}

// readLogs reads what is there.
func readLogs(ctx context.Context, e state.Entry, q LogQuery, each func(LogRecord) error) error {
	query := logs.Query{Since: q.Since, Tail: max(q.Tail, logs.None)}
	err := logs.Read(ctx, filepath.Join(e.Path, q.file()), query, func(r logs.Record) error { return each(LogRecord(r)) })
	if errors.Is(err, fs.ErrNotExist) {
		return nil // it has not come so far
	}
	return err
}

// logs has the supervisor read, who knows when there is more.
func (r *remote) logs(ctx context.Context, q LogQuery, each func(LogRecord) error) error {
	params := logsParams{File: q.file(), Since: q.Since, Tail: max(q.Tail, logs.None)}
	var a *control.Attachment
	err := r.patiently(ctx, func() (err error) {
		a, err = r.control.Attach(ctx, methodLogs, params, nil)
		return err
	})
	if err != nil {
		err = r.explain(ctx, err)
		if errors.Is(err, ErrNotRunning) { // since we looked
			return readLogs(ctx, r.entry, q, each)
		}
		return err
	}
	defer a.Close()
	defer context.AfterFunc(ctx, func() { a.Close() })()
	for {
		record, err := a.Next()
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case err == io.EOF:
			return nil
		case err != nil:
			return r.explain(ctx, err)
		}
		if err := each(LogRecord(record)); err != nil {
			return err
		}
	}
}
