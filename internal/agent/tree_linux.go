package agent

import (
	"bufio"
	"io"
	"net"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/matchlock/matchlock/internal/wire"
)

// readTree sends a file and all that is below it.
func (s *Server) readTree(conn net.Conn, d *wire.Decoder) error {
	root, follow := decodePath(d), d.Bool()
	if err := d.Done(); err != nil {
		return wrap("read", err)
	}
	buffer := bufio.NewWriterSize(conn, treeBuffer)
	t := &treeReader{server: s, out: wire.NewFrameWriter(buffer), root: root, names: make(map[inode]string)}
	err := t.read(unix.AT_FDCWD, 0, root, ".", follow)
	if err == nil {
		err = t.out.WriteFrame(frameEnd, nil)
	}
	if e := buffer.Flush(); err == nil {
		err = e
	}
	return err
}

// treeReader is a request to read a tree.
type treeReader struct {
	server *Server
	out    *wire.FrameWriter
	root   string
	names  map[inode]string // the first path of regular files that have several
	size   int              // of those paths
}

type inode struct{ device, number uint64 }

// errorAt is err about a file of the tree.
func (t *treeReader) errorAt(op, p string, err error) error {
	return &os.PathError{Op: op, Path: path.Join(t.root, p), Err: err}
}

// read sends the file called name in the open folder dir, which is on a device;
// its path in the tree is p.
func (t *treeReader) read(dir int, device uint64, name, p string, follow bool) error {
	if err := checkNodePath(p); err != nil {
		return t.errorAt("read", p, err)
	}
	statFlag, openFlag := unix.AT_SYMLINK_NOFOLLOW, unix.O_NOFOLLOW
	if follow {
		statFlag, openFlag = 0, 0
	}
	op, fd := "stat", -1
	var st unix.Stat_t
	err := unix.Fstatat(dir, name, &st, statFlag)
	if kind := st.Mode & unix.S_IFMT; err == nil && (kind == unix.S_IFREG || kind == unix.S_IFDIR) {
		// Nothing else is opened: that can block, or have an effect.
		op = "open"
		fd, err = unix.Openat(dir, name, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC|openFlag, 0)
		if err == nil {
			defer unix.Close(fd)
			err = unix.Fstat(fd, &st) // of what it is now
		}
	}
	node := nodeOf(p, &st)
	if err == nil && node.isSymlink() {
		op = "readlink"
		node.Target, err = readlink(dir, name)
	}
	switch {
	case err == unix.ENOENT && p != ".":
		return nil // removed in the meantime
	case err != nil:
		return t.errorAt(op, p, err)
	case fd >= 0 && node.isDir():
		return t.readFolder(fd, device, &node, &st)
	case fd >= 0 && node.isRegular():
		return t.readFile(regular(fd), &node, &st)
	}
	return t.out.WriteFrame(frameNode, node.encode())
}

func nodeOf(p string, st *unix.Stat_t) Node {
	return Node{
		Path:    p,
		Mode:    st.Mode,
		UID:     st.Uid,
		GID:     st.Gid,
		ModTime: time.Unix(int64(st.Mtim.Sec), int64(st.Mtim.Nsec)),
	}
}

func readlink(dir int, name string) (string, error) {
	target := make([]byte, maxPath+1)
	n, err := unix.Readlinkat(dir, name, target)
	if err != nil {
		return "", err
	}
	return string(target[:n]), nil
}

// readFolder sends a folder and what is in it.
func (t *treeReader) readFolder(fd int, device uint64, node *Node, st *unix.Stat_t) error {
	if err := t.out.WriteFrame(frameNode, node.encode()); err != nil {
		return err
	}
	if node.Path != "." && st.Dev != device && isMadeUp(fd) {
		return nil
	}
	names, err := namesIn(fd)
	if err != nil {
		return t.errorAt("list", node.Path, err)
	}
	slices.Sort(names)
	for _, name := range names {
		if err := t.read(fd, st.Dev, name, path.Join(node.Path, name), false); err != nil {
			return err
		}
	}
	return nil
}

// isMadeUp reports whether a folder's files are the kernel's word on itself.
func isMadeUp(fd int) bool {
	var st unix.Statfs_t
	return unix.Fstatfs(fd, &st) == nil && (st.Type == unix.PROC_SUPER_MAGIC || st.Type == unix.SYSFS_MAGIC)
}

// namesIn lists an open folder, which stays open.
func namesIn(fd int) ([]string, error) {
	again, err := unix.Openat(fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(again), ".")
	defer f.Close()
	var all []string
	for size := 0; ; {
		names, err := f.Readdirnames(1024)
		if err == io.EOF {
			return all, nil
		}
		if err != nil {
			return nil, err
		}
		all = append(all, names...)
		for _, name := range names {
			size += len(name)
		}
		if len(all) > maxListed || size > maxListedBytes {
			return nil, ErrTooLarge
		}
	}
}

// readFile sends a regular file, or that it has been sent under another name.
func (t *treeReader) readFile(f regular, node *Node, st *unix.Stat_t) error {
	if st.Nlink > 1 {
		id := inode{st.Dev, st.Ino}
		node.Link = t.names[id]
		if node.Link == "" && t.size+len(node.Path) <= maxShared {
			t.size += len(node.Path)
			t.names[id] = node.Path
			node.Shared = true
		}
	}
	if node.Link == "" && !isMadeUp(int(f)) { // sysfs says 4096 of everything
		node.Size = st.Size
	}
	if err := t.out.WriteFrame(frameNode, node.encode()); err != nil || node.Link != "" {
		return err
	}
	size := uint64(node.Size)
	limit := max(size, MaxReadFile)
	total, err := t.server.sendContent(t.out, f, size, limit)
	switch {
	case err != nil:
	case total > limit:
		err = ErrTooLarge
	case total < size:
		err = io.ErrUnexpectedEOF // it has shrunk
	}
	if err != nil {
		return t.errorAt("read", node.Path, err)
	}
	return t.out.WriteFrame(frameNodeEnd, nil)
}

// writeTree creates below a folder what the host sends.
func (s *Server) writeTree(in *wire.FrameReader, out *wire.FrameWriter, d *wire.Decoder) error {
	dir := decodePath(d)
	if err := d.Done(); err != nil {
		return wrap("write", err)
	}
	root, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: dir, Err: err}
	}
	defer unix.Close(root)
	t := &treeWriter{in: in, root: root, folder: root, path: "."}
	defer t.leave()
	for {
		kind, payload, err := in.Next(wire.MaxData)
		switch {
		case err != nil:
			return err
		case kind == frameEnd:
			return out.WriteFrame(frameEnd, nil)
		case kind != frameNode:
			return wrap("write", errFrame)
		}
		node, err := decodeNode(payload)
		if err != nil {
			return err
		}
		if err := t.write(&node); err != nil {
			return &os.PathError{Op: "write", Path: path.Join(dir, node.Path), Err: err}
		}
	}
}

// treeWriter is a request to write a tree. Every way to a file goes from the
// root folder step by step, so that a symbolic link that somebody in the guest
// lays there leads nowhere.
type treeWriter struct {
	in     *wire.FrameReader
	root   int
	folder int    // the one entered last
	path   string // its path
}

func (t *treeWriter) write(n *Node) error {
	if n.Path == "." {
		return unix.EEXIST
	}
	if err := t.enter(path.Dir(n.Path)); err != nil {
		return err
	}
	name := path.Base(n.Path)
	switch {
	case n.isDir():
		return t.writeFolder(name, n)
	case n.Link != "":
		return t.link(name, n.Link)
	case n.isRegular():
		return replaceAt(t.folder, name, func(temp string) error {
			err := receiveFile(t.in, frameNodeEnd, t.folder, temp, func(fd int) error { return setOwnerAndMode(fd, n) })
			if err != nil {
				return err
			}
			return t.setTime(temp, n)
		})
	case n.isSymlink():
		return replaceAt(t.folder, name, func(temp string) error {
			if err := unix.Symlinkat(n.Target, t.folder, temp); err != nil {
				return err
			}
			owner := unix.Fchownat(t.folder, temp, int(n.UID), int(n.GID), unix.AT_SYMLINK_NOFOLLOW)
			if owner != nil && isRoot() {
				return owner
			}
			return t.setTime(temp, n)
		})
	}
	return unix.ENOTSUP
}

// enter makes the folder at p the one in which names are looked up.
func (t *treeWriter) enter(p string) error {
	if p == t.path {
		return nil
	}
	t.leave()
	folder, err := t.open(p)
	if err != nil {
		return err
	}
	t.folder, t.path = folder, p
	return nil
}

// leave makes it the root.
func (t *treeWriter) leave() {
	if t.folder != t.root {
		unix.Close(t.folder)
	}
	t.folder, t.path = t.root, "."
}

// open opens the folder at p, making what is missing; the root is not opened anew.
func (t *treeWriter) open(p string) (int, error) {
	folder := t.root
	if p == "." {
		return folder, nil
	}
	for name := range strings.SplitSeq(p, "/") {
		const flags = unix.O_PATH | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
		next, err := unix.Openat(folder, name, flags, 0)
		if err == unix.ENOENT {
			if err = unix.Mkdirat(folder, name, 0o755); err == nil {
				next, err = unix.Openat(folder, name, flags, 0)
			}
		}
		if folder != t.root {
			unix.Close(folder)
		}
		if err != nil {
			return -1, err
		}
		folder = next
	}
	return folder, nil
}

func (t *treeWriter) writeFolder(name string, n *Node) error {
	if err := unix.Mkdirat(t.folder, name, 0o700); err != nil && err != unix.EEXIST {
		return err
	}
	fd, err := unix.Openat(t.folder, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := setOwnerAndMode(fd, n); err != nil {
		return err
	}
	return t.setTime(name, n)
}

// link gives the file at the path first a further name.
func (t *treeWriter) link(name, first string) error {
	folder, err := t.open(path.Dir(first))
	if err != nil {
		return err
	}
	if folder != t.root {
		defer unix.Close(folder)
	}
	var this, that unix.Stat_t
	if unix.Fstatat(folder, path.Base(first), &this, unix.AT_SYMLINK_NOFOLLOW) == nil &&
		unix.Fstatat(t.folder, name, &that, unix.AT_SYMLINK_NOFOLLOW) == nil &&
		this.Dev == that.Dev && this.Ino == that.Ino {
		return nil // it is so already; rename(2) would leave the temporary name
	}
	return replaceAt(t.folder, name, func(temp string) error {
		return unix.Linkat(folder, path.Base(first), t.folder, temp, 0)
	})
}

// setOwnerAndMode makes an open file the node's. A server that is not root, as
// in tests, leaves the owner as it is.
func setOwnerAndMode(fd int, n *Node) error {
	// The owner first: a new one takes the set-uid bit away.
	if err := unix.Fchown(fd, int(n.UID), int(n.GID)); err != nil && isRoot() {
		return err
	}
	return unix.Fchmod(fd, n.Mode&0o7777)
}

func isRoot() bool { return unix.Geteuid() == 0 }

// setTime gives a file in the entered folder the node's modification time.
func (t *treeWriter) setTime(name string, n *Node) error {
	mtime, err := unix.TimeToTimespec(n.ModTime)
	if err != nil {
		return err
	}
	return unix.UtimesNanoAt(t.folder, name, []unix.Timespec{{Nsec: unix.UTIME_OMIT}, mtime}, unix.AT_SYMLINK_NOFOLLOW)
}
