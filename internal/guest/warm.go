//go:build linux

package guest

import (
	"fmt"
	"io"
	"os"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/matchlock/matchlock/internal/agent"
)

// warmName is the name under which this program ends at once.
const warmName = "matchlock-warm"

// warmRuns is how often a command is started to warm the kernel up: after so
// many the next one is not much faster any more.
const warmRuns = 6

// firstFiles are what the first command of most images needs. They are read,
// which puts them into the kernel's cache, never run.
var firstFiles = []string{
	"/bin/sh", "/bin/busybox", "/etc/passwd", "/etc/group",
	"/lib64/ld-linux-x86-64.so.2", "/lib/x86_64-linux-gnu/libc.so.6", "/lib/ld-musl-x86_64.so.1",
	"/lib/ld-linux-aarch64.so.1", "/lib/aarch64-linux-gnu/libc.so.6", "/lib/ld-musl-aarch64.so.1",
}

// warmUp goes the way of a command some times with a program of our own, under
// the restraints of a command, so that the kernel has what the first real one
// needs: caches that are filled, memory that has been touched.
func (g *guest) warmUp() error {
	for range warmRuns {
		if err := g.server.WarmUp("/proc/self/exe", warmName); err != nil {
			return err
		}
	}
	for _, path := range firstFiles {
		// What an image does not have it does not need.
		if info, err := os.Stat(path); err != nil || !info.Mode().IsRegular() {
			continue
		}
		if f, err := os.Open(path); err == nil {
			io.Copy(io.Discard, io.LimitReader(f, maxFirstFile))
			f.Close()
		}
	}
	lookAtPrograms()
	haveThreads()
	return g.server.WarmUp("/proc/self/exe", warmName)
}

// haveThreads has the runtime make threads, by needing them at once, so that the
// first command finds idle ones.
func haveThreads() {
	var sleeping sync.WaitGroup
	for range idleThreads {
		sleeping.Go(func() { unix.Nanosleep(&unix.Timespec{Nsec: 20_000_000}, nil) })
	}
	sleeping.Wait()
}

const idleThreads = 6

// watchSeldom has the runtime's watchman, sysmon of Go's runtime/proc.go, wake when
// something else does, or after 5 ms. While anything goes on it sleeps for 20 µs at a time,
// and each time is a timer and an interrupt: where those are emulated, a twentieth of a
// start. It is the first thread that the runtime makes. The slack of its timers, see
// timerslack_ns in proc(5), is inherited by those that it makes, so there must be enough:
// see haveThreads.
func watchSeldom() error {
	ids, err := threads()
	if err != nil {
		return err
	}
	slack := strconv.FormatInt(int64(5*time.Millisecond), 10)
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/timerslack_ns", ids[1]), []byte(slack), 0); err != nil {
		return fmt.Errorf("the runtime's watchman: %w", err)
	}
	return nil
}

// lookAtPrograms looks at the programs that the image has, so that the kernel
// knows where they are: which one is the first is not known yet.
func lookAtPrograms() {
	left := maxPrograms
	for _, dir := range []string{"/bin", "/usr/bin", "/usr/local/bin", "/sbin", "/usr/sbin"} {
		f, err := os.Open(dir)
		if err != nil {
			continue
		}
		names, _ := f.Readdirnames(left) // as far as they can be read
		f.Close()
		for _, name := range names {
			os.Lstat(dir + "/" + name)
		}
		if left -= len(names); left <= 0 {
			return
		}
	}
}

// maxPrograms is how many programs are looked at. Each takes a kilobyte of the
// kernel's memory, which all copies share.
const maxPrograms = 2000

// maxFirstFile is how much of a file is read: the image chose it.
const maxFirstFile = 4 << 20

var _ agent.ControlHandler = (*guest)(nil)
