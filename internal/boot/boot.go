// Package boot answers one question: which files does a guest boot from?
//
// [Prepare] finds a Linux kernel, cuts the uncompressed vmlinux out of it, chooses the modules that a guest of ours
// needs, packs them with the guest's /init into an initramfs, and keeps the results in a cache. What is in the cache
// already costs a few milliseconds.
//
// The kernel is the one that the caller names; else the user's own where there is one (`make kernel` builds such); else
// the newest of those in the cache and the installed Debian cloud kernels; else the package linux-image-cloud-ARCH,
// fetched by apt (which checks its signature) but not installed. None of it needs root.
//
// The cache, below Options.CacheDir:
//
//	kernels/RELEASE-SUM/        one kernel: vmlinux, modules/, modules/later/ and kernel.json, which describes them
//	initramfs/SUM.cpio          one initramfs
//
// Everything in it is made aside and renamed into place, so that processes at work at the same time, or one that
// is killed, do no harm. Package boot starts no machine and builds no kernel command line.
package boot

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os/exec"
	"path/filepath"
	"runtime"
)

// Options say what to boot. The zero value lacks CacheDir and Guest.
type Options struct {
	// Kernel is the path of a vmlinux, a bzImage or an arm64 Image that must be used. Empty: find one.
	// Its modules are expected in lib/modules/RELEASE of the tree whose boot folder it is in, or in /lib/modules/RELEASE;
	// a kernel that has no such folder is taken to have everything built in.
	Kernel string
	// Own is the path at which the user may have put a kernel to be used where Kernel names none, and need not have.
	// What is there must be as good as one that was named. Empty: there is no such place.
	Own string
	// CacheDir is our part of the cache folder, made when missing. It must belong to the caller, who alone may write there.
	CacheDir string
	// Guest is the guest's /init, a static ELF program. It is read as a whole only when an initramfs is packed.
	Guest *io.SectionReader
	// GuestSum names Guest's content, no other's: its SHA-256 in hex, which is computed when it is empty.
	GuestSum string
	// Arch is "amd64" or "arm64"; empty: that of this program.
	Arch string
	// Progress, unless nil, is told how far a slow phase is: bytes, of the download percents; total is 0 where it is not known.
	// It is called from the goroutine that called Prepare.
	Progress func(phase string, done, total int64)
	// Logger takes warnings and what was chosen; nil: nobody does.
	Logger *slog.Logger
}

// Files are what a guest boots from. They stay readable as long as they are open, and in the cache for a day at least.
type Files struct {
	Kernel    string // an ELF vmlinux; a bzImage where the kernel has no PVH entry; an Image on arm64
	Initramfs string // newc cpio, not compressed
	Release   string // as uname -r tells it: 6.1.0-41-cloud-amd64
	HZ        int    // CONFIG_HZ; 0 when it cannot be known
}

// NotFoundError says that no kernel was named, cached or installed, and why none could be fetched.
type NotFoundError struct {
	Arch string
	Err  error
}

func (e *NotFoundError) Error() string {
	return fmt.Sprintf("no kernel for %s cached or installed, and none could be fetched: %v", e.Arch, e.Err)
}

func (e *NotFoundError) Unwrap() error { return e.Err }

// Hint is the way out.
func (e *NotFoundError) Hint() string {
	const named = "set MATCHLOCK_KERNEL to a vmlinux or bzImage"
	if errors.Is(e.Err, exec.ErrNotFound) {
		return "this host has no apt: " + named
	}
	return "`apt-get update` as root renews the package lists; or " + named
}

// Prepare returns the files to boot from, making those that the cache does not hold.
func Prepare(ctx context.Context, o Options) (*Files, error) {
	return prepare(ctx, o, "/")
}

// prepare is Prepare on a host whose installed kernels are below root.
func prepare(ctx context.Context, o Options, root string) (*Files, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, err
	}
	if err := checkGuest(o.Guest, o.Arch); err != nil {
		return nil, err
	}
	c, err := openCache(o.CacheDir)
	if err != nil {
		return nil, err
	}
	f := finder{Options: o, cache: c, root: root}
	k, err := f.find(ctx)
	if err != nil {
		return nil, err
	}
	if err := use(k.dir); err != nil {
		return nil, fmt.Errorf("kernel cache: %w", err)
	}
	initramfs, err := c.initramfs(ctx, k, o)
	if err != nil {
		return nil, err
	}
	return &Files{Kernel: k.path(k.Kernel), Initramfs: initramfs, Release: k.Release, HZ: k.HZ}, nil
}

func (o Options) withDefaults() (Options, error) {
	if o.Arch == "" {
		o.Arch = runtime.GOARCH
	}
	if _, ok := machines[o.Arch]; !ok {
		return o, fmt.Errorf("kernel for %q: neither amd64 nor arm64", o.Arch)
	}
	if o.CacheDir == "" {
		return o, fmt.Errorf("kernel cache: no folder given")
	}
	dir, err := filepath.Abs(o.CacheDir)
	if err != nil {
		return o, fmt.Errorf("kernel cache: %w", err)
	}
	o.CacheDir = dir
	if o.Progress == nil {
		o.Progress = func(string, int64, int64) {}
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return o, nil
}
