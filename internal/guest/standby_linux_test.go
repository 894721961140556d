// The race detector follows goroutines; a process that is none, in their memory, it
// cannot bear.

//go:build !race

package guest

import (
	"errors"
	"io"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/matchlock/matchlock/internal/agent"
)

// startStandby makes one as the guest does, but in no control group. What it
// writes can be read when it has ended.
func startStandby(t *testing.T) (s *standby, stdout *os.File) {
	t.Helper()
	ours, theirs, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ours.Close() })
	defer theirs.Close()
	made := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		var err error
		s, err = newStandby(nil, []*os.File{theirs, theirs, theirs})
		made <- err
	}()
	if err := <-made; errors.Is(err, unix.ENOSYS) {
		t.Skip("clone3 is not allowed here")
	} else if err != nil {
		t.Fatal(err)
	}
	return s, ours
}

// status waits for the end of a standby or what it has become.
func status(t *testing.T, s *standby) unix.WaitStatus {
	t.Helper()
	var status unix.WaitStatus
	for {
		_, err := unix.Wait4(s.pid, &status, 0, nil)
		if err == nil {
			return status
		}
		if err != unix.EINTR {
			t.Fatal(err)
		}
	}
}

func TestStandby(t *testing.T) {
	for range 20 { // memory that is shared with a process may go wrong only sometimes
		s, stdout := startStandby(t)
		if !s.waits() {
			t.Fatal("it does not wait")
		}
		garbage := make([][]byte, 100)
		for i := range garbage {
			garbage[i] = make([]byte, 64<<10)
		}
		runtime.GC()
		runtime.KeepAlive(garbage)
		argv := []string{"sh", "-c", `echo "$A $PWD $1"; ls /proc/self/fd; exit 3`, "-", strings.Repeat("x", 100_000)}
		if err := s.run("/bin/sh", argv, &agent.ProcAttr{Dir: "/tmp", Env: []string{"A=1"}, Credential: &agent.Credential{}}); err != nil {
			t.Fatal(err)
		}
		output, err := io.ReadAll(stdout)
		if err != nil {
			t.Fatal(err)
		}
		lines := strings.Split(strings.TrimSpace(string(output)), "\n")
		if want := "1 /tmp " + argv[4]; lines[0] != want {
			t.Fatalf("got %.100q, want %.100q", lines[0], want)
		}
		if got, want := lines[1:], []string{"0", "1", "2", "3"}; !slices.Equal(got, want) { // ls has opened the folder
			t.Fatalf("descriptors %v, want %v", got, want)
		}
		if got := status(t, s).ExitStatus(); got != 3 {
			t.Fatalf("status %d, want 3", got)
		}
	}
}

func TestStandbyNotFound(t *testing.T) {
	s, _ := startStandby(t)
	err := s.run("/nowhere", []string{"nowhere"}, &agent.ProcAttr{})
	if err != unix.ENOENT {
		t.Errorf("got %v, want %v", err, unix.ENOENT)
	}
	if got := status(t, s).ExitStatus(); got != failed {
		t.Errorf("status %d, want %d", got, failed)
	}
}

func TestStandbyNUL(t *testing.T) {
	s, _ := startStandby(t)
	if err := s.run("/bin/true", []string{"a\x00b"}, &agent.ProcAttr{}); !errors.Is(err, unix.EINVAL) {
		t.Errorf("got %v, want %v", err, unix.EINVAL)
	}
	status(t, s)
}

func TestStandbyNotNeeded(t *testing.T) {
	s, _ := startStandby(t)
	s.end()
	if s.waits() {
		t.Error("it still waits")
	}
	if got := status(t, s); got.ExitStatus() != failed {
		t.Errorf("status %#x, want exit status %d", got, failed)
	}
}

// TestStandbyWithoutFiles: a process that cannot have its descriptors ends. It is
// played by this program, called again.
func TestStandbyWithoutFiles(t *testing.T) {
	const played = "MATCHLOCK_TEST_STANDBY"
	if os.Getenv(played) != "" {
		standBy(&child{files: [3]int{1 << 20, 1, 2}})
	}
	again := exec.Command(os.Args[0], "-test.run=^TestStandbyWithoutFiles$")
	again.Env = append(os.Environ(), played+"=1")
	err := again.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.ExitCode() != failed {
		t.Errorf("got %v, want exit status %d", err, failed)
	}
}

// A rehearsal waits until something comes by its port, or until nobody needs it. What it
// did not hear is not left for others.
func TestRehearsal(t *testing.T) {
	for _, told := range []string{"", "in time", "too late"} {
		port, host, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer port.Close()
		defer host.Close()
		s := &starter{forks: make(chan func())}
		s.someChild.L = &s.mu
		go func() {
			runtime.LockOSThread()
			for fork := range s.forks {
				fork()
			}
		}()
		defer close(s.forks)
		r, err := s.prepareRehearsal(port)
		if errors.Is(err, unix.ENOSYS) {
			t.Skip("clone3 is not allowed here")
		} else if err != nil {
			t.Fatal(err)
		}
		if time.Sleep(10 * time.Millisecond); !r.standby.waits() {
			t.Fatal("it did not wait")
		}
		want := unix.WaitStatus(unix.SIGKILL)
		if told == "too late" {
			unix.Kill(r.standby.pid, unix.SIGSTOP)
			if _, err := unix.Wait4(r.standby.pid, nil, unix.WUNTRACED, nil); err != nil { // until it stands still
				t.Fatal(err)
			}
		}
		if told != "" {
			if _, err := host.Write([]byte{1}); err != nil {
				t.Fatal(err)
			}
		}
		if told == "in time" {
			want = 0
			for until := time.Now().Add(10 * time.Second); r.standby.waits(); time.Sleep(time.Millisecond) {
				if time.Now().After(until) {
					t.Fatal("it does not begin")
				}
			}
		}
		r.end()
		if r.standby.waits() {
			t.Error("it still shares our memory")
		}
		if got := status(t, r.standby); got != want {
			t.Errorf("told %q it ended with %#x, want %#x", told, got, want)
		}
		host.Close()
		if n, err := port.Read(make([]byte, 1)); n != 0 || err != io.EOF {
			t.Errorf("told %q it left %d bytes, %v", told, n, err)
		}
	}
}
