package sandbox

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/matchlock/matchlock/api"
	"github.com/matchlock/matchlock/internal/state"
	"github.com/matchlock/matchlock/vm"
	"github.com/matchlock/matchlock/vm/vmtest"
)

// house is a home whose sandboxes have no VMs.
func house(t *testing.T) Options {
	t.Helper()
	return Options{Home: testHome(t), Backend: vmtest.InProcess{}}
}

// run makes a sandbox that is kept.
func (o Options) run(t *testing.T, name string, config api.Config) *Sandbox {
	t.Helper()
	config.Image, config.DiskSize = "busybox", 64<<20
	o.Name, o.Keep = name, true
	sb, err := o.New(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { sb.Close() })
	return sb
}

func (o Options) attach(t *testing.T, ref string) *Sandbox {
	t.Helper()
	sb, err := o.Attach(t.Context(), ref)
	if err != nil {
		t.Fatal(err)
	}
	return sb
}

func (o Options) known(t *testing.T, ref string) api.Info {
	t.Helper()
	info, err := o.Find(t.Context(), ref)
	if err != nil {
		t.Fatal(err)
	}
	return info
}

// log returns what the log of a sandbox says, streams before the lines.
func (o Options) log(t *testing.T, ref string, q LogQuery) string {
	t.Helper()
	var b strings.Builder
	err := o.Logs(t.Context(), ref, q, func(r LogRecord) error {
		fmt.Fprintf(&b, "%s: %s\n", r.Stream, r.Content)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// TestAttach does with a sandbox of another process, which for once is this one,
// what one can do with one's own.
func TestAttach(t *testing.T) {
	o := house(t)
	own := o.run(t, "web", api.Config{Env: map[string]string{"GREETING": "hello"}, WorkDir: "/tmp", Entrypoint: []string{}})
	sb := o.attach(t, "web")
	if sb.ID() != own.ID() {
		t.Errorf("the id is %s, want %s", sb.ID(), own.ID())
	}
	cmd := sb.Command(t.Context(), "sh", "-c", "echo $GREETING; pwd; cat; echo oops >&2; exit 3")
	cmd.Stdin = strings.NewReader("typed\n")
	out, err := cmd.Output()
	if exit, ok := errors.AsType[*ExitError](err); !ok || exit.Code != 3 || string(exit.Stderr) != "oops\n" || string(out) != "hello\n/tmp\ntyped\n" {
		t.Errorf("Output = %q, %v", out, err)
	}
	if err := sb.Command(t.Context(), "no-such-program").Run(); !strings.Contains(fmt.Sprint(err), "not found in PATH") {
		t.Errorf("a command that there is not: %v", err)
	}
	if err := sb.Main(t.Context()).Start(); !errors.Is(err, ErrNoCommand) {
		t.Errorf("a first command that there is not: %v", err)
	}

	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "served") }))
	defer server.Close()
	for who, sb := range map[string]*Sandbox{"own": own, "attached": sb} {
		client := http.Client{Transport: &http.Transport{DialContext: sb.DialContext, DisableKeepAlives: true}}
		response, err := client.Get(server.URL)
		if err != nil {
			t.Fatal(err)
		}
		if body, err := io.ReadAll(response.Body); err != nil || string(body) != "served" {
			t.Errorf("%s: the port answers %q, %v", who, body, err)
		}
		response.Body.Close()
		for address, want := range map[string]string{
			"localhost:0":    "want a number",
			"example.com:80": "only the guest's localhost",
			"localhost":      "missing port",
			"localhost:1":    "connection refused",
		} {
			if _, err := sb.DialContext(t.Context(), "tcp", address); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: dial %s = %v, want %q in it", who, address, err, want)
			}
		}
		if _, err := sb.DialContext(t.Context(), "udp", "localhost:1"); err == nil {
			t.Errorf("%s: udp can be dialled", who)
		}
	}

	info, err := sb.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	listed, err := o.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]api.Info{info}, listed); diff != "" {
		t.Errorf("Info differs from List (-info +list):\n%s", diff)
	}
	if info.Status != api.StatusRunning || info.Name != "web" || info.AutoRemove || info.Image != "busybox" || !strings.HasPrefix(info.ImageDigest, "sha256:") || info.PID != os.Getpid() {
		t.Errorf("Info = %+v", info)
	}
	inspection, err := o.Inspect(t.Context(), "web")
	if err != nil {
		t.Fatal(err)
	}
	if inspection.Config.Env["GREETING"] != Redacted || inspection.MachinePID == 0 || inspection.Config.WorkDir != "/tmp" {
		t.Errorf("Inspect = %+v", inspection)
	}

	if err := sb.Rename(t.Context(), "site"); err != nil {
		t.Fatal(err)
	}
	if err := o.Rename(t.Context(), "site", "web2"); err != nil {
		t.Fatal(err)
	}
	if err := sb.Close(); err != nil {
		t.Fatal(err)
	}
	if got := o.known(t, "web2"); got.Status != api.StatusRunning {
		t.Errorf("after the attached one was closed it is %s", got.Status)
	}
}

// TestLives has a sandbox run, stop, run again, be killed, renamed and removed.
func TestLives(t *testing.T) {
	o := house(t)
	config := api.Config{Command: []string{"sh", "-c", "exec 2>/dev/null; trap 'echo stopping; exit 3' TERM; echo up; while :; do sleep 0.05; done"}}
	own := o.run(t, "web", config)
	main := own.Main(t.Context())
	var stdout bytes.Buffer
	main.Stdout = &stdout
	if err := main.Start(); err != nil {
		t.Fatal(err)
	}
	sb := o.attach(t, "web")
	waited := make(chan api.Info)
	go func() {
		info, err := sb.Wait(t.Context())
		if err != nil {
			t.Error(err)
		}
		waited <- info
	}()
	followed := make(chan string)
	go func() { followed <- o.log(t, "web", LogQuery{Follow: true}) }()
	for o.log(t, "web", LogQuery{}) != "stdout: up\n" {
		time.Sleep(10 * time.Millisecond) // there is nobody to tell
	}
	if err := sb.Stop(t.Context(), time.Minute); err != nil {
		t.Fatal(err)
	}
	if exit, ok := errors.AsType[*ExitError](main.Wait()); !ok || exit.Code != 3 {
		t.Errorf("the first command ended with %v", exit)
	}
	if got := <-waited; got.ExitCode == nil || *got.ExitCode != 3 || got.Status != api.StatusStopped || got.Finished.IsZero() {
		t.Errorf("Wait = %+v", got)
	}
	if got, want := <-followed, "stdout: up\nstdout: stopping\n"; got != want {
		t.Errorf("the log is\n%swant\n%s", got, want)
	}
	if got := stdout.String(); got != "up\nstopping\n" {
		t.Errorf("standard output is %q", got)
	}
	if info := o.known(t, "web"); info.Status != api.StatusStopped || info.PID != 0 {
		t.Errorf("after Stop it is %+v", info)
	}
	for what, err := range map[string]error{
		"Attach":  second(o.Attach(t.Context(), "web")),
		"Signal":  sb.Signal(t.Context(), 15),
		"Command": sb.Command(t.Context(), "true").Run(),
		"Dial":    second(sb.DialContext(t.Context(), "tcp", "localhost:80")),
	} {
		if !errors.Is(err, ErrNotRunning) || !strings.Contains(err.Error(), "is stopped") {
			t.Errorf("%s of a stopped one = %v", what, err)
		}
	}
	if err := sb.Stop(t.Context(), 0); err != nil {
		t.Errorf("Stop of a stopped one = %v", err)
	}
	if err := own.Close(); err != nil {
		t.Fatal(err)
	}

	again, err := o.Start(t.Context(), "web")
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if _, err := o.Start(t.Context(), "web"); !errors.Is(err, ErrRunning) {
		t.Errorf("Start of one that runs = %v", err)
	}
	if err := o.Remove(t.Context(), "web", false); !errors.Is(err, ErrRunning) {
		t.Errorf("Remove of one that runs = %v", err)
	}
	if err := again.Main(t.Context()).Start(); err != nil {
		t.Fatal(err)
	}
	for strings.Count(o.log(t, "web", LogQuery{}), "up") < 2 {
		time.Sleep(time.Millisecond) // it may be killed before it has said a word
	}
	sb = o.attach(t, again.ID()[:6])
	if err := sb.Signal(t.Context(), sigKILL); err != nil {
		t.Fatal(err)
	}
	for o.known(t, "web").Status != api.StatusRunning { // the first command's end is not the sandbox's here
		t.Fatal("it has ended")
	}
	if err := again.Close(); err != nil {
		t.Fatal(err)
	}
	if info := o.known(t, "web"); info.ExitCode == nil || *info.ExitCode != 137 || info.Error != "" {
		t.Errorf("after its first command was killed: %+v", info)
	}
	if got := o.log(t, "web", LogQuery{}); !strings.HasPrefix(got, "stdout: up\nstdout: stopping\nstdout: up\n") {
		t.Errorf("the log was not appended to:\n%s", got)
	}
	if err := o.Rename(t.Context(), "web", "old"); err != nil {
		t.Fatal(err)
	}
	if err := o.Remove(t.Context(), "old", false); err != nil {
		t.Fatal(err)
	}
	if err := o.Remove(t.Context(), "old", false); !errors.Is(err, ErrNotFound) {
		t.Errorf("Remove of one that is gone = %v", err)
	}
}

func second[T any](_ T, err error) error { return err }

// TestRemoveByForce ends a sandbox that runs, and its supervisor's calls.
func TestRemoveByForce(t *testing.T) {
	o := house(t)
	own := o.run(t, "web", api.Config{Command: []string{"sleep", "1000"}})
	main := own.Main(t.Context())
	if err := main.Start(); err != nil {
		t.Fatal(err)
	}
	if err := o.Remove(t.Context(), "web", true); err != nil {
		t.Fatal(err)
	}
	if err := main.Wait(); !errors.Is(err, ErrNotRunning) {
		t.Errorf("the first command ended with %v", err)
	}
	if list, err := o.List(t.Context()); err != nil || len(list) > 0 {
		t.Errorf("left: %v, %v", list, err)
	}
	if err := own.Close(); err != nil {
		t.Error(err)
	}
}

// TestMainOfAnother takes hold of a first command that runs in another process.
func TestMainOfAnother(t *testing.T) {
	o := house(t)
	own := o.run(t, "web", api.Config{Command: []string{"sh", "-c", "echo before; while read line; do echo got $line; test $line = end && exit 4; done"}})
	main := own.Main(t.Context())
	main.OpenStdin = true
	if err := main.Start(); err != nil {
		t.Fatal(err)
	}
	sb := o.attach(t, "web")

	ctx, letGo := context.WithCancelCause(t.Context())
	first := sb.Main(ctx)
	first.Past = true
	pr, pw := io.Pipe()
	defer pw.Close()
	lines, out := io.Pipe()
	first.Stdin, first.Stdout = pr, out
	if err := first.Start(); err != nil {
		t.Fatal(err)
	}
	said := make([]byte, len("before\n"))
	if _, err := io.ReadFull(lines, said); err != nil || string(said) != "before\n" {
		t.Errorf("it has said %q, %v", said, err)
	}
	go io.WriteString(pw, "one\n")
	said = make([]byte, len("got one\n"))
	if _, err := io.ReadFull(lines, said); err != nil || string(said) != "got one\n" {
		t.Errorf("it said %q, %v", said, err)
	}
	bored := errors.New("bored")
	letGo(bored)
	if err := first.Wait(); err != bored {
		t.Errorf("after it was let go: %v", err)
	}

	var stdout bytes.Buffer
	again := sb.Main(t.Context())
	again.Stdin, again.Stdout = strings.NewReader("two\nend\n"), &stdout
	if exit, ok := errors.AsType[*ExitError](again.Run()); !ok || exit.Code != 4 {
		t.Errorf("it ended with %v", exit)
	}
	if got := stdout.String(); got != "got two\ngot end\n" {
		t.Errorf("it said %q", got)
	}
	if exit, ok := errors.AsType[*ExitError](main.Wait()); !ok || exit.Code != 4 {
		t.Errorf("for its supervisor it ended with %v", exit)
	}
	if err := sb.Main(t.Context()).Run(); !errors.Is(err, ErrNotRunning) {
		t.Errorf("a first command that has ended: %v", err)
	}
}

func TestBackground(t *testing.T) {
	o := house(t)
	o.run(t, "web", api.Config{})
	sb := o.attach(t, "web")
	if err := sb.Run(t.Context(), Background{Args: []string{"sh", "-c", "echo $A; pwd"}, Env: map[string]string{"A": "b"}, Dir: "/"}); err != nil {
		t.Fatal(err)
	}
	for o.log(t, "web", LogQuery{}) != "exec: b\nexec: /\n" {
		time.Sleep(10 * time.Millisecond)
	}
	if got := o.log(t, "web", LogQuery{Tail: 1}); got != "exec: /\n" {
		t.Errorf("the last line is %q", got)
	}
	if got := o.log(t, "web", LogQuery{Since: time.Now()}); got != "" {
		t.Errorf("since now it has said %q", got)
	}
	err := sb.Run(t.Context(), Background{Args: []string{"no-such-program"}})
	if exit, ok := errors.AsType[*ExitError](err); !ok || exit.Code != 127 {
		t.Errorf("a program that there is not: %v", err)
	}
	late := filepath.Join(t.TempDir(), "late")
	if err := sb.Run(t.Context(), Background{Args: []string{"sh", "-c", "trap 'touch " + late + "; exit' TERM; while :; do sleep 0.05; done"}, Timeout: 50 * time.Millisecond}); err != nil {
		t.Fatal(err)
	}
	for began := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		if _, err := os.Stat(late); err == nil {
			break
		}
		if time.Since(began) > 10*time.Second {
			t.Fatal("its time ran out and nothing happened")
		}
	}
}

// TestFailedStart: a sandbox that cannot be started again keeps its folder, and
// tells why.
func TestFailedStart(t *testing.T) {
	o := house(t)
	if err := o.run(t, "web", api.Config{}).Close(); err != nil {
		t.Fatal(err)
	}
	broken := o
	broken.Backend = &brokenBackend{err: errors.New("no machine today")}
	if _, err := broken.Start(t.Context(), "web"); err == nil || err.Error() != "no machine today" {
		t.Errorf("Start = %v", err)
	}
	if info := o.known(t, "web"); info.Status != api.StatusStopped || info.Error != "no machine today" {
		t.Errorf("it is %+v", info)
	}
	sb, err := o.Start(t.Context(), "web")
	if err != nil {
		t.Fatal(err)
	}
	defer sb.Close()
	if info := o.known(t, "web"); info.Status != api.StatusRunning || info.Error != "" {
		t.Errorf("started, it is %+v", info)
	}
}

// slowBackend is a backend whose machines are never made.
type slowBackend struct {
	vmtest.InProcess
	begun chan bool
}

func (b slowBackend) Create(ctx context.Context, _ *vm.VMConfig) (vm.Machine, error) {
	b.begun <- true
	<-ctx.Done()
	return nil, context.Cause(ctx)
}

// TestStopWhileStarting stops a sandbox that is not there yet.
func TestStopWhileStarting(t *testing.T) {
	o := house(t)
	slow := slowBackend{begun: make(chan bool)}
	o.Backend = slow
	failed := make(chan error)
	go func() {
		o := o
		o.Name = "web"
		_, err := o.New(context.Background(), api.Config{Image: "busybox", DiskSize: 64 << 20})
		failed <- err
	}()
	<-slow.begun
	if info := o.known(t, "web"); info.Status != api.StatusStarting {
		t.Errorf("it is %s", info.Status)
	}
	if err := o.Remove(t.Context(), "web", true); err != nil {
		t.Error(err)
	}
	if err := <-failed; !errors.Is(err, errStopped) {
		t.Errorf("New = %v", err)
	}
	if list, err := o.List(t.Context()); err != nil || len(list) > 0 {
		t.Errorf("left: %v, %v", list, err)
	}
}

// TestDead has what is left of a supervisor that was killed: not alive, whatever
// its record and its socket say, and of use.
func TestDead(t *testing.T) {
	o := house(t)
	sb := o.run(t, "web", api.Config{})
	folder := filepath.Join(o.Home, "state", "sandboxes", sb.ID())
	record, err := os.ReadFile(filepath.Join(folder, "state.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := sb.Close(); err != nil {
		t.Fatal(err)
	}
	// As a kill would have left it: the record, a socket, half a file. The process
	// id in it is that of a process which must come to no harm: this one.
	if err := os.WriteFile(filepath.Join(folder, "state.json"), record, 0o600); err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("unix", filepath.Join(folder, "control.sock"))
	if err != nil {
		t.Fatal(err)
	}
	listener.(*net.UnixListener).SetUnlinkOnClose(false)
	listener.Close()
	if err := os.WriteFile(filepath.Join(folder, ".new-123"), nil, 0o600); err != nil {
		t.Fatal(err)
	}

	if info := o.known(t, "web"); info.Status != api.StatusDead {
		t.Errorf("it is %s", info.Status)
	}
	if _, err := o.Attach(t.Context(), "web"); !errors.Is(err, ErrNotRunning) || !strings.Contains(err.Error(), "its supervisor was killed") {
		t.Errorf("Attach = %v", err)
	}
	garbage, err := o.GC(t.Context())
	if err != nil || len(garbage.Sandboxes) > 0 || len(garbage.Files) != 2 {
		t.Errorf("GC = %+v, %v", garbage, err)
	}
	if garbage, err = o.GC(t.Context()); err != nil || len(garbage.Files) > 0 {
		t.Errorf("a second GC = %+v, %v", garbage, err)
	}
	again, err := o.Start(t.Context(), "web")
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Close(); err != nil {
		t.Fatal(err)
	}
	removed, err := o.Prune(t.Context(), nil)
	if err != nil || len(removed) != 1 || removed[0].Name != "web" {
		t.Errorf("Prune = %+v, %v", removed, err)
	}
	if err := syscall.Kill(os.Getpid(), 0); err != nil {
		t.Error(err)
	}
}

// TestManyAtOnce has ten make, use and remove sandboxes at once.
func TestManyAtOnce(t *testing.T) {
	o := house(t)
	failures := make(chan error)
	const sandboxes, workers = 30, 10
	for worker := range workers {
		go func() {
			failures <- func() error {
				for i := range sandboxes / workers {
					o := o
					o.Name = fmt.Sprintf("box-%d-%d", worker, i)
					own, err := o.New(context.Background(), api.Config{Image: "busybox", DiskSize: 64 << 20})
					if err != nil {
						return err
					}
					sb, err := o.Attach(context.Background(), o.Name)
					if err != nil {
						return err
					}
					out, err := sb.Command(context.Background(), "echo", o.Name).Output()
					if err != nil || string(out) != o.Name+"\n" {
						return fmt.Errorf("%q, %w", out, err)
					}
					if err := errors.Join(o.Remove(context.Background(), o.Name, true), own.Close()); err != nil {
						return err
					}
				}
				return nil
			}()
		}()
	}
	for range workers {
		if err := <-failures; err != nil {
			t.Error(err)
		}
	}
	entries, err := state.List(filepath.Join(o.Home, "state", "sandboxes"))
	if err != nil || len(entries) > 0 {
		t.Errorf("left: %v, %v", entries, err)
	}
}

// TestStopIsNotHurried: a client that goes away while it waits for a sandbox to
// stop does not shorten the time that the first command has.
func TestStopIsNotHurried(t *testing.T) {
	o := house(t)
	own := o.run(t, "web", api.Config{Command: []string{"sh", "-c", "exec 2>/dev/null; trap 'sleep 0.3; exit 5' TERM; echo up; while :; do sleep 0.05; done"}})
	if err := own.Main(t.Context()).Start(); err != nil {
		t.Fatal(err)
	}
	for o.log(t, "web", LogQuery{}) != "stdout: up\n" {
		time.Sleep(10 * time.Millisecond)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := o.attach(t, "web").Stop(ctx, time.Minute); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Stop = %v", err)
	}
	info, err := own.Wait(t.Context())
	if err != nil || info.ExitCode == nil || *info.ExitCode != 5 {
		t.Errorf("it ended as %+v, %v", info, err)
	}
}

// TestStopGivesTheFolderBack: what Stop has ended can be started and removed at
// once, by its own process too.
func TestStopGivesTheFolderBack(t *testing.T) {
	o := house(t)
	sb := o.run(t, "web", api.Config{})
	for range 3 {
		if err := sb.Stop(t.Context(), 0); err != nil {
			t.Fatal(err)
		}
		if info := o.known(t, "web"); info.Status != api.StatusStopped {
			t.Errorf("after Stop it is %s", info.Status)
		}
		var err error
		if sb, err = o.Start(t.Context(), "web"); err != nil {
			t.Fatal(err)
		}
	}
	if err := sb.Close(); err != nil {
		t.Error(err)
	}
}

// TestPruneSparesTheUnreadable: what a newer matchlock has written stays, unless
// force is used.
func TestPruneSparesTheUnreadable(t *testing.T) {
	o := house(t)
	sb := o.run(t, "web", api.Config{})
	if err := sb.Close(); err != nil {
		t.Fatal(err)
	}
	record := filepath.Join(o.Home, "state", "sandboxes", sb.ID(), "state.json")
	if err := os.WriteFile(record, []byte(`{"version":1000}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if removed, err := o.Prune(t.Context(), nil); err != nil || len(removed) > 0 {
		t.Errorf("Prune = %v, %v", removed, err)
	}
	if info := o.known(t, sb.ID()); !strings.Contains(info.Error, "newer matchlock") {
		t.Errorf("it is %+v", info)
	}
	for what, err := range map[string]error{
		"Remove": o.Remove(t.Context(), sb.ID(), false),
		"Start":  second(o.Start(t.Context(), sb.ID())),
	} {
		if err == nil || !strings.Contains(err.Error(), "newer matchlock") {
			t.Errorf("%s = %v", what, err)
		}
	}
	if err := o.Remove(t.Context(), sb.ID(), true); err != nil {
		t.Error(err)
	}
}
