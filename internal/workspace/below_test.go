package workspace_test

import "github.com/matchlock/matchlock/internal/workspace"

// below is a folder of a tree as a tree.
type below struct {
	workspace.FS
	dir string
}

func (b below) at(path string) string {
	if path == "" {
		return b.dir
	}
	return b.dir + "/" + path
}

func (b below) Stat(p string) (workspace.Attr, error)          { return b.FS.Stat(b.at(p)) }
func (b below) ReadDir(p string) ([]workspace.DirEntry, error) { return b.FS.ReadDir(b.at(p)) }
func (b below) Readlink(p string) (string, error)              { return b.FS.Readlink(b.at(p)) }
func (b below) Open(p string, write bool) (workspace.File, error) {
	return b.FS.Open(b.at(p), write)
}
func (b below) Create(p string, mode uint32, o workspace.Owner) (workspace.File, error) {
	return b.FS.Create(b.at(p), mode, o)
}
func (b below) Mknod(p string, mode uint32, o workspace.Owner) error {
	return b.FS.Mknod(b.at(p), mode, o)
}
func (b below) Mkdir(p string, mode uint32, o workspace.Owner) error {
	return b.FS.Mkdir(b.at(p), mode, o)
}
func (b below) Symlink(target, p string, o workspace.Owner) error {
	return b.FS.Symlink(target, b.at(p), o)
}
func (b below) Link(p, q string) error { return b.FS.Link(b.at(p), b.at(q)) }
func (b below) Unlink(p string) error  { return b.FS.Unlink(b.at(p)) }
func (b below) Rmdir(p string) error   { return b.FS.Rmdir(b.at(p)) }
func (b below) Rename(p, q string, flags uint32) error {
	return b.FS.Rename(b.at(p), b.at(q), flags)
}
func (b below) SetAttr(p string, c workspace.Change) (workspace.Attr, error) {
	return b.FS.SetAttr(b.at(p), c)
}
func (b below) Getxattr(p, name string) ([]byte, error) { return b.FS.Getxattr(b.at(p), name) }
func (b below) Setxattr(p, name string, value []byte, flags int) error {
	return b.FS.Setxattr(b.at(p), name, value, flags)
}
func (b below) Listxattr(p string) ([]string, error)      { return b.FS.Listxattr(b.at(p)) }
func (b below) Removexattr(p, name string) error          { return b.FS.Removexattr(b.at(p), name) }
func (b below) SyncDir(p string) error                    { return b.FS.SyncDir(b.at(p)) }
func (b below) Statfs(p string) (workspace.Statfs, error) { return b.FS.Statfs(b.at(p)) }
