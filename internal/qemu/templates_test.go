package qemu

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/matchlock/matchlock/api"
	"github.com/matchlock/matchlock/internal/hostfs"
)

// lastingShape is one of which all files are there.
func lastingShape(t *testing.T, vcpus int) shape {
	t.Helper()
	file := func(name string) hostfs.FileID {
		path := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(path, []byte(name), 0o600); err != nil {
			t.Fatal(err)
		}
		id, err := hostfs.Identify(path)
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	return shape{
		QEMU: file("qemu"), Kernel: file("kernel"), Initramfs: file("initramfs"), Layers: []hostfs.FileID{file("layer0"), file("layer1")},
		VCPUs: vcpus, MemoryMB: 64, Upper: 16 << 20, Accel: accelTCG,
	}
}

func lastUsed(t *testing.T, dir string, ago time.Duration) {
	t.Helper()
	when := time.Now().Add(-ago)
	if err := os.Chtimes(filepath.Join(dir, templateRecord), when, when); err != nil {
		t.Fatal(err)
	}
}

// names are the templates' ids, sorted.
func names(templates []api.Template) (ids []string) {
	for _, t := range templates {
		ids = append(ids, t.ID)
	}
	slices.Sort(ids)
	return ids
}

func TestTemplates(t *testing.T) {
	folder := templateFolder(t)
	if got, err := Templates(folder); len(got) != 0 || err != nil {
		t.Errorf("where there are none: %v, %v", got, err)
	}
	before, after := lastingShape(t, 1), lastingShape(t, 2)
	memory, state, upper := machineFiles(t)
	made, err := makeTemplate(t.Context(), folder, after, origin{"busybox", "sha256:1"}, memory, state, upper)
	if err != nil {
		t.Fatal(err)
	}
	made.Close()
	lastUsed(t, makeTestTemplate(t, folder, before).dir, time.Hour)
	if err := os.Mkdir(filepath.Join(folder, ".new-1"), 0o700); err != nil {
		t.Fatal(err)
	}

	got, err := Templates(folder)
	if err != nil || len(got) != 2 {
		t.Fatalf("Templates = %v, %v; want 2", got, err)
	}
	for i := range got {
		if got[i].Size < 4096 || got[i].Size > 1<<20 {
			t.Errorf("%s takes %d bytes", got[i].ID, got[i].Size)
		}
		if ago := time.Since(got[i].Used) - time.Duration(i)*time.Hour; ago < 0 || ago > time.Minute {
			t.Errorf("%s was used %v", got[i].ID, got[i].Used)
		}
		got[i].Size, got[i].Used = 0, time.Time{}
	}
	want := []api.Template{
		{ID: after.name(), Image: "busybox", ImageDigest: "sha256:1", CPUs: 2, Memory: 64 << 20, DiskSize: 16 << 20, Accel: accelTCG},
		{ID: before.name(), CPUs: 1, Memory: 64 << 20, DiskSize: 16 << 20, Accel: accelTCG},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}

	if err := os.WriteFile(filepath.Join(folder, before.name(), templateRecord), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err = Templates(folder)
	if err != nil || len(got) != 2 || !strings.HasPrefix(got[0].Damage, templateRecord+": invalid character") {
		t.Errorf("with a damaged record: %+v, %v", got, err)
	}
}

// TestStaleTemplates: a template is of no use when a file that it was made from
// is not what it was, and goes.
func TestStaleTemplates(t *testing.T) {
	for name, test := range map[string]struct {
		change func(s shape) error
		want   string
	}{
		"kernel gone":     {func(s shape) error { return os.Remove(s.Kernel.Path) }, "/kernel is gone"},
		"qemu replaced":   {func(s shape) error { return os.WriteFile(s.QEMU.Path, []byte("other"), 0o600) }, "/qemu has changed"},
		"another guest":   {func(s shape) error { return os.Truncate(s.Initramfs.Path, 1) }, "/initramfs has changed"},
		"a layer removed": {func(s shape) error { return os.Remove(s.Layers[1].Path) }, "/layer1 is gone"},
	} {
		t.Run(name, func(t *testing.T) {
			folder, s := templateFolder(t), lastingShape(t, 1)
			makeTestTemplate(t, folder, s)
			if removed, err := PruneTemplates(t.Context(), folder, false); len(removed) != 0 || err != nil {
				t.Errorf("before: removed %v, %v", removed, err)
			}
			if err := test.change(s); err != nil {
				t.Fatal(err)
			}
			removed, err := PruneTemplates(t.Context(), folder, false)
			if err != nil || len(removed) != 1 || !strings.HasSuffix(removed[0].Stale, test.want) {
				t.Errorf("removed %+v, %v; want one of which %q", removed, err, test.want)
			}
		})
	}
}

// TestVerifyTemplates damages one of two templates, each file of it in turn.
func TestVerifyTemplates(t *testing.T) {
	for _, name := range []string{templateMemory, templateUpper, templateState, templateRecord} {
		folder := templateFolder(t)
		sound, damaged := lastingShape(t, 1), lastingShape(t, 2)
		makeTestTemplate(t, folder, sound)
		dir := makeTestTemplate(t, folder, damaged).dir
		lastUsed(t, dir, time.Hour)
		all, err := VerifyTemplates(t.Context(), folder)
		if err != nil || len(all) != 2 || all[0].Damage+all[1].Damage != "" {
			t.Errorf("%s: before: %+v, %v", name, all, err)
		}
		if len(all) == 2 && time.Since(all[1].Used) < time.Hour {
			t.Errorf("%s: to verify it counts as use", name)
		}
		f, err := os.OpenFile(filepath.Join(dir, name), os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt([]byte("x"), 0); err != nil {
			t.Fatal(err)
		}
		f.Close()

		all, err = VerifyTemplates(t.Context(), folder)
		i := slices.IndexFunc(all, func(t api.Template) bool { return t.ID == damaged.name() })
		if err != nil || len(all) != 2 || i < 0 {
			t.Fatalf("%s: %+v, %v", name, all, err)
		}
		if all[i].Damage == "" || all[1-i].Damage != "" {
			t.Errorf("%s: damage is %q and %q", name, all[i].Damage, all[1-i].Damage)
		}
		if got := contents(t, folder); len(got) != 1 || got[0] != sound.name() {
			t.Errorf("%s: left: %q", name, got)
		}
	}
}

func TestTemplatesEnd(t *testing.T) {
	folder := templateFolder(t)
	makeTestTemplate(t, folder, lastingShape(t, 1))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if all, err := VerifyTemplates(ctx, folder); len(all) != 0 || !errors.Is(err, context.Canceled) {
		t.Errorf("verified after the end: %v, %v", all, err)
	}
	if removed, err := PruneTemplates(ctx, folder, true); len(removed) != 0 || !errors.Is(err, context.Canceled) {
		t.Errorf("removed after the end: %v, %v", removed, err)
	}
}

func TestPruneTemplates(t *testing.T) {
	folder := templateFolder(t)
	if removed, err := PruneTemplates(t.Context(), folder, false); len(removed) != 0 || err != nil {
		t.Errorf("where there are none: %v, %v", removed, err)
	}
	kept, old := lastingShape(t, 1), lastingShape(t, 2)
	makeTestTemplate(t, folder, kept)
	unused := makeTestTemplate(t, folder, old)
	lastUsed(t, unused.dir, templateAge+time.Hour)
	for _, left := range []string{".new-1", ".dead-2", "no-record"} {
		if err := os.Mkdir(filepath.Join(folder, left), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	removed, err := PruneTemplates(t.Context(), folder, false)
	want := []string{old.name(), "no-record"}
	slices.Sort(want)
	if diff := cmp.Diff(want, names(removed)); err != nil || diff != "" {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
	if got := contents(t, folder); len(got) != 1 || got[0] != kept.name() {
		t.Errorf("left: %q, want %q", got, kept.name())
	}
	// Whoever uses one that is removed goes on.
	got := make([]byte, 4)
	if _, err := unused.Memory.ReadAt(got, 20<<20); err != nil || !bytes.Equal(got, []byte("what")) {
		t.Errorf("memory has %q, %v", got, err)
	}
	// All but those that are being made.
	making := filepath.Join(folder, ".new-3")
	if err := os.Mkdir(making, 0o700); err != nil {
		t.Fatal(err)
	}
	lock, err := hostfs.Lock(t.Context(), making, os.O_RDONLY, syscall.LOCK_EX)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if removed, err := PruneTemplates(t.Context(), folder, true); err != nil || len(removed) != 1 || removed[0].ID != kept.name() {
		t.Errorf("all: %v, %v", removed, err)
	}
	if got := contents(t, folder); len(got) != 1 || got[0] != filepath.Base(making) {
		t.Errorf("left: %q", got)
	}
}
