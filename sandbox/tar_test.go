package sandbox

import (
	"archive/tar"
	"path/filepath"
	"testing"
)

// FuzzTarNode: no entry of a tar becomes a file outside.
func FuzzTarNode(f *testing.F) {
	f.Add("a/b", "../c", byte(tar.TypeLink), int64(0o644), 0)
	f.Add("./a/../b/", "/etc", byte(tar.TypeSymlink), int64(-1), -1)
	f.Fuzz(func(t *testing.T, name, link string, kind byte, mode int64, uid int) {
		n, err := tarNode(&tar.Header{Typeflag: kind, Name: name, Linkname: link, Mode: mode, Uid: uid})
		if err != nil {
			return
		}
		for _, p := range []string{n.Path, n.Link} {
			if p != "" && !filepath.IsLocal(p) {
				t.Errorf("%q of %q and %q", p, name, link)
			}
		}
	})
}
