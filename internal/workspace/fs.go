// Package workspace is the trees of files that a guest is offered: a folder of the
// host, one in memory, a host's folder under what the guest has changed. It says what
// may be done with them and does it on the host; how it is asked, package fuse knows.
//
// A tree is an FS. Some have files of their own (OpenHost, Memory, Overlay), others
// narrow, watch or join them (NewFilter, NewHooks, NewRouter). All that comes to an FS may be the
// wish of a hostile guest.
package workspace

import (
	"io"
	"math"
	"time"
)

// An FS is a tree of files. Several goroutines may call its methods at once.
//
// A path is relative to the root, with slashes between its names; "" is the root
// itself. The caller has seen to it that each name is one: not empty, "." or "..",
// without slash and NUL, at most 255 bytes. No method follows a symbolic link, at
// the path's end or before it: the guest's kernel has done so, and a link in the
// path is syscall.ELOOP or syscall.ENOTDIR.
//
// Errors are a syscall.Errno, or wrap one; any other is EIO to the guest.
type FS interface {
	// Stat describes what is at the path itself.
	Stat(path string) (Attr, error)
	// ReadDir lists a folder, without "." and "..", in any order.
	ReadDir(path string) ([]DirEntry, error)
	// Readlink returns a link's target, which is text to the host.
	Readlink(path string) (string, error)
	// Open opens a regular file that exists; anything else is an error, and is not
	// opened: a fifo must not hold up anybody.
	Open(path string, write bool) (File, error)
	// Create makes a regular file and opens it for reading and writing. If there is
	// something already it is syscall.EEXIST.
	Create(path string, mode uint32, owner Owner) (File, error)
	// Mknod makes a fifo or a socket; mode has the type. All other types are EPERM.
	Mknod(path string, mode uint32, owner Owner) error
	Mkdir(path string, mode uint32, owner Owner) error
	Symlink(target, path string, owner Owner) error
	// Link makes newPath another name of the file at oldPath.
	Link(oldPath, newPath string) error
	Unlink(path string) error
	Rmdir(path string) error
	// Rename is renameat2(2), with no other flags than RenameNoReplace and RenameExchange.
	Rename(oldPath, newPath string, flags uint32) error
	// SetAttr changes what c says, and returns what is there then.
	SetAttr(path string, c Change) (Attr, error)

	// Xattrs of the guest are those of "user."; all else is EOPNOTSUPP to set, and
	// ENODATA to get.
	Getxattr(path, name string) ([]byte, error)
	Setxattr(path, name string, value []byte, flags int) error // as setxattr(2)
	Listxattr(path string) ([]string, error)
	Removexattr(path, name string) error

	// SyncDir makes what names a folder has last, as fsync(2) of it does.
	SyncDir(path string) error
	// Statfs tells of the file system that path is in.
	Statfs(path string) (Statfs, error)
	// Close releases what the tree holds. Files of it that are open stay so.
	Close() error
}

// A File is an open regular file. Several goroutines may use it at once.
type File interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
	Stat() (Attr, error)
	Truncate(size int64) error
	Sync() error // what was written and, but for a file's times, what it is
	// Allocate is fallocate(2).
	Allocate(mode uint32, offset, length int64) error
	// SeekData finds data or a hole from an offset on, as lseek(2) does for unix.SEEK_DATA and
	// SEEK_HOLE.
	SeekData(offset int64, whence int) (int64, error)
}

// Flags of Rename, as renameat2(2) has them.
const (
	RenameNoReplace = 1
	RenameExchange  = 2
)

// Owner is whom a file belongs to, in the guest.
type Owner struct{ UID, GID uint32 }

// AnyOwner, in the place of a number of Owner, is the user or group of the sandbox's
// first command, which only the guest knows.
const AnyOwner = math.MaxUint32

// Attr describes a file as the guest is to see it.
type Attr struct {
	// ID tells files of one tree apart, for as long as they exist: two paths of one ID
	// are the same file. A file that is changed for the first time may get another one,
	// in an Overlay.
	ID     ID
	Mode   uint32 // type and permissions, st_mode of stat(2)
	Links  uint32
	Owner  Owner
	Rdev   uint32
	Size   int64 // bytes
	Blocks int64 // of 512 bytes
	// Atime, Mtime and Ctime are st_atim and so on.
	Atime, Mtime, Ctime time.Time
}

// ID is the identity of a file on the host.
type ID struct {
	Mount         uint32 // of a Router; else 0
	Device, Inode uint64
	// Born is when it was made, in ns, where the host's file system knows: an inode's
	// number is used again.
	Born int64
}

// CopyOf tells whether a file with this ID, that was found in the place of another one,
// is what an Overlay has made of that, to be changed.
func (id ID) CopyOf(other ID) bool {
	return id.Mount == other.Mount && id.Device == ownDevice && other.Device != ownDevice
}

// DirEntry is one name in a folder.
type DirEntry struct {
	Name string
	Type uint32 // S_IFDIR and so on; 0: not known
}

// Change says what SetAttr changes; what is nil stays as it is.
type Change struct {
	Mode         *uint32 // permissions, set-id bits among them
	UID, GID     *uint32
	Size         *int64
	Atime, Mtime *time.Time
	Now          [2]bool // Atime and Mtime are the host's present time, whatever they say
}

// Statfs is what statfs(2) says of a tree, in blocks of BlockSize bytes.
type Statfs struct {
	BlockSize           int64
	Blocks, Free, Avail uint64
	Files, FilesFree    uint64
}
