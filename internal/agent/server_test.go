//go:build linux

package agent

import (
	"io"
	"net"
	"strings"
	"testing"

	"github.com/matchlock/matchlock/internal/wire"
)

// TestServerRefuses sends a server what no honest client does: it answers with
// an error or hangs up, and nothing is left running.
func TestServerRefuses(t *testing.T) {
	sleep := execRequest{args: []string{"sleep", "1000"}, stdin: true}
	noInput := execRequest{args: []string{"sleep", "1000"}}
	for name, test := range map[string]struct {
		bytes []byte
		want  string // in the answer; empty: it hangs up
	}{
		"nothing":            {nil, ""},
		"half a frame":       {[]byte{requestExec, 0, 0, 1, 0, 'x'}, ""},
		"huge frame":         {[]byte{requestExec, 0xff, 0, 0, 0}, ""},
		"unknown request":    {frames(99, ""), "unknown request"},
		"malformed exec":     {frames(requestExec, "\xff"), "too early"},
		"no arguments":       {frames(requestExec, string((&execRequest{}).encode())), "no command"},
		"malformed path":     {frames(requestRead, "\x01x"), "not absolute"},
		"write: a folder":    {frames(requestWrite, "\x04/tmp\x00\x00\x00\x00"), "is a directory"},
		"write: other frame": {frames(requestWrite, "\x06/tmp/x\x00\x00\x00\x00", frameStdin, "x"), "unknown frame"},
		"input beyond window": {frames(requestExec, string(sleep.encode()), frameStdin, strings.Repeat("x", wire.MaxData),
			frameStdin, strings.Repeat("x", wire.MaxData), frameStdin, strings.Repeat("x", wire.MaxData), frameStdin, strings.Repeat("x", wire.MaxData),
			frameStdin, strings.Repeat("x", wire.MaxData), frameStdin, strings.Repeat("x", wire.MaxData)), "143"},
		"input not agreed on": {frames(requestExec, string(noInput.encode()), frameStdin, "x"), "143"},
		"unknown frame":       {frames(requestExec, string(noInput.encode()), 99, ""), "143"},
		"malformed signal":    {frames(requestExec, string(noInput.encode()), frameSignal, ""), "143"},
		"malformed resize":    {frames(requestExec, string(noInput.encode()), frameResize, "x"), "143"},
	} {
		t.Run(name, func(t *testing.T) {
			server := NewServer(HostStarter{}, nil)
			a, b := net.Pipe()
			go func() {
				a.Write(test.bytes)
				if test.want == "" {
					a.Close()
				}
			}()
			var got string
			done := make(chan struct{})
			go func() {
				defer close(done)
				in := wire.NewFrameReader(a)
				for {
					kind, payload, err := in.Next(wire.MaxData)
					if err != nil {
						if err != io.EOF && test.want != "" {
							t.Error(err)
						}
						return
					}
					switch kind {
					case frameFailed:
						got = decodeError(payload).Error()
					case frameExit:
						exit, err := decodeExit(payload)
						if err != nil {
							t.Error(err)
						}
						got = map[bool]string{true: "143"}[exit.Code == 143]
					}
				}
			}()
			server.ServeConn(b)
			<-done
			server.Close()
			if !strings.Contains(got, test.want) || test.want == "" && got != "" {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
}

// Close ends what runs, at once.
func TestServerClose(t *testing.T) {
	c := newPair(t)
	var stdout lockedBuffer
	s, err := c.Start(t.Context(), Command{Args: Shell("trap '' TERM; echo $$; while :; do sleep 0.1; done"), Stdout: &stdout})
	if err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the command", func() bool { return stdout.String() != "" })
	c.server.Close()
	if !gone(stdout.String()) {
		t.Error("the command lives")
	}
	s.Wait() // killed, or no longer known: both are true
}
