package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/matchlock/matchlock/api"
)

func TestLongLifeKills(t *testing.T) { killInLife(t, long(t)) }
func TestVMLifeKills(t *testing.T)   { killInLife(t, 10) }

// lifeActs are what is done to a detached sandbox that runs when something is
// killed. To make one is an act too.
var lifeActs = []struct {
	name string
	args []string
}{
	{"create", nil},
	{"run", []string{"run", "busybox", "true"}},
	{"exec", []string{"exec", "box", "sh", "-c", "i=0; while [ $i -lt 20 ]; do i=$((i+1)); echo $i; done"}},
	{"fork", []string{"fork", "-n", "2", "--name", "twin", "box"}},
	{"snapshot", []string{"snapshot", "create", "box", "kept"}},
	{"stop", []string{"stop", "box"}},
	{"rm", []string{"rm", "--force", "box"}},
}

// killInLife kills n times, each time another of the supervisors, QEMUs, both, and
// the program that acts, at a random moment of another act. Then ps tells the truth, gc brings back all
// that was acquired, and the next sandbox can be made.
func killInLife(t *testing.T, n int) {
	m := install(t)
	m.mustRun(t, "run", "busybox", "true") // what is made once for all
	victims := []string{"supervisor", "machine", "both", "actor"}
	for i := range n {
		act, victim := lifeActs[i%len(lifeActs)], victims[rand.IntN(len(victims))]
		t.Run(fmt.Sprintf("%d %s, %s", i, act.name, victim), func(t *testing.T) {
			kept := rand.IntN(2) == 0
			create := []string{"run", "--detach", "--name", "box", fmt.Sprintf("--rm=%v", !kept), "busybox", "sleep", "1000"}
			span := 300 * time.Millisecond
			if act.args == nil {
				act.args, span = create, 5*time.Second
			} else {
				m.mustRun(t, create...)
			}
			switch act.name {
			case "run":
				span = 4 * time.Second
			case "fork":
				span = time.Second
				act.args = slices.Concat(act.args[:1], []string{fmt.Sprintf("--rm=%v", !kept)}, act.args[1:])
			}
			acting := m.command(t, act.args...)
			var said bytes.Buffer
			acting.Stdout, acting.Stderr = &said, &said
			if err := acting.Start(); err != nil {
				t.Fatal(err)
			}
			delay := time.Duration(rand.Float64() * float64(span))
			time.Sleep(delay)
			killed := 1
			if victim == "actor" {
				acting.Process.Kill()
			} else {
				killed = m.kill(t, victim)
			}
			overdue := time.AfterFunc(time.Minute, func() {
				t.Errorf("`%s` hangs", strings.Join(act.args, " "))
				acting.Process.Kill()
			})
			acting.Wait() // how it ends depends on the moment
			overdue.Stop()
			t.Logf("after %v: %d killed, kept %v; it said %q", delay.Round(time.Millisecond), killed, kept, said.String())

			m.tellsTheTruth(t)
			m.mustRun(t, "gc")
			for _, info := range m.list(t) {
				if !kept && !info.Status.Alive() {
					t.Errorf("after gc there is %+v", info)
				}
			}
			left, err := filepath.Glob(filepath.Join(m.home, "state", "sandboxes", "*", "*"))
			if err != nil {
				t.Fatal(err)
			}
			for _, path := range left {
				name := filepath.Base(path)
				if name != "control.sock" && !strings.HasPrefix(name, ".new-") && !strings.HasPrefix(name, "vm-") || len(m.processes(t)) > 0 {
					continue
				}
				// What has ended since we looked took it along.
				if _, err := os.Lstat(path); err == nil {
					t.Errorf("after gc there is %s", path)
				}
			}
			for _, info := range m.list(t) {
				m.mustRun(t, "rm", "--force", info.ID)
			}
			m.snapshotsAreWhole(t)
			if left := m.processes(t); len(left) > 0 {
				t.Errorf("left: processes %v", left)
			}
			m.leavesNothing(t)
		})
	}
	m.mustRun(t, "run", "busybox", "true")
	m.leavesNothing(t)
}

// snapshotsAreWhole has something go on from each snapshot that there is, removes
// them, and finds nothing else in their folder.
func (m *installed) snapshotsAreWhole(t *testing.T) {
	t.Helper()
	r := m.run(t, nil, "snapshot", "ls", "-q")
	for _, name := range strings.Fields(r.stdout) {
		m.mustRun(t, "run", "--snapshot", name, "true")
		m.mustRun(t, "snapshot", "rm", name)
	}
	left, err := os.ReadDir(filepath.Join(m.home, "data", "snapshots"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) || len(left) > 0 {
		t.Errorf("beside snapshots there is %v, %v", left, err)
	}
}

// processes are the ids of the supervisors and machines of m's sandboxes.
func (m *installed) processes(t *testing.T) (pids []int) {
	t.Helper()
	return append(m.supervisors(t), m.machines(t)...)
}

// supervisors are the processes of the hidden command that have m's home.
func (m *installed) supervisors(t *testing.T) (pids []int) {
	t.Helper()
	for _, pid := range processesNaming(t, superviseCommand) {
		environ, err := os.ReadFile("/proc/" + pid + "/environ")
		if err == nil && bytes.Contains(environ, []byte("MATCHLOCK_HOME="+m.home+"\x00")) {
			n, _ := strconv.Atoi(pid)
			pids = append(pids, n)
		}
	}
	return pids
}

// machines are the QEMUs that have files of m's sandboxes open.
func (m *installed) machines(t *testing.T) (pids []int) {
	t.Helper()
	for _, pid := range processesNaming(t, "matchlock-") {
		open, _ := filepath.Glob("/proc/" + pid + "/fd/*")
		for _, fd := range open {
			if target, err := os.Readlink(fd); err == nil && strings.HasPrefix(target, m.home+"/") {
				n, _ := strconv.Atoi(pid)
				pids = append(pids, n)
				break
			}
		}
	}
	return pids
}

// kill kills what victim says, and returns how many processes that were. They are
// gone then.
func (m *installed) kill(t *testing.T, victim string) (killed int) {
	t.Helper()
	var pids []int
	if victim != "machine" {
		pids = m.supervisors(t)
	}
	if victim != "supervisor" {
		pids = append(pids, m.machines(t)...)
	}
	for _, pid := range pids {
		if err := syscall.Kill(pid, syscall.SIGKILL); err == nil {
			killed++
		} else if !errors.Is(err, syscall.ESRCH) {
			t.Fatal(err)
		}
	}
	// A process that is dying looks alive for a moment.
	for deadline := time.Now().Add(5 * time.Second); len(pids) > 0; time.Sleep(time.Millisecond) {
		line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pids[0]))
		if len(line) == 0 { // there is none, or nobody has asked how it ended
			pids = pids[1:]
		} else if time.Now().After(deadline) {
			t.Fatalf("process %d was killed and is there", pids[0])
		}
	}
	return killed
}

// list is what `ps --all` tells.
func (m *installed) list(t *testing.T) (list []api.Info) {
	t.Helper()
	r := m.run(t, nil, "ps", "--all", "--json")
	if r.status != 0 {
		t.Fatalf("ps: status %d\n%s", r.status, r.stderr)
	}
	for lines := bufio.NewScanner(strings.NewReader(r.stdout)); lines.Scan(); {
		var info api.Info
		if err := json.Unmarshal(lines.Bytes(), &info); err != nil {
			t.Fatal(err)
		}
		list = append(list, info)
	}
	return list
}

// tellsTheTruth compares what ps says with the processes that there are, which a
// second after a kill must agree.
func (m *installed) tellsTheTruth(t *testing.T) {
	t.Helper()
	var list []api.Info
	var supervisors, machines []int
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		list, supervisors, machines = m.list(t), m.supervisors(t), m.machines(t)
		alive, ending := 0, 0
		for _, info := range list {
			if info.Status.Alive() {
				alive++
			}
			if info.Status == api.StatusStopping {
				ending++ // whoever asked for it may have been killed
			}
		}
		if alive == len(supervisors) && alive == len(machines) && ending == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("ps says %+v; there are supervisors %v and machines %v", list, supervisors, machines)
		}
	}
	for _, info := range list {
		if !info.Status.Alive() {
			continue
		}
		r := m.run(t, nil, "exec", info.ID, "echo", "here")
		if ended := !slices.ContainsFunc(m.list(t), func(i api.Info) bool { return i.ID == info.ID && i.Status == info.Status }); ended {
			continue // since ps said so: who asked for it may have been killed
		}
		if r.status != 0 || r.stdout != "here\n" {
			t.Errorf("%s is %s, but exec: status %d, %q\n%s", info.ID, info.Status, r.status, r.stdout, r.stderr)
		}
	}
}

// TestVMManyAtOnce has ten make, use and remove sandboxes at once.
func TestVMManyAtOnce(t *testing.T) {
	m := install(t)
	const sandboxes, workers = 30, 10
	var all sync.WaitGroup
	for worker := range workers {
		all.Go(func() {
			for i := range sandboxes / workers {
				name := fmt.Sprintf("box-%d-%d", worker, i)
				for _, args := range [][]string{
					{"run", "--detach", "--name", name, "--memory", "128m", "busybox", "sleep", "1000"},
					{"exec", name, "hostname"},
					{"stop", "--time", "0", name},
					{"rm", name},
				} {
					cmd := m.command(t, args...)
					if out, err := cmd.CombinedOutput(); err != nil {
						t.Errorf("%s: %v\n%s", strings.Join(args, " "), err, out)
					}
				}
			}
		})
	}
	all.Wait()
	m.leavesNothing(t)
	if left := m.processes(t); len(left) > 0 {
		t.Errorf("left: processes %v", left)
	}
}

// TestVMHungSupervisor has a supervisor stand still: others say so in time, and
// rm --force ends it.
func TestVMHungSupervisor(t *testing.T) {
	m := install(t)
	m.mustRun(t, "run", "--detach", "--name", "box", "busybox", "sleep", "1000")
	pids := m.supervisors(t)
	if len(pids) != 1 {
		t.Fatalf("supervisors: %v", pids)
	}
	if err := syscall.Kill(pids[0], syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	r := m.run(t, nil, "exec", "box", "true")
	if r.status != 125 || !strings.Contains(r.stderr, `error: sandbox "box": its supervisor does not answer`) || !strings.Contains(r.stderr, "hint: `matchlock rm --force` ends it") {
		t.Errorf("exec: status %d\n%s", r.status, r.stderr)
	}
	m.mustRun(t, "rm", "--force", "box")
	if left := m.processes(t); len(left) > 0 {
		t.Errorf("left: processes %v", left)
	}
	m.leavesNothing(t)
}

// TestVMOutsider builds a program outside this module, as a user of the library
// would, and runs it.
func TestVMOutsider(t *testing.T) {
	m := install(t)
	module, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for name, content := range map[string]string{
		"main.go": outsider,
		"go.mod": "module example.com/outsider\n\ngo 1.26.0\n\nrequire github.com/matchlock/matchlock v0.0.0\n\n" +
			"replace github.com/matchlock/matchlock => " + module + "\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, args := range [][]string{{"mod", "tidy"}, {"build", "-o", "outsider", "."}} {
		build := exec.Command("go", args...)
		build.Dir = dir
		build.Env = append(os.Environ(), "GOFLAGS=-mod=mod", "CGO_ENABLED=0", "GOWORK=off")
		if out, err := build.CombinedOutput(); err != nil {
			t.Fatalf("go %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	cmd := m.command(t)
	cmd.Path, cmd.Args = filepath.Join(dir, "outsider"), []string{"outsider"}
	cmd.Env = append(cmd.Env, "MATCHLOCK_HELPER="+m.program)
	if r := ended(t, cmd); r.status != 0 || r.stdout != "hello\nroot:x:0:0\nserved\n" {
		t.Errorf("status %d\n%s%s", r.status, r.stdout, r.stderr)
	}
	m.leavesNothing(t)
}

// outsider starts a sandbox, runs a command, reads a file, dials a port in the
// guest and closes, in 20 lines of main.
const outsider = `package main

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"log"
	"time"

	"github.com/matchlock/matchlock/api"
	"github.com/matchlock/matchlock/sandbox"
)

func main() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	sb, err := sandbox.New(ctx, api.Config{Image: "busybox"})
	if err != nil {
		log.Fatal(err)
	}
	defer sb.Close()
	out, err := sb.Command(ctx, "echo", "hello").Output()
	fmt.Print(string(out), orNothing(err))
	passwd, err := fs.ReadFile(sb.FS(ctx), "etc/passwd")
	fmt.Print(string(passwd[:10]), "\n", orNothing(err))
	server := sb.Command(ctx, "nc", "-l", "-p", "8080", "-e", "echo", "served")
	if err := server.Start(); err != nil {
		log.Fatal(err)
	}
	conn, err := sb.DialContext(ctx, "tcp", "localhost:8080")
	for ; err != nil; conn, err = sb.DialContext(ctx, "tcp", "localhost:8080") {
		time.Sleep(50 * time.Millisecond)
	}
	answer, err := io.ReadAll(conn)
	fmt.Print(string(answer), orNothing(err))
}

func orNothing(err error) string {
	if err != nil {
		return err.Error()
	}
	return ""
}
`

// TestVMKilledMachine kills QEMU, as the kernel does when memory runs out, at several
// moments of what is done with it. It is said what happened and to which sandbox,
// nothing hangs, and the sandbox can be started again.
func TestVMKilledMachine(t *testing.T) {
	m := install(t)
	m.mustRun(t, "run", "busybox", "true")
	killed := func(t *testing.T, args ...string) (status int, stderr string) {
		t.Helper()
		cmd := m.command(t, args...)
		var said bytes.Buffer
		cmd.Stderr = &said
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		delay := time.Duration(rand.Int64N(int64(150 * time.Millisecond)))
		deadline := time.Now().Add(30 * time.Second)
		for len(m.machines(t)) == 0 {
			if time.Now().After(deadline) {
				t.Fatalf("no machine: %s", said.String())
			}
			time.Sleep(5 * time.Millisecond)
		}
		time.Sleep(delay)
		n := m.kill(t, "machine")
		began := time.Now()
		cmd.Wait()
		if took := time.Since(began); took > 40*time.Second {
			t.Errorf("%q took another %v", args, took)
		}
		t.Logf("%d killed after %v: status %d, %s", n, delay.Round(time.Millisecond), cmd.ProcessState.ExitCode(), said.String())
		return cmd.ProcessState.ExitCode(), said.String()
	}
	for _, args := range [][]string{{"run", "--cold", "busybox", "sleep", "10"}, {"run", "busybox", "sleep", "10"}} {
		for range 2 {
			status, said := killed(t, args...)
			// Who goes on from a template boots when that fails.
			again := status == 0 && strings.Contains(said, "the guest boots instead")
			if !again && (status != 125 || !strings.Contains(said, "matchlock: error: ") || !strings.Contains(said, "killed")) {
				t.Errorf("%q: status %d, %s", args, status, said)
			}
			m.leavesNothing(t)
		}
	}
	for i, args := range [][]string{{"snapshot", "create", "box", "kept"}, {"fork", "--name", "twin", "box"}, {"exec", "box", "sleep", "1000"}, {"cp", "-", "box:/tmp"}} {
		if i == 0 {
			m.mustRun(t, "run", "-d", "--name", "box", "busybox", "sleep", "1000")
		} else {
			m.mustRun(t, "start", "box")
		}
		if status, said := killed(t, args...); status != 0 && (status != 125 || !strings.Contains(said, "matchlock: error: ")) {
			t.Errorf("%q: status %d, %s", args, status, said)
		}
		m.tellsTheTruth(t)
		for _, info := range m.list(t) {
			if info.Name == "box" && (info.Status != api.StatusStopped || !strings.Contains(info.Error, "killed")) {
				t.Errorf("%q: ps says %+v", args, info)
			}
		}
		if r := m.run(t, nil, "rm", "-f", "twin"); r.status != 0 && !strings.Contains(r.stderr, "not found") {
			t.Errorf("%s", r.stderr)
		}
	}
	m.mustRun(t, "rm", "-f", "box")
	m.snapshotsAreWhole(t)
	m.leavesNothing(t)
}

// TestVMFewDescriptors has a run come to its limit of open files, by and by later. It
// says so, and leaves nothing.
func TestVMFewDescriptors(t *testing.T) {
	m := install(t)
	m.mustRun(t, "run", "busybox", "true")
	enough := false
	for limit := 11; limit <= 111 && !enough; limit += 5 { // with fewer no Go program begins
		cmd := m.command(t, "run", "busybox", "true")
		cmd.Args = append([]string{"sh", "-c", fmt.Sprintf(`ulimit -n %d; exec "$0" "$@"`, limit)}, cmd.Args...)
		cmd.Path = "/bin/sh"
		r := ended(t, cmd)
		t.Logf("%d: status %d, %v, %s", limit, r.status, r.took.Round(time.Millisecond), r.stderr)
		enough = r.status == 0
		if !enough && (r.status != 125 || !strings.Contains(r.stderr, "matchlock: error: ") || !strings.Contains(r.stderr, "too many open files")) || strings.Contains(r.stderr, "goroutine ") {
			t.Errorf("with %d descriptors: status %d, %s", limit, r.status, r.stderr)
		}
		m.mustRun(t, "gc") // a folder cannot be removed without opening it
		m.leavesNothing(t)
	}
	if !enough {
		t.Error("so many descriptors are not enough")
	}
}
