package jail

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// asUser is set where a test runs itself again as an ordinary user.
const asUser = "MATCHLOCK_TEST_AS_USER"

// nobody is who that is.
const nobody = 65534

// A hypervisor that its guest has taken over gets nothing of all that it may try.
func TestInside(t *testing.T) {
	for _, w := range ways() {
		t.Run(w.name, func(t *testing.T) { testInside(t, w) })
	}
}

// The same for a hypervisor started by an ordinary user.
func TestInsideAsUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("the other tests are an ordinary user's already")
	}
	again(t, "^Test(Inside|DiesWithStarter)$")
}

func testInside(t *testing.T, w way) {
	program := inside(t)
	dir := t.TempDir()
	file := func(name, content string, flags int) *os.File {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		f, err := os.OpenFile(path, flags, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	shared, own := file("shared", "shared by all", os.O_RDONLY), file("own", "its own", os.O_RDWR)
	file("secret", "the user's", os.O_RDONLY)
	folder := filepath.Join(dir, "folder")
	if err := os.Mkdir(folder, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(folder, "firmware"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	t.Setenv("MATCHLOCK_TEST_SECRET", "of the supervisor")

	const memory = 1 << 30
	hidden := []string{filepath.Join(dir, "secret"), own.Name(), "/etc/passwd", "/etc/hostname", "/proc/cpuinfo", "/proc/mounts", "/sys/kernel", "/usr", "/dev"}
	c := &Config{
		First: open(t, program), Program: program, Files: []*os.File{shared, own, sealedMemory(t)},
		Args:  append([]string{fmt.Sprint(os.Getpid()), fmt.Sprint(memory), filepath.Join(folder, "firmware")}, hidden...),
		Paths: []string{folder}, Devices: []string{"/dev/zero"}, ID: t.Name(), Memory: memory, Processes: 64,
	}
	said, report := run(t, c, w)
	t.Log("applied: ", report.Applied, "missing: ", report.Missing)

	free := w.flags == 0 // no root of its own
	want := map[string]string{
		"environment": "[]", "capabilities": "[{0 0 0} {0 0 0}]", "no_new_privs": "1",
		"read " + filepath.Join(folder, "firmware"): "", "stat " + filepath.Join(folder, "firmware"): "", "own file": "", "its device": "", "shared file, read": "",
		"private shared": "", "private sealed": "", "memory": "", "capget": "",
	}
	if !free {
		want["pid"], want["hostname"] = "1", "jail"
	}
	if os.Geteuid() == 0 {
		want["groups"] = "[]"
	}
	for what, got := range maps.All(said) {
		if want, ok := want[what]; ok && got != want {
			t.Errorf("%s: got %q, want %q", what, got, want)
		} else if !ok && got == "" && !(free && strings.HasPrefix(what, "stat ")) {
			t.Errorf("%s: it worked", what)
		}
	}
	for what := range want {
		if _, ok := said[what]; !ok {
			t.Errorf("%s: not tried", what)
		}
	}
	if text, err := os.ReadFile(shared.Name()); string(text) != "shared by all" {
		t.Errorf("the shared file is %q now (%v)", text, err)
	}
	if info, err := shared.Stat(); err != nil || info.Mode().Perm() != 0o644 {
		t.Errorf("the shared file has mode %v (%v)", info.Mode(), err)
	}
	if text, err := os.ReadFile(own.Name()); string(text[:4]) != "mine" {
		t.Errorf("its own file is %q (%v)", text, err)
	}
}

// run starts what c says and returns what it has found out.
func run(t *testing.T, c *Config, w way) (said map[string]string, report Report) {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	ours, output, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer ours.Close()
	c.Output = output
	p, err := c.start(w)
	output.Close()
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	text, err := io.ReadAll(ours)
	if waitErr := p.Wait(); waitErr != nil {
		t.Errorf("%v\n%s", waitErr, text)
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &said); err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	return said, p.Report
}

// What is started ends when the thread that started it does, and cannot prevent it.
func TestDiesWithStarter(t *testing.T) {
	program := inside(t)
	for _, w := range ways() {
		t.Run(w.name, func(t *testing.T) {
			started := make(chan *Process)
			var start func()
			start = func() {
				runtime.LockOSThread() // and ends with the goroutine
				if unix.Gettid() == unix.Getpid() {
					go start() // elsewhere: a process's first thread stays
					<-t.Context().Done()
					return
				}
				output, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
				if err != nil {
					t.Error(err)
				}
				c := &Config{First: open(t, program), Program: program, Args: []string{"sleep"}, Output: output, Memory: 1 << 30, Processes: 64}
				p, err := c.start(w)
				if err != nil {
					t.Error(err)
					started <- nil
					return
				}
				started <- p
			}
			go start()
			p := <-started
			if p == nil {
				return
			}
			defer p.Close()
			var status unix.WaitStatus
			if _, err := unix.Wait4(p.Process.Pid, &status, 0, nil); err != nil || status.Signal() != syscall.SIGKILL {
				t.Errorf("it ended with %v (%v), want SIGKILL", status, err)
			}
		})
	}
}

func open(t *testing.T, path string) *os.File {
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// sealedMemory returns a file in memory that nobody can write to.
func sealedMemory(t *testing.T) *os.File {
	t.Helper()
	fd, err := unix.MemfdCreate("sealed", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "sealed")
	t.Cleanup(func() { f.Close() })
	if _, err := f.WriteString("sealed"); err != nil {
		t.Fatal(err)
	}
	if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_WRITE|unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_SEAL); err != nil {
		t.Fatal(err)
	}
	return f
}

// inside returns the program that looks around.
func inside(t *testing.T) string {
	t.Helper()
	if path := os.Getenv(asUser); path != "" {
		return path
	}
	dir := t.TempDir()
	if err := os.Chmod(filepath.Dir(dir), 0o755); err != nil { // for a user of its own, without a root of its own
		t.Fatal(err)
	}
	path := filepath.Join(dir, "inside")
	build := exec.Command("go", "build", "-o", path, "./testdata/inside")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return path
}

// again runs tests of this package as an ordinary user.
func again(t *testing.T, tests string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "jail-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	program, self := filepath.Join(dir, "inside"), filepath.Join(dir, "test")
	for to, from := range map[string]string{program: inside(t), self: "/proc/self/exe"} {
		text, err := os.ReadFile(from)
		if err == nil {
			err = os.WriteFile(to, text, 0o755)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command(self, "-test.v", "-test.timeout=1m", "-test.run="+tests)
	cmd.Env = []string{asUser + "=" + program, "TMPDIR=" + dir}
	cmd.Dir = dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	if err != nil {
		t.Error(err)
	}
}
