package workspace

import (
	"strings"
	"syscall"
	"testing"
	"unicode"
)

func TestPattern(t *testing.T) {
	for _, test := range []struct{ pattern, match, not string }{
		{".env", ".env a/.env a/b/.env .env/x a/.ENV", "x.env .env2 a/.envrc"},
		{"*.pem", "a.pem a/b.pem", "pem a.pem2"},
		{"/a", "a a/b", "b/a"},
		{"a/b", "a/b a/b/c A/B", "a x/a/b a/c"},
		{"a/**", "a/b a/b/c", "a b"},
		{"**/a/b", "a/b x/a/b x/y/a/b/c", "a b x/b"},
		{"a/**/b", "a/b a/x/b a/x/y/b a/x/b/c", "a b x/a/b"},
		{"**", "a a/b", ""},
		{"a?[0-9]", "ab1 x/ab1", "a1 abc"},
		{"Ω", "ω", "o"},
	} {
		p, err := parsePatterns([]string{test.pattern})
		must(t, err)
		for path := range strings.FieldsSeq(test.match) {
			if !p.match(path, func() bool { return false }) {
				t.Errorf("%s does not match %s", test.pattern, path)
			}
		}
		for path := range strings.FieldsSeq(test.not) {
			if p.match(path, func() bool { return true }) {
				t.Errorf("%s matches %s", test.pattern, path)
			}
		}
	}
	folders, err := parsePatterns([]string{"out/"})
	must(t, err)
	for _, folder := range []bool{true, false} {
		if folders.match("a/out", func() bool { return folder }) != folder || !folders.match("out/x", nil) {
			t.Errorf("out/ takes a folder for a file, or the reverse")
		}
	}
	for _, bad := range []string{"", "/", "a//b", "[", "!a", strings.Repeat("a/", 100) + "b"} {
		if _, err := parsePatterns([]string{bad}); err == nil {
			t.Errorf("%q is a pattern", bad)
		}
	}
}

func TestFilter(t *testing.T) {
	below := NewMemory(MemoryOptions{Owner: guestUser})
	for _, dir := range []string{"a", "a/b", "git", "git/hooks", "out", "other", "plain"} {
		must(t, below.Mkdir(dir, 0o755, guestUser))
	}
	for _, file := range []string{"file", ".env", "a/.env", "a/b/c", "git/hooks/x", "git/config", "out/x", "other/file"} {
		writeFile(t, below, file, file)
	}
	fs, err := NewFilter(below, []string{".env", "out/"}, []string{"git/hooks", "*.lock", "/a/b/c"})
	must(t, err)

	entries, err := fs.ReadDir("")
	must(t, err)
	for _, e := range entries {
		if e.Name == ".env" || e.Name == "out" {
			t.Errorf("%s is listed", e.Name)
		}
	}
	for what, err := range map[string]error{
		"stat":          second(fs.Stat(".env")),
		"stat deep":     second(fs.Stat("a/.env")),
		"other case":    second(fs.Stat(".ENV")),
		"stat a folder": second(fs.Stat("out")),
		"stat below":    second(fs.Stat("out/x")),
		"open":          second(fs.Open("a/.env", false)),
		"list":          second(fs.ReadDir("out")),
		"unlink":        fs.Unlink(".env"),
		"rename away":   fs.Rename(".env", "x", 0),
		"link":          fs.Link(".env", "x"),
		"make below":    fs.Mkdir("out/y", 0o755, guestUser),
		"xattr":         second(fs.Getxattr(".env", "user.x")),
	} {
		wantErrno(t, what+" of what is hidden", err, syscall.ENOENT)
	}
	for what, err := range map[string]error{
		"create":      second(fs.Create("other/.env", 0o644, guestUser)),
		"create over": second(fs.Create(".env", 0o644, guestUser)),
		"mkdir":       fs.Mkdir("other/out", 0o755, guestUser),
		"rename to":   fs.Rename("file", "other/.env", 0),
		"exchange":    fs.Rename("file", ".env", RenameExchange),
		"link to":     fs.Link("file", ".env"),
		"a folder to": fs.Rename("plain", "out", 0),
	} {
		wantErrno(t, what+" of what is hidden", err, syscall.EACCES)
	}
	mode := uint32(0o777)
	for what, err := range map[string]error{
		"write":             second(fs.Open("git/hooks/x", true)),
		"chmod":             second(fs.SetAttr("git/hooks", Change{Mode: &mode})),
		"unlink":            fs.Unlink("git/hooks/x"),
		"rmdir":             fs.Rmdir("git/hooks"),
		"create":            second(fs.Create("git/hooks/new", 0o755, guestUser)),
		"create by name":    second(fs.Create("plain/x.LOCK", 0o644, guestUser)),
		"rename":            fs.Rename("git/hooks", "hooks", 0),
		"rename into":       fs.Rename("file", "git/hooks/y", 0),
		"rename over":       fs.Rename("file", "git/hooks/x", 0),
		"rename its folder": fs.Rename("git", "git2", 0),
		"rename higher up":  fs.Rename("a", "a2", 0),
		"exchange":          fs.Rename("other", "git", RenameExchange),
		"exchange back":     fs.Rename("git", "other", RenameExchange),
		"link from":         fs.Link("git/hooks/x", "x"),
		"link to":           fs.Link("file", "git/hooks/y"),
		"symlink":           fs.Symlink("x", "git/hooks/z", guestUser),
		"xattr":             fs.Setxattr("git/hooks/x", "user.x", nil, 0),
		"no xattr":          fs.Removexattr("git/hooks/x", "user.x"),
	} {
		wantErrno(t, what+" of what is protected", err, syscall.EPERM)
	}
	wantErrno(t, "mkdir of what is protected, and there", fs.Mkdir("git/hooks", 0o755, guestUser), syscall.EEXIST)
	// A folder could be made elsewhere, to become the one of the pattern.
	must(t, fs.Rmdir("plain"), fs.Rename("other", "else", 0))
	must(t, below.Rename("git", "away", 0), fs.Mkdir("evil", 0o755, guestUser), fs.Mkdir("evil/hooks", 0o755, guestUser))
	wantErrno(t, "a folder with hooks", fs.Rename("evil", "git", 0), syscall.EPERM)
	must(t, below.Rename("away", "git", 0))

	if got := readFile(t, fs, "git/hooks/x"); got != "git/hooks/x" {
		t.Errorf("read %q", got)
	}
	must(t, fs.Unlink("git/config"), fs.Unlink("else/file"), fs.Rmdir("else"))
	must(t, fs.Mkdir("hiding", 0o755, guestUser))
	writeFile(t, below, "hiding/.env", "x")
	wantErrno(t, "rmdir of what seems empty", fs.Rmdir("hiding"), syscall.ENOTEMPTY)
	must(t, fs.Rename("hiding", "hiding2", 0)) // what is in it is as hidden there
	wantErrno(t, "stat", second(fs.Stat("hiding2/.env")), syscall.ENOENT)
}

func FuzzPattern(f *testing.F) {
	f.Add("a/**/b", "a/x/b", "z")
	f.Add("**/[a-z]*/", "ab/c", "q")
	f.Fuzz(func(t *testing.T, text, path, name string) {
		p, err := parsePatterns([]string{text})
		if err != nil || checkPath(path) != nil || checkPath(name) != nil || path == "" || name == "" || len(path) > 1000 {
			return
		}
		folder := func() bool { return true }
		// What is below a match matches, in any case of letters.
		if p.match(path, folder) && !(p.match(joinPath(path, name), folder) && p.match(strings.Map(unicode.SimpleFold, path), folder)) {
			t.Errorf("%q matches %q, and not what is below, or of another case", text, path)
		}
		// Folders that are alike stay so with any name in them.
		for _, other := range []string{name, joinPath(name, name)} {
			if p.alike(path, other) && p.match(joinPath(path, "x"), folder) != p.match(joinPath(other, "x"), folder) {
				t.Errorf("%q takes %q and %q for alike", text, path, other)
			}
		}
	})
}
