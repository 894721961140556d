//go:build linux

package agent

import (
	"net"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/matchlock/matchlock/internal/wire"
)

// A pair is both ends of the agent's protocol over one session. The server runs
// real processes of this host.
type pair struct {
	*Client
	host   *wire.HostMux
	server *Server
}

// newPair returns a pair of which nothing is left at the test's end.
func newPair(t testing.TB) *pair {
	goroutines := runtime.NumGoroutine()
	a, b := net.Pipe()
	server := NewServer(HostStarter{}, map[string]string{"BASE": "base"})
	served := make(chan struct{})
	go func() {
		defer close(served)
		mux, err := wire.NewGuestMux(t.Context(), b, 1)
		if err != nil {
			t.Error(err)
			return
		}
		server.Serve(mux)
		mux.Close()
	}()
	host, err := wire.NewHostMux(t.Context(), a, 1)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		host.Close()
		<-served
		server.Close()
		if !t.Failed() {
			waitFor(t, "goroutines", func() bool { return runtime.NumGoroutine() <= goroutines })
		}
	})
	return &pair{NewClient(host.Dial), host, server}
}

// waitFor waits for something that has no event to wait on.
func waitFor(t testing.TB, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			stacks := make([]byte, 1<<20)
			t.Fatalf("%s: still waiting\n%s", what, stacks[:runtime.Stack(stacks, true)])
		}
	}
}

// gone reports whether a process has ended.
func gone(pid string) bool {
	stat, err := os.ReadFile("/proc/" + strings.TrimSpace(pid) + "/stat")
	return err != nil || strings.Contains(string(stat), ") Z ")
}
