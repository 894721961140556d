package control

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestFiles(t *testing.T) {
	dir := t.TempDir()
	open := func(n int) (files []*os.File) {
		for i := range n {
			f, err := os.Create(filepath.Join(dir, fmt.Sprint(i)))
			if err != nil {
				t.Fatal(err)
			}
			fmt.Fprint(f, i)
			files = append(files, f)
		}
		return files
	}
	client, _ := startServer(t, Methods{Streams: map[string]Method{
		"give": func(_ context.Context, c *Call) (any, error) {
			var n int
			if err := c.Params(&n); err != nil {
				return nil, err
			}
			files := open(n)
			defer func() {
				for _, f := range files {
					f.Close()
				}
			}()
			return nil, c.SendFiles(strings.Repeat("x", n), files)
		},
	}})
	for _, n := range []int{1, 3, maxFiles} {
		var result string
		files, err := client.Files(t.Context(), "give", n, &result)
		if err != nil {
			t.Fatal(err)
		}
		if len(files) != n || len(result) != n {
			t.Errorf("got %d files and %q, want %d", len(files), result, n)
		}
		for i, f := range files {
			content, err := io.ReadAll(io.NewSectionReader(f, 0, 10))
			if err != nil || string(content) != fmt.Sprint(i) {
				t.Errorf("file %d has %q, %v", i, content, err)
			}
			f.Close()
		}
	}
	for _, n := range []int{0, maxFiles + 1} {
		if files, err := client.Files(t.Context(), "give", n, nil); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("%d files", n)) {
			t.Errorf("%d files: got %v, %v", n, files, err)
		}
	}
	if _, err := client.Files(t.Context(), "take", 1, nil); err == nil || !strings.Contains(err.Error(), "no method") {
		t.Errorf("a method that there is not: %v", err)
	}
}
