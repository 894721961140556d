//go:build linux

package agent

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// newLayer returns a layer of two folders, and how many hold it.
func newLayer(t *testing.T) (l *Layer, upper, below string, held *int) {
	t.Helper()
	upper, below, held = t.TempDir(), t.TempDir(), new(int)
	must(t, os.Chmod(upper, 0o755))
	open := func(dir string) *os.File {
		f, err := os.Open(dir)
		must(t, err)
		t.Cleanup(func() { f.Close() })
		return f
	}
	return &Layer{
		Upper: open(upper), Below: open(below),
		Hold: func() (func(), error) { *held++; return func() { *held-- }, nil },
		Ours: func() map[string]Place { return nil },
	}, upper, below, held
}

// asRoot skips what only root can make, and not everywhere.
func asRoot(t *testing.T, err error) {
	t.Helper()
	if err != nil && os.Getenv("MATCHLOCK_TEST_VM") != "1" {
		t.Skipf("%v: runs with MATCHLOCK_TEST_VM=1", err)
	}
	must(t, err)
}

// entries are the names in a tar, with what matters of each.
func entries(t *testing.T, r io.Reader) (list []string) {
	t.Helper()
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if err == io.EOF {
			return list
		}
		must(t, err)
		content, err := io.ReadAll(tr)
		must(t, err)
		line := fmt.Sprintf("%c %04o %s", h.Typeflag, h.Mode, h.Name)
		if h.Linkname != "" {
			line += " -> " + h.Linkname
		}
		if len(content) > 0 {
			line += " " + string(content[:min(len(content), 20)])
		}
		list = append(list, line)
	}
}

// layerOf reads a layer by both ends of the protocol.
func layerOf(t *testing.T, l *Layer, still bool) ([]byte, error) {
	t.Helper()
	p := newPair(t)
	p.server.ServeLayer(l)
	r, err := p.ReadLayer(t.Context(), still)
	must(t, err)
	defer r.Close()
	return io.ReadAll(r)
}

func TestReadLayer(t *testing.T) {
	l, upper, below, held := newLayer(t)
	must(t,
		os.MkdirAll(upper+"/dir/sub", 0o750),
		os.WriteFile(upper+"/dir/first", []byte("content"), 0o644),
		os.Link(upper+"/dir/first", upper+"/dir/sub/second"),
		os.Symlink("../nowhere", upper+"/dir/link"),
		os.Link(upper+"/dir/link", upper+"/dir/link2"),
		unix.Mkfifo(upper+"/pipe", 0o600),
		os.WriteFile(upper+"/setuid", nil, 0o755),
		os.Chmod(upper+"/setuid", 0o755|os.ModeSetuid),
		os.WriteFile(upper+"/\xff odd\n", []byte("x"), 0o644),
		os.WriteFile(upper+"/"+strings.Repeat("n", 200), []byte("long"), 0o644),
		os.WriteFile(below+"/gone", []byte("x"), 0o644),
		os.WriteFile(below+"/socket", []byte("x"), 0o644),
	)
	for _, name := range []string{"/socket", "/of our own"} {
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
		must(t, err, unix.Bind(fd, &unix.SockaddrUnix{Name: upper + name}), unix.Close(fd))
	}
	asRoot(t, unix.Mknod(upper+"/gone", unix.S_IFCHR, 0))
	got, err := layerOf(t, l, true)
	must(t, err)
	if *held != 0 {
		t.Errorf("%d hold it afterwards", *held)
	}
	want := []string{
		"5 0750 dir/",
		"0 0644 dir/first content",
		"2 0777 dir/link -> ../nowhere",
		"1 0777 dir/link2 -> dir/link",
		"5 0750 dir/sub/",
		"1 0644 dir/sub/second -> dir/first",
		"0 0000 .wh.gone",
		"0 0644 " + strings.Repeat("n", 200) + " long",
		"6 0600 pipe",
		"0 4755 setuid",
		"0 0000 .wh.socket",
		"0 0644 \xff odd\n x",
	}
	if diff := cmp.Diff(want, entries(t, bytes.NewReader(got))); diff != "" {
		t.Errorf("layer (-want +got):\n%s", diff)
	}
	again, err := layerOf(t, l, false)
	if must(t, err); !bytes.Equal(got, again) {
		t.Error("the same files gave another tar")
	}

	// What the root is like is said if it is not as it was made.
	must(t, os.Chmod(upper, 0o711))
	if got, err = layerOf(t, l, false); err != nil || entries(t, bytes.NewReader(got))[0] != "5 0711 ./" {
		t.Errorf("layer begins with %q, %v", entries(t, bytes.NewReader(got))[0], err)
	}
}

// TestReadLayerOfOverlay has folders in overlayfs's own terms.
func TestReadLayerOfOverlay(t *testing.T) {
	l, upper, _, _ := newLayer(t)
	must(t, os.Mkdir(upper+"/new", 0o755), os.WriteFile(upper+"/new/file", nil, 0o600))
	asRoot(t, unix.Setxattr(upper+"/new", "trusted.overlay.opaque", []byte("y"), 0))
	must(t, unix.Setxattr(upper+"/new", "trusted.overlay.impure", []byte("y"), 0), unix.Setxattr(upper+"/new/file", "trusted.mine", []byte("a\x00b"), 0))
	got, err := layerOf(t, l, false)
	must(t, err)
	if diff := cmp.Diff([]string{"5 0755 new/", "0 0000 new/.wh..wh..opq", "0 0600 new/file"}, entries(t, bytes.NewReader(got))); diff != "" {
		t.Errorf("layer (-want +got):\n%s", diff)
	}
	if text := string(got); strings.Contains(text, "overlay") || !strings.Contains(text, " SCHILY.xattr.trusted.mine=a\x00b\n") {
		t.Error("attributes are not what they should be")
	}
	for _, name := range []string{"redirect", "metacopy"} {
		must(t, unix.Setxattr(upper+"/new/file", "trusted.overlay."+name, []byte("/x"), 0))
		if _, err := layerOf(t, l, true); err == nil || !strings.Contains(err.Error(), "read /new/file: overlayfs keeps it") {
			t.Errorf("%s: %v", name, err)
		}
		must(t, unix.Removexattr(upper+"/new/file", "trusted.overlay."+name))
	}
}

// TestReadLayerPlaces leaves out what user code has not written.
func TestReadLayerPlaces(t *testing.T) {
	clean := Place{Clean: func(b []byte) []byte { return bytes.ReplaceAll(b, []byte("ours"), nil) }}
	ours := map[string]Place{"mnt/empty": {}, "etc/hosts": {}, "ca/bundle": clean, "ca/new": clean, "opt/made/place": {}, "opt/file": {}}
	for name, test := range map[string]struct {
		upper, below map[string]string // files; folders end with a slash
		want         []string
	}{
		"nothing of theirs": {
			upper: map[string]string{"mnt/empty/": "", "etc/hosts": "", "ca/bundle": "theirs\nours", "ca/new": "ours", "opt/made/place/": "", "opt/file": ""},
			below: map[string]string{"ca/bundle": "theirs", "etc/": ""},
		},
		"beside ours": {
			upper: map[string]string{"mnt/empty/": "", "etc/passwd": "x", "etc/hosts": "", "opt/made/place/deep": "x"},
			want:  []string{"5 0755 etc/", "0 0644 etc/passwd x", "5 0755 opt/", "5 0755 opt/made/", "5 0755 opt/made/place/", "0 0644 opt/made/place/deep x"},
		},
		"in ours": {
			upper: map[string]string{"ca/bundle": "more ours", "ca/new": "mine", "etc/hosts": "theirs"},
			below: map[string]string{"ca/bundle": "theirs"},
			want:  []string{"5 0755 ca/", "0 0644 ca/bundle more ", "0 0644 ca/new mine", "5 0755 etc/", "0 0644 etc/hosts theirs"},
		},
		"emptied": {
			upper: map[string]string{"opt/file": "", "ca/bundle": "ours"},
			below: map[string]string{"opt/file": "x", "ca/bundle": "theirs"},
			want:  []string{"5 0755 ca/", "0 0644 ca/bundle", "5 0755 opt/", "0 0644 opt/file"},
		},
		"a folder below": {
			upper: map[string]string{"ca/bundle": "ours"},
			below: map[string]string{"ca/bundle/file": "x"},
		},
		"below through a link": {
			upper: map[string]string{"etc/hosts": ""},
			below: map[string]string{"elsewhere/hosts": "x", "etc": "-> elsewhere"},
			want:  []string{"5 0755 etc/"},
		},
		"an empty folder that is not ours": {
			upper: map[string]string{"ca/more/": "", "mnt/empty/": ""},
			want:  []string{"5 0755 ca/", "5 0755 ca/more/"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			l, upper, below, _ := newLayer(t)
			l.Ours = func() map[string]Place { return ours }
			for dir, files := range map[string]map[string]string{upper: test.upper, below: test.below} {
				for p, content := range files {
					p = dir + "/" + p
					must(t, os.MkdirAll(p[:strings.LastIndex(p, "/")], 0o755))
					if target, ok := strings.CutPrefix(content, "-> "); ok {
						must(t, os.Symlink(target, p))
					} else if !strings.HasSuffix(p, "/") {
						must(t, os.WriteFile(p, []byte(content), 0o644))
					}
				}
			}
			got, err := layerOf(t, l, false)
			must(t, err)
			if diff := cmp.Diff(test.want, entries(t, bytes.NewReader(got))); diff != "" {
				t.Errorf("layer (-want +got):\n%s", diff)
			}
		})
	}

	// A folder on the way that is not what it was is in the layer.
	l, upper, below, _ := newLayer(t)
	l.Ours = func() map[string]Place { return ours }
	must(t, os.MkdirAll(upper+"/mnt/empty", 0o755), os.Mkdir(below+"/mnt", 0o700))
	got, err := layerOf(t, l, false)
	must(t, err)
	if diff := cmp.Diff([]string{"5 0755 mnt/"}, entries(t, bytes.NewReader(got))); diff != "" {
		t.Errorf("layer (-want +got):\n%s", diff)
	}
}

// TestReadLayerSparse has files with more holes than data.
func TestReadLayerSparse(t *testing.T) {
	l, upper, _, _ := newLayer(t)
	const size = 3 << 30
	f, err := os.Create(upper + "/sparse")
	must(t, err)
	for _, offset := range []int64{1 << 20, 1 << 30, size - 4} {
		_, err := f.WriteAt([]byte("data"), offset)
		must(t, err)
	}
	must(t, f.Close(), os.WriteFile(upper+"/empty", nil, 0o644), os.Truncate(upper+"/empty", 10<<20))
	got, err := layerOf(t, l, false)
	must(t, err)
	if len(got) > 1<<20 {
		t.Errorf("a tar of %d bytes", len(got))
	}
	tr := tar.NewReader(bytes.NewReader(got))
	h, err := tr.Next()
	must(t, err)
	if n, err := io.Copy(io.Discard, tr); h.Name != "empty" || h.Size != 10<<20 || n != h.Size || err != nil {
		t.Errorf("%s: %d of %d bytes, %v", h.Name, n, h.Size, err)
	}
	h, err = tr.Next()
	must(t, err)
	var found []int64
	buffer, offset := make([]byte, 1<<20), int64(0)
	for offset < h.Size {
		n, err := io.ReadFull(tr, buffer)
		must(t, err)
		if at := bytes.Index(buffer[:n], []byte("data")); at >= 0 {
			found = append(found, offset+int64(at))
		}
		offset += int64(n)
	}
	if want := []int64{1 << 20, 1 << 30, size - 4}; h.Name != "sparse" || offset != size || !slices.Equal(found, want) {
		t.Errorf("%s: %d bytes, data at %v", h.Name, offset, found)
	}
}

func TestReadLayerRefuses(t *testing.T) {
	l, upper, _, held := newLayer(t)
	p := newPair(t)
	read := func(still bool) error {
		r, err := p.ReadLayer(t.Context(), still)
		must(t, err)
		defer r.Close()
		_, err = io.Copy(io.Discard, r)
		return err
	}
	if err := read(true); err == nil || err.Error() != "layer: the root file system has none of its own" {
		t.Errorf("without a layer: %v", err)
	}
	p.server.ServeLayer(l)
	must(t, os.WriteFile(upper+"/.wh.file", nil, 0o644))
	if err := read(true); err == nil || !strings.Contains(err.Error(), `read /.wh.file: in an image, a name that begins with .wh. stands for a deleted file`) {
		t.Errorf("with a whiteout of its own: %v", err)
	}
	if *held != 0 {
		t.Errorf("%d hold it afterwards", *held)
	}
	l.Hold = func() (func(), error) { return nil, errors.New("it does not stop") }
	if err := read(true); err == nil || err.Error() != "layer: it does not stop" {
		t.Errorf("what cannot be held: %v", err)
	}
}

// TestReadLayerLetsGo has a client that goes away before the end.
func TestReadLayerLetsGo(t *testing.T) {
	l, upper, _, _ := newLayer(t)
	released := make(chan struct{})
	l.Hold = func() (func(), error) { return func() { close(released) }, nil }
	must(t, os.WriteFile(upper+"/large", make([]byte, 32<<20), 0o644))
	p := newPair(t)
	p.server.ServeLayer(l)
	r, err := p.ReadLayer(t.Context(), true)
	must(t, err)
	if _, err := io.ReadFull(r, make([]byte, 1000)); err != nil {
		t.Fatal(err)
	}
	must(t, r.Close())
	select {
	case <-released:
	case <-time.After(10 * time.Second):
		t.Fatal("user code still stands still")
	}
}

// TestLayerTar writes headers that do not fit into the fields of old.
func TestLayerTar(t *testing.T) {
	long := strings.Repeat("long/", 60) + "name"
	for _, want := range []layerEntry{
		{kind: tarRegular, path: "a", mode: 0o644, modTime: time.Unix(0, 0)},
		{kind: tarRegular, path: "large", size: 10 << 30, modTime: time.Unix(1, 1)},
		{kind: tarDir, path: long, mode: 0o1777, uid: 1<<32 - 2, gid: 1 << 21, modTime: time.Unix(1<<35, 120)},
		{kind: tarLink, path: "ümläut", link: long, modTime: time.Unix(-1, 5e8)},
		{kind: tarSymlink, path: "l", link: "ü\n", modTime: time.Unix(-2, 0)},
		{kind: tarChar, path: "c", major: 4095, minor: 1<<20 - 1, modTime: time.Unix(0, 0)},
		{kind: tarBlock, path: "b", major: 1, minor: 2, modTime: time.Unix(0, 0)},
		{kind: tarFIFO, path: strings.Repeat("n", 100), modTime: time.Unix(0, 0)},
		{kind: tarRegular, path: "x", modTime: time.Unix(0, 0), xattrs: []xattr{{"user.a", strings.Repeat("=\n\x00", 30)}, {"user.b", ""}, {"user.c", strings.Repeat("c", 79)}}},
	} {
		var b bytes.Buffer
		if err := (layerTar{&b}).header(&want); err != nil {
			t.Fatal(err)
		}
		h, err := tar.NewReader(&b).Next()
		if err != nil {
			t.Errorf("%s: %v", want.path, err)
			continue
		}
		got := layerEntry{
			kind: h.Typeflag, path: strings.TrimSuffix(h.Name, "/"), link: h.Linkname, mode: uint32(h.Mode), uid: uint32(h.Uid), gid: uint32(h.Gid),
			modTime: h.ModTime, size: h.Size, major: uint32(h.Devmajor), minor: uint32(h.Devminor),
		}
		for _, x := range want.xattrs {
			value, ok := h.PAXRecords["SCHILY.xattr."+x.name]
			if ok {
				got.xattrs = append(got.xattrs, xattr{x.name, value})
			}
		}
		if diff := cmp.Diff(want, got, cmp.AllowUnexported(layerEntry{}, xattr{}, extent{}), cmp.Comparer(time.Time.Equal)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", want.path, diff)
		}
	}
	// Its length is part of a record, and makes it longer.
	for n := range 1200 {
		record := string(paxRecord(nil, "k", strings.Repeat("v", n)))
		var size int
		if fmt.Sscan(record, &size); size != len(record) {
			t.Fatalf("a record of %d bytes says %d", len(record), size)
		}
	}
}
