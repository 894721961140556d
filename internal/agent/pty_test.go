//go:build linux

package agent

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/matchlock/matchlock/api"
)

// interact runs a command on a terminal of 24 × 80 with a given input.
func interact(t *testing.T, c *pair, command, stdin string) (status int, output string) {
	t.Helper()
	var stdout bytes.Buffer
	status, err := c.ExecInteractive(t.Context(), command, nil, 24, 80, strings.NewReader(stdin), &stdout, nil)
	if err != nil {
		t.Fatal(err)
	}
	return status, stdout.String()
}

func TestTerminal(t *testing.T) {
	c := newPair(t)
	for name, test := range map[string]struct {
		command, stdin string
		status         int
		output         string
	}{
		"is one":           {"tty >/dev/null && test -t 0 -a -t 1 -a -t 2; echo $?", "", 0, "0\r\n"},
		"size":             {"stty size", "", 0, "24 80\r\n"},
		"status":           {"exit 7", "", 7, ""},
		"signal":           {"kill -KILL $$", "", 137, ""},
		"TERM":             {"echo $TERM", "", 0, "xterm\r\n"},
		"controlling":      {"echo x >/dev/tty", "", 0, "x\r\n"},
		"end of input":     {"stty -echo; echo on; cat; echo end", "", 0, "on\r\nend\r\n"},
		"whole lines":      {"stty -echo; echo on; sleep 0.1; cat; echo end", "a\nb\n", 0, ""},
		"unfinished line":  {"stty -echo; echo on; cat; echo end", "abc", 0, ""},
		"not found":        {"exec /no/such", "", 127, ""},
		"stderr is stdout": {"echo err >&2", "", 0, "err\r\n"},
	} {
		t.Run(name, func(t *testing.T) {
			status, output := interact(t, c, test.command, test.stdin)
			if status != test.status {
				t.Errorf("status %d, want %d; output %q", status, test.status, output)
			}
			if test.output != "" && output != test.output && output != "^D\b\b"+test.output {
				t.Errorf("output %q, want %q", output, test.output)
			}
			if strings.HasSuffix(test.command, "echo end") && !strings.HasSuffix(output, "end\r\n") {
				t.Errorf("output %q, want the end", output)
			}
		})
	}
	t.Run("no such program", func(t *testing.T) {
		var stdout bytes.Buffer
		status, err := c.ExecInteractive(t.Context(), "", &api.ExecOptions{Args: []string{"no-such"}}, 0, 0, nil, &stdout, nil)
		if want := "matchlock: exec: \"no-such\": not found in PATH\r\n"; err != nil || status != 127 || stdout.String() != want {
			t.Errorf("got %d, %q, %v", status, stdout.String(), err)
		}
	})
}

func TestInterrupt(t *testing.T) {
	c := newPair(t)
	r, w := io.Pipe()
	keys, typed := io.Pipe()
	result := make(chan int, 1)
	go func() {
		status, err := c.ExecInteractive(t.Context(), "trap 'echo caught; exit 3' INT; echo ready; while :; do sleep 0.05; done", nil, 24, 80, keys, w, nil)
		if err != nil {
			t.Error(err)
		}
		w.Close()
		result <- status
	}()
	expect(t, r, "ready")
	io.WriteString(typed, "\x03")
	expect(t, r, "^Ccaught")
	go io.Copy(io.Discard, r)
	if status := <-result; status != 3 {
		t.Errorf("status %d, want 3", status)
	}
	typed.Close()
}

func TestTerminalsLastByte(t *testing.T) {
	c := newPair(t)
	for i := range 30 {
		// A child keeps the terminal open, so that its end does not tell of the end.
		command := "head -c 20000 /dev/zero | tr '\\0' x; echo last"
		if i%2 == 0 {
			command = "(trap '' HUP; exec sleep 0.3) & " + command
		}
		_, output := interact(t, c, command, "")
		if n := strings.Count(output, "x"); n != 20000 || !strings.HasSuffix(output, "xlast\r\n") {
			t.Fatalf("run %d: %d of 20000 bytes, and the end is %q", i, n, output[max(0, len(output)-20):])
		}
	}
}

// late is a terminal whose last bytes come after it was said to be closed.
type late struct{ closed, read bool }

func (l *late) Read(p []byte) (int, error) {
	if !l.closed || l.read {
		l.closed = true
		return 0, &os.PathError{Op: "read", Path: "terminal", Err: syscall.EIO}
	}
	l.read = true
	return copy(p, "last"), nil
}

func TestTerminalSaysMoreOnceClosed(t *testing.T) {
	var l late
	p := make([]byte, 10)
	if n, err := readOutput(&l, p); string(p[:n]) != "last" || err != nil {
		t.Errorf("read %q, %v", p[:n], err)
	}
	if n, err := readOutput(&l, p); n != 0 || !errors.Is(err, syscall.EIO) {
		t.Errorf("at the end: read %d bytes, %v", n, err)
	}
}

func TestResize(t *testing.T) {
	c := newPair(t)
	sizes := make(chan [2]uint16)
	r, w := io.Pipe()
	stdin, typed := io.Pipe()
	defer typed.Close()
	result := make(chan error, 1)
	go func() {
		_, err := c.ExecInteractive(t.Context(), "trap 'stty size' WINCH; echo ready; while :; do sleep 0.05; done",
			&api.ExecOptions{}, 10, 20, stdin, w, sizes)
		w.Close()
		result <- err
	}()
	expect(t, r, "ready")
	sizes <- [2]uint16{30, 100}
	expect(t, r, "30 100")
	sizes <- [2]uint16{31, 101}
	expect(t, r, "31 101")
	r.Close() // the terminal is gone: the command ends with it
	sizes <- [2]uint16{32, 102}
	close(sizes) // is fine
	if err := <-result; err == nil {
		t.Error("the writer's error is lost")
	}
}

// expect reads until text has come.
func expect(t *testing.T, r io.Reader, text string) {
	t.Helper()
	var got []byte
	buf := make([]byte, 100)
	for !bytes.Contains(got, []byte(text)) {
		n, err := r.Read(buf)
		if err != nil {
			t.Fatalf("got %q, %v; want %q", got, err, text)
		}
		got = append(got, buf[:n]...)
	}
}

// A shell ignores SIGTERM on a terminal, and puts its jobs into groups of their
// own; still all of it ends.
func TestTerminalCancelled(t *testing.T) {
	c := newPair(t)
	ctx, cancel := context.WithCancel(t.Context())
	r, w := io.Pipe()
	stdin, typed := io.Pipe()
	defer typed.Close()
	result := make(chan error, 1)
	go func() {
		_, err := c.ExecInteractive(ctx, "set -m; trap '' TERM; sh -c 'echo pid $$; exec sleep 1000'", nil, 24, 80, stdin, w, nil)
		w.Close()
		result <- err
	}()
	var output []byte
	buf := make([]byte, 100)
	for !bytes.Contains(output, []byte("\r\n")) {
		n, err := r.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		output = append(output, buf[:n]...)
	}
	pid := strings.TrimPrefix(string(output), "pid ")
	go io.Copy(io.Discard, r)
	cancel()
	if err := <-result; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	waitFor(t, "the job's end", func() bool { return gone(pid) })
}

func TestTerminalsHostDisappears(t *testing.T) {
	c := newPair(t)
	r, w := io.Pipe()
	s, err := c.Start(t.Context(), Command{Args: Shell("echo $$; exec sleep 1000"), TTY: true, Stdin: true, Stdout: w})
	if err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 100)
	n, _ := r.Read(buf)
	c.host.Close()
	s.Wait()
	waitFor(t, "the end", func() bool { return gone(string(buf[:n])) })
}

// A command that closes its standard streams before it ends is not hung up.
func TestTerminalClosedEarly(t *testing.T) {
	c := newPair(t)
	for range 5 {
		s, err := c.Start(t.Context(), Command{Args: Shell("exec <&- >&- 2>&-; sleep 0.1; exit 7"), TTY: true})
		if err != nil {
			t.Fatal(err)
		}
		if exit, err := s.Wait(); err != nil || exit.Code != 7 {
			t.Errorf("got %+v, %v; want status 7", exit, err)
		}
	}
}
