package sandbox

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"sync"
	"time"

	"github.com/matchlock/matchlock/internal/disk"
)

// A bundle is several files in one: what a saved sandbox has of the host's files. Each
// begins at a block of 4096 bytes and keeps its holes; after them come an index, as
// JSON, and where it begins, in 8 bytes.
type bundle struct {
	file  *os.File
	end   int64 // of what is in it
	index []bundled
}

// bundled is one of the files.
type bundled struct {
	Name   string `json:"name"`
	Offset int64  `json:"offset"`
	Size   int64  `json:"size"`
	Time   int64  `json:"time"` // of its last change, in ns of Unix time
}

const (
	bundleBlock = 4096
	maxIndex    = 256 << 20 // bytes
	maxBundle   = 1 << 50   // bytes of all files, holes and all
)

// bundledName are the names that there are: see files.save.
var bundledName = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^(nodes|[0-9]{1,4}\.memory|[0-9]{1,4}/journal|[0-9]{1,4}/data/[0-9a-f]{1,16})$`)
})

// add copies a file into the bundle.
func (b *bundle) add(name string, from *os.File) error {
	info, err := from.Stat()
	if err != nil {
		return err
	}
	e := bundled{Name: name, Offset: b.end, Size: info.Size(), Time: info.ModTime().UnixNano()}
	if b.end+e.Size > maxBundle {
		return fmt.Errorf("%s: too large to be saved", name)
	}
	b.index = append(b.index, e)
	b.end += (e.Size + bundleBlock - 1) / bundleBlock * bundleBlock
	return disk.EachBlock(from, func(offset int64, block []byte) error {
		_, err := b.file.WriteAt(block, e.Offset+offset)
		return err
	})
}

// addFrom adds what write writes.
func (b *bundle) addFrom(name string, write func(io.Writer) error) error {
	e := bundled{Name: name, Offset: b.end}
	w := &offsetWriter{b.file, b.end}
	if err := write(w); err != nil {
		return err
	}
	e.Size = w.at - b.end
	b.end += (e.Size + bundleBlock - 1) / bundleBlock * bundleBlock
	b.index = append(b.index, e)
	return nil
}

type offsetWriter struct {
	file *os.File
	at   int64
}

func (w *offsetWriter) Write(p []byte) (int, error) {
	n, err := w.file.WriteAt(p, w.at)
	w.at += int64(n)
	return n, err
}

// finish writes the index.
func (b *bundle) finish() error {
	text, err := json.Marshal(b.index)
	if err != nil {
		return err
	}
	_, err = b.file.WriteAt(binary.BigEndian.AppendUint64(text, uint64(b.end)), b.end)
	return err
}

// openBundle reads the index of a bundle, which may be anybody's.
func openBundle(f *os.File) (*bundle, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	var last [8]byte
	if _, err := f.ReadAt(last[:], max(0, info.Size()-8)); err != nil {
		return nil, err
	}
	b := &bundle{file: f, end: int64(binary.BigEndian.Uint64(last[:]))}
	length := info.Size() - 8 - b.end
	if b.end < 0 || length < 0 || length > maxIndex {
		return nil, errors.New("files of a saved sandbox: no index")
	}
	if err := b.readIndex(io.NewSectionReader(f, b.end, length)); err != nil {
		return nil, fmt.Errorf("files of a saved sandbox: %w", err)
	}
	return b, nil
}

// readIndex reads the index. Each of its files is judged before the next one is read:
// short ones would take many times the room in memory.
func (b *bundle) readIndex(r io.Reader) error {
	index := json.NewDecoder(r)
	if t, err := index.Token(); err != nil {
		return err
	} else if t != json.Delim('[') {
		return errors.New("no list")
	}
	at, names := int64(0), map[string]bool{}
	for index.More() {
		var e bundled
		if err := index.Decode(&e); err != nil {
			return err
		}
		if !bundledName().MatchString(e.Name) || names[e.Name] || e.Offset < at || e.Offset%bundleBlock != 0 || e.Size < 0 || e.Size > b.end-e.Offset {
			return fmt.Errorf("%.64q cannot be", e.Name)
		}
		names[e.Name], at = true, e.Offset+e.Size
		b.index = append(b.index, e)
	}
	_, err := index.Token()
	return err
}

// open returns what a file holds: nothing, if there is none of the name.
func (b *bundle) open(name string) io.Reader {
	var e bundled
	if i := slices.IndexFunc(b.index, func(e bundled) bool { return e.Name == name }); i >= 0 {
		e = b.index[i]
	}
	return io.NewSectionReader(b.file, e.Offset, e.Size)
}

// extract makes the files for which path returns one.
func (b *bundle) extract(path func(name string) string) (err error) {
	var to *os.File
	defer func() {
		if to != nil {
			err = errors.Join(err, to.Close())
		}
	}()
	next := 0
	// take has to be the file at an offset, those before it made.
	take := func(offset int64) error {
		for next < len(b.index) && b.index[next].Offset <= offset {
			e := b.index[next]
			next++
			if to != nil {
				if err := to.Close(); err != nil {
					return err
				}
				to = nil
			}
			target := path(e.Name)
			if target == "" {
				continue
			}
			f, err := os.OpenFile(target, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
			if err != nil {
				return err
			}
			to = f
			if err := f.Truncate(e.Size); err != nil {
				return err
			}
		}
		return nil
	}
	err = disk.EachBlock(b.file, func(offset int64, block []byte) error {
		if offset >= b.end {
			return nil
		}
		if err := take(offset); err != nil || to == nil {
			return err
		}
		e := b.index[next-1]
		if at := offset - e.Offset; at < e.Size {
			_, err := to.WriteAt(block[:min(int64(len(block)), e.Size-at)], at)
			return err
		}
		return nil
	})
	if err == nil {
		err = take(maxBundle)
	}
	for _, e := range b.index {
		if target := path(e.Name); target != "" && err == nil {
			when := time.Unix(0, e.Time)
			err = os.Chtimes(target, when, when)
		}
	}
	return err
}
