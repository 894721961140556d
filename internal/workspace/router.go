package workspace

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
	"time"
)

// Mounted is a tree with the name that it has in a router's root.
type Mounted struct {
	Name string
	FS   FS
}

// router is a root that cannot be changed, and the trees in it.
type router struct {
	mounts []Mounted
	number map[string]int // of a name in mounts
	made   time.Time
}

// NewRouter joins trees into one: its root lists their names, and all below a name is
// the tree's own. The router closes them.
func NewRouter(mounts []Mounted) (FS, error) {
	r := &router{mounts: mounts, number: make(map[string]int), made: time.Now()}
	for i, m := range mounts {
		if _, twice := r.number[m.Name]; twice || m.Name == "" || strings.Contains(m.Name, "/") || checkPath(m.Name) != nil {
			return nil, fmt.Errorf("mount %q: no name, or one that is used twice", m.Name)
		}
		r.number[m.Name] = i
	}
	return r, nil
}

// route finds the tree of a path and the path in it. Of the root there is none: i is -1.
func (r *router) route(path string) (fs FS, i int, rest string, err error) {
	if path == "" {
		return nil, -1, "", nil
	}
	name, rest, _ := strings.Cut(path, "/")
	i, ok := r.number[name]
	if !ok {
		return nil, -1, "", syscall.ENOENT
	}
	return r.mounts[i].FS, i, rest, nil
}

// to finds the tree of a path that is to be read or changed itself, which the root cannot.
func (r *router) to(path string, root error) (FS, int, string, error) {
	fs, i, rest, err := r.route(path)
	if err == nil && i < 0 {
		err = root
	}
	return fs, i, rest, err
}

// in finds the tree in which a name is to be made or removed. Those in the root stay as
// they are.
func (r *router) in(path string) (FS, int, string, error) {
	fs, i, rest, err := r.route(path)
	switch {
	case !strings.Contains(path, "/") && err == nil:
		err = syscall.EBUSY
	case !strings.Contains(path, "/"):
		err = syscall.EROFS
	}
	return fs, i, rest, err
}

// own makes an attribute one of the i-th tree.
func own(i int, a Attr, err error) (Attr, error) {
	a.ID.Mount = uint32(i + 1)
	return a, err
}

// routedFile is a file of the i-th tree.
type routedFile struct {
	File
	i int
}

func (f routedFile) Stat() (Attr, error) {
	a, err := f.File.Stat()
	return own(f.i, a, err)
}

func routed(i int, f File, err error) (File, error) {
	if err != nil {
		return nil, err
	}
	return routedFile{f, i}, nil
}

func (r *router) Stat(path string) (Attr, error) {
	fs, i, rest, err := r.route(path)
	if err != nil {
		return Attr{}, err
	}
	if i < 0 {
		return Attr{
			ID: ID{Inode: 1}, Mode: syscall.S_IFDIR | 0o555, Links: 1, Owner: Owner{0, 0},
			Atime: r.made, Mtime: r.made, Ctime: r.made,
		}, nil
	}
	a, err := fs.Stat(rest)
	return own(i, a, err)
}

func (r *router) ReadDir(path string) ([]DirEntry, error) {
	fs, i, rest, err := r.route(path)
	if err != nil {
		return nil, err
	}
	if i >= 0 {
		return fs.ReadDir(rest)
	}
	var entries []DirEntry
	for _, m := range r.mounts {
		entries = append(entries, DirEntry{Name: m.Name}) // a folder or a file
	}
	return entries, nil
}

func (r *router) Readlink(path string) (string, error) {
	fs, _, rest, err := r.to(path, syscall.EINVAL)
	if err != nil {
		return "", err
	}
	return fs.Readlink(rest)
}

func (r *router) Open(path string, write bool) (File, error) {
	fs, i, rest, err := r.to(path, syscall.EISDIR)
	if err != nil {
		return nil, err
	}
	f, err := fs.Open(rest, write)
	return routed(i, f, err)
}

func (r *router) Create(path string, mode uint32, owner Owner) (File, error) {
	fs, i, rest, err := r.in(path)
	if err != nil {
		return nil, exists(err)
	}
	f, err := fs.Create(rest, mode, owner)
	return routed(i, f, err)
}

// exists is what one hears who wants to make what cannot be removed.
func exists(err error) error {
	if err == syscall.EBUSY {
		return syscall.EEXIST
	}
	return err
}

func (r *router) Mknod(path string, mode uint32, owner Owner) error {
	fs, _, rest, err := r.in(path)
	if err != nil {
		return exists(err)
	}
	return fs.Mknod(rest, mode, owner)
}

func (r *router) Mkdir(path string, mode uint32, owner Owner) error {
	fs, _, rest, err := r.in(path)
	if err != nil {
		return exists(err)
	}
	return fs.Mkdir(rest, mode, owner)
}

func (r *router) Symlink(target, path string, owner Owner) error {
	fs, _, rest, err := r.in(path)
	if err != nil {
		return exists(err)
	}
	return fs.Symlink(target, rest, owner)
}

// both finds the one tree of two paths.
func (r *router) both(oldPath, newPath string) (fs FS, oldRest, newRest string, err error) {
	fs, i, oldRest, err := r.in(oldPath)
	if err != nil {
		return nil, "", "", err
	}
	_, j, newRest, err := r.in(newPath)
	if err == nil && i != j {
		err = syscall.EXDEV
	}
	return fs, oldRest, newRest, err
}

func (r *router) Link(oldPath, newPath string) error {
	fs, oldRest, newRest, err := r.both(oldPath, newPath)
	if err != nil {
		return err
	}
	return fs.Link(oldRest, newRest)
}

func (r *router) Rename(oldPath, newPath string, flags uint32) error {
	fs, oldRest, newRest, err := r.both(oldPath, newPath)
	if err != nil {
		return err
	}
	return fs.Rename(oldRest, newRest, flags)
}

func (r *router) Unlink(path string) error {
	fs, _, rest, err := r.in(path)
	if err != nil {
		return err
	}
	return fs.Unlink(rest)
}

func (r *router) Rmdir(path string) error {
	fs, _, rest, err := r.in(path)
	if err != nil {
		return err
	}
	return fs.Rmdir(rest)
}

func (r *router) SetAttr(path string, c Change) (Attr, error) {
	fs, i, rest, err := r.to(path, syscall.EROFS)
	if err != nil {
		return Attr{}, err
	}
	a, err := fs.SetAttr(rest, c)
	return own(i, a, err)
}

func (r *router) Getxattr(path, name string) ([]byte, error) {
	fs, _, rest, err := r.to(path, syscall.ENODATA)
	if err != nil {
		return nil, err
	}
	return fs.Getxattr(rest, name)
}

func (r *router) Setxattr(path, name string, value []byte, flags int) error {
	fs, _, rest, err := r.to(path, syscall.EROFS)
	if err != nil {
		return err
	}
	return fs.Setxattr(rest, name, value, flags)
}

func (r *router) Listxattr(path string) ([]string, error) {
	fs, i, rest, err := r.route(path)
	if err != nil || i < 0 {
		return nil, err
	}
	return fs.Listxattr(rest)
}

func (r *router) Removexattr(path, name string) error {
	fs, _, rest, err := r.to(path, syscall.EROFS)
	if err != nil {
		return err
	}
	return fs.Removexattr(rest, name)
}

func (r *router) SyncDir(path string) error {
	fs, i, rest, err := r.route(path)
	if err != nil || i < 0 {
		return err
	}
	return fs.SyncDir(rest)
}

func (r *router) Statfs(path string) (Statfs, error) {
	fs, i, rest, err := r.route(path)
	if err != nil {
		return Statfs{}, err
	}
	if i < 0 {
		return Statfs{BlockSize: blockSize}, nil
	}
	return fs.Statfs(rest)
}

func (r *router) Close() error {
	var errs []error
	for _, m := range r.mounts {
		errs = append(errs, m.FS.Close())
	}
	return errors.Join(errs...)
}
