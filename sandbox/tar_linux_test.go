package sandbox

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/matchlock/matchlock/vm"
)

func TestTarRoundTrip(t *testing.T) {
	fsys, dir := newTestFS(t), t.TempDir()
	must(t, os.Mkdir(dir+"/from", 0o755), os.Mkdir(dir+"/to", 0o755))
	makeTree(t, dir+"/from")
	must(t, os.Chmod(dir+"/from/program", 0o755|fs.ModeSetuid))
	var archive bytes.Buffer
	must(t, fsys.TarOut(t.Context(), dir+"/from", &archive))
	content := archive.Bytes()
	for range 2 { // the second time all is there
		must(t, fsys.TarIn(t.Context(), bytes.NewReader(content), dir+"/to"))
		same(t, dir+"/to/from", dir+"/from")
		must(t, os.Chmod(dir+"/to/from/deep", 0o755))
	}
}

func TestTarOut(t *testing.T) {
	fsys, dir := newTestFS(t), t.TempDir()
	must(t,
		os.Mkdir(dir+"/top", 0o750),
		os.WriteFile(dir+"/top/file", []byte("content"), 0o640),
		os.Link(dir+"/top/file", dir+"/top/name2"),
		os.Symlink("file", dir+"/top/link"),
		syscall.Mkfifo(dir+"/top/pipe", 0o600),
	)
	owner := fmt.Sprintf("%d:%d", os.Getuid(), os.Getgid())
	for p, want := range map[string][]string{
		dir + "/top": {
			"5 top/ 750 " + owner + ` "" ""`, "0 top/file 640 " + owner + ` "" "content"`,
			"2 top/link 777 " + owner + ` "file" ""`, "1 top/name2 640 " + owner + ` "top/file" ""`,
		},
		dir + "/top/.": {
			"5 ./ 750 " + owner + ` "" ""`, "0 file 640 " + owner + ` "" "content"`,
			"2 link 777 " + owner + ` "file" ""`, "1 name2 640 " + owner + ` "file" ""`,
		},
		dir + "/top/file": {"0 file 640 " + owner + ` "" "content"`},
	} {
		var archive bytes.Buffer
		err := fsys.TarOut(t.Context(), p, &archive)
		if skipped, ok := errors.AsType[*SkippedError](err); ok != (len(want) > 1) || ok && skipped.Names[0] != dir+"/top/pipe" {
			t.Errorf("%s: %v", p, err)
		}
		var got []string
		for r := tar.NewReader(&archive); ; {
			h, err := r.Next()
			if err == io.EOF {
				break
			}
			must(t, err)
			content, err := io.ReadAll(r)
			must(t, err)
			got = append(got, fmt.Sprintf("%c %s %o %d:%d %q %q", h.Typeflag, h.Name, h.Mode, h.Uid, h.Gid, h.Linkname, content))
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s:\n%s", p, diff)
		}
	}
	var archive bytes.Buffer
	must(t, fsys.TarOut(t.Context(), "/proc/self/cmdline", &archive))
	if h, err := tar.NewReader(&archive).Next(); err != nil || h.Size == 0 {
		t.Errorf("a file that does not say its size: %+v, %v", h, err)
	}
	if err := fsys.TarOut(t.Context(), "/proc/self/pagemap", io.Discard); !errors.Is(err, vm.ErrTooLarge) {
		t.Errorf("an endless one: %v", err)
	}
	if err := fsys.TarOut(t.Context(), dir+"/none", io.Discard); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("nothing: %v", err)
	}
	full := errors.New("full")
	if err := fsys.TarOut(t.Context(), dir+"/top", writerFunc(func([]byte) (int, error) { return 0, full })); !errors.Is(err, full) {
		t.Errorf("a writer that fails: %v", err)
	}
}

// archive makes a tar of headers, each with the content "content" if it is a
// regular file.
func archive(t *testing.T, headers ...tar.Header) io.Reader {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range headers {
		if h.Typeflag == tar.TypeReg {
			h.Size = int64(len("content"))
		}
		if h.Typeflag != tar.TypeXGlobalHeader {
			h.Uid, h.Gid = max(h.Uid, os.Getuid()), os.Getgid()
			h.Mode = max(h.Mode, 0o400)
		}
		must(t, w.WriteHeader(&h))
		if h.Typeflag == tar.TypeReg {
			io.WriteString(w, "content")
		}
	}
	must(t, w.Close())
	return &b
}

func TestTarIn(t *testing.T) {
	fsys, dir := newTestFS(t), t.TempDir()
	when := time.Unix(1e9, 0)
	err := fsys.TarIn(t.Context(), archive(t,
		tar.Header{Typeflag: tar.TypeXGlobalHeader, Name: "global", PAXRecords: map[string]string{"comment": "x"}},
		tar.Header{Typeflag: tar.TypeDir, Name: "./", Mode: 0o700},
		tar.Header{Typeflag: tar.TypeReg, Name: "./missing/parents/file", ModTime: when},
		tar.Header{Typeflag: tar.TypeDir, Name: "folder/", Mode: 0o555, ModTime: when},
		tar.Header{Typeflag: tar.TypeReg, Name: "folder/a/../file"},
		tar.Header{Typeflag: tar.TypeLink, Name: "folder/name2", Linkname: "./folder/file"},
		tar.Header{Typeflag: tar.TypeSymlink, Name: "out", Linkname: "../../.."},
		tar.Header{Typeflag: tar.TypeFifo, Name: "pipe"},
		tar.Header{Typeflag: tar.TypeChar, Name: "null", Devmajor: 1, Devminor: 3},
		tar.Header{Typeflag: tar.TypeReg, Name: "last"},
	), dir)
	t.Cleanup(func() { os.Chmod(dir+"/folder", 0o755) })
	skipped, ok := errors.AsType[*SkippedError](err)
	if !ok || !cmp.Equal(skipped.Names, []string{"pipe", "null"}) {
		t.Errorf("got %v", err)
	}
	files := list(t, dir)
	for name, want := range map[string]string{
		"missing/parents/file": "-r-------- 2001-09-09T01:46:40Z content",
		"folder":               "dr-xr-xr-x 2001-09-09T01:46:40Z",
		"folder/file":          "-r-------- 1970-01-01T00:00:00Z content",
		"folder/name2":         "-r-------- = folder/file",
		"out":                  "Lrwxrwxrwx -> ../../..",
		"last":                 "-r-------- 1970-01-01T00:00:00Z content",
	} {
		if files[name] != want {
			t.Errorf("%s: %q, want %q", name, files[name], want)
		}
	}
	if len(files) != 8 {
		t.Errorf("got %q", files)
	}
}

func TestTarInRefused(t *testing.T) {
	fsys, outside := newTestFS(t), t.TempDir()
	file := func(name string) tar.Header { return tar.Header{Typeflag: tar.TypeReg, Name: name} }
	for name, test := range map[string]struct {
		headers []tar.Header
		want    string
	}{
		"dots":              {[]tar.Header{file("../x")}, "leads out"},
		"dots inside":       {[]tar.Header{file("a/../../x")}, "leads out"},
		"absolute":          {[]tar.Header{file("/x")}, "leads out"},
		"hard link out":     {[]tar.Header{{Typeflag: tar.TypeLink, Name: "a", Linkname: "../x"}}, "leads out"},
		"hard link to /":    {[]tar.Header{{Typeflag: tar.TypeLink, Name: "a", Linkname: "/etc/passwd"}}, "leads out"},
		"hard link to none": {[]tar.Header{{Typeflag: tar.TypeLink, Name: "a", Linkname: "b"}}, "not exist"},
		"hard link to top":  {[]tar.Header{{Typeflag: tar.TypeLink, Name: "a", Linkname: "."}}, "impossible link"},
		"through a link":    {[]tar.Header{{Typeflag: tar.TypeSymlink, Name: "a", Linkname: outside}, file("a/x")}, "not a directory"},
		"folder on it":      {[]tar.Header{{Typeflag: tar.TypeSymlink, Name: "a", Linkname: outside}, {Typeflag: tar.TypeDir, Name: "a"}}, "not a directory"},
		"hard link through": {[]tar.Header{{Typeflag: tar.TypeSymlink, Name: "a", Linkname: outside}, {Typeflag: tar.TypeLink, Name: "b", Linkname: "a/x"}}, "not a directory"},
		"file on a folder":  {[]tar.Header{{Typeflag: tar.TypeDir, Name: "a"}, file("a")}, "is a directory"},
		"long name":         {[]tar.Header{file(strings.Repeat("n", 256))}, "impossible file name"},
		"owner":             {[]tar.Header{{Typeflag: tar.TypeReg, Name: "a", Uid: 1 << 32}}, "no such"},
	} {
		dir := t.TempDir()
		err := fsys.TarIn(t.Context(), archive(t, test.headers...), dir)
		if _, ok := err.(*fs.PathError); !ok || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: got %v, want a PathError with %q", name, err, test.want)
		}
		if left, _ := filepath.Glob(dir + "/.matchlock-*"); len(left) > 0 {
			t.Errorf("%s: left behind: %q", name, left)
		}
	}
	if files := list(t, outside); len(files) > 0 {
		t.Errorf("outside: %q", files)
	}
	if err := fsys.TarIn(t.Context(), strings.NewReader(strings.Repeat("no tar", 500)), outside); !errors.Is(err, tar.ErrHeader) {
		t.Errorf("no tar: %v", err)
	}
	if err := fsys.TarIn(t.Context(), archive(t), outside+"/none"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("into nothing: %v", err)
	}
}
