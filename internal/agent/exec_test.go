//go:build linux

package agent

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/matchlock/matchlock/api"
)

func TestExec(t *testing.T) {
	c := newPair(t)
	script := filepath.Join(t.TempDir(), "script")
	if err := os.WriteFile(script, []byte("echo $0 $1\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		command        string
		opts           api.ExecOptions
		status         int
		stdout, stderr string
	}{
		"output":          {command: "echo out; echo err >&2", stdout: "out\n", stderr: "err\n"},
		"nothing":         {},
		"status":          {command: "exit 7", status: 7},
		"signal":          {command: "kill -TERM $$", status: 128 + 15},
		"args":            {opts: api.ExecOptions{Args: []string{"printf", "%s|", "a b", "", "$HOME"}}, stdout: "a b||$HOME|"},
		"environment":     {command: "echo $BASE $X", opts: api.ExecOptions{Env: map[string]string{"X": "1"}}, stdout: "base 1\n"},
		"environment won": {command: "echo $BASE", opts: api.ExecOptions{Env: map[string]string{"BASE": "mine"}}, stdout: "mine\n"},
		"default PATH":    {command: "echo $PATH", stdout: defaultPath + "\n"},
		"given PATH": {opts: api.ExecOptions{Args: []string{"script", "x"}, Env: map[string]string{"PATH": "/no:" + filepath.Dir(script)}},
			stdout: script + " x\n"},
		"no interpreter line": {opts: api.ExecOptions{Args: []string{script, "x"}}, stdout: script + " x\n"},
		"relative to folder":  {opts: api.ExecOptions{Args: []string{"./script"}, WorkingDir: filepath.Dir(script)}, stdout: "./script\n"},
		"folder of PATH relative": {opts: api.ExecOptions{Args: []string{"script"}, WorkingDir: filepath.Dir(script), Env: map[string]string{"PATH": ""}},
			stdout: "./script\n"},
		"folder":         {command: "pwd", opts: api.ExecOptions{WorkingDir: "/usr"}, stdout: "/usr\n"},
		"no folder":      {command: "pwd", stdout: "/\n"},
		"empty input":    {command: "cat; echo done", stdout: "done\n"},
		"input":          {command: "tr a-z A-Z", opts: api.ExecOptions{Stdin: strings.NewReader("hello")}, stdout: "HELLO"},
		"input not read": {command: "echo out", opts: api.ExecOptions{Stdin: io.LimitReader(zeros{}, 10*stdinWindow)}, stdout: "out\n"},
		"input closed":   {command: "exec <&-; sleep 0.1; echo out", opts: api.ExecOptions{Stdin: io.LimitReader(zeros{}, 10*stdinWindow)}, stdout: "out\n"},
		"not found": {opts: api.ExecOptions{Args: []string{"no-such-program"}}, status: 127,
			stderr: "matchlock: exec: \"no-such-program\": not found in PATH\n"},
		"no file": {opts: api.ExecOptions{Args: []string{"/no/such"}}, status: 127,
			stderr: "matchlock: exec: \"/no/such\": no such file or directory\n"},
		"not executable": {opts: api.ExecOptions{Args: []string{"/etc/passwd"}}, status: 126,
			stderr: "matchlock: exec: \"/etc/passwd\": permission denied\n"},
		"not executable in PATH": {opts: api.ExecOptions{Args: []string{"passwd"}, Env: map[string]string{"PATH": "/etc"}}, status: 126,
			stderr: "matchlock: exec: \"/etc/passwd\": permission denied\n"},
		"folder as program": {opts: api.ExecOptions{Args: []string{"/etc"}}, status: 126,
			stderr: "matchlock: exec: \"/etc\": permission denied\n"},
	} {
		t.Run(name, func(t *testing.T) {
			result, err := c.Exec(t.Context(), test.command, &test.opts)
			if err != nil {
				t.Fatal(err)
			}
			if result.ExitCode != test.status || string(result.Stdout) != test.stdout || string(result.Stderr) != test.stderr {
				t.Errorf("status %d, stdout %q, stderr %q; want %d, %q, %q",
					result.ExitCode, result.Stdout, result.Stderr, test.status, test.stdout, test.stderr)
			}
		})
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestExecRefused(t *testing.T) {
	c := newPair(t)
	for name, test := range map[string]struct {
		command string
		opts    api.ExecOptions
		is      error
		want    string
	}{
		"unknown user":     {"true", api.ExecOptions{User: "nobody-knows-me"}, ErrUnknownUser, `user "nobody-knows-me": not in /etc/passwd`},
		"unknown group":    {"true", api.ExecOptions{User: "0:nobody-knows-me"}, ErrUnknownUser, `group "nobody-knows-me": not in /etc/group`},
		"folder is a file": {"true", api.ExecOptions{WorkingDir: "/etc/passwd/x"}, nil, "working directory: mkdir /etc/passwd: not a directory"},
		"relative folder":  {"true", api.ExecOptions{WorkingDir: "tmp"}, nil, "not absolute"},
		"NUL":              {"", api.ExecOptions{Args: []string{"a\x00b"}}, nil, "NUL"},
		"variable":         {"true", api.ExecOptions{Env: map[string]string{"A=B": "C"}}, nil, "not a name"},
		"two commands":     {"true", api.ExecOptions{Args: []string{"true"}}, nil, "both"},
		"too much":         {strings.Repeat("x", 5<<20), api.ExecOptions{}, ErrTooLarge, "to be sent"},
	} {
		t.Run(name, func(t *testing.T) {
			result, err := c.Exec(t.Context(), test.command, &test.opts)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, %v; want %q", result, err, test.want)
			}
			if test.is != nil && !errors.Is(err, test.is) {
				t.Errorf("%v is not %v", err, test.is)
			}
		})
	}
}

func TestLargeEnvironmentAndArguments(t *testing.T) {
	c := newPair(t)
	env := make(map[string]string)
	for i := range 10 {
		env[fmt.Sprint("V", i)] = strings.Repeat("v", 100_000)
	}
	result, err := c.Exec(t.Context(), "", &api.ExecOptions{Env: env, Args: []string{"sh", "-c", "env | wc -c; echo ${#1}", "sh", strings.Repeat("a", 100_000)}})
	if err != nil {
		t.Fatal(err)
	}
	var size, arg int
	if _, err := fmt.Sscan(string(result.Stdout), &size, &arg); err != nil || size < 1_000_000 || arg != 100_000 {
		t.Errorf("environment of %d bytes, argument of %d, %v", size, arg, err)
	}
	// What the kernel does not take is a program that cannot be run.
	result, err = c.Exec(t.Context(), "", &api.ExecOptions{Args: []string{"true", strings.Repeat("a", 200_000)}})
	if err != nil || result.ExitCode != 126 || !strings.Contains(string(result.Stderr), "argument list too long") {
		t.Errorf("got %v, %v; want status 126", result, err)
	}
}

func TestWorkingDirIsMade(t *testing.T) {
	c := newPair(t)
	dir := filepath.Join(t.TempDir(), "a", "b")
	result, err := c.Exec(t.Context(), "pwd; umask", &api.ExecOptions{WorkingDir: dir})
	if err != nil || string(result.Stdout) != dir+"\n0022\n" {
		t.Fatalf("got %q, %v", result.Stdout, err)
	}
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o755 {
		t.Errorf("got %v, %v; want mode 0755", info, err)
	}
}

func TestExecsAtOnceKeepTheirOutputApart(t *testing.T) {
	c := newPair(t)
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			text := strings.Repeat(fmt.Sprintf("%04d", i), 20_000)
			result, err := c.Exec(t.Context(), "tee /dev/stderr", &api.ExecOptions{Stdin: strings.NewReader(text)})
			if err != nil {
				t.Error(err)
				return
			}
			if string(result.Stdout) != text || string(result.Stderr) != text {
				t.Errorf("exec %d: stdout of %d bytes, stderr of %d, want %d and no other's", i, len(result.Stdout), len(result.Stderr), len(text))
			}
		})
	}
	wg.Wait()
}

// A command that writes much costs the same memory as one that writes little.
func TestLargeOutput(t *testing.T) {
	const size = 256 << 20
	c := newPair(t)
	hash := sha256.New()
	var peak uint64
	stdout := writerFunc(func(p []byte) (int, error) {
		var mem runtime.MemStats
		if len(p) < chunk { // now and then
			runtime.ReadMemStats(&mem)
			peak = max(peak, mem.HeapInuse)
		}
		return hash.Write(p)
	})
	_, err := c.Exec(t.Context(), fmt.Sprintf("head -c %d /dev/zero", size), &api.ExecOptions{Stdout: stdout})
	if err != nil {
		t.Fatal(err)
	}
	want := sha256.New()
	io.CopyN(want, zeros{}, size)
	if !bytes.Equal(hash.Sum(nil), want.Sum(nil)) {
		t.Error("the output differs")
	}
	if most := uint64(64 << 20); peak > most {
		t.Errorf("heap of %d MiB, want at most %d", peak>>20, most>>20)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

func TestCollectedOutputIsBounded(t *testing.T) {
	c := newPair(t)
	result, err := c.Exec(t.Context(), "exec yes", nil)
	if result != nil || !errors.Is(err, ErrTooLarge) {
		t.Errorf("got %v, want ErrTooLarge", err)
	}
}

// One exec's reader stands still; it holds up that command and no other.
func TestBackPressure(t *testing.T) {
	c := newPair(t)
	ctx, cancel := context.WithCancel(t.Context())
	reached, release := make(chan struct{}), make(chan struct{})
	result := make(chan error)
	progress := filepath.Join(t.TempDir(), "progress")
	go func() {
		_, err := c.Exec(ctx, "head -c 100000000 /dev/zero; touch "+progress, &api.ExecOptions{Stdout: writerFunc(func(p []byte) (int, error) {
			select {
			case <-reached:
			default:
				close(reached)
			}
			<-release
			return len(p), nil
		})})
		result <- err
	}()
	<-reached
	for range 3 {
		if other, err := c.Exec(t.Context(), "echo other", nil); err != nil || string(other.Stdout) != "other\n" {
			t.Fatalf("got %v, %v", other, err)
		}
	}
	if _, err := os.Stat(progress); err == nil {
		t.Error("the command got rid of 100 MB that nobody took")
	}
	// It can still be cancelled, although its writer never returns.
	cancel()
	if err := <-result; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want context.Canceled", err)
	}
	close(release)
}

func TestMergedOutputKeepsItsOrder(t *testing.T) {
	c := newPair(t)
	var both bytes.Buffer
	_, err := c.Exec(t.Context(), "for i in 1 2 3 4; do echo out$i; echo err$i >&2; done", &api.ExecOptions{Stdout: &both, Stderr: &both})
	if want := "out1\nerr1\nout2\nerr2\nout3\nerr3\nout4\nerr4\n"; err != nil || both.String() != want {
		t.Errorf("got %q, %v", both.String(), err)
	}
}

// As in a pipeline whose reader has gone, the writer gets SIGPIPE.
func TestFailingWriterIsAClosedPipe(t *testing.T) {
	c := newPair(t)
	full := errors.New("disk full")
	result, err := c.Exec(t.Context(), "exec yes", &api.ExecOptions{Stdout: writerFunc(func([]byte) (int, error) { return 0, full })})
	if !errors.Is(err, full) || result == nil || result.ExitCode != 128+13 {
		t.Errorf("got %v, %v; want status 141 and the writer's error", result, err)
	}
	result, err = c.Exec(t.Context(), "exec yes >&2", &api.ExecOptions{Stderr: writerFunc(func([]byte) (int, error) { return 0, full })})
	if !errors.Is(err, full) || result == nil || result.ExitCode != 128+13 {
		t.Errorf("stderr: got %v, %v; want status 141 and the writer's error", result, err)
	}
}

func TestFailingReader(t *testing.T) {
	c := newPair(t)
	broken := errors.New("broken")
	stdin := io.MultiReader(strings.NewReader("some"), readerFunc(func([]byte) (int, error) { return 0, broken }))
	result, err := c.Exec(t.Context(), "cat", &api.ExecOptions{Stdin: stdin})
	if !errors.Is(err, broken) || result == nil || string(result.Stdout) != "some" {
		t.Errorf("got %v, %v; want the output and the reader's error", result, err)
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// A reader that blocks does not hold up the end.
func TestBlockedReader(t *testing.T) {
	c := newPair(t)
	r, w := io.Pipe()
	defer w.Close()
	if result, err := c.Exec(t.Context(), "exit 3", &api.ExecOptions{Stdin: r}); err != nil || result.ExitCode != 3 {
		t.Errorf("got %v, %v", result, err)
	}
}

func TestBackgroundChildLivesOn(t *testing.T) {
	c := newPair(t)
	dir := t.TempDir()
	// The child holds both outputs, writes more than a pipe takes, and is then still there.
	result, err := c.Exec(t.Context(), `
		(head -c 1000000 /dev/zero; echo survived >`+dir+`/proof; exec sleep 1000) &
		echo $! >&2`, &api.ExecOptions{Stdout: io.Discard})
	if err != nil || result.ExitCode != 0 {
		t.Fatalf("got %v, %v", result, err)
	}
	waitFor(t, "the child", func() bool { _, err := os.Stat(dir + "/proof"); return err == nil })
	kill(t, string(result.Stderr))

	result, err = c.Exec(t.Context(), "sleep 1000 & echo $!", nil)
	if err != nil {
		t.Fatal(err)
	}
	pid := strings.TrimSpace(string(result.Stdout))
	if gone(pid) {
		t.Error("the child died with its parent")
	}
	kill(t, pid)
}

// kill ends a process that a test has left behind.
func kill(t *testing.T, pid string) {
	t.Helper()
	n, err := strconv.Atoi(strings.TrimSpace(pid))
	if err != nil || n <= 1 {
		t.Fatalf("pid %q", pid)
	}
	if err := syscall.Kill(n, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the end of "+pid, func() bool { return gone(pid) })
}

// A child that never stops writing does not keep an exec open, and what was
// written before the end is all there.
func TestEndlessBackgroundWriter(t *testing.T) {
	c := newPair(t)
	result, err := c.Exec(t.Context(), "yes & echo last >&2; echo $! >&2", &api.ExecOptions{Stdout: io.Discard})
	if err != nil {
		t.Fatal(err)
	}
	last, pid, _ := strings.Cut(string(result.Stderr), "\n")
	if last != "last" {
		t.Errorf("stderr %q", result.Stderr)
	}
	kill(t, pid)
}

func TestLastBytesArrive(t *testing.T) {
	c := newPair(t)
	for i := range 50 {
		// A child holds the pipe, so that the end of the file does not tell of the end.
		result, err := c.Exec(t.Context(), "head -c 60000 /dev/zero; sleep 1000 & echo $! >&2", nil)
		if err != nil || len(result.Stdout) != 60000 {
			t.Fatalf("run %d: %d bytes, %v", i, len(result.Stdout), err)
		}
		kill(t, string(result.Stderr))
	}
}

// cancelled runs a command that prints "ready" when it may be cancelled.
func cancelled(t *testing.T, c *pair, command string) (rest string, took time.Duration) {
	t.Helper()
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	enough := errors.New("enough")
	r, w := io.Pipe()
	line := make(chan string)
	go func() {
		var got []byte
		for buf := make([]byte, 100); !bytes.Contains(got, []byte("\n")); {
			n, err := r.Read(buf)
			if err != nil {
				break
			}
			got = append(got, buf[:n]...)
		}
		line <- string(got)
		io.Copy(io.Discard, r)
	}()
	result := make(chan error)
	go func() {
		_, err := c.Exec(ctx, command, &api.ExecOptions{Stdout: w})
		w.Close()
		result <- err
	}()
	rest = strings.TrimSpace(strings.TrimPrefix(<-line, "ready"))
	start := time.Now()
	cancel(enough)
	if err := <-result; !errors.Is(err, enough) {
		t.Errorf("got %v, want the context's cause", err)
	}
	return rest, time.Since(start)
}

func TestCancel(t *testing.T) {
	c := newPair(t)
	t.Run("at once", func(t *testing.T) {
		pid, took := cancelled(t, c, "echo ready $$; exec sleep 1000")
		if took >= killGrace {
			t.Errorf("took %v", took)
		}
		if !gone(pid) {
			t.Error("the process lives")
		}
	})
	t.Run("children too", func(t *testing.T) {
		pid, _ := cancelled(t, c, "sleep 1000 & echo ready $!; wait")
		waitFor(t, "the child's end", func() bool { return gone(pid) })
	})
	t.Run("ignores SIGTERM", func(t *testing.T) {
		pid, took := cancelled(t, c, "trap '' TERM; echo ready $$; while :; do sleep 0.1; done")
		if took < killGrace || took > killGrace+waitAfterKill {
			t.Errorf("took %v, want %v", took, killGrace)
		}
		waitFor(t, "the end", func() bool { return gone(pid) })
	})
	t.Run("child ignores SIGTERM", func(t *testing.T) {
		// The group's leader is gone at once and its number free; the child is reached
		// nonetheless.
		pid, took := cancelled(t, c, "(trap '' TERM; while :; do sleep 0.1; done) & echo ready $!; wait")
		if took >= killGrace {
			t.Errorf("took %v", took)
		}
		waitFor(t, "the child's end", func() bool { return gone(pid) })
	})
	t.Run("before", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := c.Exec(ctx, "true", nil); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("input in the way", func(t *testing.T) {
		// The input's window is full and nobody reads it: the request to end is
		// not behind it.
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		defer cancel()
		start := time.Now()
		_, err := c.Exec(ctx, "exec sleep 1000", &api.ExecOptions{Stdin: zeros{}})
		if !errors.Is(err, context.DeadlineExceeded) || time.Since(start) > killGrace {
			t.Errorf("got %v after %v", err, time.Since(start))
		}
	})
}

// When the host disappears its commands are ended, but not what they left behind.
func TestHostDisappears(t *testing.T) {
	c := newPair(t)
	result, err := c.Exec(t.Context(), "sleep 1000 & echo $!", nil)
	if err != nil {
		t.Fatal(err)
	}
	background := string(result.Stdout)
	r, w := io.Pipe()
	s, err := c.Start(t.Context(), Command{Args: Shell("trap '' TERM; echo $$; while :; do sleep 0.1; done"), Stdout: w})
	if err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 100)
	n, _ := r.Read(buf)
	c.host.Close()
	if _, err := s.Wait(); err == nil {
		t.Error("how the command ended cannot be known")
	}
	waitFor(t, "the end", func() bool { return gone(string(buf[:n])) })
	if gone(background) {
		t.Error("what an earlier command left behind was ended too")
	}
	kill(t, background)
}

func TestSession(t *testing.T) {
	c := newPair(t)
	var stdout lockedBuffer
	s, err := c.Start(t.Context(), Command{Args: Shell("trap 'echo got usr1' USR1; echo $$; while read line; do echo $line; done; exit 5"), Stdin: true, Stdout: &stdout})
	if err != nil {
		t.Fatal(err)
	}
	waitFor(t, "pid", func() bool { return stdout.String() == fmt.Sprintln(s.PID()) })
	io.WriteString(s, "one\n")
	waitFor(t, "echo", func() bool { return strings.HasSuffix(stdout.String(), "one\n") })
	if err := s.Signal(10); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "signal", func() bool { return strings.HasSuffix(stdout.String(), "got usr1\n") })
	if err := s.Signal(1000); err == nil {
		t.Error("signal 1000 was taken")
	}
	s.CloseWrite()
	exit, err := s.Wait()
	if err != nil || exit.Code != 5 || exit.Signal != 0 || exit.Duration <= 0 {
		t.Errorf("got %v, %v", exit, err)
	}
	if _, err := s.Write([]byte("x")); err == nil {
		t.Error("a write after the end succeeded")
	}
	if _, err := c.Start(t.Context(), Command{Args: []string{"no-such-program"}}); !errors.Is(err, ErrCommandNotFound) || !IsGuestError(err) {
		t.Errorf("got %v, want ErrCommandNotFound", err)
	}
}

type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

func TestClosedInput(t *testing.T) {
	c := newPair(t)
	s, err := c.Start(t.Context(), Command{Args: Shell("exec <&-; exec sleep 1000"), Stdin: true})
	if err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, err = s.Write(make([]byte, 1000))
	}
	if err != io.ErrClosedPipe {
		t.Errorf("got %v, want io.ErrClosedPipe", err)
	}
	s.Signal(sigKill)
	if exit, err := s.Wait(); err != nil || exit.Signal != sigKill {
		t.Errorf("got %v, %v", exit, err)
	}
}

func TestDuration(t *testing.T) {
	c := newPair(t)
	result, err := c.Exec(t.Context(), "sleep 0.2", nil)
	if err != nil || result.Duration < 200*time.Millisecond || result.Duration > 5*time.Second {
		t.Errorf("got %v, %v", result, err)
	}
}

func TestBaseEnvironmentGrows(t *testing.T) {
	server := NewServer(HostStarter{}, map[string]string{"A": "1", "B": "1"})
	defer server.Close()
	server.AddEnv(map[string]string{"B": "2", "C": "2"})
	_, attr, err := server.prepare(&execRequest{args: []string{"sh"}, env: map[string]string{"C": "3"}})
	if err != nil {
		t.Fatal(err)
	}
	got := strings.Join(attr.Env, " ") + " "
	for _, want := range []string{"A=1 ", "B=2 ", "C=3 ", "PATH=" + defaultPath + " "} {
		if strings.Count(" "+got, " "+want) != 1 {
			t.Errorf("environment %q, want %q", got, want)
		}
	}
}

// A preparingStarter remembers for what it was made ready.
type preparingStarter struct {
	HostStarter
	prepared, started []*os.File
}

func (s *preparingStarter) Prepare(files []*os.File) error {
	s.prepared = files
	return nil
}

func (s *preparingStarter) Start(path string, argv []string, attr *ProcAttr) (Process, error) {
	s.started = slices.Clone(attr.Files)
	return s.HostStarter.Start(path, argv, attr)
}

// TestPreparedCommand: the first command after PrepareCommand has what was made
// ready, if that is what it needs, and goes as any other does.
func TestPreparedCommand(t *testing.T) {
	for name, test := range map[string]struct {
		line   string
		input  string
		merged bool
		want   string
	}{
		"output":       {line: "echo out; echo err >&2; cat", want: "out\nerr\n"},
		"input":        {line: "cat; echo end", input: "in\n", want: "in\nend\n"},
		"merged":       {line: "echo out; echo err >&2", merged: true, want: "out\nerr\n"},
		"cannot start": {line: "", want: "matchlock: exec: \"\": not found in PATH\n"},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPair(t)
			starter := new(preparingStarter)
			p.server.starter = starter
			if err := p.server.PrepareCommand(); err != nil {
				t.Fatal(err)
			}
			for again := range 2 {
				var out, errors bytes.Buffer
				opts := &api.ExecOptions{Args: []string{"/bin/sh", "-c", test.line}, Stdout: &out, Stderr: &errors}
				if test.merged {
					opts.Stderr = &out
				}
				if test.input != "" {
					opts.Stdin = strings.NewReader(test.input)
				}
				if test.line == "" {
					opts.Args = []string{""}
				}
				if _, err := p.Exec(t.Context(), "", opts); err != nil {
					t.Fatal(err)
				}
				if got := out.String() + errors.String(); got != test.want {
					t.Errorf("got %q, want %q", got, test.want)
				}
				if got, want := slices.Equal(starter.started, starter.prepared), again == 0 && !test.merged && test.line != ""; got != want {
					t.Errorf("command %d has the files that were made ready: %v, want %v", again, got, want)
				}
			}
		})
	}
}

func TestWarmUp(t *testing.T) {
	server := NewServer(HostStarter{}, nil)
	defer server.Close()
	if err := server.WarmUp("/bin/true", "true"); err != nil {
		t.Error(err)
	}
	if err := server.WarmUp("/bin/false", "false"); err == nil || !strings.Contains(err.Error(), "status 1") {
		t.Errorf("got %v, want status 1", err)
	}
	if err := server.WarmUp("/nowhere", "x"); err == nil {
		t.Error("a program that is not there was run")
	}
}

func TestRememberRoot(t *testing.T) {
	server := NewServer(HostStarter{}, nil)
	defer server.Close()
	want, err := server.resolve("")
	if err != nil {
		t.Fatal(err)
	}
	server.RememberRoot()
	got, err := server.resolve("")
	if err != nil || got != server.root.account || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v; want %+v, remembered", got, err, want)
	}
	server.root.files[1].Mtim.Sec++ // somebody has written it
	if got, err = server.resolve(""); err != nil || got == server.root.account || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v; want %+v, looked up", got, err, want)
	}
}

func BenchmarkExecTrue(b *testing.B) {
	c := newPair(b)
	for b.Loop() {
		if _, err := c.Exec(b.Context(), "", &api.ExecOptions{Args: []string{"/bin/true"}}); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkOutput(b *testing.B) {
	const size = 64 << 20
	c := newPair(b)
	b.SetBytes(size)
	for b.Loop() {
		if _, err := c.Exec(b.Context(), fmt.Sprintf("head -c %d /dev/zero", size), &api.ExecOptions{Stdout: io.Discard}); err != nil {
			b.Fatal(err)
		}
	}
}
