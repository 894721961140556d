package main

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/matchlock/matchlock/sandbox"
)

// The tests of this file run the program as somebody does who sits at a terminal.

// desk is a terminal with a home whose sandboxes have no VMs, and the image box.
type desk struct {
	env           []string
	screen, slave *os.File // the two ends of a pseudoterminal
	mode          unix.Termios
}

func sitDown(t *testing.T) *desk {
	t.Helper()
	dir := t.TempDir()
	tools, home := filepath.Join(dir, "tools"), filepath.Join(dir, "home")
	write := func(path, content string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	write(filepath.Join(tools, "mkfs.ext4"), "#!/bin/sh\n") // empty disks need not be real ones
	write(filepath.Join(dir, "rootfs", "bin", "sh"), "not a shell")
	d := &desk{env: append(os.Environ(), inProcess+"=1", "MATCHLOCK_HOME="+home, "PATH="+tools+":"+os.Getenv("PATH"), "TERM=xterm", "GORACE=atexit_sleep_ms=0")}

	master, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	d.screen = os.NewFile(uintptr(master), "screen")
	t.Cleanup(func() { d.screen.Close() })
	if err := unix.IoctlSetPointerInt(master, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	slave, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(master), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if errno != 0 {
		t.Fatal(errno)
	}
	d.slave = os.NewFile(slave, "terminal")
	t.Cleanup(func() { d.slave.Close() })
	d.resize(t, 33, 99)
	d.mode = d.currentMode(t)

	archive := filepath.Join(dir, "rootfs.tar")
	if out, err := exec.Command("tar", "cf", archive, "-C", filepath.Join(dir, "rootfs"), ".").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	d.matchlock(t, "image", "import", "box", archive)
	t.Cleanup(func() {
		if ids := strings.Fields(d.matchlock(t, "ps", "-aq")); len(ids) > 0 {
			d.matchlock(t, append([]string{"rm", "-f"}, ids...)...)
		}
		if err := remainsAtLast(home); err != nil {
			t.Error(err)
		}
	})
	return d
}

// matchlock runs the program without a terminal, and returns what it says.
func (d *desk) matchlock(t *testing.T, args ...string) string {
	t.Helper()
	cmd := exec.Command("matchlock", args...)
	cmd.Env = d.env
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("matchlock %q: %v\n%s", args, err, out)
	}
	return string(out)
}

func (d *desk) resize(t *testing.T, rows, cols uint16) {
	t.Helper()
	if err := unix.IoctlSetWinsize(int(d.screen.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: cols}); err != nil {
		t.Fatal(err)
	}
}

func (d *desk) currentMode(t *testing.T) unix.Termios {
	t.Helper()
	mode, err := unix.IoctlGetTermios(int(d.slave.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	return *mode
}

// call is the program at work on the terminal.
type call struct {
	*desk
	args []string
	cmd  *exec.Cmd
	said bytes.Buffer // since the last expect
}

func (d *desk) call(t *testing.T, args ...string) *call {
	t.Helper()
	c := &call{desk: d, args: args, cmd: exec.Command("matchlock", args...)}
	c.cmd.Env = d.env
	c.cmd.Stdin, c.cmd.Stdout, c.cmd.Stderr = d.slave, d.slave, d.slave
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.cmd.Process.Kill() }) // in vain when all is well
	return c
}

// expect reads the screen until it has the text, and returns all that came
// before it.
func (c *call) expect(t *testing.T, text string) string {
	t.Helper()
	c.screen.SetReadDeadline(time.Now().Add(20 * time.Second))
	buf := make([]byte, 4096)
	for !strings.Contains(c.said.String(), text) {
		n, err := c.screen.Read(buf)
		if err != nil {
			t.Fatalf("matchlock %q: %v; waiting for %q it had said …%q", c.args, err, text, c.said.Bytes()[max(0, c.said.Len()-500):])
		}
		c.said.Write(buf[:n])
	}
	before, after, _ := strings.Cut(c.said.String(), text)
	c.said.Reset()
	c.said.WriteString(after)
	return before
}

func (c *call) type1(t *testing.T, keys string) {
	t.Helper()
	if _, err := c.screen.WriteString(keys); err != nil {
		t.Fatal(err)
	}
}

// ends checks the exit status, and that the terminal is as it was.
func (c *call) ends(t *testing.T, status int) {
	t.Helper()
	overdue := time.AfterFunc(20*time.Second, func() { c.cmd.Process.Kill() })
	defer overdue.Stop()
	c.cmd.Wait()
	if got := c.cmd.ProcessState.ExitCode(); got != status {
		t.Errorf("matchlock %q: exit status %d, want %d", c.args, got, status)
	}
	if got := c.currentMode(t); got != c.mode {
		t.Errorf("matchlock %q leaves the terminal as\n%+v; it was\n%+v", c.args, got, c.mode)
	}
}

const (
	letGo = "\x10\x11" // ctrl-p ctrl-q

	// reader says what lines it reads, and how large its terminal is.
	reader = `echo ready; while read line; do echo "got $line, $(stty size)"; test "$line" = end && exit 3; done`
)

func TestAttachAtTerminal(t *testing.T) {
	d := sitDown(t)
	c := d.call(t, "run", "-dit", "--name", "web", "box", "sh", "-c", reader)
	c.expect(t, "\r\n")
	c.ends(t, 0)

	c = d.call(t, "attach", "web")
	c.type1(t, "hello\r")
	c.expect(t, "hello\r\n") // its own echo
	c.expect(t, "got hello, 33 99\r\n")
	if d.currentMode(t) == d.mode {
		t.Error("attached, the terminal is as it was before")
	}
	c.type1(t, letGo)
	c.expect(t, "\r\nmatchlock: detached from web, which runs on\r\n")
	c.ends(t, 0)

	// It runs on, and goes by the size of whoever is there.
	d.resize(t, 40, 120)
	c = d.call(t, "attach", "web")
	c.type1(t, "again\r")
	c.expect(t, "got again, 40 120\r\n")
	d.resize(t, 50, 150)
	for size := ""; size != "50 150"; { // SIGWINCH comes when it comes
		c.type1(t, "more\r")
		c.expect(t, "got more, ")
		size = c.expect(t, "\r\n")
	}
	// The first of the keys alone is the command's.
	c.type1(t, "a\x10b\r")
	c.expect(t, "got a\x10b, ")
	c.type1(t, "\x10")
	time.Sleep(10 * time.Millisecond) // so that they may come one by one
	c.type1(t, "\x11")
	c.expect(t, "detached from web")
	c.ends(t, 0)

	// Other keys.
	c = d.call(t, "attach", "--detach-keys", "ctrl-x,q", "web")
	c.type1(t, letGo+"x\r")
	c.expect(t, "x, 50 150\r\n")
	c.type1(t, "\x18q")
	c.expect(t, "detached from web")
	c.ends(t, 0)

	// None, and the command's end.
	c = d.call(t, "attach", "--detach-keys", "", "web")
	c.type1(t, letGo+"\r")
	c.expect(t, "50 150\r\n")
	c.type1(t, "end\r")
	c.expect(t, "got end, ")
	c.ends(t, 3)
}

// However a sandbox ends to which somebody is attached, the terminal is as it was.
func TestAttachedAtTheEnd(t *testing.T) {
	d := sitDown(t)
	d.matchlock(t, "run", "-dit", "--name", "web", "box", "sh", "-c", `trap "" TERM; `+reader)
	for _, tt := range []struct {
		name   string
		how    []string
		status int
	}{
		{"killed", []string{"kill", "web"}, 137},
		{"stopped", []string{"stop", "-t", "0", "web"}, 137},
		{"removed", []string{"rm", "-f", "web"}, 137},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d.matchlock(t, "start", "web")
			c := d.call(t, "attach", "web")
			c.type1(t, "hello\r")
			c.expect(t, "got hello, ")
			d.matchlock(t, tt.how...)
			c.ends(t, tt.status)
		})
	}
}

// One that was started without --interactive gets no keys: they are ours.
func TestAttachWithoutInput(t *testing.T) {
	d := sitDown(t)
	d.matchlock(t, "run", "-dt", "--name", "web", "box", "sh", "-c", `trap 'echo interrupted; exit 4' INT; while :; do echo tick; sleep 0.02; done`)
	c := d.call(t, "attach", "web")
	c.expect(t, "tick\r")
	c.type1(t, "\x03")
	c.expect(t, "interrupted\r")
	c.ends(t, 4)

	d.matchlock(t, "run", "-dit", "--name", "other", "box", "sh", "-c", `while :; do echo tick; sleep 0.02; done & `+reader)
	c = d.call(t, "attach", "--no-stdin", "other")
	c.expect(t, "tick\r")
	c.type1(t, "hello\r")
	c.expect(t, "hello") // our terminal's echo
	c.expect(t, "tick\r")
	c.expect(t, "tick\r")
	d.matchlock(t, "rm", "-f", "other")
	c.ends(t, 137)
	c.screen.SetReadDeadline(time.Now().Add(50 * time.Millisecond)) // it is all there
	if said, _ := io.ReadAll(c.screen); bytes.Contains(said, []byte("got hello")) {
		t.Errorf("what was typed was passed on: %q", said)
	}
}

// With a terminal at both ends a command has one too, unless it is told otherwise.
func TestCommandsAtTerminal(t *testing.T) {
	d := sitDown(t)
	c := d.call(t, "run", "box", "sh", "-c", `tty; stty size; read line; echo "got $line"; exit 5`)
	c.expect(t, "/dev/pts/")
	c.expect(t, "33 99\r\n")
	c.type1(t, "hello\r")
	c.expect(t, "got hello\r\n")
	c.ends(t, 5)
	c = d.call(t, "run", "--no-tty", "box", "sh", "-c", `tty; test -t 1 || echo none`)
	c.expect(t, "not a tty\r\n")
	c.expect(t, "none\r\n")
	c.ends(t, 0)

	d.matchlock(t, "run", "-d", "--name", "web", "--entrypoint", "", "box")
	c = d.call(t, "exec", "web", "sh", "-c", `stty size; read line; echo "got $line"; exit 6`)
	c.expect(t, "33 99\r\n")
	d.resize(t, 34, 100)
	c.type1(t, "hello\r")
	c.expect(t, "got hello\r\n")
	c.ends(t, 6)
	// ^C is the command's.
	c = d.call(t, "exec", "-it", "web", "sh", "-c", `trap 'echo interrupted; exit 7' INT; echo ready; while :; do sleep 0.02; done`)
	c.expect(t, "ready\r\n")
	c.type1(t, "\x03")
	c.expect(t, "interrupted\r\n")
	c.ends(t, 7)
	c = d.call(t, "exec", "-i", "web", "tty")
	c.expect(t, "not a tty\r\n")
	c.ends(t, 1)

	c = d.call(t, "shell", "web")
	c.type1(t, "stty size; exit 8\r")
	c.expect(t, "34 100\r\n")
	c.ends(t, 8)

	// An archive is not for people to look at.
	c = d.call(t, "cp", "web:/etc/hostname", "-")
	c.expect(t, "matchlock: error: cp: standard output is a terminal; redirect the archive\r\n")
	c.ends(t, 125)
}

// However a command ends, and whoever ends it, the terminal is as it was.
func TestTerminalIsGivenBack(t *testing.T) {
	const deaf = `trap "" TERM HUP INT; ` + reader
	run := []string{"run", "-it", "--name", "web", "box", "sh", "-c"}
	for _, tt := range []struct {
		name   string
		args   []string // of what is at the terminal; without one the sandbox runs already
		script string
		end    func(t *testing.T, d *desk, c *call)
		status int
	}{
		{"run, killed", run, reader, func(t *testing.T, d *desk, _ *call) { d.matchlock(t, "kill", "web") }, 137},
		{"run, removed", run, reader, func(t *testing.T, d *desk, _ *call) { d.matchlock(t, "rm", "-f", "web") }, 125},
		{"run, SIGTERM", run, reader, signalled(syscall.SIGTERM), 143},
		{"run, SIGHUP", run, reader, signalled(syscall.SIGHUP), 129},
		{"run, SIGTERM twice", run, deaf, signalled(syscall.SIGTERM, syscall.SIGTERM), 143},
		{"attach, SIGTERM", []string{"attach", "web"}, reader, signalled(syscall.SIGTERM), 143},
		{"attach, SIGHUP", []string{"attach", "web"}, deaf, signalled(syscall.SIGHUP), 129},
		{"attach, its supervisor killed", []string{"attach", "web"}, deaf, supervisorKilled, 125},
		{"exec, its supervisor killed", []string{"exec", "-it", "web", "sh", "-c", deaf}, deaf, supervisorKilled, 125},
		{"exec, SIGTERM", []string{"exec", "-it", "web", "sh", "-c", reader}, deaf, signalled(syscall.SIGTERM), 143},
		{"shell, removed", []string{"shell", "web"}, deaf, func(t *testing.T, d *desk, _ *call) { d.matchlock(t, "rm", "-f", "web") }, 125},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := sitDown(t)
			args := tt.args
			if args[0] == "run" {
				args = append(slices.Clone(args), tt.script)
			} else {
				d.matchlock(t, "run", "-dit", "--name", "web", "box", "sh", "-c", tt.script)
			}
			c := d.call(t, args...)
			if args[0] == "shell" {
				c.type1(t, reader+"\r")
			}
			c.type1(t, "hello\r")
			c.expect(t, "got hello,")
			if d.currentMode(t) == d.mode {
				t.Error("the terminal is not raw")
			}
			tt.end(t, d, c)
			c.ends(t, tt.status)
		})
	}
}

func signalled(signals ...syscall.Signal) func(*testing.T, *desk, *call) {
	return func(t *testing.T, _ *desk, c *call) {
		t.Helper()
		for i, s := range signals {
			if i > 0 {
				time.Sleep(20 * time.Millisecond) // two at once are one
			}
			if err := c.cmd.Process.Signal(s); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func supervisorKilled(t *testing.T, d *desk, c *call) {
	t.Helper()
	var info struct{ PID int }
	if err := json.Unmarshal([]byte(d.matchlock(t, "inspect", "--json", "web")), &info); err != nil || info.PID <= 1 {
		t.Fatal(info, err)
	}
	if err := syscall.Kill(info.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	c.expect(t, "matchlock: error: ")
}

// A terminal that changes its size tells whoever is at it.
func TestRunResized(t *testing.T) {
	d := sitDown(t)
	c := d.call(t, "run", "box", "sh", "-c", `trap 'stty size' WINCH; echo ready; while :; do sleep 0.02; done`)
	c.expect(t, "ready\r\n")
	d.resize(t, 40, 120)
	c.expect(t, "40 120\r\n")
	d.resize(t, 24, 80)
	c.expect(t, "24 80\r\n")
	c.type1(t, "\x03")
	c.ends(t, 130)
}

// What a command says last is there, however short it is.
func TestNoLineIsLost(t *testing.T) {
	d := sitDown(t)
	d.matchlock(t, "run", "-d", "--name", "web", "--entrypoint", "", "box")
	for i := range 100 {
		args := []string{"run", "box"}
		if i%2 == 1 {
			args = []string{"exec", "web"}
		}
		line := "the last of " + strconv.Itoa(i)
		c := d.call(t, append(args, "sh", "-c", "echo first; printf '"+line+"'")...)
		c.ends(t, 0)
		c.expect(t, "first\r\n"+line)
		if out := d.matchlock(t, append(args, "printf", line)...); strings.TrimSpace(out) != line { // without a terminal
			t.Fatalf("%q: said %q", args, out)
		}
	}
}

// rest is what is on the screen that was not expected, when the program has ended.
func (c *call) rest(t *testing.T) string {
	t.Helper()
	c.screen.SetReadDeadline(time.Now().Add(50 * time.Millisecond)) // it is all there
	said, _ := io.ReadAll(c.screen)
	return c.said.String() + string(said)
}

// Bars are drawn on a terminal, and nothing is left of them: no line, no colour, and the
// cursor is where it was. Elsewhere there are none.
func TestBarsAtTerminal(t *testing.T) {
	d := sitDown(t)
	archive := filepath.Join(t.TempDir(), "rootfs.tar")
	if out, err := exec.Command("tar", "cf", archive, "-C", "testdata", ".").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	c := d.call(t, "image", "import", "big", archive)
	c.ends(t, 0)
	said := c.rest(t)
	if !strings.Contains(said, "\x1b[1A\r\x1b[J") {
		t.Errorf("no bar was drawn and taken away: %q", said)
	}
	if got := onScreen(said); !strings.HasPrefix(got, "big sha256:") || strings.Count(got, "\n") != 1 {
		t.Errorf("on the screen is %q", got)
	}
	if colours.MatchString(said) {
		t.Errorf("colours, or a hidden cursor: %q", said)
	}
	for _, env := range []string{"TERM=dumb", "NO_COLOR=1"} {
		d.env = append(d.env, env)
		c = d.call(t, "image", "import", "big", archive)
		c.ends(t, 0)
		if said := c.rest(t); colours.MatchString(said) || env == "TERM=dumb" && strings.Contains(said, "\x1b") {
			t.Errorf("with %s: %q", env, said)
		}
	}
	d.env = d.env[:len(d.env)-2]
	if said := d.matchlock(t, "image", "import", "big", archive); strings.Contains(said, "\x1b") || strings.Contains(said, "\r") {
		t.Errorf("without a terminal: %q", said)
	}
}

// What we say ourselves begins at the left, though the terminal is a command's.
func TestLinesAtRawTerminal(t *testing.T) {
	d := sitDown(t)
	in, out, stderr := os.Stdin, os.Stdout, os.Stderr
	defer func() { os.Stdin, os.Stdout, os.Stderr = in, out, stderr }()
	os.Stdin, os.Stdout, os.Stderr = d.slave, d.slave, d.slave
	a := &app{}
	restore, err := stdio{in: true, tty: true, raw: true, stderr: &a.stderr}.connect(&sandbox.Cmd{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if d.currentMode(t) == d.mode {
		t.Error("the terminal is not raw")
	}
	io.WriteString(&a.stderr, "one\ntwo\n")
	restore()
	restore() // as often as one likes
	if d.currentMode(t) != d.mode {
		t.Error("the terminal is not as it was")
	}
	io.WriteString(&a.stderr, "three\n")
	if said := (&call{desk: d}).rest(t); said != "one\r\ntwo\r\nthree\r\n" {
		t.Errorf("said %q", said)
	}
}

// Lines stand above bars, and who goes on when they are closed draws none.
func TestLinesAmongBars(t *testing.T) {
	d := sitDown(t)
	c := &call{desk: d}
	t.Setenv("TERM", "xterm")
	a := &app{}
	b := newBars(d.slave)
	a.stderr.bars.Store(b)
	b.progress(sandbox.Progress{Task: "kernel", Done: 1 << 20})
	io.WriteString(&a.stderr, "a warning\n")
	if got := onScreen(c.expect(t, "kernel") + c.expect(t, "kernel") + "kernel"); got != "a warning\nkernel" {
		t.Errorf("on the screen is %q", got)
	}
	b.close()
	b.progress(sandbox.Progress{Task: "kernel", Done: 2 << 20})
	if said := c.rest(t); strings.Contains(said, "2 MiB") {
		t.Errorf("a bar was drawn when all was over: %q", said)
	}
}

// ^C while a bar is drawn leaves a clean line, though what it tells of may hang.
func TestBarsInterrupted(t *testing.T) {
	for _, hangs := range []bool{false, true} {
		t.Run(fmt.Sprintf("hangs=%v", hangs), func(t *testing.T) {
			d := sitDown(t)
			in, feed, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			c := &call{desk: d, args: []string{"image", "import", "big"}, cmd: exec.Command("matchlock", "image", "import", "big")}
			c.cmd.Env = d.env
			c.cmd.Stdin, c.cmd.Stdout, c.cmd.Stderr = in, d.slave, d.slave
			c.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true, Ctty: 1}
			if err := c.cmd.Start(); err != nil {
				t.Fatal(err)
			}
			in.Close()
			t.Cleanup(func() { c.cmd.Process.Kill() }) // in vain when all is well
			seen := make(chan struct{})
			var feeding sync.WaitGroup
			feeding.Go(func() {
				w := tar.NewWriter(feed)
				err := w.WriteHeader(&tar.Header{Name: "file", Mode: 0o600, Size: 1 << 30})
				for err == nil {
					select {
					case <-seen:
						if hangs {
							return
						}
					case <-time.After(time.Millisecond):
					}
					_, err = w.Write(make([]byte, 1<<16))
				}
			})
			before := c.expect(t, " MiB")
			close(seen)
			c.type1(t, "\x03")
			c.ends(t, 130)
			feeding.Wait()
			feed.Close()
			said := before + " MiB" + c.rest(t)
			if got := onScreen(said); got != "" {
				t.Errorf("on the screen is %q, of %q", got, said)
			}
			if colours.MatchString(said) {
				t.Errorf("colours, or a hidden cursor: %q", said)
			}
		})
	}
}

// colours are sequences that set them, or hide the cursor (ECMA-48, xterm).
var colours = regexp.MustCompile(`\x1b\[([0-9;]*m|\?25l)`)

// onScreen is what is to be seen of a text that moves up lines and erases below.
func onScreen(said string) string {
	lines := []string{""}
	for said != "" {
		var up int
		switch {
		case strings.HasPrefix(said, "\x1b[J"):
			said = said[3:]
			lines[len(lines)-1] = ""
		case strings.HasPrefix(said, "\x1b["):
			fmt.Sscanf(said, "\x1b[%dA", &up)
			lines = lines[:max(1, len(lines)-up)]
			_, said, _ = strings.Cut(said, "A")
		case said[0] == '\n':
			lines, said = append(lines, ""), said[1:]
		default:
			if said[0] != '\r' {
				lines[len(lines)-1] += said[:1]
			}
			said = said[1:]
		}
	}
	return strings.Join(lines, "\n")
}
