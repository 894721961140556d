package workspace

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/matchlock/matchlock/api"
)

// overlayOn opens an overlay over a folder of the host.
func overlayOn(t *testing.T, lower, dir string) *Overlay {
	t.Helper()
	o, err := OpenOverlay(openHost(t, lower, HostOptions{ReadOnly: true}), dir, OverlayOptions{})
	must(t, err)
	t.Cleanup(func() { o.Close() })
	return o
}

// host makes a folder with files, by their paths; a path that ends with a slash is a
// folder's.
func hostFolder(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for path, content := range files {
		full := filepath.Join(dir, path)
		must(t, os.MkdirAll(filepath.Dir(full), 0o755))
		if strings.HasSuffix(path, "/") {
			must(t, os.MkdirAll(full, 0o755))
		} else {
			must(t, os.WriteFile(full, []byte(content), 0o644))
		}
	}
	return dir
}

// outline is what Apply takes to the host.
func outline(t *testing.T, fs FS) string {
	t.Helper()
	var all strings.Builder
	var walk func(path string)
	walk = func(path string) {
		a, err := fs.Stat(path)
		must(t, err)
		typ := a.Mode & syscall.S_IFMT
		fmt.Fprintf(&all, "%q %o", path, typ)
		switch typ {
		case syscall.S_IFLNK:
			target, err := fs.Readlink(path)
			must(t, err)
			fmt.Fprintf(&all, " -> %q\n", target)
			return
		case syscall.S_IFREG:
			fmt.Fprintf(&all, " %q", readFile(t, fs, path))
		}
		fmt.Fprintf(&all, " %o\n", hostMode(typ, a.Mode))
		if typ == syscall.S_IFDIR {
			names, err := folderNames(fs, path)
			must(t, err)
			for _, name := range names {
				walk(joinPath(path, name))
			}
		}
	}
	walk("")
	return all.String()
}

func list(changes []api.FileChange) string {
	var all []string
	for _, c := range changes {
		text := string(c.Kind) + " " + c.Path
		if c.Danger != "" {
			text += " (danger)"
		}
		if c.Conflict != "" {
			text += " (conflict)"
		}
		all = append(all, text)
	}
	return strings.Join(all, "\n")
}

func wantChanges(t *testing.T, o *Overlay, want ...string) {
	t.Helper()
	changes, err := o.Changes(context.Background())
	must(t, err)
	if got := list(changes); got != strings.Join(want, "\n") {
		t.Errorf("changes are\n%s\nwant\n%s", got, strings.Join(want, "\n"))
	}
}

func TestOverlayChanges(t *testing.T) {
	lower := hostFolder(t, map[string]string{"same": "x", "file": "x", "mode": "x", "gone": "x", "dir/a": "a", "dir/b": "b", "old/deep/x": "x", "replaced": "x", "back": "x"})
	o := overlayOn(t, lower, filepath.Join(t.TempDir(), "o"))
	wantChanges(t, o)
	mode := uint32(0o600)
	must(t, second(o.SetAttr("same", Change{UID: new(uint32)})), second(o.SetAttr("mode", Change{Mode: &mode})))
	f, err := o.Open("same", true) // and not written
	must(t, err, f.Close())
	writeFile(t, o, "file", "y")
	writeFile(t, o, "new", "x")
	must(t, o.Unlink("gone"), o.Unlink("dir/a"), o.Unlink("dir/b"), o.Rmdir("dir"))
	must(t, o.Rename("old", "moved", 0))
	must(t, o.Unlink("replaced"), o.Mkdir("replaced", 0o755, guestUser), o.Symlink("../new", "replaced/link", guestUser))
	must(t, o.Rename("back", "away", 0), o.Rename("away", "back", 0))
	wantChanges(t, o,
		"deleted dir",
		"modified file",
		"deleted gone",
		"modified mode",
		"added moved",
		"added moved/deep",
		"added moved/deep/x",
		"added new",
		"deleted old",
		"modified replaced",
		"added replaced/link",
	)
	must(t, o.Discard())
	wantChanges(t, o)
	if got := readFile(t, o, "file") + readFile(t, o, "old/deep/x"); got != "xx" {
		t.Errorf("read %q", got)
	}
}

func TestOverlayConflicts(t *testing.T) {
	lower := hostFolder(t, map[string]string{"file": "x", "gone": "x", "dir/a": "a", "removed": "x", "fine": "x"})
	o := overlayOn(t, lower, filepath.Join(t.TempDir(), "o"))
	for _, path := range []string{"file", "removed", "fine", "new"} {
		writeFile(t, o, path, "guest")
	}
	must(t, o.Unlink("gone"), o.Unlink("dir/a"), o.Rmdir("dir"))
	wantChanges(t, o, "deleted dir", "modified file", "modified fine", "deleted gone", "added new", "modified removed")
	must(t,
		os.WriteFile(filepath.Join(lower, "file"), []byte("host"), 0o644),
		os.Remove(filepath.Join(lower, "gone")), os.WriteFile(filepath.Join(lower, "gone"), []byte("host"), 0o644),
		os.WriteFile(filepath.Join(lower, "dir", "b"), []byte("host"), 0o644),
		os.WriteFile(filepath.Join(lower, "new"), []byte("host"), 0o644),
		os.Remove(filepath.Join(lower, "removed")),
	)
	wantChanges(t, o, "deleted dir (conflict)", "modified file (conflict)", "modified fine", "deleted gone (conflict)", "modified new (conflict)", "added removed (conflict)")

	_, err := o.Apply(context.Background(), lower, ApplyOptions{})
	var refused *RefusedError
	if !errors.As(err, &refused) || len(refused.Changes) != 5 || !strings.Contains(err.Error(), `"file": it was changed on the host`) {
		t.Errorf("Apply = %v, want it to refuse 5 changes", err)
	}
	if content, err := os.ReadFile(filepath.Join(lower, "fine")); err != nil || string(content) != "x" {
		t.Errorf("something was applied: %q (%v)", content, err)
	}
	want := outline(t, o)
	done, err := o.Apply(context.Background(), lower, ApplyOptions{Force: true})
	if must(t, err); len(done) != 6 {
		t.Errorf("done is\n%s", list(done))
	}
	if got := outline(t, openHost(t, lower, HostOptions{})); got != want {
		t.Errorf("applied, the host has\n%s\nwant\n%s", got, want)
	}
	wantChanges(t, o)
}

func TestOverlayDangers(t *testing.T) {
	lower := hostFolder(t, map[string]string{"repo/.git/config": "x", "tool": "x"})
	o := overlayOn(t, lower, filepath.Join(t.TempDir(), "o"))
	for path, danger := range map[string]bool{
		".git/hooks/post-checkout":          true,
		".GIT/Hooks/x":                      true,
		"repo/.git/config":                  true,
		"repo/.git/modules/m/config":        true,
		"repo/.git/HEAD":                    false,
		"sub/.git":                          true,
		".envrc":                            true,
		"a/b/.vscode/tasks.json":            true,
		"repo/.git/index":                   false,
		"repo/.git/refs/heads/main":         false,
		"repo/.git/objects/ab/cd":           false,
		"repo/.git/commondir":               true, // its configuration is another folder's
		"repo/.git/rebase-merge/x":          true, // "exec" among the steps
		"repo/.git/objects/.git/x":          true,
		"repo/.git/objects/info/alternates": true,
		".config/fish/config.fish":          true,
		".yarn/releases/yarn.cjs":           true,
		"common/commondir":                  true,
		"bare/HEAD":                         true,
		"bare/config":                       true,
		"config":                            false,
		"main.go":                           false,
	} {
		dir := ""
		for name := range strings.SplitSeq(filepath.Dir(path), "/") {
			if dir = joinPath(dir, name); dir != "." {
				if err := o.Mkdir(dir, 0o755, guestUser); err != nil && !errors.Is(err, syscall.EEXIST) {
					t.Fatal(err)
				}
			}
		}
		writeFile(t, o, path, "guest")
		if a, err := o.Stat(path); err != nil || (o.danger(path, a) != "") != danger && filepath.Dir(path) != "bare" {
			t.Errorf("%s: danger %q (%v), want %v", path, o.danger(path, a), err, danger)
		}
	}
	for target, out := range map[string]bool{
		"x": false, "../x": false, "../../x": true, "/etc/passwd": true, "a/../x": true, "./.././x": false, "a/b/c": false, "..": false, "../..": true,
	} {
		if leadsOut("dir/link", target) != out {
			t.Errorf("a link in a folder to %q: %v, want %v", target, !out, out)
		}
	}
	mode := uint32(0o755)
	must(t, second(o.SetAttr("main.go", Change{Mode: &mode})), o.Symlink("../x", "out", guestUser), o.Mknod("fifo", syscall.S_IFIFO|0o600, guestUser))
	changes, err := o.Changes(context.Background())
	must(t, err)
	got := list(changes)
	for _, want := range []string{"added main.go (danger)", "added out (danger)", "added fifo (danger)", "added bare/config (danger)", "added bare/HEAD (danger)", "modified repo/.git/config (danger)", "added config\n"} {
		if !strings.Contains(got, want) {
			t.Errorf("not %q in\n%s", want, got)
		}
	}
	before := outline(t, openHost(t, lower, HostOptions{}))
	var refused *RefusedError
	if _, err := o.Apply(context.Background(), lower, ApplyOptions{Force: true}); !errors.As(err, &refused) {
		t.Errorf("Apply = %v, want it to refuse", err)
	}
	if after := outline(t, openHost(t, lower, HostOptions{})); after != before {
		t.Errorf("something was applied:\n%s", after)
	}
	want := outline(t, o)
	must(t, second(o.Apply(context.Background(), lower, ApplyOptions{Unsafe: true})))
	if got := outline(t, openHost(t, lower, HostOptions{})); got != want {
		t.Errorf("applied, the host has\n%s\nwant\n%s", got, want)
	}
}

// What a file's name means may depend on that of the folder, which is not in it.
func TestOverlayDangerOfRoot(t *testing.T) {
	lower := hostFolder(t, map[string]string{".bashrc": "x", ".git/hooks/x": "x"})
	for name, path := range map[string]string{".bashrc": "", ".git": "config"} {
		o, err := OpenOverlay(openHost(t, filepath.Join(lower, name), HostOptions{ReadOnly: true}), filepath.Join(t.TempDir(), "o"), OverlayOptions{Name: name})
		must(t, err)
		defer o.Close()
		if path == "" {
			must(t, second(o.SetAttr("", Change{Size: new(int64)})))
		} else {
			writeFile(t, o, path, "guest")
		}
		changes, err := o.Changes(context.Background())
		if err != nil || len(changes) != 1 || changes[0].Danger == "" {
			t.Errorf("%s: changes %+v (%v), want one that is a danger", name, changes, err)
		}
	}
}

// Changes that no guest could have made under the patterns of now are not applied unseen.
func TestOverlayKept(t *testing.T) {
	lower := hostFolder(t, map[string]string{"sub/Makefile": "x", "sub/file": "x", "gone/deep/Makefile": "x", "free/file": "x"})
	o, err := OpenOverlay(openHost(t, lower, HostOptions{ReadOnly: true}), filepath.Join(t.TempDir(), "o"), OverlayOptions{Kept: []string{"Makefile"}})
	must(t, err)
	defer o.Close()
	writeFile(t, o, "sub/Makefile", "guest")
	writeFile(t, o, "sub/file", "guest")
	must(t, removeAll(o, "gone"), removeAll(o, "free"))
	wantChanges(t, o, "deleted free", "deleted gone (danger)", "modified sub/Makefile (danger)", "modified sub/file")
}

// Changes are applied to the folder that they are of, not to what has its name now.
func TestApplyToAnother(t *testing.T) {
	lower := hostFolder(t, map[string]string{"file": "x"})
	o := overlayOn(t, lower, filepath.Join(t.TempDir(), "o"))
	writeFile(t, o, "new", "guest")
	must(t, os.Rename(lower, lower+".away"), os.Mkdir(lower, 0o755))
	if done, err := o.Apply(context.Background(), lower, ApplyOptions{}); err == nil || len(done) > 0 {
		t.Errorf("applied %v (%v), want an error", done, err)
	}
}

// A guest's folders may be deeper, and its files larger, than can be looked at.
func TestChangesWithoutBounds(t *testing.T) {
	lower := hostFolder(t, nil)
	o := overlayOn(t, lower, filepath.Join(t.TempDir(), "o"))
	writeFile(t, o, "large", "guest")
	size := int64(1) << 40
	must(t, second(o.SetAttr("large", Change{Size: &size})))
	must(t, second(o.Apply(context.Background(), lower, ApplyOptions{})))
	if info, err := os.Stat(filepath.Join(lower, "large")); err != nil || info.Size() != size {
		t.Errorf("applied, it is %v (%v)", info, err)
	}
	path := ""
	for len(path) <= maxCompared {
		path = joinPath(path, strings.Repeat("x", maxName))
		must(t, o.Mkdir(path, 0o755, guestUser))
	}
	if _, err := o.Changes(context.Background()); !errors.Is(err, syscall.ENAMETOOLONG) {
		t.Errorf("Changes = %v, want ENAMETOOLONG", err)
	}
	must(t, o.Discard())
	wantChanges(t, o)
}

// A filter's patterns are of where things are, too: they may have been moved before.
func TestFilterOfMoved(t *testing.T) {
	lower := hostFolder(t, map[string]string{".env": "secret", "config/key": "secret", "config/other": "x"})
	o := overlayOn(t, lower, filepath.Join(t.TempDir(), "o"))
	must(t, o.Rename(".env", "visible", 0), o.Rename("config", "moved", 0))
	fs, err := NewFilter(o, []string{".env", "/config/key"}, nil)
	must(t, err)
	for _, path := range []string{"visible", "moved/key"} {
		if _, err := fs.Open(path, false); err != syscall.ENOENT {
			t.Errorf("Open of %s = %v, want ENOENT", path, err)
		}
		if err := fs.Rename(path, "x", 0); err != syscall.ENOENT {
			t.Errorf("Rename of %s = %v, want ENOENT", path, err)
		}
	}
	names, err := folderNames(fs, "moved")
	if err != nil || !slices.Equal(names, []string{"other"}) {
		t.Errorf("in the folder are %q (%v)", names, err)
	}
	f, err := fs.Open("moved/other", true)
	must(t, err, f.Close())
}

// A file that is open when it is applied goes on in the overlay.
func TestOverlayAppliesOpenFile(t *testing.T) {
	lower := hostFolder(t, map[string]string{"file": "x"})
	o := overlayOn(t, lower, filepath.Join(t.TempDir(), "o"))
	reader, err := o.Open("file", false)
	must(t, err)
	defer reader.Close()
	f, err := o.Open("file", true)
	must(t, err)
	defer f.Close()
	_, err = f.WriteAt([]byte("one"), 0)
	must(t, err, second(o.Apply(context.Background(), lower, ApplyOptions{})))
	wantChanges(t, o)
	_, err = f.WriteAt([]byte("two"), 0)
	must(t, err)
	wantChanges(t, o, "modified file")
	buf := make([]byte, 3)
	if _, err := reader.ReadAt(buf, 0); err != nil || string(buf) != "two" {
		t.Errorf("who reads the file reads %q (%v)", buf, err)
	}
	must(t, second(o.Apply(context.Background(), lower, ApplyOptions{})))
	if content, err := os.ReadFile(filepath.Join(lower, "file")); err != nil || string(content) != "two" {
		t.Errorf("the host has %q (%v)", content, err)
	}
}

func TestOverlayOneFile(t *testing.T) {
	lower := filepath.Join(hostFolder(t, map[string]string{"file": "x"}), "file")
	o := overlayOn(t, lower, filepath.Join(t.TempDir(), "o"))
	for _, content := range []string{"one", "two"} {
		writeFile(t, o, "", content)
		wantChanges(t, o, "modified ")
		must(t, second(o.Apply(context.Background(), lower, ApplyOptions{})))
		wantChanges(t, o)
		if got, err := os.ReadFile(lower); err != nil || string(got) != content {
			t.Errorf("the host has %q (%v), want %q", got, err, content)
		}
	}
	writeFile(t, o, "", "three")
	must(t, o.Discard())
	wantChanges(t, o)
	if got := readFile(t, o, ""); got != "two" {
		t.Errorf("discarded, it is %q", got)
	}
}

// A journal that was cut is one without its last step; any other damage is an error.
func TestOverlayJournal(t *testing.T) {
	lower := hostFolder(t, map[string]string{"file": "x"})
	dir := filepath.Join(t.TempDir(), "o")
	o := overlayOn(t, lower, dir)
	must(t, o.Mkdir("a", 0o755, guestUser), o.Mkdir("b", 0o755, guestUser))
	must(t, o.Close())
	journal := filepath.Join(dir, "journal")
	content, err := os.ReadFile(journal)
	must(t, err, os.WriteFile(journal, content[:len(content)-10], 0o600))
	o = overlayOn(t, lower, dir)
	wantChanges(t, o, "added a")
	must(t, o.Mkdir("c", 0o755, guestUser), o.Close())
	wantChanges(t, overlayOn(t, lower, dir), "added a", "added c")

	content[len(content)/2]++
	must(t, os.WriteFile(journal, content, 0o600))
	host := openHost(t, lower, HostOptions{ReadOnly: true})
	if o, err := OpenOverlay(host, dir, OverlayOptions{}); err == nil {
		o.Close()
		t.Error("a damaged journal is no error")
	}
}

func TestOverlayQuota(t *testing.T) {
	lower := hostFolder(t, map[string]string{"big": strings.Repeat("x", 1<<20), "a": "", "b": "", "c": ""})
	dir := filepath.Join(t.TempDir(), "o")
	for range 2 { // what is there is counted when it is opened again
		o, err := OpenOverlay(openHost(t, lower, HostOptions{ReadOnly: true}), dir, OverlayOptions{Quota: 1 << 19, Files: 2})
		must(t, err)
		wantErrno(t, "copy of a large file", second(o.Open("big", true)), syscall.EDQUOT)
		if got := readFile(t, o, "big"); len(got) != 1<<20 {
			t.Errorf("read %d bytes", len(got))
		}
		writeFile(t, o, "new", strings.Repeat("x", 400_000))
		f, err := o.Open("new", true)
		must(t, err)
		wantErrno(t, "write", second(f.WriteAt(make([]byte, 200_000), 400_000)), syscall.EDQUOT)
		must(t, f.Close(), o.Close())
	}
	o, err := OpenOverlay(openHost(t, lower, HostOptions{ReadOnly: true}), dir, OverlayOptions{Files: 2})
	must(t, err)
	defer o.Close()
	must(t, o.Unlink("a"), o.Unlink("b"))
	wantErrno(t, "a third name that is gone", o.Unlink("c"), syscall.EDQUOT)
	must(t, o.Unlink("new"))
}

// FuzzApply has the host be what the guest saw, whatever that had done.
func FuzzApply(f *testing.F) {
	for seed := range uint64(30) {
		random := rand.New(rand.NewPCG(seed, 1))
		ops := make([]byte, 400)
		for i := range ops {
			ops[i] = byte(random.Uint32())
		}
		f.Add(ops)
	}
	f.Fuzz(func(t *testing.T, ops []byte) {
		lower := t.TempDir()
		populate(t, openHost(t, lower, HostOptions{}))
		dir := filepath.Join(t.TempDir(), "o")
		o := overlayOn(t, lower, dir)
		half := len(ops) / 2
		for _, ops := range [][]byte{ops[:half], ops[half:]} {
			operate(o, ops)
			want := outline(t, o)
			must(t, o.Patch(context.Background(), &bytes.Buffer{}))
			changes, err := o.Changes(context.Background())
			must(t, err)
			if slices.ContainsFunc(changes, func(c api.FileChange) bool { return c.Conflict != "" }) {
				t.Errorf("conflicts, when nobody has touched the host's files:\n%+v", changes)
			}
			must(t, second(o.Apply(context.Background(), lower, ApplyOptions{Unsafe: true, Force: true})))
			if got := outline(t, openHost(t, lower, HostOptions{})); got != want {
				t.Fatalf("the host differs after\n%s\n%s", list(changes), firstDifference(got, want))
			}
			if got := outline(t, o); got != want {
				t.Fatalf("the overlay differs: %s", firstDifference(got, want))
			}
			wantChanges(t, o)
			wantHarmless(t, lower)
			must(t, o.Close())
			o = overlayOn(t, lower, dir)
			if got := outline(t, o); got != want {
				t.Fatalf("the overlay differs when it is opened again: %s", firstDifference(got, want))
			}
		}
	})
}

// FuzzJournal opens an overlay with any journal: it is a tree, or an error.
func FuzzJournal(f *testing.F) {
	f.Add([]byte(`{"version":1,"next":9}
{"edits":[{"meta":{"number":2,"mode":16877,"lower":"YQ==","origin":{},"merged":true}},{"name":{"folder":1,"name":"eA==","inode":2,"hidden":5}}]}
{"edits":[{"name":{"folder":1,"name":"YQ==","hidden":7}}]}
`))
	f.Add([]byte(`{"version":1}
{"edits":[{"meta":{"number":1,"mode":16877,"lower":"Li4=","origin":{},"merged":true}}]}
`))
	f.Fuzz(func(t *testing.T, journal []byte) {
		lower := hostFolder(t, map[string]string{"a/b": "x", "c": "y"})
		dir := filepath.Join(t.TempDir(), "o")
		must(t, os.Mkdir(dir, 0o700), os.WriteFile(filepath.Join(dir, "journal"), journal, 0o600))
		host := openHost(t, lower, HostOptions{ReadOnly: true})
		o, err := OpenOverlay(host, dir, OverlayOptions{Files: 50})
		if err != nil {
			return
		}
		defer o.Close()
		// A lower file may be missing, and folders may show one another's: no more can be said.
		changes, err := o.Changes(context.Background())
		if err == nil && len(changes) > 0 {
			o.Stat(changes[0].Path)
		}
		operate(o, journal)
		if got, err := os.ReadFile(filepath.Join(lower, "c")); err != nil || string(got) != "y" {
			t.Errorf("the lower file holds %q (%v)", got, err)
		}
	})
}
