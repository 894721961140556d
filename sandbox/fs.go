package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"sync"
	"time"

	"github.com/matchlock/matchlock/api"
	"github.com/matchlock/matchlock/internal/agent"
	"github.com/matchlock/matchlock/vm"
)

// FS is a guest's files, read and written as its root. It is an fs.FS (with
// fs.ReadDirFS, fs.ReadFileFS, fs.ReadLinkFS and fs.StatFS), with what package os has
// for writing beside it. Its methods may be called by several goroutines at once, the
// files that Open returns by one. Errors of methods with a name are *fs.PathError; what
// is not there is fs.ErrNotExist.
//
// Methods with a context take absolute paths of the guest, or of the host;
// methods without one take names as package io/fs has them: "etc/os-release",
// and "." for the root. Names that are not UTF-8, which Linux allows, are listed
// by ReadDir but cannot be opened; copies and tars hold them.
//
// Symbolic links are followed in the guest, from the guest's root, but not by
// Lstat, ReadLink, Remove and RemoveAll. All that a file is said to be is the
// guest's word.
type FS struct {
	client *agent.Client
	ctx    context.Context // of the methods that package io/fs defines without one
}

// newFS returns the files that a guest's agent reaches. Methods that take no
// context end with ctx.
func newFS(ctx context.Context, client *agent.Client) *FS {
	return &FS{client, ctx}
}

// guestPath is the path in the guest of what package io/fs calls name.
func guestPath(op, name string) (string, error) {
	if !fs.ValidPath(name) {
		return "", &fs.PathError{Op: op, Path: name, Err: fs.ErrInvalid}
	}
	return path.Join("/", name), nil
}

// pathError is err, unless nil, as a file system's. An error that tells of the
// same name, or of one that has no meaning here, is told without it.
func pathError(op, name string, err error) error {
	if err == nil {
		return nil
	}
	if e, ok := err.(*fs.PathError); ok {
		err = e.Err
	}
	if e, ok := err.(*os.LinkError); ok {
		err = e.Err
	}
	switch {
	case errors.Is(err, fs.ErrNotExist) && agent.IsGuestError(err):
		err = fs.ErrNotExist
	case errors.Is(err, agent.ErrTooLarge):
		err = fmt.Errorf("%w: %w", vm.ErrTooLarge, err)
	}
	return &fs.PathError{Op: op, Path: name, Err: err}
}

// Open opens a file for reading, or a folder. The content of a file arrives as
// it is read; its size may be any. Of a device or the like, opening it says no
// more than Stat, and Read fails.
func (f *FS) Open(name string) (fs.File, error) {
	info, err := f.stat("open", name, f.client.Stat)
	if err != nil {
		return nil, err
	}
	if info.IsDir() {
		return &openFolder{fsys: f, name: name, info: info}, nil
	}
	file := &openFile{fsys: f, name: name, info: info}
	file.ctx, file.cancel = context.WithCancel(f.ctx)
	file.content, file.arriving = io.Pipe()
	return file, nil
}

// Stat describes a file; of a symbolic link, what it leads to.
func (f *FS) Stat(name string) (fs.FileInfo, error) {
	return f.stat("stat", name, f.client.Stat)
}

// Lstat describes a file; of a symbolic link, the link itself.
func (f *FS) Lstat(name string) (fs.FileInfo, error) {
	return f.stat("lstat", name, f.client.Lstat)
}

func (f *FS) stat(op, name string, call func(context.Context, string) (api.FileInfo, error)) (fs.FileInfo, error) {
	p, err := guestPath(op, name)
	if err != nil {
		return nil, err
	}
	info, err := call(f.ctx, p)
	if err != nil {
		return nil, pathError(op, name, err)
	}
	info.Name = path.Base(name)
	return fileInfo{info}, nil
}

// ReadLink returns where a symbolic link leads, as it says.
func (f *FS) ReadLink(name string) (string, error) {
	p, err := guestPath("readlink", name)
	if err != nil {
		return "", err
	}
	var target string
	err = f.client.ReadTree(f.ctx, p, false, func(n agent.Node, _ io.Reader) error {
		if target = n.Target; target == "" {
			return fs.ErrInvalid
		}
		return fs.SkipAll
	})
	return target, pathError("readlink", name, err)
}

// ReadDir lists a folder in name order.
func (f *FS) ReadDir(name string) ([]fs.DirEntry, error) {
	p, err := guestPath("readdir", name)
	if err != nil {
		return nil, err
	}
	files, err := f.client.ListFiles(f.ctx, p)
	if err != nil {
		return nil, pathError("readdir", name, err)
	}
	entries := make([]fs.DirEntry, len(files))
	for i, info := range files {
		entries[i] = fs.FileInfoToDirEntry(fileInfo{info})
	}
	return entries, nil
}

// ReadFile returns what a regular file of at most 64 MiB holds; of a larger one
// the error is ErrTooLarge, and Open is the way to read it.
func (f *FS) ReadFile(name string) ([]byte, error) {
	p, err := guestPath("read", name)
	if err != nil {
		return nil, err
	}
	content, err := f.client.ReadFile(f.ctx, p)
	if err != nil {
		return nil, pathError("read", name, err)
	}
	return content, nil
}

// WriteFile replaces a file, whole or not at all. It has the mode perm, 0644 if
// that is 0, whether or not it was there before. Missing parents are made 0755; a
// symbolic link is replaced, not followed.
func (f *FS) WriteFile(name string, data []byte, perm fs.FileMode) error {
	return f.change("write", name, func(p string) error {
		return f.client.WriteFile(f.ctx, p, data, unixMode(perm))
	})
}

// MkdirAll makes a folder and the parents that are missing, with the mode perm
// less the guest's umask. One that is there already is left as it is.
func (f *FS) MkdirAll(name string, perm fs.FileMode) error {
	return f.change("mkdir", name, func(p string) error {
		return f.client.MkdirAll(f.ctx, p, unixMode(perm))
	})
}

// Remove removes a file or an empty folder.
func (f *FS) Remove(name string) error {
	return f.change("remove", name, func(p string) error {
		return f.client.Remove(f.ctx, p, false)
	})
}

// RemoveAll removes a file or a folder with all that is below. That there is
// nothing of that name is no error.
func (f *FS) RemoveAll(name string) error {
	return f.change("remove", name, func(p string) error {
		return f.client.Remove(f.ctx, p, true)
	})
}

func (f *FS) change(op, name string, call func(p string) error) error {
	p, err := guestPath(op, name)
	if err != nil {
		return err
	}
	return pathError(op, name, call(p))
}

// openFile is an open file that is no folder. Close may be called while another
// goroutine waits in Read, and again.
type openFile struct {
	fsys *FS
	name string
	info fs.FileInfo

	ctx      context.Context // ends with Close
	cancel   context.CancelFunc
	start    sync.Once // the download; at the latest Close does
	download sync.WaitGroup
	content  *io.PipeReader
	arriving *io.PipeWriter
}

func (o *openFile) Stat() (fs.FileInfo, error) { return o.info, nil }

func (o *openFile) Read(p []byte) (int, error) {
	o.start.Do(func() {
		o.download.Go(func() {
			_, err := o.fsys.client.Download(o.ctx, path.Join("/", o.name), o.arriving)
			o.arriving.CloseWithError(pathError("read", o.name, err)) // nil is io.EOF
		})
	})
	n, err := o.content.Read(p)
	if err == io.ErrClosedPipe {
		err = pathError("read", o.name, fs.ErrClosed)
	}
	return n, err
}

func (o *openFile) Close() error {
	o.cancel()
	o.content.Close()
	o.start.Do(func() {})
	o.download.Wait()
	return nil
}

// openFolder is an open folder, for one goroutine at a time.
type openFolder struct {
	fsys   *FS
	name   string
	info   fs.FileInfo
	listed bool
	left   []fs.DirEntry
}

func (o *openFolder) Stat() (fs.FileInfo, error) { return o.info, nil }
func (o *openFolder) Close() error               { return nil }

func (o *openFolder) Read([]byte) (int, error) {
	return 0, pathError("read", o.name, errors.New("is a directory"))
}

// ReadDir is that of fs.ReadDirFile.
func (o *openFolder) ReadDir(n int) ([]fs.DirEntry, error) {
	if !o.listed {
		entries, err := o.fsys.ReadDir(o.name)
		if err != nil {
			return nil, err
		}
		o.listed, o.left = true, entries
	}
	if n <= 0 {
		n = len(o.left)
	} else if len(o.left) == 0 {
		return nil, io.EOF
	}
	n = min(n, len(o.left))
	entries := o.left[:n:n]
	o.left = o.left[n:]
	return entries, nil
}

// fileInfo is what the guest says of a file, as package io/fs says it.
type fileInfo struct{ info api.FileInfo }

func (i fileInfo) Name() string      { return i.info.Name }
func (i fileInfo) Size() int64       { return i.info.Size }
func (i fileInfo) Mode() fs.FileMode { return fileMode(i.info.Mode) }
func (i fileInfo) IsDir() bool       { return i.info.IsDir }

// The rest of fs.FileInfo: Sys is the api.FileInfo.
func (i fileInfo) ModTime() time.Time { return i.info.ModTime }
func (i fileInfo) Sys() any           { return i.info }
