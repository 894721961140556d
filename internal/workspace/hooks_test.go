package workspace

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/matchlock/matchlock/api"
)

func rules(t *testing.T, texts ...string) (all []api.FileRule) {
	t.Helper()
	for _, text := range texts {
		var r api.FileRule
		must(t, r.UnmarshalText([]byte(text)))
		all = append(all, r)
	}
	return all
}

func hooked(t *testing.T, o HookOptions) FS {
	t.Helper()
	m := NewMemory(MemoryOptions{Owner: guestUser})
	populate(t, m)
	fs, err := NewHooks(m, o)
	must(t, err)
	return fs
}

func TestHookRules(t *testing.T) {
	var events []string
	fs := hooked(t, HookOptions{
		Rules: rules(t, "allow:write,create:ok.lock", "deny:write,create:**/*.lock", "deny:rename,link:a/b", "deny:read:c", "deny:list,attr,delete:c"),
		Events: func(e api.FileEvent) {
			events = append(events, fmt.Sprint(e.Op, " ", e.Path, " ", e.Verdict, " ", e.Rule))
		},
	})
	writeFile(t, fs, "ok.lock", "x")
	wantErrno(t, "create", second(fs.Create("a/x.lock", 0o644, guestUser)), syscall.EACCES)
	wantErrno(t, "rename", fs.Rename("a/b/a", "x", 0), syscall.EACCES)
	wantErrno(t, "rename to", fs.Rename("a/a", "a/b/x", 0), syscall.EACCES)
	wantErrno(t, "link", fs.Link("a/a", "a/b/x"), syscall.EACCES)
	wantErrno(t, "list", second(fs.ReadDir("c")), syscall.EACCES)
	wantErrno(t, "unlink", fs.Unlink("c/b"), syscall.EACCES)
	wantErrno(t, "xattr", fs.Setxattr("c/b", "user.x", nil, 0), syscall.EACCES)
	size := int64(0)
	must(t, second(fs.SetAttr("c/b", Change{Size: &size}))) // a write, which only locks forbid
	f, err := fs.Open("c/b", true)
	must(t, err)
	buf := []byte("xxxx")
	wantErrno(t, "read", second(f.ReadAt(buf, 0)), syscall.EACCES)
	// What a file is called counts when it is written.
	for range 3 {
		must(t, second(f.WriteAt([]byte("x"), 0)))
	}
	must(t, fs.Mkdir("d", 0o755, guestUser), fs.Rename("c", "d/c", 0), fs.Rename("d/c/b", "d/x.lock", 0))
	wantErrno(t, "write", second(f.WriteAt([]byte("x"), 0)), syscall.EACCES)
	wantErrno(t, "truncate", f.Truncate(0), syscall.EACCES)
	must(t, f.Close())
	got := strings.Join(events, "\n")
	for _, want := range []string{
		"create ok.lock allowed ",
		"create a/x.lock denied deny:write,create:**/*.lock",
		"write d/x.lock denied deny:write,create:**/*.lock",
		"rename c allowed ",
	} {
		if !strings.Contains(got+"\n", want+"\n") {
			t.Errorf("no event %q in\n%s", want, got)
		}
	}
	if n := strings.Count(got, "write c/b allowed"); n != 2 { // of the size, and of the open file once
		t.Errorf("%d events of writes, want 2:\n%s", n, got)
	}
}

func TestHooks(t *testing.T) {
	var told []string
	release := make(chan struct{})
	defer close(release)
	fs := hooked(t, HookOptions{
		Timeout: 50 * time.Millisecond,
		Hooks: []Hook{
			{Path: "a", Before: func(_ context.Context, op *Op) error {
				switch op.Kind {
				case api.FileRead:
					op.Data = []byte(strings.ToUpper(string(op.Data)))
				case api.FileWrite:
					op.Data = []byte(strings.ReplaceAll(string(op.Data), "secret", "******"))
				case api.FileDelete:
					return errors.New("keep it")
				}
				return nil
			}},
			{Path: "/short", Ops: []api.FileOp{api.FileWrite}, Before: func(_ context.Context, op *Op) error {
				op.Data = op.Data[1:]
				return nil
			}},
			{Path: "/panics", Before: func(context.Context, *Op) error { panic("no") }},
			{Path: "/hangs", Before: func(_ context.Context, op *Op) error {
				<-release
				return nil
			}},
			{Ops: []api.FileOp{api.FileWrite}, After: func(_ context.Context, op *Op) {
				told = append(told, fmt.Sprintf("%s %q %v", op.Path, op.Data, op.Err))
			}},
		},
	})
	writeFile(t, fs, "a/new", "my secret")
	if got := readFile(t, fs, "a/new"); got != "MY ******" {
		t.Errorf("read %q", got)
	}
	wantErrno(t, "unlink", fs.Unlink("a/new"), syscall.EACCES)
	wantErrno(t, "panic", fs.Mkdir("panics", 0o755, guestUser), syscall.EACCES)
	f, err := fs.Create("short", 0o644, guestUser)
	must(t, err)
	wantErrno(t, "other length", second(f.WriteAt([]byte("abc"), 0)), syscall.EIO)
	for range maxCalls + 10 { // none waits for those that hang
		wantErrno(t, "hang", fs.Mkdir("hangs", 0o755, guestUser), syscall.EACCES)
		if len(fs.(*hooks).calls) > 3 {
			fs.(*hooks).o.Timeout = time.Millisecond
		}
	}
	if _, err := fs.Stat("hangs"); !errors.Is(err, syscall.ENOENT) {
		t.Errorf("what was blocked is there: %v", err)
	}
	if got := strings.Join(told, "\n"); got != `a/new "my ******" <nil>` {
		t.Errorf("told %s", got)
	}
}
