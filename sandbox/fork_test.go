package sandbox_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/matchlock/matchlock/api"
	"github.com/matchlock/matchlock/sandbox"
)

// counting is a server whose state is in its memory, in a file that it has open,
// and in the socket that it listens at: to each line that it is sent it says how
// many there were.
const counting = `
import os, socket, threading, secrets, ssl, uuid
count = 0
f = open("/tmp/counts", "w+", buffering=1)
def serve(c):
    global count
    r = c.makefile("rw")
    for line in r:
        count += 1
        f.write("%d\n" % count)
        r.write("%d %d %s %s\n" % (count, f.tell(), secrets.token_hex(8), uuid.uuid4()))
        r.flush()
s = socket.create_server(("127.0.0.1", 8080))
print("ready", flush=True)
while True:
    threading.Thread(target=serve, args=(s.accept()[0],), daemon=True).start()
`

// asking is a connection to the server in a sandbox.
type asking struct {
	net.Conn
	in *bufio.Reader
}

func ask(t *testing.T, sb *sandbox.Sandbox) *asking {
	t.Helper()
	conn, err := sb.DialContext(t.Context(), "tcp", "localhost:8080")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(time.Minute))
	return &asking{conn, bufio.NewReader(conn)}
}

// next asks for the next count, and what else the server says.
func (a *asking) next(t *testing.T) (count, at int, random string) {
	t.Helper()
	fmt.Fprintln(a.Conn)
	line, err := a.in.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	var uuid string
	if _, err := fmt.Sscan(line, &count, &at, &random, &uuid); err != nil {
		t.Fatalf("%q: %v", line, err)
	}
	return count, at, random + " " + uuid
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// lines hands on what is written to it, line by line.
func lines() (io.Writer, *bufio.Scanner) {
	r, w := io.Pipe()
	return w, bufio.NewScanner(r)
}

// logOf waits until the log of a sandbox has text, and returns it.
func (p *place) logOf(t *testing.T, ref, text string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var b strings.Builder
	p.options.Logs(ctx, ref, sandbox.LogQuery{Follow: true}, func(r sandbox.LogRecord) error {
		fmt.Fprintf(&b, "%s: %s\n", r.Stream, r.Content)
		if strings.Contains(b.String(), text) {
			cancel()
		}
		return nil
	})
	if !strings.Contains(b.String(), text) {
		t.Fatalf("the log of %s has no %q: %s", ref, text, b.String())
	}
	return b.String()
}

// What lives on in copies of a sandbox, and what the sandbox itself keeps.
func TestVMFork(t *testing.T) {
	p := newPlace(t)
	sb := p.start(t, api.Config{Image: p.image(t, "debian-12.tar"), Command: []string{"python3", "-c", counting}, Env: map[string]string{"GREETING": "hello"}})
	main := sb.Main(context.Background())
	out, said := lines()
	main.Stdout = out
	must(t, main.Start())
	if !said.Scan() || said.Text() != "ready" {
		t.Fatalf("the server says %q", said.Text())
	}
	typed, typing := io.Pipe()
	reader := sb.Command(context.Background(), "sh", "-c", "while read line; do echo got $line; done; echo end; exec sleep 1000")
	out, read := lines()
	reader.Stdin, reader.Stdout = typed, out
	must(t, reader.Start())
	fmt.Fprintln(typing, "before")
	if !read.Scan() || read.Text() != "got before" {
		t.Fatalf("the reader says %q", read.Text())
	}
	client := ask(t, sb)
	random := map[string]string{}
	unlike := func(name, value string) {
		t.Helper()
		if other, ok := random[value]; ok {
			t.Errorf("%s has the %q of %s", name, value, other)
		}
		random[value] = name
	}
	for want := 1; want <= 3; want++ {
		count, _, value := client.next(t)
		if count != want {
			t.Fatalf("counts to %d, want %d", count, want)
		}
		unlike("original", value)
	}
	copies, err := sb.Fork(t.Context(), 3)
	must(t, err)
	for i, c := range copies {
		defer c.Close()
		name := fmt.Sprint("copy ", i)
		asks := ask(t, c)
		for want := 4; want <= 5; want++ {
			count, at, value := asks.next(t)
			if count != want || at != 2*want {
				t.Errorf("%s counts to %d and is at %d of its file, want %d and %d", name, count, at, want, 2*want)
			}
			unlike(name, value)
		}
		info, err := c.Info(t.Context())
		must(t, err)
		if info.Parent != sb.ID() || info.ID == sb.ID() {
			t.Errorf("%s is %+v", name, info)
		}
		command := c.Command(t.Context(), "sh", "-c", "hostname; echo $HOSTNAME $GREETING; cat /etc/machine-id /proc/sys/kernel/random/boot_id; openssl ecparam -name prime256v1 -genkey -noout | sha256sum; openssl rand -hex 16; cat /tmp/counts | tr '\\n' ' '")
		output, err := command.Output()
		must(t, err)
		answers := strings.Split(strings.TrimSpace(string(output)), "\n")
		if len(answers) != 7 || answers[0] != c.ID() || answers[1] != c.ID()+" hello" || answers[6] != "1 2 3 4 5 " && answers[6] != "1 2 3 4 5" {
			t.Errorf("%s says %q", name, answers)
		}
		for _, value := range answers[2:6] {
			unlike(name, value)
		}
		// The reader's input has ended, and its output goes to the log.
		log := p.logOf(t, c.ID(), "exec: end")
		if !strings.HasPrefix(log, "matchlock: goes on from sandbox ") || strings.Contains(log, "before") || strings.Contains(log, "ready") {
			t.Errorf("the log of %s begins with %q", name, log)
		}
	}
	// The original has all its connections.
	if count, _, value := client.next(t); count != 4 {
		t.Errorf("the original counts to %d, want 4", count)
	} else {
		unlike("original", value)
	}
	fmt.Fprintln(typing, "after")
	if !read.Scan() || read.Text() != "got after" {
		t.Errorf("the reader says %q", read.Text())
	}
	// The first command of a copy can be had, and ends as that of any sandbox.
	held := copies[0].Main(t.Context())
	must(t, held.Start())
	must(t, copies[0].Signal(t.Context(), 9))
	if err := held.Wait(); fmt.Sprint(err) != "ended by signal 9" {
		t.Errorf("the first command of a copy ended with %v", err)
	}
	count, _, _ := ask(t, copies[1]).next(t)
	if count != 6 {
		t.Errorf("another copy counts to %d, want 6", count)
	}
}

// One sandbox is copied over and over while it writes and says something, and
// never falters.
func TestVMForkOften(t *testing.T) {
	const forks, each = 20, 1
	p := newPlace(t)
	sb := p.start(t, api.Config{Image: p.image(t, "busybox.tar"), Memory: 128 << 20})
	talker := sb.Command(context.Background(), "sh", "-c", "i=0; while :; do i=$((i+1)); echo $i > /new; mv /new /number; echo line $i of many; usleep 3000; done")
	out, said := lines()
	talker.Stdout = out
	must(t, talker.Start())
	var told sync.WaitGroup
	stop := make(chan struct{})
	last := 0
	told.Go(func() {
		for said.Scan() {
			var n int
			if _, err := fmt.Sscanf(said.Text(), "line %d of many", &n); err != nil || n != last+1 {
				t.Errorf("after line %d it says %q", last, said.Text())
				return
			}
			last = n
			select {
			case <-stop:
				return
			default:
			}
		}
	})
	for i := range forks {
		copies, err := sb.Fork(t.Context(), each)
		must(t, err)
		for _, c := range copies {
			out, err := c.Command(t.Context(), "sh", "-c", "a=$(cat /number); for i in $(seq 500); do test $(cat /number) -gt $a && exec hostname; usleep 20000; done; exit 1").Output()
			if err != nil || strings.TrimSpace(string(out)) != c.ID() {
				t.Errorf("copy %d says %q, %v", i, out, err)
			}
			must(t, c.Close())
		}
	}
	close(stop)
	told.Wait()
	if last == 0 {
		t.Error("it said nothing")
	}
	layers, err := filepath.Glob(filepath.Join(p.options.Home, "state", "sandboxes", sb.ID(), "upper.ext4*"))
	must(t, err)
	if len(layers) > forks/2 {
		t.Errorf("after %d forks its disk has %d layers", forks, len(layers))
	}
}
