package qemu_test

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/matchlock/matchlock/api"
	"github.com/matchlock/matchlock/internal/boot"
	"github.com/matchlock/matchlock/internal/disk"
	"github.com/matchlock/matchlock/internal/qemu"
	"github.com/matchlock/matchlock/vm"
)

// needVM skips without MATCHLOCK_TEST_VM; with it, a VM that cannot be had is a
// failure.
func needVM(t testing.TB) {
	t.Helper()
	if os.Getenv("MATCHLOCK_TEST_VM") == "" {
		t.Skip("boots VMs: set MATCHLOCK_TEST_VM=1 (make test does)")
	}
}

// cacheDir is where kernels are kept between test runs.
func cacheDir(t testing.TB) string {
	dir := os.Getenv("MATCHLOCK_TEST_HOME")
	if dir == "" {
		cache, err := os.UserCacheDir()
		if err != nil {
			t.Fatal(err)
		}
		dir = filepath.Join(cache, "matchlock-test")
	}
	dir = filepath.Join(dir, "home", "cache")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return dir
}

var guestBinary = sync.OnceValues(func() ([]byte, error) {
	dir, err := os.MkdirTemp("", "matchlock-guest-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "init")
	build := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w", "-o", path, "github.com/matchlock/matchlock/cmd/matchlock-guest")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return out, err
	}
	return os.ReadFile(path)
})

func newBackend(t testing.TB) *qemu.Backend {
	t.Helper()
	return qemu.New(backendOptions(t))
}

func backendOptions(t testing.TB) qemu.Options {
	t.Helper()
	needVM(t)
	guest, err := guestBinary()
	if err != nil {
		t.Fatalf("guest binary: %v\n%s", err, guest)
	}
	cache := cacheDir(t)
	section := io.NewSectionReader(bytes.NewReader(guest), 0, int64(len(guest)))
	return qemu.Options{
		Guest:    func(context.Context) (*io.SectionReader, error) { return section, nil },
		CacheDir: cache,
		RunDir:   t.TempDir(),
		Boot: func(ctx context.Context, kernel string) (qemu.BootFiles, error) {
			files, err := boot.Prepare(ctx, boot.Options{Kernel: kernel, CacheDir: cache, Guest: section})
			if err != nil {
				return qemu.BootFiles{}, err
			}
			return qemu.BootFiles{Kernel: files.Kernel, Initramfs: files.Initramfs, HZ: files.HZ}, nil
		},
	}
}

// busyboxLayer makes a lower of Debian's static busybox.
func busyboxLayer(t testing.TB) string {
	t.Helper()
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Fatalf("%v (Debian package busybox-static)", err)
	}
	applets, err := exec.Command("/bin/busybox", "--list").Output()
	if err != nil {
		t.Fatal(err)
	}
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	add := func(h tar.Header, content []byte) {
		h.Size = int64(len(content))
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(content); err != nil {
			t.Fatal(err)
		}
	}
	add(tar.Header{Name: "bin/busybox", Mode: 0o755, Typeflag: tar.TypeReg}, busybox)
	for applet := range strings.FieldsSeq(string(applets)) {
		if applet != "busybox" {
			add(tar.Header{Name: "bin/" + applet, Linkname: "busybox", Typeflag: tar.TypeSymlink}, nil)
		}
	}
	add(tar.Header{Name: "etc/passwd", Mode: 0o644, Typeflag: tar.TypeReg}, []byte("root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"))
	add(tar.Header{Name: "tmp", Mode: 0o1777, Typeflag: tar.TypeDir}, nil)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "busybox.erofs")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	layer := disk.NewLayerWriter(f, disk.LayerOptions{})
	if err := layer.AddTar(&archive); err != nil {
		t.Fatal(err)
	}
	if _, err := layer.Close(); err != nil {
		t.Fatal(err)
	}
	return path
}

func overlayConfig(t testing.TB, id string) *vm.VMConfig {
	t.Helper()
	upper := filepath.Join(t.TempDir(), "upper.ext4")
	if err := disk.CreateScratch(context.Background(), upper, 1<<30, cacheDir(t)); err != nil {
		t.Fatal(err)
	}
	return &vm.VMConfig{
		ID:             id,
		OverlayEnabled: true, OverlayLowerPaths: []string{busyboxLayer(t)}, OverlayUpperPath: upper,
		LogPath: filepath.Join(t.TempDir(), "console.log"),
	}
}

func TestVMRunsACommand(t *testing.T) {
	backend := newBackend(t)
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	config := overlayConfig(t, "first")
	began := time.Now()
	m, err := backend.Create(ctx, config)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close(ctx)
	t.Logf("created %v", time.Since(began))
	if err := m.Start(ctx); err != nil {
		log, _ := os.ReadFile(config.LogPath)
		t.Fatalf("%v\nconsole:\n%s", err, log)
	}
	t.Logf("started %v", time.Since(began))
	result, err := m.Exec(ctx, "echo hello; uname -a; id; cat /proc/mounts; ls -l /dev; cat /etc/hosts; cat /proc/self/status | grep -i cap; date", nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("exec %v: %d\n%s%s", time.Since(began), result.ExitCode, result.Stdout, result.Stderr)
	for range 20 {
		at := time.Now()
		if _, err := m.Exec(ctx, "", &api.ExecOptions{Args: []string{"/bin/true"}}); err != nil {
			t.Fatal(err)
		}
		t.Logf("exec true %v", time.Since(at))
	}
	at := time.Now()
	if err := m.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	t.Logf("stop %v", time.Since(at))
}

// A real kernel that takes its timer for too slow says so in the words that are
// waited for, and the next boot does without its disk being the worse for it. It is
// told of a TSC so slow that what it measures is over at once, as on a busy host.
func TestVMBootsAgain(t *testing.T) {
	needVM(t)
	program, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		slow, boots int
		want        string
	}{
		"once":  {1, 2, ""},
		"never": {100, 3, "found no timer, in 3 boots"},
	} {
		t.Run(name, func(t *testing.T) {
			script := fmt.Sprintf(`#!/bin/bash
if [[ " $* " == *" -append "* ]]; then
	echo >> "$0.boots"
	[ $(wc -l < "$0.boots") -gt %d ] || set -- "${@/tsc_early_khz=/tsc_early_khz=1000 was=}"
fi
exec %s "$@"
`, test.slow, program)
			slow := filepath.Join(t.TempDir(), "qemu")
			if err := os.WriteFile(slow, []byte(script), 0o700); err != nil {
				t.Fatal(err)
			}
			t.Setenv("MATCHLOCK_QEMU", slow)
			options := backendOptions(t)
			options.Accel, options.NoJail = "tcg", true // a script needs the host's shell
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
			defer cancel()
			config := overlayConfig(t, "again")
			m, err := qemu.New(options).Create(ctx, config)
			if err != nil {
				t.Fatal(err)
			}
			defer m.Close(ctx)
			began := time.Now()
			err = m.Start(ctx)
			t.Logf("after %v: %v", time.Since(began), err)
			if boots, err := os.ReadFile(slow + ".boots"); len(boots) != test.boots {
				t.Errorf("it booted %d times, want %d (%v)", len(boots), test.boots, err)
			}
			if test.want != "" {
				if err == nil || !strings.Contains(err.Error(), test.want) {
					t.Errorf("got error %v, want %s", err, test.want)
				}
				return
			}
			if err != nil {
				log, _ := os.ReadFile(config.LogPath)
				t.Fatalf("%v\nconsole:\n%s", err, log)
			}
			if got, status := sh(t, m, nil, "echo kept > /file && cat /file"); got != "kept" || status != 0 {
				t.Errorf("got %q, status %d", got, status)
			}
		})
	}
}
