package sandbox_test

import (
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/matchlock/matchlock/api"
)

// long is how often a TestLong… does what it does.
func long(t *testing.T) int {
	t.Helper()
	n, err := strconv.Atoi(os.Getenv("MATCHLOCK_TEST_LONG"))
	if err != nil || n < 1 {
		t.Skip("takes long: set MATCHLOCK_TEST_LONG to the number of rounds (make long does)")
	}
	return n
}

func TestLongSandboxes(t *testing.T)           { leaveNothing(t, long(t)) }
func TestVMSandboxesLeaveNothing(t *testing.T) { leaveNothing(t, 1) }

// leaveNothing makes n sandboxes one after the other in this process, after a
// first one. The process must have the same descriptors, goroutines and mounts
// afterwards, and no files of theirs.
func leaveNothing(t *testing.T, n int) {
	p := newPlace(t)
	config := api.Config{Image: p.image(t, "busybox.tar"), Pull: api.PullNever}
	round := func() {
		began := time.Now()
		s, err := p.options.New(t.Context(), config)
		if err != nil {
			t.Fatal(err)
		}
		if got := output(t, s, "echo", "hello"); got != "hello" {
			t.Errorf("got %q", got)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		t.Logf("%v", time.Since(began).Round(time.Millisecond))
	}
	round() // what is made once for all is there after it
	before := belongings(t, p)
	for range n {
		round()
	}
	after := belongings(t, p)
	// A goroutine that has done its work may need a moment to end, and a
	// descriptor that it closes.
	for deadline := time.Now().Add(5 * time.Second); after.Goroutines > before.Goroutines && time.Now().Before(deadline); {
		time.Sleep(50 * time.Millisecond)
		after = belongings(t, p)
	}
	before.Goroutines = min(before.Goroutines, after.Goroutines) // one of the first may have been at its end
	if diff := cmp.Diff(before, after); diff != "" {
		stacks := make([]byte, 1<<20)
		t.Errorf("after %d sandboxes (-before +after):\n%s\ngoroutines:\n%s", n, diff, stacks[:runtime.Stack(stacks, true)])
	}
}

// owned is what sandboxes could leave behind.
type owned struct {
	Goroutines  int
	Descriptors []string // what each leads to
	Mounts      []string
	Files       []string // below the home
}

func belongings(t *testing.T, p *place) owned {
	t.Helper()
	o := owned{Goroutines: runtime.NumGoroutine()}
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		target, err := os.Readlink(filepath.Join("/proc/self/fd", fd.Name()))
		if err != nil {
			continue // that of reading the folder
		}
		kind, _, _ := strings.Cut(target, ":[") // without the numbers of pipes and sockets
		o.Descriptors = append(o.Descriptors, kind)
	}
	slices.Sort(o.Descriptors)
	mounts, err := os.ReadFile("/proc/mounts")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, p.options.Home) { // others mount and unmount as well
			o.Mounts = append(o.Mounts, line)
		}
	}
	err = filepath.WalkDir(p.options.Home, func(path string, _ os.DirEntry, err error) error {
		o.Files = append(o.Files, path)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return o
}

// A command that writes a gigabyte costs no more memory than one that writes a
// little.
func TestLongOutput(t *testing.T) {
	long(t)
	p := newPlace(t)
	slowReader(t, p.start(t, api.Config{Image: p.image(t, "busybox.tar")}), 1<<30)
}
