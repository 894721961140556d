package qemu

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestChooseAccel(t *testing.T) {
	slow := &vcpuError{"too slow"}
	tests := map[string]struct {
		want      string
		open, run error
		accel     string // empty: an error
		reason    string
	}{
		"auto, works":       {"auto", nil, nil, "kvm", "a vCPU runs"},
		"kvm, works":        {"kvm", nil, nil, "kvm", "a vCPU runs"},
		"tcg, kvm works":    {"tcg", nil, nil, "tcg", "asked for"},
		"auto, no device":   {"auto", fs.ErrNotExist, nil, "tcg", "file does not exist"},
		"kvm, no device":    {"kvm", fs.ErrNotExist, nil, "", "accelerator kvm: file does not exist"},
		"auto, slow":        {"auto", nil, slow, "tcg", "no vCPU runs under /dev/kvm: too slow"},
		"kvm, slow":         {"kvm", nil, slow, "", "accelerator kvm: no vCPU runs under /dev/kvm: too slow"},
		"auto, in use":      {"auto", nil, errors.New("busy"), "tcg", "busy"},
		"none of the three": {"hvf", nil, nil, "", `accelerator "hvf": not one of auto, kvm, tcg`},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			probe := kvmProbe{
				open: func() error { return test.open },
				run:  func(context.Context) error { return test.run },
			}
			accel, err := probe.choose(t.Context(), test.want, t.TempDir())
			got := accel.Reason
			if err != nil {
				got = err.Error()
			}
			if accel.Name != test.accel || got != test.reason {
				t.Errorf("got %q, %s", accel.Name, got)
			}
		})
	}
}

func TestChooseAccelCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	probe := kvmProbe{
		open: func() error { return nil },
		run: func(ctx context.Context) error {
			cancel()
			return ctx.Err()
		},
	}
	dir := t.TempDir()
	if _, err := probe.choose(ctx, "auto", dir); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if known := readHostFacts(dir).KVM; known != nil {
		t.Errorf("remembers %+v", known)
	}
}

// A step of the story is one start of matchlock.
func TestAccelIsRemembered(t *testing.T) {
	if !remembers {
		t.Skip("this host does not tell its boots apart")
	}
	var openErr, runErr error
	var ran int
	probe := kvmProbe{
		open: func() error { return openErr },
		run: func(context.Context) error {
			ran++
			return runErr
		},
	}
	dir := filepath.Join(t.TempDir(), "made", "when missing")
	expect := func(want, wantAccel string, wantRan int) {
		t.Helper()
		ran = 0
		accel, err := probe.choose(t.Context(), want, dir)
		if accel.Name != wantAccel || ran != wantRan {
			t.Errorf("got %+v, %v; asked %d times", accel, err, ran)
		}
	}

	openErr = os.ErrPermission // is not remembered
	expect("auto", "tcg", 0)
	openErr, runErr = nil, errors.New("busy") // nor is this
	expect("auto", "tcg", 1)
	runErr = &vcpuError{"too slow"}
	expect("auto", "tcg", 1)
	accel, err := probe.choose(t.Context(), "auto", dir)
	if want := (Accel{"tcg", "no vCPU runs under /dev/kvm: too slow"}); accel != want || err != nil {
		t.Errorf("remembered: got %+v, %v", accel, err)
	}
	runErr = nil
	expect("auto", "tcg", 0)
	expect("kvm", "kvm", 1) // asks again, and remembers that
	expect("auto", "kvm", 0)
	openErr = os.ErrPermission // is looked at each time
	expect("auto", "tcg", 0)
	openErr = nil
	expect("auto", "kvm", 0)

	facts := filepath.Join(dir, "host.json")
	for _, damage := range []string{"", "{", "null", `{"kvm": {"runs": true}}`, `{"boot_id": "another", "kvm": {"runs": true}}`} {
		if err := os.WriteFile(facts, []byte(damage), 0o600); err != nil {
			t.Fatal(err)
		}
		expect("auto", "kvm", 1)
	}
}

// Facts that cannot be written are no obstacle.
func TestFactsWithoutDirectory(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"", file, filepath.Join(file, "below")} {
		got := updateHostFacts(dir, func(f *hostFacts) { f.TSCKHz = 1e6 })
		if got.TSCKHz != 1e6 {
			t.Errorf("%q: got %+v", dir, got)
		}
		if diff := cmp.Diff(readHostFacts(dir), hostFacts{BootID: got.BootID}); diff != "" {
			t.Error(diff)
		}
	}
}

var remembers = runtime.GOOS == "linux"
