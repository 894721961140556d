package boot

import "path/filepath"

// Look tells which kernel Prepare would choose where none is named, without
// making or fetching one: the release of the newest that the cache has or that is installed,
// "" when Prepare would have to fetch one.
func Look(o Options) (release string, err error) {
	o, err = o.withDefaults()
	if err != nil {
		return "", err
	}
	c, err := openCache(o.CacheDir)
	if err != nil {
		return "", err
	}
	f := finder{Options: o, cache: c, root: string(filepath.Separator)}
	_, release = f.newestInstalled()
	if best := f.newestCached(); best != nil && (release == "" || compareReleases(release, best.Release) <= 0) {
		release = best.Release
	}
	return release, nil
}
