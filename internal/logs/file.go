package logs

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"syscall"
	"time"
)

// maxKeep bounds how many old files a log may have: readers look for so many.
const maxKeep = 16

// fileName is the name of the file that was the current one age rotations ago.
func fileName(path string, age int) string {
	if age == 0 {
		return path
	}
	return path + "." + strconv.Itoa(age)
}

// openFile opens a regular file, never through a link.
func openFile(path string, flags int) (*os.File, fs.FileInfo, error) {
	// O_NONBLOCK: a named pipe is refused, not waited for.
	f, err := os.OpenFile(path, flags|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0o600)
	if err != nil {
		return nil, nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s: not a regular file", path)
	}
	if err != nil {
		f.Close()
		return nil, nil, err
	}
	return f, info, nil
}

// A file is one of a log's, open for reading: it is the same one whatever it is renamed to.
type file struct {
	*os.File
	number uint64
	begun  time.Time // zero when the file does not say
	size   int64     // when it was opened
	next   int64     // where the next record begins
	torn   bool      // next is inside of a line that is too long
}

// openLog opens those of a log's files that are begun and have at least the given number, oldest first. It may be
// called while the log rotates: names only ever move upwards, as it goes, so that it misses none.
func openLog(path string, least uint64) (files []*file, err error) {
	defer func() {
		if err != nil {
			closeAll(files)
			files = nil
		}
	}()
	for age := range maxKeep + 1 {
		f, info, err := openFile(fileName(path, age), os.O_RDONLY)
		if errors.Is(err, fs.ErrNotExist) {
			continue // perhaps renamed a moment ago
		}
		if err != nil {
			return files, err
		}
		opened := &file{File: f, size: info.Size()}
		if begun, err := opened.identify(); err != nil || !begun {
			f.Close()
			if err != nil {
				return files, err
			}
			continue
		}
		files = append(files, opened)
	}
	slices.Reverse(files)
	var last uint64
	for _, f := range files {
		if f.number == 0 {
			f.number = last + 1 // its beginning is damaged, the rest may be not
		}
		last = f.number
	}
	// One that was renamed while we looked may be there twice, and before an older one.
	slices.SortStableFunc(files, func(a, b *file) int { return cmp.Compare(a.number, b.number) })
	last = 0
	files = slices.DeleteFunc(files, func(f *file) bool {
		unwanted := f.number < least || f.number == last
		if last = f.number; unwanted {
			f.Close()
		}
		return unwanted
	})
	return files, nil
}

// identify reads what the file says of itself. One whose first record is not there yet is not begun.
func (f *file) identify() (begun bool, err error) {
	buf := make([]byte, 128)
	n, err := f.ReadAt(buf, 0)
	if err != nil && err != io.EOF {
		return false, err
	}
	line, _, whole := bytes.Cut(buf[:n], []byte{'\n'})
	if r, ok := parse(line); whole && ok && r.number() != 0 {
		f.number, f.begun = r.number(), r.Time
	}
	return whole || n == len(buf), nil
}

// records calls each for the whole records that begin at f.next and end at or before the offset end, and sets f.next
// behind them. What is no record is passed over. The buffer must have maxLine bytes.
func (f *file) records(buf []byte, end int64, each func(Record) error) error {
	for f.next < end {
		want := int(min(end-f.next, maxLine))
		// Always from the file: half a record that was read may be taken back.
		n, err := f.ReadAt(buf[:want], f.next)
		if err != nil && err != io.EOF {
			return err
		}
		rest := buf[:n]
		for {
			line, after, whole := bytes.Cut(rest, []byte{'\n'})
			if !whole {
				break
			}
			r, ok := parse(line)
			wanted := ok && !f.torn && (f.next != 0 || r.number() == 0)
			f.torn = false
			f.next += int64(len(line)) + 1
			rest = after
			if !wanted {
				continue
			}
			if err := each(r); err != nil {
				return err
			}
		}
		if len(rest) == maxLine {
			f.torn = true
			f.next += maxLine
		} else if n < maxLine {
			return nil
		}
	}
	return nil
}

func closeAll(files []*file) {
	for _, f := range files {
		f.Close()
	}
}
