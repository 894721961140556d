package main

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/matchlock/matchlock/api"
)

// sshAgent starts an ssh-agent with a key, and returns where it listens and the key's
// fingerprint.
func sshAgent(t *testing.T) (path, fingerprint string) {
	t.Helper()
	dir := t.TempDir()
	path = filepath.Join(dir, "agent")
	agent := exec.CommandContext(t.Context(), "ssh-agent", "-D", "-a", path)
	out, err := agent.StdoutPipe()
	if err == nil {
		err = agent.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { agent.Process.Kill(); agent.Wait() })
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil { // it listens
		t.Fatal(err)
	}
	run := func(program string, args ...string) string {
		cmd := exec.Command(program, args...)
		cmd.Env = append(os.Environ(), "SSH_AUTH_SOCK="+path)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v\n%s", program, err, out)
		}
		return string(out)
	}
	run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test key", "-f", filepath.Join(dir, "key"))
	run("ssh-add", "-q", filepath.Join(dir, "key"))
	return path, strings.Fields(run("ssh-add", "-l"))[1]
}

// echoServer answers each line with what follows a prefix, at path, as long as the test.
func echoServer(t *testing.T, path, prefix string) {
	t.Helper()
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				for lines := bufio.NewScanner(conn); lines.Scan(); {
					fmt.Fprintln(conn, prefix+lines.Text())
				}
			}()
		}
	}()
}

// asking keeps a connection to a socket, and asks by it a second time when there is a
// file that says so.
const asking = `
import os, socket, time
s = socket.socket(socket.AF_UNIX)
s.connect("/srv/deep/echo.sock")
f = s.makefile("r")
def ask(text):
    try:
        s.sendall(text)
        print(f.readline().strip() or "cut", flush=True)
    except OSError:
        print("cut", flush=True)
ask(b"first\n")
while not os.path.exists("/tmp/go"):
    time.sleep(0.05)
ask(b"second\n")
time.sleep(1000)
`

// A guest uses the keys of an agent that stays on the host, and another socket, as
// long as they are asked for; copies do so by connections of their own.
func TestVMSockets(t *testing.T) {
	m := install(t)
	m.mustRun(t, "image", "import", "debian-12", filepath.Join(os.Getenv("MATCHLOCK_TEST_HOME"), "images", "debian-12.tar"))
	agent, fingerprint := sshAgent(t)
	echo := filepath.Join(t.TempDir(), "echo")
	echoServer(t, echo, "echo ")
	// /srv is in the image, and so on the disk; a user who is not root is to connect.
	start := m.run(t, []string{"SSH_AUTH_SOCK=" + agent}, "run", "-d", "--name", "box", "-u", "nobody", "--read-only", "--tmpfs", "/tmp", "--tmpfs", "/var/lib/more",
		"--ssh-agent", "--socket", echo+":/srv/deep/echo.sock", "--socket", echo+":/var/run/echo", "debian-12", "sleep", "infinity")
	if start.status != 0 {
		t.Fatalf("status %d\n%s\n%s", start.status, start.stderr, start.call)
	}
	defer func() {
		m.mustRun(t, "rm", "-f", "box", "twin", "later", "bare", "given")
		m.leavesNothing(t)
	}()
	says := func(t *testing.T, box, script, want string) {
		t.Helper()
		if r := m.call(t, box, script); !strings.Contains(r.stdout, want) {
			t.Errorf("%s says %q, want %q\n%s", box, r.stdout, want, r.stderr)
		}
	}
	const ask = `python3 -c 'import socket,sys; s=socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); s.send(b"hello\n"); s.shutdown(1); print(s.makefile().read())' `
	t.Run("agent", func(t *testing.T) {
		says(t, "box", "id -un; echo $SSH_AUTH_SOCK; ssh-add -l", "nobody\n/run/matchlock/ssh-agent.sock\n256 "+fingerprint)
		says(t, "box", "cd /tmp && ssh-add -L > key.pub && echo content > file && ssh-keygen -Y sign -f key.pub -n file file && cat file.sig", "BEGIN SSH SIGNATURE")
	})
	t.Run("sockets", func(t *testing.T) {
		for _, path := range []string{"/srv/deep/echo.sock", "/var/run/echo", "/run/echo"} {
			says(t, "box", ask+path, "echo hello\n")
		}
		says(t, "box", "for i in $(seq 20); do "+ask+"/srv/deep/echo.sock > /tmp/$i & done; wait; cat /tmp/[0-9]* | grep -c hello", "20\n")
	})
	t.Run("events", func(t *testing.T) {
		all := m.events(t, "box")
		for _, name := range []string{"/run/matchlock/ssh-agent.sock", "/srv/deep/echo.sock"} {
			if !slices.ContainsFunc(all, func(e api.Event) bool {
				return e.Kind == api.EventFlow && e.Protocol == "unix" && e.Name == name && e.Sent > 0 && e.Received > 0
			}) {
				t.Errorf("no event tells of %s: %+v", name, all)
			}
		}
	})
	t.Run("pause", func(t *testing.T) {
		m.mustRun(t, "pause", "box")
		m.mustRun(t, "resume", "box")
		says(t, "box", "ssh-add -l", fingerprint)
	})
	m.mustRun(t, "exec", "-d", "box", "python3", "-c", asking)
	m.hears(t, "box", "echo first")
	t.Run("copies", func(t *testing.T) {
		m.mustRun(t, "snapshot", "create", "box", "kept")
		m.mustRun(t, "fork", "--name", "twin", "box")
		m.mustRun(t, "run", "-d", "--name", "later", "--snapshot", "kept")
		for _, box := range []string{"twin", "later", "box"} {
			says(t, box, "ssh-add -l; touch /tmp/go", fingerprint)
			says(t, box, ask+"/srv/deep/echo.sock", "echo hello\n")
		}
		m.hears(t, "box", "echo second") // its connections are kept
		m.hears(t, "twin", "cut")
		m.hears(t, "later", "cut")
	})
	t.Run("imported", func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "file")
		m.mustRun(t, "snapshot", "export", "-o", file, "kept")
		m.mustRun(t, "snapshot", "import", "elsewhere", file)
		m.mustRun(t, "run", "-d", "--name", "bare", "--snapshot", "elsewhere")
		if r := m.call(t, "bare", "ssh-add -l; "+ask+"/srv/deep/echo.sock"); strings.Count(r.stderr, "Connection refused") != 2 {
			t.Errorf("what was imported says %q\n%s", r.stdout, r.stderr)
		}
		if r := m.run(t, nil, "inspect", "bare"); strings.Contains(r.stdout, "sockets") {
			t.Errorf("it has sockets: %s", r.stdout)
		}
		m.mustRun(t, "run", "-d", "--name", "given", "--snapshot", "elsewhere", "--socket", echo+":/srv/deep/echo.sock", "--socket", echo+":/tmp/new")
		for _, path := range []string{"/srv/deep/echo.sock", "/tmp/new"} {
			says(t, "given", ask+path, "echo hello\n")
		}
	})
	t.Run("start", func(t *testing.T) {
		m.mustRun(t, "stop", "-t", "0", "box")
		m.mustRun(t, "start", "box")
		says(t, "box", "ssh-add -l", fingerprint)
		says(t, "box", ask+"/srv/deep/echo.sock", "echo hello\n")
	})
	t.Run("in the way", func(t *testing.T) {
		for guest, want := range map[string]string{
			"/etc/passwd": "file exists", "/bin": "file exists", "/etc/passwd/s": "not a directory", "/proc/self/fd/3/s": "too many levels", "/proc/s": "no such file",
		} {
			r := m.run(t, nil, "run", "--socket", echo+":"+guest, "debian-12", "true")
			if r.status != 125 || !strings.Contains(r.stderr, `socket "`+guest+`": `+want) {
				t.Errorf("%s: status %d, %q, want %q", guest, r.status, r.stderr, want)
			}
		}
	})
	t.Run("unasked", func(t *testing.T) {
		r := m.run(t, []string{"SSH_AUTH_SOCK=" + agent}, "run", "debian-12", "sh", "-c", "echo .$SSH_AUTH_SOCK; ssh-add -l; ls /run/matchlock")
		if r.stdout != ".\n" || !strings.Contains(r.stderr, "Could not open a connection") {
			t.Errorf("got %q, %q", r.stdout, r.stderr)
		}
	})
}

// hears waits until the log of a sandbox has a line.
func (m *installed) hears(t *testing.T, box, want string) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(100 * time.Millisecond) {
		r := m.run(t, nil, "logs", box)
		if slices.Contains(strings.Split(r.stdout+r.stderr, "\n"), want) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the log of %s is %q, and lacks %q", box, r.stdout+r.stderr, want)
		}
	}
}
