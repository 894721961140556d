package main

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/rogpeppe/go-internal/testscript"

	"github.com/matchlock/matchlock/vm"
)

// inProcess, in the environment, has sandboxes run without VMs: their commands
// run on the host.
const inProcess = "MATCHLOCK_TEST_IN_PROCESS"

// withoutVM is the backend for that, nil where the host is not Linux.
var withoutVM vm.Backend

// programs are what the test's binary is when it is called so.
var programs = map[string]func(){}

func TestMain(m *testing.M) {
	programs["matchlock"] = func() {
		if os.Getenv(inProcess) != "" {
			backend = withoutVM
		}
		main()
	}
	testscript.Main(m, programs)
}

// TestScripts runs testdata/*.txtar: what users see that needs no VM. Each has
// a home of its own, and $REGISTRY, a registry in this process with the images
// of pushImages. Sandboxes have no VMs, and nothing of them may be left.
func TestScripts(t *testing.T) {
	if withoutVM == nil {
		t.Skip("sandboxes without VMs run commands as Linux does")
	}
	host := startRegistry(t)
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata",
		Cmds:                commands,
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(env *testscript.Env) error {
			env.Setenv("REGISTRY", host)
			env.Setenv(inProcess, "1")
			if err := setUp(env); err != nil {
				return err
			}
			// Empty disks need not be real ones.
			tools := filepath.Join(env.WorkDir, ".tools")
			if err := os.Mkdir(tools, 0o700); err != nil {
				return err
			}
			env.Setenv("PATH", tools+":"+env.Getenv("PATH"))
			env.Defer(func() { leavesNothing(env) })
			return os.WriteFile(filepath.Join(tools, "mkfs.ext4"), []byte("#!/bin/sh\n"), 0o700)
		},
	})
}

// TestScriptsInVM runs testdata/vm/*.txtar, whose `matchlock run` boots. Each has
// a home of its own with the image busybox in it, the cache of kernels being
// shared. Afterwards nothing may be left of its sandboxes.
func TestScriptsInVM(t *testing.T) {
	if os.Getenv("MATCHLOCK_TEST_VM") != "1" {
		t.Skip("boots VMs: runs where MATCHLOCK_TEST_VM=1, as make test sets it")
	}
	shared := os.Getenv("MATCHLOCK_TEST_HOME")
	if shared == "" {
		t.Fatal("MATCHLOCK_TEST_HOME is not set: run scripts/test-vm.sh")
	}
	if guest, _ := guestBinary(); guest == nil {
		t.Fatal("no guest binary is embedded: make build")
	}
	cache := filepath.Join(shared, "home", "cache")
	if err := os.MkdirAll(cache, 0o700); err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/vm",
		Cmds:                commands,
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(env *testscript.Env) error {
			env.Setenv("IMAGES", filepath.Join(shared, "images"))
			if err := setUp(env); err != nil {
				return err
			}
			env.Defer(func() { leavesNothing(env) })
			home := env.Getenv("MATCHLOCK_HOME")
			if err := os.Mkdir(home, 0o700); err != nil {
				return err
			}
			if err := os.Symlink(cache, filepath.Join(home, "cache")); err != nil {
				return err
			}
			imported := exec.Command("matchlock", "image", "import", "busybox", filepath.Join(shared, "images", "busybox.tar"))
			imported.Env = env.Vars
			if out, err := imported.CombinedOutput(); err != nil {
				return fmt.Errorf("import of busybox: %w: %s", err, out)
			}
			return nil
		},
	})
}

// setUp gives a script its home.
func setUp(env *testscript.Env) error {
	env.Setenv("MATCHLOCK_HOME", filepath.Join(env.WorkDir, "home"))
	env.Setenv("TERM", "xterm")
	env.Setenv("ARCH", runtime.GOARCH)
	env.Setenv("GORACE", "atexit_sleep_ms=0") // the race detector's second, once for each program run
	return nil
}

// commands are what scripts have beside testscript's own.
var commands = map[string]func(ts *testscript.TestScript, neg bool, args []string){
	"status": scriptStatus,
	"until":  scriptUntil,
	"upon":   scriptUpon,
	"mktar":  scriptMktar,
	"nothing-left": func(ts *testscript.TestScript, neg bool, args []string) {
		look := remainsAtLast
		if neg {
			look = remains
		}
		if err := look(ts.Getenv("MATCHLOCK_HOME")); (err != nil) != neg {
			ts.Fatalf("sandboxes: %v", err)
		}
	},
	"machine-ends": scriptMachineEnds,
}

// scriptStatus runs a program and checks its exit status, which may be "any":
//
//	status 125 matchlock run nosuch
func scriptStatus(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: status N PROGRAM [ARG…]")
	}
	checkStatus(ts, ts.Exec(args[1], args[2:]...), args[0])
}

func checkStatus(ts *testscript.TestScript, err error, want string) {
	got := 0
	if err != nil {
		exit, ok := errors.AsType[*exec.ExitError](err)
		if !ok {
			ts.Fatalf("%v", err)
		}
		got = exit.ExitCode()
	}
	if want != "any" && strconv.Itoa(got) != want {
		ts.Fatalf("exit status %d, want %s", got, want)
	}
}

// scriptUntil runs a program again and again until what it says on one of its
// streams matches, whatever its exit status. That is left to be looked at:
//
//	until stdout REGEX matchlock logs web
func scriptUntil(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 3 || args[0] != "stdout" && args[0] != "stderr" {
		ts.Fatalf("usage: until stdout|stderr REGEX PROGRAM [ARG…]")
	}
	wanted, err := regexp.Compile("(?m)" + args[1])
	ts.Check(err)
	said := map[string]*bytes.Buffer{"stdout": {}, "stderr": {}}
	for deadline := time.Now().Add(20 * time.Second); ; {
		cmd := program(ts, args[2:])
		cmd.Stdout, cmd.Stderr = said["stdout"], said["stderr"]
		if err := cmd.Run(); err != nil {
			if _, ok := errors.AsType[*exec.ExitError](err); !ok {
				ts.Fatalf("%v", err)
			}
		}
		if wanted.Match(said[args[0]].Bytes()) {
			break
		}
		if time.Now().After(deadline) {
			ts.Fatalf("%s never matched %q; the last time it was\n%s", args[0], args[1], said[args[0]])
		}
		for _, b := range said {
			b.Reset()
		}
		time.Sleep(10 * time.Millisecond) // what is waited for may be anything
	}
	ts.Stdout().Write(said["stdout"].Bytes())
	ts.Stderr().Write(said["stderr"].Bytes())
}

// program prepares a program to run as testscript's exec runs it.
func program(ts *testscript.TestScript, argv []string) *exec.Cmd {
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Dir = ts.MkAbs(".")
	for _, name := range []string{"PATH", "HOME", "MATCHLOCK_HOME", "TERM", "TMPDIR", "GORACE", inProcess} {
		cmd.Env = append(cmd.Env, name+"="+ts.Getenv(name))
	}
	return cmd
}

// scriptUpon runs a program, sends it each signal when its standard output has
// said the text before it, and checks its exit status:
//
//	upon 130 ready INT again INT -- matchlock run busybox …
func scriptUpon(ts *testscript.TestScript, neg bool, args []string) {
	split := 0
	for split < len(args) && args[split] != "--" {
		split++
	}
	if neg || split%2 != 1 || split+1 >= len(args) {
		ts.Fatalf("usage: upon STATUS {TEXT SIGNAL}… -- PROGRAM [ARG…]")
	}
	cmd := program(ts, args[split+1:])
	cmd.Stderr = ts.Stderr()
	out, err := cmd.StdoutPipe()
	ts.Check(err)
	ts.Check(cmd.Start())
	// A command that says nothing, or does not end, must not hold up the test.
	overdue := time.AfterFunc(2*time.Minute, func() { cmd.Process.Kill() })
	defer overdue.Stop()
	var said bytes.Buffer
	for pair := args[1:split]; len(pair) > 0; pair = pair[2:] {
		if err := readUntil(out, &said, pair[0]); err != nil {
			cmd.Process.Kill()
			cmd.Wait()
			ts.Fatalf("waiting for %q: %v; it said %q", pair[0], err, said.String())
		}
		ts.Check(cmd.Process.Signal(signalNamed(ts, pair[1])))
	}
	_, err = io.Copy(&said, out)
	ts.Check(err)
	err = cmd.Wait()
	ts.Stdout().Write(said.Bytes())
	checkStatus(ts, err, args[0])
}

// readUntil reads r into said until it has text beyond what it had.
func readUntil(r io.Reader, said *bytes.Buffer, text string) error {
	from := said.Len()
	buf := make([]byte, 4096)
	for !strings.Contains(said.String()[from:], text) {
		n, err := r.Read(buf)
		said.Write(buf[:n])
		if err != nil {
			return err
		}
	}
	return nil
}

func signalNamed(ts *testscript.TestScript, name string) syscall.Signal {
	s, ok := map[string]syscall.Signal{
		"INT": syscall.SIGINT, "TERM": syscall.SIGTERM, "HUP": syscall.SIGHUP, "USR1": syscall.SIGUSR1, "QUIT": syscall.SIGQUIT, "KILL": syscall.SIGKILL,
	}[name]
	if !ok {
		ts.Fatalf("no signal %q", name)
	}
	return s
}

// scriptMachineEnds checks that within a second no process is left that has a
// file of a sandbox open, which a hypervisor has for as long as it lives.
func scriptMachineEnds(ts *testscript.TestScript, neg bool, args []string) {
	home := ts.Getenv("MATCHLOCK_HOME")
	ts.Check(withinASecond(func() error { return openFiles(home) }))
}

// withinASecond looks until there is no error any more.
func withinASecond(look func() error) error {
	deadline := time.Now().Add(time.Second)
	for {
		err := look()
		if err == nil || time.Now().After(deadline) {
			return err
		}
		time.Sleep(5 * time.Millisecond) // nothing tells of a stranger's end
	}
}

// scriptMktar writes a tar of the files below a folder, all root's:
//
//	mktar rootfs.tar rootfs
func scriptMktar(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: mktar FILE FOLDER")
	}
	out, err := os.Create(ts.MkAbs(args[0]))
	ts.Check(err)
	defer out.Close()
	w := tar.NewWriter(out)
	ts.Check(w.AddFS(os.DirFS(ts.MkAbs(args[1]))))
	ts.Check(w.Close())
}

// leavesNothing fails a script if anything is left of its home's sandboxes. That
// is removed: a script that fails midway leaves supervisors, which would go on.
func leavesNothing(env *testscript.Env) {
	err := remainsAtLast(env.Getenv("MATCHLOCK_HOME"))
	if err == nil {
		return
	}
	t := env.T()
	t.Log(err)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	matchlock := func(args ...string) []string {
		cmd := exec.CommandContext(ctx, "matchlock", args...)
		cmd.Env = env.Vars // of the set-up
		out, err := cmd.Output()
		if err != nil {
			t.Log("matchlock", args, err)
		}
		return strings.Fields(string(out))
	}
	if ids := matchlock("ps", "-aq"); len(ids) > 0 {
		matchlock(append([]string{"rm", "-f"}, ids...)...)
	}
	t.FailNow()
}

// remainsAtLast says what remains when supervisors that are at their end have
// come to it.
func remainsAtLast(home string) error {
	return withinASecond(func() error { return remains(home) })
}

// remains says what is left of the sandboxes of a home: folders, or processes
// that have one of their files open.
func remains(home string) error {
	sandboxes := filepath.Join(home, "state", "sandboxes")
	entries, err := os.ReadDir(sandboxes)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, e := range entries {
		if e.Name() != "lock" {
			return fmt.Errorf("left behind: %s", filepath.Join(sandboxes, e.Name()))
		}
	}
	return openFiles(home)
}

// openFiles says which process has a file of a home's sandboxes open.
func openFiles(home string) error {
	sandboxes := filepath.Join(home, "state", "sandboxes")
	open, err := filepath.Glob("/proc/[0-9]*/fd/*")
	if err != nil {
		return err
	}
	for _, fd := range open {
		if target, err := os.Readlink(fd); err == nil && strings.HasPrefix(target, sandboxes+"/") && !strings.HasPrefix(target, sandboxes+"/lock") {
			return fmt.Errorf("%s is open by process %s", target, strings.Split(fd, "/")[2])
		}
	}
	return nil
}

// startRegistry serves a registry with images for scripts to pull, and returns
// its address.
func startRegistry(t *testing.T) (host string) {
	t.Helper()
	server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(server.Close)
	host = strings.TrimPrefix(server.URL, "http://")
	pushImages(t, host)
	return host
}

// pushImages pushes tools:1, for this host's processor, and foreign:1, for another.
func pushImages(t *testing.T, host string) {
	t.Helper()
	var content bytes.Buffer
	w := tar.NewWriter(&content)
	for _, h := range []*tar.Header{
		{Name: "bin/", Typeflag: tar.TypeDir, Mode: 0o755},
		{Name: "bin/tool", Typeflag: tar.TypeReg, Mode: 0o755, Size: 4},
	} {
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := io.WriteString(w, "tool"); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(content.Bytes())), nil })
	if err != nil {
		t.Fatal(err)
	}
	for ref, arch := range map[string]string{"tools:1": runtime.GOARCH, "foreign:1": "s390x"} {
		img, err := mutate.AppendLayers(empty.Image, layer)
		if err != nil {
			t.Fatal(err)
		}
		img, err = mutate.ConfigFile(img, &v1.ConfigFile{
			OS: "linux", Architecture: arch, RootFS: rootFS(t, img), Config: v1.Config{Cmd: []string{"/bin/tool"}, User: "1000", WorkingDir: "/bin"},
		})
		if err != nil {
			t.Fatal(err)
		}
		tag, err := name.ParseReference(host + "/" + ref)
		if err != nil {
			t.Fatal(err)
		}
		if err := remote.Write(tag, img); err != nil {
			t.Fatal(err)
		}
	}
}

func rootFS(t *testing.T, img v1.Image) v1.RootFS {
	t.Helper()
	config, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	return config.RootFS
}
