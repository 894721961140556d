package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/matchlock/matchlock/api"
	"github.com/matchlock/matchlock/internal/boot"
	"github.com/matchlock/matchlock/internal/disk"
	"github.com/matchlock/matchlock/internal/hostfs"
	"github.com/matchlock/matchlock/internal/qemu"
	"github.com/matchlock/matchlock/internal/state"
	"github.com/matchlock/matchlock/internal/wire"
)

// Status is what a finding means.
type Status string

// The statuses. Sandboxes run where nothing is Fail.
const (
	OK    Status = "ok"
	Warn  Status = "warn" // it will do, but the user should know
	Fail  Status = "fail"
	Fixed Status = "fixed" // Repair mended it
)

// Finding is one thing that sandboxes need, as it is on this host.
type Finding struct {
	Name    string `json:"name"`
	Status  Status `json:"status"`
	Message string `json:"message"`
	Fix     string `json:"fix,omitempty"` // what to do about it
}

// Less than this is worth a warning.
const (
	lowSpace  = 5 << 30
	lowMemory = 1 << 30
)

// Diagnose looks at all that sandboxes need, by the code that they use, and
// fetches nothing. It makes what a first start would make on the way: the
// folders, an empty disk.
func Diagnose(ctx context.Context, o Options) []Finding {
	d := &diagnosis{Options: o.withDefaults()}
	d.checkGuest(ctx)
	home, err := d.home()
	if err != nil {
		d.fail("folders", err)
		d.checkQEMU(ctx, "")
		return d.findings
	}
	d.add("folders", OK, fmt.Sprintf("images in %s, caches in %s, sandboxes in %s", home.Data, home.Cache, home.State), "")
	d.checkQEMU(ctx, home.Cache)
	d.checkKernel(home)
	d.checkScratch(ctx, home)
	d.checkRemains(home)
	d.checkSpace(home.Data, home.State)
	d.checkMemory()
	return d.findings
}

// diagnosis is a Diagnose under way.
type diagnosis struct {
	Options
	findings []Finding
}

func (d *diagnosis) add(name string, status Status, message, fix string) {
	d.findings = append(d.findings, Finding{name, status, message, fix})
}

// fail adds a fault with the way out that its error knows.
func (d *diagnosis) fail(name string, err error) {
	fix := ""
	var hinted interface{ Hint() string }
	if errors.As(withHint(err), &hinted) {
		fix = hinted.Hint()
	}
	d.add(name, Fail, err.Error(), fix)
}

func (d *diagnosis) checkGuest(ctx context.Context) {
	guest, err := d.guest(ctx)
	if err != nil {
		d.fail("guest", err)
		return
	}
	d.add("guest", OK, fmt.Sprintf("guest binary of %s, protocol version %d", api.FormatSize(guest.Size()), wire.Version), "")
}

func (d *diagnosis) checkQEMU(ctx context.Context, cache string) {
	host, err := qemu.New(qemu.Options{Accel: d.Accel, CacheDir: cache, Logger: d.Logger}).Inspect(ctx)
	if host.Version == "" || errors.As(err, new(*qemu.VersionError)) {
		d.fail("qemu", err)
		return
	}
	d.add("qemu", OK, fmt.Sprintf("QEMU %s in %s", host.Version, host.Path), "")
	d.checkJail(ctx, cache)
	switch {
	case err != nil:
		d.fail("accelerator", err)
	case host.Accel.Name == "kvm":
		d.add("accelerator", OK, "KVM: "+host.Accel.Reason, "")
	default:
		d.add("accelerator", Warn,
			"TCG ("+host.Accel.Reason+"): slow, and QEMU's makers do not call it a security boundary",
			openKVMCommand())
	}
}

// checkJail confines a QEMU as a sandbox would.
func (d *diagnosis) checkJail(ctx context.Context, cache string) {
	applied, missing, err := qemu.New(qemu.Options{CacheDir: cache, Guest: d.guest, Logger: d.Logger}).InspectJail(ctx)
	command := namespacesCommand(os.ReadFile)
	switch {
	case err != nil && command != "" && errors.Is(err, qemu.ErrUnconfined):
		d.add("jail", Fail, err.Error(), command+"; or `matchlock run --no-jail`, which does without")
	case err != nil:
		d.fail("jail", err)
	case len(missing) == 0:
		d.add("jail", OK, "the hypervisor is held by "+strings.Join(applied, ", "), "")
	default:
		status := OK // a control group is root's to give, and no part of the wall
		if slices.ContainsFunc(missing, func(m string) bool { return !strings.HasPrefix(m, "cgroup: ") }) {
			status = Warn
		}
		if status == OK {
			command = ""
		}
		d.add("jail", status, fmt.Sprintf("the hypervisor is held by %s; missing: %s", strings.Join(applied, ", "), strings.Join(missing, "; ")), command)
	}
}

func (d *diagnosis) checkKernel(home state.Home) {
	if d.Kernel != "" {
		if _, err := os.Stat(d.Kernel); err != nil {
			d.add("kernel", Fail, fmt.Sprintf("kernel %q: %v", d.Kernel, pathless(err)), "correct or unset MATCHLOCK_KERNEL")
			return
		}
		d.add("kernel", OK, d.Kernel+", as MATCHLOCK_KERNEL says", "")
		return
	}
	release, own, err := boot.Look(boot.Options{Own: home.Kernel(), CacheDir: home.Cache, Logger: d.Logger})
	switch {
	case err != nil && own:
		d.add("kernel", Fail, err.Error(), "build it anew or remove it; Debian's is used then")
	case err != nil:
		d.fail("kernel", err)
	case own:
		d.add("kernel", OK, fmt.Sprintf("Linux %s, your own in %s", release, home.Kernel()), "")
	case release != "":
		d.add("kernel", OK, "Linux "+release, "")
	default:
		if _, err := exec.LookPath("apt-get"); err != nil {
			d.add("kernel", Fail, "none is cached or installed, and there is no apt to fetch one with", "set MATCHLOCK_KERNEL to a vmlinux or bzImage")
			return
		}
		d.add("kernel", OK, "none here yet; the first run fetches Debian's by apt", "")
	}
}

// checkScratch makes an empty disk, which needs mkfs.ext4 the first time.
func (d *diagnosis) checkScratch(ctx context.Context, home state.Home) {
	err := hostfs.Private(home.Disks())
	var dir string
	if err == nil {
		dir, err = os.MkdirTemp(home.Disks(), ".diagnose-*")
	}
	if err == nil {
		err = disk.CreateScratch(ctx, filepath.Join(dir, scratchName), api.DefaultDiskSize, home.Disks())
		err = errors.Join(err, os.RemoveAll(dir))
	}
	if err != nil {
		d.fail("disks", err)
		return
	}
	d.add("disks", OK, "empty ext4 disks can be made", "")
}

func (d *diagnosis) checkSpace(dirs ...string) {
	for _, dir := range dirs {
		var fs syscall.Statfs_t
		if err := syscall.Statfs(dir, &fs); err != nil {
			d.fail("space", fmt.Errorf("%s: %w", dir, err))
			return
		}
		if free := int64(fs.Bavail) * int64(fs.Bsize); free < lowSpace {
			d.add("space", Warn, fmt.Sprintf("%s free for %s", api.FormatSize(free), dir), "`matchlock image prune --all` frees what images take")
			return
		}
	}
	d.add("space", OK, "more than "+api.FormatSize(lowSpace)+" free", "")
}

func (d *diagnosis) checkMemory() {
	_, available := hostMemory()
	switch {
	case available == 0: // not Linux
	case available < lowMemory:
		d.add("memory", Warn, api.FormatSize(available)+" available", "a sandbox takes up to --memory, 512 MiB by default")
	default:
		d.add("memory", OK, api.FormatSize(available)+" available", "")
	}
}

// hostMemory returns the host's memory in bytes, 0 where it is not known.
func hostMemory() (total, available int64) {
	meminfo, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, 0
	}
	return memoryIn(string(meminfo))
}

// memoryIn reads proc_meminfo(5), a host's or a guest's.
func memoryIn(meminfo string) (total, available int64) {
	field := func(name string) (kib int64) {
		_, rest, _ := strings.Cut(meminfo, name+":")
		fmt.Sscan(rest, &kib) // leaves 0 where there is none
		return kib
	}
	return field("MemTotal") << 10, field("MemAvailable") << 10
}
