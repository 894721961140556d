package boot

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func logTo(w io.Writer) *slog.Logger { return slog.New(slog.NewTextHandler(w, nil)) }

func TestCacheRefused(t *testing.T) {
	tests := []struct {
		name  string
		spoil func(dir string) error
		want  string
	}{
		{"writable for all", func(dir string) error { return os.Chmod(dir, 0o777) }, "may be written by others (mode 0777)"},
		{"writable for the group", func(dir string) error { return os.Chmod(filepath.Join(dir, "kernels"), 0o770) }, "may be written by others (mode 0770)"},
		{"initramfs", func(dir string) error { return os.Chmod(filepath.Join(dir, "initramfs"), 0o702) }, "may be written by others (mode 0702)"},
		{"a file", func(dir string) error {
			return errors.Join(os.RemoveAll(dir), os.WriteFile(dir, nil, 0o600))
		}, "not a folder"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			h := newHost(t)
			installKernel(t, h.root, testRelease)
			h.mustPrepare()
			if err := tt.spoil(h.o.CacheDir); err != nil {
				t.Fatal(err)
			}
			h.wantError(tt.want)
		})
	}
}

func TestCacheOfAnother(t *testing.T) {
	if os.Geteuid() != 0 {
		// The root folder belongs to somebody else, then.
		if _, err := openCache("/"); err == nil || !strings.Contains(err.Error(), "belongs to user 0") {
			t.Errorf("got error %v", err)
		}
		return
	}
	h := newHost(t)
	h.mustFail(os.MkdirAll(h.o.CacheDir, 0o700), os.Chown(h.o.CacheDir, 1234, 1234))
	h.wantError("belongs to user 1234, and this is user 0")

	h.mustFail(os.Chown(h.o.CacheDir, 0, 0))
	h.o.Kernel = installKernel(t, h.root, testRelease)
	h.mustFail(os.Chown(h.o.Kernel, 1234, 1234))
	h.wantError("belongs to user 1234, neither to root nor to 0")
}

// mustFail fails the test when any of the steps did.
func (h *host) mustFail(steps ...error) {
	h.t.Helper()
	if err := errors.Join(steps...); err != nil {
		h.t.Fatal(err)
	}
}

// What a crash may leave is noticed and made anew.
func TestCacheRepaired(t *testing.T) {
	tests := []struct {
		name  string
		spoil func(h *host, f *Files) error
	}{
		{"kernel cut", func(h *host, f *Files) error { return os.Truncate(f.Kernel, 10) }},
		{"kernel gone", func(h *host, f *Files) error { return os.Remove(f.Kernel) }},
		{"module cut", func(h *host, f *Files) error {
			return os.Truncate(filepath.Join(filepath.Dir(f.Kernel), testModuleNames[3]), 0)
		}},
		{"kernel's record empty", func(h *host, f *Files) error {
			return os.Truncate(filepath.Join(filepath.Dir(f.Kernel), "kernel.json"), 0)
		}},
		{"source's record empty", func(h *host, f *Files) error {
			c, err := openCache(h.o.CacheDir)
			if err != nil {
				return err
			}
			return os.Truncate(c.sourcePath(filepath.Join(h.root, "boot/vmlinuz-"+testRelease)), 0)
		}},
		{"initramfs cut", func(h *host, f *Files) error { return os.Truncate(f.Initramfs, 4096) }},
		{"initramfs a folder", func(h *host, f *Files) error {
			return errors.Join(os.Remove(f.Initramfs), os.Mkdir(f.Initramfs, 0o700))
		}},
		{"left by one that was killed", func(h *host, f *Files) error {
			return os.MkdirAll(filepath.Join(h.o.CacheDir, "kernels", ".new-123", "modules"), 0o700)
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			h := newHost(t)
			path := installKernel(t, h.root, testRelease)
			f := h.mustPrepare()
			kernel, _ := h.file(f.Kernel)
			initramfs, _ := h.file(f.Initramfs)
			h.mustFail(tt.spoil(h, f))
			if strings.HasPrefix(tt.name, "left by") { // seen to when there is work
				h.mustFail(os.Chtimes(path, time.Now(), time.Now()))
			}
			if tt.name == "initramfs a folder" {
				h.wantError("initramfs: ")
				return
			}
			again := h.mustPrepare()
			if *again != *f {
				t.Errorf("got %+v, want %+v", again, f)
			}
			gotKernel, _ := h.file(again.Kernel)
			gotInitramfs, _ := h.file(again.Initramfs)
			if d := cmp.Diff(gotKernel, kernel) + cmp.Diff(gotInitramfs, initramfs); d != "" {
				t.Error("not the same as before")
			}
		})
	}
}

func TestPrune(t *testing.T) {
	h := newHost(t)
	installKernel(t, h.root, testRelease)
	f := h.mustPrepare()
	dir := filepath.Dir(f.Initramfs)
	age := func(name string, days int) {
		path := filepath.Join(dir, name)
		when := time.Now().Add(-time.Duration(days) * 24 * time.Hour)
		h.mustFail(os.WriteFile(path, nil, 0o600), os.Chtimes(path, when, when))
	}
	age("2.cpio", 2)
	age("3.cpio", 3)
	age("4.cpio", 4)
	age("5.cpio", 5)
	age(".new-old", 2)
	age(".new-young", 0)

	// The one in use looks old, but was just used.
	when := time.Now().Add(-30 * 24 * time.Hour)
	h.mustFail(os.Chtimes(f.Initramfs, when, when))
	if _, err := h.prepare(); err != nil {
		t.Fatal(err)
	}
	h.o.Guest = section(elfSpec{text: "new"}.bytes())
	newer, err := h.prepare()
	if err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(dir)
	h.mustFail(err)
	var got []string
	for _, e := range entries {
		got = append(got, e.Name())
	}
	want := []string{".new-young", "2.cpio", "3.cpio", filepath.Base(f.Initramfs), filepath.Base(newer.Initramfs)}
	slices.Sort(want)
	if d := cmp.Diff(got, want); d != "" {
		t.Errorf("left (-got +want):\n%s", d)
	}
}

func TestLockKernelsCancelled(t *testing.T) {
	h := newHost(t)
	c, err := openCache(h.o.CacheDir)
	if err != nil {
		t.Fatal(err)
	}
	unlock, err := c.lockKernels(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := c.lockKernels(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got error %v", err)
	}
	unlock()
	unlock, err = c.lockKernels(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	unlock()
}

func TestCompareReleases(t *testing.T) {
	ordered := []string{"5.10.0-30-cloud-amd64", "6.1.0-9-cloud-amd64", "6.1.0-10-cloud-amd64", "6.1.0-56-cloud-amd64", "6.12.48+deb13-cloud-amd64", "6.12.107+deb13-cloud-amd64", "10.0"}
	for i, a := range ordered {
		for j, b := range ordered {
			got := compareReleases(a, b)
			if (got < 0) != (i < j) || (got > 0) != (i > j) {
				t.Errorf("compare %s, %s: got %d", a, b, got)
			}
		}
	}
}
