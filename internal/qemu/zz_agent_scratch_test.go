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
	ctx, cancel := context.WithTimeout(context.Background(), 120*time.Second)
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
	for range 3 {
		at := time.Now()
		r, err := m.Exec(ctx, fmt.Sprintf("head -c %d /dev/zero", 256<<20), &api.ExecOptions{Stdout: io.Discard})
		must(err)
		t.Logf("256 MiB out: %.0f MB/s (%v)", 256*1.048/time.Since(at).Seconds(), r.ExitCode)
	}
	for range 2 {
		at := time.Now()
		_, err := m.Exec(ctx, "cat >/dev/null", &api.ExecOptions{Stdin: io.LimitReader(zeros{}, 256<<20)})
		must(err)
		t.Logf("256 MiB in: %.0f MB/s", 256*1.048/time.Since(at).Seconds())
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }
