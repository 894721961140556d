package sandbox_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/matchlock/matchlock/api"
	"github.com/matchlock/matchlock/internal/disk"
	"github.com/matchlock/matchlock/sandbox"
)

// hostile is where guests run that their attacker has taken over: the program in
// testdata/hostile is their /init. Beside them is another sandbox, in the same process,
// which has to work all the time.
type hostile struct {
	*place
	taken     place // over
	image     string
	neighbour *sandbox.Sandbox
	before    cost
}

// cost is what this process, the supervisor of all, takes.
type cost struct {
	memory      int64 // bytes
	descriptors int
	goroutines  int
	processor   time.Duration
}

func costNow(t *testing.T) cost {
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		t.Fatal(err)
	}
	return cost{residentHere(t), len(fds), runtime.NumGoroutine(), time.Duration(usage.Utime.Nano() + usage.Stime.Nano())}
}

// What a hostile guest may cost. descriptorLimit is that of the process.
const (
	descriptorLimit = 2048
	memoryMost      = 64 << 20
	descriptorsMost = descriptorLimit * 3 / 4 // the shares of files and flows
	goroutinesMost  = 1000                    // a few for each flow
	patience        = 20 * time.Second        // for what a neighbour is asked, on a busy host
)

func newHostile(t *testing.T) *hostile {
	h := &hostile{place: newPlace(t)}
	program := filepath.Join(t.TempDir(), "hostile")
	build := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w", "-o", program, "./testdata/hostile")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	init, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit) })
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: descriptorLimit, Max: limit.Max}); err != nil {
		t.Fatal(err)
	}
	h.taken = *h.place
	h.taken.options.Guest = io.NewSectionReader(bytes.NewReader(init), 0, int64(len(init)))
	h.taken.options.Cold = true
	h.image = h.place.image(t, "busybox.tar")
	h.neighbour = h.honest(t)
	output(t, h.neighbour, "true")
	return h
}

// Of honest guests, in bytes.
const (
	guestMemory = 128 << 20
	guestDisk   = api.MinDiskSize
)

// honest starts an honest guest. The second one is a copy of the first.
func (h *hostile) honest(t *testing.T) *sandbox.Sandbox {
	t.Helper()
	return h.start(t, api.Config{Image: h.image, Memory: guestMemory, DiskSize: guestDisk})
}

// open starts a hostile guest. It is closed with the test, if that has not done so.
func (h *hostile) open(t *testing.T, config api.Config) *sandbox.Sandbox {
	t.Helper()
	config.Image = h.image
	return h.taken.start(t, config)
}

// attack has the guest do something while the costs are watched and the neighbour is
// asked. It returns what the attacker's program has printed.
func (h *hostile) attack(t *testing.T, s *sandbox.Sandbox, args ...string) string {
	t.Helper()
	most := h.watch(t)
	out := output(t, s, args...)
	most()
	t.Logf("%q: %s", args, out)
	return out
}

// order has the guest's PID 1 do something, and waits for as long as it may take.
func (h *hostile) order(t *testing.T, s *sandbox.Sandbox, harm string, duration time.Duration) {
	t.Helper()
	most := h.watch(t)
	// The answer may be lost already.
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	s.Command(ctx, "/init", "order", harm).Run()
	time.Sleep(duration)
	most()
}

// watch watches the costs until the function that it returns is called, which also
// makes sure that the neighbour has worked meanwhile.
func (h *hostile) watch(t *testing.T) func() {
	t.Helper()
	begun, began := costNow(t), time.Now()
	stop := make(chan struct{})
	var watching sync.WaitGroup
	var most cost
	watching.Go(func() {
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
				now := costNow(t)
				most.memory, most.descriptors, most.goroutines = max(most.memory, now.memory), max(most.descriptors, now.descriptors), max(most.goroutines, now.goroutines)
			}
		}
	})
	var slowest time.Duration
	asked := 0
	watching.Go(func() {
		for {
			before := time.Now()
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			out, err := h.neighbour.Command(ctx, "echo", "here").Output()
			cancel()
			if err != nil || string(out) != "here\n" {
				t.Errorf("the neighbour says %q, %v after %v", out, err, time.Since(before))
			}
			asked++
			slowest = max(slowest, time.Since(before))
			select {
			case <-stop:
				return
			case <-time.After(200 * time.Millisecond):
			}
		}
	})
	return func() {
		t.Helper()
		close(stop)
		watching.Wait()
		most.processor = costNow(t).processor - begun.processor
		t.Logf("in %v: %v of a processor; at most %d MiB, %d descriptors, %d goroutines more; the neighbour answered %d times, within %v",
			time.Since(began).Round(time.Millisecond), most.processor.Round(time.Millisecond),
			(most.memory-h.before.memory)>>20, most.descriptors-h.before.descriptors, most.goroutines-h.before.goroutines, asked, slowest.Round(time.Millisecond))
		if n := most.memory - h.before.memory; n > memoryMost {
			t.Errorf("it took %d MiB of memory", n>>20)
		}
		if n := most.descriptors - h.before.descriptors; n > descriptorsMost {
			t.Errorf("it took %d descriptors", n)
		}
		if n := most.goroutines - h.before.goroutines; n > goroutinesMost {
			t.Errorf("it took %d goroutines", n)
		}
	}
}

// idle makes sure that the attack is over for this process.
func (h *hostile) idle(t *testing.T) {
	t.Helper()
	for range 20 {
		before := costNow(t)
		time.Sleep(500 * time.Millisecond)
		if used := costNow(t).processor - before.processor; used < 100*time.Millisecond {
			return
		}
	}
	t.Error("this process is busy 10 s later")
}

// ends makes sure that a call ends with an error in time, and returns that.
func ends(t *testing.T, what string, limit time.Duration, call func(context.Context) error) error {
	t.Helper()
	began := time.Now()
	err := call(t.Context())
	took := time.Since(began)
	t.Logf("%s: %v after %v", what, err, took.Round(time.Millisecond))
	if err == nil || took > limit {
		t.Errorf("%s: %v after %v, want an error within %v", what, err, took, limit)
	}
	return err
}

// gone closes sandboxes, which must take little time and leave nothing.
func (h *hostile) gone(t *testing.T, all ...*sandbox.Sandbox) {
	t.Helper()
	for _, s := range all {
		began := time.Now()
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("Close took %v", took)
		}
		if _, err := os.Stat(filepath.Join(h.options.Home, "state", "sandboxes", s.ID())); !os.IsNotExist(err) {
			t.Errorf("its folder: %v", err)
		}
		if left := processesNaming(t, "matchlock-"+s.ID()); len(left) > 0 {
			t.Errorf("processes %v are left", left)
		}
	}
	h.idle(t)
	deadline := time.Now().Add(5 * time.Second)
	now := costNow(t)
	for ; (now.descriptors > h.before.descriptors || now.goroutines > h.before.goroutines) && time.Now().Before(deadline); now = costNow(t) {
		time.Sleep(50 * time.Millisecond)
	}
	if now.descriptors > h.before.descriptors || now.goroutines > h.before.goroutines {
		stacks := make([]byte, 1<<20)
		t.Errorf("%d descriptors and %d goroutines are left, of %+v\n%s", now.descriptors, now.goroutines, h.before, stacks[:runtime.Stack(stacks, true)])
	}
}

func processesNaming(t *testing.T, text string) (pids []string) {
	t.Helper()
	lines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range lines {
		if line, err := os.ReadFile(path); err == nil && strings.Contains(string(line), text) {
			pids = append(pids, path)
		}
	}
	return pids
}

// sums are of all files below a folder.
func sums(t *testing.T, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		sum := sha256.New()
		_, err = io.Copy(sum, f)
		all[path] = hex.EncodeToString(sum.Sum(nil))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// TestVMHostile has guests do their worst while a neighbour works.
func TestVMHostile(t *testing.T) {
	h := newHostile(t)
	for _, test := range []struct {
		name string
		run  func(*testing.T, *hostile)
	}{
		{"devices", attackDevices}, {"program", takeAll},
		{"protocol", func(t *testing.T, h *hostile) { breakProtocol(t, h, "data-garbage", "data-streams") }},
		{"silence", func(t *testing.T, h *hostile) { fallSilent(t, h, 4*time.Second) }},
	} {
		t.Run(test.name, func(t *testing.T) {
			h.before = costNow(t)
			test.run(t, h)
		})
	}
}

// TestLongHostile does what takes longer, and waits as long as calls without a limit do.
func TestLongHostile(t *testing.T) {
	long(t)
	h := newHostile(t)
	h.before = costNow(t)
	fallSilent(t, h, 0)
	breakProtocol(t, h, "data-length")
}

// attackDevices has a guest keep to the protocol on the data port, so that it is not
// ended, and attack by all else that it has.
func attackDevices(t *testing.T, h *hostile) {
	dir := t.TempDir()
	folder, data := filepath.Join(dir, "folder"), filepath.Join(dir, "disk")
	if err := os.WriteFile(filepath.Join(dir, "canary"), []byte("the canary sings"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := disk.CreateScratch(t.Context(), data, api.MinDiskSize, filepath.Join(h.options.Home, "cache")); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(folder, 0o755); err != nil {
		t.Fatal(err)
	}
	shared := filepath.Join(h.options.Home, "data", "images", "layers")
	images, outside := sums(t, shared+"/."), sums(t, dir)
	s := h.open(t, api.Config{
		Mounts: []api.Mount{{Source: folder, Target: "/folder", Mode: api.MountReadWrite}},
		Disks:  []api.Disk{{File: data, Mount: "/disk", ReadOnly: true}},
	})

	done := map[string]bool{}
	for line := range strings.Lines(h.attack(t, s, "/init", "disks") + "\n") {
		serial, _, _ := strings.Cut(line, " ")
		done[serial] = done[serial] || strings.HasSuffix(line, ": done\n")
	}
	if want := map[string]bool{"lower0": false, "upper": true, "disk0": false}; !maps.Equal(done, want) {
		t.Errorf("disks that were written to: %v, want %v", done, want)
	}
	h.attack(t, s, "/init", "net", "3")
	h.attack(t, s, "/init", "console", "1")
	h.attack(t, s, "/init", "files", "3")

	h.order(t, s, "data-valid", 2*time.Second)
	for _, harm := range []string{"reset", "refuse", "deaf", "late"} {
		h.order(t, s, harm, 0)
		ends(t, harm, 2*time.Second, func(ctx context.Context) error {
			ctx, cancel := context.WithTimeout(ctx, time.Second)
			defer cancel()
			return s.Command(ctx, "/init", "order", "").Run()
		})
		time.Sleep(2 * time.Second)
	}
	output(t, s, "/init", "order", "") // all that is over
	h.order(t, s, "control-garbage", time.Second)
	ends(t, "Pause", patience, s.Pause)
	h.gone(t, s)

	if diff := cmp.Diff(images, sums(t, shared+"/.")); diff != "" {
		t.Errorf("what sandboxes share has changed:\n%s", diff)
	}
	now := sums(t, dir)
	maps.DeleteFunc(now, func(path, _ string) bool { return strings.HasPrefix(path, folder+"/") })
	if diff := cmp.Diff(outside, now); diff != "" {
		t.Errorf("files beside the folder have changed:\n%s", diff)
	}
	err := filepath.WalkDir(folder, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if m := info.Mode(); m&(fs.ModeDevice|fs.ModeSetuid|fs.ModeSetgid) != 0 {
			t.Errorf("%s is %v", path, m)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// breakProtocol has guests break it: they are ended, and their sandboxes say why.
func breakProtocol(t *testing.T, h *hostile, harms ...string) {
	for _, harm := range harms {
		s := h.open(t, api.Config{})
		waiting := make(chan error, 1)
		go func() { waiting <- s.Command(t.Context(), "/init", "console", "60").Run() }()
		h.order(t, s, harm, 0)
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		began := time.Now()
		info, err := s.Wait(ctx)
		t.Logf("%s: it ended after %v: %s", harm, time.Since(began).Round(time.Millisecond), info.Error)
		const want = "the guest was killed: data port: channel read: protocol violation"
		if err != nil || !strings.Contains(info.Error, want) {
			t.Errorf("%s: the sandbox has ended with %q (%v)", harm, info.Error, err)
		}
		if err := <-waiting; err == nil || !strings.Contains(err.Error(), "protocol violation") {
			t.Errorf("%s: a command that ran: %v", harm, err)
		}
		err = ends(t, "exec", time.Second, func(ctx context.Context) error { return s.Command(ctx, "/init").Run() })
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: a command after it: %v", harm, err)
		}
		h.gone(t, s)
	}
}

// fallSilent has guests say nothing more, or half of something. They hold up no call for
// longer than its limit or, where that is 0 and means none, than an answer is waited for.
func fallSilent(t *testing.T, h *hostile, limit time.Duration) {
	silent, half := h.open(t, api.Config{Env: map[string]string{"HOSTILE": "silent"}}), h.open(t, api.Config{})
	h.order(t, half, "data-half", 0)
	most := h.watch(t)
	answer := limit
	if limit == 0 {
		answer = 30 * time.Second // as in internal/agent
	}
	var calls sync.WaitGroup
	for name, s := range map[string]*sandbox.Sandbox{"silent": silent, "half": half} {
		for what, call := range map[string]func(context.Context) error{
			"exec":  func(ctx context.Context) error { return s.Command(ctx, "/init").Run() },
			"read":  func(ctx context.Context) error { _, err := s.FS(ctx).ReadFile("init"); return err },
			"write": func(ctx context.Context) error { return s.FS(ctx).WriteFile("file", make([]byte, 8<<20), 0o600) },
			"dial":  func(ctx context.Context) error { _, err := s.DialContext(ctx, "tcp", "localhost:80"); return err },
		} {
			calls.Go(func() {
				// What is sent is waited for, and then the answer.
				ends(t, name+": "+what, 2*answer+5*time.Second, func(ctx context.Context) error {
					if limit > 0 {
						var cancel context.CancelFunc
						ctx, cancel = context.WithTimeout(ctx, limit)
						defer cancel()
					}
					return call(ctx)
				})
			})
		}
	}
	calls.Wait()
	most()
	h.gone(t, half, silent)
}

// takeAll has programs of an honest guest take all that they can get. That is what their
// sandbox has, which outlives them.
func takeAll(t *testing.T, h *hostile) {
	s := h.honest(t)
	upper := filepath.Join(h.options.Home, "state", "sandboxes", s.ID(), "upper.ext4")
	for _, script := range []string{"cat /dev/zero >/fill", "tail /dev/zero", "bomb() { bomb | bomb & }; bomb; sleep 60"} {
		most := h.watch(t)
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		began := time.Now()
		out, err := s.Command(ctx, "sh", "-c", script).CombinedOutput()
		cancel()
		t.Logf("%q: %v after %v; %.200s", script, err, time.Since(began).Round(time.Millisecond), out)
		if err == nil {
			t.Errorf("%q: it has had enough", script)
		}
		most()
		ctx, cancel = context.WithTimeout(t.Context(), patience)
		began = time.Now()
		if out, err := s.Command(ctx, "sh", "-c", "rm -f /fill; echo here").Output(); err != nil || string(out) != "here\n" {
			t.Errorf("%q: afterwards it says %q, %v after %v", script, out, err, time.Since(began))
		}
		cancel()
		for _, process := range processesNaming(t, "matchlock-"+s.ID()) {
			status, err := os.ReadFile(filepath.Join(filepath.Dir(process), "status"))
			if err != nil {
				t.Fatal(err)
			}
			resident := residentIn(t, string(status))
			t.Logf("%q: the hypervisor has %d MiB", script, resident>>20)
			if resident > guestMemory+256<<20 {
				t.Errorf("%q: the hypervisor has %d MiB", script, resident>>20)
			}
		}
		info, err := os.Stat(upper)
		if err != nil {
			t.Fatal(err)
		}
		if taken := info.Sys().(*syscall.Stat_t).Blocks * 512; taken > guestDisk+guestDisk/16 {
			t.Errorf("%q: the disk takes %d MiB", script, taken>>20)
		}
	}
	h.gone(t, s)
}
