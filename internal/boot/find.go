package boot

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// A finder brings kernels into the cache.
type finder struct {
	Options
	cache *cache
	root  string // of the host's file system
}

func (f *finder) find(ctx context.Context) (*cachedKernel, error) {
	switch {
	case f.Kernel != "":
		return f.named(ctx, f.Kernel)
	case f.hasOwn():
		return f.named(ctx, f.Own)
	}
	return f.newest(ctx)
}

// hasOwn tells whether the user has a kernel of their own, be it one that cannot be used: then they want to know.
func (f *finder) hasOwn() bool {
	if f.Own == "" {
		return false
	}
	_, err := os.Lstat(f.Own)
	return !errors.Is(err, fs.ErrNotExist)
}

// named returns the kernel in the file that somebody named.
func (f *finder) named(ctx context.Context, name string) (*cachedKernel, error) {
	path, err := resolve(name)
	if err != nil {
		return nil, fmt.Errorf("kernel %q: %w", name, err)
	}
	k, err := f.fromFile(ctx, path)
	if err != nil {
		return nil, fmt.Errorf("kernel %q: %w", name, err)
	}
	return k, nil
}

// resolve returns the path of the file itself: modules lie beside it, not beside a link to it.
func resolve(name string) (path string, err error) {
	path, err = filepath.Abs(name)
	if err == nil {
		path, err = filepath.EvalSymlinks(path)
	}
	return path, pathless(err)
}

func (f *finder) fromFile(ctx context.Context, path string) (*cachedKernel, error) {
	if k := f.cache.kernelOf(path, f.Arch); k != nil {
		return k, nil
	}
	unlock, err := f.cache.lockKernels(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if k := f.cache.kernelOf(path, f.Arch); k != nil { // made by another process meanwhile
		return k, nil
	}
	return f.convert(ctx, path, path)
}

// newest returns the newest kernel that the cache has or that is installed; when there is none, the one that apt fetches.
func (f *finder) newest(ctx context.Context) (*cachedKernel, error) {
	best := f.newestCached()
	if path, release := f.newestInstalled(); path != "" && (best == nil || compareReleases(release, best.Release) > 0) {
		k, err := f.fromFile(ctx, path)
		if err == nil {
			return k, nil
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		f.Logger.Warn("installed kernel cannot be used", "kernel", path, "error", err)
	}
	if best != nil {
		return best, nil
	}
	unlock, err := f.cache.lockKernels(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if best = f.newestCached(); best != nil { // fetched by another process meanwhile
		return best, nil
	}
	return f.fetch(ctx)
}

// newestCached chooses among the kernels that apt fetched and that were installed; never one that somebody named once.
func (f *finder) newestCached() *cachedKernel {
	var best *cachedKernel
	for _, s := range f.cache.sources() {
		if _, installed := f.installedRelease(s.Origin); !installed && !strings.HasPrefix(s.Origin, packageOrigin) {
			continue
		}
		k := f.cache.kernel(s.Folder)
		if k != nil && k.Arch == f.Arch && (best == nil || compareReleases(k.Release, best.Release) > 0) {
			best = k
		}
	}
	return best
}

// newestInstalled finds Debian's cloud kernels.
func (f *finder) newestInstalled() (path, release string) {
	for _, p := range list(filepath.Join(f.root, "boot"), "vmlinuz-*") {
		r, ok := f.installedRelease(p)
		if ok && (path == "" || compareReleases(r, release) > 0) && isDir(filepath.Join(f.root, "lib/modules", r)) {
			path, release = p, r
		}
	}
	return path, release
}

func (f *finder) installedRelease(path string) (release string, ok bool) {
	release, ok = strings.CutPrefix(path, filepath.Join(f.root, "boot", "vmlinuz-"))
	return release, ok && strings.HasSuffix(release, "-cloud-"+f.Arch) && releasePattern().MatchString(release)
}

func isDir(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

// compareReleases orders by the numbers in the names, as people count them: 6.1.0-9 is older than 6.1.0-56.
func compareReleases(a, b string) int {
	split := func(s string) (word, number, rest string) {
		i := strings.IndexAny(s, "0123456789")
		if i < 0 {
			return s, "", ""
		}
		j := i
		for j < len(s) && s[j] >= '0' && s[j] <= '9' {
			j++
		}
		return s[:i], strings.TrimLeft(s[i:j], "0"), s[j:]
	}
	for a != "" || b != "" {
		wordA, numberA, restA := split(a)
		wordB, numberB, restB := split(b)
		if c := strings.Compare(wordA, wordB); c != 0 {
			return c
		}
		if c := len(numberA) - len(numberB); c != 0 {
			return c
		}
		if c := strings.Compare(numberA, numberB); c != 0 {
			return c
		}
		a, b = restA, restB
	}
	return 0
}

// convert brings the kernel file at path into the cache, with the modules beside it. The caller holds the lock.
func (f *finder) convert(ctx context.Context, path, origin string) (*cachedKernel, error) {
	file, info, err := openTrusted(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	image, err := openImage(file, info.Size(), f.Arch)
	if err != nil {
		return nil, err
	}
	stamps := []stamp{stampFrom(path, info)}
	tmp, err := os.MkdirTemp(f.cache.kernelsDir, unfinished)
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(tmp) // no longer there when all went well

	sum := sha256.New()
	fmt.Fprintf(sum, "%d ", kernelFormat)
	source := io.NewSectionReader(file, 0, info.Size())
	if _, err := io.Copy(sum, f.meter(ctx, "hash kernel", source, info.Size())); err != nil {
		return nil, err
	}
	k := &cachedKernel{Arch: f.Arch}
	if err := f.writeKernel(ctx, tmp, image, k); err != nil {
		return nil, err
	}
	configPath := filepath.Join(filepath.Dir(path), "config-"+k.Release)
	stamps = append(stamps, stampOf(configPath))
	if config, err := readTrusted(configPath, maxConfig); err == nil {
		k.HZ = configHZ(config)
	}

	modules, looked, err := f.modules(path, k.Release)
	if err != nil {
		return nil, err
	}
	stamps = append(stamps, looked...)
	for _, dir := range []string{"modules", "modules/later"} {
		if err := os.Mkdir(filepath.Join(tmp, dir), 0o700); err != nil {
			return nil, err
		}
	}
	for i, m := range modules {
		name := fmt.Sprintf("modules/%02d-%s.ko", i, m.name)
		if m.later {
			name = fmt.Sprintf("modules/later/%02d-%s.ko", i, m.name)
		}
		fmt.Fprintf(sum, "%s %d ", name, len(m.data))
		sum.Write(m.data)
		if err := os.WriteFile(filepath.Join(tmp, name), m.data, 0o600); err != nil {
			return nil, err
		}
		stamps = append(stamps, m.source)
		k.Modules = append(k.Modules, cachedFile{name, int64(len(m.data))})
	}
	fmt.Fprintf(sum, "%d", k.HZ)
	k.Sum = hex.EncodeToString(sum.Sum(nil))
	if strings.HasPrefix(origin, packageOrigin) {
		stamps = nil // of files that are soon gone
	}
	if err := f.cache.add(tmp, k, origin, stamps); err != nil {
		return nil, err
	}
	f.cache.prune(f.cache.kernelsDir, keepKernels)
	f.cache.prune(f.cache.sourcesDir, keepSources)
	f.Logger.Info("kernel ready", "release", k.Release, "from", origin, "kind", k.Kernel, "modules", len(k.Modules))
	return k, nil
}

// writeKernel lays the kernel itself into the folder tmp, unpacked if that leaves it bootable.
func (f *finder) writeKernel(ctx context.Context, tmp string, image *kernelImage, k *cachedKernel) error {
	out, err := os.OpenFile(filepath.Join(tmp, string(kindVmlinux)), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer out.Close()
	kind := image.kind
	if kind == kindBzImage {
		err := image.writeVmlinux(f.meterTo(ctx, "unpack kernel", out))
		switch {
		case errors.Is(err, errors.ErrUnsupported):
			f.Logger.Warn("kernel stays packed, which makes a slower start", "error", err)
		case err != nil:
			return err
		default:
			pvh, err := hasPVH(out)
			if err != nil {
				return fmt.Errorf("bzImage: payload: %w", err)
			}
			if pvh {
				kind = kindVmlinux
			} else {
				f.Logger.Warn("kernel has no PVH entry (CONFIG_PVH) and stays packed, which makes a slower start")
			}
		}
	}
	if kind == image.kind {
		if err := out.Truncate(0); err != nil {
			return err
		}
		if _, err := out.Seek(0, io.SeekStart); err != nil {
			return err
		}
		if _, err := io.Copy(out, f.meter(ctx, "copy kernel", io.NewSectionReader(image, 0, image.size), image.size)); err != nil {
			return err
		}
		if pvh, err := hasPVH(out); kind == kindVmlinux && f.Arch == "amd64" && (err != nil || !pvh) {
			f.Logger.Warn("kernel has no PVH entry (CONFIG_PVH): QEMU cannot start it uncompressed")
		}
	}
	info, err := out.Stat()
	if err != nil {
		return err
	}
	k.Kernel, k.KernelSize, k.Release = string(kind), info.Size(), image.release
	if k.Release == "" && kind != kindBzImage {
		if k.Release, err = findRelease(out, k.KernelSize); err != nil {
			return err
		}
	}
	if !releasePattern().MatchString(k.Release) {
		return fmt.Errorf("release %q is not one", k.Release)
	}
	k.HZ = findHZ(out, k.KernelSize)
	return os.Rename(out.Name(), filepath.Join(tmp, k.Kernel))
}

// modules finds what belongs to the kernel at path: in lib/modules of the tree whose boot folder holds it, else of the host.
// looked are the folders that the answer depends on.
func (f *finder) modules(path, release string) (modules []module, looked []stamp, err error) {
	roots := []string{f.root}
	if dir := filepath.Dir(path); filepath.Base(dir) == "boot" {
		roots = []string{filepath.Dir(dir), f.root}
	}
	for _, root := range slices.Compact(roots) {
		dir := filepath.Join(root, "lib/modules", release)
		looked = append(looked, stampOf(dir))
		tree, err := openModuleTree(dir, release)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, nil, err
		}
		modules, missing, err := tree.resolve()
		if len(missing) > 0 {
			f.Logger.Warn("kernel lacks drivers that some features need", "release", release, "drivers", missing)
		}
		return modules, looked, err
	}
	f.Logger.Info("kernel has no modules folder; taken to have all drivers built in", "release", release)
	return nil, looked, nil
}
