package main

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/matchlock/matchlock/internal/seccomp"
)

// Faults of the host are made where they would come from: the system calls of a
// matchlock, and of all that it starts, wait for this test, which lets the n-th of
// them fail, by whatever error, or ends its process (seccomp_unotify(2)).

// faulty is the program that has another one's calls wait. Its descriptor 3 is a
// socket to who decides.
const faulty = "matchlock-faulty"

// Calls by what they do to a file.
var (
	writes = []uint32{unix.SYS_WRITE, unix.SYS_PWRITE64, unix.SYS_FTRUNCATE, unix.SYS_FALLOCATE, unix.SYS_FSYNC, unix.SYS_FDATASYNC}
	reads  = []uint32{unix.SYS_READ, unix.SYS_PREAD64, unix.SYS_GETDENTS64, unix.SYS_FLOCK, unix.SYS_FCHMOD}
	copies = []uint32{unix.SYS_COPY_FILE_RANGE, unix.SYS_SENDFILE}          // to the second descriptor
	names  = []uint32{unix.SYS_MKDIRAT, unix.SYS_UNLINKAT, unix.SYS_OPENAT} // by a folder and a path
	moves  = []uint32{unix.SYS_RENAMEAT, unix.SYS_RENAMEAT2, unix.SYS_LINKAT}
	opens  = []uint32{unix.SYS_SOCKET, unix.SYS_SOCKETPAIR, unix.SYS_PIPE2, unix.SYS_MEMFD_CREATE}
)

// beFaulty is its main.
func beFaulty() {
	runtime.LockOSThread()
	if err := func() error {
		program, err := exec.LookPath("matchlock")
		if err != nil {
			return err
		}
		filter := seccomp.New()
		for _, nr := range slices.Concat(writes, reads, copies, names, moves, opens) {
			filter.NotifyIf(nr, 0, 0, 0)
		}
		if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
			return err
		}
		listener, err := filter.LoadListening()
		if err != nil {
			return err
		}
		if err := unix.Sendmsg(3, []byte{0}, unix.UnixRights(listener), nil, 0); err != nil {
			return err
		}
		unix.CloseOnExec(listener)
		unix.CloseOnExec(3)
		return unix.Exec(program, append([]string{"matchlock"}, os.Args[1:]...), os.Environ())
	}(); err != nil {
		fmt.Fprintln(os.Stderr, faulty, err)
		os.Exit(1)
	}
}

// fault is what becomes of calls.
type fault struct {
	name    string
	errno   syscall.Errno // 0: SIGKILL
	calls   []uint32
	creates bool // of openat only what makes a file
	outside bool // files elsewhere than in the home too
	lasts   bool // all that come after it fail as well
}

var faultsOfHost = []fault{
	{name: "ENOSPC", errno: syscall.ENOSPC, calls: slices.Concat(writes, copies, moves, []uint32{unix.SYS_MKDIRAT, unix.SYS_OPENAT}), creates: true, lasts: true},
	{name: "EIO", errno: syscall.EIO, calls: slices.Concat(writes, reads, copies, moves, names)},
	{name: "EMFILE", errno: syscall.EMFILE, calls: append([]uint32{unix.SYS_OPENAT}, opens...), outside: true},
	{name: "SIGKILL", calls: slices.Concat(writes, copies, moves, names)},
}

// decider decides on the calls of one program and those that it starts.
type decider struct {
	fault
	home  string
	at    int // the call that fails; 0: none
	delay time.Duration

	mu   sync.Mutex
	seen int
	what string // failed
}

// serve decides until all of those have ended.
func (d *decider) serve(listener int) {
	defer unix.Close(listener)
	for {
		ready := []unix.PollFd{{Fd: int32(listener), Events: unix.POLLIN}}
		if _, err := unix.Poll(ready, -1); err == unix.EINTR {
			continue
		}
		if ready[0].Revents&unix.POLLIN == 0 {
			return
		}
		call, err := seccomp.Receive(listener)
		switch {
		case err != nil: // it has been given up
		case !d.hits(call):
			call.Continue(listener)
		case d.errno == 0:
			syscall.Kill(processOf(call.PID), syscall.SIGKILL)
			call.Continue(listener)
		default:
			call.Fail(listener, d.errno)
		}
	}
}

// processOf is a thread's.
func processOf(thread uint32) int {
	status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", thread))
	for line := range strings.Lines(string(status)) {
		if value, ok := strings.CutPrefix(line, "Tgid:"); ok {
			pid, _ := strconv.Atoi(strings.TrimSpace(value))
			return pid
		}
	}
	return int(thread)
}

// hits tells whether a call is to fail.
func (d *decider) hits(call *seccomp.Call) bool {
	nr := uint32(call.Nr)
	if !slices.Contains(d.calls, nr) {
		return false
	}
	if name, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", call.PID)); !bytes.HasPrefix(name, []byte("matchlock")) {
		return false // what others say of their faults is theirs
	}
	if nr == unix.SYS_OPENAT && d.creates && call.Args[2]&unix.O_CREAT == 0 {
		return false
	}
	path := ""
	switch {
	case slices.Contains(names, nr):
		path = pathIn(call, 0)
	case slices.Contains(moves, nr):
		path = pathIn(call, 2)
	case slices.Contains(copies, nr):
		descriptor := call.Args[0] // of sendfile
		if nr == unix.SYS_COPY_FILE_RANGE {
			descriptor = call.Args[2]
		}
		path = fileOf(call.PID, int32(descriptor))
	case slices.Contains(opens, nr):
	default:
		path = fileOf(call.PID, int32(call.Args[0]))
	}
	if !d.outside && !strings.HasPrefix(path, d.home+"/") && path != d.home {
		return false
	}
	time.Sleep(d.delay)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.seen++
	if d.at == 0 || d.seen < d.at || d.seen > d.at && !d.lasts {
		return false
	}
	if d.seen == d.at {
		d.what = fmt.Sprintf("call %d of %s", nr, path)
	}
	return true
}

// fileOf is a descriptor's file.
func fileOf(pid uint32, fd int32) string {
	path, _ := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", pid, fd))
	return path
}

// pathIn is the path that two arguments of a call are.
func pathIn(call *seccomp.Call, argument int) string {
	text := make([]byte, 256)
	local := unix.Iovec{Base: &text[0]}
	local.SetLen(len(text))
	n, err := unix.ProcessVMReadv(int(call.PID), []unix.Iovec{local}, []unix.RemoteIovec{{Base: uintptr(call.Args[argument+1]), Len: len(text)}}, 0)
	if err != nil || n <= 0 {
		return ""
	}
	path := unix.ByteSliceToString(text[:n])
	if filepath.IsAbs(path) {
		return path
	}
	if fd := int32(call.Args[argument]); fd != unix.AT_FDCWD {
		return filepath.Join(fileOf(call.PID, fd), path)
	}
	return path
}

// faultyHome is where matchlock is tried, without VMs.
type faultyHome struct {
	*testing.T
	dir string
	env []string
}

func (h *faultyHome) home() string { return filepath.Join(h.dir, "home") }

// run runs matchlock, with a decider or without.
func (h *faultyHome) run(d *decider, args ...string) (status int, said string) {
	h.Helper()
	ctx, cancel := context.WithTimeout(h.Context(), 30*time.Second)
	defer cancel()
	program := "matchlock"
	if d != nil {
		program = faulty
	}
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Dir, cmd.Env = h.dir, h.env
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.Cancel = func() error { // all say where they are
		for _, pid := range processesOf(h.home()) {
			syscall.Kill(pid, syscall.SIGABRT)
		}
		return nil
	}
	cmd.WaitDelay = 10 * time.Second
	if d != nil {
		pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			h.Fatal(err)
		}
		theirs := os.NewFile(uintptr(pair[1]), "socket")
		cmd.ExtraFiles = []*os.File{theirs}
		if err := cmd.Start(); err != nil {
			h.Fatal(err)
		}
		theirs.Close()
		listener, err := receiveListener(pair[0])
		if err != nil {
			h.Fatalf("%v: %s", err, out.String())
		}
		go d.serve(listener) // for as long as a supervisor goes on
	} else if err := cmd.Start(); err != nil {
		h.Fatal(err)
	}
	err := cmd.Wait()
	if ctx.Err() != nil {
		what := ""
		if d != nil {
			what = fmt.Sprintf("after %s at %d, %s ", d.name, d.at, d.what)
		}
		h.Fatalf("%q hangs %s: %v\n%s", args, what, err, out.String())
	}
	return cmd.ProcessState.ExitCode(), out.String()
}

func receiveListener(socket int) (int, error) {
	conn, err := net.FileConn(os.NewFile(uintptr(socket), "socket"))
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	rights := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := conn.(*net.UnixConn).ReadMsgUnix(make([]byte, 1), rights)
	if err != nil {
		return 0, err
	}
	messages, err := unix.ParseSocketControlMessage(rights[:n])
	if err != nil || len(messages) != 1 {
		return 0, fmt.Errorf("%d messages, %w", len(messages), err)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil {
		return 0, err
	}
	return fds[0], nil
}

func (h *faultyHome) mustRun(args ...string) {
	h.Helper()
	if status, said := h.run(nil, args...); status != 0 {
		h.Fatalf("%q: status %d\n%s", args, status, said)
	}
}

// files lists what the home has.
func (h *faultyHome) files() (all []string) {
	err := filepath.WalkDir(h.home(), func(path string, e fs.DirEntry, err error) error {
		// Beside a file of the user's, who is killed leaves what it was writing.
		if rel, _ := filepath.Rel(h.home(), path); err == nil && !strings.HasPrefix(rel, ".matchlock-") {
			all = append(all, rel)
		}
		return err
	})
	if err != nil {
		h.Fatal(err)
	}
	return all
}

// faultyActs are what matchlock is doing when something fails.
var faultyActs = []struct {
	name   string
	before [][]string // what it needs
	args   []string
	after  [][]string // undoes it, with what it has succeeded in
	or     string     // what may be said in the place of the reason, by who asks again; or of what is done
}{
	{"import", nil, []string{"image", "import", "box", "rootfs.tar"}, nil, ""},
	{"pull", nil, []string{"pull", "REGISTRY/tools:1"}, nil, ""},
	{"image rm", [][]string{importBox}, []string{"image", "rm", "box"}, nil, "image \"box\" not found"},
	{"image save", [][]string{importBox}, []string{"image", "save", "-o", "home/saved.tar", "box"}, nil, ""},
	{"image prune", [][]string{importBox}, []string{"image", "prune", "-a"}, nil, ""},
	{"volume create", nil, []string{"volume", "create", "data"}, nil, ""},
	{"volume cp", [][]string{{"volume", "create", "data"}}, []string{"volume", "cp", "data", "copy"}, nil, ""},
	{"volume rm", [][]string{{"volume", "create", "data"}}, []string{"volume", "rm", "data"}, nil, "volume \"data\": not found"},
	{"run", [][]string{importBox}, []string{"run", "box", "true"}, nil, ""},
	{"run -d", [][]string{importBox}, []string{"run", "-d", "--name", "web", "box", "sleep", "100"}, [][]string{{"rm", "-f", "web"}}, ""},
	{"start", [][]string{importBox, {"run", "-d", "--name", "web", "box", "sleep", "100"}, {"stop", "-t", "0", "web"}}, []string{"start", "web"}, [][]string{{"rm", "-f", "web"}}, ""},
	{"rename", [][]string{importBox, {"run", "-d", "--name", "web", "box", "true"}, {"wait", "web"}}, []string{"rename", "web", "other"}, [][]string{{"rm", "-f", "web", "other"}}, "sandbox \"web\" is stopped"},
	{"rm", [][]string{importBox, {"run", "-d", "--name", "web", "box", "true"}, {"wait", "web"}}, []string{"rm", "-f", "web"}, nil, "sandbox \"web\" not found"},
	{"ps", [][]string{importBox, {"run", "-d", "--name", "web", "box", "true"}, {"wait", "web"}}, []string{"ps", "-a"}, [][]string{{"rm", "-f", "web"}}, ""},
	{"gc", [][]string{importBox}, []string{"gc"}, nil, ""},
}

var importBox = []string{"image", "import", "box", "rootfs.tar"}

// TestFaults has some calls fail in each act, TestLongFaults all.
func TestFaults(t *testing.T)     { injectFaults(t, 2) }
func TestLongFaults(t *testing.T) { long(t); injectFaults(t, 0) }

// TestSlowDisk has each call wait that changes something on the disk. All takes longer, and
// comes to what it comes to.
func TestSlowDisk(t *testing.T) {
	registry := startRegistry(t)
	for _, act := range faultyActs {
		t.Run(act.name, func(t *testing.T) {
			t.Parallel()
			h := newFaultyHome(t)
			for _, before := range act.before {
				h.mustRun(before...)
			}
			args := slices.Clone(act.args)
			for i := range args {
				args[i] = strings.ReplaceAll(args[i], "REGISTRY", registry)
			}
			slow := &decider{fault: fault{calls: slices.Concat(writes, copies, moves, names)}, home: h.home(), delay: 10 * time.Millisecond}
			if status, said := h.run(slow, args...); status != 0 {
				t.Errorf("status %d\n%s", status, said)
			}
			slow.mu.Lock()
			if slow.seen == 0 {
				t.Error("nothing was slow")
			}
			slow.mu.Unlock()
			for _, after := range act.after {
				h.run(nil, after...)
			}
		})
	}
}

// injectFaults has in each act calls fail in turn, a few of each fault or all. It is
// told then, with the reason, nothing ends otherwise; and the same act, done
// again, comes to what it would have come to.
func injectFaults(t *testing.T, few int) {
	registry := startRegistry(t)
	for _, act := range faultyActs {
		t.Run(act.name, func(t *testing.T) {
			t.Parallel()
			h := newFaultyHome(t)
			args := slices.Clone(act.args)
			for i := range args {
				args[i] = strings.ReplaceAll(args[i], "REGISTRY", registry)
			}
			for _, before := range act.before {
				h.mustRun(before...)
			}
			pristine := filepath.Join(h.dir, "pristine")
			if err := exec.Command("cp", "-a", h.home(), pristine).Run(); err != nil {
				t.Fatal(err)
			}
			renew := func() {
				if err := os.RemoveAll(h.home()); err != nil {
					t.Fatal(err)
				}
				if out, err := exec.Command("cp", "-a", pristine, h.home()).CombinedOutput(); err != nil {
					t.Fatalf("%v: %s", err, out)
				}
			}
			undo := func() {
				for _, after := range act.after {
					h.run(nil, after...)
				}
				h.mustRun("gc")
				h.mustRun("image", "prune")
			}
			h.mustRun(args...)
			undo()
			want := h.files()
			for _, f := range faultsOfHost {
				renew()
				count := &decider{fault: f, home: h.home()}
				if status, said := h.run(count, args...); status != 0 {
					t.Fatalf("without a fault: status %d\n%s", status, said)
				}
				undo()
				count.mu.Lock() // a supervisor goes on
				calls := count.seen
				count.mu.Unlock()
				steps := rand.Perm(calls)
				if few > 0 {
					steps = steps[:min(few, len(steps))]
				}
				if few > 0 && f.errno == syscall.ENOSPC && act.name == "run -d" {
					// What a supervisor writes when its sandbox runs, and has once stood still for.
					for step := max(0, calls-6); step < calls; step++ {
						steps = append(steps, step)
					}
				}
				t.Logf("%s: %d of %d calls fail in turn", f.name, len(steps), calls)
				for _, step := range steps {
					renew()
					d := &decider{fault: f, home: h.home(), at: step + 1}
					status, said := h.run(d, args...)
					d.mu.Lock()
					where := fmt.Sprintf("%s at %d, %s", f.name, d.at, d.what)
					d.mu.Unlock()
					h.judge(where, &f, act.or, status, said)
					if f.errno == 0 {
						undo() // what a dead supervisor has left has a name too
					}
					if status != 0 {
						// Who is killed may have done it.
						if again, said := h.run(nil, args...); again != 0 && f.errno != 0 && (act.or == "" || !strings.Contains(said, act.or)) {
							t.Errorf("%s: done again: status %d, %s", where, again, said)
						}
					}
					undo()
					if got := h.files(); !slices.Equal(got, want) {
						t.Errorf("%s: it said %q, and in the end there is\n%s\nwant\n%s", where, said, strings.Join(got, "\n"), strings.Join(want, "\n"))
					}
				}
			}
		})
	}
}

// judge looks at how an act ended that met a fault.
func (h *faultyHome) judge(where string, f *fault, or string, status int, said string) {
	h.Helper()
	for _, bad := range []string{"panic", "fatal error", "goroutine ", "DATA RACE"} {
		if strings.Contains(said, bad) {
			h.Errorf("%s: %s", where, said)
			return
		}
	}
	switch {
	case f.errno == 0 || status == 0:
	case status != 125 || !strings.Contains(said, "matchlock: error: ") || !strings.Contains(said, f.errno.Error()) && (or == "" || !strings.Contains(said, or)):
		h.Errorf("%s: status %d, %s", where, status, said)
	default:
		h.Logf("%s: %s", where, strings.TrimSpace(said)) // for a person to judge
	}
}

// newFaultyHome makes a home with what scripts have beside theirs.
func newFaultyHome(t *testing.T) *faultyHome {
	h := &faultyHome{T: t, dir: t.TempDir()}
	tools := filepath.Join(h.dir, "tools")
	const mkfs = "#!/bin/sh\nfor file; do :; done\nprintf '\\123\\357' | dd of=\"$file\" bs=1 seek=1080 conv=notrunc 2>/dev/null\n"
	for _, dir := range []string{tools, h.home()} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(tools, "mkfs.ext4"), []byte(mkfs), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(h.dir, "rootfs.tar"), rootTar(t), 0o600); err != nil {
		t.Fatal(err)
	}
	h.env = append(slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "MATCHLOCK_") || strings.HasPrefix(v, "PATH=") }),
		"PATH="+tools+":"+os.Getenv("PATH"), "MATCHLOCK_HOME="+h.home(), inProcess+"=1", "GORACE=atexit_sleep_ms=0")
	return h
}

// rootTar is a root file system that is enough where commands run on the host.
func rootTar(t *testing.T) []byte {
	t.Helper()
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	for _, name := range []string{"bin/sh", "etc/large"} {
		content := bytes.Repeat([]byte(name), 50000)
		if err := w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o755, Size: int64(len(content))}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return archive.Bytes()
}
