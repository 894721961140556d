package boot

import (
	"bytes"
	"debug/elf"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// needVMTests skips a test that needs apt with its lists, cpio, and root for a small file system.
func needVMTests(t *testing.T) {
	if os.Getenv("MATCHLOCK_TEST_VM") != "1" {
		t.Skip("fetches a kernel, needs root: runs when MATCHLOCK_TEST_VM=1")
	}
}

// Debian's package as it is today, from the archive.
func TestRealFetch(t *testing.T) {
	needVMTests(t)
	o := Options{CacheDir: filepath.Join(t.TempDir(), "cache"), Guest: section(testGuest()), Arch: "amd64"}
	noKernels := t.TempDir()
	start := time.Now()
	f, err := prepare(t.Context(), o, noKernels)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("cold: %v, %s", time.Since(start), f.Release)

	start = time.Now()
	again, err := prepare(t.Context(), o, noKernels)
	if err != nil || *again != *f {
		t.Errorf("second time got %+v, %v, want %+v", again, err, f)
	}
	t.Logf("warm: %v", time.Since(start))

	if !strings.HasSuffix(f.Release, "-cloud-amd64") || f.HZ != 250 {
		t.Errorf("got release %q, HZ %d", f.Release, f.HZ)
	}
	kernel, err := os.Open(f.Kernel)
	if err != nil {
		t.Fatal(err)
	}
	defer kernel.Close()
	vmlinux, err := elf.NewFile(kernel)
	if err != nil || vmlinux.Machine != elf.EM_X86_64 {
		t.Fatalf("%s: %v, %v", f.Kernel, vmlinux, err)
	}
	if pvh, err := hasPVH(kernel); !pvh || err != nil {
		t.Errorf("%s: PVH %v, %v", f.Kernel, pvh, err)
	}
	if release, err := findRelease(kernel, 1<<30); release != f.Release || err != nil {
		t.Errorf("vmlinux is of release %q, %v; its header says %q", release, err, f.Release)
	}

	list := exec.Command("cpio", "-t", "--quiet")
	list.Stdin, err = os.Open(f.Initramfs)
	if err != nil {
		t.Fatal(err)
	}
	out, err := list.Output()
	if err != nil {
		t.Fatalf("cpio: %v", err)
	}
	got := strings.Fields(string(out))
	position := map[string]int{}
	for i, name := range got {
		folder, base := filepath.Split(name)
		if _, module, ok := strings.Cut(base, "-"); ok {
			name = folder + module
		}
		position[name] = i + 1
	}
	// Debian 12 has virtio_console and fuse as modules, too.
	for _, want := range []string{"init", "dev/console", "modules/virtio_mmio.ko", "modules/virtio_blk.ko", "modules/erofs.ko", "modules/overlay.ko", "modules/later/virtio_net.ko"} {
		if position[want] == 0 {
			t.Errorf("%s is not in %q", want, got)
		}
	}
	// Which of virtio and virtio_ring needs the other depends on the kernel's version: of Debian's two updates of 6.1 one has it this way and one that.
	for _, order := range [][2]string{{"modules/virtio_ring.ko", "modules/virtio_mmio.ko"}, {"modules/virtio.ko", "modules/virtio_mmio.ko"}, {"modules/later/failover.ko", "modules/later/virtio_net.ko"}} {
		if position[order[0]] > position[order[1]] {
			t.Errorf("%s comes after %s in %q", order[0], order[1], got)
		}
	}
}

// apt without its lists, as on a fresh image.
func TestRealNoLists(t *testing.T) {
	needVMTests(t)
	config := filepath.Join(t.TempDir(), "apt.conf")
	if err := os.WriteFile(config, []byte(`Dir::State::lists "`+t.TempDir()+`";`), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("APT_CONFIG", config)
	_, err := prepare(t.Context(), Options{CacheDir: filepath.Join(t.TempDir(), "cache"), Guest: section(testGuest()), Arch: "amd64"}, t.TempDir())
	if notFound, ok := errors.AsType[*NotFoundError](err); !ok || !strings.Contains(notFound.Hint(), "apt-get update") {
		t.Errorf("got error %#v", err)
	}
}

// A real compressor's x86 filter, as kernels packed by xz have it.
func TestRealXZ(t *testing.T) {
	needVMTests(t)
	pack := func(data []byte) []byte {
		cmd := exec.Command("xz", "--check=crc32", "--x86", "--lzma2=dict=32MiB", "-c")
		cmd.Stdin = bytes.NewReader(data)
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("xz: %v", err)
		}
		return out
	}
	h := newHost(t)
	t.Setenv("PATH", "/usr/bin:/bin")
	h.o.Kernel = filepath.Join(h.root, "bzImage")
	writeTree(t, h.root, map[string][]byte{"bzImage": bzImageOf(testVmlinux(), pack)})
	if f := h.mustPrepare(); filepath.Base(f.Kernel) != "bzImage" {
		t.Errorf("got %+v", f)
	}
}

// A disk that is full at any stage: a clear error, and no more on it than before.
func TestRealFullDisk(t *testing.T) {
	needVMTests(t)
	for _, size := range []string{"16k", "64k", "128k", "256k"} {
		t.Run(size, func(t *testing.T) {
			h := newHost(t)
			installKernel(t, h.root, testRelease)
			h.mustFail(os.Mkdir(h.o.CacheDir, 0o700), syscall.Mount("tmpfs", h.o.CacheDir, "tmpfs", 0, "mode=0700,size="+size))
			defer func() { h.mustFail(syscall.Unmount(h.o.CacheDir, 0)) }()
			h.o.Kernel = filepath.Join(h.root, "boot", "vmlinuz-"+testRelease)
			h.o.Guest = section(elfSpec{text: strings.Repeat("guest", 20_000)}.bytes())
			_, err := h.prepare()
			if !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), "no space left on device") {
				t.Errorf("got error %v", err)
			}
			h.checkCache()

			// With room again all is well.
			h.mustFail(syscall.Mount("", h.o.CacheDir, "", syscall.MS_REMOUNT, "size=8m"))
			want := newHost(t)
			want.root, want.o.Guest, want.o.Kernel = h.root, h.o.Guest, h.o.Kernel
			got, _ := h.file(h.mustPrepare().Initramfs)
			wanted, _ := want.file(want.mustPrepare().Initramfs)
			if d := cmp.Diff(got, wanted); d != "" {
				t.Error("not the initramfs that an empty disk gets")
			}
		})
	}
}
