package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/matchlock/matchlock/api"
	"github.com/matchlock/matchlock/sandbox"
)

// TestSoak goes on for as many minutes as MATCHLOCK_TEST_SOAK says.
func TestSoak(t *testing.T) {
	minutes, err := strconv.ParseFloat(os.Getenv("MATCHLOCK_TEST_SOAK"), 64)
	if err != nil || minutes <= 0 {
		t.Skip("takes long: set MATCHLOCK_TEST_SOAK to the number of minutes (make soak does)")
	}
	soak(t, time.Duration(minutes*float64(time.Minute)))
}

func TestVMSoak(t *testing.T) { soak(t, 15*time.Second) }

const (
	soakWorkers = 2
	soakAlive   = 2 // sandboxes of a worker that run at the same time
	soakBoxes   = 3 // that there are of it
)

// soak has workers do at random all that is done to sandboxes, each with some of its
// own: they are made, used, copied, stopped, and killed. Each knows of its own what
// must be true of them, and every minute all is looked at.
func soak(t *testing.T, duration time.Duration) {
	m := install(t)
	seed := uint64(time.Now().UnixNano())
	if text := os.Getenv("MATCHLOCK_TEST_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%v, MATCHLOCK_TEST_SEED=%d", duration, seed)
	w := &soakWorld{T: t, installed: m, dir: t.TempDir(), temp: t.TempDir(), began: time.Now(), done: map[string]int{}}
	server := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) { fmt.Fprint(rw, "answer to "+r.URL.Path) }))
	defer server.Close()
	w.port = server.Listener.Addr().(*net.TCPAddr).Port

	// What is made once for all is there from now on.
	m.mustRun(t, "run", "busybox", "true")
	m.mustRun(t, "run", "-d", "--name", "first", "busybox", "sleep", "100000")
	m.mustRun(t, "fork", "--name", "second", "first")
	m.mustRun(t, "snapshot", "create", "first", "first")
	m.mustRun(t, "rm", "-f", "first", "second")
	m.mustRun(t, "snapshot", "rm", "first")
	before := m.belongings(t)

	for n := range soakWorkers {
		w.workers = append(w.workers, &soakWorker{soakWorld: w, n: n, r: rand.New(rand.NewPCG(seed, uint64(n)))})
	}
	if err := w.workers[0].makeElder(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), duration)
	defer cancel()
	var all sync.WaitGroup
	for _, worker := range w.workers {
		all.Go(func() {
			for ctx.Err() == nil && !t.Failed() {
				w.quiet.RLock()
				worker.step()
				w.quiet.RUnlock()
			}
		})
	}
	for ctx.Err() == nil && !t.Failed() {
		select {
		case <-ctx.Done():
		case <-time.After(min(time.Minute, duration/2)):
			w.audit()
		}
	}
	all.Wait()
	if !t.Failed() {
		w.audit()
	}
	w.end(before, duration >= time.Minute)
	for _, kind := range slices.Sorted(maps.Keys(w.done)) {
		t.Logf("%-22s %5d", kind, w.done[kind])
	}
	for _, step := range soakSteps {
		if duration >= 5*time.Minute && w.done[step.name] == 0 {
			t.Errorf("in all this time there was no %q", step.name)
		}
	}
}

// soakWorld is a home, and what there must be in it.
type soakWorld struct {
	*testing.T
	*installed
	dir     string // folders that sandboxes have
	temp    string // TMPDIR
	port    int    // of a server on the loopback
	began   time.Time
	workers []*soakWorker
	quiet   sync.RWMutex // held for reading by who does something

	mu   sync.Mutex
	done map[string]int // steps, by name

	elder *soakBox   // which is never stopped nor killed
	sizes []soakSize // of its supervisor
}

// soakWorker does one thing after the other. What it chooses depends on its own
// sandboxes alone, so a seed draws the same again.
type soakWorker struct {
	*soakWorld
	n         int
	r         *rand.Rand
	boxes     []*soakBox
	snapshots []soakSnapshot
	names     int      // that it has made up
	trail     []string // what it did last
}

// soakBox is what must be true of a sandbox.
type soakBox struct {
	name, id string
	status   api.Status
	kept     bool
	folder   string // of the host, at /work
	value    string // in /value, synced
	memory   string // in /dev/shm/value, lost at a stop
}

// soakSnapshot is what a sandbox was when it was made.
type soakSnapshot struct {
	name                  string
	value, memory, folder string
}

// soakSteps are what may be done, and how often. A step that makes no sense at the
// moment is not a choice.
var soakSteps = []struct {
	name   string
	weight int
	may    func(*soakWorker) bool
	do     func(*soakWorker) error
}{
	{"create", 8, (*soakWorker).room, (*soakWorker).create},
	{"run", 3, (*soakWorker).room, (*soakWorker).runForeground},
	{"run killed", 1, (*soakWorker).room, (*soakWorker).runKilled},
	{"use", 16, (*soakWorker).running, (*soakWorker).use},
	{"use the elder", 4, always, (*soakWorker).useElder},
	{"fork", 4, (*soakWorker).roomForCopy, (*soakWorker).fork},
	{"fork the elder", 2, (*soakWorker).room, (*soakWorker).forkElder},
	{"snapshot", 3, (*soakWorker).running, (*soakWorker).snapshot},
	{"run of a snapshot", 4, (*soakWorker).roomForSnapshot, (*soakWorker).runSnapshot},
	{"pause and resume", 4, (*soakWorker).running, (*soakWorker).pause},
	{"stop", 2, (*soakWorker).running, (*soakWorker).stop},
	{"start", 3, (*soakWorker).roomForStopped, (*soakWorker).start},
	{"remove", 3, (*soakWorker).any, (*soakWorker).remove},
	{"kill", 4, (*soakWorker).running, (*soakWorker).killAtRest},
	{"kill in an act", 4, (*soakWorker).running, (*soakWorker).killInAct},
	{"gc", 1, always, (*soakWorker).gc},
}

func always(*soakWorker) bool { return true }

func (k *soakWorker) step() {
	weight := 0
	for _, s := range soakSteps {
		if s.may(k) {
			weight += s.weight
		}
	}
	choice := k.r.IntN(weight)
	for _, s := range soakSteps {
		if !s.may(k) {
			continue
		}
		if choice -= s.weight; choice >= 0 {
			continue
		}
		k.say("%s", s.name)
		if err := s.do(k); err != nil {
			k.Errorf("worker %d, %s: %v\nits last steps:\n%s", k.n, s.name, err, strings.Join(k.trail, "\n"))
		}
		k.mu.Lock()
		k.done[s.name]++
		k.mu.Unlock()
		return
	}
}

// say notes a step.
func (k *soakWorker) say(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	if last := len(k.trail) - 1; last >= 0 && strings.HasSuffix(k.trail[last], text) {
		k.trail = k.trail[:last] // it waits for something
	}
	k.trail = append(k.trail[max(0, len(k.trail)-40):], fmt.Sprintf("%8v %s", time.Since(k.began).Round(time.Millisecond), text))
}

// The conditions of steps.

func (k *soakWorker) alive() (n int) {
	for _, b := range k.boxes {
		if b.status == api.StatusRunning {
			n++
		}
	}
	return n
}

// some picks one of the worker's own that has a status, but never the elder.
func (k *soakWorker) some(status ...api.Status) *soakBox {
	var all []*soakBox
	for _, b := range k.boxes {
		if b != k.elder && slices.Contains(status, b.status) {
			all = append(all, b)
		}
	}
	if all == nil {
		return nil
	}
	return all[k.r.IntN(len(all))]
}

func (k *soakWorker) has(status ...api.Status) bool {
	return slices.ContainsFunc(k.boxes, func(b *soakBox) bool { return b != k.elder && slices.Contains(status, b.status) })
}

var soakEnded = []api.Status{api.StatusStopped, api.StatusDead}

func (k *soakWorker) room() bool            { return k.alive() < soakAlive && len(k.boxes) < soakBoxes }
func (k *soakWorker) running() bool         { return k.has(api.StatusRunning) }
func (k *soakWorker) any() bool             { return k.running() || k.has(soakEnded...) }
func (k *soakWorker) roomForCopy() bool     { return k.room() && k.running() }
func (k *soakWorker) roomForSnapshot() bool { return k.room() && len(k.snapshots) > 0 }
func (k *soakWorker) roomForStopped() bool  { return k.alive() < soakAlive && k.has(soakEnded...) }

// call makes a call that must succeed, and returns what it has said.
func (k *soakWorker) call(args ...string) (string, error) {
	r := k.try(args...)
	if r.status != 0 {
		return r.stdout, fmt.Errorf("status %d: %s\n%s", r.status, r.stderr, r.call)
	}
	return r.stdout, nil
}

func (k *soakWorker) try(args ...string) result {
	k.say("  %s", strings.Join(args, " "))
	cmd := k.command(k.T, args...)
	cmd.Env = append(cmd.Env, "TMPDIR="+k.temp)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	r := result{status: cmd.ProcessState.ExitCode(), stdout: stdout.String(), stderr: stderr.String(), call: byHand(cmd)}
	if r.status < 0 {
		r.stderr += fmt.Sprintf("\n%v", err)
	}
	return r
}

// says makes a call that must say something.
func (k *soakWorker) says(want string, args ...string) error {
	got, err := k.call(args...)
	if err == nil && got != want {
		err = fmt.Errorf("%q says %q, want %q", args, got, want)
	}
	return err
}

// name makes up one that nobody has.
func (k *soakWorker) name(kind string) string {
	k.names++
	return fmt.Sprintf("%s-%d-%d", kind, k.n, k.names)
}

func (w *soakWorld) folder(name string) (string, error) {
	dir := filepath.Join(w.dir, name)
	return dir, os.Mkdir(dir, 0o755)
}

// makeElder makes the one that lives as long as all of this.
func (k *soakWorker) makeElder() error {
	k.elder = &soakBox{}
	return k.createBox(k.elder, "elder", true)
}

func (k *soakWorker) create() error {
	return k.createBox(&soakBox{}, k.name("box"), k.r.IntN(3) > 0)
}

func (k *soakWorker) createBox(b *soakBox, name string, kept bool) (err error) {
	b.name, b.kept = name, kept
	if b.folder, err = k.folder(name); err != nil {
		return err
	}
	id, err := k.call("run", "-d", "--name", name, fmt.Sprintf("--rm=%v", !kept), "-v", b.folder+":/work", "--host-port", strconv.Itoa(k.port),
		"busybox", "sleep", "100000")
	if err != nil {
		return err
	}
	return k.made(b, id)
}

// made is when there is a sandbox.
func (k *soakWorker) made(b *soakBox, id string) error {
	b.id, b.status = strings.TrimSpace(id), api.StatusRunning
	k.boxes = append(k.boxes, b)
	if err := k.holds(b); err != nil {
		return err
	}
	return k.write(b)
}

// holds looks for what was written.
func (k *soakWorker) holds(b *soakBox) error {
	return k.says(b.value+"|"+b.memory+"\n", "exec", b.name, "sh", "-c", `echo "$(cat /value 2>/dev/null)|$(cat /dev/shm/value 2>/dev/null)"`)
}

func (k *soakWorker) write(b *soakBox) error {
	value := strconv.Itoa(k.r.Int())
	err := k.says("done\n", "exec", b.name, "sh", "-c", "echo "+value+" > /value && echo "+value+" > /dev/shm/value && sync && echo done")
	b.value, b.memory = value, value
	return err
}

func (k *soakWorker) runForeground() error {
	r := k.try("run", "--host-port", strconv.Itoa(k.port), "busybox", "sh", "-c", k.fetch("/foreground")+"; exit 7")
	if r.status != 7 || r.stdout != "answer to /foreground\n" || r.stderr != "" {
		return fmt.Errorf("status %d, %q, %q, want 7\n%s", r.status, r.stdout, r.stderr, r.call)
	}
	return nil
}

// runKilled kills one in the foreground at any time of its life.
func (k *soakWorker) runKilled() error {
	cmd := k.command(k.T, "run", "busybox", "sleep", "1000")
	cmd.Env = append(cmd.Env, "TMPDIR="+k.temp)
	if err := cmd.Start(); err != nil {
		return err
	}
	time.Sleep(time.Duration(k.r.Int64N(int64(2 * time.Second))))
	cmd.Process.Kill()
	if cmd.Wait(); cmd.ProcessState.Exited() {
		return fmt.Errorf("it ended by itself: %v", cmd.ProcessState)
	}
	_, err := k.call("gc")
	return err
}

// fetch is a command that asks the server on the host.
func (w *soakWorld) fetch(path string) string {
	return fmt.Sprintf("wget -qO- http://%s:%d%s; echo", api.HostGateway, w.port, path)
}

func (k *soakWorker) use() error      { return k.useBox(k.some(api.StatusRunning)) }
func (k *soakWorker) useElder() error { return k.useBox(k.elder) }

// useBox does one of the things that sandboxes are for. Others may do it in the same
// one at the same time.
func (k *soakWorker) useBox(b *soakBox) error {
	token := strconv.Itoa(k.r.Int())
	switch k.r.IntN(7) {
	case 0:
		r := k.try("exec", b.name, "sh", "-c", "echo "+token+"; exit 3")
		if r.status != 3 || r.stdout != token+"\n" || r.stderr != "" {
			return fmt.Errorf("status %d, %q, %q, want 3, %s", r.status, r.stdout, r.stderr, token)
		}
		return nil
	case 1: // much output
		n := k.r.IntN(200000)
		out, err := k.call("exec", b.name, "sh", "-c", fmt.Sprintf("seq %d | md5sum; seq %d", n, n))
		if err == nil && strings.Count(out, "\n") != n+1 {
			err = fmt.Errorf("%d lines, want %d", strings.Count(out, "\n"), n+1)
		}
		return err
	case 2:
		return k.copyThrough(b, token)
	case 3:
		return k.says("answer to /"+token+"\n", "exec", b.name, "sh", "-c", k.fetch("/"+token))
	case 4:
		r := k.try("exec", b.name, "wget", "-qO-", fmt.Sprintf("http://%s:%d/", api.HostGateway, 1))
		if r.status != 1 || !strings.Contains(r.stderr, "refused") && !strings.Contains(r.stderr, "reset") {
			return fmt.Errorf("what is not allowed: status %d, %q, %q", r.status, r.stdout, r.stderr)
		}
		return nil
	case 5: // files of the host, from both sides
		path := filepath.Join(b.folder, token)
		if err := os.WriteFile(path, []byte(token), 0o644); err != nil {
			return err
		}
		if err := k.says(token, "exec", b.name, "sh", "-c", fmt.Sprintf("cd /work && cat %s && echo changed > new-%s && mv new-%s %s && sync", token, token, token, token)); err != nil {
			return err
		}
		if got, err := os.ReadFile(path); err != nil || string(got) != "changed\n" {
			return fmt.Errorf("in the host's folder is %q, %v", got, err)
		}
		return os.Remove(path)
	}
	if b == k.elder { // others write there too
		return k.says("0\n", "exec", b.name, "sh", "-c", "true; echo $?")
	}
	if err := k.holds(b); err != nil {
		return err
	}
	return k.write(b)
}

// copyThrough copies a file in and out again.
func (k *soakWorker) copyThrough(b *soakBox, token string) error {
	content := make([]byte, k.r.IntN(3<<20))
	for i := range content {
		content[i] = byte(k.r.Uint32() >> 5)
	}
	in, out := filepath.Join(k.dir, token+".in"), filepath.Join(k.dir, token+".out")
	defer os.Remove(in)
	defer os.Remove(out)
	if err := os.WriteFile(in, content, 0o600); err != nil {
		return err
	}
	for _, args := range [][]string{
		{"cp", in, b.name + ":/tmp/" + token}, {"cp", b.name + ":/tmp/" + token, out}, {"exec", b.name, "rm", "/tmp/" + token},
	} {
		if _, err := k.call(args...); err != nil {
			return err
		}
	}
	if got, err := os.ReadFile(out); err != nil || sha256.Sum256(got) != sha256.Sum256(content) {
		return fmt.Errorf("%d bytes came back of %d, or others: %v", len(got), len(content), err)
	}
	return nil
}

func (k *soakWorker) fork() error { return k.forkBox(k.some(api.StatusRunning)) }

// Its values are written before there are workers.
func (k *soakWorker) forkElder() error { return k.forkBox(k.elder) }

func (k *soakWorker) forkBox(from *soakBox) error {
	b := *from
	b.name, b.kept = k.name("twin"), k.r.IntN(2) == 0
	id, err := k.call("fork", "--name", b.name, fmt.Sprintf("--rm=%v", !b.kept), from.name)
	if err != nil {
		return err
	}
	return k.made(&b, id)
}

func (k *soakWorker) snapshot() error {
	if len(k.snapshots) == 2 {
		old := k.snapshots[0]
		k.snapshots = k.snapshots[1:]
		if _, err := k.call("snapshot", "rm", old.name); err != nil {
			return err
		}
	}
	b := k.some(api.StatusRunning)
	s := soakSnapshot{k.name("saved"), b.value, b.memory, b.folder}
	if _, err := k.call("snapshot", "create", b.name, s.name); err != nil {
		return err
	}
	k.snapshots = append(k.snapshots, s)
	return k.holds(b)
}

func (k *soakWorker) runSnapshot() error {
	s := k.snapshots[k.r.IntN(len(k.snapshots))]
	b := &soakBox{name: k.name("again"), kept: k.r.IntN(2) == 0, value: s.value, memory: s.memory, folder: s.folder}
	id, err := k.call("run", "-d", "--name", b.name, fmt.Sprintf("--rm=%v", !b.kept), "--snapshot", s.name)
	if err != nil {
		return err
	}
	return k.made(b, id)
}

func (k *soakWorker) pause() error {
	b := k.some(api.StatusRunning)
	if _, err := k.call("pause", b.name); err != nil {
		return err
	}
	if err := k.is(b, api.StatusPaused); err != nil {
		return err
	}
	if r := k.try("exec", b.name, "true"); r.status != 125 || !strings.Contains(r.stderr, "paused") {
		return fmt.Errorf("exec in what is paused: status %d, %q", r.status, r.stderr)
	}
	if k.r.IntN(3) == 0 { // it need not go on for this
		return k.removeBox(b)
	}
	if _, err := k.call("resume", b.name); err != nil {
		return err
	}
	return k.holds(b)
}

// is compares what inspect says of a sandbox.
func (k *soakWorker) is(b *soakBox, want api.Status) error {
	i, err := k.inspect(b)
	if err == nil && (i.Status != want || i.ID != b.id || want.Alive() && (i.PID == 0 || i.MachinePID == 0)) {
		err = fmt.Errorf("inspect says %s of %s, with supervisor %d and machine %d; want %s of %s", i.Status, i.ID, i.PID, i.MachinePID, want, b.id)
	}
	return err
}

func (k *soakWorker) inspect(b *soakBox) (i sandbox.Inspection, err error) {
	out, err := k.call("inspect", "--json", b.name)
	if err == nil {
		err = json.Unmarshal([]byte(out), &i)
	}
	return i, err
}

func (k *soakWorker) stop() error {
	b := k.some(api.StatusRunning)
	if _, err := k.call("stop", "-t", "0", b.name); err != nil {
		return err
	}
	return k.ended(b, api.StatusStopped)
}

// ended is when a sandbox has come to its end.
func (k *soakWorker) ended(b *soakBox, status api.Status) error {
	if !b.kept {
		k.forget(b)
		return k.isGone(b)
	}
	b.status, b.memory = status, ""
	return k.is(b, status)
}

func (k *soakWorker) isGone(b *soakBox) error {
	if r := k.try("inspect", b.name); r.status != 125 || !strings.Contains(r.stderr, "not found") {
		return fmt.Errorf("%s is there: status %d, %q", b.name, r.status, r.stderr)
	}
	return nil
}

func (k *soakWorker) forget(b *soakBox) {
	k.boxes = slices.DeleteFunc(k.boxes, func(other *soakBox) bool { return other == b })
}

func (k *soakWorker) start() error {
	b := k.some(soakEnded...)
	if _, err := k.call("start", b.name); err != nil {
		return err
	}
	b.status = api.StatusRunning
	if err := k.holds(b); err != nil {
		return err
	}
	return k.write(b)
}

func (k *soakWorker) remove() error {
	return k.removeBox(k.some(api.StatusRunning, api.StatusStopped, api.StatusDead))
}

func (k *soakWorker) removeBox(b *soakBox) error {
	if _, err := k.call("rm", "-f", b.name); err != nil {
		return err
	}
	k.forget(b)
	return k.isGone(b)
}

// killAtRest kills what makes a sandbox while nothing is done to it.
func (k *soakWorker) killAtRest() error {
	b := k.some(api.StatusRunning)
	i, err := k.inspect(b)
	if err != nil {
		return err
	}
	victim := k.r.IntN(3)
	if err := k.killOne(i, victim); err != nil {
		return err
	}
	status, dead := api.StatusStopped, []int{i.MachinePID} // by a supervisor that has lost its machine
	if victim != 0 {
		status, dead = api.StatusDead, append(dead, i.PID)
	}
	if err := withinASecond(func() error { return gone(dead) }); err != nil {
		return err
	}
	if _, err := k.call("gc"); err != nil {
		return err
	}
	return k.settles(func() error { return k.ended(b, status) })
}

// gone tells of processes that have not ended.
func gone(pids []int) error {
	for _, pid := range pids {
		// One that nobody has asked how it ended has no command line.
		if line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)); len(line) > 0 {
			return fmt.Errorf("process %d was killed, or is to end, and is there", pid)
		}
	}
	return nil
}

// settles waits until a look shows no fault any more, of what goes on by itself.
func (k *soakWorker) settles(look func() error) error {
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if err := look(); err == nil || time.Now().After(deadline) {
			return err
		}
	}
}

// killOne kills the machine, its supervisor or both.
func (k *soakWorker) killOne(i sandbox.Inspection, victim int) error {
	pids := [][]int{{i.MachinePID}, {i.PID}, {i.PID, i.MachinePID}}[victim]
	k.say("  kill -9 %v of %s", pids, i.Name)
	for _, pid := range pids {
		if pid == 0 {
			return fmt.Errorf("%s: no process: %+v", i.Name, i.Info)
		}
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
			return err
		}
	}
	return nil
}

// killInAct kills something of a sandbox, or the program that acts, while something
// is done to it. What became of it is not known then, but that it can be removed is.
func (k *soakWorker) killInAct() error {
	b := k.some(api.StatusRunning)
	twin, saved := k.name("twin"), k.name("saved")
	acts := []struct {
		span time.Duration
		args []string
	}{
		{200 * time.Millisecond, []string{"exec", b.name, "seq", "100000"}},
		{500 * time.Millisecond, []string{"cp", k.program, b.name + ":/program"}},
		{700 * time.Millisecond, []string{"fork", "--name", twin, b.name}},
		{500 * time.Millisecond, []string{"snapshot", "create", b.name, saved}},
		{50 * time.Millisecond, []string{"pause", b.name}},
		{300 * time.Millisecond, []string{"stop", "-t", "0", b.name}},
		{300 * time.Millisecond, []string{"rm", "-f", b.name}},
	}
	act, victim := acts[k.r.IntN(len(acts))], k.r.IntN(4)
	i, err := k.inspect(b)
	if err != nil {
		return err
	}
	cmd := k.command(k.T, act.args...)
	cmd.Env = append(cmd.Env, "TMPDIR="+k.temp)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	k.say("  %s", strings.Join(act.args, " "))
	if err := cmd.Start(); err != nil {
		return err
	}
	began := time.Now()
	time.Sleep(time.Duration(k.r.Int64N(int64(act.span))))
	if victim == 3 {
		k.say("  kill -9 of that")
		err = cmd.Process.Kill()
		if errors.Is(err, os.ErrProcessDone) {
			err = nil
		}
	} else {
		err = k.killOne(i, victim)
	}
	cmd.Wait()
	k.say("  %v: %q", cmd.ProcessState, stderr.String())
	if took := time.Since(began); err == nil && took > 30*time.Second {
		err = fmt.Errorf("%q hangs for %v", act.args, took)
	}
	if strings.Contains(stderr.String(), "panic") || strings.Contains(stderr.String(), "goroutine ") {
		err = fmt.Errorf("%q: %s", act.args, stderr.String())
	}
	if err != nil {
		return err
	}
	k.forget(b)
	for _, name := range []string{b.name, twin} {
		if r := k.try("rm", "-f", name); r.status != 0 && !strings.Contains(r.stderr, "not found") {
			return fmt.Errorf("rm -f %s: status %d, %s", name, r.status, r.stderr)
		}
	}
	listed, err := k.call("snapshot", "ls", "-q")
	if err != nil || !slices.Contains(strings.Fields(listed), saved) {
		return err
	}
	if _, err := k.call("run", "--snapshot", saved, "true"); err != nil {
		return err
	}
	_, err = k.call("snapshot", "rm", saved)
	return err
}

func (k *soakWorker) gc() error {
	_, err := k.call("gc")
	return err
}

// audit looks at all there is while nobody does anything.
func (w *soakWorld) audit() {
	w.quiet.Lock()
	defer w.quiet.Unlock()
	k := w.workers[0]
	if _, err := k.call("gc"); err != nil {
		w.Error(err)
		return
	}
	if err := k.says(`{"sandboxes":[],"files":[]}`+"\n", "gc", "--json"); err != nil {
		w.Errorf("after gc: %v", err)
	}
	if err := k.settles(w.agrees); err != nil {
		w.Errorf("after %v: %v", time.Since(w.began).Round(time.Second), err)
		for _, k := range w.workers {
			w.Logf("worker %d did last:\n%s", k.n, strings.Join(k.trail, "\n"))
		}
	}
	w.measure()
}

// agrees compares what must be with what ps says, with processes and with files.
func (w *soakWorld) agrees() error {
	want, alive, saved := map[string]api.Status{}, 0, []string{}
	for _, k := range w.workers {
		for _, b := range k.boxes {
			want[b.id+" "+b.name] = b.status
			if b.status.Alive() {
				alive++
			}
		}
		for _, s := range k.snapshots {
			saved = append(saved, s.name)
		}
	}
	got := map[string]api.Status{}
	list := w.list(w.T)
	for _, info := range list {
		got[info.ID+" "+info.Name] = info.Status
	}
	if !maps.Equal(got, want) {
		return fmt.Errorf("ps says %v, want %v", got, want)
	}
	supervisors, machines := w.supervisors(w.T), w.machines(w.T)
	if len(supervisors) != alive || len(machines) != alive {
		return fmt.Errorf("there are supervisors %v and machines %v, want %d", supervisors, machines, alive)
	}
	if all := processesOf(w.home); len(all) != alive {
		return fmt.Errorf("of this home there are the processes %v, want %v", all, supervisors)
	}
	folders, err := os.ReadDir(filepath.Join(w.home, "state", "sandboxes"))
	if err != nil {
		return err
	}
	if len(folders) != len(want)+1 { // the lock
		return fmt.Errorf("the sandboxes' folder has %v, want those of %v", folders, want)
	}
	for _, info := range list {
		if info.Status.Alive() {
			continue
		}
		files, err := os.ReadDir(filepath.Join(w.home, "state", "sandboxes", info.ID))
		if err != nil {
			return err
		}
		for _, f := range files {
			if f.Name() == "control.sock" || strings.HasPrefix(f.Name(), ".new-") || strings.HasPrefix(f.Name(), "vm-") {
				return fmt.Errorf("sandbox %s has ended and has %s", info.Name, f.Name())
			}
		}
	}
	snapshots, err := os.ReadDir(filepath.Join(w.home, "data", "snapshots"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if len(snapshots) != len(saved) || slices.ContainsFunc(snapshots, func(e os.DirEntry) bool { return !slices.Contains(saved, e.Name()) }) {
		return fmt.Errorf("the snapshots' folder has %v, want %v", snapshots, saved)
	}
	if left, err := os.ReadDir(w.temp); err != nil || len(left) > 0 {
		return fmt.Errorf("in TMPDIR is %v, %v", left, err)
	}
	return nil
}

// processesOf are those with a home in their environment.
func processesOf(home string) (pids []int) {
	paths, _ := filepath.Glob("/proc/[0-9]*/environ") // the pattern is a good one
	for _, path := range paths {
		environ, err := os.ReadFile(path)
		if err == nil && bytes.Contains(environ, []byte("MATCHLOCK_HOME="+home+"\x00")) {
			pid, _ := strconv.Atoi(strings.Split(path, "/")[2])
			pids = append(pids, pid)
		}
	}
	return pids
}

// soakSize is what a supervisor and its machine have.
type soakSize struct {
	anonymous, descriptors, threads, machineDescriptors int
}

// measure compares the elder's supervisor with what it was.
func (w *soakWorld) measure() {
	i, err := w.workers[0].inspect(w.elder)
	if err != nil {
		w.Error(err)
		return
	}
	s := soakSize{procStatus(w.T, i.PID, "RssAnon"), descriptorsOf(w.T, i.PID), procStatus(w.T, i.PID, "Threads"), descriptorsOf(w.T, i.MachinePID)}
	w.Logf("%v: %d sandboxes; the elder's supervisor has %d KiB, %d descriptors, %d threads, its machine %d descriptors", time.Since(w.began).Round(time.Second),
		len(w.list(w.T)), s.anonymous, s.descriptors, s.threads, s.machineDescriptors)
	w.sizes = append(w.sizes, s)
	first := w.sizes[0]
	// A copy adds a layer to the disk, of which there are so many before they are merged.
	const layers = 10
	if s.descriptors > first.descriptors+layers || s.machineDescriptors > first.machineDescriptors+layers {
		w.Errorf("descriptors grow: %+v, at first %+v", s, first)
	}
	if s.anonymous > first.anonymous+32<<10 || s.threads > first.threads+16 {
		w.Errorf("the supervisor grows: %+v, at first %+v", s, first)
	}
}

func descriptorsOf(t *testing.T, pid int) int {
	all, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Error(err)
	}
	return len(all)
}

// procStatus is a number in /proc/PID/status.
func procStatus(t *testing.T, pid int, field string) int {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Error(err)
	}
	for line := range strings.Lines(string(status)) {
		if value, ok := strings.CutPrefix(line, field+":"); ok {
			n, err := strconv.Atoi(strings.Fields(value)[0])
			if err != nil {
				t.Error(err)
			}
			return n
		}
	}
	t.Errorf("/proc/%d/status has no %s", pid, field)
	return 0
}

// end removes all, of which nothing may be left.
func (w *soakWorld) end(before []string, groups bool) {
	for _, info := range w.list(w.T) {
		w.mustRun(w.T, "rm", "-f", info.ID)
	}
	for _, name := range strings.Fields(w.run(w.T, nil, "snapshot", "ls", "-q").stdout) {
		w.mustRun(w.T, "snapshot", "rm", name)
	}
	w.mustRun(w.T, "gc")
	w.leavesNothing(w.T)
	if err := withinASecond(func() error {
		if left := processesOf(w.home); len(left) > 0 {
			return fmt.Errorf("left: processes %v", left)
		}
		return nil
	}); err != nil {
		w.Error(err)
	}
	if after := w.belongings(w.T); !slices.Equal(before, after) {
		w.Errorf("files and mounts before:\n%s\nafter all:\n%s", strings.Join(before, "\n"), strings.Join(after, "\n"))
	}
	if !groups {
		return
	}
	// Those of machines that were killed the next start removes when they are a minute old.
	time.Sleep(time.Minute)
	w.mustRun(w.T, "run", "busybox", "true")
	for _, controller := range []string{".", "memory", "pids", "cpu", "unified"} {
		old, _ := filepath.Glob(filepath.Join("/sys/fs/cgroup", controller, "matchlock-*"))
		for _, group := range old {
			info, err := os.Stat(group)
			procs, _ := os.ReadFile(filepath.Join(group, "cgroup.procs"))
			if err == nil && len(procs) == 0 && time.Since(info.ModTime()) > 70*time.Second {
				w.Errorf("left: control group %s, since %v", group, info.ModTime())
			}
		}
	}
}
