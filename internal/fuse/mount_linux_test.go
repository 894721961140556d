package fuse

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/matchlock/matchlock/internal/workspace"
	"github.com/matchlock/matchlock/internal/workspace/workspacetest"
)

// A mount in these tests is of three processes, as in life: one that uses files, a relay,
// and one that serves them. Who uses a mount may stand still in a page fault, with all of
// its goroutines, and a relay does nothing else than wait.

// part has this process be a relay or a server.
const part = "MATCHLOCK_TEST_FUSE_PART"

func TestMain(m *testing.M) {
	switch os.Getenv(part) {
	case "relay":
		os.Exit(beRelay())
	case "server":
		os.Exit(beServer())
	}
	goleak.VerifyTestMain(m)
}

// The descriptors of both: what they are to use.
const (
	relayDevice = 3
	relayPort   = 4
	serverPort  = 3
)

// beRelay passes on what is asked until the mount is gone.
func beRelay() int {
	debug.SetGCPercent(-1) // which would wait for the loops
	runtime.GOMAXPROCS(4)
	r, err := NewRelay()
	if err != nil {
		return say(err)
	}
	r.slots = Slots{}
	if os.Getenv("SLOTS") != "" {
		// The server reaches this process's memory as if it were a machine's.
		r.slots = Slots{uint64(uintptr(r.requests)), uint64(uintptr(r.answers))}
	}
	if err := r.Hello(relayPort, workspace.Owner{}); err != nil {
		return say(err)
	}
	done := make(chan int)
	for _, pass := range []func(device, port uintptr){r.PassAnswers, r.PassRequests} {
		go func() {
			runtime.LockOSThread()
			pass(relayDevice, relayPort)
			done <- 0
		}()
	}
	return <-done
}

func say(err error) int {
	fmt.Fprintln(os.Stderr, err)
	return 1
}

// processMemory is that of a process, as if it were a guest's.
type processMemory struct{ *os.File }

func (m processMemory) ReadMemory(p []byte, address uint64) error {
	return second(m.ReadAt(p, int64(address)))
}

func (m processMemory) WriteMemory(p []byte, address uint64) error {
	return second(m.WriteAt(p, int64(address)))
}

// beServer serves a tree until nobody asks any more.
func beServer() int {
	any := workspace.Owner{UID: workspace.AnyOwner, GID: workspace.AnyOwner}
	memory := func() workspace.FS { return workspace.NewMemory(workspace.MemoryOptions{Owner: any}) }
	host := func() (workspace.FS, error) {
		return workspace.OpenHost(filepath.Join(os.Getenv("DIR"), "host"), workspace.HostOptions{Owner: any})
	}
	var tree workspace.FS
	var err error
	switch os.Getenv("TREE") {
	case "Memory":
		tree = memory()
	case "Host":
		tree, err = host()
	case "ReadOnly":
		tree, err = workspace.OpenHost(filepath.Join(os.Getenv("DIR"), "host"), workspace.HostOptions{Owner: any, ReadOnly: true})
	case "Overlay":
		if tree, err = host(); err == nil {
			tree, err = workspace.OpenOverlay(tree, filepath.Join(os.Getenv("DIR"), "overlay"), workspace.OverlayOptions{})
		}
	case "Filter":
		tree, err = workspace.NewFilter(memory(), []string{"secret"}, []string{"fixed"})
	case "Hooks":
		tree, err = workspace.NewHooks(memory(), workspace.HookOptions{Hooks: []workspace.Hook{{
			Before: func(context.Context, *workspace.Op) error { return nil },
		}}})
	case "Router":
		tree, err = host()
		if err == nil {
			tree, err = workspace.NewRouter([]workspace.Mounted{{Name: "memory", FS: memory()}, {Name: "host", FS: tree}})
		}
	}
	if err != nil {
		return say(err)
	}
	var m Memory
	if pid := os.Getenv("MEMORY"); pid != "" {
		f, err := os.OpenFile("/proc/"+pid+"/mem", os.O_RDWR, 0)
		if err != nil {
			return say(err)
		}
		m = processMemory{f}
	}
	conn, err := net.FileConn(os.NewFile(serverPort, "port"))
	if err != nil {
		return say(err)
	}
	o := Options{Valid: time.Second}
	if os.Getenv("COHERENT") != "" {
		o.Valid = 0
	}
	s := NewServer(tree, o)
	if err := s.Serve(context.Background(), conn, m); err != nil {
		return say(err)
	}
	if m != nil && s.slots == (Slots{}) {
		return say(fmt.Errorf("no slots were used"))
	}
	if err := s.check(); err != nil {
		return say(err)
	}
	if err := s.Close(); err != nil {
		return say(err)
	}
	return 0
}

// start starts this binary as something else. The test fails when that fails.
func start(t *testing.T, what string, file []*os.File, env ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), append(env, part+"="+what)...)
	cmd.ExtraFiles = file
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	must(t, cmd.Start())
	t.Cleanup(func() {
		late := time.AfterFunc(20*time.Second, func() { cmd.Process.Kill() })
		defer late.Stop()
		if err := cmd.Wait(); err != nil || said.Len() > 0 {
			t.Errorf("the %s: %v\n%s", what, err, said.String())
		}
	})
	return cmd
}

// mount serves a tree of a kind. With dir/host of the folder that it returns, if the tree
// is one of the host's.
func mount(t *testing.T, tree string, slots bool, env ...string) (mounted, dir string) {
	t.Helper()
	if os.Getenv("MATCHLOCK_TEST_VM") == "" {
		t.Skip("mounts: set MATCHLOCK_TEST_VM=1 (make test does)")
	}
	dir = t.TempDir()
	must(t, os.Mkdir(filepath.Join(dir, "host"), 0o755), os.Mkdir(filepath.Join(dir, "mounted"), 0o755))
	device, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	must(t, err)
	defer device.Close()
	mounted = filepath.Join(dir, "mounted")
	must(t, unix.Mount("matchlock", mounted, "fuse", unix.MS_NOSUID|unix.MS_NODEV,
		fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions", device.Fd())))
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	must(t, err)
	ports := [2]*os.File{os.NewFile(uintptr(fds[0]), "port"), os.NewFile(uintptr(fds[1]), "port")}
	defer ports[0].Close()
	defer ports[1].Close()

	// Whatever happens: a mount that nobody serves is one that nobody waits for.
	relayEnv, serverEnv := []string{}, append(env, "TREE="+tree, "DIR="+dir)
	if slots {
		relayEnv = append(relayEnv, "SLOTS=1")
	}
	relay := start(t, "relay", []*os.File{device, ports[0]}, relayEnv...)
	if slots {
		serverEnv = append(serverEnv, "MEMORY="+strconv.Itoa(relay.Process.Pid))
	}
	start(t, "server", []*os.File{ports[1]}, serverEnv...)
	t.Cleanup(func() {
		if err := unix.Unmount(mounted, 0); err != nil {
			t.Errorf("unmount: %v", err)
			unix.Unmount(mounted, unix.MNT_DETACH|unix.MNT_FORCE)
		}
	})
	return mounted, dir
}

// mountedTrees are those of beServer to which all can be written, and where.
var mountedTrees = map[string]string{"Memory": "", "Host": "", "Overlay": "", "Filter": "", "Hooks": "", "Router": "host"}

// TestMounted holds each tree to what programs expect of it, through this kernel.
func TestMounted(t *testing.T) {
	for tree, below := range mountedTrees {
		for _, slots := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/slots=%v", tree, slots), func(t *testing.T) {
				mounted, _ := mount(t, tree, slots)
				for _, name := range slices.Sorted(maps.Keys(workspacetest.All)) {
					t.Run(name, func(t *testing.T) {
						root := filepath.Join(mounted, below, name)
						must(t, os.Mkdir(root, 0o755))
						workspacetest.All[name](t, root)
					})
				}
			})
		}
	}
}

// TestLongMounted has fsx's like go on for a minute.
func TestLongMounted(t *testing.T) {
	n, err := strconv.Atoi(os.Getenv("MATCHLOCK_TEST_LONG"))
	if err != nil || n < 1 {
		t.Skip("takes long: set MATCHLOCK_TEST_LONG to the number of rounds (make long does)")
	}
	for tree, below := range mountedTrees {
		t.Run(tree, func(t *testing.T) {
			t.Parallel()
			mounted, _ := mount(t, tree, true)
			workspacetest.Random(t, filepath.Join(mounted, below), uint64(n), time.Minute)
		})
	}
}

// TestMountedReadOnly has all that changes something refused.
func TestMountedReadOnly(t *testing.T) {
	mounted, dir := mount(t, "ReadOnly", true)
	file := filepath.Join(dir, "host/file")
	must(t, os.WriteFile(file, []byte("content"), 0o644), os.Mkdir(filepath.Join(dir, "host/folder"), 0o755))
	before := picture(t, filepath.Join(dir, "host"))
	workspacetest.ReadOnly(t, mounted)
	if after := picture(t, filepath.Join(dir, "host")); after != before {
		t.Errorf("the folder is\n%s, was\n%s", after, before)
	}
}

// TestMountedHostChanges has the guest see what the host does: at once where it asks each
// time.
func TestMountedHostChanges(t *testing.T) {
	mounted, dir := mount(t, "Host", true, "COHERENT=1")
	host := filepath.Join(dir, "host")
	put := func(content string) {
		t.Helper()
		must(t, os.WriteFile(filepath.Join(host, "new"), []byte(content), 0o644), os.Rename(filepath.Join(host, "new"), filepath.Join(host, "file")))
	}
	held, err := os.OpenFile(filepath.Join(mounted, "held"), os.O_RDWR|os.O_CREATE, 0o644)
	must(t, err)
	defer held.Close()
	for i := range 50 {
		content := strings.Repeat("x", i+1)
		put(content)
		if got, err := os.ReadFile(filepath.Join(mounted, "file")); err != nil || string(got) != content {
			t.Fatalf("read %q (%v), want %q", got, err, content)
		}
		must(t, os.WriteFile(filepath.Join(mounted, "file"), []byte("guest"), 0o644))
		if got, err := os.ReadFile(filepath.Join(host, "file")); err != nil || string(got) != "guest" {
			t.Fatalf("the host reads %q (%v)", got, err)
		}
		// Written in place, to what is open.
		f, err := os.OpenFile(filepath.Join(host, "held"), os.O_RDWR, 0)
		must(t, err, second(f.WriteAt([]byte(content), 0)), f.Close())
		got := make([]byte, len(content))
		if _, err := held.ReadAt(got, 0); err != nil || string(got) != content {
			t.Fatalf("an open file holds %q (%v), want %q", got, err, content)
		}
	}
}
