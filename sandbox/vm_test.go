package sandbox_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/matchlock/matchlock/api"
	"github.com/matchlock/matchlock/internal/hostfs"
	"github.com/matchlock/matchlock/internal/image"
	"github.com/matchlock/matchlock/sandbox"
)

// place is where a test's sandboxes are made: a home whose images and caches are
// those of MATCHLOCK_TEST_HOME, and whose sandboxes are its own.
type place struct {
	options sandbox.Options
	images  *image.Store
}

// newPlace skips without MATCHLOCK_TEST_VM; with it, what is missing is a
// failure.
func newPlace(t *testing.T) *place {
	t.Helper()
	if os.Getenv("MATCHLOCK_TEST_VM") == "" {
		t.Skip("boots VMs: set MATCHLOCK_TEST_VM=1 (make test does)")
	}
	shared := os.Getenv("MATCHLOCK_TEST_HOME")
	if shared == "" {
		t.Fatal("MATCHLOCK_TEST_HOME is not set: run scripts/test-vm.sh")
	}
	helper, err := filepath.Abs("../bin/matchlock")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(helper); err != nil {
		t.Fatalf("%v: run make build", err)
	}
	home := t.TempDir()
	if err := os.Chmod(home, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"data", "cache"} {
		if err := hostfs.Private(filepath.Join(shared, "home", dir)); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(filepath.Join(shared, "home", dir), filepath.Join(home, dir)); err != nil {
			t.Fatal(err)
		}
	}
	images, err := image.Open(filepath.Join(home, "data", "images"))
	if err != nil {
		t.Fatal(err)
	}
	return &place{sandbox.Options{Home: home, Helper: helper}, images}
}

// image makes sure that the store has what file holds, a name in the folder
// images of MATCHLOCK_TEST_HOME, and returns its reference. The tag tells which
// state of the file was imported.
func (p *place) image(t *testing.T, file string) (ref string) {
	t.Helper()
	shared := os.Getenv("MATCHLOCK_TEST_HOME")
	path := filepath.Join(shared, "images", file)
	info, err := os.Stat(path)
	if err != nil {
		t.Fatalf("%v: scripts/test-vm.sh makes it", err)
	}
	repository := "test/" + strings.TrimSuffix(file, ".tar")
	ref = fmt.Sprintf("%s:%x-%x", repository, info.Size(), info.ModTime().UnixNano())
	lock, err := hostfs.Lock(t.Context(), filepath.Join(shared, "home", "import.lock"), os.O_RDWR|os.O_CREATE, syscall.LOCK_EX)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	img, err := p.images.Lookup(ref)
	if errors.Is(err, image.ErrNotFound) {
		p.forget(t, repository)
		img, err = p.images.ImportPath(t.Context(), ref, path, image.ImportOptions{})
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := img.Release(); err != nil {
		t.Fatal(err)
	}
	return ref
}

// forget removes the images of former states of a file.
func (p *place) forget(t *testing.T, repository string) {
	t.Helper()
	all, err := p.images.List()
	if err != nil {
		t.Fatal(err)
	}
	for _, img := range all {
		if strings.HasPrefix(img.Name, repository+":") {
			if _, err := p.images.Remove(img.Name, image.Needs{}); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// start boots a sandbox of an image and closes it with the test. When the test
// fails, the console tells what the guest's kernel had to say.
func (p *place) start(t *testing.T, config api.Config) *sandbox.Sandbox {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	config.Pull = api.PullNever
	began := time.Now()
	s, err := p.options.New(ctx, config)
	if err != nil {
		t.Fatalf("%v\nby hand: MATCHLOCK_HOME=%s/home bin/matchlock run --pull never %s true", err, os.Getenv("MATCHLOCK_TEST_HOME"), config.Image)
	}
	t.Logf("ready after %v", time.Since(began).Round(time.Millisecond))
	t.Cleanup(func() {
		if t.Failed() {
			console, err := os.ReadFile(filepath.Join(p.options.Home, "state", "sandboxes", s.ID(), "console.log"))
			t.Logf("console of %s (%v):\n%s", config.Image, err, console)
			t.Logf("by hand: MATCHLOCK_HOME=%s/home bin/matchlock run --pull never %s sh -c '…'", os.Getenv("MATCHLOCK_TEST_HOME"), config.Image)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// command prepares a command with a deadline that only a fault can reach.
func command(t *testing.T, s *sandbox.Sandbox, args ...string) *sandbox.Cmd {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	t.Cleanup(cancel)
	return s.Command(ctx, args[0], args[1:]...)
}

// output runs a command that must succeed and returns what it printed.
func output(t *testing.T, s *sandbox.Sandbox, args ...string) string {
	t.Helper()
	out, err := command(t, s, args...).Output()
	if err != nil {
		var stderr []byte
		if exit, ok := errors.AsType[*sandbox.ExitError](err); ok {
			stderr = exit.Stderr
		}
		t.Fatalf("%q: %v\nstdout: %s\nstderr: %s", args, err, out, stderr)
	}
	return strings.TrimSpace(string(out))
}

// A real distribution: what people install in their images works.
func TestVMDebian(t *testing.T) {
	p := newPlace(t)
	s := p.start(t, api.Config{Image: p.image(t, "debian-12.tar")})
	for _, tt := range []struct {
		name string
		args []string
		want string // in the output
	}{
		{"python3", []string{"python3", "-c", `
import hashlib, json, sqlite3, ssl, subprocess, threading
db = sqlite3.connect("/tmp/db")
db.execute("create table t (n)")
db.executemany("insert into t values (?)", [(n,) for n in range(1000)])
db.commit()
threads = [threading.Thread(target=hashlib.sha256, args=(b"x" * 1000,)) for _ in range(4)]
[t.start() for t in threads]
[t.join() for t in threads]
ssl.create_default_context()
print(json.dumps({"sum": db.execute("select sum(n) from t").fetchone()[0],
	"child": subprocess.run(["uname"], capture_output=True, text=True).stdout.strip()}))`},
			`{"sum": 499500, "child": "Linux"}`},
		{"git", []string{"bash", "-ec", `
cd "$(mktemp -d)"
git init -q -b main .
git config user.name tester
git config user.email tester@example.test
for n in 1 2 3; do echo $n > file; git add file; git commit -qm "commit $n"; done
git log --format=%s
git diff --stat HEAD~2 | tail -n 1
git fsck --strict 2>&1`},
			"commit 3\ncommit 2\ncommit 1\n 1 file changed, 1 insertion(+), 1 deletion(-)"},
		{"apt-get", []string{"apt-get", "--version"}, "apt 2."},
		{"dpkg", []string{"dpkg-query", "-W", "-f", "${Status}", "openssl"}, "install ok installed"},
		{"openssl version", []string{"openssl", "version"}, "OpenSSL 3."},
		{"openssl digest", []string{"sh", "-c", "printf abc | openssl dgst -sha256 -r"}, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"},
		{"openssl key", []string{"sh", "-c", "openssl genrsa 1024 2>/dev/null | openssl rsa -check -noout 2>&1"}, "RSA key ok"},
		{"curl", []string{"curl", "--version"}, "Protocols: "},
		{"curl, no network", []string{"sh", "-c", "curl -sS --max-time 20 http://192.0.2.1/ 2>&1; echo status $?"}, "status 7"},
		{"jobs", []string{"bash", "-c", "sleep 0.2 & (exit 3) & wait %2; echo $?; wait %1; echo $?; jobs"}, "3\n0"},
		{"pipeline", []string{"bash", "-o", "pipefail", "-c", "yes | head -n 10000 | wc -l; echo ${PIPESTATUS[@]}"}, "10000"},
		{"no locale", []string{"env"}, "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
		{"users", []string{"su", "-s", "/bin/sh", "nobody", "-c", "id -un; touch /root/x 2>&1 || true"}, "nobody\ntouch: cannot touch"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			began := time.Now()
			cmd := command(t, s, tt.args...)
			var both bytes.Buffer
			cmd.Stdout, cmd.Stderr = &both, &both
			err := cmd.Run()
			if got := both.String(); !strings.Contains(got, tt.want) || err != nil {
				t.Errorf("%q: %v\ngot  %q\nwant %q in it", tt.args, err, got, tt.want)
			}
			t.Logf("%v", time.Since(began).Round(time.Millisecond))
		})
	}
	t.Run("no thread left", func(t *testing.T) { noThreadLeft(t, s) })
	if env := output(t, s, "env"); strings.Contains(env, "LC_") || strings.Contains(env, "LANG") || strings.Contains(env, "TZ=") {
		t.Errorf("the host's locale reaches the guest:\n%s", env)
	}
}

// An image of more layers than a machine has disks, in the least memory that is allowed,
// of which two processors need a little more than one.
func TestVMSixtyLayers(t *testing.T) {
	p := newPlace(t)
	s := p.start(t, api.Config{Image: p.image(t, "layers-60"), Memory: api.MinMemory, CPUs: 2})
	if got := output(t, s, "cat", "/layers/top"); got != "60" {
		t.Errorf("/layers/top is %q, want 60", got)
	}
	var want []string
	for n := 2; n <= 60; n += 2 {
		want = append(want, strconv.Itoa(n))
	}
	want = append(want, "top")
	if diff := cmp.Diff(want, strings.Fields(output(t, s, "sh", "-c", "ls /layers | sort -n | sed '/top/d'; echo top"))); diff != "" {
		t.Errorf("files in /layers (-want +got):\n%s", diff)
	}
	t.Logf("%s of %s", output(t, s, "grep", "MemAvailable", "/proc/meminfo"), api.FormatSize(api.MinMemory))
}

// noThreadLeft has a command start all threads that it can. The next one is
// refused with the reason, and when the first has been ended all is as before.
func noThreadLeft(t *testing.T, s *sandbox.Sandbox) {
	ctx, end := context.WithCancel(t.Context())
	defer end()
	full := s.Command(ctx, "python3", "-c", `
import threading
try:
	while True:
		threading.Thread(target=threading.Event().wait).start()
except RuntimeError:
	print("full", flush=True)
`)
	said, saying := io.Pipe()
	full.Stdout = saying
	if err := full.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(said).ReadString('\n'); line != "full\n" {
		t.Fatalf("%q, %v", line, err)
	}
	err := command(t, s, "true").Run()
	if err == nil || !strings.Contains(err.Error(), "resource temporarily unavailable") {
		t.Errorf("one process more: %v", err)
	}
	t.Logf("one process more: %v", err)
	end()
	if err := full.Wait(); !errors.Is(err, context.Canceled) {
		t.Errorf("ended: %v", err)
	}
	if got := output(t, s, "echo", "room again"); got != "room again" {
		t.Errorf("got %q", got)
	}
}

// What goes in and out of commands, and what they may cost.
func TestVMStreams(t *testing.T) {
	p := newPlace(t)
	s := p.start(t, api.Config{Image: p.image(t, "busybox.tar")})
	t.Run("100 MB in and out", func(t *testing.T) { inAndOut(t, s, 100e6) })
	t.Run("20 at once", func(t *testing.T) { atOnce(t, s, 20) })
	t.Run("slow reader", func(t *testing.T) { slowReader(t, s, 128<<20) })
	t.Run("no memory left", func(t *testing.T) {
		if got := output(t, s, "sh", "-c", "tail /dev/zero; echo $?"); got != "137" {
			t.Errorf("status of a command that takes all memory: %s, want 137", got)
		}
	})
}

// inAndOut passes size random bytes into a file of the guest and back.
func inAndOut(t *testing.T, s *sandbox.Sandbox, size int64) {
	in := newSummed(io.LimitReader(rand.NewChaCha8([32]byte{1}), size))
	began := time.Now()
	write := command(t, s, "sh", "-c", "cat > /file")
	write.Stdin = in
	if err := write.Run(); err != nil {
		t.Fatal(err)
	}
	t.Logf("in:     %v", rate(in.n, began))
	began = time.Now()
	inside, _, _ := strings.Cut(output(t, s, "sha256sum", "/file"), " ")
	t.Logf("sha256: %v", rate(size, began))
	out := newSummed(nil)
	began = time.Now()
	read := command(t, s, "cat", "/file")
	read.Stdout = out
	if err := read.Run(); err != nil {
		t.Fatal(err)
	}
	t.Logf("out:    %v", rate(out.n, began))
	if in.n != size || inside != in.sum() || out.n != size || out.sum() != in.sum() {
		t.Errorf("in  %d bytes, %s\ninside         %s\nout %d bytes, %s", in.n, in.sum(), inside, out.n, out.sum())
	}
	output(t, s, "rm", "/file")
}

// summed counts and hashes what passes through it, in either direction.
type summed struct {
	from io.Reader
	n    int64
	hash interface {
		io.Writer
		Sum([]byte) []byte
	}
}

func newSummed(from io.Reader) *summed { return &summed{from: from, hash: sha256.New()} }

func (s *summed) Read(p []byte) (int, error) {
	n, err := s.from.Read(p)
	s.Write(p[:n])
	return n, err
}

func (s *summed) Write(p []byte) (int, error) {
	s.n += int64(len(p))
	return s.hash.Write(p)
}

func (s *summed) sum() string { return hex.EncodeToString(s.hash.Sum(nil)) }

func rate(n int64, began time.Time) string {
	took := time.Since(began)
	return fmt.Sprintf("%.1f MB in %.2f s, %.0f MB/s", float64(n)/1e6, took.Seconds(), float64(n)/1e6/took.Seconds())
}

// atOnce runs n commands at the same time and makes sure that each gets its own
// output, all of it, in order.
func atOnce(t *testing.T, s *sandbox.Sandbox, n int) {
	const lines = 300
	want := func(stream string, id int) string {
		var b strings.Builder
		for i := range lines {
			fmt.Fprintf(&b, "%s %d %d\n", stream, id, i)
		}
		return b.String()
	}
	var all sync.WaitGroup
	for id := range n {
		cmd := command(t, s, "sh", "-c",
			fmt.Sprintf(`i=0; while [ $i -lt %d ]; do echo out %d $i; echo err %d $i >&2; i=$((i+1)); done; exit %d`, lines, id, id, id))
		all.Go(func() {
			var stdout, stderr bytes.Buffer
			cmd.Stdout, cmd.Stderr = &stdout, &stderr
			err := cmd.Run()
			status := 0
			if exit, ok := errors.AsType[*sandbox.ExitError](err); ok {
				status, err = exit.Code, nil
			}
			if err != nil || status != id {
				t.Errorf("command %d: status %d, %v", id, status, err)
			}
			if diff := cmp.Diff(want("out", id), stdout.String()); diff != "" {
				t.Errorf("standard output of command %d (-want +got):\n%s", id, diff)
			}
			if diff := cmp.Diff(want("err", id), stderr.String()); diff != "" {
				t.Errorf("standard error of command %d (-want +got):\n%s", id, diff)
			}
		})
	}
	all.Wait()
}

// What output that is not read may cost: the windows of one stream, and what a
// garbage collector leaves lying about.
const (
	maxUnread      = 4 << 20
	maxHostGrowth  = 24 << 20
	maxGuestGrowth = 12 << 20
)

// slowReader has a command write size bytes to a reader that does not read until
// the command stands still. By then neither this process nor the guest's agent
// may hold more than a little, other commands must not have to wait, and in the
// end nothing may be lost.
func slowReader(t *testing.T, s *sandbox.Sandbox, size int64) {
	hostBefore, guestBefore := residentHere(t), residentAgent(t, s)
	hostPeak := hostBefore
	out := &gated{open: make(chan struct{}), each: func() { hostPeak = max(hostPeak, residentHere(t)) }}
	cmd := command(t, s, "sh", "-c", fmt.Sprintf("echo $$ >&2; exec dd if=/dev/zero bs=64k count=%d", size>>16))
	pid := make(firstWrite, 1)
	cmd.Stdout, cmd.Stderr = out, pid
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	counters := "/proc/" + strings.TrimSpace(<-pid) + "/io"
	unread := int64(-1)
	for {
		asked := time.Now()
		written := output(t, s, "sed", "-n", "s/wchar: //p", counters)
		n, err := strconv.ParseInt(written, 10, 64)
		if err != nil {
			t.Fatalf("the writer has ended, or cannot be asked: %v", err)
		}
		if n == unread && n >= 64<<10 { // a block at least: it has begun
			t.Logf("unread: %d KiB; another command meanwhile: %v", n>>10, time.Since(asked).Round(time.Millisecond))
			break
		}
		unread = n
	}
	guestUnread, hostUnread := residentAgent(t, s), residentHere(t)
	began := time.Now()
	close(out.open)
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	guestAfter := residentAgent(t, s)
	t.Logf("then:   %v", rate(out.n, began))
	t.Logf("this process: %d KiB before, %d unread, %d at most; the agent: %d KiB before, %d unread, %d after",
		hostBefore>>10, hostUnread>>10, hostPeak>>10, guestBefore>>10, guestUnread>>10, guestAfter>>10)
	if out.n != size || out.other > 0 {
		t.Errorf("read %d bytes, of which %d no zeros; want %d zeros", out.n, out.other, size)
	}
	if unread > maxUnread {
		t.Errorf("%d KiB were written that nobody reads, want at most %d", unread>>10, maxUnread>>10)
	}
	if grown := max(hostPeak, hostUnread) - hostBefore; grown > maxHostGrowth {
		t.Errorf("this process grew by %d KiB, want at most %d", grown>>10, maxHostGrowth>>10)
	}
	if grown := max(guestUnread, guestAfter) - guestBefore; grown > maxGuestGrowth {
		t.Errorf("the guest's agent grew by %d KiB, want at most %d", grown>>10, maxGuestGrowth>>10)
	}
}

// firstWrite gives away what is written first, and drops the rest.
type firstWrite chan string

func (w firstWrite) Write(p []byte) (int, error) {
	select {
	case w <- string(p):
	default:
	}
	return len(p), nil
}

// gated takes zeros when it is open.
type gated struct {
	open     chan struct{}
	n, other int64 // bytes, and those that are not zero
	each     func()
}

func (w *gated) Write(p []byte) (int, error) {
	<-w.open
	w.n += int64(len(p))
	w.other += int64(len(p) - bytes.Count(p, []byte{0}))
	w.each()
	return len(p), nil
}

func residentHere(t *testing.T) int64 {
	t.Helper()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	return residentIn(t, string(status))
}

// residentAgent is what the guest's PID 1, the agent, has in memory.
func residentAgent(t *testing.T, s *sandbox.Sandbox) int64 {
	t.Helper()
	return residentIn(t, output(t, s, "cat", "/proc/1/status"))
}

func residentIn(t *testing.T, status string) int64 {
	t.Helper()
	lines := bufio.NewScanner(strings.NewReader(status))
	for lines.Scan() {
		if value, ok := strings.CutPrefix(lines.Text(), "VmRSS:"); ok {
			kib, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(value, " kB")), 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return kib << 10
		}
	}
	t.Fatalf("no VmRSS in %q", status)
	return 0
}
