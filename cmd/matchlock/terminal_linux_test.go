package main

import (
	"bytes"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
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
