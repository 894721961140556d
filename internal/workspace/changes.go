package workspace

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"syscall"

	"github.com/matchlock/matchlock/api"
)

// Changes lists what differs from the lower tree, folders before what is in them. What
// the guest does meanwhile may be in it or not.
func (o *Overlay) Changes(ctx context.Context) ([]api.FileChange, error) {
	c := &comparison{o: o, ctx: ctx}
	if err := c.both("", 0); err != nil {
		return nil, err
	}
	return c.changes, nil
}

// A comparison of an overlay and its lower tree.
type comparison struct {
	o       *Overlay
	ctx     context.Context
	changes []api.FileChange
	size    int // bytes of their paths
}

// maxChanges bounds these.
const maxChanges = 256 << 20

// add adds a change.
func (c *comparison) add(change api.FileChange) error {
	c.changes = append(c.changes, change)
	if c.size += len(change.Path); c.size > maxChanges {
		return fmt.Errorf("%d changes and more: too many to be told", len(c.changes))
	}
	return nil
}

// entry tells what an overlay has itself at a path: the inode's meta, nil for none, and
// since when the lower tree's is hidden. same is whether it has nothing, and shows the
// lower tree's.
func (o *Overlay) entry(path string) (m *meta, hidden int64, same bool) {
	o.mu.RLock()
	defer o.mu.RUnlock()
	n, lower, err := o.find(path)
	if err == nil && n == nil {
		return nil, 0, lower == path
	}
	if n != nil {
		copied := n.meta
		m = &copied
	}
	if dir, name := splitPath(path); path != "" {
		// A folder that was moved hides what is at its old place.
		if folder, _, err := o.find(dir); err == nil && folder != nil && folder.Merged && folder.fromHere(dir) {
			hidden = folder.entries[name].hidden
		}
	}
	return m, hidden, false
}

// fromHere tells whether an inode is what the lower tree has at the same path, changed.
func (m *meta) fromHere(path string) bool {
	return m != nil && m.Origin != nil && string(m.Lower) == path
}

func statIf(fs FS, path string) (a Attr, there bool, err error) {
	a, err = fs.Stat(path)
	if absent(err) {
		return Attr{}, false, nil
	}
	return a, err == nil, err
}

// maxCompared bounds paths, in bytes. A guest can make deeper folders, whose paths together
// would take all memory.
const maxCompared = 16 << 10

// both compares what is at a path, where the lower tree's is hidden since then; 0: not.
func (c *comparison) both(path string, since int64) error {
	if err := c.ctx.Err(); err != nil {
		return err
	}
	if len(path) > maxCompared {
		return fmt.Errorf("%.64q…: %w", path, syscall.ENAMETOOLONG)
	}
	m, hidden, same := c.o.entry(path)
	if same {
		return nil
	}
	if hidden != 0 {
		since = hidden
	}
	a, here, err := statIf(c.o, path)
	if err != nil {
		return err
	}
	below, there, err := statIf(c.o.lower, path)
	if err != nil {
		return err
	}
	folder := here && a.Mode&syscall.S_IFMT == syscall.S_IFDIR
	switch {
	case !here && !there:
		return nil
	case !here:
		change := api.FileChange{Path: path, Kind: api.FileDeleted, Mode: below.Mode, Size: below.Size}
		if change.Conflict, err = c.changedSince(path, since); err != nil {
			return err
		}
		if change.Danger, err = c.keptIn(path); err != nil {
			return err
		}
		return c.add(change)
	case !there:
		change := c.change(path, api.FileAdded, a)
		if m.fromHere(path) && since == 0 {
			change.Conflict = "it was removed on the host"
		}
		if err := c.add(change); err != nil {
			return err
		}
	case folder && below.Mode&syscall.S_IFMT == syscall.S_IFDIR:
		if !sameMode(a.Mode, below.Mode) {
			if err := c.add(c.change(path, api.FileModified, a)); err != nil {
				return err
			}
		}
	default:
		same, err := c.o.sameContent(path, m, a, below)
		if err != nil {
			return err
		}
		if same && sameMode(a.Mode, below.Mode) {
			return nil
		}
		change := c.change(path, api.FileModified, a)
		switch {
		case m.fromHere(path) && since == 0:
			if *m.Origin != *originOf(below) {
				change.Conflict = "it was changed on the host"
			}
		case since == 0:
			change.Conflict = "it was made on the host, too"
		default:
			if change.Conflict, err = c.changedSince(path, since); err != nil {
				return err
			}
		}
		if err := c.add(change); err != nil {
			return err
		}
	}
	if !folder {
		return nil
	}
	if m != nil && m.Merged && m.fromHere(path) {
		since = 0
	}
	names, err := folderNames(c.o, path)
	if err != nil {
		return err
	}
	if there && below.Mode&syscall.S_IFMT == syscall.S_IFDIR {
		more, err := folderNames(c.o.lower, path)
		if err != nil {
			return err
		}
		names = slices.Compact(slices.Sorted(slices.Values(append(names, more...))))
	}
	for _, name := range names {
		if err := c.both(joinPath(path, name), since); err != nil {
			return err
		}
	}
	return nil
}

// folderNames lists a folder in order.
func folderNames(fs FS, path string) ([]string, error) {
	entries, err := fs.ReadDir(path)
	if absent(err) {
		return nil, nil
	}
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = e.Name
	}
	slices.Sort(names)
	return names, err
}

// sameMode tells whether the host's file would have these permissions, too: links have
// none, and of all else we keep what we need.
func sameMode(guest, host uint32) bool {
	if (guest^host)&syscall.S_IFMT != 0 {
		return false
	}
	typ := guest & syscall.S_IFMT
	return typ == syscall.S_IFLNK || (guest^host)&0o777 == 0 || hostMode(typ, guest) == hostMode(typ, host)
}

// sameContent compares what is no folder, or not in both.
func (o *Overlay) sameContent(path string, m *meta, a, below Attr) (bool, error) {
	if (a.Mode^below.Mode)&syscall.S_IFMT != 0 {
		return false, nil
	}
	switch a.Mode & syscall.S_IFMT {
	case syscall.S_IFLNK:
		target, err := o.Readlink(path)
		if err != nil {
			return false, err
		}
		other, err := o.lower.Readlink(path)
		return target == other, err
	case syscall.S_IFREG:
		if m != nil && m.Merged && m.fromHere(path) {
			return true, nil
		}
		if a.Size != below.Size {
			return false, nil
		}
		f, err := o.Open(path, false)
		if err != nil {
			return false, err
		}
		defer f.Close()
		g, err := o.lower.Open(path, false)
		if err != nil {
			return false, err
		}
		defer g.Close()
		return sameBytes(f, g)
	}
	return true, nil
}

func sameBytes(f, g io.ReaderAt) (bool, error) {
	a, b := make([]byte, 256<<10), make([]byte, 256<<10)
	for offset := int64(0); ; offset += int64(len(a)) {
		n, err := f.ReadAt(a, offset)
		if err != nil && err != io.EOF {
			return false, err
		}
		m, err2 := g.ReadAt(b, offset)
		if err2 != nil && err2 != io.EOF {
			return false, err2
		}
		if !bytes.Equal(a[:n], b[:m]) {
			return false, nil
		}
		if err == io.EOF || err2 == io.EOF {
			return err == err2, nil
		}
	}
}

// changedSince tells what of the lower tree at or below a path is younger than a time.
func (c *comparison) changedSince(path string, since int64) (string, error) {
	if err := c.ctx.Err(); err != nil {
		return "", err
	}
	a, there, err := statIf(c.o.lower, path)
	if err != nil || !there {
		return "", err
	}
	if a.Mode&syscall.S_IFMT != syscall.S_IFDIR {
		if a.Ctime.UnixNano() > since {
			return fmt.Sprintf("%q was changed on the host", path), nil
		}
		return "", nil
	}
	names, err := folderNames(c.o.lower, path)
	if err != nil {
		return "", err
	}
	for _, name := range names {
		if conflict, err := c.changedSince(joinPath(path, name), since); conflict != "" || err != nil {
			return conflict, err
		}
	}
	return "", nil
}

// keptIn tells whether something at or below a path of the lower tree is not the guest's
// to remove.
func (c *comparison) keptIn(path string) (danger string, err error) {
	if len(c.o.kept) == 0 {
		return "", nil
	}
	a, there, err := statIf(c.o.lower, path)
	if err != nil || !there {
		return "", err
	}
	folder := a.Mode&syscall.S_IFMT == syscall.S_IFDIR
	if c.o.kept.match(path, func() bool { return folder }) {
		return keptDanger, nil
	}
	if !folder {
		return "", nil
	}
	names, err := folderNames(c.o.lower, path)
	for _, name := range names {
		if danger == "" && err == nil {
			danger, err = c.keptIn(joinPath(path, name))
		}
	}
	return danger, err
}

// change describes what is at a path now.
func (c *comparison) change(path string, kind api.FileChangeKind, a Attr) api.FileChange {
	change := api.FileChange{Path: path, Kind: kind, Mode: a.Mode, Danger: c.o.danger(path, a)}
	if a.Mode&syscall.S_IFMT == syscall.S_IFREG {
		change.Size = a.Size
	}
	return change
}

// dangers are files that programs of the host run, or do what they say, because of
// their names alone. What is in .git is judged by gitDanger.
var dangers = []struct{ pattern, why string }{
	{".gitmodules", "git fetches and follows what it names"},
	{".gitconfig", "git runs what it names"},
	{"config.worktree", "git runs what it names"},
	{"commondir", "git follows it to another repository"},
	{"**/.githooks/**", "git runs it"},
	{"**/.husky/**", "git runs it"},
	{".pre-commit-config.yaml", "git runs what it names"},
	{"lefthook.yml", "git runs what it names"},
	{".lefthook.yml", "git runs what it names"},
	{".envrc", "direnv runs it"},
	{"**/.vscode/**", "an editor runs what it names"},
	{"**/.idea/**", "an editor runs what it names"},
	{"**/.vs/**", "an editor runs what it names"},
	{"**/.zed/**", "an editor runs what it names"},
	{"*.code-workspace", "an editor runs what it names"},
	{"**/.devcontainer/**", "an editor runs what it names"},
	{".devcontainer.json", "an editor runs what it names"},
	{".exrc", "an editor runs it"},
	{".nvimrc", "an editor runs it"},
	{".nvim.lua", "an editor runs it"},
	{".vimrc", "an editor runs it"},
	{".dir-locals.el", "an editor runs it"},
	{".gdbinit", "a debugger runs it"},
	{".lldbinit", "a debugger runs it"},
	{"**/.claude/**", "an agent runs what it names"},
	{"**/.codex/**", "an agent runs what it names"},
	{"**/.cursor/**", "an agent runs what it names"},
	{"**/.gemini/**", "an agent runs what it names"},
	{"**/.windsurf/**", "an agent runs what it names"},
	{".mcp.json", "an agent runs what it names"},
	{"**/.cargo/config", "cargo runs what it names"},
	{"**/.cargo/config.toml", "cargo runs what it names"},
	{"**/.mvn/**", "maven runs what it names"},
	{".npmrc", "npm runs what it names"},
	{".pnpmfile.cjs", "pnpm runs it"},
	{".yarnrc", "yarn runs what it names"},
	{".yarnrc.yml", "yarn runs what it names"},
	{"**/.yarn/plugins/**", "yarn runs it"},
	{"**/.yarn/releases/**", "yarn runs it"},
	{"**/.config/**", "programs run what it names"},
	{"**/.ssh/**", "ssh believes it"},
	{".profile", "a shell runs it"},
	{".login", "a shell runs it"},
	{".cshrc", "a shell runs it"},
	{".bash*", "a shell runs it"},
	{".zsh*", "a shell runs it"},
}

// dangerous are the patterns of dangers.
var dangerous = sync.OnceValue(func() (all patterns) {
	for _, d := range dangers {
		p, err := parsePattern(d.pattern)
		if err != nil {
			panic(err)
		}
		all = append(all, p)
	}
	return all
})

// plainInGit are files of .git that are data to git, and plainFolders folders of such.
// All else there it may run, or be led by to what it runs.
var (
	plainInGit = foldAll("AUTO_MERGE", "CHERRY_PICK_HEAD", "COMMIT_EDITMSG", "FETCH_HEAD", "HEAD", "MERGE_HEAD", "MERGE_MODE", "MERGE_MSG",
		"ORIG_HEAD", "REVERT_HEAD", "SQUASH_MSG", "description", "index", "info/exclude", "packed-refs", "shallow")
	plainFolders = foldAll("logs", "objects", "refs")
	alternates   = foldAll("objects/info/alternates", "objects/info/http-alternates")
)

// besideIt is what makes a folder a repository beside what.
var besideIt = map[string]string{fold("config"): "HEAD", fold("HEAD"): "config"}

func foldAll(texts ...string) []string {
	for i := range texts {
		texts[i] = fold(texts[i])
	}
	return texts
}

// gitDanger judges a path, folded, if it is one in .git.
func gitDanger(path string, link bool) (why string, inGit bool) {
	for path != "" && why == "" {
		var name string
		name, path, _ = strings.Cut(path, "/")
		if name != fold(".git") {
			continue
		}
		inGit = true
		first, _, below := strings.Cut(path, "/")
		switch {
		case path == "" || slices.Contains(alternates, path):
			why = "git follows it to another repository"
		case !link && (slices.Contains(plainInGit, path) || below && slices.Contains(plainFolders, first)):
		case strings.Contains("/"+path, fold("/hooks/")):
			why = "git runs it"
		default:
			why = "git runs what it names"
		}
	}
	return why, inGit
}

// danger says why a file should not get to the host unseen.
func (o *Overlay) danger(path string, a Attr) string {
	typ := a.Mode & syscall.S_IFMT
	if o.kept.match(path, func() bool { return typ == syscall.S_IFDIR }) {
		return keptDanger
	}
	switch typ {
	case syscall.S_IFDIR:
		return ""
	case syscall.S_IFLNK:
		target, err := o.Readlink(path)
		if err != nil {
			return err.Error()
		}
		if leadsOut(path, target) {
			return leadsOutDanger
		}
	case syscall.S_IFREG:
	default:
		return "it is no regular file"
	}
	folded := fold(joinPath(o.name, path))
	for i, p := range dangerous() {
		if _, match := p.walk(folded, func() bool { return false }); match {
			return dangers[i].why
		}
	}
	why, inGit := gitDanger(folded, typ == syscall.S_IFLNK)
	if why != "" {
		return why
	}
	// A folder that looks like a repository is one to git, whatever its name is. What
	// comes last makes it one.
	dir, name := splitPath(path)
	if other := besideIt[fold(name)]; other != "" && !inGit {
		if _, err := o.Stat(joinPath(dir, other)); err == nil {
			return "git runs what it names"
		}
	}
	if typ == syscall.S_IFREG && a.Mode&0o111 != 0 {
		return "it is executable"
	}
	return ""
}

// What danger says, to be compared.
const (
	leadsOutDanger = "it may lead out of the folder"
	keptDanger     = "the guest may not change it"
)

// leadsOut tells whether a link at a path may lead out of the tree. One that goes up
// again after going down does: what it went down through may be a link.
func leadsOut(path, target string) bool {
	if strings.HasPrefix(target, "/") {
		return true
	}
	ups, down := 0, false
	for name := range strings.SplitSeq(target, "/") {
		switch name {
		case "", ".":
		case "..":
			if ups++; down {
				return true
			}
		default:
			down = true
		}
	}
	return ups > strings.Count(path, "/")
}
