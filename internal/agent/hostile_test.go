package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
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
	"read tree": func(ctx context.Context, c *Client) error {
		return c.ReadTree(ctx, "/f", false, func(_ Node, r io.Reader) error {
			_, err := io.Copy(io.Discard, r)
			return err
		})
	},
	"layer": func(ctx context.Context, c *Client) error {
		r, err := c.ReadLayer(ctx, true)
		if err != nil {
			return err
		}
		defer r.Close()
		_, err = io.Copy(io.Discard, r)
		return err
	},
	"write tree": func(ctx context.Context, c *Client) error {
		return c.WriteTree(ctx, "/f", func(put func(Node, io.Reader) error) error {
			return put(Node{Path: "file", Mode: 0o100644}, strings.NewReader("content"))
		})
	},
}

// node returns a node as a guest sends it.
func node(n Node) string { return string(n.encode()) }

func folder(p string) string { return node(Node{Path: p, Mode: 0o040755}) }

func file(p string, size int64) string { return node(Node{Path: p, Mode: 0o100644, Size: size}) }

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
		"hangs up":              {"exec", nil, "EOF"},
		"exit before start":     {"exec", frames(frameExit, good), "impossible answer"},
		"output before start":   {"exec", frames(frameStdout, "x"), "impossible answer"},
		"started twice":         {"exec", frames(frameStarted, "\x01\x01", frameStarted, "\x01\x01"), "impossible answer"},
		"no pid":                {"exec", frames(frameStarted, ""), "impossible answer"},
		"impossible pid":        {"exec", frames(frameStarted, "\xff\xff\xff\xff\x7f\x01"), "impossible answer"},
		"no exit":               {"exec", frames(frameStarted, "\x01\x01", frameStdout, "x"), "EOF"},
		"half an exit":          {"exec", frames(frameStarted, "\x01\x01", frameExit, good[:1]), "too early"},
		"status 256":            {"exec", frames(frameStarted, "\x01\x01", frameExit, "\x80\x02\x00\x00"), "impossible exit status"},
		"signal without 128":    {"exec", frames(frameStarted, "\x01\x01", frameExit, "\x01\x09\x00"), "impossible exit status"},
		"credit from nowhere":   {"exec", frames(frameStarted, "\x01\x01", frameStdinTaken, "\xff\xff\x7f"), "impossible answer"},
		"unknown frame":         {"exec", frames(frameStarted, "\x01\x01", 200, ""), "impossible answer"},
		"large frame":           {"exec", append(frames(frameStarted, "\x01\x01"), frameStdout, 0, 1, 0, 1), "at most"},
		"failure after start":   {"exec", frames(frameStarted, "\x01\x01", frameFailed, "\x00\x01x"), "x"},
		"malformed failure":     {"exec", frames(frameFailed, "\x00\xff"), "guest's error"},
		"failure for a screen":  {"exec", frames(frameFailed, "\x00\x05\x1b[2J\n"), "\uFFFD[2J\uFFFD"},
		"write: other answer":   {"write", frames(frameData, "x"), "impossible answer"},
		"write: no answer":      {"write", nil, "EOF"},
		"read: no attributes":   {"read", frames(frameData, "x"), "impossible answer"},
		"read: negative size":   {"read", frames(frameInfo, info(-1)), "impossible answer"},
		"read: cut":             {"read", frames(frameInfo, info(9), frameData, "x"), "EOF"},
		"read: more than said":  {"read", frames(frameInfo, info(3), frameData, "1234", frameEnd, ""), "too large"},
		"list: malformed":       {"list", frames(frameEntries, "\x01"), "impossible answer"},
		"list: empty":           {"list", frames(frameEntries, ""), "impossible answer"},
		"list: path":            {"list", frames(frameEntries, entry("../../etc/passwd")), "impossible file name"},
		"list: dots":            {"list", frames(frameEntries, entry("..")), "impossible file name"},
		"list: dot":             {"list", frames(frameEntries, entry(".")), "impossible file name"},
		"list: NUL":             {"list", frames(frameEntries, entry("a\x00b")), "impossible file name"},
		"list: no name":         {"list", frames(frameEntries, entry("")), "impossible file name"},
		"list: long name":       {"list", frames(frameEntries, entry(strings.Repeat("n", 256))), "at most"},
		"list: cut":             {"list", frames(frameEntries, entry("a")), "EOF"},
		"stat: other answer":    {"stat", frames(frameEnd, ""), "impossible answer"},
		"mkdir: other answer":   {"mkdir", frames(frameData, "x"), "impossible answer"},
		"write tree: answer":    {"write tree", frames(frameNode, folder(".")), "impossible answer"},
		"write tree: none":      {"write tree", nil, "EOF"},
		"layer: cut":            {"layer", frames(frameData, "x"), "EOF"},
		"layer: empty data":     {"layer", frames(frameData, "x", frameData, ""), "impossible answer"},
		"layer: other answer":   {"layer", frames(frameNode, folder(".")), "impossible answer"},
		"layer: fails":          {"layer", frames(frameData, "x", frameFailed, "\x00\x01x"), "x"},
		"tree: nothing":         {"read tree", frames(frameEnd, ""), "impossible answer"},
		"tree: no node":         {"read tree", frames(frameData, "x"), "impossible answer"},
		"tree: malformed":       {"read tree", frames(frameNode, "\x01."), "too early"},
		"tree: more":            {"read tree", frames(frameNode, folder(".")+"x"), "after the message"},
		"tree: cut":             {"read tree", frames(frameNode, folder(".")), "EOF"},
		"tree: no root":         {"read tree", frames(frameNode, folder("a")), "impossible answer"},
		"tree: two roots":       {"read tree", frames(frameNode, folder("."), frameNode, folder(".")), `"." after "."`},
		"tree: root after all":  {"read tree", frames(frameNode, folder("."), frameNode, folder("!"), frameNode, folder(".")), `"." after "!"`},
		"tree: dots":            {"read tree", frames(frameNode, folder("."), frameNode, folder("..")), "impossible file name"},
		"tree: dots inside":     {"read tree", frames(frameNode, folder("."), frameNode, folder("a"), frameNode, folder("a/../b")), "impossible file name"},
		"tree: absolute":        {"read tree", frames(frameNode, folder("."), frameNode, folder("/etc")), "impossible file name"},
		"tree: no name":         {"read tree", frames(frameNode, folder("")), "impossible file name"},
		"tree: slash":           {"read tree", frames(frameNode, folder("."), frameNode, folder("a/")), "impossible file name"},
		"tree: NUL":             {"read tree", frames(frameNode, folder("."), frameNode, folder("a\x00b")), "impossible file name"},
		"tree: long name":       {"read tree", frames(frameNode, folder("."), frameNode, folder(strings.Repeat("n", 256))), "impossible file name"},
		"tree: long path":       {"read tree", frames(frameNode, folder("."), frameNode, folder(strings.Repeat("n/", 2100)+"n")), "at most"},
		"tree: deep":            {"read tree", frames(frameNode, folder("."), frameNode, folder(strings.Repeat("n/", 1000)+"n")), "too many folders"},
		"tree: twice":           {"read tree", frames(frameNode, folder("."), frameNode, folder("a"), frameNode, folder("a")), `"a" after "a"`},
		"tree: back":            {"read tree", frames(frameNode, folder("."), frameNode, folder("a"), frameNode, folder("b"), frameNode, folder("a/c")), `"a/c" after "b"`},
		"tree: no parent":       {"read tree", frames(frameNode, folder("."), frameNode, folder("a/b")), `"a/b" after "."`},
		"tree: below a link":    {"read tree", frames(frameNode, folder("."), frameNode, node(Node{Path: "a", Mode: modeSymlink, Target: "/etc"}), frameNode, folder("a/b")), `"a/b" after "a"`},
		"tree: below a file":    {"read tree", frames(frameNode, file(".", 0), frameNodeEnd, "", frameNode, folder("a")), `"a" after "."`},
		"tree: negative size":   {"read tree", frames(frameNode, file(".", -1)), "impossible size"},
		"tree: sized folder":    {"read tree", frames(frameNode, node(Node{Path: ".", Mode: modeDir, Size: 1})), "impossible size"},
		"tree: no content":      {"read tree", frames(frameNode, file(".", 3), frameNode, folder("a")), "impossible answer"},
		"tree: ends in a file":  {"read tree", frames(frameNode, file(".", 3), frameEnd, ""), "impossible answer"},
		"tree: less than said":  {"read tree", frames(frameNode, file(".", 3), frameData, "12", frameNodeEnd, ""), "unexpected EOF"},
		"tree: more than said":  {"read tree", frames(frameNode, file(".", 3), frameData, "1234", frameNodeEnd, ""), "too large"},
		"tree: empty data":      {"read tree", frames(frameNode, file(".", 3), frameData, ""), "impossible answer"},
		"tree: fails in a file": {"read tree", frames(frameNode, file(".", 3), frameData, "1", frameFailed, "\x00\x03bad"), "bad"},
		"tree: no target":       {"read tree", frames(frameNode, node(Node{Path: ".", Mode: modeSymlink})), "target"},
		"tree: target of none":  {"read tree", frames(frameNode, node(Node{Path: ".", Mode: modeRegular, Target: "x"})), "target"},
		"tree: NUL in target":   {"read tree", frames(frameNode, node(Node{Path: ".", Mode: modeSymlink, Target: "x\x00"})), "NUL"},
		"tree: folder is link":  {"read tree", frames(frameNode, folder("."), frameNode, node(Node{Path: "a", Mode: modeDir, Link: "b"})), "impossible link"},
		"tree: link out":        {"read tree", frames(frameNode, folder("."), frameNode, node(Node{Path: "a", Mode: modeRegular, Link: "../b"})), "impossible file name"},
		"tree: link to root":    {"read tree", frames(frameNode, folder("."), frameNode, node(Node{Path: "a", Mode: modeRegular, Link: "."})), "impossible link"},
		"tree: link to none":    {"read tree", frames(frameNode, folder("."), frameNode, node(Node{Path: "a", Mode: modeRegular, Link: "b"})), "impossible link"},
		"tree: link to itself":  {"read tree", frames(frameNode, folder("."), frameNode, node(Node{Path: "a", Mode: modeRegular, Link: "a"})), "impossible link"},
		"tree: link to other":   {"read tree", frames(frameNode, folder("."), frameNode, file("a", 0), frameNodeEnd, "", frameNode, node(Node{Path: "b", Mode: modeRegular, Link: "a"})), "impossible link"},
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
		"output":    {"exec", frames(frameStarted, "\x01\x01"), frames(frameStdout, data)},
		"endless":   {"read", frames(frameInfo, info(0)), frames(frameData, data)},
		"too large": {"read", frames(frameInfo, info(1<<40)), frames(frameData, data)},
		"entries":   {"list", nil, frames(frameEntries, many)},
		"in a tree": {"read tree", frames(frameNode, file(".", 0)), frames(frameData, data)},
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
				if !errors.Is(err, errSilent) || time.Since(start) != answerTime {
					t.Errorf("got %v after %v, want %v after %v", err, time.Since(start), errSilent, answerTime)
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
						b.Write(frames(frameStarted, "\x01\x01"))
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
	f.Add(frames(frameStarted, "\x01\x01", frameStdout, "out", frameStdinTaken, "\x03", frameStderr, "err", frameExit, string(exit.encode())))
	f.Add(frames(frameInfo, info(3), frameData, "123", frameEnd, ""))
	f.Add(frames(frameEntries, entry("a")+entry("b"), frameEnd, ""))
	f.Add(frames(frameFailed, "\x02\x03abc"))
	f.Add(frames(frameEnd, ""))
	f.Add(frames(frameNode, folder("."), frameNode, file("a", 3), frameData, "123", frameNodeEnd, "",
		frameNode, node(Node{Path: "b", Mode: modeSymlink, Target: "/"}), frameEnd, ""))
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

// A guest's tree has an end, in number and in what has to be remembered of it.
func TestEndlessTree(t *testing.T) {
	w := walk{nodes: maxNodes - 1, last: Node{Path: "a", Mode: modeDir}}
	if err := w.step(&Node{Path: "b", Mode: modeDir}); err != nil {
		t.Errorf("the last node: %v", err)
	}
	if err := w.step(&Node{Path: "c", Mode: modeDir}); !errors.Is(err, ErrTooLarge) {
		t.Errorf("one more: %v", err)
	}
	w = walk{nodes: 1, last: Node{Path: ".", Mode: modeDir}}
	err := error(nil)
	for i := 0; err == nil; i++ {
		if i*100 > maxShared {
			t.Fatal("no end")
		}
		err = w.step(&Node{Path: fmt.Sprintf("%0100d", i), Mode: modeRegular, Shared: true})
	}
	if !errors.Is(err, ErrTooLarge) {
		t.Errorf("shared files: %v", err)
	}
}

// FuzzNode: what is taken for a node stays below its tree's root, and means the
// same when it is said again.
func FuzzNode(f *testing.F) {
	f.Add([]byte(folder(".")))
	f.Add([]byte(file("a/b", 7)))
	f.Add([]byte(node(Node{Path: "a", Mode: modeSymlink, Target: "../..", UID: 1, GID: 1 << 31, ModTime: time.Unix(1, 2)})))
	f.Add([]byte(node(Node{Path: "a", Mode: modeRegular, Link: "b"})))
	f.Fuzz(func(t *testing.T, payload []byte) {
		n, err := decodeNode(payload)
		if err != nil {
			return
		}
		again, err := decodeNode(n.encode())
		if err != nil || again != n {
			t.Errorf("%+v became %+v, %v", n, again, err)
		}
		for _, p := range []string{n.Path, n.Link} {
			if p != "" && (!filepath.IsLocal(p) || filepath.Clean(p) != p) {
				t.Errorf("path %q", p)
			}
		}
	})
}
