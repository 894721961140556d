package qemu_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/matchlock/matchlock/internal/qemu"
	"github.com/matchlock/matchlock/vm"
)

// A QEMU that does not come up is told with what it said, at once, and leaves
// nothing of what it started itself.
func TestQEMUThatDoesNotStart(t *testing.T) {
	if runtime.GOOS+"/"+runtime.GOARCH != "linux/amd64" {
		t.Skip("the backend is for linux/amd64")
	}
	tests := map[string]struct{ script, want string }{
		"fails":             {"echo no such machine >&2\nexit 7", "qemu ended: exit status 7; it said last: no such machine"},
		"ends":              {"echo bye", "qemu ended at once; it said last: bye"},
		"leaves a process":  {"sleep 1000 &\necho $! > $0.pid\nexit 7", "qemu ended: exit status 7"},
		"speaks no QMP":     {"echo hello >&6\nsleep 1000", "qemu did not start: qmp greeting: "},
		"speaks half a QMP": {`echo '{"QMP": {"version": {}}}' >&6`, "qemu ended at once"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			program := filepath.Join(dir, "qemu")
			script := "#!/bin/sh\n[ \"$1\" = --version ] && { echo 'QEMU emulator version 7.2.0'; exit; }\n" + test.script + "\n"
			if err := os.WriteFile(program, []byte(script), 0o700); err != nil {
				t.Fatal(err)
			}
			t.Setenv("MATCHLOCK_QEMU", program)
			image := filepath.Join(dir, "image")
			if err := os.WriteFile(image, make([]byte, 4096), 0o600); err != nil {
				t.Fatal(err)
			}
			backend := qemu.New(qemu.Options{
				Accel: "tcg", NoJail: true, RunDir: t.TempDir(),
				Boot: func(context.Context, string) (qemu.BootFiles, error) {
					return qemu.BootFiles{Kernel: image, Initramfs: image}, nil
				},
			})
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			defer cancel()
			m, err := backend.Create(ctx, &vm.VMConfig{ID: "never", PrebuiltRootfs: image, NoNetwork: true})
			if err != nil {
				t.Fatal(err)
			}
			if err := m.Start(ctx); err == nil || !strings.HasPrefix(err.Error(), test.want) {
				t.Errorf("got error %v, want %s…", err, test.want)
			}
			if pid := m.PID(); pid != 0 {
				t.Errorf("process %d lives on", pid)
			}
			if text, err := os.ReadFile(program + ".pid"); err == nil {
				var child int
				if _, err := fmt.Sscan(string(text), &child); err != nil {
					t.Fatal(err)
				}
				awaitEnd(t, child)
			}
		})
	}
}

// awaitEnd fails the test if a process that was killed is still there a second
// later. It is another's child, so its end cannot be waited for.
func awaitEnd(t *testing.T, pid int) {
	t.Helper()
	for deadline := time.Now().Add(time.Second); syscall.Kill(pid, 0) == nil; time.Sleep(10 * time.Millisecond) {
		if state, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)); err == nil && strings.Contains(string(state), ") Z ") {
			return // nobody reaps it here
		}
		if time.Now().After(deadline) {
			syscall.Kill(pid, syscall.SIGKILL)
			t.Fatalf("process %d lives on", pid)
		}
	}
}
