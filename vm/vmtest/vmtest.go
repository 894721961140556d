// Package vmtest holds any vm.Backend to the contract of package vm: one list
// of behaviours, run against a machine in this process (InProcess, for plain
// tests) and against every hypervisor. What a guest looks like from inside is
// tested where guests are made.
package vmtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/matchlock/matchlock/api"
	"github.com/matchlock/matchlock/vm"
)

// patience bounds each behaviour: a machine may boot in it, translated
// instruction by instruction.
const patience = 2 * time.Minute

// Run tests backend with machines of the given configuration, which is asked
// for anew for each machine. The guest needs a shell with the usual programs,
// and a writable /tmp.
func Run(t *testing.T, backend vm.Backend, config func(*testing.T) *vm.VMConfig) {
	t.Run("Running", func(t *testing.T) {
		m := create(t, backend, config(t))
		if err := m.Start(limited(t)); err != nil {
			t.Fatal(err)
		}
		for _, name := range sorted(Running) {
			t.Run(name, func(t *testing.T) { Running[name](t, m) })
		}
	})
	for _, name := range sorted(Lives) {
		t.Run("Lives/"+name, func(t *testing.T) {
			Lives[name](t, func(change func(*vm.VMConfig)) (vm.Machine, error) {
				c := config(t)
				if change != nil {
					change(c)
				}
				m, err := backend.Create(limited(t), c)
				if err == nil {
					t.Cleanup(func() { m.Close(context.Background()) })
				}
				return m, err
			})
		})
	}
}

func sorted[F any](behaviours map[string]F) []string {
	var names []string
	for name := range behaviours {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

func create(t *testing.T, backend vm.Backend, config *vm.VMConfig) vm.Machine {
	t.Helper()
	m, err := backend.Create(limited(t), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return m
}

func limited(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

// Running are the behaviours of a machine that has started. They leave it as it
// was.
var Running = map[string]func(*testing.T, vm.Machine){
	"exec: output, error output and status are told apart": func(t *testing.T, m vm.Machine) {
		r := exec(t, m, "echo out; echo err >&2; exit 3", nil)
		if string(r.Stdout) != "out\n" || string(r.Stderr) != "err\n" || r.ExitCode != 3 || r.Duration <= 0 {
			t.Errorf("got %q, %q, %d, %v", r.Stdout, r.Stderr, r.ExitCode, r.Duration)
		}
	},
	"exec: arguments are arguments": func(t *testing.T, m vm.Machine) {
		r := exec(t, m, "", &api.ExecOptions{Args: []string{"printf", "%s|", "a b", "$HOME", "'", ""}})
		if want := "a b|$HOME|'||"; string(r.Stdout) != want {
			t.Errorf("got %q, want %q", r.Stdout, want)
		}
	},
	"exec: a command string beside arguments is refused": func(t *testing.T, m vm.Machine) {
		if _, err := m.Exec(limited(t), "true", &api.ExecOptions{Args: []string{"true"}}); err == nil {
			t.Error("no error")
		}
	},
	"exec: environment, folder and input": func(t *testing.T, m vm.Machine) {
		r := exec(t, m, "pwd; echo $KEY; cat", &api.ExecOptions{
			WorkingDir: "/tmp", Env: map[string]string{"KEY": "a value"}, Stdin: strings.NewReader("typed\n"),
		})
		if want := "/tmp\na value\ntyped\n"; string(r.Stdout) != want {
			t.Errorf("got %q, want %q", r.Stdout, want)
		}
	},
	"exec: without input a command sees its end": func(t *testing.T, m vm.Machine) {
		if r := exec(t, m, "cat; echo done", nil); string(r.Stdout) != "done\n" {
			t.Errorf("got %q", r.Stdout)
		}
	},
	"exec: writers get the output as it comes": func(t *testing.T, m vm.Machine) {
		answer, input := io.Pipe()
		seen := &notify{text: []byte("first\n"), seen: sync.OnceFunc(func() { // only then the command is let go on
			go func() { io.WriteString(input, "\n"); input.Close() }()
		})}
		exec(t, m, "echo first; read x; echo second", &api.ExecOptions{Stdin: answer, Stdout: seen})
		if string(seen.all) != "first\nsecond\n" {
			t.Errorf("got %q", seen.all)
		}
	},
	"exec: what cannot run has a status of its own": func(t *testing.T, m vm.Machine) {
		for command, want := range map[string]int{"/no/such/program": 127, "no-such-program": 127, "/tmp": 126} {
			r := exec(t, m, "", &api.ExecOptions{Args: []string{command}})
			if r.ExitCode != want || len(r.Stderr) == 0 {
				t.Errorf("%s: status %d, %q; want %d and a reason", command, r.ExitCode, r.Stderr, want)
			}
		}
	},
	"exec: death by a signal is 128 and its number": func(t *testing.T, m vm.Machine) {
		if r := exec(t, m, "kill -KILL $$", nil); r.ExitCode != 137 {
			t.Errorf("status %d", r.ExitCode)
		}
	},
	"exec: an unknown user is an error": func(t *testing.T, m vm.Machine) {
		if _, err := m.Exec(limited(t), "true", &api.ExecOptions{User: "no-such-user"}); err == nil {
			t.Error("no error")
		}
	},
	"exec: a cancelled command ends, though it ignores SIGTERM": func(t *testing.T, m vm.Machine) {
		ctx, cancel := context.WithCancelCause(limited(t))
		reason := errors.New("enough")
		started := &notify{text: []byte("up"), seen: func() { cancel(reason) }}
		began := time.Now()
		_, err := m.Exec(ctx, "trap '' TERM; echo up; sleep 600", &api.ExecOptions{Stdout: started})
		if !errors.Is(err, reason) {
			t.Errorf("got %v, want %v", err, reason)
		}
		if took := time.Since(began); took > 30*time.Second {
			t.Errorf("took %v", took)
		}
		if r := exec(t, m, "ps | grep -c '[s]leep 600' || true", nil); strings.TrimSpace(string(r.Stdout)) != "0" {
			t.Errorf("%q of it left", r.Stdout)
		}
	},
	"exec: too much collected output is an error": func(t *testing.T, m vm.Machine) {
		if _, err := m.Exec(limited(t), "cat /dev/zero", nil); !errors.Is(err, vm.ErrTooLarge) {
			t.Errorf("got %v, want ErrTooLarge", err)
		}
	},
	"exec: twenty at once keep apart": func(t *testing.T, m vm.Machine) {
		var all sync.WaitGroup
		for i := range 20 {
			all.Go(func() {
				line := fmt.Sprintf("command %d", i)
				r, err := m.Exec(limited(t), "for i in 1 2 3 4 5 6 7 8 9; do echo $LINE; echo $LINE >&2; done", &api.ExecOptions{Env: map[string]string{"LINE": line}})
				want := strings.Repeat(line+"\n", 9)
				if err != nil || string(r.Stdout) != want || string(r.Stderr) != want {
					t.Errorf("%s: %v, %+v", line, err, r)
				}
			})
		}
		all.Wait()
	},
	"exec interactive: a terminal with its size": func(t *testing.T, m vm.Machine) {
		var out bytes.Buffer
		resize := make(chan [2]uint16)
		close(resize)
		status, err := m.(vm.InteractiveMachine).ExecInteractive(limited(t), "stty size; tty >/dev/null && echo terminal; read x; echo got $x; exit 4", nil,
			33, 77, strings.NewReader("typed\n"), &out, resize)
		if err != nil || status != 4 {
			t.Errorf("status %d, %v", status, err)
		}
		for _, want := range []string{"33 77", "terminal", "got typed"} {
			if !strings.Contains(out.String(), want) {
				t.Errorf("%q lacks %q", out.String(), want)
			}
		}
	},
	"files: written, read, listed": func(t *testing.T, m vm.Machine) {
		dir := scratch(t, m)
		content := bytes.Repeat([]byte("0123456789abcdef"), 100_000)
		for name, mode := range map[string]uint32{"b/c/script": 0o755, "a": 0} {
			if err := m.WriteFile(limited(t), path.Join(dir, name), content, mode); err != nil {
				t.Fatal(err)
			}
		}
		got, err := m.ReadFile(limited(t), dir+"/b/c/script")
		if err != nil || !bytes.Equal(got, content) {
			t.Errorf("read %d bytes, %v; wrote %d", len(got), err, len(content))
		}
		files, err := m.ListFiles(limited(t), dir)
		if err != nil || len(files) != 2 {
			t.Fatalf("listed %v, %v", files, err)
		}
		a, b := files[0], files[1]
		if a.Name != "a" || a.IsDir || a.Size != int64(len(content)) || a.Mode != 0o100644 || time.Since(a.ModTime) > time.Hour {
			t.Errorf("a file: %+v", a)
		}
		if b.Name != "b" || !b.IsDir {
			t.Errorf("a folder: %+v", b)
		}
	},
	"files: what cannot be read or written is an error": func(t *testing.T, m vm.Machine) {
		dir := scratch(t, m)
		exec(t, m, "mkfifo "+dir+"/fifo; ln -s loop "+dir+"/loop; mkdir "+dir+"/folder", nil)
		for _, name := range []string{"missing", "fifo", "loop", "folder"} {
			if _, err := m.ReadFile(limited(t), dir+"/"+name); err == nil {
				t.Errorf("read %s", name)
			}
		}
		if _, err := m.ReadFile(limited(t), dir+"/missing"); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("missing file: %v, want ErrNotExist", err)
		}
		if _, err := m.ReadFile(limited(t), "relative"); err == nil {
			t.Error("read a relative path")
		}
		if err := m.WriteFile(limited(t), dir+"/folder", nil, 0); err == nil {
			t.Error("wrote a folder")
		}
		if _, err := m.ListFiles(limited(t), dir+"/missing"); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("missing folder: %v, want ErrNotExist", err)
		}
	},
	"files: one too large to hold is an error": func(t *testing.T, m vm.Machine) {
		dir := scratch(t, m)
		exec(t, m, fmt.Sprintf("truncate -s %d %s/large", vm.MaxReadFile+1, dir), nil)
		if _, err := m.ReadFile(limited(t), dir+"/large"); !errors.Is(err, vm.ErrTooLarge) {
			t.Errorf("got %v, want ErrTooLarge", err)
		}
	},
	"vsock: reserved and silent ports are refused": func(t *testing.T, m vm.Machine) {
		for _, port := range []uint32{0, 1, 2, 256, 1023, 9999, 10000 + 9} {
			if conn, err := m.(vm.VsockDialer).DialVsock(port); err == nil {
				conn.Close()
				t.Errorf("port %d is open", port)
			}
		}
	},
	"vsock: a descriptor speaks the hybrid protocol": func(t *testing.T, m vm.Machine) {
		fd, err := m.VsockFD()
		if err != nil {
			t.Fatal(err)
		}
		file := os.NewFile(uintptr(fd), "vsock")
		conn, err := net.FileConn(file)
		file.Close()
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(patience))
		fmt.Fprintf(conn, "CONNECT %d\n", 1)
		if answer, err := io.ReadAll(conn); err != nil || len(answer) != 0 {
			t.Errorf("a reserved port answers %q, %v", answer, err)
		}
	},
	"start: only once": func(t *testing.T, m vm.Machine) {
		if err := m.Start(limited(t)); err == nil {
			t.Error("no error")
		}
	},
	"wait: ends with its context": func(t *testing.T, m vm.Machine) {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		if err := m.Wait(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
	},
	"boot: not after user code": func(t *testing.T, m vm.Machine) {
		exec(t, m, "true", nil)
		if err := m.(vm.Booter).Boot(limited(t), &api.BootData{}); err == nil {
			t.Error("no error")
		}
	},
}

// Lives are the behaviours from creation to end. create makes a machine, whose
// configuration change may alter.
var Lives = map[string]func(t *testing.T, create func(change func(*vm.VMConfig)) (vm.Machine, error)){
	"not started, nothing works": func(t *testing.T, create func(func(*vm.VMConfig)) (vm.Machine, error)) {
		m, err := create(nil)
		if err != nil {
			t.Fatal(err)
		}
		notRunning(t, m)
		if err := m.Stop(limited(t)); err != nil {
			t.Errorf("Stop: %v", err)
		}
		for range 2 {
			if err := m.Close(limited(t)); err != nil {
				t.Errorf("Close: %v", err)
			}
		}
		if err := m.Start(limited(t)); !errors.Is(err, vm.ErrNotRunning) {
			t.Errorf("Start after Close: %v", err)
		}
	},
	"a bad configuration makes no machine": func(t *testing.T, create func(func(*vm.VMConfig)) (vm.Machine, error)) {
		_, err := create(func(c *vm.VMConfig) { c.ID, c.CPUs, c.MTU = "?", -1, 1 })
		for _, want := range []string{"ID", "CPUs", "MTU"} {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%v: lacks %s", err, want)
			}
		}
	},
	"boot data in the configuration": func(t *testing.T, create func(func(*vm.VMConfig)) (vm.Machine, error)) {
		m, err := create(func(c *vm.VMConfig) {
			c.Env, c.Boot = map[string]string{"A": "config", "B": "config"}, &api.BootData{Env: map[string]string{"B": "boot"}}
		})
		if err != nil {
			t.Fatal(err)
		}
		defer m.Close(limited(t))
		if err := m.Start(limited(t)); err != nil {
			t.Fatal(err)
		}
		if err := m.(vm.Booter).Boot(limited(t), &api.BootData{}); err == nil {
			t.Error("a call of Boot is taken too")
		}
		if r := exec(t, m, "echo $A $B", nil); string(r.Stdout) != "config boot\n" {
			t.Errorf("environment %q", r.Stdout)
		}
	},
	"boot data, stop, and what is left then": func(t *testing.T, create func(func(*vm.VMConfig)) (vm.Machine, error)) {
		m, err := create(func(c *vm.VMConfig) { c.Env = map[string]string{"A": "config", "B": "config"} })
		if err != nil {
			t.Fatal(err)
		}
		if err := m.Start(limited(t)); err != nil {
			t.Fatal(err)
		}
		boot := m.(vm.Booter).Boot
		if err := boot(limited(t), &api.BootData{Env: map[string]string{"B": "boot", "C": "boot"}}); err != nil {
			t.Fatal(err)
		}
		if err := boot(limited(t), &api.BootData{}); err == nil {
			t.Error("a second Boot is taken")
		}
		r := exec(t, m, "echo $A $B $C", &api.ExecOptions{Env: map[string]string{"C": "exec"}})
		if want := "config boot exec\n"; string(r.Stdout) != want {
			t.Errorf("environment %q, want %q", r.Stdout, want)
		}
		running := make(chan error, 1)
		go func() {
			_, err := m.Exec(limited(t), "sleep 600", nil)
			running <- err
		}()
		for range 2 {
			if err := m.Stop(limited(t)); err != nil {
				t.Errorf("Stop: %v", err)
			}
		}
		if err := <-running; !errors.Is(err, vm.ErrNotRunning) {
			t.Errorf("a command under way: %v, want ErrNotRunning", err)
		}
		if err := m.Wait(limited(t)); err != nil {
			t.Errorf("Wait: %v", err)
		}
		notRunning(t, m)
		if pid := m.PID(); pid != 0 {
			t.Errorf("PID %d", pid)
		}
	},
}

// notRunning checks that every call says that there is no guest.
func notRunning(t *testing.T, m vm.Machine) {
	t.Helper()
	ctx := limited(t)
	_, execErr := m.Exec(ctx, "true", nil)
	_, readErr := m.ReadFile(ctx, "/etc/passwd")
	_, listErr := m.ListFiles(ctx, "/")
	_, fdErr := m.VsockFD()
	_, dialErr := m.(vm.VsockDialer).DialVsock(10080)
	for name, err := range map[string]error{
		"Exec": execErr, "ReadFile": readErr, "ListFiles": listErr, "VsockFD": fdErr, "DialVsock": dialErr,
		"WriteFile": m.WriteFile(ctx, "/tmp/x", nil, 0), "Boot": m.(vm.Booter).Boot(ctx, &api.BootData{}),
	} {
		if !errors.Is(err, vm.ErrNotRunning) {
			t.Errorf("%s: %v, want ErrNotRunning", name, err)
		}
	}
}

func exec(t *testing.T, m vm.Machine, command string, opts *api.ExecOptions) *api.ExecResult {
	t.Helper()
	r, err := m.Exec(limited(t), command, opts)
	if err != nil {
		t.Fatalf("%s: %v", command, err)
	}
	return r
}

// scratch makes a folder in the guest.
func scratch(t *testing.T, m vm.Machine) string {
	t.Helper()
	dir := strings.TrimSpace(string(exec(t, m, "mktemp -d", nil).Stdout))
	t.Cleanup(func() { exec(t, m, "", &api.ExecOptions{Args: []string{"rm", "-rf", dir}}) })
	return dir
}

// notify is a writer that tells when it has seen a text.
type notify struct {
	text []byte
	seen func()
	all  []byte
}

func (n *notify) Write(p []byte) (int, error) {
	n.all = append(n.all, p...)
	if bytes.Contains(n.all, n.text) {
		n.seen()
	}
	return len(p), nil
}
