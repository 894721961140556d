package boot

import (
	"fmt"
	"path/filepath"
)

// Look tells which kernel Prepare would choose where none is named, without making or fetching one: the release of the
// user's own, else of the newest that the cache has or that is installed; "" when Prepare would have to fetch one.
func Look(o Options) (release string, own bool, err error) {
	return look(o, string(filepath.Separator))
}

// look is Look on a host whose installed kernels are below root.
func look(o Options, root string) (release string, own bool, err error) {
	o, err = o.withDefaults()
	if err != nil {
		return "", false, err
	}
	c, err := openCache(o.CacheDir)
	if err != nil {
		return "", false, err
	}
	f := finder{Options: o, cache: c, root: root}
	if f.hasOwn() {
		if release, err = f.releaseOf(f.Own); err != nil {
			return "", true, fmt.Errorf("kernel %q: %w", f.Own, err)
		}
		return release, true, nil
	}
	_, release = f.newestInstalled()
	if best := f.newestCached(); best != nil && (release == "" || compareReleases(release, best.Release) <= 0) {
		release = best.Release
	}
	return release, false, nil
}

// releaseOf reads the release out of a kernel file, or out of the cache where that knows the file.
func (f *finder) releaseOf(name string) (string, error) {
	path, err := resolve(name)
	if err != nil {
		return "", err
	}
	if k := f.cache.kernelOf(path, f.Arch); k != nil {
		return k.Release, nil
	}
	file, info, err := openTrusted(path)
	if err != nil {
		return "", err
	}
	defer file.Close()
	image, err := openImage(file, info.Size(), f.Arch)
	if err != nil {
		return "", err
	}
	if image.kind == kindBzImage {
		return image.release, nil
	}
	return findRelease(file, info.Size())
}
