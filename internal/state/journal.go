package state

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"syscall"
	"time"

	"github.com/matchlock/matchlock/api"
	"github.com/matchlock/matchlock/internal/hostfs"
)

// Journal is the file that tells what became of sandboxes, also of those that are gone:
// events, each as JSON on a line. Any number of processes write to it at once, each line by
// one system call. When it is full it becomes the elder one, in the place of that before.
type Journal struct {
	Path string
}

// Bounds of the journal, in bytes.
const (
	maxJournal = 4 << 20
	maxEntry   = 64 << 10 // of a line
)

func (j Journal) elder() string { return j.Path + ".1" }

// Append writes an event down.
func (j Journal) Append(e api.Event) error {
	line, err := json.Marshal(e)
	if err != nil {
		return err
	}
	if len(line) >= maxEntry { // of labels, which it can do without
		bare := *e.Sandbox
		bare.Labels = nil
		e.Sandbox = &bare
		if line, err = json.Marshal(e); err != nil {
			return err
		}
	}
	file, err := os.OpenFile(j.Path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	_, err = file.Write(append(line, '\n'))
	if info, e := file.Stat(); err == nil && e == nil && info.Size() > maxJournal {
		j.rotate(info)
	}
	return errors.Join(err, file.Close())
}

// rotate makes the journal the elder one if it still is the file that info is of. If it
// cannot, the journal grows, until somebody can.
func (j Journal) rotate(info os.FileInfo) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	lock, err := hostfs.Lock(ctx, j.Path+".lock", os.O_RDWR|os.O_CREATE, syscall.LOCK_EX)
	if err != nil {
		return
	}
	defer lock.Close()
	if now, err := os.Stat(j.Path); err == nil && os.SameFile(info, now) {
		_ = os.Rename(j.Path, j.elder())
	}
}

// journalPause is how long a reader that follows waits between two looks.
const journalPause = 100 * time.Millisecond

// Read calls each for every event, in the order in which they were written; with follow it
// goes on with those to come until ctx ends, whose cause it returns.
func (j Journal) Read(ctx context.Context, follow bool, each func(api.Event) error) error {
	// The younger first: what is written meanwhile may make it the elder.
	file, err := j.open()
	if err != nil {
		return err
	}
	defer func() { file.Close() }()
	elder, err := os.Open(j.elder())
	if err == nil {
		if !sameFile(elder, file) {
			err = readEntries(elder).next(each)
		}
		elder.Close()
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	in := readEntries(file)
	for {
		if err := in.next(each); err != nil || !follow {
			return err
		}
		select {
		case <-time.After(journalPause):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		next, err := j.open()
		if err != nil {
			return err
		}
		if sameFile(next, file) {
			next.Close()
			continue
		}
		err = in.next(each) // what was written before the other was there
		file.Close()
		if file = next; err != nil {
			return err
		}
		in = readEntries(file)
	}
}

// open opens the journal, which is made if it is not there.
func (j Journal) open() (*os.File, error) { return os.OpenFile(j.Path, os.O_RDONLY|os.O_CREATE, 0o600) }

func sameFile(a, b *os.File) bool {
	infoA, errA := a.Stat()
	infoB, errB := b.Stat()
	return errA == nil && errB == nil && os.SameFile(infoA, infoB)
}

// entries reads lines of a file that others write to.
type entries struct {
	in   *bufio.Reader
	line []byte // what has come of the present one, at most maxEntry of it
}

func readEntries(r io.Reader) *entries { return &entries{in: bufio.NewReader(r)} }

// next calls each for the events that there are by now. What is no event, as after a full
// disk, is left out.
func (e *entries) next(each func(api.Event) error) error {
	for {
		part, err := e.in.ReadSlice('\n')
		if len(e.line) < maxEntry {
			e.line = append(e.line, part...)
		}
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case errors.Is(err, bufio.ErrBufferFull):
			continue
		case err != nil:
			return err
		}
		var event api.Event
		err = json.Unmarshal(e.line, &event)
		e.line = e.line[:0]
		if err != nil || event.Sandbox == nil {
			continue
		}
		if err := each(event); err != nil {
			return err
		}
	}
}
