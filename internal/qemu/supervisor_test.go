package qemu_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/matchlock/matchlock/vm"
)

// A supervisor that is killed takes its hypervisor with it, whenever that
// happens.
func TestVMDiesWithItsSupervisor(t *testing.T) {
	if os.Getenv("MATCHLOCK_TEST_SUPERVISOR") != "" {
		supervise(t)
		return
	}
	needVM(t)
	config := overlayConfig(t, "orphan")
	for _, delay := range []time.Duration{0, 20, 50, 100, 150, 200, 400, 1000, 8000} {
		delay *= time.Millisecond
		t.Run(delay.String(), func(t *testing.T) {
			id := fmt.Sprintf("orphan-%d-%d", os.Getpid(), delay.Milliseconds())
			supervisor := exec.Command(os.Args[0], "-test.run=^TestVMDiesWithItsSupervisor$")
			supervisor.Env = append(os.Environ(), "MATCHLOCK_TEST_SUPERVISOR="+id, "TMPDIR="+t.TempDir(), // it leaves its files behind
				"MATCHLOCK_TEST_LOWER="+config.OverlayLowerPaths[0], "MATCHLOCK_TEST_UPPER="+config.OverlayUpperPath)
			// It says "go" when all that takes long, the guest's build, is done.
			ready, err := supervisor.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := supervisor.Start(); err != nil {
				t.Fatal(err)
			}
			if _, err := ready.Read(make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
			time.Sleep(delay)
			supervisor.Process.Kill()
			supervisor.Wait()
			deadline := time.Now().Add(time.Second)
			for {
				pids := hypervisors(t, id)
				if len(pids) == 0 {
					return
				}
				if time.Now().After(deadline) {
					for _, pid := range pids {
						syscall.Kill(pid, syscall.SIGKILL)
					}
					t.Fatalf("QEMU %v lives a second after its supervisor", pids)
				}
				time.Sleep(10 * time.Millisecond)
			}
		})
	}
}

// supervise is the supervisor that gets killed.
func supervise(t *testing.T) {
	ctx := context.Background()
	m, err := newBackend(t).Create(ctx, &vm.VMConfig{
		ID: os.Getenv("MATCHLOCK_TEST_SUPERVISOR"), OverlayEnabled: true,
		OverlayLowerPaths: []string{os.Getenv("MATCHLOCK_TEST_LOWER")}, OverlayUpperPath: os.Getenv("MATCHLOCK_TEST_UPPER"),
	})
	if err != nil {
		t.Fatal(err)
	}
	fmt.Print("go")
	if err := m.Start(ctx); err != nil {
		t.Fatal(err)
	}
	time.Sleep(time.Minute)
}

// hypervisors lists the processes that run the machine id.
func hypervisors(t *testing.T, id string) (pids []int) {
	t.Helper()
	lines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range lines {
		line, err := os.ReadFile(path)
		if err != nil || !bytes.Contains(line, []byte("\x00matchlock-"+id+"\x00")) {
			continue // most likely one that has ended
		}
		var pid int
		if _, err := fmt.Sscanf(path, "/proc/%d/", &pid); err != nil {
			t.Fatal(err)
		}
		pids = append(pids, pid)
	}
	return pids
}

// The end of the hypervisor is told at once to everybody who waits.
func TestVMEndIsNoticed(t *testing.T) {
	backend := newBackend(t)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	m, err := backend.Create(ctx, overlayConfig(t, "victim"))
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close(ctx)
	if err := m.Start(ctx); err != nil {
		t.Fatal(err)
	}
	type end struct {
		what string
		err  error
	}
	ends := make(chan end)
	go func() {
		_, err := m.Exec(ctx, "sleep 1000", nil)
		ends <- end{"Exec", err}
	}()
	go func() { ends <- end{"Wait", m.Wait(ctx)} }()
	if _, err := m.Exec(ctx, "true", nil); err != nil {
		t.Fatal(err)
	}
	syscall.Kill(m.PID(), syscall.SIGKILL)
	killed := time.Now()
	for range 2 {
		e := <-ends
		if e.err == nil {
			t.Errorf("%s: no error after the machine was killed", e.what)
		}
		if took := time.Since(killed); took > 2*time.Second {
			t.Errorf("%s noticed after %v", e.what, took)
		}
		t.Logf("%s: %v", e.what, e.err)
	}
	if pid := m.PID(); pid != 0 {
		t.Errorf("PID %d of a dead machine", pid)
	}
}
