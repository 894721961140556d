package image

import (
	"archive/tar"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"syscall"
)

// members are the files of an image archive or of an OCI layout's folder. Nothing outside of it can be reached by a name.
type members interface {
	// open returns a file and its size. Files that are not there, or are no regular files, are errors.
	open(name string) (io.ReadCloser, int64, error)
}

// readMember reads a small file.
func readMember(m members, name string, limit int64) ([]byte, error) {
	f, _, err := m.open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := readAll(f, limit)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return data, nil
}

// archive is a tar that can be read at any place.
type archive struct {
	file    io.ReaderAt
	entries map[string]archiveEntry // by name, without leading slash
}

type archiveEntry struct {
	offset, size int64
	link         string // the name of another entry, for links
}

const (
	maxArchiveEntries = 1 << 16 // an archive of 512 layers has about 2,000
	maxArchiveLinks   = 8       // that lead from one name to another
)

func (a *archive) open(name string) (io.ReadCloser, int64, error) {
	at := name
	for range maxArchiveLinks {
		e, ok := a.entries[at]
		if !ok {
			return nil, 0, fmt.Errorf("%s: %w in the archive", name, fs.ErrNotExist)
		}
		if e.link == "" {
			return io.NopCloser(io.NewSectionReader(a.file, e.offset, e.size)), e.size, nil
		}
		at = e.link
	}
	return nil, 0, fmt.Errorf("%s: links to itself", name)
}

func (a *archive) has(name string) bool { return a.entries[name] != archiveEntry{} }

// rootFolders are what a root file system has at its top, and an archive of images never.
var rootFolders = []string{"bin", "boot", "dev", "etc", "home", "lib", "lib64", "media", "mnt", "nix", "opt", "proc", "root", "run", "sbin", "srv", "sys", "tmp", "usr", "var"}

// scan reads a tar's table of contents. It ends early, with true, at the first name that only a root file system has.
// Where the reader can seek, contents are skipped, and the entries' offsets are right.
func scan(r io.Reader) (entries map[string]archiveEntry, rootfs bool, err error) {
	seeker, _ := r.(io.Seeker)
	entries = make(map[string]archiveEntry)
	tr := tar.NewReader(r)
	for {
		h, err := tr.Next()
		if err == io.EOF {
			return entries, false, nil
		}
		if err != nil {
			return entries, false, err
		}
		name := rooted(h.Name)
		top, _, _ := strings.Cut(name, "/")
		if slices.Contains(rootFolders, top) || len(entries) >= maxArchiveEntries {
			return entries, true, nil
		}
		switch h.Typeflag {
		case tar.TypeReg:
			e := archiveEntry{size: h.Size}
			if seeker != nil {
				if e.offset, err = seeker.Seek(0, io.SeekCurrent); err != nil {
					return entries, false, err
				}
			}
			entries[name] = e
		case tar.TypeSymlink:
			entries[name] = archiveEntry{link: rooted(path.Join(path.Dir(name), h.Linkname))}
		case tar.TypeLink:
			entries[name] = archiveEntry{link: rooted(h.Linkname)}
		}
	}
}

// rooted returns a name as it is below a root that nothing leaves.
func rooted(name string) string {
	return strings.TrimPrefix(path.Clean("/"+name), "/")
}

// folder is an OCI layout in a folder.
type folder struct{ *os.Root }

func (f folder) open(name string) (io.ReadCloser, int64, error) {
	file, err := f.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0) // a fifo is not waited for
	if err != nil {
		return nil, 0, err
	}
	info, err := file.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s: not a regular file", name)
	}
	if err != nil {
		file.Close()
		return nil, 0, err
	}
	return file, info.Size(), nil
}

// dockerSave is one image in the manifest.json of an archive made by docker save.
type dockerSave struct {
	Config   string
	RepoTags []string
	Layers   []string
}

// savedImages reads manifest.json. It is nothing but a file of that name if it does not read as docker save's.
func savedImages(m members) ([]dockerSave, bool) {
	data, err := readMember(m, "manifest.json", maxManifestBytes)
	if err != nil {
		return nil, false
	}
	var images []dockerSave
	if err := json.Unmarshal(data, &images); err != nil || len(images) == 0 {
		return nil, false
	}
	for _, image := range images {
		if image.Config == "" || len(image.Layers) == 0 {
			return nil, false
		}
	}
	return images, true
}

// isLayout reports whether the files are those of an OCI image layout.
func isLayout(m members) bool {
	data, err := readMember(m, "oci-layout", 4096)
	if err != nil {
		return false
	}
	var marker struct {
		Version string `json:"imageLayoutVersion"`
	}
	return json.Unmarshal(data, &marker) == nil && strings.HasPrefix(marker.Version, "1.")
}
