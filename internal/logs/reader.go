package logs

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"math"
	"os"
	"slices"
	"time"
)

// None, as Query.Tail, is none of the lines that are there.
const None = -1

// A Query says which records are read. The zero Query is all that are there.
type Query struct {
	From    Position  // records behind it
	Since   time.Time // records of that time or later
	Streams []string  // records of these streams; empty: of all

	// Tail, when set, is how many of the lines that the above select and that are there already are read: the last
	// ones, each with all its parts. None is none of them.
	Tail int

	// Follow, when set, is called at the end of what is there, and waits for more. It must not miss what came since its
	// last call, or since before Read was called, and may return for nothing. io.EOF says that nothing will come after
	// what is there now; any other error ends Read.
	Follow func(context.Context) error
}

func (q *Query) selects(r Record) bool {
	return !r.Time.Before(q.Since) && (len(q.Streams) == 0 || slices.Contains(q.Streams, r.Stream))
}

// Read calls each for the records of the log at path that the query asks for, in the order in which they were written,
// until the end, an error of each, or the end of ctx. Record.Content is valid during the call.
//
// The log may be written and rotated meanwhile; of what is not removed before Read gets to it, each record is read
// once. When some were removed, a record in the stream Own says so in their place. What is damaged is passed over.
//
// No log is fs.ErrNotExist, unless Read follows: then it waits for one.
func Read(ctx context.Context, path string, q Query, each func(Record) error) error {
	r := reader{path: path, query: q, each: each, due: q.From.File, buf: make([]byte, maxLine), inside: make(map[string]int)}
	defer r.close()
	if err := r.readExisting(ctx); err != nil {
		return err
	}
	if q.Follow == nil {
		return nil
	}
	for last := false; ; {
		if err := r.readNew(ctx); err != nil {
			return err
		}
		if last {
			return nil
		}
		if err := q.Follow(ctx); errors.Is(err, io.EOF) {
			last = true
		} else if err != nil {
			return err
		}
	}
}

type reader struct {
	path  string
	query Query
	each  func(Record) error
	buf   []byte

	current *file  // the newest that was read; nil before the first
	due     uint64 // the number of the file to come; 0: any

	lines  int            // so many lines were begun
	inside map[string]int // by stream: which of them it is in the midst of
	omit   int            // so many of them are not for each
}

func (r *reader) close() {
	if r.current != nil {
		r.current.Close()
	}
}

// open opens the files to come.
func (r *reader) open() ([]*file, error) {
	files, err := openLog(r.path, r.due)
	if len(files) > 0 && files[0].number == r.query.From.File {
		files[0].next = max(0, r.query.From.Offset)
	}
	return files, err
}

// readExisting reads what is there when it is called.
func (r *reader) readExisting(ctx context.Context) error {
	files, err := r.open()
	if err != nil {
		return err
	}
	defer func() { closeAll(files) }()
	if len(files) == 0 {
		if _, err := os.Lstat(r.path); err != nil && r.query.Follow == nil {
			return err
		}
		return nil
	}
	if r.query.Tail != 0 {
		if err := r.count(ctx, files); err != nil {
			return err
		}
		r.omit = max(0, r.lines-max(0, r.query.Tail))
		r.lines = 0
		clear(r.inside)
	}
	for len(files) > 0 {
		f, end := files[0], endOf(files)
		files = files[1:]
		if err := r.begin(f); err != nil {
			return err
		}
		if err := r.read(ctx, f, end, r.pass); err != nil {
			return err
		}
	}
	r.omit = 0
	return nil
}

// endOf is how far to read the first of the files: those before the last are whole, and as such are read to their end.
func endOf(files []*file) int64 {
	if len(files) > 1 {
		return math.MaxInt64
	}
	return files[0].size
}

// count counts the lines in files and leaves those as they were.
func (r *reader) count(ctx context.Context, files []*file) error {
	for i, f := range files {
		start := *f
		err := r.read(ctx, f, endOf(files[i:]), func(rec Record) error {
			if r.query.selects(rec) {
				r.line(rec)
			}
			return nil
		})
		if err != nil {
			return err
		}
		*f = start
	}
	return nil
}

// line returns which line the record belongs to, counted from 1.
func (r *reader) line(rec Record) int {
	n, ok := r.inside[rec.Stream]
	if !ok {
		r.lines++
		n = r.lines
	}
	if rec.Partial {
		r.inside[rec.Stream] = n
	} else {
		delete(r.inside, rec.Stream)
	}
	return n
}

// pass gives the record to whoever reads, if it is among what was asked for.
func (r *reader) pass(rec Record) error {
	if !r.query.selects(rec) || r.line(rec) <= r.omit {
		return nil
	}
	return r.each(rec)
}

// readNew reads what was written since the last call, or since readExisting.
func (r *reader) readNew(ctx context.Context) error {
	if r.current != nil {
		if err := r.read(ctx, r.current, math.MaxInt64, r.pass); err != nil {
			return err
		}
		info, err := os.Lstat(r.path)
		if err == nil && sameFile(r.current, info) {
			return nil
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	files, err := r.open()
	if err != nil {
		return err
	}
	defer func() { closeAll(files) }()
	if len(files) > 0 && r.current != nil {
		// Since there is a newer file this one has its last record, which it may not have had above.
		if err := r.read(ctx, r.current, math.MaxInt64, r.pass); err != nil {
			return err
		}
	}
	for len(files) > 0 {
		f := files[0]
		files = files[1:]
		if err := r.begin(f); err != nil {
			return err
		}
		if err := r.read(ctx, f, math.MaxInt64, r.pass); err != nil {
			return err
		}
	}
	return nil
}

// begin makes f the current file, and says so when another one should have come before.
func (r *reader) begin(f *file) error {
	due := r.due
	r.close()
	r.current, r.due = f, f.number+1
	if due == 0 || f.number == due {
		return nil
	}
	notice := Record{
		Time:    f.begun,
		Stream:  Own,
		Content: []byte("records lost: the log was rotated before they were read"),
	}
	if !r.query.selects(notice) {
		return nil
	}
	return r.each(notice)
}

func (r *reader) read(ctx context.Context, f *file, end int64, each func(Record) error) error {
	return f.records(r.buf, end, func(rec Record) error {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return each(rec)
	})
}
