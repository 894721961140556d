//go:build linux

package agent

import (
	"bytes"
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/matchlock/matchlock/internal/wire"
)

// anotherHost cuts the session as the host of a copied machine does, and begins
// one of its own.
func (p *pair) anotherHost(t *testing.T) *Client {
	t.Helper()
	p.server.Keep()
	p.host.Close()
	a, b := net.Pipe()
	served := make(chan struct{})
	go func() {
		defer close(served)
		mux, err := wire.NewGuestMux(t.Context(), b, 2)
		if err != nil {
			t.Error(err)
			return
		}
		p.server.Serve(mux)
		mux.Close()
	}()
	host, err := wire.NewHostMux(t.Context(), a, 2)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { host.Close(); <-served })
	p.host = host
	return NewClient(host.Dial)
}

// only returns the one command that runs.
func only(t *testing.T, c *Client) Running {
	t.Helper()
	all, err := c.Commands(t.Context())
	if err != nil || len(all) != 1 {
		t.Fatalf("got commands %v, %v; want one", all, err)
	}
	return all[0]
}

// transcript is a writer that tells of each line.
type transcript struct {
	mu   sync.Mutex
	text bytes.Buffer
	came chan struct{}
}

func newTranscript() *transcript { return &transcript{came: make(chan struct{}, 1)} }

func (l *transcript) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case l.came <- struct{}{}:
	default:
	}
	return l.text.Write(p)
}

func (l *transcript) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// A command goes on when its session is cut, and another host hears the rest of
// what it says and how it ends; and so on.
func TestResume(t *testing.T) {
	p := newPair(t)
	client := p.Client
	first := newTranscript()
	s, err := client.Start(t.Context(), Command{Args: Shell("i=0; while [ $i -lt 60 ]; do echo $i; i=$((i+1)); sleep 0.01; done; echo over >&2; exit 7"), Stdout: first, Stderr: first})
	if err != nil {
		t.Fatal(err)
	}
	<-first.came
	heard := []*transcript{first}
	for range 3 {
		client = p.anotherHost(t)
		if _, err := s.Wait(); err == nil {
			t.Error("the former host knows how it ended")
		}
		running := only(t, client)
		if running != (Running{ID: s.ID()}) {
			t.Errorf("got %+v, want id %d without terminal and input", running, s.ID())
		}
		l := newTranscript()
		heard = append(heard, l)
		if s, err = client.Resume(t.Context(), running.ID, Command{Stdout: l, Stderr: l}); err != nil {
			t.Fatal(err)
		}
		if _, err := client.Resume(t.Context(), running.ID, Command{}); err == nil || !strings.Contains(err.Error(), "has a host") {
			t.Errorf("a second host: got %v", err)
		}
		<-l.came
	}
	exit, err := s.Wait()
	if err != nil || exit.Code != 7 {
		t.Errorf("got %+v, %v; want status 7", exit, err)
	}
	next := 0
	for i, l := range heard {
		for line := range strings.Lines(l.String()) {
			var n int
			if line == "over\n" && i == len(heard)-1 {
				continue
			}
			if _, err := fmt.Sscanf(line, "%d\n", &n); err != nil || n < next {
				t.Errorf("host %d heard %q after %d", i, line, next)
			}
			next = n + 1
		}
	}
	if next != 60 || !strings.HasSuffix(heard[len(heard)-1].String(), "59\nover\n") {
		t.Errorf("the last host heard %q", heard[len(heard)-1])
	}
	waitFor(t, "the command to be forgotten", func() bool { all, err := client.Commands(t.Context()); return err == nil && len(all) == 0 })
}

// How a command ended while it had no host the next one is told.
func TestResumeEnded(t *testing.T) {
	p := newPair(t)
	out := newTranscript()
	s, err := p.Start(t.Context(), Command{Args: Shell("echo ready; read x; exit 3"), Stdin: true, Stdout: out})
	if err != nil {
		t.Fatal(err)
	}
	<-out.came
	client := p.anotherHost(t)
	if err := syscall.Kill(s.PID(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "its end", func() bool { return gone(strconv.Itoa(s.PID())) })
	if s, err = client.Resume(t.Context(), only(t, client).ID, Command{}); err != nil {
		t.Fatal(err)
	}
	if exit, err := s.Wait(); err != nil || exit.Signal != 9 {
		t.Errorf("got %+v, %v; want signal 9", exit, err)
	}
}

// An input that the next host keeps open goes on after what the former one has
// typed, and the window is new.
func TestResumeInput(t *testing.T) {
	for name, tty := range map[string]bool{"pipe": false, "terminal": true} {
		t.Run(name, func(t *testing.T) {
			p := newPair(t)
			out := newTranscript()
			cmd := Command{Args: Shell("stty -echo 2>/dev/null; echo ready; sleep 0.3; exec cat"), Stdin: true, Stdout: out, TTY: tty}
			s, err := p.Start(t.Context(), cmd)
			if err != nil {
				t.Fatal(err)
			}
			<-out.came
			if !tty {
				// More than the pipe takes: the rest is held by the server.
				if _, err := s.Write(make([]byte, stdinWindow)); err != nil {
					t.Fatal(err)
				}
			}
			client := p.anotherHost(t)
			running := only(t, client)
			if running != (Running{s.ID(), tty, true}) {
				t.Fatalf("got %+v", running)
			}
			var heard bytes.Buffer
			cmd.Stdout = &heard
			if s, err = client.Resume(t.Context(), running.ID, cmd); err != nil {
				t.Fatal(err)
			}
			for range 4 { // of windows
				if _, err := s.Write(bytes.Repeat([]byte("all of it is mine\n"), stdinWindow/18)); err != nil {
					t.Fatal(err)
				}
			}
			s.CloseWrite()
			if exit, err := s.Wait(); err != nil || exit.Code != 0 {
				t.Errorf("got %+v, %v", exit, err)
			}
			mine := strings.Count(heard.String(), "all of it is mine")
			zeros := bytes.Count(heard.Bytes(), []byte{0})
			if mine != 4*(stdinWindow/18) || zeros > stdinWindow {
				t.Errorf("heard %d lines of its own and %d bytes of the former host's", mine, zeros)
			}
		})
	}
}

// What nobody keeps ends with its session, and what nobody knows is not resumed.
func TestResumeRefused(t *testing.T) {
	p := newPair(t)
	if _, err := p.Resume(t.Context(), 17, Command{}); err == nil || !strings.Contains(err.Error(), "no such command") {
		t.Errorf("got %v", err)
	}
}
