package boot

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/matchlock/matchlock/internal/hostfs"
)

const (
	keepKernels   = 3 // how many the cache keeps of what nobody used for a day
	keepSources   = 16
	keepInitramfs = 4
	keepFor       = 24 * time.Hour
)

// A cache is the folder that Prepare fills.
//
// What is inside never changes once it has its name, which is made of a checksum; only what a source led to is written anew.
// Work on kernels is done under an exclusive lock on kernels/lock, reading under none.
// Nothing waits for the disk: what a power cut leaves too short is noticed by its size and made anew.
type cache struct {
	kernelsDir   string // one folder for each kernel
	sourcesDir   string // one record for each source of a kernel: which folder it led to
	initramfsDir string
}

func openCache(dir string) (*cache, error) {
	c := &cache{
		kernelsDir:   filepath.Join(dir, "kernels"),
		sourcesDir:   filepath.Join(dir, "kernels", "sources"),
		initramfsDir: filepath.Join(dir, "initramfs"),
	}
	for _, d := range []string{dir, c.kernelsDir, c.sourcesDir, c.initramfsDir} {
		if err := hostfs.Private(d); err != nil {
			return nil, fmt.Errorf("kernel cache: %w", err)
		}
	}
	return c, nil
}

func checkWriters(info fs.FileInfo) error {
	if info.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("others may write to it (mode %04o)", info.Mode().Perm())
	}
	return nil
}

func ownerOf(info fs.FileInfo) int { return int(info.Sys().(*syscall.Stat_t).Uid) }

// openTrusted opens a regular file that belongs to root or the caller and that nobody else may write to.
// Its errors leave it to the caller to say which file.
func openTrusted(path string) (*os.File, fs.FileInfo, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0) // a fifo would wait for its writer
	if err != nil {
		return nil, nil, pathless(err)
	}
	info, err := f.Stat()
	switch {
	case err != nil:
	case !info.Mode().IsRegular():
		err = errors.New("not a regular file")
	case ownerOf(info) != 0 && ownerOf(info) != os.Geteuid():
		err = fmt.Errorf("belongs to user %d, neither to root nor to %d", ownerOf(info), os.Geteuid())
	default:
		err = checkWriters(info)
	}
	if err != nil {
		f.Close()
		return nil, nil, err
	}
	return f, info, nil
}

func pathless(err error) error {
	if e, ok := errors.AsType[*fs.PathError](err); ok {
		return e.Err
	}
	return err
}

func readTrusted(path string, limit int64) ([]byte, error) {
	f, _, err := openTrusted(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return readAll(f, limit)
}

// A stamp tells whether a file is still the one that was read. The zero Inode says that there was none.
type stamp struct {
	Path  string `json:"path"`
	Size  int64  `json:"size"`
	MTime int64  `json:"mtime"` // nanoseconds
	Inode uint64 `json:"inode"`
}

func stampOf(path string) stamp {
	info, err := os.Stat(path)
	if err != nil {
		return stamp{Path: path}
	}
	return stampFrom(path, info)
}

func stampFrom(path string, info fs.FileInfo) stamp {
	return stamp{path, info.Size(), info.ModTime().UnixNano(), info.Sys().(*syscall.Stat_t).Ino}
}

// A source is where a kernel came from and the folder that it led to.
type source struct {
	Origin string  `json:"origin"` // the path of the kernel file, or packageOrigin
	Stamps []stamp `json:"stamps"` // of a file: itself first, then all that was looked at with it
	Folder string  `json:"folder"`
}

// packageOrigin begins the Origin of a kernel that apt fetched; the package and its version follow.
const packageOrigin = "apt:"

// current tells whether the folder still is what the origin would lead to. A kernel that was removed since leaves its folder as good as it was.
func (s *source) current() bool {
	for i, old := range s.Stamps {
		now := stampOf(old.Path)
		if i == 0 && now.Inode == 0 {
			return true
		}
		if now != old {
			return false
		}
	}
	return true
}

func (c *cache) sourcePath(origin string) string {
	sum := sha256.Sum256([]byte(origin))
	return filepath.Join(c.sourcesDir, hex.EncodeToString(sum[:16])+".json")
}

// source returns the record of an origin; nil when there is none that holds.
func (c *cache) source(path string) *source {
	s := new(source)
	if hostfs.ReadRecord(path, s) != nil || !filepath.IsLocal(s.Folder) || !s.current() {
		return nil
	}
	return s
}

// kernelOf returns the kernel that an origin led to; nil when it must be made.
func (c *cache) kernelOf(origin, arch string) *cachedKernel {
	if s := c.source(c.sourcePath(origin)); s != nil && s.Origin == origin {
		if k := c.kernel(s.Folder); k != nil && k.Arch == arch {
			return k
		}
	}
	return nil
}

// sources returns all records that hold.
func (c *cache) sources() []*source {
	var all []*source
	for _, path := range list(c.sourcesDir, "*.json") {
		if s := c.source(path); s != nil {
			all = append(all, s)
		}
	}
	return all
}

// kernelFormat is part of a kernel's checksum: raise it when other files would come from the same input.
const kernelFormat = 1

// A cachedKernel is a folder below kernels/, described by the kernel.json in it.
type cachedKernel struct {
	Sum        string       `json:"sum"` // over all it was made from
	Release    string       `json:"release"`
	Arch       string       `json:"arch"`
	HZ         int          `json:"hz"`
	Kernel     string       `json:"kernel"` // file name
	KernelSize int64        `json:"kernel_size"`
	Modules    []cachedFile `json:"modules"` // in the order in which to load them

	dir string
}

// A cachedFile is a file in a kernel's folder, Name its path there.
type cachedFile struct {
	Name string `json:"name"`
	Size int64  `json:"size"`
}

func (k *cachedKernel) path(name string) string { return filepath.Join(k.dir, name) }

func (k *cachedKernel) folder() string { return k.Release + "-" + k.Sum[:16] }

// kernel returns the kernel in a folder; nil when it is not there or not whole.
func (c *cache) kernel(folder string) *cachedKernel {
	k := &cachedKernel{dir: filepath.Join(c.kernelsDir, folder)}
	if hostfs.ReadRecord(k.path("kernel.json"), k) != nil {
		return nil
	}
	for _, f := range append([]cachedFile{{k.Kernel, k.KernelSize}}, k.Modules...) {
		if !filepath.IsLocal(f.Name) {
			return nil
		}
		if info, err := os.Lstat(k.path(f.Name)); err != nil || !info.Mode().IsRegular() || info.Size() != f.Size {
			return nil
		}
	}
	return k
}

// add gives the finished folder tmp the name of k, and notes what led to it.
func (c *cache) add(tmp string, k *cachedKernel, origin string, stamps []stamp) error {
	if c.kernel(k.folder()) == nil {
		if err := hostfs.WriteRecord(filepath.Join(tmp, "kernel.json"), k); err != nil {
			return err
		}
		dir := filepath.Join(c.kernelsDir, k.folder())
		if err := os.RemoveAll(dir); err != nil { // not whole
			return err
		}
		if err := os.Rename(tmp, dir); err != nil {
			return err
		}
	}
	k.dir = filepath.Join(c.kernelsDir, k.folder())
	return hostfs.WriteRecord(c.sourcePath(origin), &source{Origin: origin, Stamps: stamps, Folder: k.folder()})
}

// lockKernels waits until no other process works on kernels, and removes what one that was killed left half made.
func (c *cache) lockKernels(ctx context.Context) (unlock func(), err error) {
	f, err := hostfs.Lock(ctx, filepath.Join(c.kernelsDir, lockName), os.O_RDWR|os.O_CREATE, syscall.LOCK_EX)
	if err != nil {
		return nil, err
	}
	for _, dir := range list(c.kernelsDir, unfinished) {
		if err := os.RemoveAll(dir); err != nil {
			f.Close()
			return nil, err
		}
	}
	return func() { f.Close() }, nil
}

// list returns the paths of what a folder holds under names like pattern.
// (filepath.Glob would take the folder's own name for a pattern, too.) What cannot be read is empty.
func list(dir, pattern string) (paths []string) {
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		if match, _ := filepath.Match(pattern, e.Name()); match { // the only error is a bad pattern
			paths = append(paths, filepath.Join(dir, e.Name()))
		}
	}
	return paths
}

const (
	unfinished = ".new-*" // names of what has not got its own yet, here as in hostfs.Replace
	lockName   = "lock"
)

// use notes that something in the cache is in use, so that prune leaves it for the next day.
// The lock lets it not be pruned between here and there.
func use(path string) error {
	info, err := os.Lstat(path)
	if err != nil {
		return err
	}
	now := time.Now()
	if now.Sub(info.ModTime()) < keepFor/2 {
		return nil
	}
	lock, err := lockFolder(filepath.Dir(path), syscall.LOCK_SH)
	if err != nil {
		return err
	}
	defer lock.Close()
	return os.Chtimes(path, now, now)
}

// prune removes from a folder what nobody used for a day, but for the newest few. Failures are left for the next time.
func (c *cache) prune(dir string, keep int) {
	lock, err := lockFolder(dir, syscall.LOCK_EX)
	if err != nil {
		return
	}
	defer lock.Close()
	entries, err := os.ReadDir(dir)
	if err != nil {
		return
	}
	type candidate struct {
		path string
		used time.Time
	}
	var whole []candidate
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		info, err := e.Info()
		if err != nil || path == c.sourcesDir || e.Name() == lockName {
			continue
		}
		if !strings.HasPrefix(e.Name(), ".") {
			whole = append(whole, candidate{path, info.ModTime()})
		} else if time.Since(info.ModTime()) > keepFor { // nobody finishes it any more
			os.RemoveAll(path)
		}
	}
	slices.SortFunc(whole, func(a, b candidate) int { return b.used.Compare(a.used) })
	for i, e := range whole {
		if i >= keep && time.Since(e.used) > keepFor {
			os.RemoveAll(e.path)
		}
	}
}

// lockFolder keeps a folder from being pruned, or from being used meanwhile. Either takes a moment.
func lockFolder(dir string, how int) (*os.File, error) {
	return hostfs.Lock(context.Background(), dir, os.O_RDONLY, how)
}
