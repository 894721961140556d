package main

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
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

func TestLongRuns(t *testing.T) { runInARow(t, long(t)) }
func TestVMRuns(t *testing.T)   { runInARow(t, 3) }

// runInARow runs a command that does nothing n times. All succeed, in time, and
// nothing is left.
func runInARow(t *testing.T, n int) {
	m := install(t)
	var before []string
	var took []time.Duration
	for i := range n {
		r := m.run(t, nil, "run", "busybox", "true")
		if r.status != 0 || r.stdout != "" || r.stderr != "" {
			t.Errorf("run %d of %d: status %d\n%s%s\n%s", i+1, n, r.status, r.stdout, r.stderr, r.call)
		}
		took = append(took, r.took)
		if i == 0 {
			before = m.belongings(t) // with what is made once for all
		}
	}
	m.leavesNothing(t)
	if after := m.belongings(t); !slices.Equal(before, after) {
		t.Errorf("files and mounts after the first:\n%s\nafter all:\n%s", strings.Join(before, "\n"), strings.Join(after, "\n"))
	}
	slices.Sort(took)
	t.Logf("%d runs: the fastest %v, the median %v, the slowest %v", n, took[0], took[n/2], took[n-1])
}

// TestVMRunsAtOnce has twenty commands run at once, each in a sandbox of its own.
func TestVMRunsAtOnce(t *testing.T) {
	m := install(t)
	m.mustRun(t, "run", "busybox", "true") // leaves a template
	var all sync.WaitGroup
	for i := range 20 {
		all.Go(func() {
			cmd := m.command(t, "run", "--memory", "512m", "busybox", "sh", "-c", "hostname; echo "+strconv.Itoa(i))
			out, err := cmd.CombinedOutput()
			if lines := strings.Fields(string(out)); err != nil || len(lines) != 2 || len(lines[0]) != 12 || lines[1] != strconv.Itoa(i) {
				t.Errorf("run %d: %v\n%s\n%s", i, err, out, byHand(cmd))
			}
		})
	}
	all.Wait()
	m.leavesNothing(t)
}

// belongings lists all files of a home, and the mounts below it.
func (m *installed) belongings(t *testing.T) (all []string) {
	t.Helper()
	err := filepath.WalkDir(m.home, func(path string, _ os.DirEntry, err error) error {
		all = append(all, path)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	mounts, err := os.ReadFile("/proc/mounts")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, m.home) { // others mount and unmount as well
			all = append(all, line)
		}
	}
	return all
}

func TestLongKills(t *testing.T) { killAtRandom(t, long(t)) }
func TestVMKills(t *testing.T)   { killAtRandom(t, 5) }

// killAtRandom kills `matchlock run` n times, each at another moment between its
// first instruction and some time after its command has begun. A second later
// nothing runs that it had started, and the next run removes what it left.
func killAtRandom(t *testing.T, n int) {
	m := install(t)
	began := time.Now()
	m.mustRun(t, "run", "busybox", "true")
	whole := time.Since(began)
	for i := range n {
		// Of n equal parts of that time one each, so that a few cover it all.
		delay := time.Duration((float64(i) + rand.Float64()) / float64(n) * 1.3 * float64(whole))
		t.Run(fmt.Sprintf("after %v", delay.Round(time.Microsecond)), func(t *testing.T) {
			cmd := m.command(t, "run", "busybox", "sleep", "1000")
			var said bytes.Buffer
			cmd.Stdout, cmd.Stderr = &said, &said
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			time.Sleep(delay)
			cmd.Process.Kill()
			killed := time.Now()
			cmd.Wait()
			if said.Len() > 0 {
				t.Errorf("it has said:\n%s", &said)
			}
			for openFiles(m.home) != nil || len(processesNaming(t, m.home)) > 0 {
				if time.Since(killed) > time.Second {
					t.Fatalf("a second later: %v, %v\n%s", openFiles(m.home), processesNaming(t, m.home), byHand(cmd))
				}
				time.Sleep(10 * time.Millisecond)
			}
			left, _ := filepath.Glob(filepath.Join(m.home, "state", "sandboxes", "*", "*"))
			t.Logf("no process %v after the kill; %d files for the next run to remove", time.Since(killed).Round(time.Millisecond), len(left))
			// A run that fails sweeps too.
			m.refuses(t, nil, "not found", "image ls", "run", "--pull", "never", "no.such/image", "true")
		})
	}
	m.leavesNothing(t)
}
