package main

import (
	"archive/zip"
	"bytes"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// bigFile is www/big, which no buffer holds.
var bigFile = strings.Repeat("0123456789abcdef", 3<<16)

// fill makes what nginx, sshd and the application serve.
func (s *servers) fill(t *testing.T) {
	t.Helper()
	s.file(t, "www/big", bigFile)
	s.file(t, "www/digits", "0123456789")

	// git: served by sshd, and as files, which its clients know as the dumb protocol.
	s.file(t, "work/hello", "hello from git\n")
	s.run(t, "git", "init", "--quiet", "--initial-branch=main", "work")
	s.run(t, "git", "-C", "work", "add", ".")
	s.run(t, "git", "-C", "work", "commit", "--quiet", "--message=first")
	for _, repository := range []string{"repo.git", "www/repo.git", "www/private/repo.git"} {
		s.run(t, "git", "clone", "--quiet", "--bare", "work", repository)
		s.run(t, "git", "-C", repository, "update-server-info")
	}

	// pip: an index with a wheel.
	wheel := wheelOf(t, "tiny", 0)
	s.file(t, "www/simple/tiny/tiny-1.0-py3-none-any.whl", string(wheel))
	s.file(t, "www/simple/tiny/index.html", fmt.Sprintf("<!DOCTYPE html>\n<a href=\"tiny-1.0-py3-none-any.whl#sha256=%x\">tiny-1.0-py3-none-any.whl</a>\n", sha256.Sum256(wheel)))

	// apt: an archive with a package.
	s.file(t, "deb/DEBIAN/control", "Package: tiny\nVersion: 1.0\nArchitecture: all\nMaintainer: test <test@web.test>\nDescription: next to nothing\n")
	s.file(t, "deb/opt/tiny", "hello from a package\n")
	if err := os.Mkdir(filepath.Join(s.dir, "www", "apt"), 0o755); err != nil {
		t.Fatal(err)
	}
	s.run(t, "chmod", "-R", "go=rX", "deb")
	s.run(t, "dpkg-deb", "--root-owner-group", "--build", "deb", "www/apt/tiny.deb")
	deb, err := os.ReadFile(filepath.Join(s.dir, "www/apt/tiny.deb"))
	if err != nil {
		t.Fatal(err)
	}
	packages := fmt.Sprintf("Package: tiny\nVersion: 1.0\nArchitecture: all\nMaintainer: test <test@web.test>\nFilename: ./tiny.deb\nSize: %d\nSHA256: %x\nDescription: next to nothing\n\n",
		len(deb), sha256.Sum256(deb))
	s.file(t, "www/apt/Packages", packages)
	s.file(t, "www/apt/Release", fmt.Sprintf("Origin: test\nDate: Thu, 01 Jan 2026 00:00:00 UTC\nSHA256:\n %x %d Packages\n", sha256.Sum256([]byte(packages)), len(packages)))
}

// wheelOf is a Python package with a module of its name, and so many more in a folder.
// It needs others.
func wheelOf(t *testing.T, name string, modules int, needs ...string) []byte {
	t.Helper()
	metadata := "Metadata-Version: 2.1\nName: " + name + "\nVersion: 1.0\n"
	for _, other := range needs {
		metadata += "Requires-Dist: " + other + "\n"
	}
	files := [][2]string{
		{name + ".py", "hello = 'from a wheel'\n"},
		{name + "-1.0.dist-info/METADATA", metadata},
		{name + "-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"},
		{name + "-1.0.dist-info/RECORD", ""},
	}
	for i := range modules {
		files = append(files, [2]string{fmt.Sprintf("%s_modules/m%d.py", name, i), fmt.Sprintf("number = %d\n", i)})
	}
	var archive bytes.Buffer
	w := zip.NewWriter(&archive)
	for _, file := range files {
		f, err := w.Create(file[0])
		if err == nil {
			_, err = f.Write([]byte(file[1]))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return archive.Bytes()
}
