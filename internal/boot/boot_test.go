package boot

import (
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// A host is a file system without kernels, with an empty cache, on which apt knows nothing.
type host struct {
	t    *testing.T
	root string
	o    Options
}

func newHost(t *testing.T) *host {
	t.Setenv("PATH", t.TempDir())
	return &host{t: t, root: t.TempDir(), o: Options{CacheDir: filepath.Join(t.TempDir(), "cache [of *"), Guest: section(testGuest()), Arch: "amd64"}}
}

func (h *host) prepare() (*Files, error) { return prepare(h.t.Context(), h.o, h.root) }

// mustPrepare also checks that what it returns is whole.
func (h *host) mustPrepare() *Files {
	h.t.Helper()
	f, err := h.prepare()
	if err != nil {
		h.t.Fatal(err)
	}
	h.checkCache()
	for _, path := range []string{f.Kernel, f.Initramfs} {
		if !strings.HasPrefix(path, h.o.CacheDir) {
			h.t.Errorf("%s is outside the cache", path)
		}
	}
	return f
}

// file is a file's content and what changes when it is made anew.
func (h *host) file(path string) (content []byte, s stamp) {
	h.t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		h.t.Fatal(err)
	}
	return content, stampOf(path)
}

// checkCache looks for what must not be in a cache: files that others may read, and half-made ones.
func (h *host) checkCache() {
	h.t.Helper()
	err := filepath.WalkDir(h.o.CacheDir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if info.Mode().Perm()&0o077 != 0 {
			h.t.Errorf("%s has mode %v", path, info.Mode())
		}
		if strings.HasPrefix(d.Name(), ".") {
			h.t.Errorf("%s was left", path)
		}
		return nil
	})
	if err != nil {
		h.t.Error(err)
	}
}

func (h *host) wantError(want string) {
	h.t.Helper()
	f, err := h.prepare()
	if err == nil || !strings.Contains(err.Error(), want) {
		h.t.Errorf("got %+v and error %v, want error %q", f, err, want)
	}
}

func TestPrepareInstalled(t *testing.T) {
	h := newHost(t)
	installKernel(t, h.root, "6.1.0-07-cloud-amd64")
	installKernel(t, h.root, testRelease)
	writeTree(t, h.root, map[string][]byte{
		"boot/vmlinuz-6.9.0-cloud-amd64": []byte("no modules folder"),
		"boot/vmlinuz-6.9.1-amd64":       []byte("not a cloud kernel"),
		"boot/vmlinuz-6.9.2-cloud-arm64": []byte("not for us"),
	})
	f := h.mustPrepare()
	if f.Release != testRelease || f.HZ != 250 {
		t.Errorf("got release %q, HZ %d", f.Release, f.HZ)
	}
	if got, _ := h.file(f.Kernel); !bytes.Equal(got, testVmlinux()) {
		t.Errorf("%s is not the vmlinux that was packed", f.Kernel)
	}

	again := h.mustPrepare()
	if d := cmp.Diff(again, f); d != "" {
		t.Errorf("second time (-got +want):\n%s", d)
	}
	h.o.Guest = section(elfSpec{text: "other"}.bytes())
	if other := h.mustPrepare(); other.Initramfs == f.Initramfs || other.Kernel != f.Kernel {
		t.Errorf("with another guest got %+v after %+v", other, f)
	}
}

func TestPrepareInstalledChanges(t *testing.T) {
	h := newHost(t)
	path := installKernel(t, h.root, "6.1.0-07-cloud-amd64")
	first := h.mustPrepare()

	// A newer one is installed, then the package of that one is rebuilt with other modules.
	newPath := installKernel(t, h.root, testRelease)
	second := h.mustPrepare()
	if second.Release != testRelease {
		t.Errorf("got %q, want the newer %q", second.Release, testRelease)
	}
	writeTree(t, filepath.Join(h.root, "lib/modules", testRelease), map[string][]byte{"kernel/fs/fuse/fuse.ko": testModule("virtio", "")})
	third := h.mustPrepare()
	if third.Release != testRelease || third.Initramfs == second.Initramfs {
		t.Errorf("got %+v after %+v, want a new initramfs", third, second)
	}

	// Touched only: nothing is made anew.
	_, before := h.file(third.Kernel)
	if err := os.Chtimes(newPath, time.Now(), time.Now()); err != nil {
		t.Fatal(err)
	}
	if fourth := h.mustPrepare(); *fourth != *third {
		t.Errorf("got %+v, want %+v", fourth, third)
	}
	if _, after := h.file(third.Kernel); after != before {
		t.Error("the kernel was made anew")
	}

	// Both are removed: the cache still has them.
	for _, p := range []string{path, newPath} {
		if err := os.Remove(p); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.RemoveAll(filepath.Join(h.root, "lib")); err != nil {
		t.Fatal(err)
	}
	if fifth := h.mustPrepare(); *fifth != *third {
		t.Errorf("got %+v, want %+v", fifth, third)
	}
	if first.Release == third.Release {
		t.Error("there was one release only")
	}
}

func TestPrepareInstalledUnusable(t *testing.T) {
	h := newHost(t)
	installKernel(t, h.root, "6.1.0-07-cloud-amd64")
	first := h.mustPrepare()
	writeTree(t, h.root, map[string][]byte{
		"boot/vmlinuz-" + testRelease:                     []byte("garbage"),
		"lib/modules/" + testRelease + "/modules.builtin": nil,
	})
	var log bytes.Buffer
	h.o.Logger = logTo(&log)
	if got := h.mustPrepare(); *got != *first {
		t.Errorf("got %+v, want %+v", got, first)
	}
	if want := "installed kernel cannot be used"; !strings.Contains(log.String(), want) {
		t.Errorf("log is %q, without %q", log.String(), want)
	}
}

func TestPrepareNamed(t *testing.T) {
	vmlinux := testVmlinux()
	noPVH := elfSpec{text: "Linux version 6.2.0 x"}.bytes()
	image := le(append(make([]byte, 64), "Linux version 6.3.0 x"...), 56, []byte("ARM\x64"))
	tests := []struct {
		name    string
		file    []byte
		arch    string
		release string
		kind    string
		want    []byte // nil: the file as it is
		log     string
	}{
		{"vmlinux", vmlinux, "amd64", testRelease, "vmlinux", nil, "taken to have all drivers built in"},
		{"vmlinux with configuration", append(vmlinux, "IKCFG_ST"+string(packers["gz"]([]byte("CONFIG_HZ=1000\n")))...), "amd64", testRelease, "vmlinux", nil, ""},
		{"vmlinux without PVH", noPVH, "amd64", "6.2.0", "vmlinux", nil, "QEMU cannot start it uncompressed"},
		{"bzImage", bzImageOf(vmlinux, packers["zst"]), "amd64", testRelease, "vmlinux", vmlinux, ""},
		{"bzImage without PVH", bzImageOf(noPVH, packers["zst"]), "amd64", testRelease, "bzImage", nil, "no PVH entry"},
		{"bzImage that we cannot unpack", bzImageOf([]byte("\xfd7zXZ\x00\x00\x01\x69\x22\xde\x36\x02\x01\x04\x00\x21\x01\x14\x00\x8f\xe4\x03\x2d."), nil), "amd64", testRelease, "bzImage", nil, "stays packed"},
		{"arm64 Image", image, "arm64", "6.3.0", "Image", nil, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			h := newHost(t)
			var log bytes.Buffer
			h.o.Logger, h.o.Arch = logTo(&log), tt.arch
			h.o.Guest = section(elfSpec{machine: machines[tt.arch]}.bytes())
			h.o.Kernel = filepath.Join(h.root, "kernel")
			writeTree(t, h.root, map[string][]byte{"kernel": tt.file})
			f := h.mustPrepare()
			want := tt.file
			if tt.want != nil {
				want = tt.want
			}
			if got, _ := h.file(f.Kernel); !bytes.Equal(got, want) || filepath.Base(f.Kernel) != tt.kind {
				t.Errorf("got %s of %d bytes, want %s of %d", f.Kernel, len(got), tt.kind, len(want))
			}
			if f.Release != tt.release {
				t.Errorf("got release %q, want %q", f.Release, tt.release)
			}
			if strings.Contains(tt.name, "configuration") && f.HZ != 1000 {
				t.Errorf("got HZ %d, want 1000", f.HZ)
			}
			if !strings.Contains(log.String(), tt.log) {
				t.Errorf("log is %q, without %q", log.String(), tt.log)
			}
			if again := h.mustPrepare(); *again != *f {
				t.Errorf("second time got %+v, want %+v", again, f)
			}

			// A kernel that somebody named is not what others get.
			h.o.Kernel = ""
			h.wantError("no kernel for " + tt.arch)
		})
	}
}

// The user's own goes before what is installed, and what is named before both.
func TestPrepareOwn(t *testing.T) {
	h := newHost(t)
	installKernel(t, h.root, testRelease)
	h.o.Own = filepath.Join(h.root, "own")
	find := func(wantRelease string, wantOwn bool) {
		t.Helper()
		release, own, err := look(h.o, h.root)
		if release != wantRelease || own != wantOwn || err != nil {
			t.Errorf("look: got %q, %v, %v, want %q, %v", release, own, err, wantRelease, wantOwn)
		}
		f, err := h.prepare()
		if err != nil {
			t.Fatal(err)
		}
		if f.Release != wantRelease {
			t.Errorf("got %q, want %q", f.Release, wantRelease)
		}
	}
	find(testRelease, false)

	const ownRelease = "6.1.172-matchlock" // by number the older one
	own := elfSpec{notes: pvhNotes, text: "Linux version " + ownRelease + " x"}.bytes()
	config := append([]byte("IKCFG_ST"), packers["gz"]([]byte("CONFIG_HZ=100\n"))...)
	writeTree(t, h.root, map[string][]byte{"own": append(own, config...)})
	find(ownRelease, true) // from the file
	find(ownRelease, true) // from the cache
	if f := h.mustPrepare(); f.HZ != 100 {
		t.Errorf("got HZ %d, want 100", f.HZ)
	}

	named := h.o
	named.Kernel = filepath.Join(h.root, "boot", "vmlinuz-"+testRelease)
	if f, err := prepare(t.Context(), named, h.root); err != nil || f.Release != testRelease {
		t.Errorf("with another one named got %+v, %v", f, err)
	}

	// One that is no good is an error, not another kernel than its owner thinks.
	writeTree(t, h.root, map[string][]byte{"own": own[:len(own)/2]})
	want := fmt.Sprintf("kernel %q: the file is cut short", h.o.Own)
	h.wantError(want)
	if release, own, err := look(h.o, h.root); err == nil || err.Error() != want || !own {
		t.Errorf("look: got %q, %v, %v, want error %q", release, own, err, want)
	}

	if err := os.Remove(h.o.Own); err != nil {
		t.Fatal(err)
	}
	find(testRelease, false)
}

func TestPrepareNamedModules(t *testing.T) {
	h := newHost(t)
	elsewhere := t.TempDir()
	h.o.Kernel = installKernel(t, elsewhere, testRelease)
	link := filepath.Join(h.root, "link")
	if err := os.Symlink(h.o.Kernel, link); err != nil {
		t.Fatal(err)
	}
	own := h.mustPrepare()
	h.o.Kernel = link
	if linked := h.mustPrepare(); *linked != *own {
		t.Errorf("through a link got %+v, want %+v", linked, own)
	}
	var modules []string
	for _, e := range h.readInitramfs(own.Initramfs) {
		if strings.HasSuffix(e.name, ".ko") {
			modules = append(modules, e.name)
		}
	}
	if d := cmp.Diff(modules, testModuleNames); d != "" {
		t.Errorf("modules (-got +want):\n%s", d)
	}
}

func TestPrepareNamedModulesAppear(t *testing.T) {
	h := newHost(t)
	h.o.Kernel = filepath.Join(h.root, "vmlinux")
	writeTree(t, h.root, map[string][]byte{"vmlinux": testVmlinux()})
	without := h.mustPrepare()
	for name, data := range testModules() {
		writeTree(t, filepath.Join(h.root, "lib/modules", testRelease), map[string][]byte{name: data})
	}
	if with := h.mustPrepare(); with.Initramfs == without.Initramfs {
		t.Error("the modules were not seen")
	}
}

func TestPrepareNamedErrors(t *testing.T) {
	files := map[string][]byte{
		"text":      []byte("#!/bin/sh\n"),
		"arm64":     elfSpec{machine: elf.EM_AARCH64}.bytes(),
		"program":   elfSpec{notes: pvhNotes, text: "hello"}.bytes(),
		"corrupt":   le(bzImageOf(testVmlinux(), packers["lz4"]), 1024+64+8, uint64(1<<64-1)),
		"open":      testVmlinux(),
		"dir/x":     nil,
		"otherkind": bzImageOf([]byte("no ELF, but packed well"), packers["gz"]),
	}
	tests := []struct{ name, want string }{
		{"none", "no such file or directory"},
		{"dir", "not a regular file"},
		{"text", "not a Linux kernel image (neither ELF vmlinux nor bzImage)"},
		{"arm64", "built for arm64, not amd64"},
		{"program", "no Linux banner inside"},
		{"corrupt", "bzImage: payload: "},
		{"otherkind", "bzImage: payload: bad magic number"},
		{"open", "others may write to it (mode 0666)"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			h := newHost(t)
			writeTree(t, h.root, files)
			if err := os.Chmod(filepath.Join(h.root, "open"), 0o666); err != nil {
				t.Fatal(err)
			}
			h.o.Kernel = filepath.Join(h.root, tt.name)
			h.wantError(fmt.Sprintf("kernel %q: %s", h.o.Kernel, tt.want))
			h.checkCache()
		})
	}
	t.Run("modules lack a driver", func(t *testing.T) {
		h := newHost(t)
		h.o.Kernel = installKernel(t, h.root, testRelease)
		if err := os.Remove(filepath.Join(h.root, "lib/modules", testRelease, "kernel/fs/erofs/erofs.ko")); err != nil {
			t.Fatal(err)
		}
		h.wantError("has no erofs, neither as a module nor built in")
		h.checkCache()
	})
}

func TestPrepareOptions(t *testing.T) {
	tests := []struct {
		name   string
		change func(*Options)
		want   string
	}{
		{"no cache", func(o *Options) { o.CacheDir = "" }, "kernel cache: no folder given"},
		{"unknown architecture", func(o *Options) { o.Arch = "riscv64" }, `kernel for "riscv64": neither amd64 nor arm64`},
		{"no guest", func(o *Options) { o.Guest = nil }, "guest program: "},
		{"guest is no program", func(o *Options) { o.Guest = section([]byte("#!/bin/sh\n")) }, "guest program: "},
		{"guest for another machine", func(o *Options) { o.Arch = "arm64" }, "guest program: built for EM_X86_64, not arm64"},
		{"guest not static", func(o *Options) { o.Guest = section(elfSpec{interp: "/lib/ld.so\x00"}.bytes()) }, "guest program: not static"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			h := newHost(t)
			tt.change(&h.o)
			h.wantError(tt.want)
		})
	}
}

// Many at once, as processes would: each has its own lock descriptors.
func TestPrepareAtOnce(t *testing.T) {
	h := newHost(t)
	installKernel(t, h.root, testRelease)
	var wg sync.WaitGroup
	results := make([]*Files, 8)
	for i := range results {
		wg.Go(func() {
			f, err := h.prepare()
			if err != nil {
				t.Error(err)
				return
			}
			results[i] = f
		})
	}
	wg.Wait()
	h.checkCache()
	for _, f := range results[1:] {
		if d := cmp.Diff(f, results[0]); d != "" {
			t.Errorf("results differ (-got +want):\n%s", d)
		}
	}
}

func TestPrepareCancelled(t *testing.T) {
	h := newHost(t)
	installKernel(t, h.root, testRelease)
	ctx, cancel := context.WithCancelCause(t.Context())
	because := errors.New("changed my mind")
	h.o.Progress = func(phase string, done, total int64) { cancel(because) }
	if _, err := prepare(ctx, h.o, h.root); !errors.Is(err, because) && !errors.Is(err, context.Canceled) {
		t.Errorf("got error %v", err)
	}
	h.checkCache()
}

func BenchmarkPrepareWarm(b *testing.B) {
	root := b.TempDir()
	installKernel(b, root, testRelease)
	o := Options{CacheDir: b.TempDir(), Guest: section(elfSpec{text: string(make([]byte, 4<<20))}.bytes()), Arch: "amd64"}
	for b.Loop() {
		if _, err := prepare(b.Context(), o, root); err != nil {
			b.Fatal(err)
		}
	}
}
