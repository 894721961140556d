package workspace

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"

	"github.com/matchlock/matchlock/api"
)

// ApplyOptions say what Apply does that it refuses otherwise.
type ApplyOptions struct {
	Unsafe bool // changes that are a danger
	Force  bool // changes in conflict with what the host has done since
}

// RefusedError is changes that are not applied, which say why.
type RefusedError struct{ Changes []api.FileChange }

func (e *RefusedError) Error() string {
	var all []string
	for _, c := range e.Changes[:min(len(e.Changes), 10)] {
		why := c.Danger
		if c.Conflict != "" {
			why = c.Conflict
		}
		all = append(all, fmt.Sprintf("%q: %s", c.Path, why))
	}
	if more := len(e.Changes) - len(all); more > 0 {
		all = append(all, fmt.Sprintf("and %d more", more))
	}
	return "nothing is applied: " + strings.Join(all, "; ")
}

var errChanged = errors.New("the guest has changed it meanwhile")

// Apply puts the changes into dir, a path without links to what the lower tree is of, and so out of the
// overlay. If one of them is refused nothing is done, and the error is a *RefusedError.
//
// A file is written beside its place, with a name that begins with ".matchlock-", and
// gets its name when it is whole. Files get their permissions, without set-id and sticky
// bits, and their times. Owners, xattrs and which names are of one file stay behind.
// What was done is returned, after an error too; what is missing is still in the overlay.
func (o *Overlay) Apply(ctx context.Context, dir string, options ApplyOptions) (done []api.FileChange, err error) {
	changes, err := o.Changes(ctx)
	if err != nil {
		return nil, err
	}
	var refused []api.FileChange
	for _, c := range changes {
		if c.Danger != "" && !options.Unsafe || c.Conflict != "" && !options.Force {
			refused = append(refused, c)
		}
	}
	if len(refused) > 0 {
		return nil, &RefusedError{refused}
	}
	to, err := OpenHost(dir, HostOptions{Files: 1 << 40, Exact: true}) // the overlay has its bounds
	if err != nil {
		return nil, err
	}
	defer to.Close()
	there, err := to.Stat("")
	if err != nil {
		return nil, err
	}
	if was, err := o.lower.Stat(""); err != nil || was.ID != there.ID {
		return nil, errors.Join(err, fmt.Errorf("%s: it is another folder than the sandbox has", dir))
	}
	if err := o.detach(changes); err != nil {
		return nil, err
	}
	apply := func(c api.FileChange, put func(FS, api.FileChange) error) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := put(to, c); err != nil {
			return fmt.Errorf("apply %q: %w", c.Path, err)
		}
		done = append(done, c)
		return nil
	}
	for _, c := range changes {
		if c.Kind != api.FileDeleted {
			if err := apply(c, o.applyTo); err != nil {
				return done, err
			}
		}
	}
	for _, c := range slices.Backward(changes) {
		if c.Kind == api.FileDeleted {
			if err := apply(c, o.removeFrom); err != nil {
				return done, err
			}
		}
	}
	return done, nil
}

// detach gives what was moved bytes and names of its own, where the changes will write
// over those that it has from the lower tree.
func (o *Overlay) detach(changes []api.FileChange) error {
	written, above := map[string]bool{}, map[string]bool{}
	for _, c := range changes {
		if c.Kind == api.FileDeleted { // which comes last
			continue
		}
		written[c.Path] = true
		for dir := c.Path; dir != "" && !above[dir]; dir, _ = splitPath(dir) {
			above[dir] = true
		}
	}
	moved, err := o.moved(func(lower string) bool {
		if above[lower] {
			return true
		}
		for dir := lower; dir != ""; dir, _ = splitPath(dir) {
			if written[dir] {
				return true
			}
		}
		return false
	})
	if err != nil {
		return err
	}
	for _, m := range moved {
		if err := o.detachInode(m.inode); err != nil {
			return fmt.Errorf("%q, which was %q: %w", m.path, m.inode.Lower, err)
		}
	}
	return nil
}

// A movedInode reads a lower file or folder that is not where it is itself.
type movedInode struct {
	inode *inode
	path  string
}

// moved finds inodes that read what is at certain places of the lower tree.
func (o *Overlay) moved(at func(lower string) bool) (all []movedInode, err error) {
	o.mu.RLock()
	defer o.mu.RUnlock()
	var walk func(n *inode, path string)
	walk = func(n *inode, path string) {
		if len(path) > maxCompared {
			err = fmt.Errorf("%.64q…: %w", path, syscall.ENAMETOOLONG)
			return
		}
		if n.Merged && string(n.Lower) != path && at(string(n.Lower)) {
			all = append(all, movedInode{n, path})
		}
		for name, e := range n.entries {
			if e.inode != nil {
				walk(e.inode, joinPath(path, name))
			}
		}
	}
	walk(o.inodes[rootNumber], "")
	return all, err
}

// detachInode has an inode, and all that is in it, read the lower tree no more.
func (o *Overlay) detachInode(n *inode) error {
	if n.entries == nil {
		return o.copyUp(n, -1)
	}
	children, err := o.takeAll(n)
	if err != nil {
		return err
	}
	for _, child := range children {
		if child.Merged {
			if err := o.detachInode(child); err != nil {
				return err
			}
		}
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	m := n.meta
	m.Merged = false
	return o.step(edit{Meta: &m})
}

// takeAll makes inodes of all that is in a folder, and returns them.
func (o *Overlay) takeAll(n *inode) ([]*inode, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	entries, err := o.list(n, "")
	if err != nil {
		return nil, err
	}
	var all []*inode
	for _, e := range entries {
		child := n.entries[e.Name].inode
		if child == nil {
			if child, err = o.take(n, e.Name); err != nil {
				return nil, err
			}
		}
		all = append(all, child)
	}
	return all, nil
}

// applyTo puts one file or folder on the host.
func (o *Overlay) applyTo(to FS, c api.FileChange) error {
	a, err := o.Stat(c.Path)
	if err != nil {
		return err
	}
	if (a.Mode^c.Mode)&syscall.S_IFMT != 0 || o.danger(c.Path, a) != c.Danger {
		return errChanged
	}
	dir, _ := splitPath(c.Path)
	if err := o.settleAll(dir); err != nil {
		return err
	}
	mode := hostMode(a.Mode, a.Mode)
	old, there, err := statIf(to, c.Path)
	if err != nil {
		return err
	}
	if a.Mode&syscall.S_IFMT == syscall.S_IFDIR {
		if there && old.Mode&syscall.S_IFMT != syscall.S_IFDIR {
			if err := to.Unlink(c.Path); err != nil {
				return err
			}
			there = false
		}
		if there {
			_, err = to.SetAttr(c.Path, Change{Mode: &mode})
		} else {
			err = to.Mkdir(c.Path, mode, Owner{})
		}
		if err != nil {
			return err
		}
		return o.settleAll(c.Path)
	}
	if c.Path == "" {
		return o.applyFile(to, mode)
	}
	if there && old.Mode&syscall.S_IFMT == syscall.S_IFDIR {
		if err := removeAll(to, c.Path); err != nil {
			return err
		}
	}
	fresh := joinPath(dir, ".matchlock-"+rand.Text())
	switch a.Mode & syscall.S_IFMT {
	case syscall.S_IFREG:
		f, err := to.Create(fresh, mode, Owner{})
		if err != nil {
			return err
		}
		err = o.writeTo(f, c.Path)
		if e := f.Close(); err == nil {
			err = e
		}
		if err == nil {
			_, err = to.SetAttr(fresh, Change{Mtime: &a.Mtime})
		}
		if err != nil {
			to.Unlink(fresh)
			return err
		}
	case syscall.S_IFLNK:
		target, err := o.Readlink(c.Path)
		// It is a name of its own, and may be another link by now.
		if err == nil && leadsOut(c.Path, target) && c.Danger != leadsOutDanger {
			err = errChanged
		}
		if err == nil {
			err = to.Symlink(target, fresh, Owner{})
		}
		if err != nil {
			return err
		}
	default:
		if err := to.Mknod(fresh, a.Mode&syscall.S_IFMT|mode, Owner{}); err != nil {
			return err
		}
	}
	if err := to.Rename(fresh, c.Path, 0); err != nil {
		to.Unlink(fresh)
		return err
	}
	return o.forget(c.Path, a)
}

// applyFile puts on the host what a tree is that is one file. Its name is not in the tree,
// so it is written where it is.
func (o *Overlay) applyFile(to FS, mode uint32) error {
	f, err := to.Open("", true)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := o.writeTo(f, ""); err != nil {
		return err
	}
	if _, err := to.SetAttr("", Change{Mode: &mode}); err != nil {
		return err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	below, err := o.lower.Stat("")
	if err != nil {
		return err
	}
	m := o.inodes[rootNumber].meta
	m.Origin = originOf(below)
	return o.step(edit{Meta: &m})
}

// writeTo writes the overlay's file into one of the host.
func (o *Overlay) writeTo(f File, path string) error {
	src, err := o.Open(path, false)
	if err != nil {
		return err
	}
	defer src.Close()
	a, err := src.Stat()
	if err != nil {
		return err
	}
	if err := f.Truncate(0); err != nil {
		return err
	}
	return copyBytes(f, src, a.Size)
}

// settleAll settles the folder at path and those that it is in.
func (o *Overlay) settleAll(path string) error {
	if path == "" {
		return nil // the root always is
	}
	dir, _ := splitPath(path)
	if err := o.settleAll(dir); err != nil {
		return err
	}
	return o.settle(path)
}

// settle has a folder of the overlay take what it has no names for from the lower folder
// of the same path, and nothing from elsewhere.
func (o *Overlay) settle(path string) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	n, _, err := o.find(path)
	if err != nil || n == nil || n.entries == nil {
		return err
	}
	dir, name := splitPath(path)
	parent, _, err := o.find(dir)
	if err != nil {
		return err
	}
	hidden := parent.entries[name].hidden
	here := n.Merged && string(n.Lower) == path
	if here && hidden == 0 {
		return nil
	}
	if !here {
		if n.Merged {
			entries, err := o.list(n, "")
			if err != nil {
				return err
			}
			for _, e := range entries {
				if _, ok := n.entries[e.Name]; !ok {
					if _, err := o.take(n, e.Name); err != nil {
						return err
					}
				}
			}
		}
		// What the guest has not seen there stays hidden, until it is removed.
		below, err := o.lower.ReadDir(path)
		if err != nil {
			return err
		}
		hide := make(map[string]int64)
		for name := range n.entries {
			hide[name] = 0
		}
		for _, e := range below {
			if child := n.entries[e.Name].inode; child == nil || !child.fromHere(joinPath(path, e.Name)) {
				hide[e.Name] = max(1, hidden)
			}
		}
		for name, hidden := range hide {
			e := nameEdit{Folder: n.Number, Name: []byte(name), Hidden: hidden}
			if child := n.entries[name].inode; child != nil {
				e.Inode = child.Number
			}
			if err := o.step(edit{Name: &e}); err != nil {
				return err
			}
		}
	}
	a, err := o.lower.Stat(path)
	if err != nil {
		return err
	}
	m := n.meta
	m.Merged, m.Lower, m.Origin = true, []byte(path), originOf(a)
	return o.step(edit{Meta: &m}, edit{Name: &nameEdit{Folder: parent.Number, Name: []byte(name), Inode: n.Number}})
}

// forget has the overlay show the host's file where it had one of its own, described by
// a. One that is open, or was changed meanwhile, it keeps, as a change of that file.
func (o *Overlay) forget(path string, a Attr) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	n, _, err := o.find(path)
	if err != nil || n == nil {
		return err
	}
	dir, name := splitPath(path)
	folder, _, err := o.find(dir)
	if err != nil {
		return err
	}
	gone := edit{Name: &nameEdit{Folder: folder.Number, Name: []byte(name)}}
	now, err := o.attr(n)
	if err != nil {
		return err
	}
	if n.open == nil && now.Mode == a.Mode && now.Size == a.Size && now.Mtime.Equal(a.Mtime) && now.Ctime.Equal(a.Ctime) {
		return o.step(gone)
	}
	below, err := o.lower.Stat(path)
	if err != nil {
		return err
	}
	m := n.meta
	m.Lower, m.Origin = []byte(path), originOf(below)
	gone.Name.Inode = n.Number
	return o.step(edit{Meta: &m}, gone)
}

// removeFrom removes what is at a path of the host, and that it was removed from the
// overlay.
func (o *Overlay) removeFrom(to FS, c api.FileChange) error {
	if _, there, err := statIf(o, c.Path); there || err != nil {
		if err == nil {
			err = errChanged
		}
		return err
	}
	if err := o.release(c.Path); err != nil {
		return err
	}
	if err := removeAll(to, c.Path); err != nil && !errors.Is(err, syscall.ENOENT) {
		return err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	dir, name := splitPath(c.Path)
	folder, _, err := o.find(dir)
	if err != nil || folder == nil {
		return err
	}
	if e, ok := folder.entries[name]; !ok || e.inode != nil {
		return nil
	}
	return o.step(edit{Name: &nameEdit{Folder: folder.Number, Name: []byte(name)}})
}

// release has nothing of the overlay read what the lower tree has at or below a path:
// of what was moved away from there, some may be as the host has it already.
func (o *Overlay) release(lower string) error {
	moved, err := o.moved(func(at string) bool { return within(at, lower) })
	if err != nil {
		return err
	}
	for _, m := range moved {
		var err error
		if m.inode.is(syscall.S_IFDIR) {
			err = o.settleAll(m.path)
		} else {
			err = o.copyUp(m.inode, -1)
		}
		if err != nil {
			return fmt.Errorf("%q, which was %q: %w", m.path, lower, err)
		}
	}
	return nil
}

// removeAll removes what is at a path, and below.
func removeAll(fs FS, path string) error {
	a, err := fs.Stat(path)
	if err != nil {
		return err
	}
	if a.Mode&syscall.S_IFMT != syscall.S_IFDIR {
		return fs.Unlink(path)
	}
	entries, err := fs.ReadDir(path)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := removeAll(fs, joinPath(path, e.Name)); err != nil {
			return err
		}
	}
	return fs.Rmdir(path)
}

// Discard forgets all changes. Files that are open stay as they are to who has them open.
func (o *Overlay) Discard() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	a, err := o.lower.Stat("")
	if err != nil {
		return err
	}
	root := o.inodes[rootNumber]
	for name := range root.entries {
		if err := o.step(edit{Name: &nameEdit{Folder: rootNumber, Name: []byte(name)}}); err != nil {
			return err
		}
	}
	m := o.rootMeta(a)
	if !root.is(syscall.S_IFREG) || root.Merged {
		return o.step(edit{Meta: &m})
	}
	// A tree that is one file, which may be open, holds the lower one's bytes from now on.
	src, err := o.lower.Open("", false)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := o.openInode(root)
	if err != nil {
		return err
	}
	defer dst.Close()
	m.Merged = false
	return errors.Join(dst.Truncate(0), copyBytes(dst, src, a.Size), o.step(edit{Meta: &m}))
}
