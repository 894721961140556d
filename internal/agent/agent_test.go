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

// newPair returns a client whose server runs real processes of this host. At the
// test's end nothing of either may be left.
func newPair(t testing.TB) *Client {
	client, _ := newPairWithServer(t, map[string]string{"BASE": "base"})
	return client
}

func newPairWithServer(t testing.TB, env map[string]string) (*Client, *wire.HostMux) {
	goroutines := runtime.NumGoroutine()
	a, b := net.Pipe()
	server := NewServer(HostStarter{}, env)
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
	return NewClient(host.Dial), host
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
