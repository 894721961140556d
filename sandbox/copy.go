package sandbox

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/matchlock/matchlock/internal/agent"
	"github.com/matchlock/matchlock/internal/wire"
)

// SkippedError says that a copy is whole but for files that are neither folder,
// regular file nor symbolic link: devices, fifos, sockets.
type SkippedError struct {
	Names []string // the first of them, as they are: any bytes
	Count int      // of all
}

const maxSkippedNames = 16

func (e *SkippedError) Error() string {
	more := ""
	if e.Count > len(e.Names) {
		more = fmt.Sprintf(" and %d more", e.Count-len(e.Names))
	}
	return fmt.Sprintf("not copied, for they are neither folder, file nor symbolic link: %q%s", e.Names, more)
}

func (e *SkippedError) add(name string) {
	if e.Count++; e.Count <= maxSkippedNames {
		e.Names = append(e.Names, name)
	}
}

// after is how a copy ended, of which err is known.
func (e *SkippedError) after(err error) error {
	if err == nil && e.Count > 0 {
		return e
	}
	return err
}

// sourceName is the name under which a copy of what is at p goes into a folder;
// "." is no name of its own: what is in p goes there.
func sourceName(p string) string {
	name := path.Base(p)
	if strings.HasSuffix(p, "/.") || name == ".." || name == "/" {
		return "."
	}
	return name
}

// place decides, as docker cp does, where a copy goes of a file, or a folder,
// whose sourceName is given: into the folder dir, under a name. To is where it
// is to go, and there describes what is there now; nil: nothing.
func place(to string, there fs.FileInfo, source string, folder bool) (dir, name string, err error) {
	switch {
	case there != nil && there.IsDir():
		return to, source, nil
	case there != nil && folder:
		err = syscall.ENOTDIR
	case there != nil && !there.Mode().IsRegular():
		err = errNotRegular
	case there == nil && !folder && (strings.HasSuffix(to, "/") || strings.HasSuffix(to, "/.")):
		err = fs.ErrNotExist // as what it is said to be, a folder
	default:
		return path.Dir(path.Clean(to)), path.Base(path.Clean(to)), nil
	}
	return "", "", pathError("copy", to, err)
}

var errNotRegular = errors.New("not a regular file")

// CopyIn copies a file of the host, or a folder with all that is in it, into
// the guest, as docker cp does. Where guestPath is a folder the copy goes into it
// under its own name; what does not exist is made, in a folder that does. Of
// "folder/." what is in the folder is copied. A file that is in the way is
// replaced, a symbolic link too; a folder never is, and no symbolic link below
// guestPath is followed.
//
// Symbolic links are copied as such, hostPath itself too, and hard links stay
// such. Modes and modification times are kept; the owner is the guest's root.
// What is neither folder, file nor symbolic link is left out; when all else is
// copied the error is a *SkippedError. Any other error leaves the files that
// were copied before it, and no half ones.
func (f *FS) CopyIn(ctx context.Context, hostPath, guestPath string) error {
	info, err := os.Lstat(hostPath)
	if err != nil {
		return pathError("copy", hostPath, err)
	}
	there, err := f.lookUp(ctx, guestPath)
	if err != nil {
		return pathError("copy", guestPath, err)
	}
	dir, name, err := place(guestPath, there, sourceName(hostPath), info.IsDir())
	if err != nil {
		return err
	}
	in := &copyIn{hostPath: hostPath, names: make(map[inode]string)}
	from := "."
	if !info.IsDir() {
		in.hostPath, from = filepath.Split(filepath.Clean(hostPath))
		in.hostPath = filepath.Clean(in.hostPath)
	}
	if in.root, err = os.OpenRoot(in.hostPath); err != nil {
		return pathError("copy", in.hostPath, err)
	}
	defer in.root.Close()
	err = f.client.WriteTree(ctx, dir, func(put func(agent.Node, io.Reader) error) error {
		in.put = put
		return in.copy(from, name)
	})
	if _, ok := err.(*fs.PathError); err != nil && !ok {
		err = pathError("copy", guestPath, err)
	}
	return in.skipped.after(err)
}

// lookUp describes what is at a path of the guest; nil: nothing is.
func (f *FS) lookUp(ctx context.Context, p string) (fs.FileInfo, error) {
	info, err := f.client.Stat(ctx, p)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return fileInfo{info}, nil
}

// copyIn is a copy from the host into the guest. What is copied may change
// meanwhile, by a guest that shares it, too: nothing outside root is read.
type copyIn struct {
	hostPath string
	root     *os.Root // at hostPath
	put      func(agent.Node, io.Reader) error
	names    map[inode]string // in the guest, of files that have several
	skipped  SkippedError
}

type inode struct{ device, number uint64 }

// copy copies what is at the path from below root to the guest's path to below
// the destination, where "." is there already.
func (c *copyIn) copy(from, to string) error {
	fail := func(err error) error { return pathError("copy", filepath.Join(c.hostPath, from), err) }
	info, err := c.root.Lstat(from)
	if err != nil {
		return fail(err)
	}
	n := agent.Node{Path: to, Mode: unixMode(info.Mode()), ModTime: info.ModTime()}
	switch info.Mode().Type() {
	case fs.ModeSymlink:
		n.Mode |= modeSymlink
		if n.Target, err = c.root.Readlink(from); err != nil {
			return fail(err)
		}
		return c.put(n, nil)
	case 0, fs.ModeDir:
	default:
		c.skipped.add(filepath.Join(c.hostPath, from))
		return nil
	}
	file, err := c.root.OpenFile(from, os.O_RDONLY|syscall.O_NONBLOCK, 0) // which waits for no fifo that took its place
	if err != nil {
		return fail(err)
	}
	defer file.Close()
	if now, err := file.Stat(); err != nil || !os.SameFile(now, info) {
		return fail(errors.Join(err, errors.New("changed while it was read")))
	}
	if !info.IsDir() {
		n.Mode |= modeRegular
		if st := info.Sys().(*syscall.Stat_t); st.Nlink > 1 {
			id := inode{uint64(st.Dev), st.Ino}
			if n.Link = c.names[id]; n.Link == "" {
				c.names[id] = to
			}
		}
		return c.put(n, file)
	}
	n.Mode |= modeDir
	names, err := file.Readdirnames(-1)
	if err != nil {
		return fail(err)
	}
	file.Close() // or as many were open as the tree is deep
	return c.copyFolder(from, n, names)
}

// copyFolder copies a folder, of which n says what it becomes, and what is in it.
func (c *copyIn) copyFolder(from string, n agent.Node, names []string) error {
	last := n
	n.Mode |= 0o700 // as long as files are made in it
	if n.Path != "." {
		if err := c.put(n, nil); err != nil {
			return err
		}
	}
	slices.Sort(names)
	for _, name := range names {
		if err := c.copy(filepath.Join(from, name), path.Join(n.Path, name)); err != nil {
			return err
		}
	}
	if n.Path == "." {
		return nil
	}
	return c.put(last, nil)
}

// CopyOut copies a file of the guest, or a folder with all that is in it, to
// the host, by the rules of CopyIn. The guest is not trusted: nothing is written
// but what hostPath names and below it, no symbolic link there is followed, and
// files get no owner but the caller and no set-id or sticky bits. Symbolic links
// are copied as such: where they lead is the guest's word, for whoever follows
// them. How much is copied is bounded by the host's disk alone.
//
// Modes and modification times are kept, but for those of symbolic links and
// of folders that were there before.
func (f *FS) CopyOut(ctx context.Context, guestPath, hostPath string) error {
	there, err := os.Stat(hostPath)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return pathError("copy", hostPath, err)
	}
	var out copyOut
	err = f.client.ReadTree(ctx, guestPath, false, func(n agent.Node, r io.Reader) error {
		if n.Path == "." {
			dir, name, err := place(hostPath, there, sourceName(guestPath), fileMode(n.Mode).IsDir())
			if err != nil {
				return err
			}
			if err := out.begin(dir, name); err != nil {
				return pathError("copy", dir, err)
			}
		}
		p := path.Join(out.name, n.Path)
		return pathError("copy", out.shown(p), out.copy(p, n, r))
	})
	if e := out.end(); err == nil {
		err = e
	}
	if _, ok := err.(*fs.PathError); err != nil && !ok {
		err = pathError("copy", guestPath, err)
	}
	return out.skipped.after(err)
}

// copyOut is a copy from the guest onto the host. Every file is made in a
// folder that is held open, under a name without slashes.
type copyOut struct {
	dir, name string          // the destination, and the name of the tree's root in it
	open      []*folderOnHost // the destination, and the folders down to the last file
	skipped   SkippedError
}

type folderOnHost struct {
	*os.Root
	path    string // below the destination
	made    bool   // by us: then, at its end, it gets
	mode    fs.FileMode
	modTime time.Time
}

func (c *copyOut) begin(dir, name string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	c.dir, c.name = dir, name
	c.open = []*folderOnHost{{Root: root, path: "."}}
	return nil
}

// copy makes the guest's node what is at the path p below the destination.
func (c *copyOut) copy(p string, n agent.Node, r io.Reader) error {
	mode := fileMode(n.Mode)
	if p == "." { // the destination itself
		if !mode.IsDir() {
			return syscall.ENOTDIR
		}
		return nil
	}
	if err := c.enter(path.Dir(p)); err != nil {
		return err
	}
	folder, name := c.open[len(c.open)-1], path.Base(p)
	switch mode.Type() {
	case fs.ModeDir:
		return c.copyFolder(folder, name, &folderOnHost{path: p, mode: mode.Perm(), modTime: n.ModTime})
	case fs.ModeSymlink:
		return folder.replace(name, func(temp string) error { return folder.Symlink(n.Target, temp) })
	case 0:
		if n.Link != "" {
			return folder.replace(name, func(temp string) error {
				return c.open[0].Link(path.Join(c.name, n.Link), path.Join(folder.path, temp))
			})
		}
		return folder.replace(name, func(temp string) error { return folder.create(temp, n, r) })
	}
	c.skipped.add(filepath.Join(c.dir, p))
	return nil
}

// shown is how an error names what is at p: the name is the guest's.
func (c *copyOut) shown(p string) string { return filepath.Join(c.dir, wire.Printable(p)) }

// enter makes the folder at p, which is one of those that are open, the last.
func (c *copyOut) enter(p string) error {
	for c.open[len(c.open)-1].path != p {
		if err := c.leave(); err != nil {
			return err
		}
	}
	return nil
}

// leave ends the last of the open folders.
func (c *copyOut) leave() error {
	last := len(c.open) - 1
	folder := c.open[last]
	c.open = c.open[:last]
	defer folder.Close()
	if !folder.made {
		return nil
	}
	if err := folder.Chtimes(".", time.Time{}, folder.modTime); err != nil {
		return err
	}
	return folder.Chmod(".", folder.mode) // with which the time might not be allowed
}

// end ends all folders that are open.
func (c *copyOut) end() (err error) {
	for len(c.open) > 0 {
		name := c.shown(c.open[len(c.open)-1].path)
		if e := c.leave(); err == nil {
			err = pathError("copy", name, e)
		}
	}
	return err
}

// copyFolder makes the folder that is called name in parent, unless it is there,
// and enters it as folder.
func (c *copyOut) copyFolder(parent *folderOnHost, name string, folder *folderOnHost) error {
	err := parent.Mkdir(name, 0o700)
	folder.made = err == nil
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	info, err := parent.Lstat(name)
	if err != nil {
		return err
	}
	if !info.IsDir() {
		return syscall.ENOTDIR
	}
	if folder.Root, err = parent.OpenRoot(name); err != nil {
		return err
	}
	if now, err := folder.Root.Stat("."); err != nil || !os.SameFile(now, info) { // a link that took its place
		folder.Close()
		return errors.Join(err, syscall.ENOTDIR)
	}
	c.open = append(c.open, folder)
	return nil
}

// replace has make create something under a name of no meaning and gives it its
// name when it is whole. A file or symbolic link that is there is replaced.
func (d *folderOnHost) replace(name string, make func(temp string) error) error {
	if info, err := d.Lstat(name); err == nil {
		switch info.Mode().Type() {
		case 0, fs.ModeSymlink:
		case fs.ModeDir:
			return syscall.EISDIR
		default:
			return errNotRegular
		}
	}
	temp := ".matchlock-" + rand.Text()
	defer d.Remove(temp) // is there after an error only, or between two names of one file
	if err := make(temp); err != nil {
		return err
	}
	return d.Rename(temp, name)
}

// create makes a regular file.
func (d *folderOnHost) create(name string, n agent.Node, r io.Reader) error {
	file, err := d.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer file.Close() // a second time where all is well
	if _, err := io.Copy(file, r); err != nil {
		return err
	}
	if err := file.Chmod(fileMode(n.Mode).Perm()); err != nil {
		return err
	}
	if err := file.Close(); err != nil {
		return err
	}
	return d.Chtimes(name, time.Time{}, n.ModTime)
}
