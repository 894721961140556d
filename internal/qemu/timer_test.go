package qemu

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/matchlock/matchlock/internal/machine"
	"github.com/matchlock/matchlock/vm"
)

// playQEMU begins the script of a QEMU for shells. It counts its starts, and has the
// descriptors of the monitor, 6, and of the console, 7.
const playQEMU = `#!/bin/sh
[ "$1" = --version ] && { echo 'QEMU emulator version 7.2.0'; exit; }
echo >> $0.boots
boots=$(wc -l < $0.boots)
answer() { # RESULT
	read -r line <&6
	id=${line##*'"id":'}
	echo "{\"return\": $1, \"id\": ${id%\}}}" >&6
}
port() { echo "{\"event\": \"VSERPORT_CHANGE\", \"data\": {\"id\": \"$1\", \"open\": $2}}" >&6; }
say() { printf '%s\r\n' "$1" >&7; }
slow='[    0.128614] APIC frequency too slow, disabling apic timer'
closed='[{"label": "data", "frontend-open": true}, {"label": "ctl", "frontend-open": false}]'
echo '{"QMP": {"version": {}}}' >&6
answer '{}'
`

// play makes a machine whose QEMU is the script.
func play(t *testing.T, script string) (h *hypervisor, boots func() int, warned *bytes.Buffer) {
	t.Helper()
	if runtime.GOOS+"/"+runtime.GOARCH != "linux/amd64" {
		t.Skip("the backend is for linux/amd64")
	}
	dir := t.TempDir()
	program, image := filepath.Join(dir, "qemu"), filepath.Join(dir, "image")
	if err := os.WriteFile(program, []byte(playQEMU+script), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(image, make([]byte, 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("MATCHLOCK_QEMU", program)
	config, err := machine.Resolve(&vm.VMConfig{ID: "played", PrebuiltRootfs: image, NoNetwork: true})
	if err != nil {
		t.Fatal(err)
	}
	warned = new(bytes.Buffer)
	log := slog.New(slog.NewTextHandler(warned, &slog.HandlerOptions{Level: slog.LevelWarn}))
	backend := New(Options{
		Accel: accelTCG, NoJail: true, RunDir: t.TempDir(), Logger: log,
		Boot: func(context.Context, string) (BootFiles, error) {
			return BootFiles{Kernel: image, Initramfs: image}, nil
		},
	})
	h = &hypervisor{config: config, log: log, ended: make(chan struct{})}
	h.life, h.end = context.WithCancel(context.Background())
	t.Cleanup(func() {
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	})
	if _, _, err := backend.acquire(t.Context(), h); err != nil {
		t.Fatal(err)
	}
	return h, func() int {
		lines, err := os.ReadFile(program + ".boots")
		if err != nil {
			t.Fatal(err)
		}
		return len(lines)
	}, warned
}

// A guest whose kernel finds no timer boots again, and one that boots is left alone.
func TestBootAgain(t *testing.T) {
	tests := map[string]struct {
		script string
		boots  int
		want   string // of the error
		ends   string // the machine, by itself
	}{
		"the port was opened":          {`answer '[{"label": "ctl", "frontend-open": true}]'; exec sleep 1000`, 1, "", ""},
		"the port is opened":           {`answer "$closed"; port data true; port ctl false; port ctl true; exec sleep 1000`, 1, "", ""},
		"no timer at the first boot":   {`answer "$closed"; [ $boots = 1 ] && say "$slow" || port ctl true; exec sleep 1000`, 2, "", ""},
		"no timer before the question": {`[ $boots = 1 ] && say "$slow"; answer "$closed"; [ $boots = 1 ] || port ctl true; exec sleep 1000`, 2, "", ""},
		"never a timer":                {`answer "$closed"; say "$slow"; exec sleep 1000`, 3, "the guest's kernel found no timer, in 3 boots: the host is too busy", ""},
		"an end":                       {`answer "$closed"; say bye; exit 7`, 1, "", "qemu ended: exit status 7; it said last: bye"},
		"an end before the answer":     {`read -r line <&6; exit 7`, 1, "", "qemu ended: exit status 7"},
		"an end of the second boot":    {`answer "$closed"; [ $boots = 1 ] && say "$slow" && exec sleep 1000; exit 7`, 2, "", "qemu ended: exit status 7; it said last: [    0.128614] APIC frequency too slow, disabling apic timer"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			h, boots, warned := play(t, test.script)
			began := time.Now()
			if err := h.Start(t.Context()); err == nil && test.want != "" || err != nil && err.Error() != test.want {
				t.Errorf("got error %v, want %q", err, test.want)
			}
			if took := time.Since(began); took > watchTime {
				t.Errorf("it took %v", took)
			}
			if got := boots(); got != test.boots {
				t.Errorf("it booted %d times, want %d", got, test.boots)
			}
			if got := strings.Count(warned.String(), "boots again"); got != test.boots-1 {
				t.Errorf("warned %d times, want %d: %s", got, test.boots-1, warned)
			}
			if test.ends == "" {
				if h.PID() == 0 {
					t.Error("nothing runs")
				}
				return
			}
			if err := h.Wait(t.Context()); err == nil || err.Error() != test.ends {
				t.Errorf("it ended: %v, want %s", err, test.ends)
			}
		})
	}
}

// The watch of a boot is over when nobody wants the guest any more.
func TestBootGivenUp(t *testing.T) {
	reason := errors.New("no patience")
	for name, want := range map[string]error{"its context ends": reason, "it is closed": nil} {
		t.Run(name, func(t *testing.T) {
			h, _, _ := play(t, `answer "$closed"; echo > $0.watched; exec sleep 1000`)
			watched := h.path + ".watched"
			if err := syscall.Mkfifo(watched, 0o600); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancelCause(t.Context())
			started := make(chan error)
			go func() { started <- h.Start(ctx) }()
			if _, err := os.ReadFile(watched); err != nil {
				t.Fatal(err)
			}
			if want == nil {
				if err := h.Close(); err != nil {
					t.Error(err)
				}
			} else {
				cancel(reason)
			}
			if err := <-started; !errors.Is(err, want) {
				t.Errorf("got %v, want %v", err, want)
			}
			cancel(nil)
		})
	}
}

func TestNoTimer(t *testing.T) {
	for line, want := range map[string]bool{
		"[    0.128614] APIC frequency too slow, disabling apic timer\r\n":                                      true,
		"[   10.128614] APIC timer disabled due to verification failure\r\n":                                    true,
		"APIC frequency too slow, disabling apic timer\n":                                                       true, // a kernel that tells no time
		"[    0.1] first\r\n[    0.128614] APIC frequency too slow, disabling apic timer\r\n[    0.2] last\r\n": true,
		"[    0.128614] APIC frequency too slow, disabling apic timer, or not\r\n":                              false,
		"[    0.128614] init: APIC frequency too slow, disabling apic timer\r\n":                                false,
		"x [    0.128614] APIC frequency too slow, disabling apic timer\r\n":                                    false,
		"[    0.128614] APIC calibration not consistent with PM-Timer: 1ms\r\n":                                 false,
	} {
		if got := noTimer().MatchString(line); got != want {
			t.Errorf("%q: got %v, want %v", line, got, want)
		}
	}
}
