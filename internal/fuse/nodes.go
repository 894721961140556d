package fuse

import (
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/matchlock/matchlock/internal/workspace"
)

// nodes are the files that the guest's kernel knows, by the numbers that it has for
// them. A node is known as long as the kernel has not forgotten it, and as others
// lie in it.
//
// Paths are made of the names by which the kernel has found a node, so what the
// guest renames takes all with it that lies in it. What the host renames is found
// again by the kernel: a path that leads to another file is ESTALE.
type nodes struct {
	limit int

	// names is held for writing by what renames and removes, for reading by all else
	// that goes by a path, until it has been there.
	names sync.RWMutex

	mu     sync.Mutex
	byID   map[uint64]*node
	byName map[place]*node
	byFile map[workspace.ID]*node
	next   uint64
	opened int     // what the kernel has open
	held   []*node // that have lost their name to others, and the kernel may open yet
	dirty  []*file // of nodes that are forgotten; let go of without mu
}

// place is a name in a folder.
type place struct {
	folder uint64
	name   string
}

// node is a file. Its fields are guarded by nodes.mu.
type node struct {
	id      uint64
	ino     uint64 // as the guest sees it, as long as the node is known
	file    workspace.ID
	kind    uint32 // S_IFMT of its mode
	lookups uint64 // by the kernel, not yet forgotten
	inside  int    // nodes whose name lies in this one
	names   []place

	reading, writing open // while the kernel has it open
}

// open is a node's file that is kept open.
type open struct {
	file  *file
	users int // what the kernel has open
}

// file is open as long as it is a node's, or in use.
type file struct {
	workspace.File
	uses atomic.Int32 // one is the node's
}

func newFile(f workspace.File) *file {
	made := &file{File: f}
	made.uses.Store(1)
	return made
}

// done ends a use.
func (f *file) done() {
	if f.uses.Add(-1) == 0 {
		f.Close()
	}
}

func newNodes(limit int) *nodes {
	n := &nodes{limit: limit, byID: map[uint64]*node{}, byName: map[place]*node{}, byFile: map[workspace.ID]*node{}, next: rootID + 1}
	n.byID[rootID] = &node{id: rootID, ino: rootID, kind: syscall.S_IFDIR, lookups: 1}
	return n
}

// get returns a node that the kernel may know.
func (n *nodes) get(id uint64) (*node, syscall.Errno) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if found := n.byID[id]; found != nil && found.lookups > 0 {
		return found, 0
	}
	return nil, syscall.ESTALE
}

// path returns a path to a node. The caller holds names.
func (n *nodes) path(id uint64) (string, syscall.Errno) {
	n.mu.Lock()
	defer n.mu.Unlock()
	found := n.byID[id]
	if found == nil {
		return "", syscall.ESTALE
	}
	return n.pathOf(found)
}

// maxDepth bounds paths: PATH_MAX with the shortest names.
const maxDepth = 2048

func (n *nodes) pathOf(at *node) (string, syscall.Errno) {
	var names []string
	for at.id != rootID {
		if len(at.names) == 0 || len(names) == maxDepth {
			return "", syscall.ESTALE
		}
		names = append(names, at.names[0].name)
		if at = n.byID[at.names[0].folder]; at == nil {
			return "", syscall.ESTALE
		}
	}
	slices.Reverse(names)
	return strings.Join(names, "/"), 0
}

// child returns the path of a name in a folder. The caller holds names.
func (n *nodes) child(folder uint64, name string) (string, syscall.Errno) {
	path, errno := n.path(folder)
	return join(path, name), errno
}

// found has the kernel know what is at a place, and returns the node.
func (n *nodes) found(at place, a *workspace.Attr) (*node, syscall.Errno) {
	n.mu.Lock()
	defer n.mu.Unlock()
	folder := n.byID[at.folder]
	if folder == nil || folder.lookups == 0 {
		return nil, syscall.ESTALE // the kernel has forgotten it since it asked
	}
	if folder.kind != syscall.S_IFDIR {
		return nil, syscall.ENOTDIR // whatever the host has made of it
	}
	kind := a.Mode & syscall.S_IFMT
	was := n.byName[at]
	is := n.byFile[a.ID]
	if is != nil && is.kind != kind {
		is = nil // its number was used again
	}
	if is != nil && is != was && kind == syscall.S_IFDIR && n.within(folder, is) {
		return nil, syscall.ESTALE // the host has moved a folder since the path to this one was made
	}
	if is == nil && len(n.byID) >= n.limit || was == nil && len(n.byName) >= n.limit {
		return nil, syscall.ENFILE
	}
	if is == nil {
		is = &node{id: n.next, file: a.ID, kind: kind, ino: inode(a.ID)}
		n.next++
		n.byID[is.id], n.byFile[a.ID] = is, is
	}
	is.lookups++
	if was != is {
		if was != nil {
			n.unname(was, at)
		}
		n.name(is, at)
	}
	return is, 0
}

// within tells whether a folder is, or lies in, another one.
func (n *nodes) within(folder, other *node) bool {
	for range len(n.byID) + 1 {
		if folder == other {
			return true
		}
		if len(folder.names) == 0 {
			return false
		}
		folder = n.byID[folder.names[0].folder]
	}
	return true
}

// maxLinks is how many names of a node are known at once. What is found by one more
// takes the place of the first.
const maxLinks = 64

// name gives a node, which is not to be dropped meanwhile, a name. A folder has one
// only.
func (n *nodes) name(is *node, at place) {
	most := maxLinks
	if is.kind == syscall.S_IFDIR {
		most = 1
	}
	for len(is.names) >= most {
		n.unname(is, is.names[0])
	}
	folder := n.byID[at.folder]
	if folder == nil {
		return // forgotten since the kernel asked for it
	}
	folder.inside++
	is.names = append(is.names, at)
	n.byName[at] = is
}

// unname takes a name from a node.
func (n *nodes) unname(is *node, at place) {
	i := slices.Index(is.names, at)
	if i < 0 {
		return
	}
	is.names = slices.Delete(is.names, i, i+1)
	if n.byName[at] == is {
		delete(n.byName, at)
	}
	if folder := n.byID[at.folder]; folder != nil {
		folder.inside--
		n.drop(folder)
	}
	n.drop(is)
}

// changedFile notes that a node is another file than it was: one that an overlay has
// copied.
func (n *nodes) changedFile(is *node, now workspace.ID) {
	if n.byID[is.id] != is {
		return
	}
	if n.byFile[is.file] == is {
		delete(n.byFile, is.file)
	}
	is.file = now
	n.byFile[now] = is
	n.letGo(&is.reading) // is what it was; it is opened again when it is needed
}

// letGo takes a file from a node.
func (n *nodes) letGo(o *open) {
	if o.file != nil {
		n.dirty = append(n.dirty, o.file)
		o.file = nil
	}
}

// maxHeld is how many files are held open for who might open them.
const maxHeld = 64

// hold keeps a file of a node for reading, though nobody has it open.
func (n *nodes) hold(is *node, f workspace.File) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.byID[is.id] != is || is.reading.file != nil {
		n.dirty = append(n.dirty, newFile(f))
		return
	}
	is.reading.file = newFile(f)
	n.goOnHolding(is)
}

// goOnHolding has a node's file for reading stay open.
func (n *nodes) goOnHolding(is *node) {
	if slices.Contains(n.held, is) {
		return
	}
	if n.held = append(n.held, is); len(n.held) > maxHeld {
		last := n.held[0]
		n.held = slices.Delete(n.held, 0, 1)
		if last.reading.users == 0 {
			n.letGo(&last.reading)
			n.nameless(last)
		}
	}
}

// nameless is called of a node that may have lost its last name. If there is nothing
// of the file any more, another may get its identity.
func (n *nodes) nameless(is *node) {
	if len(is.names) == 0 && is.reading.users+is.writing.users == 0 && is.reading.file == nil && n.byFile[is.file] == is {
		delete(n.byFile, is.file)
	}
}

// removed notes that a name leads nowhere any more.
func (n *nodes) removed(at place) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if was := n.byName[at]; was != nil {
		n.unname(was, at)
		n.nameless(was)
	}
}

// renamed notes that what was at one place is at another. exchange: and the other way
// round.
func (n *nodes) renamed(from, to place, exchange bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	moved, replaced := n.byName[from], n.byName[to]
	if moved == replaced {
		return // two names of one file stay that
	}
	for _, is := range []*node{moved, replaced} {
		if is != nil {
			is.inside++ // not to be dropped meanwhile
			defer func() {
				is.inside--
				n.drop(is)
			}()
		}
	}
	if replaced != nil {
		n.unname(replaced, to)
	}
	if moved != nil {
		n.unname(moved, from)
		n.name(moved, to)
	}
	switch {
	case replaced == nil:
	case exchange:
		n.name(replaced, from)
	default:
		n.nameless(replaced)
	}
}

// forget takes lookups back.
func (n *nodes) forget(id, lookups uint64) {
	n.mu.Lock()
	if is := n.byID[id]; is != nil && id != rootID {
		is.lookups -= min(lookups, is.lookups)
		n.drop(is)
	}
	n.mu.Unlock()
	n.closeDropped()
}

// drop removes a node that nobody knows any more.
func (n *nodes) drop(is *node) {
	if is.id == rootID || is.lookups > 0 || is.inside > 0 || n.byID[is.id] != is {
		return
	}
	delete(n.byID, is.id)
	if n.byFile[is.file] == is {
		delete(n.byFile, is.file)
	}
	for _, o := range []*open{&is.reading, &is.writing} {
		n.opened -= o.users // which the kernel should have released
		o.users = 0
		n.letGo(o)
	}
	for _, at := range slices.Clone(is.names) {
		n.unname(is, at)
	}
}

// closeDropped closes what nodes had open that are gone.
func (n *nodes) closeDropped() {
	n.mu.Lock()
	files := n.dirty
	n.dirty = nil
	n.mu.Unlock()
	for _, f := range files {
		f.done()
	}
}

// close closes all files.
func (n *nodes) close() {
	n.mu.Lock()
	for _, is := range n.byID {
		n.letGo(&is.reading)
		n.letGo(&is.writing)
	}
	n.mu.Unlock()
	n.closeDropped()
}

// inode is the number that the guest sees of a file: the host's, with a mark in the
// upper bits of where that is.
func inode(id workspace.ID) uint64 {
	return max(id.Inode^id.Device<<40^uint64(id.Mount)<<56, rootID+1)
}
