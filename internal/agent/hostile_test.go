package agent

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/matchlock/matchlock/api"
	"github.com/matchlock/matchlock/internal/wire"
)

// saying returns a client whose guest says something, whatever it is asked, and
// then hangs up.
func saying(answer io.Reader) *Client {
	return NewClient(func(context.Context, uint32) (net.Conn, error) { return &script{answer: answer}, nil })
}

// frames joins frames, each a kind and its payload.
func frames(parts ...any) []byte {
	var b bytes.Buffer
	w := wire.NewFrameWriter(&b)
	for i := 0; i < len(parts); i += 2 {
		w.WriteFrame(byte(parts[i].(int)), []byte(parts[i+1].(string)))
	}
	return b.Bytes()
}

// requests are all that a client can ask; each returns its error.
var requests = map[string]func(context.Context, *Client) error{
	"exec": func(ctx context.Context, c *Client) error {
		_, err := c.Exec(ctx, "true", &api.ExecOptions{Stdin: strings.NewReader("input")})
		return err
	},
	"interactive": func(ctx context.Context, c *Client) error {
		_, err := c.ExecInteractive(ctx, "true", nil, 1, 1, nil, io.Discard, nil)
		return err
	},
	"write": func(ctx context.Context, c *Client) error { return c.WriteFile(ctx, "/f", []byte("content"), 0) },
	"read":  func(ctx context.Context, c *Client) error { _, err := c.ReadFile(ctx, "/f"); return err },
	"list":  func(ctx context.Context, c *Client) error { _, err := c.ListFiles(ctx, "/f"); return err },
	"stat":  func(ctx context.Context, c *Client) error { _, err := c.Stat(ctx, "/f"); return err },
	"mkdir": func(ctx context.Context, c *Client) error { return c.MkdirAll(ctx, "/f", 0o755) },
}

func info(size int64) string {
	var e wire.Encoder
	encodeAttributes(&e, size, 0o100644, 0, 0)
	return string(e.Encoded())
}

func entry(name string) string {
	var e wire.Encoder
	e.String(name)
	encodeAttributes(&e, 0, 0o100644, 0, 0)
	return string(e.Encoded())
}

func TestHostileGuest(t *testing.T) {
	exit := Exit{Code: 1, Duration: 1}
	good := string(exit.encode())
	for name, test := range map[string]struct {
		request string
		answer  []byte
		want    string
	}{
		"hangs up":             {"exec", nil, "EOF"},
		"exit before start":    {"exec", frames(frameExit, good), "impossible answer"},
		"output before start":  {"exec", frames(frameStdout, "x"), "impossible answer"},
		"started twice":        {"exec", frames(frameStarted, "\x01", frameStarted, "\x01"), "impossible answer"},
		"no pid":               {"exec", frames(frameStarted, ""), "impossible answer"},
		"impossible pid":       {"exec", frames(frameStarted, "\xff\xff\xff\xff\x7f"), "impossible answer"},
		"no exit":              {"exec", frames(frameStarted, "\x01", frameStdout, "x"), "EOF"},
		"half an exit":         {"exec", frames(frameStarted, "\x01", frameExit, good[:1]), "too early"},
		"status 256":           {"exec", frames(frameStarted, "\x01", frameExit, "\x80\x02\x00\x00"), "impossible exit status"},
		"signal without 128":   {"exec", frames(frameStarted, "\x01", frameExit, "\x01\x09\x00"), "impossible exit status"},
		"credit from nowhere":  {"exec", frames(frameStarted, "\x01", frameStdinTaken, "\xff\xff\x7f"), "impossible answer"},
		"unknown frame":        {"exec", frames(frameStarted, "\x01", 200, ""), "impossible answer"},
		"large frame":          {"exec", append(frames(frameStarted, "\x01"), frameStdout, 0, 1, 0, 1), "at most"},
		"failure after start":  {"exec", frames(frameStarted, "\x01", frameFailed, "\x00\x01x"), "x"},
		"malformed failure":    {"exec", frames(frameFailed, "\x00\xff"), "guest's error"},
		"failure for a screen": {"exec", frames(frameFailed, "\x00\x05\x1b[2J\n"), "\uFFFD[2J\uFFFD"},
		"write: other answer":  {"write", frames(frameData, "x"), "impossible answer"},
		"write: no answer":     {"write", nil, "EOF"},
		"read: no attributes":  {"read", frames(frameData, "x"), "impossible answer"},
		"read: negative size":  {"read", frames(frameInfo, info(-1)), "impossible answer"},
		"read: cut":            {"read", frames(frameInfo, info(9), frameData, "x"), "EOF"},
		"read: more than said": {"read", frames(frameInfo, info(3), frameData, "1234", frameEnd, ""), "too large"},
		"list: malformed":      {"list", frames(frameEntries, "\x01"), "impossible answer"},
		"list: empty":          {"list", frames(frameEntries, ""), "impossible answer"},
		"list: path":           {"list", frames(frameEntries, entry("../../etc/passwd")), "impossible file name"},
		"list: dots":           {"list", frames(frameEntries, entry("..")), "impossible file name"},
		"list: dot":            {"list", frames(frameEntries, entry(".")), "impossible file name"},
		"list: NUL":            {"list", frames(frameEntries, entry("a\x00b")), "impossible file name"},
		"list: no name":        {"list", frames(frameEntries, entry("")), "impossible file name"},
		"list: long name":      {"list", frames(frameEntries, entry(strings.Repeat("n", 256))), "at most"},
		"list: cut":            {"list", frames(frameEntries, entry("a")), "EOF"},
		"stat: other answer":   {"stat", frames(frameEnd, ""), "impossible answer"},
		"mkdir: other answer":  {"mkdir", frames(frameData, "x"), "impossible answer"},
	} {
		t.Run(name, func(t *testing.T) {
			err := requests[test.request](t.Context(), saying(bytes.NewReader(test.answer)))
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %q", err, test.want)
			}
			if errors.Is(err, io.EOF) {
				t.Errorf("%v can be taken for the end of a file", err)
			}
		})
	}
}

// repeat says one thing again and again.
type repeat struct {
	first, again []byte
}

func (r *repeat) Read(p []byte) (n int, err error) {
	for n < len(p) {
		if len(r.first) == 0 {
			r.first = r.again
		}
		m := copy(p[n:], r.first)
		r.first = r.first[m:]
		n += m
	}
	return n, nil
}

func TestEndlessAnswers(t *testing.T) {
	data := strings.Repeat("x", 60_000)
	many := strings.Repeat(entry("n"), 3000)
	for name, test := range map[string]struct {
		request      string
		first, again []byte
	}{
		"output":    {"exec", frames(frameStarted, "\x01"), frames(frameStdout, data)},
		"endless":   {"read", frames(frameInfo, info(0)), frames(frameData, data)},
		"too large": {"read", frames(frameInfo, info(1<<40)), frames(frameData, data)},
		"entries":   {"list", nil, frames(frameEntries, many)},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			err := requests[test.request](ctx, saying(&repeat{first: test.first, again: test.again}))
			if !errors.Is(err, ErrTooLarge) {
				t.Errorf("got %v, want ErrTooLarge", err)
			}
		})
	}
}

// A guest that takes every request and says nothing costs answerTime.
func TestSilentGuest(t *testing.T) {
	for name, request := range requests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := NewClient(func(context.Context, uint32) (net.Conn, error) {
					a, b := net.Pipe()
					go io.Copy(io.Discard, b)
					return a, nil
				})
				start := time.Now()
				err := request(t.Context(), c)
				if err == nil || time.Since(start) != answerTime {
					t.Errorf("got %v after %v, want an error after %v", err, time.Since(start), answerTime)
				}
			})
		})
	}
}

// So does one that does not even take the request, or the connection.
func TestDeafGuest(t *testing.T) {
	for name, request := range requests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				deaf := NewClient(func(context.Context, uint32) (net.Conn, error) {
					a, _ := net.Pipe()
					return a, nil
				})
				absent := NewClient(func(ctx context.Context, _ uint32) (net.Conn, error) {
					<-ctx.Done()
					return nil, context.Cause(ctx)
				})
				for _, c := range []*Client{deaf, absent} {
					start := time.Now()
					err := request(t.Context(), c)
					if err == nil || time.Since(start) > 2*answerTime {
						t.Errorf("got %v after %v", err, time.Since(start))
					}
				}
			})
		})
	}
}

// A guest that does not end a cancelled command: the call returns nonetheless.
func TestCancelUnheard(t *testing.T) {
	for name, drain := range map[string]bool{"says nothing": true, "takes nothing": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := NewClient(func(context.Context, uint32) (net.Conn, error) {
					a, b := net.Pipe()
					go func() {
						wire.NewFrameReader(b).Next(wire.MaxRequest)
						b.Write(frames(frameStarted, "\x01"))
						if drain {
							io.Copy(io.Discard, b)
						}
					}()
					return a, nil
				})
				cause := errors.New("enough")
				ctx, cancel := context.WithTimeoutCause(t.Context(), time.Minute, cause)
				defer cancel()
				start := time.Now()
				_, err := c.Exec(ctx, "true", nil)
				if !errors.Is(err, cause) || time.Since(start) > time.Minute+killGrace+waitAfterKill {
					t.Errorf("got %v after %v", err, time.Since(start))
				}
			})
		})
	}
}

// FuzzClient: whatever a guest says, every request ends.
func FuzzClient(f *testing.F) {
	exit := Exit{Code: 3, Duration: 5}
	f.Add(frames(frameStarted, "\x01", frameStdout, "out", frameStdinTaken, "\x03", frameStderr, "err", frameExit, string(exit.encode())))
	f.Add(frames(frameInfo, info(3), frameData, "123", frameEnd, ""))
	f.Add(frames(frameEntries, entry("a")+entry("b"), frameEnd, ""))
	f.Add(frames(frameFailed, "\x02\x03abc"))
	f.Add(frames(frameEnd, ""))
	f.Fuzz(func(t *testing.T, answer []byte) {
		for _, request := range requests {
			request(t.Context(), saying(bytes.NewReader(answer)))
		}
	})
}

// FuzzExecRequest: what a server has understood means the same when it is said
// again, and can be handed to execve.
func FuzzExecRequest(f *testing.F) {
	req := execRequest{args: []string{"a"}, dir: "/", env: map[string]string{"A": "B"}, user: "u", tty: true, rows: 3, cols: 4}
	f.Add(req.encode())
	f.Fuzz(func(t *testing.T, payload []byte) {
		req, err := decodeExecRequest(payload)
		if err != nil {
			return
		}
		again, err := decodeExecRequest(req.encode())
		if err != nil || !bytes.Equal(again.encode(), req.encode()) {
			t.Errorf("%+v became %+v, %v", req, again, err)
		}
		for _, arg := range req.args {
			if strings.Contains(arg, "\x00") {
				t.Errorf("argument %q", arg)
			}
		}
	})
}
