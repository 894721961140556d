package logs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// A reading is what Read gave.
type reading struct {
	records []string          // "stream F content"
	text    map[string]string // by stream: what was said
	damaged int               // lines of the current file that are none
}

func read(t *testing.T, path string, q Query) reading {
	t.Helper()
	got := reading{text: make(map[string]string)}
	must(t, Read(t.Context(), path, q, func(r Record) error {
		got.add(r)
		return nil
	}))
	data, err := os.ReadFile(path)
	must(t, err)
	for line := range bytes.Lines(data) {
		if _, ok := parse(bytes.TrimSuffix(line, []byte{'\n'})); !ok {
			got.damaged++
		}
	}
	return got
}

func (g *reading) add(r Record) {
	tag, end := "F", "\n"
	if r.Partial {
		tag, end = "P", ""
	}
	g.records = append(g.records, r.Stream+" "+tag+" "+string(r.Content))
	g.text[r.Stream] += string(r.Content) + end
}

func TestRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	second := func(n int) string {
		return time.Date(2026, 11, 26, 15, 0, n, 0, time.UTC).Format(timeFormat)
	}
	lines := []string{
		second(0) + " matchlock F file 4",
		second(1) + " a F 1",
		second(2) + " b P 2-",
		"damaged",
		second(3) + " a F 3",
		strings.Repeat("\x00", 3*maxLine),
		second(4) + " b F 2",
		second(5) + " a P 4-",
		second(6) + " b F 5",
		second(7) + " a P 4",
	}
	must(t, os.WriteFile(path, []byte(strings.Join(lines, "\n")+"\n"+second(8)+" a F half a rec"), 0o600))
	for _, tt := range []struct {
		name  string
		query Query
		want  string
	}{
		{"all", Query{}, "a F 1|b P 2-|a F 3|b F 2|a P 4-|b F 5|a P 4"},
		{"a stream", Query{Streams: []string{"c", "b"}}, "b P 2-|b F 2|b F 5"},
		{"since", Query{Since: time.Date(2026, 11, 26, 15, 0, 5, 0, time.UTC)}, "a P 4-|b F 5|a P 4"},
		{"the last line", Query{Tail: 1}, "b F 5"},
		{"two lines", Query{Tail: 2}, "a P 4-|b F 5|a P 4"},
		{"three lines", Query{Tail: 3}, "a F 3|a P 4-|b F 5|a P 4"},
		{"four lines", Query{Tail: 4}, "b P 2-|a F 3|b F 2|a P 4-|b F 5|a P 4"},
		{"more than there are", Query{Tail: 1 << 62}, "a F 1|b P 2-|a F 3|b F 2|a P 4-|b F 5|a P 4"},
		{"the last line of a stream", Query{Tail: 1, Streams: []string{"a"}}, "a P 4-|a P 4"},
		{"none", Query{Tail: None}, ""},
		{"from a position", Query{From: Position{4, int64(len(lines[0]+lines[1]) + 2)}, Tail: 4}, "b P 2-|a F 3|b F 2|a P 4-|b F 5|a P 4"},
		{"from a position that is gone", Query{From: Position{3, 100}, Streams: []string{Own}}, "matchlock F records lost: the log was rotated before they were read"},
		{"from a position to come", Query{From: Position{5, 0}}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := read(t, path, tt.query).records
			if diff := cmp.Diff(strings.Join(got, "|"), tt.want); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestReadEnds(t *testing.T) {
	w, path := newLog(t, Options{})
	io.WriteString(w.Stream("out"), "a\nb\n")
	enough := errors.New("enough")
	cancelled, cancel := context.WithCancelCause(t.Context())
	cancel(enough)
	n := 0
	stop := func(Record) error { n++; return enough }
	goOn := func(Record) error { return nil }
	for name, err := range map[string]error{
		"by each":        Read(t.Context(), path, Query{}, stop),
		"by ctx":         Read(cancelled, path, Query{}, goOn),
		"by Follow":      Read(t.Context(), path, Query{Follow: func(context.Context) error { return enough }}, goOn),
		"while it waits": Read(cancelled, path, Query{Tail: None, From: w.Position(), Follow: w.News()}, goOn),
	} {
		if !errors.Is(err, enough) {
			t.Errorf("ended %s: %v, want %v", name, err, enough)
		}
	}
	if n != 1 {
		t.Errorf("each was called %d times, want once", n)
	}
	if err := Read(t.Context(), path+"-none", Query{}, goOn); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Read of no log = %v, want %v", err, fs.ErrNotExist)
	}
}

// Without Follow, what comes while Read is at it is not read: a log that grows fast has an end.
func TestReadStops(t *testing.T) {
	w, path := newLog(t, Options{})
	out := w.Stream("out")
	for range 8 {
		fmt.Fprintf(out, "%s\n", strings.Repeat("x", maxContent))
	}
	n := 0
	must(t, Read(t.Context(), path, Query{}, func(Record) error {
		n++
		io.WriteString(out, "more\n")
		return nil
	}))
	if n != 8 {
		t.Errorf("read %d records, want 8", n)
	}
}

// A reader that looks for files while they are renamed may find one twice, and an older one before a newer one.
func TestReadRenamedMeanwhile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	for age, number := range []int{3, 4, 3, 2} {
		var content []byte
		for _, r := range []Record{{Stream: Own, Content: fmt.Appendf(nil, "file %d", number)}, {Stream: "out", Content: fmt.Append(nil, number)}} {
			content = append(content, spell(r)+"\n"...)
		}
		must(t, os.WriteFile(fileName(path, age), content, 0o600))
	}
	if diff := cmp.Diff(read(t, path, Query{}).records, []string{"out F 2", "out F 3", "out F 4"}); diff != "" {
		t.Error(diff)
	}
}

// A file whose beginning is damaged loses that only.
func TestReadDamagedBeginning(t *testing.T) {
	w, path := newLog(t, Options{MaxSize: 4096})
	out := w.Stream("out")
	var said strings.Builder
	for i := range 100 {
		fmt.Fprintf(io.MultiWriter(out, &said), "%d %s\n", i, strings.Repeat("x", 80))
	}
	for _, name := range []string{path, path + ".1", path + ".2"} {
		data, err := os.ReadFile(name)
		must(t, err)
		data[0] = 'x'
		must(t, os.WriteFile(name, data, 0o600))
	}
	if got := read(t, path, Query{}).text; got["out"] != said.String() || got[Own] != "" {
		t.Errorf("%d bytes were read of %d, and %q", len(got["out"]), said.Len(), got[Own])
	}
}

// Followers see every byte once, whatever is rotated under them, as long as it is not removed.
func TestFollowRotation(t *testing.T) {
	const size = 2 << 20
	w, path := newLog(t, Options{MaxSize: 4096, Keep: maxKeep})
	out := w.Stream("out")
	io.WriteString(out, "not seen")
	var followers sync.WaitGroup
	var behind sync.Mutex
	read := make([]int, 2)
	caughtUp := sync.NewCond(&behind)
	from := w.Position()
	said := make([]byte, 0, size)
	for i := range read {
		news := w.News()
		followers.Go(func() {
			var got bytes.Buffer
			err := Read(t.Context(), path, Query{From: from, Follow: news}, func(r Record) error {
				if r.Stream != "out" {
					t.Errorf("follower %d: %s: %s", i, r.Stream, r.Content)
				}
				got.Write(r.Content)
				if !r.Partial {
					got.WriteByte('\n')
				}
				behind.Lock()
				read[i] = got.Len()
				behind.Unlock()
				caughtUp.Signal()
				return nil
			})
			behind.Lock()
			read[i] = 2 * size // nobody need wait for it
			behind.Unlock()
			caughtUp.Signal()
			if err != nil {
				t.Error(err)
			}
			if !bytes.Equal(got.Bytes(), said) {
				t.Errorf("follower %d: %d bytes of %d, or others", i, got.Len(), len(said))
			}
		})
	}
	for i := 0; len(said) < size; i++ {
		p := fmt.Appendf(nil, "%d\n%s", i, bytes.Repeat([]byte{'a' + byte(i%26)}, i%3000))
		said = append(said, p...)
		out.Write(p)
		behind.Lock()
		for len(said)-slices.Min(read) > maxKeep*1024 {
			caughtUp.Wait()
		}
		behind.Unlock()
	}
	must(t, w.Close())
	followers.Wait()
}

// What a file gets after its reader was at the end of it, and before it is rotated, is not missed.
func TestFollowRotatedMeanwhile(t *testing.T) {
	w, path := newLog(t, Options{MaxSize: 4096})
	out := w.Stream("out")
	io.WriteString(out, "before\n")
	steps := []string{"go\n"}
	var got []string
	must(t, Read(t.Context(), path, Query{Follow: func(context.Context) error {
		if len(steps) == 0 {
			return io.EOF
		}
		io.WriteString(out, steps[0])
		steps = steps[1:]
		return nil
	}}, func(r Record) error {
		got = append(got, strings.TrimRight(string(r.Content), "x"))
		if string(r.Content) == "go" {
			io.WriteString(out, "the end of the file\n")
			fmt.Fprintf(out, "the next%s\n", strings.Repeat("x", 3500))
			fmt.Fprintf(out, "the one after%s\n", strings.Repeat("x", 3500))
		}
		return nil
	}))
	if diff := cmp.Diff(got, []string{"before", "go", "the end of the file", "the next", "the one after"}); diff != "" {
		t.Error(diff)
	}
}

// One who falls behind is told so, and goes on with what there is.
func TestFollowTooSlow(t *testing.T) {
	w, path := newLog(t, Options{MaxSize: 4096, Keep: 1})
	out := w.Stream("out")
	io.WriteString(out, "first\n")
	got := reading{text: make(map[string]string)}
	must(t, Read(t.Context(), path, Query{Follow: w.News()}, func(r Record) error {
		got.add(r)
		if string(r.Content) == "first" {
			for i := range 10 {
				fmt.Fprintf(out, "%d%s\n", i, strings.Repeat("x", 3000))
			}
			return w.Close()
		}
		return nil
	}))
	var said []string
	for _, r := range got.records {
		said = append(said, strings.TrimRight(r, "x"))
	}
	want := []string{"out F first", "out F 0", "matchlock F records lost: the log was rotated before they were read", "out F 8", "out F 9"}
	if diff := cmp.Diff(said, want); diff != "" {
		t.Error(diff)
	}
}

// A follower may come before the log does, and may ask for the lines to come only.
func TestFollowFromNothing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	var w *Writer
	steps := []func(){
		func() { w = reopen(t, path, Options{}) },
		func() { io.WriteString(w.Stream("out"), "a") },
		func() { io.WriteString(w.Stream("out"), "b\n") },
		func() { must(t, w.Close(), os.Rename(path, path+".1")) }, // in the midst of a rotation
		func() { w = reopen(t, path, Options{}); io.WriteString(w.Stream("out"), "c\n") },
	}
	follow := func(context.Context) error {
		if len(steps) == 0 {
			return io.EOF
		}
		steps[0]()
		steps = steps[1:]
		return nil
	}
	var got []string
	must(t, Read(t.Context(), path, Query{Tail: None, Follow: follow}, func(r Record) error {
		got = append(got, string(r.Content))
		return nil
	}))
	if diff := cmp.Diff(got, []string{"a", "b", "c"}); diff != "" {
		t.Error(diff)
	}
}

// The rest of a line that Tail leaves out is read when it comes later.
func TestFollowTail(t *testing.T) {
	w, path := newLog(t, Options{})
	io.WriteString(w.Stream("out"), "a\nb")
	var got []string
	must(t, Read(t.Context(), path, Query{Tail: None, Follow: func(context.Context) error {
		io.WriteString(w.Stream("out"), "c\n")
		return io.EOF
	}}, func(r Record) error {
		got = append(got, string(r.Content))
		return nil
	}))
	if diff := cmp.Diff(got, []string{"c"}); diff != "" {
		t.Error(diff)
	}
}

// A record that is written in two goes is read when it is whole; one that is taken back never was.
func TestFollowHalf(t *testing.T) {
	w, path := newLog(t, Options{})
	io.WriteString(w.Stream("out"), "a\n")
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	must(t, err)
	defer f.Close()
	end := w.Position().Offset
	record := string(appendRecord(nil, appendHead(nil, time.Now(), "out"), 'F', []byte("whole")))
	steps := []func(){
		func() { f.WriteString(strings.Replace(record, "whole\n", "taken ba", 1)) },
		func() { must(t, f.Truncate(end)); f.WriteString(record[:40]) },
		func() { f.WriteString(record[40:]) },
	}
	var got []string
	must(t, Read(t.Context(), path, Query{Follow: func(context.Context) error {
		if len(steps) == 0 {
			return io.EOF
		}
		steps[0]()
		steps = steps[1:]
		return nil
	}}, func(r Record) error {
		got = append(got, string(r.Content))
		return nil
	}))
	if diff := cmp.Diff(got, []string{"a", "whole"}); diff != "" {
		t.Error(diff)
	}
}

func FuzzRead(f *testing.F) {
	record := "2026-11-26T15:04:05.123456789Z out P a\n"
	f.Add([]byte(record+"damaged\n"+record), int64(0), 1)
	f.Add([]byte(strings.Replace(record, "out P a", "matchlock F file 1", 1)+record+record[:20]), int64(30), 0)
	f.Fuzz(func(t *testing.T, data []byte, offset int64, tail int) {
		path := filepath.Join(t.TempDir(), "log")
		must(t, os.WriteFile(path, data, 0o600))
		total := 0
		must(t, Read(t.Context(), path, Query{From: Position{1, offset}, Tail: tail}, func(r Record) error {
			total += len(r.Content)
			return nil
		}))
		if total > len(data) {
			t.Errorf("of %d bytes %d were read", len(data), total)
		}
		w, err := Open(path, Options{})
		must(t, err)
		defer w.Close()
		from := w.Position()
		io.WriteString(w.Stream("out"), "b\n")
		if got := read(t, path, Query{From: from}); got.text["out"] != "b\n" {
			t.Errorf("after it %q was written, want %q", got.text["out"], "b\n")
		}
	})
}

func BenchmarkRead(b *testing.B) {
	line := append(bytes.Repeat([]byte("x"), 79), '\n')
	w, path := newLog(b, Options{})
	for range 7 {
		w.Stream("stdout").Write(bytes.Repeat(line, 1<<20/len(line)/2))
	}
	b.SetBytes(w.Position().Offset)
	for b.Loop() {
		must(b, Read(b.Context(), path, Query{}, func(Record) error { return nil }))
	}
}
