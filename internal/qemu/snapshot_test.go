package qemu_test

import (
	"context"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/matchlock/matchlock/api"
	"github.com/matchlock/matchlock/internal/qemu"
	"github.com/matchlock/matchlock/vm"
)

// started returns a machine that has been started, and booted with no data.
func started(t *testing.T, options qemu.Options, config *vm.VMConfig) vm.Machine {
	t.Helper()
	m, err := qemu.New(options).Create(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	if err := m.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := m.(vm.Booter).Boot(t.Context(), &api.BootData{}); err != nil {
		t.Fatal(err)
	}
	return m
}

// shell runs a command line that must succeed.
func shell(t *testing.T, m vm.Machine, line string) string {
	t.Helper()
	result, err := m.Exec(t.Context(), line, nil)
	if err != nil {
		t.Fatalf("%s: %v", line, err)
	}
	if result.ExitCode != 0 {
		t.Fatalf("%s: status %d, %s", line, result.ExitCode, result.Stderr)
	}
	return strings.TrimSpace(string(result.Stdout))
}

func snapshotOf(t *testing.T, m vm.Machine) *vm.Snapshot {
	t.Helper()
	s, err := m.(vm.Snapshotter).Snapshot(t.Context(), vm.SnapshotOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// copyOf starts a machine that goes on from a snapshot.
func copyOf(t *testing.T, s *vm.Snapshot, of *vm.VMConfig, id string) (vm.Machine, *vm.VMConfig) {
	t.Helper()
	options := backendOptions(t)
	options.Snapshot = s
	config := *of
	config.ID, config.Hostname = id, ""
	config.OverlayUpperPath = filepath.Join(t.TempDir(), "upper.ext4")
	config.LogPath = filepath.Join(t.TempDir(), "console.log")
	return started(t, options, &config), &config
}

// What is the same in a machine and in copies of it, four deep, and what is not.
func TestVMSnapshot(t *testing.T) {
	config := overlayConfig(t, "original")
	original := started(t, backendOptions(t), config)
	shell(t, original, `cat /proc/sys/kernel/random/boot_id; echo before > /file; sync
		(i=0; while :; do i=$((i+1)); echo $i > /tmp/new; mv /tmp/new /tmp/counter; usleep 20000; done) >/dev/null 2>&1 </dev/null &`)
	const identity = `hostname; cat /etc/machine-id /proc/sys/kernel/random/boot_id; grep -v localhost /etc/hosts; head -c 16 /dev/urandom | xxd -p; cat /proc/sys/kernel/random/uuid`
	seen := map[string]string{}
	mine := func(name string, m vm.Machine) {
		t.Helper()
		for i, line := range strings.Split(shell(t, m, identity), "\n") {
			if other, ok := seen[line]; ok {
				t.Errorf("%s has in line %d what %s has: %s", name, i, other, line)
			}
			seen[line] = name
		}
		if got := shell(t, m, "cat /file"); got != "before" {
			t.Errorf("%s: the file has %q", name, got)
		}
		shell(t, m, "a=$(cat /tmp/counter); for i in $(seq 500); do test $(cat /tmp/counter) -gt $a && exit; usleep 20000; done; echo stands still >&2; exit 1")
		now := time.Now()
		var at int64
		fmt.Sscan(shell(t, m, "date +%s"), &at)
		if off := time.Unix(at, 0).Sub(now); off < -3*time.Second || off > 3*time.Second {
			t.Errorf("%s: its clock is %v off", name, off)
		}
	}
	machine, last := original, config
	for depth := range 4 {
		snapshot := snapshotOf(t, machine)
		next, nextConfig := copyOf(t, snapshot, last, fmt.Sprintf("copy-%d", depth))
		twin, _ := copyOf(t, snapshot, last, fmt.Sprintf("twin-%d", depth))
		shell(t, next, "echo next > /own; sync")
		shell(t, twin, "echo twin > /own; sync")
		if got := shell(t, next, "cat /own") + shell(t, twin, "cat /own"); got != "nexttwin" {
			t.Errorf("depth %d: the copies' own files have %q", depth, got)
		}
		mine(fmt.Sprintf("twin %d", depth), twin)
		twin.Close(context.Background())
		machine, last = next, nextConfig
	}
	mine("original", original)
	mine("last", machine)
	if names := slices.Sorted(maps.Keys(seen)); len(names) < 6*6 {
		t.Errorf("saw %d different things, want 36: %q", len(names), names)
	}
	// The disk is whole on the next start too, from all its layers.
	if err := machine.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	again := started(t, backendOptions(t), last)
	if got := shell(t, again, "cat /file /own"); got != "before\nnext" {
		t.Errorf("after a stop the files have %q", got)
	}
}

// Many snapshots leave few layers, and the disk whole: in the machine, in a copy
// of the moment between, and after a stop.
func TestVMFlatten(t *testing.T) {
	const rounds = 20
	config := overlayConfig(t, "original")
	original := started(t, backendOptions(t), config)
	shell(t, original, "mkdir /files")
	var middle vm.Machine
	for i := range rounds {
		shell(t, original, fmt.Sprintf("head -c 200000 /dev/urandom > /files/%d; md5sum /files/%d >> /sums; sync", i, i))
		s := snapshotOf(t, original)
		if i == rounds/2 {
			middle, _ = copyOf(t, s, config, "middle")
		}
		s.Close()
	}
	whole := func(name string, m vm.Machine, files int) {
		t.Helper()
		// From the disk, not from what the kernel remembers.
		out := shell(t, m, "echo 3 > /proc/sys/vm/drop_caches 2>/dev/null; md5sum -c /sums | grep -c OK")
		if out != fmt.Sprint(files) {
			t.Errorf("%s has %s whole files, want %d", name, out, files)
		}
	}
	whole("original", original, rounds)
	whole("middle", middle, rounds/2+1)
	if err := original.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	layers, err := qemu.LayerPaths(config.OverlayUpperPath)
	if err != nil || len(layers) < 2 || len(layers) > 10 {
		t.Errorf("%d layers are left, %v", len(layers), err)
	}
	whole("original, started again", started(t, backendOptions(t), config), rounds)
}
