package hostfs

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

func TestReplace(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "file")
	for _, content := range []string{"one", "another", ""} {
		must(t, Replace(path, func(w io.Writer) error {
			_, err := io.WriteString(w, content)
			return err
		}))
		if got, err := os.ReadFile(path); err != nil || string(got) != content {
			t.Errorf("the file holds %q (%v), want %q", got, err, content)
		}
	}
	info, err := os.Stat(path)
	must(t, err)
	if info.Mode() != 0o600 {
		t.Errorf("mode %v, want -rw-------", info.Mode())
	}
	wantAlone(t, path)
}

func TestReplaceFails(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "file")
	must(t, os.WriteFile(path, []byte("old"), 0o600))
	cause := errors.New("no more")
	err := Replace(path, func(w io.Writer) error {
		io.WriteString(w, "half of the n")
		return cause
	})
	if err != cause {
		t.Errorf("Replace = %v, want the error of write", err)
	}
	if got, err := os.ReadFile(path); err != nil || string(got) != "old" {
		t.Errorf("the file holds %q (%v), want the old content", got, err)
	}
	wantAlone(t, path)

	folder := filepath.Join(t.TempDir(), "folder")
	must(t, os.Mkdir(folder, 0o700))
	if err := Replace(folder, func(io.Writer) error { return nil }); err == nil {
		t.Error("a folder was replaced by a file")
	}
	wantAlone(t, folder)
}

// Whoever reads while others write sees one of the contents, whole.
func TestReplaceAtOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	write := func(letter string) error {
		return Replace(path, func(w io.Writer) error {
			for range 4 {
				if _, err := io.WriteString(w, strings.Repeat(letter, 1000)); err != nil {
					return err
				}
			}
			return nil
		})
	}
	must(t, write("a"))
	var all sync.WaitGroup
	for _, letter := range []string{"a", "b", "c"} {
		all.Go(func() {
			for range 50 {
				if err := write(letter); err != nil {
					t.Error(err)
				}
				got, err := os.ReadFile(path)
				if err != nil || len(got) != 4000 || bytes.Count(got, got[:1]) != len(got) {
					t.Errorf("read %d bytes (%v), want 4000 that are the same", len(got), err)
				}
			}
		})
	}
	all.Wait()
	wantAlone(t, path)
}

// wantAlone checks that nothing was left beside a file.
func wantAlone(t *testing.T, path string) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Dir(path))
	must(t, err)
	if len(entries) != 1 {
		t.Errorf("left %v", entries)
	}
}

func TestRecord(t *testing.T) {
	type record struct {
		Name  string   `json:"name"`
		Parts []string `json:"parts"`
	}
	path := filepath.Join(t.TempDir(), "record.json")
	must(t, WriteRecord(path, record{"a", []string{"b", "c"}}))
	var got record
	must(t, ReadRecord(path, &got))
	if got.Name != "a" || strings.Join(got.Parts, " ") != "b c" {
		t.Errorf("read %+v", got)
	}
	whole, err := os.ReadFile(path)
	must(t, err)
	for name, content := range map[string][]byte{
		"empty":     nil,
		"cut":       whole[:len(whole)/2],
		"too long":  append(bytes.Repeat([]byte(" "), MaxRecord), whole...),
		"other":     []byte("[1]"),
		"with more": append(whole, '}'),
	} {
		must(t, os.WriteFile(path, content, 0o600))
		if err := ReadRecord(path, &got); err == nil {
			t.Errorf("a record that is %s was read", name)
		}
	}
	if err := WriteRecord(path, func() {}); err == nil {
		t.Error("a function was written")
	}
}
