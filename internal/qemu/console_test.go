package qemu

import (
	"bytes"
	"io"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"testing/iotest"
	"unicode"

	"github.com/matchlock/matchlock/internal/logs"
)

func TestConsoleLastLines(t *testing.T) {
	tests := map[string]struct{ said, want string }{
		"nothing":     {"\r\n \n", ""},
		"a few lines": {"one\r\ntwo\nthr", "one; two; thr"},
		"the last":    {"1\n2\n3\n4\n5\n6\n", "2; 3; 4; 5; 6"},
		"a panic": {
			"1\n2\n3\nOut of memory: Killed process 1\n[ 4.1] Kernel panic - not syncing: System is deadlocked on memory\nCall Trace:\n a\n b\n c\n d\n",
			"1; 2; 3; Out of memory: Killed process 1; [ 4.1] Kernel panic - not syncing: System is deadlocked on memory",
		},
		"what acts on a terminal": {"\x1b[2Jgone", "\ufffd[2Jgone"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			c, err := openConsole("", nil)
			if err != nil {
				t.Fatal(err)
			}
			c.collect(io.NopCloser(strings.NewReader(test.said)))
			if got := c.lastLines(); got != test.want {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
}

// The log has whole lines, however they come, and all that was said.
func TestConsoleLog(t *testing.T) {
	long := strings.Repeat("x", maxHeld)
	tests := map[string]struct {
		said    string
		records int // at most
	}{
		"lines":              {"one\r\n\ntwo\n", 3},
		"an unfinished line": {"one\ntwo", 2},
		"a long line":        {long + "y\n", 2},
	}
	for name, test := range tests {
		for way, said := range map[string]io.Reader{
			"at once":       strings.NewReader(test.said),
			"byte for byte": iotest.OneByteReader(strings.NewReader(test.said)),
		} {
			t.Run(name+" "+way, func(t *testing.T) {
				path := filepath.Join(t.TempDir(), "log")
				c, err := openConsole(path, nil)
				if err != nil {
					t.Fatal(err)
				}
				c.collect(io.NopCloser(said))
				if err := c.close(); err != nil {
					t.Fatal(err)
				}
				c.collect(io.NopCloser(strings.NewReader("too late\n")))
				if got := c.lastLines(); !strings.HasSuffix(got, "too late") {
					t.Errorf("the last lines are %q", got)
				}
				var got strings.Builder
				records := 0
				err = logs.Read(t.Context(), path, logs.Query{Streams: []string{consoleStream}}, func(r logs.Record) error {
					records++
					got.Write(r.Content)
					if !r.Partial {
						got.WriteByte('\n')
					}
					return nil
				})
				if err != nil {
					t.Fatal(err)
				}
				if got.String() != test.said || records > test.records {
					t.Errorf("the log has %q in %d records, want %q in %d", got.String(), records, test.said, test.records)
				}
			})
		}
	}
}

// A line is found however it comes, from the moment on at which it is awaited, and
// until that is cancelled.
func TestConsoleAwait(t *testing.T) {
	const said = "one\r\ntwo\r\nthree\r\n"
	two := regexp.MustCompile(`(?m)^two\r?$`)
	for way, r := range map[string]func() io.Reader{
		"at once":       func() io.Reader { return strings.NewReader(said) },
		"byte for byte": func() io.Reader { return iotest.OneByteReader(strings.NewReader(said)) },
	} {
		t.Run(way, func(t *testing.T) {
			c, err := openConsole("", nil)
			if err != nil {
				t.Fatal(err)
			}
			speak := func() { c.collect(io.NopCloser(r())) }
			found := func(said <-chan struct{}) bool {
				select {
				case <-said:
					return true
				default:
					return false
				}
			}
			speak()
			late, cancel := c.await(two)
			if found(late) {
				t.Error("found what was said before")
			}
			cancel()
			speak()
			if found(late) {
				t.Error("found what is not awaited any more")
			}
			first, cancel := c.await(two)
			speak()
			speak()
			if !found(first) {
				t.Error("not found")
			}
			cancel()
		})
	}
}

// FuzzConsole has a guest say anything, in two pieces: what is shown of it is short and
// fit for a terminal.
func FuzzConsole(f *testing.F) {
	f.Add([]byte("one\r\ntwo\n[ 4.1] Kernel panic - not syncing: "), []byte("memory\nCall Trace:\n\x1b[2J"))
	f.Add(bytes.Repeat([]byte("x"), consoleTail+1), []byte("\n"))
	f.Fuzz(func(t *testing.T, first, second []byte) {
		c, err := openConsole("", nil)
		if err != nil {
			t.Fatal(err)
		}
		c.collect(io.NopCloser(io.MultiReader(bytes.NewReader(first), bytes.NewReader(second))))
		last := c.lastLines()
		if len(last) > 4*consoleTail || strings.ContainsFunc(last, unicode.IsControl) {
			t.Errorf("%d bytes, %q", len(last), last)
		}
	})
}
