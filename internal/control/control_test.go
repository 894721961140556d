package control

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/nettest"

	"github.com/matchlock/matchlock/internal/hostfs"
	"github.com/matchlock/matchlock/internal/logs"
	"github.com/matchlock/matchlock/internal/wire"
)

const testID = "abcdefghijkl"

// errTaken is an error with a code and a hint.
type errTaken struct{}

func (errTaken) Error() string { return "it is taken" }
func (errTaken) Hint() string  { return "take another" }

// startServer serves methods, in a folder whose path is too long for a socket.
func startServer(t *testing.T, methods Methods) (*Client, *Server) {
	t.Helper()
	folder := filepath.Join(t.TempDir(), strings.Repeat("long", 40))
	if err := os.Mkdir(folder, 0o700); err != nil {
		t.Fatal(err)
	}
	// What a supervisor leaves that was killed.
	if err := os.WriteFile(filepath.Join(folder, SocketName), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	server, err := Serve(folder, testID, methods, func(err error) string {
		if errors.Is(err, errTaken{}) {
			return "taken"
		}
		return ""
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		server.Close(0)
		if _, err := os.Lstat(filepath.Join(folder, SocketName)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("after Close the socket is there: %v", err)
		}
	})
	return NewClient(folder, testID), server
}

func TestCall(t *testing.T) {
	type sum struct{ A, B int }
	client, _ := startServer(t, Methods{Calls: map[string]Method{
		"add": func(_ context.Context, c *Call) (any, error) {
			var p sum
			if err := c.Params(&p); err != nil {
				return nil, err
			}
			return p.A + p.B, nil
		},
		"take": func(context.Context, *Call) (any, error) { return nil, fmt.Errorf("name: %w", errTaken{}) },
	}})
	var got int
	if err := client.Call(t.Context(), "add", sum{2, 3}, &got); err != nil || got != 5 {
		t.Errorf("2 + 3 = %d, %v", got, err)
	}
	if err := client.Call(t.Context(), "add", map[string]int{"a": 1, "c": 2}, nil); err == nil || !strings.Contains(err.Error(), `method "add": json: unknown field "c"`) {
		t.Errorf("a parameter that there is not: %v", err)
	}
	err := client.Call(t.Context(), "take", nil, nil)
	if e, ok := errors.AsType[*Error](err); !ok || e.Code != "taken" || e.Message != "name: it is taken" || e.Hint() != "take another" {
		t.Errorf("an error arrives as %#v", err)
	}
	err = client.Call(t.Context(), "fly", nil, nil)
	if e, ok := errors.AsType[*Error](err); !ok || e.Code != CodeNoSuchMethod {
		t.Errorf("a method that there is not: %#v", err)
	}
	if err := client.Call(t.Context(), "add", strings.Repeat("x", maxRequest), nil); err == nil {
		t.Error("a request beyond all bounds was read")
	}
	pid, conn, err := client.Peer(t.Context())
	if err != nil || pid != os.Getpid() {
		t.Errorf("Peer = %d, %v; want %d", pid, err, os.Getpid())
	}
	conn.Close()
}

// TestHangUp: the call of a client that hangs up ends, and so does a client's
// whose context ends.
func TestHangUp(t *testing.T) {
	waiting, ended := make(chan bool), make(chan error, 1)
	client, _ := startServer(t, Methods{Calls: map[string]Method{
		"wait": func(ctx context.Context, _ *Call) (any, error) {
			waiting <- true
			<-ctx.Done()
			ended <- context.Cause(ctx)
			return nil, nil
		},
	}})
	ctx, cancel := context.WithCancelCause(t.Context())
	enough := errors.New("enough")
	go func() { <-waiting; cancel(enough) }()
	if err := client.Call(ctx, "wait", nil, nil); !errors.Is(err, enough) {
		t.Errorf("the call ended with %v", err)
	}
	if err := <-ended; err == nil {
		t.Error("the method's context has not ended")
	}
}

// TestClose: calls under way come to their end, but not for ever, and new ones
// are not taken.
func TestClose(t *testing.T) {
	begun, goOn := make(chan bool), make(chan bool)
	client, server := startServer(t, Methods{Calls: map[string]Method{
		"slow": func(ctx context.Context, _ *Call) (any, error) {
			begun <- true
			<-goOn
			return "done", nil
		},
		"stuck": func(ctx context.Context, _ *Call) (any, error) {
			begun <- true
			<-ctx.Done()
			return nil, context.Cause(ctx)
		},
	}})
	slow, stuck := make(chan error, 1), make(chan error, 1)
	go func() {
		var got string
		err := client.Call(context.Background(), "slow", nil, &got)
		if got != "done" {
			err = fmt.Errorf("got %q, %w", got, err)
		}
		slow <- err
	}()
	<-begun
	go func() { stuck <- client.Call(context.Background(), "stuck", nil, nil) }()
	<-begun
	idle, err := client.dial(t.Context()) // never asks for anything
	if err != nil {
		t.Fatal(err)
	}
	defer idle.Close()
	closed := make(chan error)
	go func() { closed <- server.Close(50 * time.Millisecond) }()
	goOn <- true
	if err := <-slow; err != nil {
		t.Errorf("a call that ended in time: %v", err)
	}
	if err := <-stuck; err == nil {
		t.Error("a call that did not end has no error")
	}
	if err := <-closed; err != nil {
		t.Errorf("Close = %v", err)
	}
	if err := client.Call(t.Context(), "slow", nil, nil); err != ErrNotListening {
		t.Errorf("a call after Close: %v", err)
	}
}

// TestHello has servers that are not the one looked for.
func TestHello(t *testing.T) {
	for name, test := range map[string]struct{ says, want string }{
		"newer":    {`{"version":2,"id":"abcdefghijkl"}`, "speaks version 2"},
		"version0": {`{"version":0,"id":"abcdefghijkl"}`, "speaks version 0"},
		"other":    {`{"version":1,"id":"another"}`, `that of sandbox "another"`},
		"nonsense": {`hello`, "invalid character"},
		"nothing":  {``, ErrNotListening.Error()},
		"endless":  {strings.Repeat("x", maxAnswer+1), "line is too long"},
	} {
		t.Run(name, func(t *testing.T) {
			folder := t.TempDir()
			listener, err := hostfs.Listen(filepath.Join(folder, SocketName))
			if err != nil {
				t.Fatal(err)
			}
			defer listener.Close()
			go func() {
				conn, err := listener.Accept()
				if err == nil {
					io.WriteString(conn, test.says)
					if test.says != "" {
						io.WriteString(conn, "\n")
					}
					conn.Close()
				}
			}()
			err = NewClient(folder, testID).Call(t.Context(), "add", nil, nil)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error is %v, want in it %q", err, test.want)
			}
		})
	}
}

// pair returns a Conn's two ends.
func pair(t *testing.T) (client, server *Conn, stop func()) {
	t.Helper()
	accepted, done := make(chan *Conn), make(chan bool)
	c, _ := startServer(t, Methods{Streams: map[string]Method{
		"dial": func(ctx context.Context, k *Call) (any, error) {
			conn, err := k.AcceptConn(nil)
			if err != nil {
				return nil, err
			}
			accepted <- conn
			select {
			case <-done:
			case <-ctx.Done():
			}
			return nil, nil
		},
	}})
	client, err := c.Dial(t.Context(), "dial", nil)
	if err != nil {
		t.Fatal(err)
	}
	server = <-accepted
	return client, server, func() { client.Close(); server.Close(); close(done) }
}

func TestConn(t *testing.T) {
	nettest.TestConn(t, func() (net.Conn, net.Conn, func(), error) {
		client, server, stop := pair(t)
		return client, server, stop, nil
	})
}

func TestConnEnds(t *testing.T) {
	for name, test := range map[string]struct {
		end  func(*Conn)
		want error
	}{
		"half close": {func(c *Conn) { c.CloseWrite() }, io.EOF},
		"close":      {func(c *Conn) { c.Close() }, io.EOF},
		"reset":      {func(c *Conn) { c.Reset() }, wire.ErrReset},
		"killed":     {func(c *Conn) { c.Conn.Close() }, wire.ErrReset},
	} {
		t.Run(name, func(t *testing.T) {
			client, server, stop := pair(t)
			defer stop()
			if _, err := client.Write([]byte("last words")); err != nil {
				t.Fatal(err)
			}
			test.end(client)
			got := make([]byte, 10)
			if _, err := io.ReadFull(server, got); err != nil || string(got) != "last words" {
				t.Errorf("read %q, %v", got, err)
			}
			if _, err := server.Read(got); err != test.want {
				t.Errorf("then %v, want %v", err, test.want)
			}
			if name == "half close" {
				if _, err := server.Write([]byte("x")); err != nil {
					t.Errorf("the other direction: %v", err)
				}
				if n, err := client.Read(got); n != 1 || err != nil {
					t.Errorf("the other direction: %d, %v", n, err)
				}
			}
		})
	}
}

// attach returns both ends of an attachment.
func attach(t *testing.T, controls Controls) (*Attachment, *Source) {
	t.Helper()
	sources := make(chan *Source)
	client, _ := startServer(t, Methods{Streams: map[string]Method{
		"attach": func(_ context.Context, c *Call) (any, error) {
			s, err := c.Attach("at your service")
			if err != nil {
				return nil, err
			}
			sources <- s
			s.Obey(controls)
			return nil, nil
		},
	}})
	var greeting string
	a, err := client.Attach(t.Context(), "attach", nil, &greeting)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close() })
	if greeting != "at your service" {
		t.Errorf("the result is %q", greeting)
	}
	return a, <-sources
}

func TestAttachment(t *testing.T) {
	var typed bytes.Buffer
	heard := make(chan string, 4)
	a, s := attach(t, Controls{
		Input:    func(p []byte) error { typed.Write(p); return nil },
		InputEnd: func() { heard <- "end of input" },
		Signal:   func(n int) { heard <- fmt.Sprint("signal ", n) },
		Resize:   func(rows, cols uint16) { heard <- fmt.Sprint("size ", rows, " ", cols) },
	})
	a.Signal(15)
	a.Resize(50, 132)
	for _, want := range []string{"signal 15", "size 50 132"} {
		if got := <-heard; got != want {
			t.Errorf("the supervisor heard %q, want %q", got, want)
		}
	}
	sent := bytes.Repeat([]byte("0123456789"), inputWindow/4) // more than the window
	wrote := make(chan error)
	go func() {
		_, err := a.Write(sent)
		wrote <- errors.Join(err, a.CloseWrite())
	}()
	record := logs.Record{Time: time.Unix(1700000000, 123456789).UTC(), Stream: "stdout", Partial: true, Content: []byte("a\x00\xff")}
	go func() {
		s.Record(record)
		<-heard // the end of input, behind all of it
		s.Exit(Exit{143, 15})
	}()
	got, err := a.Next()
	if err != nil || !got.Time.Equal(record.Time) || got.Stream != record.Stream || !got.Partial || !bytes.Equal(got.Content, record.Content) {
		t.Errorf("the record arrives as %+v, %v", got, err)
	}
	var exit *Exit
	if _, err := a.Next(); !errors.As(err, &exit) || *exit != (Exit{143, 15}) {
		t.Errorf("the end is %v", err)
	}
	if err := <-wrote; err != nil {
		t.Errorf("input: %v", err)
	}
	if !bytes.Equal(typed.Bytes(), sent) {
		t.Errorf("%d bytes of input became %d", len(sent), typed.Len())
	}
	if _, err := a.Write([]byte("x")); err == nil {
		t.Error("input after the end")
	}
}

// TestAttachmentStuck: a command that reads nothing holds up no signal, and
// the client's end no supervisor.
func TestAttachmentStuck(t *testing.T) {
	signals, never := make(chan int), make(chan bool)
	defer close(never)
	a, _ := attach(t, Controls{
		Input:  func([]byte) error { <-never; return nil },
		Signal: func(n int) { signals <- n },
	})
	wrote := make(chan error)
	go func() {
		_, err := a.Write(make([]byte, 3*inputWindow))
		wrote <- err
	}()
	a.Signal(2)
	if got := <-signals; got != 2 {
		t.Errorf("signal %d arrived", got)
	}
	a.Close()
	if err := <-wrote; err == nil {
		t.Error("input was taken that nobody read")
	}
}

func TestAttachmentFailures(t *testing.T) {
	a, s := attach(t, Controls{})
	s.Fail("the guest\x1b is gone")
	var failure *Failure
	if _, err := a.Next(); !errors.As(err, &failure) || failure.Reason != "the guest\uFFFD is gone" {
		t.Errorf("a failure arrives as %v", err)
	}
	a, s = attach(t, Controls{})
	s.Over()
	if _, err := a.Next(); err != io.EOF {
		t.Errorf("the end of the log arrives as %v", err)
	}
	a, s = attach(t, Controls{})
	s.Close()
	if _, err := a.Next(); err != ErrNotListening {
		t.Errorf("a supervisor that is gone is %v", err)
	}
}

// dumb is a connection to nobody.
type dumb struct{ net.Conn }

func (dumb) Write(p []byte) (int, error) { return len(p), nil }
func (dumb) Close() error                { return nil }

func FuzzAttachment(f *testing.F) {
	f.Add([]byte{frameRecord, 0, 0, 0, 5, 2, 1, 'x', 0, 0})
	f.Add([]byte{frameExit, 0, 0, 0, 2, 3, 0})
	f.Add([]byte{frameTaken, 0, 0, 0, 1, 1})
	f.Fuzz(func(t *testing.T, data []byte) {
		a := newAttachment(dumb{}, bufio.NewReader(bytes.NewReader(data)))
		for {
			if _, err := a.Next(); err != nil {
				return
			}
		}
	})
}

func FuzzSource(f *testing.F) {
	f.Add([]byte{frameInput, 0, 0, 0, 1, 'x', frameInputEnd, 0, 0, 0, 0})
	f.Add([]byte{frameSignal, 0, 0, 0, 1, 9})
	f.Add([]byte{frameResize, 0, 0, 0, 2, 24, 80})
	f.Fuzz(func(t *testing.T, data []byte) {
		s := newSource(dumb{}, bufio.NewReader(bytes.NewReader(data)))
		s.Obey(Controls{
			Signal: func(n int) {
				if n < 1 || n > 64 {
					t.Errorf("signal %d", n)
				}
			},
		})
	})
}

func FuzzConn(f *testing.F) {
	f.Add([]byte{frameData, 0, 0, 0, 1, 'x', frameEnd, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		c := newConn(dumb{}, bufio.NewReader(bytes.NewReader(data)))
		n, err := io.Copy(io.Discard, c)
		if int(n) > len(data) {
			t.Errorf("%d bytes came of %d, %v", n, len(data), err)
		}
	})
}

func FuzzRequest(f *testing.F) {
	f.Add([]byte(`{"method":"stop","params":{"timeout":10}}` + "\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		line, err := readLine(bufio.NewReader(bytes.NewReader(data)), maxRequest)
		if err != nil {
			return
		}
		var r request
		if decodeStrictly(line, &r) != nil {
			return
		}
		var params struct {
			Timeout float64 `json:"timeout"`
		}
		(&Call{method: r.Method, params: r.Params}).Params(&params)
	})
}
