package sandbox

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/matchlock/matchlock/internal/agent"
)

// makeTree makes files of all kinds that a copy keeps.
func makeTree(t *testing.T, dir string) {
	t.Helper()
	large := make([]byte, 10<<20)
	rand.NewChaCha8([32]byte{}).Read(large)
	must(t,
		os.MkdirAll(dir+"/empty/folder", 0o750),
		os.MkdirAll(dir+"/deep"+strings.Repeat("/d", 50), 0o755),
		os.WriteFile(dir+"/deep/zero", nil, 0o600),
		os.WriteFile(dir+"/large", large, 0o644),
		os.WriteFile(dir+"/program", []byte("#!/bin/sh\n"), 0o755),
		os.Symlink("large", dir+"/link"),
		os.Symlink("/nowhere/\xff", dir+"/deep/dangling"),
		os.Symlink("loop", dir+"/loop"),
		os.Link(dir+"/large", dir+"/deep/name2"),
		os.Link(dir+"/large", dir+"/z"),
	)
	for _, name := range []string{"with space", "new\nline", "-rf", "*", "ümläut", "\xff not UTF-8", `back\slash`, strings.Repeat("n", 255)} {
		must(t, os.WriteFile(dir+"/empty/folder/"+name, []byte(name), 0o640))
	}
	when := time.Date(2001, 2, 3, 4, 5, 6, 7000, time.UTC)
	for _, name := range []string{"large", "program", "empty/folder", "empty", "deep"} {
		must(t, os.Chtimes(dir+"/"+name, when, when))
	}
	must(t, os.Chmod(dir+"/deep", 0o555))
	t.Cleanup(func() { os.Chmod(dir+"/deep", 0o755) })
}

// list describes a tree: names, modes, times and what is in the files.
func list(t *testing.T, dir string) map[string]string {
	t.Helper()
	files := make(map[string]string)
	inodes := make(map[uint64]string)
	must(t, filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
		if err != nil || p == dir {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		name, line := p[len(dir)+1:], info.Mode().String()
		switch info.Mode().Type() {
		case 0:
			number := info.Sys().(*syscall.Stat_t).Ino
			if first, ok := inodes[number]; ok {
				line += " = " + first
				break
			}
			inodes[number] = name
			content, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			line += " " + info.ModTime().UTC().Format(time.RFC3339Nano) + " " + string(content)
		case fs.ModeDir:
			line += " " + info.ModTime().UTC().Format(time.RFC3339Nano)
		case fs.ModeSymlink:
			target, err := os.Readlink(p)
			if err != nil {
				return err
			}
			line += " -> " + target
		}
		files[name] = line
		return nil
	}))
	return files
}

// same fails when two trees are not.
func same(t *testing.T, got, want string) {
	t.Helper()
	if diff := cmp.Diff(list(t, want), list(t, got)); diff != "" {
		t.Errorf("%s is not %s:\n%.2000s", got, want, diff)
	}
}

func TestCopyRoundTrip(t *testing.T) {
	fsys, dir := newTestFS(t), t.TempDir()
	must(t, os.Mkdir(dir+"/from", 0o755))
	makeTree(t, dir+"/from")
	for round := range 2 {
		back := fmt.Sprintf("%s/back%d", dir, round)
		must(t,
			fsys.CopyIn(t.Context(), dir+"/from/.", dir+"/guest"), // the second time all is there
			fsys.CopyOut(t.Context(), dir+"/guest/.", back))
		same(t, dir+"/guest", dir+"/from")
		same(t, back, dir+"/from")
		must(t, os.Chmod(dir+"/guest/deep", 0o755), os.Chmod(back+"/deep", 0o755))
		must(t, fsys.CopyOut(t.Context(), dir+"/guest", back+"/."), fsys.CopyOut(t.Context(), dir+"/guest/.", back))
		same(t, back+"/guest", dir+"/guest")
	}
}

// Both directions put a copy where docker cp does.
func TestCopyPlaces(t *testing.T) {
	fsys := newTestFS(t)
	for name, test := range map[string]struct {
		from, to string
		want     string // a file that is there then; or
		err      string // part of the error
	}{
		"file, new name":             {"file", "new", "new", ""},
		"file, new name in a folder": {"file", "folder/new", "folder/new", ""},
		"file into a folder":         {"file", "folder", "folder/file", ""},
		"file into a folder/":        {"file", "folder/", "folder/file", ""},
		"file into folder/.":         {"file", "folder/.", "folder/file", ""},
		"file onto a file":           {"file", "other", "other", ""},
		"file through a link":        {"file", "link", "folder/file", ""},
		"file, folder/ missing":      {"file", "none/", "", "not exist"},
		"file, folder/. missing":     {"file", "none/.", "", "not exist"},
		"file, parent missing":       {"file", "none/new", "", "no"},
		"file onto folder of name":   {"file", "trap", "", "is a directory"},
		"file onto a fifo":           {"file", "fifo", "", "not a regular file"},
		"file below a file":          {"file", "other/x", "", "not a directory"},
		"folder, new name":           {"source", "new", "new/inner", ""},
		"folder, new name/":          {"source", "new/", "new/inner", ""},
		"folder/, new name":          {"source/", "new", "new/inner", ""},
		"folder into a folder":       {"source", "folder", "folder/source/inner", ""},
		"folder twice":               {"source", ".", "source/inner", ""},
		"content, new name":          {"source/.", "new", "new/inner", ""},
		"content into a folder":      {"source/.", "folder", "folder/inner", ""},
		"content through a link":     {"source/.", "link", "folder/inner", ""},
		"folder onto a file":         {"source", "other", "", "not a directory"},
		"content onto a file":        {"source/.", "other", "", "not a directory"},
		"folder, parent missing":     {"source", "none/new", "", "no"},
		"folder onto file of name":   {"source", "blocked", "", "not a directory"},
		"content of a file":          {"file/.", "folder", "", "not a directory"},
		"link":                       {"tofile", "new", "new", ""},
		"folder by a link/":          {"tosource/", "folder", "folder/tosource/inner", ""},
		"nothing":                    {"none", "new", "", "no"},
	} {
		for direction, call := range map[string]func(context.Context, string, string) error{"in": fsys.CopyIn, "out": fsys.CopyOut} {
			t.Run(name+" "+direction, func(t *testing.T) {
				from, to := t.TempDir(), t.TempDir()
				must(t,
					os.WriteFile(from+"/file", []byte("content"), 0o600),
					os.Mkdir(from+"/source", 0o755),
					os.WriteFile(from+"/source/inner", []byte("content"), 0o600),
					os.Symlink("file", from+"/tofile"),
					os.Symlink("source", from+"/tosource"),
					os.MkdirAll(to+"/folder", 0o755),
					os.WriteFile(to+"/other", []byte("other"), 0o600),
					os.Symlink("folder", to+"/link"),
					os.MkdirAll(to+"/trap/file", 0o755),
					os.Mkdir(to+"/blocked", 0o755),
					os.WriteFile(to+"/blocked/source", nil, 0o600),
					syscall.Mkfifo(to+"/fifo", 0o600),
				)
				err := call(t.Context(), from+"/"+test.from, to+"/"+test.to)
				if test.err != "" {
					if _, ok := err.(*fs.PathError); !ok || !strings.Contains(err.Error(), test.err) {
						t.Errorf("got %v, want a PathError with %q", err, test.err)
					}
					return
				}
				must(t, err)
				if test.from == "tofile" {
					if target, err := os.Readlink(to + "/" + test.want); err != nil || target != "file" {
						t.Errorf("got %q, %v", target, err)
					}
					return
				}
				if content, err := os.ReadFile(to + "/" + test.want); err != nil || string(content) != "content" {
					t.Errorf("got %q, %v", content, err)
				}
			})
		}
	}
}

// What is no file is left out, and told of when the rest is copied.
func TestCopySkips(t *testing.T) {
	fsys, from := newTestFS(t), t.TempDir()
	must(t, os.WriteFile(from+"/zz", nil, 0o600))
	for i := range 20 {
		must(t, syscall.Mkfifo(fmt.Sprintf("%s/fifo%02d", from, i), 0o600))
	}
	for direction, call := range map[string]func(context.Context, string, string) error{"in": fsys.CopyIn, "out": fsys.CopyOut} {
		to := t.TempDir()
		err := call(t.Context(), from+"/.", to)
		skipped, ok := errors.AsType[*SkippedError](err)
		if !ok || skipped.Count != 20 || len(skipped.Names) != maxSkippedNames || !strings.Contains(err.Error(), "fifo00") || !strings.Contains(err.Error(), "4 more") {
			t.Errorf("%s: %v", direction, err)
		}
		if files := list(t, to); len(files) != 1 || files["zz"] == "" {
			t.Errorf("%s: %v", direction, files)
		}
		err = call(t.Context(), from+"/fifo00", to)
		if skipped, ok := errors.AsType[*SkippedError](err); !ok || skipped.Count != 1 {
			t.Errorf("%s of a fifo alone: %v", direction, err)
		}
	}
	err := fsys.CopyOut(t.Context(), "/dev/zero", t.TempDir())
	if _, ok := errors.AsType[*SkippedError](err); !ok {
		t.Errorf("/dev/zero: %v", err)
	}
}

// Nothing that a guest has named makes the host write elsewhere, though the
// names are good each for itself: a link of the first copy is in the way of the
// second.
func TestCopyOutOfHostileGuest(t *testing.T) {
	fsys, guest, host, outside := newTestFS(t), t.TempDir(), t.TempDir(), t.TempDir()
	must(t,
		os.WriteFile(outside+"/file", []byte("untouched"), 0o600),
		os.Mkdir(host+"/mine", 0o755),
		os.WriteFile(host+"/mine/file", []byte("untouched"), 0o600),
		os.Mkdir(host+"/own", 0o700),
		os.Symlink(outside, guest+"/out"),
		os.Symlink("../mine", guest+"/in"),
		os.Symlink(outside+"/file", guest+"/file"),
		os.Mkdir(guest+"/own", 0o777),
		os.WriteFile(guest+"/suid", nil, 0o600),
		os.Chmod(guest+"/suid", 0o755|fs.ModeSetuid|fs.ModeSetgid),
		os.Mkdir(guest+"/sticky", 0o700),
		os.Chmod(guest+"/sticky", 0o777|fs.ModeSticky|fs.ModeSetgid),
	)
	before := list(t, outside)
	must(t, fsys.CopyOut(t.Context(), guest, host+"/copy"))
	for name, want := range map[string]fs.FileMode{"suid": 0o755, "sticky": fs.ModeDir | 0o777} {
		if info, err := os.Stat(host + "/copy/" + name); err != nil || info.Mode() != want {
			t.Errorf("%s: %v, %v; want %v", name, info, err, want)
		}
	}
	for _, name := range []string{"out", "in"} {
		second := t.TempDir()
		must(t, os.Mkdir(second+"/"+name, 0o755), os.WriteFile(second+"/"+name+"/file", []byte("bad"), 0o600))
		if err := fsys.CopyOut(t.Context(), second+"/.", host+"/copy"); err == nil || !strings.Contains(err.Error(), "not a directory") {
			t.Errorf("through %s: %v", name, err)
		}
	}
	second := t.TempDir()
	must(t, os.WriteFile(second+"/file", []byte("new"), 0o600))
	must(t, fsys.CopyOut(t.Context(), second+"/.", host+"/copy"))
	if info, err := os.Lstat(host + "/copy/file"); err != nil || !info.Mode().IsRegular() {
		t.Errorf("a file in the place of a link: %v, %v", info, err)
	}
	must(t, fsys.CopyOut(t.Context(), guest+"/own", host))
	if info, err := os.Stat(host + "/own"); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("a folder of the user's became %v, %v", info, err)
	}
	if diff := cmp.Diff(before, list(t, outside)); diff != "" {
		t.Errorf("outside:\n%s", diff)
	}
	if content, err := os.ReadFile(host + "/mine/file"); err != nil || string(content) != "untouched" {
		t.Errorf("beside the copy: %q, %v", content, err)
	}
}

// What only a guest that lies can say.
func TestCopyOutOfLiar(t *testing.T) {
	const regular, folder, link = modeRegular | 0o600, modeDir | 0o700, modeSymlink
	for name, test := range map[string]struct {
		root  string
		nodes []agent.Node
		want  string
	}{
		"file for the content of a folder": {".", []agent.Node{{Path: ".", Mode: regular}}, "not a directory"},
		"link for it":                      {".", []agent.Node{{Path: ".", Mode: link, Target: "/"}}, "not a directory"},
		"link, then a folder there":        {".", []agent.Node{{Path: ".", Mode: folder}, {Path: "a", Mode: link, Target: "/"}, {Path: "a", Mode: folder}}, "not a directory"},
		"folder, then a link there":        {".", []agent.Node{{Path: ".", Mode: folder}, {Path: "a", Mode: folder}, {Path: "a", Mode: link, Target: "/"}}, "is a directory"},
		"hard link out":                    {".", []agent.Node{{Path: ".", Mode: folder}, {Path: "a", Mode: link, Target: "/etc"}, {Path: "b", Mode: regular, Link: "a/passwd"}}, "escapes"},
	} {
		var out copyOut
		dir := t.TempDir()
		must(t, out.begin(dir, test.root))
		var err error
		for _, n := range test.nodes {
			if err == nil {
				err = out.copy(filepath.Join(test.root, n.Path), n, strings.NewReader(""))
			}
		}
		must(t, out.end())
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q", name, err, test.want)
		}
		if left, _ := filepath.Glob(dir + "/.matchlock-*"); len(left) > 0 {
			t.Errorf("%s: left behind: %q", name, left)
		}
	}
}

// A copy that breaks off leaves no half file.
func TestCopyBrokenOff(t *testing.T) {
	fsys, from := newTestFS(t), t.TempDir()
	must(t, os.WriteFile(from+"/a", []byte("whole"), 0o600), os.WriteFile(from+"/huge", nil, 0o600), os.Truncate(from+"/huge", 1<<40))
	enough := errors.New("enough")
	for direction, call := range map[string]func(context.Context, string, string) error{"in": fsys.CopyIn, "out": fsys.CopyOut} {
		to := t.TempDir()
		ctx, cancel := context.WithCancelCause(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- call(ctx, from+"/.", to) }()
		eventually(t, "the second file", func() bool {
			temp, err := filepath.Glob(to + "/.matchlock-*")
			_, first := os.Stat(to + "/a")
			return err == nil && len(temp) == 1 && first == nil
		})
		cancel(enough)
		if err := <-ended; !errors.Is(err, enough) {
			t.Errorf("%s: %v", direction, err)
		}
		eventually(t, "its end", func() bool {
			left, err := os.ReadDir(to)
			return err == nil && len(left) == 1 && left[0].Name() == "a"
		})
	}
}

// eventually waits for something that has no event to wait on.
func eventually(t *testing.T, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: still waiting", what)
		}
	}
}

// A folder of the host that somebody changes while it is copied, as a guest
// that shares it may, shows nothing of what is outside.
func TestCopyInPlanted(t *testing.T) {
	dir, outside := t.TempDir(), t.TempDir()
	must(t,
		os.WriteFile(outside+"/secret", []byte("secret"), 0o600),
		os.Mkdir(dir+"/a", 0o755),
		os.WriteFile(dir+"/a/secret", nil, 0o600),
		os.Mkdir(dir+"/b", 0o755),
	)
	root, err := os.OpenRoot(dir)
	must(t, err)
	defer root.Close()
	in := &copyIn{hostPath: dir, root: root, names: make(map[inode]string)}
	in.put = func(n agent.Node, r io.Reader) error {
		if n.Path == "to/a" { // now that it is known as a folder, and listed
			os.RemoveAll(dir + "/a")
			return os.Symlink(outside, dir+"/a")
		}
		if r != nil {
			content, err := io.ReadAll(r)
			t.Errorf("%s holds %q, %v", n.Path, content, err)
		}
		return nil
	}
	if err := in.copy(".", "to"); err == nil || !strings.Contains(err.Error(), "escapes") {
		t.Errorf("got %v", err)
	}
}

// FuzzCopyOut: whatever a guest says, a copy ends and nothing is written beside
// its destination.
func FuzzCopyOut(f *testing.F) {
	guest := f.TempDir()
	must(f,
		os.Mkdir(guest+"/folder", 0o755),
		os.WriteFile(guest+"/folder/file", []byte("content"), 0o600),
		os.Link(guest+"/folder/file", guest+"/name2"),
		os.Symlink("../beside", guest+"/link"),
		syscall.Mkfifo(guest+"/pipe", 0o600),
	)
	f.Add(record(f, func(fsys *FS) error { return fsys.CopyOut(context.Background(), guest, f.TempDir()) }))
	f.Add(record(f, func(fsys *FS) error { return fsys.CopyOut(context.Background(), guest+"/name2", f.TempDir()) }))
	f.Fuzz(func(t *testing.T, answer []byte) {
		dir := t.TempDir()
		must(t, os.WriteFile(dir+"/beside", []byte("untouched"), 0o600))
		fsys := newFS(t.Context(), agent.NewClient(func(context.Context, uint32) (net.Conn, error) {
			a, b := net.Pipe()
			go io.Copy(io.Discard, b)
			go func() {
				b.Write(answer)
				b.Close()
			}()
			return a, nil
		}))
		fsys.CopyOut(t.Context(), "/guest", dir+"/copy")
		files, err := os.ReadDir(dir)
		if err != nil || len(files) > 2 {
			t.Errorf("there are now %v, %v", files, err)
		}
		if content, err := os.ReadFile(dir + "/beside"); err != nil || string(content) != "untouched" {
			t.Errorf("beside the copy: %q, %v", content, err)
		}
		os.Chmod(dir+"/copy", 0o700) // so that it can be removed
	})
}

// record returns what a guest says while something is asked of it.
func record(t testing.TB, ask func(*FS) error) []byte {
	server := agent.NewServer(agent.HostStarter{}, nil)
	defer server.Close()
	var said bytes.Buffer
	err := ask(newFS(t.Context(), agent.NewClient(func(context.Context, uint32) (net.Conn, error) {
		a, b := net.Pipe()
		go server.ServeConn(b)
		return &recorded{a, &said}, nil
	})))
	if _, ok := errors.AsType[*SkippedError](err); err != nil && !ok {
		t.Fatal(err)
	}
	return said.Bytes()
}

type recorded struct {
	net.Conn
	said *bytes.Buffer
}

func (r *recorded) Read(p []byte) (int, error) {
	n, err := r.Conn.Read(p)
	r.said.Write(p[:n])
	return n, err
}
