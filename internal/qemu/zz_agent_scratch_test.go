package qemu_test

import (
	"context"
	"slices"
	"testing"
	"time"
	"fmt"
	"io"

	"github.com/matchlock/matchlock/api"
)

func TestZZScratch(t *testing.T) {
	backend := newBackend(t)
	ctx, cancel := context.WithTimeout(context.Background(), 280*time.Second)
	defer cancel()
	config := overlayConfig(t, "first")
	m, err := backend.Create(ctx, config)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close(ctx)
	if err := m.Start(ctx); err != nil {
		t.Fatal(err)
	}
	median := func(name string, n int, f func() time.Duration) {
		var all []time.Duration
		for range n {
			at := time.Now()
			d := f()
			if d == 0 {
				d = time.Since(at)
			}
			all = append(all, d)
		}
		slices.Sort(all)
		t.Logf("%s: min %v median %v max %v", name, all[0], all[n/2], all[n-1])
	}
	must := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	median("list /tmp", 40, func() time.Duration { _, err := m.ListFiles(ctx, "/tmp"); must(err); return 0 })
	median("exec true", 40, func() time.Duration { _, err := m.Exec(ctx, "", &api.ExecOptions{Args: []string{"/bin/true"}}); must(err); return 0 })
	median("exec true duration", 40, func() time.Duration { r, err := m.Exec(ctx, "", &api.ExecOptions{Args: []string{"/bin/true"}}); must(err); return r.Duration })
	median("exec nonexist", 40, func() time.Duration { _, err := m.Exec(ctx, "", &api.ExecOptions{Args: []string{"nonexistent"}}); must(err); return 0 })
	sh := func(cmd string) {
		at := time.Now()
		r, err := m.Exec(ctx, cmd, &api.ExecOptions{})
		must(err)
		t.Logf("%s: %v guest %v\n%s%s", cmd, time.Since(at), r.Duration, r.Stdout, r.Stderr)
	}
	sh("time dd if=/dev/zero of=/dev/null bs=64k count=1024")
	sh("time sh -c 'dd if=/dev/zero bs=64k count=1024 | dd of=/dev/null bs=64k'")
	for range 3 {
		at := time.Now()
		_, err := m.Exec(ctx, fmt.Sprintf("dd if=/dev/zero bs=64k count=%d", 1024), &api.ExecOptions{Stdout: io.Discard})
		must(err)
		t.Logf("64 MiB out: %.0f MB/s", 64*1.048/time.Since(at).Seconds())
		sh("cat /proc/1/stat | cut -d' ' -f14,15; cat /proc/stat | head -1; cat /proc/interrupts | tail -30; ls /proc/1/task | wc -l; uptime")
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }
