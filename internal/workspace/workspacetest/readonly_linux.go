package workspacetest

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// ReadOnly is what programs expect of a folder that is mounted to be read. There are a
// file in it, "file", which holds "content", and a folder, "folder".
func ReadOnly(t *testing.T, root string) {
	at := func(name string) string { return filepath.Join(root, name) }
	wantFile(t, at("file"), "content")
	if got := dirNames(t, root); got != "file folder" {
		t.Errorf("there are %s", got)
	}
	for what, err := range map[string]error{
		"write":       second(os.OpenFile(at("file"), os.O_WRONLY, 0)),
		"create":      os.WriteFile(at("new"), nil, 0o644),
		"mkdir":       os.Mkdir(at("folder/new"), 0o755),
		"mkfifo":      unix.Mkfifo(at("new"), 0o600),
		"symlink":     os.Symlink("x", at("new")),
		"link":        os.Link(at("file"), at("new")),
		"unlink":      unix.Unlink(at("file")),
		"rmdir":       unix.Rmdir(at("folder")),
		"rename":      unix.Rename(at("file"), at("new")),
		"chmod":       os.Chmod(at("file"), 0o600),
		"chown":       os.Chown(at("file"), 1, 1),
		"times":       os.Chtimes(at("file"), time.Now(), time.Now()),
		"truncate":    os.Truncate(at("file"), 0),
		"setxattr":    unix.Setxattr(at("file"), "user.x", nil, 0),
		"removexattr": unix.Removexattr(at("file"), "user.x"),
	} {
		want(t, what, err, syscall.EROFS)
	}
	wantFile(t, at("file"), "content")
}
