//go:build linux

package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var when = time.Date(2001, 2, 3, 4, 5, 6, 7000, time.UTC)

// oddNames can all be names on Linux.
var oddNames = []string{"with space", "new\nline", "-rf", "*", "ümläut", "\xff not UTF-8", `back\slash`, strings.Repeat("n", 255), "...", ".matchlock-x"}

// makeTree makes files of all kinds in a folder.
func makeTree(t *testing.T, dir string) {
	t.Helper()
	large := make([]byte, 10<<20)
	rand.NewChaCha8([32]byte{}).Read(large)
	must(t,
		os.MkdirAll(dir+"/empty/folder", 0o755),
		os.MkdirAll(dir+"/deep"+strings.Repeat("/d", 100), 0o755),
		os.WriteFile(dir+"/deep/zero", nil, 0o600),
		os.WriteFile(dir+"/large", large, 0o644),
		os.Symlink("large", dir+"/link"),
		os.Symlink("/nowhere/\xff", dir+"/deep/dangling"),
		os.Symlink("loop", dir+"/loop"),
		os.WriteFile(dir+"/program", []byte("#!/bin/sh\n"), 0o755),
		os.Chmod(dir+"/program", 0o755|fs.ModeSetuid),
		os.Link(dir+"/large", dir+"/deep/name2"),
		os.Link(dir+"/large", dir+"/z"),
		os.Mkdir(dir+"/sticky", 0o777),
		os.Chmod(dir+"/sticky", 0o777|fs.ModeSticky),
		os.Mkdir(dir+"/odd", 0o700),
	)
	for _, name := range oddNames {
		must(t, os.WriteFile(dir+"/odd/"+name, []byte(name), 0o640))
	}
	for _, p := range []string{"large", "program", "odd", "empty/folder", "empty"} {
		must(t, os.Chtimes(dir+"/"+p, when, when))
	}
	must(t, os.Chmod(dir+"/empty", 0o555))
	t.Cleanup(func() { os.Chmod(dir+"/empty", 0o755) })
}

func must(t *testing.T, steps ...error) {
	t.Helper()
	for _, err := range steps {
		if err != nil {
			t.Fatal(err)
		}
	}
}

// describe lists a tree's files with all that a copy is to keep.
func describe(t *testing.T, dir string) []string {
	t.Helper()
	var list []string
	inodes := map[uint64]string{}
	must(t, filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
		if err != nil || p == dir {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		st := info.Sys().(*syscall.Stat_t)
		rel := p[len(dir)+1:]
		line := fmt.Sprintf("%q %v %d:%d %v", rel, info.Mode(), st.Uid, st.Gid, info.ModTime().UnixNano())
		switch info.Mode().Type() {
		case 0:
			if first, ok := inodes[st.Ino]; ok {
				line += " = " + first
				break
			}
			inodes[st.Ino] = rel
			data, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			line += fmt.Sprintf(" %d %x", len(data), hash(data))
		case fs.ModeSymlink:
			target, err := os.Readlink(p)
			if err != nil {
				return err
			}
			line += fmt.Sprintf(" -> %q", target)
		}
		list = append(list, line)
		return nil
	}))
	return list
}

func hash(data []byte) (h uint64) {
	for _, b := range data {
		h = h*1099511628211 + uint64(b)
	}
	return h
}

// copyTree reads a tree and writes it elsewhere, all in the guest.
func copyTree(t *testing.T, c *pair, from, to string) {
	t.Helper()
	var folders []Node
	must(t, c.WriteTree(t.Context(), to, func(put func(Node, io.Reader) error) error {
		err := c.ReadTree(t.Context(), from, false, func(n Node, r io.Reader) error {
			if n.Path == "." {
				return nil
			}
			if n.isDir() {
				folders = append(folders, n)
				n.Mode |= 0o700
			}
			return put(n, r)
		})
		for _, n := range slices.Backward(folders) {
			if err == nil {
				err = put(n, nil)
			}
		}
		return err
	}))
}

func TestTreeRoundTrip(t *testing.T) {
	c := newPair(t)
	from, to := t.TempDir(), t.TempDir()
	makeTree(t, from)
	t.Cleanup(func() { os.Chmod(to+"/empty", 0o755) })
	for _, round := range []string{"first", "over what is there"} {
		copyTree(t, c, from, to)
		if diff := cmp.Diff(describe(t, from), describe(t, to)); diff != "" {
			t.Errorf("%s:\n%s", round, diff)
		}
		must(t, os.Chmod(to+"/empty", 0o755))
	}
}

// What is neither folder, file nor link is named and not opened.
func TestReadTreeOfOthers(t *testing.T) {
	c := newPair(t)
	dir := t.TempDir()
	must(t, syscall.Mkfifo(dir+"/fifo", 0o640), os.Symlink(dir, dir+"/link"), os.WriteFile(dir+"/file", []byte("123456"), 0o600))
	var got []string
	see := func(n Node, r io.Reader) error {
		content, err := io.ReadAll(r)
		got = append(got, fmt.Sprintf("%s %o %q %q", n.Path, n.Mode&modeType, n.Target, content))
		return err
	}
	must(t,
		c.ReadTree(t.Context(), dir, false, see),
		c.ReadTree(t.Context(), dir+"/link", false, see),
		c.ReadTree(t.Context(), dir+"/fifo", false, see),
		c.ReadTree(t.Context(), "/dev/null", false, see),
		c.ReadTree(t.Context(), dir+"/link", true, func(n Node, r io.Reader) error {
			got = append(got, n.Path+" followed")
			r.Read(make([]byte, 2)) // the rest is passed over
			return nil
		}))
	want := []string{
		`. 40000 "" ""`, `fifo 10000 "" ""`, `file 100000 "" "123456"`, `link 120000 "` + dir + `" ""`,
		`. 120000 "` + dir + `" ""`, `. 10000 "" ""`, `. 20000 "" ""`,
		". followed", "fifo followed", "file followed", "link followed",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// A file of /proc does not say how much it holds, and one of /sys not the truth.
func TestReadTreeOfProc(t *testing.T) {
	c := newPair(t)
	for path, end := range map[string]string{"/proc/self/cmdline": "\x00", "/sys/kernel/mm/transparent_hugepage/enabled": "\n"} {
		want, err := os.ReadFile(path)
		if err != nil {
			continue // a kernel without
		}
		var got []byte
		must(t, c.ReadTree(t.Context(), path, false, func(n Node, r io.Reader) (err error) {
			got, err = io.ReadAll(r)
			return err
		}))
		if !bytes.Equal(got, want) || !bytes.HasSuffix(got, []byte(end)) {
			t.Errorf("%s: %q, want %q", path, got, want)
		}
	}
	err := c.ReadTree(t.Context(), "/proc/self/pagemap", false, func(_ Node, r io.Reader) error {
		_, err := io.Copy(io.Discard, r)
		return err
	})
	if !errors.Is(err, ErrTooLarge) {
		t.Errorf("an endless file: %v", err)
	}
	for path, want := range map[string]bool{"/proc": true, "/proc/self": true, t.TempDir(): false} {
		f, err := os.Open(path)
		must(t, err)
		defer f.Close()
		if got := isMadeUp(int(f.Fd())); got != want {
			t.Errorf("isMadeUp(%s) = %v", path, got)
		}
	}
}

// A file that says its size may be larger than one that does not.
func TestReadTreeLarge(t *testing.T) {
	c := newPair(t)
	path := t.TempDir() + "/large"
	must(t, os.WriteFile(path, nil, 0o600), os.Truncate(path, MaxReadFile+12345))
	must(t, c.ReadTree(t.Context(), path, false, func(n Node, r io.Reader) error {
		if size, err := io.Copy(io.Discard, r); size != MaxReadFile+12345 {
			t.Errorf("got %d bytes, %v", size, err)
		}
		return nil
	}))
}

// A file that is cut while it is read is an error, and one that grows is not.
func TestReadTreeChanging(t *testing.T) {
	c := newPair(t)
	dir := t.TempDir()
	must(t, os.WriteFile(dir+"/file", nil, 0o600))
	for change, want := range map[int64]string{0: "unexpected EOF", 100 << 20: ""} {
		must(t, os.Truncate(dir+"/file", 50<<20))
		err := c.ReadTree(t.Context(), dir+"/file", false, func(n Node, r io.Reader) error {
			must(t, os.Truncate(dir+"/file", change)) // most of it is not yet under way
			size, err := io.Copy(io.Discard, r)
			if err == nil && size != 50<<20 {
				t.Errorf("got %d bytes", size)
			}
			return err
		})
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}

func TestReadTreeRefused(t *testing.T) {
	c := newPair(t)
	dir := t.TempDir()
	must(t, os.Symlink("loop", dir+"/loop"))
	deep := dir
	for range 6 {
		deep += strings.Repeat("/d", 200)
		if err := os.MkdirAll(deep, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, test := range map[string]struct {
		path   string
		follow bool
		want   string
	}{
		"nothing":  {dir + "/none", false, "no such file"},
		"a loop":   {dir + "/loop", true, "too many levels"},
		"relative": {"etc", false, "not absolute"},
		"deep":     {dir, false, "too many folders"},
	} {
		t.Run(name, func(t *testing.T) {
			err := c.ReadTree(t.Context(), test.path, test.follow, func(Node, io.Reader) error { return nil })
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
}

// Who reads no further is not sent more.
func TestReadTreeBrokenOff(t *testing.T) {
	c := newPair(t)
	dir := t.TempDir()
	must(t, os.WriteFile(dir+"/file", nil, 0o600), os.Truncate(dir+"/file", 1<<40))
	enough := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	for want, visit := range map[error]func(Node, io.Reader) error{
		enough: func(n Node, r io.Reader) error {
			if n.Path == "." {
				return nil
			}
			io.CopyN(io.Discard, r, 1<<20)
			return enough
		},
		nil: func(Node, io.Reader) error { return fs.SkipAll },
	} {
		if err := c.ReadTree(t.Context(), dir, false, visit); err != want {
			t.Errorf("got %v, want %v", err, want)
		}
	}
	err := c.ReadTree(ctx, dir, false, func(_ Node, r io.Reader) error {
		cancel(enough)
		_, err := io.Copy(io.Discard, r)
		return err
	})
	if !errors.Is(err, enough) {
		t.Errorf("cancelled: %v", err)
	}
}

// put writes one node into a folder of the guest.
func put(t *testing.T, c *pair, dir string, n Node, content string) error {
	return c.WriteTree(t.Context(), dir, func(put func(Node, io.Reader) error) error {
		n.UID, n.GID = uint32(os.Getuid()), uint32(os.Getgid())
		return put(n, strings.NewReader(content))
	})
}

// A symbolic link below the folder leads nowhere, and what is there is not
// followed, opened or, if a folder, replaced.
func TestWriteTreePlanted(t *testing.T) {
	c := newPair(t)
	outside, dir := t.TempDir(), t.TempDir()
	must(t,
		os.WriteFile(outside+"/file", []byte("untouched"), 0o600),
		os.Symlink(outside, dir+"/out"),
		os.Symlink(outside+"/file", dir+"/outfile"),
		os.Symlink(".", dir+"/here"),
		syscall.Mkfifo(dir+"/fifo", 0o600),
		os.WriteFile(dir+"/file", []byte("before"), 0o600),
		os.Mkdir(dir+"/folder", 0o755),
	)
	before := describe(t, outside)
	for name, test := range map[string]struct {
		node Node
		want string // of the error; empty: none
	}{
		"below a link out":     {Node{Path: "out/file", Mode: 0o100600}, "not a directory"},
		"folder below it":      {Node{Path: "out/new", Mode: 0o040700}, "not a directory"},
		"parents below it":     {Node{Path: "out/new/file", Mode: 0o100600}, "not a directory"},
		"below a link inside":  {Node{Path: "here/new", Mode: 0o100600}, "not a directory"},
		"folder on a link":     {Node{Path: "out", Mode: 0o040711}, "not a directory"},
		"folder on a file":     {Node{Path: "file", Mode: 0o040755}, "not a directory"},
		"folder on a fifo":     {Node{Path: "fifo", Mode: 0o040755}, "not a directory"},
		"file on a folder":     {Node{Path: "folder", Mode: 0o100600}, "is a directory"},
		"link on a folder":     {Node{Path: "folder", Mode: modeSymlink, Target: "x"}, "is a directory"},
		"link from outside":    {Node{Path: "x", Mode: 0o100600, Link: "out/file"}, "not a directory"},
		"link from nowhere":    {Node{Path: "x", Mode: 0o100600, Link: "none"}, "no such file"},
		"link to a folder":     {Node{Path: "x", Mode: 0o100600, Link: "folder"}, "not permitted"},
		"the folder itself":    {Node{Path: ".", Mode: 0o040755}, "exists"},
		"fifo":                 {Node{Path: "x", Mode: 0o010644}, "not supported"},
		"device":               {Node{Path: "x", Mode: 0o020644}, "not supported"},
		"no type":              {Node{Path: "x", Mode: 0o644}, "not supported"},
		"name outside":         {Node{Path: "../x", Mode: 0o100644}, "impossible file name"},
		"absolute name":        {Node{Path: "/x", Mode: 0o100644}, "impossible file name"},
		"below a file":         {Node{Path: "file/x", Mode: 0o100644}, "not a directory"},
		"file on a link out":   {Node{Path: "outfile", Mode: 0o100644}, ""},
		"file on a fifo":       {Node{Path: "fifo", Mode: 0o100644}, ""},
		"link is what it says": {Node{Path: "link", Mode: modeSymlink, Target: "../../../../etc"}, ""},
		"missing parents":      {Node{Path: "p/q/r", Mode: 0o100644}, ""},
		"folder that is there": {Node{Path: "folder", Mode: 0o040711}, ""},
	} {
		err := put(t, c, dir, test.node, "new")
		if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
			t.Errorf("%s: got %v, want %q", name, err, test.want)
		}
	}
	if diff := cmp.Diff(before, describe(t, outside)); diff != "" {
		t.Errorf("outside:\n%s", diff)
	}
	for p, want := range map[string]fs.FileMode{"outfile": 0o644, "fifo": 0o644, "p/q": fs.ModeDir | 0o755, "folder": fs.ModeDir | 0o711} {
		if info, err := os.Lstat(dir + "/" + p); err != nil || info.Mode() != want {
			t.Errorf("%s: %v, %v; want %v", p, info, err, want)
		}
	}
	noneLeft(t, dir)
	for path, want := range map[string]string{dir + "/none": "no such file", dir + "/file": "not a directory", "x": "not absolute"} {
		if err := put(t, c, path, Node{Path: "x", Mode: 0o100600}, ""); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("into %s: %v, want %q", path, err, want)
		}
	}
}

// The folder of the last file is not remembered by its name alone.
func TestWriteTreeSwapped(t *testing.T) {
	c := newPair(t)
	outside, dir := t.TempDir(), t.TempDir()
	err := c.WriteTree(t.Context(), dir, func(put func(Node, io.Reader) error) error {
		file := Node{Mode: 0o100600, UID: uint32(os.Getuid()), GID: uint32(os.Getgid())}
		file.Path = "sub/before"
		if err := put(file, strings.NewReader("x")); err != nil {
			return err
		}
		file.Path = "other" // of a size by which all of before has arrived
		if err := put(file, strings.NewReader(strings.Repeat("x", 1<<20))); err != nil {
			return err
		}
		must(t, os.Rename(dir+"/sub", dir+"/moved"), os.Symlink(outside, dir+"/sub"))
		file.Path = "sub/file"
		return put(file, strings.NewReader("x"))
	})
	if err == nil || !strings.Contains(err.Error(), "not a directory") {
		t.Errorf("got %v", err)
	}
	if list := describe(t, outside); len(list) > 0 {
		t.Errorf("outside: %q", list)
	}
}

// What breaks off leaves whole files and no others.
func TestWriteTreeBrokenOff(t *testing.T) {
	c := newPair(t)
	dir := t.TempDir()
	file := Node{Path: "file", Mode: 0o100600, UID: uint32(os.Getuid()), GID: uint32(os.Getgid())}
	broken := errors.New("broken")
	endless := readerFunc(func(p []byte) (int, error) { return len(p), nil })
	failing := io.MultiReader(io.LimitReader(endless, 1<<20), readerFunc(func([]byte) (int, error) { return 0, broken }))
	var cancel context.CancelCauseFunc
	for name, test := range map[string]func(put func(Node, io.Reader) error) error{
		"reader fails":            func(put func(Node, io.Reader) error) error { return put(file, failing) },
		"reader fails, not write": func(put func(Node, io.Reader) error) error { put(file, failing); return nil },
		"write fails":             func(put func(Node, io.Reader) error) error { return broken },
		"cancelled": func(put func(Node, io.Reader) error) error {
			time.AfterFunc(10*time.Millisecond, func() { cancel(broken) })
			return put(file, endless)
		},
	} {
		var ctx context.Context
		ctx, cancel = context.WithCancelCause(t.Context())
		if err := c.WriteTree(ctx, dir, test); !errors.Is(err, broken) {
			t.Errorf("%s: %v", name, err)
		}
		cancel(nil)
		waitFor(t, "the temporary file's end", func() bool {
			left, err := os.ReadDir(dir)
			return err == nil && len(left) == 0
		})
	}
}

// A guest that has given up is not sent more, and says why.
func TestWriteTreeRefusedEarly(t *testing.T) {
	c := newPair(t)
	dir := t.TempDir()
	must(t, os.Mkdir(dir+"/file", 0o755))
	endless := readerFunc(func(p []byte) (int, error) { return len(p), nil })
	for _, swallow := range []bool{false, true} {
		err := c.WriteTree(t.Context(), dir, func(put func(Node, io.Reader) error) error {
			err := put(Node{Path: "file", Mode: 0o100600}, endless)
			if swallow {
				return nil
			}
			return err
		})
		if err == nil || !strings.Contains(err.Error(), "is a directory") || !IsGuestError(err) {
			t.Errorf("got %v", err)
		}
	}
}
