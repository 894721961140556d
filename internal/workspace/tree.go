package workspace

import (
	"maps"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// A tree is names and what they name, in memory: all of a Memory but its files' bytes,
// and of an Overlay what the guest has changed. Over a lower tree, folders and files that
// nobody has changed are not in it.
//
// It changes by edits alone, some of which are one step. An Overlay writes its steps
// down first: made again, they make the same tree.
type tree struct {
	mu     sync.RWMutex
	inodes map[uint64]*inode
	next   uint64 // the number of the next inode
	names  int64  // in all folders
	gone   int64  // names of the lower tree that are not to be seen
	held   int64  // bytes of memory that it takes, by and large
	maxima maxima

	lower FS // nil: there is none
	store store
	write func([]edit) error // writes a step down before it is made; nil: does not
}

// maxima bound a tree. No more names are gone than may be there.
type maxima struct{ names, held int64 }

// A store has the bytes of a tree's regular files.
type store interface {
	// These are called with mu held.

	stat(n *inode, a *Attr) error // sets what it knows better
	setTimes(n *inode, c Change) error
	free(n *inode)  // it has lost its last name
	adopt(n *inode) // it is in the tree now, from the lower one

	truncate(path string, size int64) error
}

// An inode is what names name.
type inode struct {
	meta
	names   uint32           // that it has
	entries map[string]entry // of a folder
	folders uint32           // among entries
	held    int64

	chunks chunks    // of a Memory's file
	open   *openFile // of an Overlay's, if it is
}

// meta is what is known of an inode beyond names and bytes.
type meta struct {
	Number uint64 `json:"number"` // never used again
	ID     ID     `json:"id"`
	Mode   uint32 `json:"mode"`
	Rdev   uint32 `json:"rdev,omitempty"`
	Owner  Owner  `json:"owner"`
	// Times are nanoseconds of Unix time. TimesSet: the guest has set them, and those of
	// the lower file do not count.
	Atime    int64             `json:"atime"`
	Mtime    int64             `json:"mtime"`
	Ctime    int64             `json:"ctime"`
	TimesSet bool              `json:"times_set,omitempty"`
	Target   []byte            `json:"target,omitempty"` // of a link
	Xattrs   map[string][]byte `json:"xattrs,omitempty"`

	// Lower is where the lower tree has it, if Origin is not nil, which says what it was
	// there when it got here. Merged: names that a folder does not have here are looked for
	// there, and bytes of a file are read there.
	Lower  []byte  `json:"lower,omitempty"`
	Origin *origin `json:"origin,omitempty"`
	Merged bool    `json:"merged,omitempty"`
}

// origin tells whether a lower file is what it was.
type origin struct {
	ID    ID    `json:"id"`
	Size  int64 `json:"size"`
	Ctime int64 `json:"ctime"` // ns of Unix time
}

func originOf(a Attr) *origin { return &origin{a.ID, a.Size, a.Ctime.UnixNano()} }

// An entry is a name in a folder. hidden is not 0 where what the lower folder has by this
// name is not to be seen: it is when that was changed last before it was hidden, by ctime
// in ns of Unix time; what is younger is another one. An entry without inode is there to
// hide alone.
type entry struct {
	inode  *inode
	hidden int64
}

// An edit changes one inode, or one name.
type edit struct {
	Meta *meta     `json:"meta,omitempty"`
	Name *nameEdit `json:"name,omitempty"`
}

type nameEdit struct {
	Folder uint64 `json:"folder"`
	Name   []byte `json:"name"`
	Inode  uint64 `json:"inode,omitempty"` // 0: none
	Hidden int64  `json:"hidden,omitempty"`
	Time   int64  `json:"time,omitempty"` // when the guest did it, ns; 0: not the guest
}

const (
	rootNumber = 1
	// heldInode and heldName are what they take in memory, about.
	heldInode, heldName = 400, 120
	// ownDevice is the device of what no lower tree has. No file system has this number.
	ownDevice = ^uint64(0)
)

func (t *tree) init(root meta) {
	t.inodes, t.next = make(map[uint64]*inode), rootNumber+1
	root.Number = rootNumber
	t.edit(edit{Meta: &root})
	t.inodes[rootNumber].names = 1 // which nobody removes
}

// canOpen is nil for a regular file.
func (n *inode) canOpen() error {
	switch n.Mode & syscall.S_IFMT {
	case syscall.S_IFREG:
		return nil
	case syscall.S_IFDIR:
		return syscall.EISDIR
	case syscall.S_IFLNK:
		return syscall.ELOOP
	}
	return syscall.ENXIO
}

func (n *inode) is(typ uint32) bool { return n.Mode&syscall.S_IFMT == typ }

func (m *meta) cost() int64 {
	cost := heldInode + int64(len(m.Target)+len(m.Lower))
	for name, value := range m.Xattrs {
		cost += heldName + int64(len(name)+len(value))
	}
	return cost
}

// step makes edits: all, or none if there is no room.
func (t *tree) step(edits ...edit) error {
	var names, gone, held int64
	for _, e := range edits {
		if m := e.Meta; m != nil {
			held += m.cost()
			if old := t.inodes[m.Number]; old != nil {
				held -= old.held
			}
		}
		if e := e.Name; e != nil {
			var old entry
			there := false
			if folder := t.inodes[e.Folder]; folder != nil {
				old, there = folder.entries[string(e.Name)]
			}
			if e.Inode != 0 && old.inode == nil {
				names++
			}
			if !there && e.Inode == 0 {
				gone++
			}
			if !there {
				held += heldName + int64(len(e.Name))
			}
		}
	}
	if names > 0 && t.names+names > t.maxima.names || gone > 0 && t.gone+gone > t.maxima.names || held > 0 && t.held+held > t.maxima.held {
		return syscall.EDQUOT
	}
	if t.write != nil {
		if err := t.write(edits); err != nil {
			return err
		}
	}
	var touched []*inode
	for _, e := range edits {
		if n := t.edit(e); n != nil {
			touched = append(touched, n)
		}
	}
	t.dropUnnamed(touched)
	return nil
}

func (t *tree) dropUnnamed(touched []*inode) {
	for _, n := range touched {
		if n.names == 0 && t.inodes[n.Number] == n {
			t.drop(n)
		}
	}
}

// edit makes one edit. It returns an inode that may have lost its last name.
func (t *tree) edit(e edit) (touched *inode) {
	if m := e.Meta; m != nil {
		n := t.inodes[m.Number]
		if n == nil {
			n = &inode{}
			if m.Mode&syscall.S_IFMT == syscall.S_IFDIR {
				n.entries = make(map[string]entry)
			}
			t.inodes[m.Number] = n
			t.next = max(t.next, m.Number+1)
		}
		t.held -= n.held
		n.meta, n.held = *m, m.cost()
		t.held += n.held
	}
	if e := e.Name; e != nil {
		folder := t.inodes[e.Folder]
		touched = t.setEntry(folder, string(e.Name), entry{t.inodes[e.Inode], e.Hidden})
		if e.Time != 0 {
			folder.Mtime, folder.Ctime = e.Time, e.Time
		}
	}
	return touched
}

// setEntry makes a name what is said, and returns the inode that has lost it.
func (t *tree) setEntry(folder *inode, name string, e entry) (lost *inode) {
	count := func(e entry, one int64) {
		switch {
		case e.inode != nil:
			t.names += one
			e.inode.names += uint32(one)
			if e.inode.is(syscall.S_IFDIR) {
				folder.folders += uint32(one)
			}
		case e.hidden != 0:
			t.gone += one
		default:
			return
		}
		t.held += one * (heldName + int64(len(name)))
	}
	old := folder.entries[name]
	count(e, 1)
	count(old, -1)
	if e == (entry{}) {
		delete(folder.entries, name)
	} else {
		folder.entries[name] = e
	}
	return old.inode
}

// drop lets go of an inode without a name.
func (t *tree) drop(n *inode) {
	for name := range n.entries {
		if lost := t.setEntry(n, name, entry{}); lost != nil && lost.names == 0 {
			t.drop(lost)
		}
	}
	t.held -= n.held
	delete(t.inodes, n.Number)
	if n.is(syscall.S_IFREG) {
		t.store.free(n)
	}
}

// find returns the inode at path or, where there is none yet, the path of the lower tree
// at which it is, if it is.
func (t *tree) find(path string) (n *inode, lower string, err error) {
	n = t.inodes[rootNumber]
	for path != "" {
		name, rest, _ := strings.Cut(path, "/")
		if n.entries == nil {
			return nil, "", syscall.ENOTDIR
		}
		e, ok := n.entries[name]
		switch {
		case ok && e.inode != nil:
			n, path = e.inode, rest
		case !ok && n.Merged:
			return nil, joinPath(string(n.Lower), path), nil
		default:
			return nil, "", syscall.ENOENT
		}
	}
	return n, "", nil
}

// own returns the inode at path, and makes one where only the lower tree has it.
func (t *tree) own(path string) (*inode, error) {
	n := t.inodes[rootNumber]
	for path != "" {
		var name string
		name, path, _ = strings.Cut(path, "/")
		if n.entries == nil {
			return nil, syscall.ENOTDIR
		}
		e, ok := n.entries[name]
		switch {
		case ok && e.inode != nil:
			n = e.inode
		case !ok && n.Merged:
			var err error
			if n, err = t.take(n, name); err != nil {
				return nil, err
			}
		default:
			return nil, syscall.ENOENT
		}
	}
	return n, nil
}

// take makes an inode of what the lower tree has.
func (t *tree) take(folder *inode, name string) (*inode, error) {
	lower := joinPath(string(folder.Lower), name)
	a, err := t.lower.Stat(lower)
	if err != nil {
		return nil, err
	}
	m := meta{
		Number: t.next,
		ID:     a.ID,
		Mode:   a.Mode,
		Rdev:   a.Rdev,
		Owner:  a.Owner,
		Atime:  stamp(a.Atime),
		Mtime:  stamp(a.Mtime),
		Ctime:  stamp(a.Ctime),
		Lower:  []byte(lower),
		Origin: originOf(a),
	}
	switch a.Mode & syscall.S_IFMT {
	case syscall.S_IFLNK:
		target, err := t.lower.Readlink(lower)
		if err != nil {
			return nil, err
		}
		m.Target = []byte(target)
	case syscall.S_IFREG:
		m.Merged = true
		// The lower file's other names go on without the guest's changes.
		if a.Links > 1 {
			m.ID = ID{Device: ownDevice, Inode: m.Number}
		}
		fallthrough
	case syscall.S_IFDIR:
		m.Merged = true
		names, err := t.lower.Listxattr(lower)
		if err != nil {
			return nil, err
		}
		size := 0
		for _, name := range names {
			value, err := t.lower.Getxattr(lower, name)
			if err != nil {
				return nil, err
			}
			if size += len(name) + len(value); size > maxXattrs {
				break
			}
			if m.Xattrs == nil {
				m.Xattrs = make(map[string][]byte)
			}
			m.Xattrs[name] = value
		}
	}
	if err := t.step(edit{Meta: &m}, edit{Name: &nameEdit{Folder: folder.Number, Name: []byte(name), Inode: m.Number}}); err != nil {
		return nil, err
	}
	n := t.inodes[m.Number]
	if n.is(syscall.S_IFREG) {
		t.store.adopt(n)
	}
	return n, nil
}

// folderOf returns the folder of path, to be changed, and path's name in it.
func (t *tree) folderOf(path string) (*inode, string, error) {
	if err := checkPath(path); err != nil {
		return nil, "", err
	}
	if path == "" {
		return nil, "", syscall.EBUSY
	}
	dir, name := splitPath(path)
	folder, err := t.own(dir)
	if err == nil && folder.entries == nil {
		err = syscall.ENOTDIR
	}
	return folder, name, err
}

// below describes what the lower tree has by a name of a folder, hidden or not.
func (t *tree) below(folder *inode, name string) (a Attr, there bool, err error) {
	if !folder.Merged {
		return Attr{}, false, nil
	}
	a, err = t.lower.Stat(joinPath(string(folder.Lower), name))
	if absent(err) {
		return Attr{}, false, nil
	}
	return a, err == nil, err
}

// typeAt is the type of what is at a name of a folder; 0: nothing is there.
func (t *tree) typeAt(folder *inode, name string) (uint32, error) {
	if e, ok := folder.entries[name]; ok {
		if e.inode == nil {
			return 0, nil
		}
		return e.inode.Mode & syscall.S_IFMT, nil
	}
	a, _, err := t.below(folder, name)
	return a.Mode & syscall.S_IFMT, err
}

// put is the edit by which a name becomes an inode's, or with 0 nothing's, whatever the
// lower folder has by it.
func (t *tree) put(folder *inode, name string, number uint64, now int64) (edit, error) {
	e := nameEdit{Folder: folder.Number, Name: []byte(name), Inode: number, Time: now, Hidden: folder.entries[name].hidden}
	if e.Hidden == 0 {
		a, there, err := t.below(folder, name)
		if err != nil {
			return edit{}, err
		}
		if there {
			// What is in a folder may be as young as this moment.
			e.Hidden = now
			if a.Mode&syscall.S_IFMT != syscall.S_IFDIR {
				e.Hidden = max(1, a.Ctime.UnixNano())
			}
		}
	}
	return edit{Name: &e}, nil
}

// stamp is a time as a tree keeps it: what ext4 could, up to the year 2242.
func stamp(t time.Time) int64 {
	return time.Unix(max(-1<<31, min(t.Unix(), 1<<33)), int64(t.Nanosecond())).UnixNano()
}

func now() int64 { return time.Now().UnixNano() }

// vacant finds the folder and the last name of a path at which there is nothing.
func (t *tree) vacant(path string) (folder *inode, name string, err error) {
	if folder, name, err = t.folderOf(path); err != nil {
		return nil, "", err
	}
	typ, err := t.typeAt(folder, name)
	if err == nil && typ != 0 {
		err = syscall.EEXIST
	}
	return folder, name, err
}

// add makes a new inode and its name.
func (t *tree) add(path string, mode uint32, owner Owner, target string) (*inode, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if path == "" {
		return nil, syscall.EEXIST
	}
	folder, name, err := t.vacant(path)
	if err != nil {
		return nil, err
	}
	now := now()
	m := meta{
		Number: t.next,
		ID:     ID{Device: ownDevice, Inode: t.next},
		Mode:   mode, Owner: owner,
		Atime: now, Mtime: now, Ctime: now,
		Target: []byte(target),
	}
	named, err := t.put(folder, name, m.Number, now)
	if err != nil {
		return nil, err
	}
	if err := t.step(edit{Meta: &m}, named); err != nil {
		return nil, err
	}
	return t.inodes[m.Number], nil
}

func (t *tree) Mknod(path string, mode uint32, owner Owner) error {
	switch mode & syscall.S_IFMT {
	case syscall.S_IFIFO, syscall.S_IFSOCK:
		_, err := t.add(path, mode&(syscall.S_IFMT|0o7777), owner, "")
		return err
	}
	return syscall.EPERM
}

func (t *tree) Mkdir(path string, mode uint32, owner Owner) error {
	_, err := t.add(path, syscall.S_IFDIR|mode&0o7777, owner, "")
	return err
}

// maxTarget is the most bytes of a link's target, as in Linux.
const maxTarget = 4095

func (t *tree) Symlink(target, path string, owner Owner) error {
	switch {
	case target == "":
		return syscall.ENOENT
	case len(target) > maxTarget:
		return syscall.ENAMETOOLONG
	}
	_, err := t.add(path, syscall.S_IFLNK|0o777, owner, target)
	return err
}

func (t *tree) Link(oldPath, newPath string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := checkPath(oldPath); err != nil {
		return err
	}
	n, err := t.own(oldPath)
	if err != nil {
		return err
	}
	if n.is(syscall.S_IFDIR) {
		return syscall.EPERM
	}
	folder, name, err := t.vacant(newPath)
	if err != nil {
		return err
	}
	now := now()
	named, err := t.put(folder, name, n.Number, now)
	if err != nil {
		return err
	}
	return t.step(named, edit{Meta: n.touched(now)})
}

// touched is an inode's meta after a change at a time.
func (n *inode) touched(now int64) *meta {
	m := n.meta
	m.Ctime = now
	return &m
}

func (t *tree) Unlink(path string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	folder, name, err := t.folderOf(path)
	if err != nil {
		return err
	}
	switch typ, err := t.typeAt(folder, name); {
	case err != nil:
		return err
	case typ == 0:
		return syscall.ENOENT
	case typ == syscall.S_IFDIR:
		return syscall.EISDIR
	}
	now := now()
	gone, err := t.put(folder, name, 0, now)
	if err != nil {
		return err
	}
	edits := []edit{gone}
	if n := folder.entries[name].inode; n != nil && n.names > 1 {
		edits = append(edits, edit{Meta: n.touched(now)})
	}
	return t.step(edits...)
}

func (t *tree) Rmdir(path string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	folder, name, err := t.folderOf(path)
	if err != nil {
		return err
	}
	switch typ, err := t.typeAt(folder, name); {
	case err != nil:
		return err
	case typ == 0:
		return syscall.ENOENT
	case typ != syscall.S_IFDIR:
		return syscall.ENOTDIR
	}
	names, err := t.list(t.inodeOrLower(folder, name))
	if err != nil {
		return err
	}
	if len(names) > 0 {
		return syscall.ENOTEMPTY
	}
	gone, err := t.put(folder, name, 0, now())
	if err != nil {
		return err
	}
	// All that was in it was hidden before, one by one.
	if e := folder.entries[name]; e.hidden == 0 && gone.Name.Hidden != 0 {
		a, _, err := t.below(folder, name)
		if err != nil {
			return err
		}
		gone.Name.Hidden = max(1, a.Ctime.UnixNano())
		if e.inode != nil {
			for _, e := range e.inode.entries {
				gone.Name.Hidden = max(gone.Name.Hidden, e.hidden)
			}
		}
	}
	return t.step(gone)
}

// inodeOrLower is what find would return of a name that is there.
func (t *tree) inodeOrLower(folder *inode, name string) (*inode, string) {
	if n := folder.entries[name].inode; n != nil {
		return n, ""
	}
	return nil, joinPath(string(folder.Lower), name)
}

// list lists a folder, of which find has told.
func (t *tree) list(n *inode, lower string) ([]DirEntry, error) {
	if n == nil {
		return t.lower.ReadDir(lower)
	}
	if n.entries == nil {
		return nil, syscall.ENOTDIR
	}
	var entries []DirEntry
	for name, e := range n.entries {
		if e.inode != nil {
			entries = append(entries, DirEntry{Name: name, Type: e.inode.Mode & syscall.S_IFMT})
		}
	}
	if !n.Merged {
		return entries, nil
	}
	below, err := t.lower.ReadDir(string(n.Lower))
	// The host may have removed it, which takes none of what is here.
	if err != nil && !absent(err) {
		return nil, err
	}
	for _, e := range below {
		if _, ok := n.entries[e.Name]; !ok {
			entries = append(entries, e)
		}
	}
	return entries, nil
}

func (t *tree) Rename(oldPath, newPath string, flags uint32) error {
	if flags&^(RenameNoReplace|RenameExchange) != 0 || flags == RenameNoReplace|RenameExchange {
		return syscall.EINVAL
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	oldFolder, oldName, err := t.folderOf(oldPath)
	if err != nil {
		return err
	}
	newFolder, newName, err := t.folderOf(newPath)
	if err != nil {
		return err
	}
	oldType, err := t.typeAt(oldFolder, oldName)
	if err != nil {
		return err
	}
	newType, err := t.typeAt(newFolder, newName)
	if err != nil {
		return err
	}
	switch {
	case oldType == 0 || newType == 0 && flags == RenameExchange:
		return syscall.ENOENT
	case newType != 0 && flags == RenameNoReplace:
		return syscall.EEXIST
	case within(newPath, oldPath) && newPath != oldPath && oldType == syscall.S_IFDIR:
		return syscall.EINVAL
	case within(oldPath, newPath) && newPath != oldPath:
		if flags == RenameExchange {
			return syscall.EINVAL
		}
		return syscall.ENOTEMPTY
	}
	n, err := t.own(oldPath)
	if err != nil {
		return err
	}
	replaced := newFolder.entries[newName].inode
	if n == replaced {
		return nil
	}
	if flags == RenameExchange {
		if replaced, err = t.own(newPath); err != nil {
			return err
		}
	} else if newType != 0 {
		switch {
		case oldType == syscall.S_IFDIR && newType != syscall.S_IFDIR:
			return syscall.ENOTDIR
		case oldType != syscall.S_IFDIR && newType == syscall.S_IFDIR:
			return syscall.EISDIR
		case newType == syscall.S_IFDIR:
			names, err := t.list(t.inodeOrLower(newFolder, newName))
			if err != nil {
				return err
			}
			if len(names) > 0 {
				return syscall.ENOTEMPTY
			}
		}
	}
	now := now()
	var back uint64 // what the old name names then
	if flags == RenameExchange {
		back = replaced.Number
	}
	moved, err := t.put(newFolder, newName, n.Number, now)
	if err != nil {
		return err
	}
	left, err := t.put(oldFolder, oldName, back, now)
	if err != nil {
		return err
	}
	edits := []edit{moved, left, {Meta: n.touched(now)}}
	if replaced != nil && (replaced.names > 1 || flags == RenameExchange) {
		edits = append(edits, edit{Meta: replaced.touched(now)})
	}
	return t.step(edits...)
}

func (t *tree) Stat(path string) (Attr, error) {
	if err := checkPath(path); err != nil {
		return Attr{}, err
	}
	t.mu.RLock()
	defer t.mu.RUnlock()
	n, lower, err := t.find(path)
	if err != nil {
		return Attr{}, err
	}
	if n == nil {
		return t.lower.Stat(lower)
	}
	return t.attr(n)
}

func (t *tree) attr(n *inode) (Attr, error) {
	a := Attr{
		ID: n.ID, Mode: n.Mode, Links: n.names, Owner: n.Owner, Rdev: n.Rdev,
		Atime: time.Unix(0, n.Atime), Mtime: time.Unix(0, n.Mtime), Ctime: time.Unix(0, n.Ctime),
	}
	switch n.Mode & syscall.S_IFMT {
	case syscall.S_IFDIR:
		a.Size, a.Blocks = blockSize, blockSize/512
		if a.Links = 2 + n.folders; n.Merged {
			a.Links = 1 // nobody counts those of the lower folder
		}
	case syscall.S_IFLNK:
		a.Size = int64(len(n.Target))
	case syscall.S_IFREG:
		return a, t.store.stat(n, &a)
	}
	return a, nil
}

func (t *tree) ReadDir(path string) ([]DirEntry, error) {
	if err := checkPath(path); err != nil {
		return nil, err
	}
	t.mu.RLock()
	defer t.mu.RUnlock()
	n, lower, err := t.find(path)
	if err != nil {
		return nil, err
	}
	return t.list(n, lower)
}

func (t *tree) Readlink(path string) (string, error) {
	if err := checkPath(path); err != nil {
		return "", err
	}
	t.mu.RLock()
	defer t.mu.RUnlock()
	n, lower, err := t.find(path)
	switch {
	case err != nil:
		return "", err
	case n == nil:
		return t.lower.Readlink(lower)
	case !n.is(syscall.S_IFLNK):
		return "", syscall.EINVAL
	}
	return string(n.Target), nil
}

func (t *tree) SetAttr(path string, c Change) (Attr, error) {
	if err := checkPath(path); err != nil {
		return Attr{}, err
	}
	if c.Size != nil {
		if err := t.store.truncate(path, *c.Size); err != nil {
			return Attr{}, err
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	n, err := t.own(path)
	if err != nil {
		return Attr{}, err
	}
	if err := t.change(n, c); err != nil {
		return Attr{}, err
	}
	return t.attr(n)
}

// change changes all but a size.
func (t *tree) change(n *inode, c Change) error {
	times := c.Atime != nil || c.Mtime != nil || c.Now[0] || c.Now[1]
	if c.Mode == nil && c.UID == nil && c.GID == nil && !times {
		return nil
	}
	now := now()
	m := n.touched(now)
	if c.Mode != nil {
		if n.is(syscall.S_IFLNK) {
			return syscall.EOPNOTSUPP
		}
		m.Mode = n.Mode&syscall.S_IFMT | *c.Mode&0o7777
	}
	if c.UID != nil {
		m.Owner.UID = *c.UID
	}
	if c.GID != nil {
		m.Owner.GID = *c.GID
	}
	if times {
		// What is set is one of two, and the other one is what it is now.
		a, err := t.attr(n)
		if err != nil {
			return err
		}
		m.Atime, m.Mtime, m.TimesSet = stamp(a.Atime), stamp(a.Mtime), true
		for i, set := range []struct {
			to   *int64
			what *time.Time
		}{{&m.Atime, c.Atime}, {&m.Mtime, c.Mtime}} {
			if c.Now[i] {
				*set.to = now
			} else if set.what != nil {
				*set.to = stamp(*set.what)
			}
		}
	}
	if err := t.step(edit{Meta: m}); err != nil {
		return err
	}
	if times && n.is(syscall.S_IFREG) {
		return t.store.setTimes(n, c)
	}
	return nil
}

// hasXattrs is nil if an inode may have xattrs, as host files may.
func (n *inode) hasXattrs() error {
	if n.is(syscall.S_IFREG) || n.is(syscall.S_IFDIR) {
		return nil
	}
	return syscall.EPERM
}

func (t *tree) Getxattr(path, name string) ([]byte, error) {
	if err := checkPath(path); err != nil {
		return nil, err
	}
	t.mu.RLock()
	defer t.mu.RUnlock()
	n, lower, err := t.find(path)
	if err != nil {
		return nil, err
	}
	if n == nil {
		return t.lower.Getxattr(lower, name)
	}
	value, ok := n.Xattrs[name]
	if !ok {
		return nil, noXattr
	}
	return slices.Clone(value), nil
}

func (t *tree) Listxattr(path string) ([]string, error) {
	if err := checkPath(path); err != nil {
		return nil, err
	}
	t.mu.RLock()
	defer t.mu.RUnlock()
	n, lower, err := t.find(path)
	if err != nil {
		return nil, err
	}
	if n == nil {
		return t.lower.Listxattr(lower)
	}
	return slices.Sorted(maps.Keys(n.Xattrs)), nil
}

func (t *tree) Setxattr(path, name string, value []byte, flags int) error {
	if err := checkSetxattr(value, flags); err != nil {
		return err
	}
	return t.changeXattrs(path, name, func(xattrs map[string][]byte) error {
		_, there := xattrs[name]
		switch {
		case there && flags == xattrCreate:
			return syscall.EEXIST
		case !there && flags == xattrReplace:
			return noXattr
		}
		xattrs[name] = slices.Clone(value)
		size := 0
		for name, value := range xattrs {
			size += len(name) + len(value)
		}
		if size > maxXattrs {
			return syscall.ENOSPC
		}
		return nil
	})
}

func (t *tree) Removexattr(path, name string) error {
	return t.changeXattrs(path, name, func(xattrs map[string][]byte) error {
		if _, there := xattrs[name]; !there {
			return noXattr
		}
		delete(xattrs, name)
		return nil
	})
}

func (t *tree) changeXattrs(path, name string, change func(map[string][]byte) error) error {
	if err := checkPath(path); err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	n, err := t.own(path)
	if err != nil {
		return err
	}
	if !guestXattr(name) {
		return syscall.EOPNOTSUPP
	}
	if err := n.hasXattrs(); err != nil {
		return err
	}
	m := n.touched(now())
	m.Xattrs = maps.Clone(n.Xattrs)
	if m.Xattrs == nil {
		m.Xattrs = make(map[string][]byte)
	}
	if err := change(m.Xattrs); err != nil {
		return err
	}
	return t.step(edit{Meta: m})
}
