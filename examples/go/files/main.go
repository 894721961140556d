// Command files takes a folder into a sandbox, has a command work on it, and reads and
// takes out what came of that.
package main

import (
	"cmp"
	"context"
	"fmt"
	"io/fs"
	"log"
	"os"
	"path/filepath"

	"github.com/matchlock/matchlock/api"
	"github.com/matchlock/matchlock/sandbox"
)

func main() {
	if err := run(context.Background()); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context) error {
	dir, err := os.MkdirTemp("", "files-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := os.WriteFile(filepath.Join(dir, "names"), []byte("Grace\nAda\n"), 0o644); err != nil {
		return err
	}

	sb, err := sandbox.New(ctx, api.Config{Image: cmp.Or(os.Getenv("IMAGE"), "busybox")})
	if err != nil {
		return err
	}
	defer sb.Close()
	files := sb.FS(ctx)
	if err := files.CopyIn(ctx, dir, "/work"); err != nil { // absolute paths, as docker cp has them
		return err
	}
	if err := files.WriteFile("work/sorted/README", []byte("made in a sandbox\n"), 0o644); err != nil { // names of io/fs
		return err
	}
	if err := sb.Command(ctx, "sh", "-c", "sort /work/names > /work/sorted/names").Run(); err != nil {
		return err
	}

	// What takes an fs.FS takes the guest's files.
	err = fs.WalkDir(files, "work", func(path string, _ fs.DirEntry, err error) error {
		fmt.Println(path)
		return err
	})
	if err != nil {
		return err
	}
	if err := files.CopyOut(ctx, "/work/sorted", dir); err != nil {
		return err
	}
	got, err := os.ReadFile(filepath.Join(dir, "sorted", "names"))
	if err != nil || string(got) != "Ada\nGrace\n" {
		return fmt.Errorf("the guest sorted to %q, %v", got, err)
	}
	return nil
}
