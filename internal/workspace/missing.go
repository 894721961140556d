package workspace

import "syscall"

// missing is a tree that is not here.
type missing struct{}

// NewMissing returns what takes the place of a tree that is on another host: all that is
// done with it is EIO.
func NewMissing() FS { return missing{} }

func (missing) Stat(string) (Attr, error)                  { return Attr{}, syscall.EIO }
func (missing) ReadDir(string) ([]DirEntry, error)         { return nil, syscall.EIO }
func (missing) Readlink(string) (string, error)            { return "", syscall.EIO }
func (missing) Open(string, bool) (File, error)            { return nil, syscall.EIO }
func (missing) Create(string, uint32, Owner) (File, error) { return nil, syscall.EIO }
func (missing) Mknod(string, uint32, Owner) error          { return syscall.EIO }
func (missing) Mkdir(string, uint32, Owner) error          { return syscall.EIO }
func (missing) Symlink(string, string, Owner) error        { return syscall.EIO }
func (missing) Link(string, string) error                  { return syscall.EIO }
func (missing) Unlink(string) error                        { return syscall.EIO }
func (missing) Rmdir(string) error                         { return syscall.EIO }
func (missing) Rename(string, string, uint32) error        { return syscall.EIO }
func (missing) SetAttr(string, Change) (Attr, error)       { return Attr{}, syscall.EIO }
func (missing) Getxattr(string, string) ([]byte, error)    { return nil, syscall.EIO }
func (missing) Setxattr(string, string, []byte, int) error { return syscall.EIO }
func (missing) Listxattr(string) ([]string, error)         { return nil, syscall.EIO }
func (missing) Removexattr(string, string) error           { return syscall.EIO }
func (missing) SyncDir(string) error                       { return syscall.EIO }
func (missing) Statfs(string) (Statfs, error)              { return Statfs{}, syscall.EIO }
func (missing) Close() error                               { return nil }
