package qemu

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const greeting = `{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": "Debian 1:7.2"}, "capabilities": ["oob"]}}`

// unixPair returns both ends of a connected stream socket.
func unixPair(t testing.TB) (a, b *net.UnixConn) {
	t.Helper()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	var ends [2]*net.UnixConn
	for i, fd := range fds {
		syscall.CloseOnExec(fd)
		f := os.NewFile(uintptr(fd), "socketpair")
		conn, err := net.FileConn(f)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		ends[i] = conn.(*net.UnixConn)
	}
	return ends[0], ends[1]
}

// A peer plays QEMU's part, line by line.
type peer struct {
	t     testing.TB
	conn  *net.UnixConn
	lines *bufio.Reader
}

type command struct {
	Execute   string         `json:"execute"`
	Arguments map[string]any `json:"arguments"`
	ID        uint64         `json:"id"`
}

func (p *peer) say(format string, args ...any) {
	p.t.Helper()
	if _, err := fmt.Fprintf(p.conn, format+"\r\n", args...); err != nil {
		p.t.Error(err)
	}
}

func (p *peer) hear() (c command) {
	p.t.Helper()
	line, err := p.lines.ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, &c)
	}
	if err != nil {
		p.t.Error(err)
	}
	return c
}

// connect returns a client that has negotiated with a peer.
func connect(t testing.TB) (*qmp, *peer) {
	t.Helper()
	ours, theirs := unixPair(t)
	p := &peer{t, theirs, bufio.NewReader(theirs)}
	negotiated := make(chan struct{})
	go func() {
		defer close(negotiated)
		p.say(greeting)
		c := p.hear()
		if c.Execute != "qmp_capabilities" {
			t.Errorf("first command is %q", c.Execute)
		}
		p.say(`{"return": {}, "id": %d}`, c.ID)
	}()
	q, err := newQMP(t.Context(), ours)
	<-negotiated
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { q.Close() })
	return q, p
}

// call executes a command in the background.
func call(ctx context.Context, q *qmp, command string, result any) <-chan error {
	ended := make(chan error, 1)
	go func() { ended <- q.Execute(ctx, command, nil, nil, result) }()
	return ended
}

func TestQMPVersion(t *testing.T) {
	q, _ := connect(t)
	var want qmpVersion
	want.QEMU.Major, want.QEMU.Minor, want.QEMU.Micro = 7, 2, 22
	want.Package = "Debian 1:7.2"
	if diff := cmp.Diff(q.version, want); diff != "" {
		t.Error(diff)
	}
}

func TestQMPExecute(t *testing.T) {
	q, p := connect(t)
	ended := make(chan error, 1)
	var result struct{ Enabled bool }
	go func() {
		ended <- q.Execute(t.Context(), "set", map[string]any{"name": "x", "size": 3}, nil, &result)
	}()
	c := p.hear()
	want := command{"set", map[string]any{"name": "x", "size": 3.0}, c.ID}
	if diff := cmp.Diff(c, want); diff != "" {
		t.Error(diff)
	}
	p.say(`{"return": {"enabled": true}, "id": %d}`, c.ID)
	if err := <-ended; err != nil || !result.Enabled {
		t.Errorf("got %+v, %v", result, err)
	}
}

func TestQMPAnswersFindTheirCallers(t *testing.T) {
	q, p := connect(t)
	var results [8]int
	var ended []<-chan error
	ids := map[string]uint64{}
	for i := range results {
		ended = append(ended, call(t.Context(), q, fmt.Sprintf("ask-%d", i), &results[i]))
		c := p.hear()
		ids[c.Execute] = c.ID
	}
	for i := range results { // last first
		n := len(results) - 1 - i
		p.say(`{"return": %d, "id": %d}`, n, ids[fmt.Sprintf("ask-%d", n)])
	}
	for i, e := range ended {
		if err := <-e; err != nil || results[i] != i {
			t.Errorf("ask-%d: got %d, %v", i, results[i], err)
		}
	}
}

func TestQMPRefusal(t *testing.T) {
	q, p := connect(t)
	ended := call(t.Context(), q, "nope", nil)
	p.say(`{"id": %d, "error": {"class": "CommandNotFound", "desc": "no \u001b[31m%s"}}`, p.hear().ID, strings.Repeat("x", 2*maxQMPDesc))
	err := <-ended
	var refusal *qmpError
	if !errors.As(err, &refusal) {
		t.Fatalf("got %v", err)
	}
	if refusal.Class != "CommandNotFound" || !strings.HasPrefix(refusal.Desc, "no \uFFFD[31mxxx") || len(refusal.Desc) > maxQMPDesc+8 {
		t.Errorf("got %q, %d bytes of %.20q", refusal.Class, len(refusal.Desc), refusal.Desc)
	}
	if !strings.HasPrefix(err.Error(), "qmp nope: CommandNotFound: no ") {
		t.Errorf("got %.80q", err)
	}
}

func TestQMPPassesDescriptor(t *testing.T) {
	q, p := connect(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	ended := make(chan error, 1)
	go func() { ended <- q.Execute(t.Context(), "getfd", map[string]string{"fdname": "state"}, w, nil) }()

	line, oob := make([]byte, 1024), make([]byte, syscall.CmsgSpace(4))
	n, oobn, _, _, err := p.conn.ReadMsgUnix(line, oob)
	if err != nil {
		t.Fatal(err)
	}
	messages, err := syscall.ParseSocketControlMessage(oob[:oobn])
	if err != nil || len(messages) != 1 {
		t.Fatalf("%d control messages, %v", len(messages), err)
	}
	fds, err := syscall.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		t.Fatalf("%d descriptors, %v", len(fds), err)
	}
	passed := os.NewFile(uintptr(fds[0]), "passed")
	defer passed.Close()
	var c command
	if err := json.Unmarshal(line[:n], &c); err != nil {
		t.Fatal(err)
	}
	p.say(`{"return": {}, "id": %d}`, c.ID)
	if err := <-ended; err != nil {
		t.Fatal(err)
	}

	if _, err := passed.WriteString("through the copy"); err != nil {
		t.Fatal(err)
	}
	passed.Close()
	if err := w.Close(); err != nil { // still ours
		t.Fatal(err)
	}
	if got, err := io.ReadAll(r); err != nil || string(got) != "through the copy" {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestQMPClosedFileSpoilsOnlyItsCommand(t *testing.T) {
	q, p := connect(t)
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	if err := q.Execute(t.Context(), "getfd", nil, f, nil); err == nil || errors.Is(err, errQMPEnded) {
		t.Errorf("got %v", err)
	}
	ended := call(t.Context(), q, "next", nil)
	p.say(`{"return": {}, "id": %d}`, p.hear().ID)
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestQMPEvents(t *testing.T) {
	q, p := connect(t)
	events, cancel := q.Subscribe("STOP", "SHUTDOWN")
	p.say(`{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "RESUME"}`)
	p.say(`{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "STOP"}`)
	p.say(`{"event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-reset"}}`)
	got := []qmpEvent{<-events, <-events}
	want := []qmpEvent{{Name: "STOP"}, {Name: "SHUTDOWN", Data: json.RawMessage(`{"guest": true, "reason": "guest-reset"}`)}}
	if diff := cmp.Diff(got, want); diff != "" {
		t.Error(diff)
	}
	cancel()
	if e, ok := <-events; ok {
		t.Errorf("%v after cancel", e)
	}
	cancel() // harmless
}

func TestQMPSlowSubscriberLosesTheOldest(t *testing.T) {
	q, p := connect(t)
	events, cancel := q.Subscribe("TICK")
	defer cancel()
	const said = 3 * eventBacklog
	for i := range said {
		p.say(`{"event": "TICK", "data": %d}`, i)
	}
	// The answer comes after the events: the reader got past them.
	ended := call(t.Context(), q, "sync", nil)
	p.say(`{"return": {}, "id": %d}`, p.hear().ID)
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	for i := said - eventBacklog; i < said; i++ {
		if e := <-events; string(e.Data) != fmt.Sprint(i) {
			t.Errorf("got %s, want %d", e.Data, i)
		}
	}
}

func TestQMPEndIsNoticedByAll(t *testing.T) {
	q, p := connect(t)
	events, cancel := q.Subscribe("STOP")
	defer cancel()
	var ended []<-chan error
	for range 5 {
		ended = append(ended, call(t.Context(), q, "wait", nil))
		p.hear()
	}
	p.conn.Close()
	for _, e := range ended {
		if err := <-e; !errors.Is(err, errQMPEnded) || !errors.Is(err, io.EOF) {
			t.Errorf("waiting call: got %v", err)
		}
	}
	if _, ok := <-events; ok {
		t.Error("an event after the end")
	}
	<-q.Done()
	if err := q.Err(); !errors.Is(err, errQMPEnded) {
		t.Errorf("Err: got %v", err)
	}
	if err := q.Execute(t.Context(), "late", nil, nil, nil); !errors.Is(err, errQMPEnded) {
		t.Errorf("later call: got %v", err)
	}
	late, _ := q.Subscribe("STOP")
	if _, ok := <-late; ok {
		t.Error("an event for a late subscriber")
	}
}

func TestQMPAnswerBeforeEndCounts(t *testing.T) {
	q, p := connect(t)
	for range 100 { // the end races with the answer
		ended := call(t.Context(), q, "quit", nil)
		p.say(`{"return": {}, "id": %d}`, p.hear().ID)
		p.conn.Close()
		if err := <-ended; err != nil {
			t.Fatal(err)
		}
		q, p = connect(t)
	}
}

func TestQMPContext(t *testing.T) {
	q, p := connect(t)
	ctx, cancel := context.WithCancel(t.Context())
	ended := call(ctx, q, "slow", nil)
	slow := p.hear()
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) || errors.Is(err, errQMPEnded) {
		t.Errorf("got %v", err)
	}
	var result string
	ended = call(t.Context(), q, "next", &result)
	next := p.hear()
	p.say(`{"return": "of slow", "id": %d}`, slow.ID) // too late, for nobody
	p.say(`{"return": "of next", "id": %d}`, next.ID)
	if err := <-ended; err != nil || result != "of next" {
		t.Errorf("got %q, %v", result, err)
	}
}

// A QEMU that reads nothing holds up a call until its context ends, and Close
// not at all.
func TestQMPDeafPeer(t *testing.T) {
	q, _ := connect(t)
	ctx, cancel := context.WithCancel(t.Context())
	flood := make(chan error, 1)
	go func() {
		flood <- q.Execute(ctx, "big", strings.Repeat("x", 8<<20), nil, nil)
	}()
	queued := call(ctx, q, "queued", nil)
	cancel()
	for _, ended := range []<-chan error{flood, queued} {
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
	}
	q.Close()
	q.Close()
	if err := q.Err(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Err: got %v", err)
	}
}

func TestQMPBrokenProtocolEndsIt(t *testing.T) {
	tests := map[string]string{
		"no JSON":              `hello`,
		"no object":            `[1]`,
		"nothing known":        `{"id": 2, "x": 1}`,
		"answer without id":    `{"return": {}}`,
		"error without id":     `{"error": {"class": "GenericError", "desc": "JSON parse error"}}`,
		"id of another type":   `{"return": {}, "id": "two"}`,
		"negative id":          `{"return": {}, "id": -1}`,
		"event without a name": `{"event": "", "data": {}}`,
		"event too long":       `{"event": "X", "data": "` + strings.Repeat("x", maxQMPEvent) + `"}`,
		"line too long":        `{"return": "` + strings.Repeat("x", maxQMPLine) + `", "id": 2}`,
		"nested too deep":      strings.Repeat(`[`, 20000),
	}
	for name, line := range tests {
		t.Run(name, func(t *testing.T) {
			q, p := connect(t)
			ended := call(t.Context(), q, "wait", nil)
			p.hear()
			// The client may hang up before it has all of the line.
			io.WriteString(p.conn, line+"\n")
			if err := <-ended; !errors.Is(err, errQMPEnded) || errors.Is(err, io.EOF) {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestQMPNoGreeting(t *testing.T) {
	tests := map[string]struct {
		says string
		want error
	}{
		"silence":      {"", context.Canceled},
		"hang-up":      {"-", io.EOF},
		"an answer":    {`{"return": {}, "id": 1}` + "\n", errQMPEnded},
		"half of it":   {greeting[:40] + "-", errQMPEnded},
		"not in JSON":  {"QMP\n", errQMPEnded},
		"then silence": {greeting + "\n", context.Canceled},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			ours, theirs := unixPair(t)
			says, hangUp := strings.CutSuffix(test.says, "-")
			if _, err := io.WriteString(theirs, says); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			if hangUp {
				theirs.Close()
			} else if test.want == context.Canceled {
				cancel()
			}
			if _, err := newQMP(ctx, ours); !errors.Is(err, test.want) {
				t.Errorf("got %v, want %v", err, test.want)
			}
			if _, err := ours.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
				t.Errorf("the connection is still open: %v", err)
			}
		})
	}
}

func TestQMPRealQEMU(t *testing.T) {
	if os.Getenv("MATCHLOCK_TEST_VM") == "" {
		t.Skip("runs QEMU: set MATCHLOCK_TEST_VM=1 (make test does)")
	}
	path, err := findQEMU()
	if err != nil {
		t.Fatal(err)
	}
	text, err := checkVersion(t.Context(), path, "")
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs := unixPair(t)
	inherited, err := theirs.File()
	if err != nil {
		t.Fatal(err)
	}
	theirs.Close()
	cmd := exec.CommandContext(t.Context(), path, "-no-user-config", "-nodefaults", "-M", "none", "-S", "-display", "none",
		"-chardev", "socket,id=q,fd=3", "-mon", "chardev=q,mode=control")
	cmd.ExtraFiles = []*os.File{inherited}
	cmd.Stdout, cmd.Stderr = t.Output(), t.Output()
	err = cmd.Start()
	inherited.Close()
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := cmd.Wait(); err != nil {
			t.Errorf("QEMU: %v", err)
		}
	}()
	q, err := newQMP(t.Context(), ours)
	if err != nil {
		cmd.Process.Kill()
		t.Fatal(err)
	}
	defer q.Close()

	var v qmpVersion
	if err := q.Execute(t.Context(), "query-version", nil, nil, &v); err != nil || v != q.version {
		t.Errorf("got %+v, %v; the greeting said %+v", v, err, q.version)
	}
	if want := fmt.Sprintf("%d.%d.%d", v.QEMU.Major, v.QEMU.Minor, v.QEMU.Micro); !strings.HasPrefix(text.Text, want) {
		t.Errorf("--version says %q, QMP %s", text.Text, want)
	}
	var refusal *qmpError
	if err := q.Execute(t.Context(), "no-such", nil, nil, nil); !errors.As(err, &refusal) || refusal.Class != "CommandNotFound" {
		t.Errorf("no-such: got %v", err)
	}

	// A descriptor is taken from the message that names it.
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	name := map[string]string{"fdname": "null"}
	if err := q.Execute(t.Context(), "getfd", name, null, nil); err != nil {
		t.Error(err)
	}
	if err := q.Execute(t.Context(), "getfd", name, nil, nil); !errors.As(err, &refusal) {
		t.Errorf("getfd without a descriptor: got %v", err)
	}
	if err := q.Execute(t.Context(), "closefd", name, nil, nil); err != nil {
		t.Error(err)
	}

	events, cancel := q.Subscribe("SHUTDOWN")
	defer cancel()
	if err := q.Execute(t.Context(), "quit", nil, nil, nil); err != nil {
		t.Error(err)
	}
	if e := <-events; !bytes.Contains(e.Data, []byte(`"host-qmp-quit"`)) {
		t.Errorf("got event %q with %s", e.Name, e.Data)
	}
	<-q.Done()
}

// Whatever QEMU says, every call comes back, and with an answer only if there
// was one.
func FuzzQMPRead(f *testing.F) {
	for _, s := range []string{
		"",
		`{"return": {}, "id": 2}` + "\n" + `{"return": [1], "id": 3}`,
		`{"error": {"class": "GenericError", "desc": "no"}, "id": 3}` + "\r\n" + `{"return": {}, "id": 2}` + "\r\n",
		`{"event": "STOP", "data": {"x": 1}}` + "\n\n" + `{"return": null, "id": 2}` + "\n",
		`{"return": {}, "id": 2, "error": null}` + "\n" + `{"return": {}, "id": 2}` + "\n",
		`{"error": {}}` + "\n", `{"QMP": {}}` + "\n", `{"id": 18446744073709551616}` + "\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, said []byte) {
		q, p := connect(t)
		events, cancel := q.Subscribe("STOP")
		defer cancel()
		var results [2]json.RawMessage
		var ended []<-chan error
		for i := range results {
			ended = append(ended, call(t.Context(), q, "ask", &results[i]))
			p.hear()
		}
		go func() {
			p.conn.Write(said) // the client may hang up first
			p.conn.Close()
		}()
		for i, e := range ended {
			err := <-e
			var refusal *qmpError
			switch {
			case err == nil:
				if !json.Valid(results[i]) || !bytes.Contains(said, results[i]) {
					t.Errorf("made up answer %q", results[i])
				}
			case !errors.As(err, &refusal) && !errors.Is(err, errQMPEnded):
				t.Errorf("got %v", err)
			}
		}
		for e := range events {
			if e.Name != "STOP" {
				t.Errorf("event %q", e.Name)
			}
		}
		<-q.Done()
	})
}
