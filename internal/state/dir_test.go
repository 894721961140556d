package state

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"sync"
	"syscall"
	"testing"

	"github.com/matchlock/matchlock/api"
)

func TestCreateAndRemove(t *testing.T) {
	sandboxes := filepath.Join(t.TempDir(), "sandboxes")
	d, err := Create(t.Context(), sandboxes, Record{})
	if err != nil {
		t.Fatal(err)
	}
	if !regexp.MustCompile(`^[a-z0-9]{12}$`).MatchString(d.ID) {
		t.Errorf("id %q is not 12 characters of [a-z0-9]", d.ID)
	}
	if err := os.WriteFile(d.Path("upper.ext4"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(d.Path())
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode() != os.ModeDir|0o700 {
		t.Errorf("folder has mode %v, want drwx------", info.Mode())
	}
	if !alive(d.Path()) {
		t.Error("a held folder counts as dead")
	}
	for range 2 {
		if err := d.Remove(); err != nil {
			t.Errorf("Remove = %v", err)
		}
	}
	if _, err := os.Stat(d.Path()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after Remove the folder is there: %v", err)
	}
}

// A folder that cannot be given another name, as on a full disk, goes even so.
func TestRemoveWithoutRename(t *testing.T) {
	sandboxes := t.TempDir()
	chmod(t, sandboxes, 0o700)
	removed, swept := create(t, sandboxes, "removed"), create(t, sandboxes, "swept")
	err := swept.Update(func(r *Record) { r.AutoRemove = true })
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range []*Dir{removed, swept} {
		mkdir(t, deadPath(d.Path()))
		mkdir(t, filepath.Join(deadPath(d.Path()), "in the way"))
	}
	for range 2 {
		if err := removed.Remove(); err != nil {
			t.Errorf("Remove = %v", err)
		}
	}
	if err := swept.Close(); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second one what lies in the way
		sweep(t, sandboxes)
	}
	if got := names(t, sandboxes); !sameNames(got, []string{gateName}) {
		t.Errorf("left: %q", got)
	}
}

func TestSweepOfNothing(t *testing.T) {
	if _, err := Sweep(t.Context(), filepath.Join(t.TempDir(), "none")); err != nil {
		t.Errorf("Sweep where no sandbox has ever been = %v", err)
	}
}

// TestSweep lays out everything that a supervisor can leave when it is killed,
// with a living one among it.
func TestSweep(t *testing.T) {
	sandboxes := t.TempDir()
	chmod(t, sandboxes, 0o700)
	living, err := Create(t.Context(), sandboxes, Record{})
	if err != nil {
		t.Fatal(err)
	}
	defer living.Remove()
	for _, path := range []string{
		"killedbefore",                  // between mkdir and the lock
		"killedafter1/lock",             // in its life
		"killedafter1/vm-1/rootfs.ext4", // with files
		"killedclose1/upper.ext4",       // while removing, its lock gone first
		".dead-killedsweep/lock",        // by a sweep that was killed
	} {
		path = filepath.Join(sandboxes, path)
		if filepath.Ext(path) == "" && filepath.Base(path) != "lock" {
			mkdir(t, path)
			continue
		}
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Sweep(t.Context(), sandboxes); err != nil {
		t.Fatal(err)
	}
	if got, want := names(t, sandboxes), []string{living.ID, gateName}; !sameNames(got, want) {
		t.Errorf("Sweep left %q, want %q", got, want)
	}
}

// killedSandbox has a process of its own create a sandbox, which is to stay or
// not, and be killed. alive is called before that.
func killedSandbox(t *testing.T, sandboxes string, keep bool, alive func()) {
	t.Helper()
	child := exec.Command(os.Args[0], "-test.run=^TestSweepAfterKill$")
	child.Env = append(os.Environ(), "STATE_TEST_CREATE="+sandboxes)
	if keep {
		child.Env = append(child.Env, "STATE_TEST_KEEP=1")
	}
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	alive()
	if err := child.Process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	child.Wait() // "signal: killed" is what was asked for
}

func sweep(t *testing.T, sandboxes string) {
	t.Helper()
	if _, err := Sweep(t.Context(), sandboxes); err != nil {
		t.Fatal(err)
	}
}

// TestSweepAfterKill has a supervisor be killed whose sandbox was to go with it,
// and one whose sandbox was not.
func TestSweepAfterKill(t *testing.T) {
	if dir := os.Getenv("STATE_TEST_CREATE"); dir != "" {
		r := Record{Info: api.Info{Name: "killed", Status: api.StatusRunning, AutoRemove: os.Getenv("STATE_TEST_KEEP") == ""}}
		if _, err := Create(t.Context(), dir, r); err != nil {
			t.Fatal(err)
		}
		fmt.Println("created")
		select {}
	}
	sandboxes := filepath.Join(t.TempDir(), "sandboxes")
	killedSandbox(t, sandboxes, false, func() {
		sweep(t, sandboxes)
		if e := lookup(t, sandboxes, "killed"); e.Status != api.StatusRunning {
			t.Errorf("with its supervisor alive it is %s", e.Status)
		}
	})
	sweep(t, sandboxes)
	if got, want := names(t, sandboxes), []string{gateName}; !sameNames(got, want) {
		t.Errorf("after its supervisor was killed Sweep left %q, want %q", got, want)
	}

	killedSandbox(t, sandboxes, true, func() {})
	sweep(t, sandboxes)
	e := lookup(t, sandboxes, "killed")
	if e.Status != api.StatusDead {
		t.Errorf("a sandbox whose supervisor was killed is %s", e.Status)
	}
	d, err := Open(t.Context(), e)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Update(func(r *Record) { r.Status = api.StatusStopped }); err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	sweep(t, sandboxes)
	if e := lookup(t, sandboxes, "killed"); e.Status != api.StatusStopped {
		t.Errorf("after its end was recorded it is %s", e.Status)
	}
}

func lookup(t *testing.T, sandboxes, ref string) Entry {
	t.Helper()
	e, err := Lookup(sandboxes, ref)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// TestSweepWhileCreating has sweeps and creations go on at once: no sweep may
// take a folder from its supervisor.
func TestSweepWhileCreating(t *testing.T) {
	sandboxes := filepath.Join(t.TempDir(), "sandboxes")
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 20 {
				if _, err := Sweep(t.Context(), sandboxes); err != nil {
					t.Error(err)
				}
				d, err := Create(t.Context(), sandboxes, Record{})
				if err != nil {
					t.Error(err)
					return
				}
				if err := os.WriteFile(d.Path("file"), nil, 0o600); err != nil {
					t.Errorf("the folder of a living sandbox: %v", err)
				}
				if err := d.Remove(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	if got, want := names(t, sandboxes), []string{gateName}; !sameNames(got, want) {
		t.Errorf("left %q, want %q", got, want)
	}
}

func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func sameNames(got, want []string) bool {
	set := map[string]bool{}
	for _, name := range want {
		set[name] = true
	}
	for _, name := range got {
		if !set[name] {
			return false
		}
	}
	return len(got) == len(want)
}
