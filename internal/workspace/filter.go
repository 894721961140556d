package workspace

import "syscall"

// filter is a tree without what is hidden and with what is protected as it is.
type filter struct {
	FS
	hide, protect patterns
	// shows tells where the tree has what it shows at a path, if that may be elsewhere;
	// nil: it may not.
	shows func(path string) (lower string, ok bool)
}

// NewFilter keeps parts of a tree from the guest, by patterns as .gitignore has them,
// without "!" and in either case of letters.
//
// What is hidden does not exist, and making it is EACCES. What is protected can be read,
// and not be made, changed, removed, renamed or linked: EPERM. Nothing is renamed
// where the patterns would say another thing of what may be in it then. The filter
// closes the tree.
//
// Of an Overlay it hides what matches where the lower tree has it, too: somebody may have
// moved it before the pattern was there, or have written the overlay's journal himself.
func NewFilter(fs FS, hide, protect []string) (FS, error) {
	f := &filter{FS: fs}
	if o, ok := fs.(*Overlay); ok && len(hide) > 0 {
		f.shows = o.shows
	}
	var err error
	if f.hide, err = parsePatterns(hide); err != nil {
		return nil, err
	}
	if f.protect, err = parsePatterns(protect); err != nil {
		return nil, err
	}
	return f, nil
}

// isFolder is a question that is put off until it has to be asked.
func (f *filter) isFolder(path string) func() bool {
	return func() bool {
		a, err := f.FS.Stat(path)
		return err == nil && a.Mode&syscall.S_IFMT == syscall.S_IFDIR
	}
}

// read judges a look at what is at path.
func (f *filter) read(path string) error {
	if f.hide.match(path, f.isFolder(path)) {
		return syscall.ENOENT
	}
	if lower, moved := f.moved(path); moved && f.hide.match(lower, f.isFolder(path)) {
		return syscall.ENOENT
	}
	return nil
}

// moved tells whether what is at a path is elsewhere in the tree below, and where.
func (f *filter) moved(path string) (lower string, moved bool) {
	if f.shows == nil {
		return "", false
	}
	lower, ok := f.shows(path)
	return lower, ok && lower != path
}

// change judges a change of what is at path, or of its name.
func (f *filter) change(path string) error {
	if err := f.read(path); err != nil {
		return err
	}
	if f.protect.match(path, f.isFolder(path)) {
		return syscall.EPERM
	}
	return nil
}

// add judges a new name, of a folder or not.
func (f *filter) add(path string, folder bool) error {
	if dir, _ := splitPath(path); f.read(dir) != nil {
		return syscall.ENOENT
	}
	becomes := func() bool { return folder || f.isFolder(path)() }
	if f.hide.match(path, becomes) {
		return syscall.EACCES
	}
	if !f.protect.match(path, becomes) {
		return nil
	}
	// Who makes sure that a folder is there wants to hear that it is.
	if _, err := f.FS.Stat(path); err == nil {
		return syscall.EEXIST
	}
	return syscall.EPERM
}

func (f *filter) Stat(path string) (Attr, error) {
	if err := f.read(path); err != nil {
		return Attr{}, err
	}
	return f.FS.Stat(path)
}

func (f *filter) ReadDir(path string) ([]DirEntry, error) {
	if err := f.read(path); err != nil {
		return nil, err
	}
	entries, err := f.FS.ReadDir(path)
	if err != nil {
		return nil, err
	}
	_, moved := f.moved(path)
	shown := entries[:0]
	for _, e := range entries {
		name := joinPath(path, e.Name)
		isFolder := func() bool {
			if e.Type == 0 {
				return f.isFolder(name)()
			}
			return e.Type == syscall.S_IFDIR
		}
		if !f.hide.match(name, isFolder) && (!moved || f.read(name) == nil) {
			shown = append(shown, e)
		}
	}
	return shown, nil
}

func (f *filter) Readlink(path string) (string, error) {
	if err := f.read(path); err != nil {
		return "", err
	}
	return f.FS.Readlink(path)
}

func (f *filter) Open(path string, write bool) (File, error) {
	judge := f.read
	if write {
		judge = f.change
	}
	if err := judge(path); err != nil {
		return nil, err
	}
	return f.FS.Open(path, write)
}

func (f *filter) Create(path string, mode uint32, owner Owner) (File, error) {
	if err := f.add(path, false); err != nil {
		return nil, err
	}
	return f.FS.Create(path, mode, owner)
}

func (f *filter) Mknod(path string, mode uint32, owner Owner) error {
	if err := f.add(path, false); err != nil {
		return err
	}
	return f.FS.Mknod(path, mode, owner)
}

func (f *filter) Mkdir(path string, mode uint32, owner Owner) error {
	if err := f.add(path, true); err != nil {
		return err
	}
	return f.FS.Mkdir(path, mode, owner)
}

func (f *filter) Symlink(target, path string, owner Owner) error {
	if err := f.add(path, false); err != nil {
		return err
	}
	return f.FS.Symlink(target, path, owner)
}

func (f *filter) Link(oldPath, newPath string) error {
	if err := f.change(oldPath); err != nil {
		return err
	}
	if err := f.add(newPath, false); err != nil {
		return err
	}
	return f.FS.Link(oldPath, newPath)
}

func (f *filter) Unlink(path string) error {
	if err := f.change(path); err != nil {
		return err
	}
	return f.FS.Unlink(path)
}

func (f *filter) Rmdir(path string) error {
	if err := f.change(path); err != nil {
		return err
	}
	return f.FS.Rmdir(path)
}

func (f *filter) Rename(oldPath, newPath string, flags uint32) error {
	if oldPath == "" || newPath == "" {
		return syscall.EBUSY
	}
	if err := f.change(oldPath); err != nil {
		return err
	}
	// What is there may be exchanged for a folder at any moment, so it is judged as one.
	err := f.add(newPath, true)
	if err == nil && flags&RenameExchange != 0 {
		err = f.add(oldPath, true)
	}
	if err == syscall.EEXIST && flags&RenameNoReplace == 0 {
		err = syscall.EPERM
	}
	if err != nil {
		return err
	}
	if !f.hide.alike(oldPath, newPath) || !f.protect.alike(oldPath, newPath) {
		return syscall.EPERM
	}
	return f.FS.Rename(oldPath, newPath, flags)
}

func (f *filter) SetAttr(path string, c Change) (Attr, error) {
	if err := f.change(path); err != nil {
		return Attr{}, err
	}
	return f.FS.SetAttr(path, c)
}

func (f *filter) Getxattr(path, name string) ([]byte, error) {
	if err := f.read(path); err != nil {
		return nil, err
	}
	return f.FS.Getxattr(path, name)
}

func (f *filter) Setxattr(path, name string, value []byte, flags int) error {
	if err := f.change(path); err != nil {
		return err
	}
	return f.FS.Setxattr(path, name, value, flags)
}

func (f *filter) Listxattr(path string) ([]string, error) {
	if err := f.read(path); err != nil {
		return nil, err
	}
	return f.FS.Listxattr(path)
}

func (f *filter) Removexattr(path, name string) error {
	if err := f.change(path); err != nil {
		return err
	}
	return f.FS.Removexattr(path, name)
}

func (f *filter) SyncDir(path string) error {
	if err := f.read(path); err != nil {
		return err
	}
	return f.FS.SyncDir(path)
}

func (f *filter) Statfs(path string) (Statfs, error) {
	if err := f.read(path); err != nil {
		return Statfs{}, err
	}
	return f.FS.Statfs(path)
}
