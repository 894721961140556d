package sandbox

import (
	"context"
	"errors"
	"io"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/matchlock/matchlock/api"
	"github.com/matchlock/matchlock/vm"
	"github.com/matchlock/matchlock/vm/vmtest"
)

// newSandbox makes a sandbox without a VM.
func newSandbox(t *testing.T, config api.Config) *Sandbox {
	t.Helper()
	config.Image, config.DiskSize = "busybox", 64<<20
	sb, err := Options{Home: testHome(t), Backend: vmtest.InProcess{}}.New(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := sb.Close(); err != nil {
			t.Error(err)
		}
	})
	return sb
}

func TestOutput(t *testing.T) {
	sb := newSandbox(t, api.Config{Env: map[string]string{"GREETING": "hello"}, WorkDir: "/tmp", Hostname: "box"})
	if len(sb.ID()) != 12 {
		t.Errorf("id %q", sb.ID())
	}
	cmd := sb.Command(t.Context(), "sh", "-c", "echo $GREETING $HOSTNAME $OWN; pwd; echo oops >&2; exit 3")
	cmd.Env = []string{"OWN=old", "OWN=new=1"}
	out, err := cmd.Output()
	exit, ok := errors.AsType[*ExitError](err)
	if !ok || exit.ExitCode() != 3 || string(exit.Stderr) != "oops\n" || exit.Error() != "exit status 3" {
		t.Errorf("Output = %v, want exit status 3 with what was said", err)
	}
	if want := "hello box new=1\n/tmp\n"; string(out) != want {
		t.Errorf("output %q, want %q", out, want)
	}
	cmd = sb.Command(t.Context(), "sh", "-c", "echo 1; echo 2 >&2; echo 3")
	cmd.Dir = "/"
	if out, err := cmd.CombinedOutput(); err != nil || string(out) != "1\n2\n3\n" {
		t.Errorf("CombinedOutput = %q, %v", out, err)
	}
}

func TestOutputTooLarge(t *testing.T) {
	sb := newSandbox(t, api.Config{})
	_, err := sb.Command(t.Context(), "cat", "/dev/zero").Output()
	if !errors.Is(err, vm.ErrTooLarge) {
		t.Errorf("Output of an endless command = %v, want ErrTooLarge", err)
	}
}

func TestMainIsTheConfiguredCommand(t *testing.T) {
	sb := newSandbox(t, api.Config{Command: []string{"echo", "main"}})
	if out, err := sb.Main(t.Context()).Output(); err != nil || string(out) != "main\n" {
		t.Errorf("Main = %q, %v", out, err)
	}
	sb = newSandbox(t, api.Config{Entrypoint: []string{}})
	if err := sb.Main(t.Context()).Run(); !errors.Is(err, ErrNoCommand) {
		t.Errorf("Main without a command = %v, want ErrNoCommand", err)
	}
}

func TestStdinAndSignals(t *testing.T) {
	sb := newSandbox(t, api.Config{})
	cmd := sb.Command(t.Context(), "cat")
	cmd.Stdin = strings.NewReader("some\ninput")
	if out, err := cmd.Output(); err != nil || string(out) != "some\ninput" {
		t.Errorf("cat = %q, %v", out, err)
	}

	reading, output := io.Pipe()
	defer output.Close()
	cmd = sb.Command(t.Context(), "sh", "-c", `trap 'echo got; exit 7' USR1; echo ready; while :; do sleep 0.1; done`)
	cmd.Stdout = output
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 64)
	if n, err := reading.Read(buf); err != nil || string(buf[:n]) != "ready\n" {
		t.Fatalf("it said %q, %v", buf[:n], err)
	}
	go io.Copy(io.Discard, reading)
	if err := cmd.Signal(syscall.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	if exit, ok := errors.AsType[*ExitError](cmd.Wait()); !ok || exit.Code != 7 {
		t.Errorf("after SIGUSR1: %v, want exit status 7", exit)
	}

	err := sb.Command(t.Context(), "sh", "-c", "kill -9 $$").Run()
	if exit, ok := errors.AsType[*ExitError](err); !ok || exit.Code != 137 || exit.Signal != 9 || exit.Error() != "ended by signal 9" {
		t.Errorf("killed: %v", err)
	}
}

func TestTty(t *testing.T) {
	sb := newSandbox(t, api.Config{})
	cmd := sb.Command(t.Context(), "sh", "-c", "stty size; test -t 2")
	cmd.Tty = true
	if err := cmd.Resize(33, 99); err != nil {
		t.Fatal(err)
	}
	if out, err := cmd.Output(); err != nil || string(out) != "33 99\r\n" {
		t.Errorf("on a terminal: %q, %v", out, err)
	}
}

func TestNotStarted(t *testing.T) {
	sb := newSandbox(t, api.Config{})
	for name, code := range map[string]int{"no-such-program": 127, "/etc/passwd": 126} {
		exit, ok := errors.AsType[*ExitError](sb.Command(t.Context(), name).Run())
		if !ok || exit.Code != code || exit.Err == nil || !strings.Contains(exit.Error(), name) {
			t.Errorf("%s: %v, want status %d with the reason", name, exit, code)
		}
	}
	cmd := sb.Command(t.Context(), "true")
	if err := cmd.Wait(); err == nil {
		t.Error("Wait before Start = nil")
	}
	if err := cmd.Signal(syscall.SIGTERM); err == nil {
		t.Error("Signal before Start = nil")
	}
	if err := cmd.Run(); err != nil {
		t.Error(err)
	}
	if err := cmd.Start(); err == nil {
		t.Error("a second Start = nil")
	}
	cmd = sb.Command(t.Context(), "true")
	cmd.Env = []string{"nonsense"}
	if err := cmd.Run(); err == nil || !strings.Contains(err.Error(), `"nonsense"`) {
		t.Errorf("an environment without '=': %v", err)
	}
}

func TestTimeout(t *testing.T) {
	for name, script := range map[string]string{
		"obeys the stop signal": "exec sleep 1000",
		"ends well upon it":     `trap "exit 0" TERM; while :; do sleep 0.05; done`,
		"does not":              `trap "" TERM; while :; do sleep 0.05; done`,
	} {
		t.Run(name, func(t *testing.T) {
			sb := newSandbox(t, api.Config{Timeout: 100 * time.Millisecond, Command: []string{"sh", "-c", script}})
			if err := sb.Main(t.Context()).Run(); !errors.Is(err, ErrTimeout) || err.Error() != "timeout after 100ms" {
				t.Errorf("Run = %v, want ErrTimeout", err)
			}
			if err := sb.Command(t.Context(), "sleep", "0.2").Run(); err != nil {
				t.Errorf("another command: %v; the timeout is the first one's", err)
			}
		})
	}
}

func TestCancel(t *testing.T) {
	sb := newSandbox(t, api.Config{})
	reason := errors.New("no longer wanted")
	ctx, cancel := context.WithCancelCause(t.Context())
	cmd := sb.Command(ctx, "sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	cancel(reason)
	if err := cmd.Wait(); !errors.Is(err, reason) {
		t.Errorf("Wait = %v, want %v", err, reason)
	}
}

// TestFailingWriter has the reader of the output go away, with a program that
// minds and with one that does not.
func TestFailingWriter(t *testing.T) {
	sb := newSandbox(t, api.Config{})
	gone := errors.New("nobody reads this")
	cmd := sb.Command(t.Context(), "yes")
	cmd.Stdout = writerFunc(func([]byte) (int, error) { return 0, gone })
	if err := cmd.Run(); !errors.Is(err, gone) {
		t.Errorf("Run = %v, want %v", err, gone)
	}
	cmd = sb.Command(t.Context(), "sh", "-c", `trap "" PIPE; while echo y; do :; done 2>/dev/null; exit 5`)
	cmd.Stdout = writerFunc(func([]byte) (int, error) { return 0, gone })
	if exit, ok := errors.AsType[*ExitError](cmd.Run()); !ok || exit.Code != 5 {
		t.Errorf("a command with a status of its own: %v", exit)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

func TestCloseEndsCommands(t *testing.T) {
	sb := newSandbox(t, api.Config{})
	cmd := sb.Command(t.Context(), "sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := sb.Close(); err != nil {
			t.Error(err)
		}
	}
	if err := cmd.Wait(); !errors.Is(err, vm.ErrNotRunning) {
		t.Errorf("Wait after Close = %v, want ErrNotRunning", err)
	}
	if err := sb.Command(t.Context(), "true").Run(); !errors.Is(err, vm.ErrNotRunning) {
		t.Errorf("a command after Close = %v, want ErrNotRunning", err)
	}
}

// A library's sandbox takes all from the environment.
func TestNewFromEnvironment(t *testing.T) {
	t.Setenv("MATCHLOCK_HOME", testHome(t))
	if _, err := New(t.Context(), api.Config{Image: "nosuch", Pull: api.PullNever}); !errors.Is(err, ErrNotFound) {
		t.Errorf("New = %v, want ErrNotFound", err)
	}
}
