package logs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"sync"
	"time"
)

const (
	defaultMaxSize = 8 << 20
	minMaxSize     = 4 << 10
	defaultKeep    = 3

	// maxBuffer is what a Writer assembles before it writes, and keeps for the next time.
	maxBuffer = 256 << 10
	// maxOverhead is more than all that stands beside content in a file of one record: what the file and the writer
	// have to say first, and the record's own head.
	maxOverhead = 512
)

// Options are how a log is written. The zero value is a good one.
type Options struct {
	MaxSize int64       // bytes of a file, at least 4 KiB; 0 is 8 MiB
	Keep    int         // old files beside the current one, at most 16; 0 is 3
	OnError func(error) // called once, with the first fault that costs records; nil is fine
}

func (o Options) withDefaults() Options {
	if o.MaxSize == 0 {
		o.MaxSize = defaultMaxSize
	}
	if o.Keep == 0 {
		o.Keep = defaultKeep
	}
	if o.OnError == nil {
		o.OnError = func(error) {}
	}
	return o
}

func (o Options) validate() error {
	if o.MaxSize < minMaxSize {
		return fmt.Errorf("log: MaxSize %d: less than %d", o.MaxSize, minMaxSize)
	}
	if o.Keep < 1 || o.Keep > maxKeep {
		return fmt.Errorf("log: Keep %d: not between 1 and %d", o.Keep, maxKeep)
	}
	return nil
}

// A Writer writes a log; there must be no other one of the same log. All its methods may be called at once.
//
// What is written is in the file when the call returns. It never fails for those who write: what they say is not worth
// their end. What the disk does not take is lost, and a record in the stream Own tells how much as soon as it can.
// A log takes up no more than MaxSize for each of Keep+1 files.
type Writer struct {
	path    string
	options Options
	write   func(*os.File, []byte) (int, error)

	mu      sync.Mutex
	file    *os.File // nil: closed
	number  uint64   // of the file
	size    int64    // of whole records in it
	torn    bool     // half a record follows them
	buf     []byte   // empty between calls
	lost    int64    // bytes said and not written since the last record that tells
	failed  bool
	changed chan struct{} // closed by the next change; nil when nobody waits
}

// Open makes the log at path, with mode 0600, or goes on with it: half a record that a killed writer left is taken
// back, and a file that is no log is set aside as the one before. A link or anything but a regular file is refused.
func Open(path string, options Options) (*Writer, error) {
	options = options.withDefaults()
	if err := options.validate(); err != nil {
		return nil, err
	}
	w := &Writer{path: path, options: options, write: (*os.File).Write}
	if err := w.open(); err != nil {
		if w.file != nil {
			w.file.Close()
		}
		return nil, err
	}
	return w, nil
}

func (w *Writer) open() error {
	f, info, err := openFile(w.path, os.O_RDWR|os.O_APPEND|os.O_CREATE)
	if err != nil {
		return err
	}
	w.file = f
	if err := f.Chmod(0o600); err != nil {
		return err
	}
	// Those that a writer with a larger Keep has left.
	for age := w.options.Keep + 1; age <= maxKeep; age++ {
		if err := os.Remove(fileName(w.path, age)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	files, err := openLog(w.path, 0)
	if err != nil {
		return err
	}
	defer closeAll(files)
	goesOn := false
	if len(files) > 0 {
		newest := files[len(files)-1]
		w.number = newest.number
		goesOn = sameFile(newest, info) && !newest.begun.IsZero()
	}
	if info.Size() == 0 {
		w.number++
		return nil
	}
	size, ok, err := lastEnd(f, info.Size())
	if err != nil {
		return err
	}
	if !ok || !goesOn {
		return w.rotate()
	}
	w.size = size
	return f.Truncate(size)
}

func sameFile(f *file, info fs.FileInfo) bool {
	other, err := f.Stat()
	return err == nil && os.SameFile(other, info)
}

// lastEnd returns where the last whole line of a file ends. A file that has gone on for longer than a line may be
// since then is not ok.
func lastEnd(f *os.File, size int64) (end int64, ok bool, err error) {
	buf := make([]byte, min(size, maxLine))
	if _, err := f.ReadAt(buf, size-int64(len(buf))); err != nil {
		return 0, false, err
	}
	i := bytes.LastIndexByte(buf, '\n')
	return size - int64(len(buf)-(i+1)), i >= 0, nil
}

// Stream returns where to write what the stream of that name says: one to 16 small letters, digits and hyphens, all
// else is a fault of the caller's. Its Write takes everything, and may be called at once with any other.
func (w *Writer) Stream(name string) io.Writer {
	if !validStream(name) {
		panic(fmt.Sprintf("logs: %q is no name of a stream", name))
	}
	return stream{w, name}
}

type stream struct {
	w    *Writer
	name string
}

func (s stream) Write(p []byte) (int, error) {
	w := s.w
	w.mu.Lock()
	err := w.append(s.name, p)
	first := err != nil && !w.failed
	w.failed = w.failed || err != nil
	w.mu.Unlock()
	if first {
		w.options.OnError(err) // which may write to the log
	}
	return len(p), nil
}

// append makes records of p, all with the same time, and writes them: at once, unless they are very many or more than
// the file has room for. After an error, what was not written is lost.
func (w *Writer) append(stream string, p []byte) error {
	if w.file == nil || len(p) == 0 {
		return nil
	}
	now := time.Now()
	head := appendHead(make([]byte, 0, maxOverhead), now, stream)
	longest := min(maxContent, int(w.options.MaxSize-maxOverhead))
	for len(p) > 0 {
		full := false
		prefix, noticed := w.begin(now)
		for len(p) > 0 && len(w.buf) < maxBuffer {
			content, skip, tag := p[:min(len(p), longest)], 0, byte('P')
			if i := bytes.IndexByte(content, '\n'); i >= 0 {
				content, skip, tag = p[:i], 1, 'F'
			} else if len(content) < len(p) && p[len(content)] == '\n' {
				skip, tag = 1, 'F'
			}
			if full = w.size+int64(len(w.buf)+len(head)+len(content)+len("F \n")) > w.options.MaxSize; full {
				break
			}
			w.buf = appendRecord(w.buf, head, tag, content)
			p = p[len(content)+skip:]
		}
		var err error
		if len(w.buf) > prefix {
			err = w.flush(prefix, noticed)
		}
		if err == nil && full {
			err = w.rotate()
		}
		if err != nil {
			w.lost += int64(len(p))
			return err
		}
	}
	return nil
}

// begin puts into the buffer what must stand before the next record: the file's number, and what was lost. It returns
// how long that is and of how much loss it tells.
func (w *Writer) begin(now time.Time) (prefix int, noticed int64) {
	w.buf = w.buf[:0]
	if w.size > 0 && w.lost == 0 {
		return 0, 0
	}
	head := appendHead(nil, now, Own)
	if w.size == 0 {
		w.buf = appendRecord(w.buf, head, 'F', strconv.AppendUint([]byte(numberPrefix), w.number, 10))
	}
	if w.lost > 0 {
		w.buf = appendRecord(w.buf, head, 'F', fmt.Appendf(nil, "%d bytes lost: the log could not be written", w.lost))
	}
	return len(w.buf), w.lost
}

// flush writes the buffer, or as many of its records as the disk takes.
func (w *Writer) flush(prefix int, noticed int64) error {
	if w.torn {
		if err := w.file.Truncate(w.size); err != nil {
			w.lost += said(w.buf[prefix:])
			return err
		}
		w.torn = false
	}
	n, err := w.write(w.file, w.buf)
	whole := len(w.buf)
	if err != nil {
		whole = bytes.LastIndexByte(w.buf[:n], '\n') + 1
	}
	w.size += int64(whole)
	if whole >= prefix {
		w.lost -= noticed
	}
	if err != nil {
		w.lost += said(w.buf[max(prefix, whole):])
		w.torn = whole < n && w.file.Truncate(w.size) != nil
	}
	w.announce()
	return err
}

// said is how many bytes of their streams the records in buf stand for.
func said(buf []byte) (n int64) {
	for line := range bytes.Lines(buf) {
		r, _ := parse(bytes.TrimSuffix(line, []byte{'\n'}))
		n += r.said()
	}
	return n
}

// rotate makes the current file the one before and begins the next. It may be tried again after an error, which leaves
// at most one name free: files are only moved towards that.
func (w *Writer) rotate() error {
	free := 0
	for free < w.options.Keep {
		_, err := os.Lstat(fileName(w.path, free))
		if errors.Is(err, fs.ErrNotExist) {
			break
		}
		if err != nil {
			return err
		}
		free++
	}
	for age := free; age > 0; age-- {
		if err := os.Rename(fileName(w.path, age-1), fileName(w.path, age)); err != nil {
			return err
		}
	}
	f, _, err := openFile(w.path, os.O_RDWR|os.O_APPEND|os.O_CREATE|os.O_EXCL)
	if err != nil {
		return err
	}
	w.file.Close() // whatever it says, the records are with the kernel
	w.file, w.size, w.torn = f, 0, false
	w.number++
	return nil
}

// announce wakes those who wait for news.
func (w *Writer) announce() {
	if w.changed != nil {
		close(w.changed)
		w.changed = nil
	}
}

// Position returns the place behind the last record: a reader that begins there reads what is written from now on.
func (w *Writer) Position() Position {
	w.mu.Lock()
	defer w.mu.Unlock()
	return Position{w.number, w.size}
}

// News returns a function for Query.Follow of one reader in this process. It misses nothing from now on, and is
// io.EOF once the writer is closed.
func (w *Writer) News() func(context.Context) error {
	next, _ := w.nextChange()
	return func(ctx context.Context) error {
		select {
		case <-next:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		var open bool
		if next, open = w.nextChange(); !open {
			return io.EOF
		}
		return nil
	}
}

// nextChange returns a channel that is closed when the log has changed, and whether it may.
func (w *Writer) nextChange() (next <-chan struct{}, open bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.changed == nil {
		w.changed = make(chan struct{})
		if w.file == nil {
			close(w.changed)
		}
	}
	return w.changed, w.file != nil
}

// Close ends the log. What is written to its streams later is dropped.
func (w *Writer) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.file == nil {
		return nil
	}
	if w.lost > 0 {
		prefix, noticed := w.begin(time.Now())
		if w.size+int64(prefix) <= w.options.MaxSize {
			w.flush(prefix, noticed) // OnError was told of the fault
		}
	}
	err := w.file.Close()
	w.file = nil
	w.announce()
	return err
}
