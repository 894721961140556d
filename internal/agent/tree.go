package agent

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"path"
	"strings"
	"syscall"
	"time"

	"github.com/matchlock/matchlock/internal/wire"
)

// Limits of a tree.
const (
	maxDepth = 1000    // folders in folders; each is open while one below it is read
	maxNodes = 4 << 20 // that a guest may send

	// maxShared is how many bytes the paths of files with several names have
	// together, as both ends hold them while a tree is read. A guest that has more
	// sends the files that come later once for each name.
	maxShared = 8 << 20
)

// A Node is one file of a tree: a folder, a regular file, a symbolic link, or
// something else, of which there is no more to say than that it is there. From a
// guest all of it is the guest's word, but Path and Link name what is below the
// tree's root, and no more than that is to be believed of ReadTree's.
type Node struct {
	// Path is relative to the tree's root, which is "."; its parts, separated by
	// slashes, are any bytes that can be a name on Linux.
	Path string
	// Mode is st_mode: type and permission bits as in stat(2).
	Mode     uint32
	UID, GID uint32
	ModTime  time.Time
	// Size is that of a regular file in bytes; it is 0 too where the guest's kernel
	// does not say, as in /proc. Of what is written to a guest, it is not asked.
	Size int64
	// Target is where a symbolic link leads, as it says: any bytes.
	Target string
	// Link makes a regular file a further name of an earlier one, whose Path it is.
	// It has no content of its own.
	Link string
	// Shared says of a regular file that later ones may be links to it.
	Shared bool
}

func (n *Node) encode() []byte {
	var e wire.Encoder
	e.String(n.Path)
	e.Uint32(n.Mode)
	e.Uint32(n.UID)
	e.Uint32(n.GID)
	e.Varint(n.ModTime.Unix())
	e.Varint(int64(n.ModTime.Nanosecond()))
	e.Varint(n.Size)
	e.String(n.Target)
	e.String(n.Link)
	e.Bool(n.Shared)
	return e.Encoded()
}

func decodeNode(payload []byte) (Node, error) {
	d := wire.NewDecoder(payload)
	n := Node{
		Path:    d.String(maxPath),
		Mode:    d.Uint32(),
		UID:     d.Uint32(),
		GID:     d.Uint32(),
		ModTime: decodeModTime(d),
		Size:    d.Varint(),
		Target:  d.String(maxPath),
		Link:    d.String(maxPath),
		Shared:  d.Bool(),
	}
	if err := d.Done(); err != nil {
		return Node{}, err
	}
	return n, n.check()
}

func (n *Node) isDir() bool     { return n.Mode&modeType == modeDir }
func (n *Node) isRegular() bool { return n.Mode&modeType == modeRegular }
func (n *Node) isSymlink() bool { return n.Mode&modeType == modeSymlink }

// hasContent reports whether data and an end follow the node.
func (n *Node) hasContent() bool { return n.isRegular() && n.Link == "" }

// check holds a node to what its fields promise.
func (n *Node) check() error {
	if err := checkNodePath(n.Path); err != nil {
		return pathError("file", n.Path, err)
	}
	var fault error
	switch {
	case n.isSymlink() != (n.Target != ""):
		fault = errors.New("a symbolic link has a target, and nothing else has")
	case len(n.Target) > maxPath:
		fault = syscall.ENAMETOOLONG
	case strings.Contains(n.Target, "\x00"):
		fault = errNUL
	case !n.hasContent() && (n.Size != 0 || n.Shared) || n.Size < 0:
		fault = errors.New("impossible size")
	case n.Link != "" && (!n.isRegular() || n.Link == "."):
		fault = errLink
	case n.Link != "":
		fault = checkNodePath(n.Link)
	}
	if fault != nil {
		return pathError("file", n.Path, fault)
	}
	return nil
}

var (
	errLink    = errors.New("impossible link")
	errTooDeep = errors.New("too many folders in each other")
)

// checkNodePath says whether p leads from a tree's root to a file below it.
func checkNodePath(p string) error {
	switch {
	case p == ".":
		return nil
	case len(p) > maxPath:
		return syscall.ENAMETOOLONG
	case strings.Count(p, "/") >= maxDepth:
		return errTooDeep
	}
	for name := range strings.SplitSeq(p, "/") {
		if !isName(name) {
			return errName
		}
	}
	return nil
}

// ReadTree has visit called for the file at an absolute path of the guest and
// all that is below it, as the guest's root reads them: folders before what is in
// them, and that in the order of the names' bytes. So no path comes twice, and
// of a node's parent it is known that it is a folder, and not yet over. A
// symbolic link at path itself is followed if follow is set; no other is. Files
// that vanish meanwhile are left out; of a folder where proc or sysfs is
// mounted the content is.
//
// The reader, of a regular file's content, is good until visit returns; what
// has not been read of it is passed over. A file that shrinks meanwhile is an
// error; of one that grows comes what it had; one that does not say its size may
// have MaxReadFile bytes. An error of visit ends it all and is
// returned, but fs.SkipAll is none.
func (c *Client) ReadTree(ctx context.Context, path string, follow bool, visit func(Node, io.Reader) error) error {
	if err := checkPath(path); err != nil {
		return err
	}
	var e wire.Encoder
	e.String(path)
	e.Bool(follow)
	k, release, err := c.request(ctx, requestReadTree, e.Encoded())
	if err != nil {
		return err
	}
	defer k.abort()
	defer release()
	var walk walk
	for {
		kind, payload, err := k.next()
		if err != nil {
			return cause(ctx, err)
		}
		if kind == frameEnd && walk.nodes > 0 {
			return nil
		}
		if kind != frameNode {
			return errGuest
		}
		node, err := decodeNode(payload)
		if err == nil {
			err = walk.step(&node)
		}
		if err != nil {
			return fmt.Errorf("%w: %w", errGuest, err)
		}
		content := &content{ctx: ctx, call: k, left: math.MaxInt64, sized: node.Size > 0}
		switch {
		case !node.hasContent():
			content.err = io.EOF
		case content.sized:
			content.left = node.Size
		default:
			content.left = MaxReadFile
		}
		if err := visit(node, content); err == fs.SkipAll {
			return nil
		} else if err != nil {
			return err
		}
		if _, err := io.Copy(io.Discard, content); err != nil {
			return fmt.Errorf("file %q: %w", node.Path, err)
		}
	}
}

// content reads what a guest sends of a regular file.
type content struct {
	ctx   context.Context
	call  *call
	left  int64 // what may still come
	sized bool  // and what has to
	data  []byte
	err   error // when data has been read
}

func (c *content) Read(p []byte) (int, error) {
	if len(c.data) == 0 && c.err == nil {
		c.data, c.err = c.next()
	}
	n := copy(p, c.data)
	c.data = c.data[n:]
	if n == 0 && len(p) > 0 {
		return 0, c.err
	}
	return n, nil
}

func (c *content) next() ([]byte, error) {
	kind, payload, err := c.call.next()
	switch {
	case err != nil:
		return nil, cause(c.ctx, err)
	case kind == frameNodeEnd && c.sized && c.left > 0:
		return nil, fmt.Errorf("%w: %w", errGuest, io.ErrUnexpectedEOF)
	case kind == frameNodeEnd:
		return nil, io.EOF
	case kind != frameData || len(payload) == 0:
		return nil, errGuest
	}
	if c.left -= int64(len(payload)); c.left < 0 {
		return nil, ErrTooLarge
	}
	return payload, nil
}

// A walk holds a guest to the order and the limits of ReadTree.
type walk struct {
	nodes  int
	last   Node
	shared map[string]bool // the paths of regular files to which there may be links
	size   int             // of those paths
}

func (w *walk) step(n *Node) error {
	if w.nodes++; w.nodes > maxNodes {
		return fmt.Errorf("tree of more than %d files: %w", maxNodes, ErrTooLarge)
	}
	if !w.follows(n.Path) {
		return fmt.Errorf("file %q after %q", n.Path, w.last.Path)
	}
	if n.Link != "" && !w.shared[n.Link] {
		return pathError("file", n.Path, errLink)
	}
	if n.Shared {
		if w.size += len(n.Path); w.size > maxShared {
			return fmt.Errorf("files of several names: %w", ErrTooLarge)
		}
		if w.shared == nil {
			w.shared = make(map[string]bool)
		}
		w.shared[n.Path] = true
	}
	w.last = *n
	return nil
}

// follows reports whether a path comes next: in the folder that was last, or
// after the last file or one of the folders that it is in.
func (w *walk) follows(p string) bool {
	if w.nodes == 1 || p == "." {
		return w.nodes == 1 && p == "."
	}
	dir, name := path.Dir(p), path.Base(p)
	if dir == w.last.Path {
		return w.last.isDir()
	}
	below := w.last.Path
	if dir != "." {
		var ok bool
		if below, ok = strings.CutPrefix(below, dir+"/"); !ok {
			return false
		}
	}
	before, _, _ := strings.Cut(below, "/")
	return name > before
}

// WriteTree has write put files below the folder at an absolute path of the
// guest, which is there already, as the guest's root. Each of them appears whole
// or not at all; when write or put fails, those of before stay.
//
// What put writes has the node's mode, owner and modification time, and of a
// regular file what the reader holds to its end. Parents that are missing are
// made 0755. A folder that is there becomes as the node says, so it is put a
// second time after what is in it where its time or lack of permissions matter.
// Whatever else is there is replaced, but a folder never by something else. No
// symbolic link below the folder is followed: in place of a parent it is an
// error. Nodes that are neither folder, regular file nor symbolic link are
// refused.
func (c *Client) WriteTree(ctx context.Context, path string, write func(put func(Node, io.Reader) error) error) error {
	if err := checkPath(path); err != nil {
		return err
	}
	var e wire.Encoder
	e.String(path)
	k, release, err := c.request(ctx, requestWriteTree, e.Encoded())
	if err != nil {
		return err
	}
	defer k.conn.Close()
	defer release()
	buffer := bufio.NewWriterSize(k.conn, treeBuffer)
	k.out = wire.NewFrameWriter(buffer)
	var refused error // what ended the request; write may not have passed it on
	data := make([]byte, chunk)
	err = write(func(n Node, r io.Reader) error {
		if refused == nil {
			refused = k.put(ctx, &n, r, data)
		}
		return refused
	})
	if err == nil {
		err = refused
	}
	if err != nil {
		k.abort()
		return err
	}
	if k.send(frameEnd, nil) == nil {
		buffer.Flush() // what does not arrive is not answered either
	}
	if err := k.done(); err != nil {
		return cause(ctx, err)
	}
	return nil
}

// treeBuffer is how much of a tree is written at once, so that small files do
// not cost three writes each.
const treeBuffer = 32 << 10

// put sends one node of a tree.
func (k *call) put(ctx context.Context, n *Node, r io.Reader, data []byte) error {
	if err := n.check(); err != nil {
		return err
	}
	// When the guest has given up, its answer says why.
	sent := k.send(frameNode, n.encode()) == nil
	for n.hasContent() && sent {
		size, err := r.Read(data)
		if size > 0 {
			sent = k.send(frameData, data[:size]) == nil
		}
		if err == io.EOF {
			sent = sent && k.send(frameNodeEnd, nil) == nil
			break
		}
		if err != nil {
			return err
		}
	}
	if sent {
		return nil
	}
	if err := k.done(); err != nil {
		return cause(ctx, err)
	}
	return errGuest // it says that it is done before it is told so
}
