package disk

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// parseTar makes a tar of lines: a type and a name, and where it needs one, content or target.
//
//	d NAME | f NAME [DATA] | l NAME TARGET | h NAME TARGET | c NAME MAJOR:MINOR | p NAME
func parseTar(t testing.TB, lines string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for line := range strings.Lines(lines) {
		line = strings.TrimSpace(line)
		if line == "" {
			continue
		}
		kind, rest, _ := strings.Cut(line, " ")
		name, rest, _ := strings.Cut(rest, " ")
		hdr := &tar.Header{Name: name, Mode: 0o644}
		data := ""
		switch kind {
		case "d":
			hdr.Typeflag, hdr.Mode = tar.TypeDir, 0o755
		case "f":
			hdr.Typeflag, hdr.Size = tar.TypeReg, int64(len(rest))
			data = rest
		case "l":
			hdr.Typeflag, hdr.Linkname = tar.TypeSymlink, rest
		case "h":
			hdr.Typeflag, hdr.Linkname = tar.TypeLink, rest
		case "c":
			hdr.Typeflag = tar.TypeChar
			if rest != "0:0" {
				hdr.Devmajor, hdr.Devminor = 1, 3
			}
		case "p":
			hdr.Typeflag = tar.TypeFifo
		default:
			t.Fatalf("line %q", line)
		}
		writeEntry(t, w, hdr, data)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func writeEntry(t testing.TB, w *tar.Writer, hdr *tar.Header, data string) {
	t.Helper()
	if err := w.WriteHeader(hdr); err != nil {
		t.Fatalf("%q: %v", hdr.Name, err)
	}
	if _, err := io.WriteString(w, data); err != nil {
		t.Fatalf("%q: %v", hdr.Name, err)
	}
}

// layer makes an image of the tars, open and with its name.
func layer(t testing.TB, opts LayerOptions, tars ...[]byte) (*os.File, LayerInfo, error) {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "layer.erofs"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	w := NewLayerWriter(f, opts)
	for _, b := range tars {
		if err := w.AddTar(bytes.NewReader(b)); err != nil {
			if _, again := w.Close(); again != err {
				t.Errorf("Close after %v: %v", err, again)
			}
			return f, LayerInfo{}, err
		}
	}
	info, err := w.Close()
	if fi, err := f.Stat(); err != nil || fi.Size() != info.Size {
		t.Errorf("image of %v bytes, %v; want %d", fi.Size(), err, info.Size)
	}
	return f, info, err
}

// mustRead makes an image and reads it.
func mustRead(t testing.TB, opts LayerOptions, tars ...[]byte) (tree, LayerInfo) {
	t.Helper()
	f, info, err := layer(t, opts, tars...)
	if err != nil {
		t.Fatal(err)
	}
	got, err := readImage(f)
	if err != nil {
		t.Fatalf("bad image: %v", err)
	}
	return got, info
}

// unindent makes a listing of an indented one.
func unindent(s string) string {
	var b strings.Builder
	for line := range strings.Lines(s) {
		if line = strings.TrimSpace(line); line != "" {
			b.WriteString(line + "\n")
		}
	}
	return b.String()
}

// oneLayer is what becomes of one tar, as the bottom of a stack and above others.
var oneLayer = []struct {
	name, tar string
	upper     string // the image above others
	base      string // as the bottom, if it differs
}{
	{
		name: "empty",
	}, {
		name:  "all types",
		tar:   "d a\nf a/f data\nf a/empty\nl a/l ../target\nc a/null 1:3\np a/p\nh a/h a/f",
		upper: "d a\nf a/empty \nf a/f data\nh a/h a/f\nl a/l ../target\nc a/null 259\np a/p",
	}, {
		name:  "missing parents",
		tar:   "f a/b/c data",
		upper: "d a\nd a/b\nf a/b/c data",
	}, {
		name:  "names are cleaned",
		tar:   "d ./\nd ./a/\nf /a/./b//c 1\nf a/x/../d 2\nf ./a/y/z/../../../e 3",
		upper: "d a\nd a/b\nf a/b/c 1\nf a/d 2\nf e 3",
	}, {
		name:  "the last of two files wins",
		tar:   "f a 1\nf b 2\nf a 3",
		upper: "f a 3\nf b 2",
	}, {
		name:  "two folders are one",
		tar:   "d a\nf a/x 1\nd a\nf a/y 2",
		upper: "d a\nf a/x 1\nf a/y 2",
	}, {
		name:  "a file in place of a folder",
		tar:   "f a/b/c 1\nh x a/b/c\nf a 2",
		upper: "f a 2\nf x 1",
	}, {
		name:  "a folder in place of a file",
		tar:   "f a 1\nd a\nf a/b 2",
		upper: "d a opaque\nf a/b 2",
		base:  "d a\nf a/b 2",
	}, {
		name:  "an entry below a symlink",
		tar:   "d b\nl a b\nf a/x 1\nl c /etc\nf c/d/passwd 2",
		upper: "d a opaque\nf a/x 1\nd b\nd c opaque\nd c/d\nf c/d/passwd 2",
		base:  "d a\nf a/x 1\nd b\nd c\nd c/d\nf c/d/passwd 2",
	}, {
		name:  "symlink targets are data",
		tar:   "l a ../../../etc/passwd\nl b /\nl c b/../..",
		upper: "l a ../../../etc/passwd\nl b /\nl c b/../..",
	}, {
		name:  "a link to a symlink is a link to the link",
		tar:   "l a nowhere\nh b a",
		upper: "l a nowhere\nh b a",
	}, {
		name:  "a link target is cleaned",
		tar:   "f a/b 1\nh c /a/./x/../b",
		upper: "d a\nf a/b 1\nh c a/b",
	}, {
		name:  "a link to a name that goes on to another file",
		tar:   "f a 1\nh b a\nf a 2\nh c a\nh d b",
		upper: "f a 2\nf b 1\nh c a\nh d b",
	}, {
		name:  "a link to itself",
		tar:   "f a 1\nh a a\nh b a\nh a b",
		upper: "f a 1\nh b a",
	}, {
		name:  "a link in place of its folder",
		tar:   "f a/b 1\nh a a/b",
		upper: "f a 1",
	}, {
		name:  "whiteouts",
		tar:   "f a/.wh.x\nf .wh.y\nd .wh.z",
		upper: "d a\nc a/x 0\nc y 0\nc z 0",
		base:  " ",
	}, {
		name:  "opaque folder",
		tar:   "d a\nf a/.wh..wh..opq\nf b/.wh..wh..opq\nf b/x 1",
		upper: "d a opaque\nd b opaque\nf b/x 1",
		base:  "d a\nd b\nf b/x 1",
	}, {
		name:  "whiteouts have nothing to hide in an opaque folder",
		tar:   "f a/.wh.x\nf a/b/.wh.y\nf .wh.z\nf .wh.b\nf a/.wh..wh..opq\nd a/b",
		upper: "d a opaque\nd a/b\nc b 0\nc z 0",
		base:  "d a\nd a/b",
	}, {
		name:  "a whiteout spares its own layer, before or after",
		tar:   "f a 1\nf .wh.a\nf .wh.b\nf b 2\nd c\nf .wh.c\nf .wh.d\nd d\nf .wh.e\nf e/x 3",
		upper: "f a 1\nf b 2\nd c opaque\nd d opaque\nd e opaque\nf e/x 3",
		base:  "f a 1\nf b 2\nd c\nd d\nd e\nf e/x 3",
	}, {
		name:  "a character device 0:0 is a whiteout",
		tar:   "f a 1\nc a 0:0\nc b 0:0\nc .wh.c 0:0",
		upper: "f a 1\nc b 0\nc c 0",
		base:  "f a 1",
	}, {
		name:  "two whiteouts of one name, one replaced",
		tar:   "f .wh.a\nf .wh.a\nf .wh.b\nf b 1\nf .wh.c\nl c x",
		upper: "c a 0\nf b 1\nl c x",
		base:  "f b 1\nl c x",
	}, {
		name:  "books of aufs",
		tar:   "d .wh..wh.plnk\nf .wh..wh.plnk/1.2 x\nf .wh..wh.aufs\nf a/.wh..wh.orph/x 1\nf b 1",
		upper: "f b 1",
	}, {
		name:  "names at their limit",
		tar:   "f " + strings.Repeat("n", 255) + " 1\nf " + strings.Repeat("d/", 2047) + "f 2",
		upper: deepListing(2047) + "f " + strings.Repeat("d/", 2047) + "f 2\nf " + strings.Repeat("n", 255) + " 1",
	}, {
		name:  "names around the dot",
		tar:   "f ! 1\nf - 2\nf .a 3\nf ... 4\nf \x01 5\nf \xff\xfe 6",
		upper: "f \x01 5\nf ! 1\nf - 2\nf ... 4\nf .a 3\nf \xff\xfe 6",
	},
}

func deepListing(n int) string {
	var b strings.Builder
	for i := range n {
		b.WriteString("d " + strings.TrimSuffix(strings.Repeat("d/", i+1), "/") + "\n")
	}
	return b.String()
}

func TestOneLayer(t *testing.T) {
	for _, test := range oneLayer {
		t.Run(test.name, func(t *testing.T) {
			if test.base == "" {
				test.base = test.upper
			}
			b := parseTar(t, test.tar)
			upper, _ := mustRead(t, LayerOptions{}, b)
			if diff := cmp.Diff(unindent(test.upper), unindent(upper.String())); diff != "" {
				t.Errorf("above others (-want +got):\n%s", diff)
			}
			base, _ := mustRead(t, LayerOptions{Base: true}, b)
			if diff := cmp.Diff(unindent(test.base), unindent(base.String())); diff != "" {
				t.Errorf("as the base (-want +got):\n%s", diff)
			}
		})
	}
}

// stacks are tars of several layers, the lowest first, and what they come to: merged into one image, and seen through an overlayfs.
var stacks = []struct {
	name   string
	layers []string
	want   string
}{
	{
		"nothing in common",
		[]string{"f a 1", "f b 2", "f c/d 3"},
		"f a 1\nf b 2\nd c\nf c/d 3",
	}, {
		"the higher file wins and links keep the lower",
		[]string{"f a 1\nh b a", "f a 2"},
		"f a 2\nf b 1",
	}, {
		"folders are merged",
		[]string{"d a\nf a/x 1\nf a/y 1", "d a\nf a/y 2\nf a/z 2"},
		"d a\nf a/x 1\nf a/y 2\nf a/z 2",
	}, {
		"whiteouts of files and folders",
		[]string{"f a/x 1\nf a/y 1\nf b/c/d 1\nl s a", "d a\nf a/.wh.x\nf .wh.b\nf .wh.s\nf .wh.nothing"},
		"d a\nf a/y 1",
	}, {
		"whiteouts in an opaque folder",
		[]string{"f a/x 1\nf a/b/x 1", "d a\nf a/.wh..wh..opq\nf a/.wh.x\nf a/b/.wh.x\nf a/b/y 2"},
		"d a\nd a/b\nf a/b/y 2",
	}, {
		"gone and back",
		[]string{"f a/x 1", "f .wh.a", "f a/y 3"},
		"d a\nf a/y 3",
	}, {
		"opaque before its content",
		[]string{"f a/x 1\nf a/b/y 1", "d a\nf a/.wh..wh..opq\nf a/z 2"},
		"d a\nf a/z 2",
	}, {
		"opaque after its content",
		[]string{"f a/x 1\nf a/b/y 1\nf a/b/c/y 1", "d a\nd a/b\nf a/b/z 2\nf a/.wh..wh..opq"},
		"d a\nd a/b\nf a/b/z 2",
	}, {
		"a folder whited out after it was filled",
		[]string{"f a/x 1\nf a/b/y 1", "d a\nf a/z 2\nf .wh.a"},
		"d a\nf a/z 2",
	}, {
		"a file in place of a folder and a folder again",
		[]string{"f a/x 1", "f a 2", "d a\nf a/y 3"},
		"d a\nf a/y 3",
	}, {
		"the same in one layer",
		[]string{"f a/x 1", "f a 2\nd a\nf a/y 2"},
		"d a\nf a/y 2",
	}, {
		"many in one folder",
		[]string{
			"f a/1 1\nf a/2 1\nf a/3 1\nf a/4 1\nf a/5 1\nf a/6 1\nf a/7 1\nf a/8 1\nf a/9 1\nf a/10 1",
			"d a\nf a/.wh.3\nf a/.wh.8\nf a/9 2",
			"d a\nf a/.wh.9\nf a/3 3",
		},
		"d a\nf a/1 1\nf a/10 1\nf a/2 1\nf a/3 3\nf a/4 1\nf a/5 1\nf a/6 1\nf a/7 1",
	}, {
		"an entry below a lower symlink",
		[]string{"d usr/lib\nl lib usr/lib", "d lib\nf lib/x 2"},
		"d lib\nf lib/x 2\nd usr\nd usr/lib",
	}, {
		"a symlink in place of a folder",
		[]string{"f a/x 1\nd b", "l a b"},
		"l a b\nd b",
	}, {
		"a whiteout device",
		[]string{"f a 1\nf b 1", "c a 0:0"},
		"f b 1",
	}, {
		"whiteouts in the bottom layer",
		[]string{"f .wh.a\nd b\nf b/.wh..wh..opq\nf b/x 1", "f a 2\nf b/y 2"},
		"f a 2\nd b\nf b/x 1\nf b/y 2",
	},
}

func TestMergedLayers(t *testing.T) {
	for _, test := range stacks {
		t.Run(test.name, func(t *testing.T) {
			var tars [][]byte
			for _, lines := range test.layers {
				tars = append(tars, parseTar(t, lines))
			}
			got, _ := mustRead(t, LayerOptions{Base: true}, tars...)
			if diff := cmp.Diff(unindent(test.want), got.String()); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// Whiteouts in a folder that no lower layer has hide nothing. (It would not do as one of the stacks: overlayfs lists their names, as it
// does not look into a folder that it has nothing to merge with. No tool that compares two trees makes such a layer.)
func TestWhiteoutInNewFolder(t *testing.T) {
	got, _ := mustRead(t, LayerOptions{Base: true}, parseTar(t, "f a 1"), parseTar(t, "d b\nf b/.wh.x\nd b/c\nf b/c/.wh.y\nf d/.wh.z"))
	if want := "f a 1\nd b\nd b/c\n"; got.String() != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestMergedAttributes(t *testing.T) {
	one := func(entries ...*tar.Header) []byte {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for _, hdr := range entries {
			hdr.ModTime = time.Unix(5, 0)
			writeEntry(t, w, hdr, "")
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	folder := func(name string, mode int64, xattr string) *tar.Header {
		hdr := &tar.Header{Name: name, Typeflag: tar.TypeDir, Mode: mode, Uid: 7}
		if xattr != "" {
			hdr.PAXRecords = map[string]string{"SCHILY.xattr." + xattr: "v"}
		}
		return hdr
	}
	file := func(name string) *tar.Header { return &tar.Header{Name: name, Typeflag: tar.TypeReg} }
	got, info := mustRead(t, LayerOptions{Base: true},
		one(folder("a", 0o1777, "user.a"), folder("b", 0o700, "user.b"), folder("c", 0o700, "user.c"), folder("d", 0o700, "user.d")),
		one(
			file("a/x"),                // implied: keeps what is known of a
			folder("b", 0o711, ""),     // named: all is new
			file("c/x"), file(".wh.c"), // a new folder, of which nothing is known
			file("d/.wh..wh..opq"),            // the content is new, not the folder
			file("e/x"), folder("e", 0o7, ""), // named in the end
			file("f/x"),
		))
	for name, want := range map[string]struct {
		mode  uint16
		uid   uint32
		xattr string
	}{
		"a": {0o41777, 7, "user.a"},
		"b": {0o40711, 7, ""},
		"c": {0o40755, 0, ""},
		"d": {0o40700, 7, "user.d"},
		"e": {0o40007, 7, ""},
		"f": {0o40755, 0, ""},
	} {
		n := got[name]
		if n.Mode != want.mode || n.UID != want.uid || want.xattr == "" && len(n.Xattrs) > 0 || want.xattr != "" && n.Xattrs[want.xattr] != "v" {
			t.Errorf("%s: mode %o, uid %d, xattrs %v; want %o, %d, %q", name, n.Mode, n.UID, n.Xattrs, want.mode, want.uid, want.xattr)
		}
	}
	if info.Implied != 1 { // f
		t.Errorf("implied folders: %d, want 1", info.Implied)
	}
}

func TestLayerInfo(t *testing.T) {
	b := parseTar(t, "f a/b 12345\nf .wh..wh..opq\nl c d")
	_, info := mustRead(t, LayerOptions{}, b)
	if want := (LayerInfo{Size: info.Size, Entries: 3, Unpacked: 5, Implied: 1, Opaque: true}); info != want {
		t.Errorf("got %+v, want %+v", info, want)
	}
	_, info = mustRead(t, LayerOptions{Base: true}, b)
	if want := (LayerInfo{Size: info.Size, Entries: 3, Unpacked: 5, Implied: 1}); info != want {
		t.Errorf("base: got %+v, want %+v", info, want)
	}
}

func TestRefusedEntries(t *testing.T) {
	for _, test := range []struct {
		name, tar string
		entry     string // the one at fault
		want      error
	}{
		{"leaves the root", "f a 1\nf ../x 1", "../x", ErrBadName},
		{"leaves the root in the middle", "f a/../../x 1", "a/../../x", ErrBadName},
		{"leaves the root from a slash", "f /../x 1", "/../x", ErrBadName},
		{"component too long", "f a/" + strings.Repeat("n", 256) + " 1", "a/" + strings.Repeat("n", 256), ErrBadName},
		{"path too long", "f " + strings.Repeat("d/", 2047) + "nn 1", strings.Repeat("d/", 2047) + "nn", ErrBadName},
		{"root as a file", "f . 1", ".", ErrBadName},
		{"root as a link", "f a 1\nh ./ a", "./", ErrBadName},
		{"whiteout of nothing", "f a/.wh. 1", "a/.wh.", ErrBadName},
		{"whiteout of itself", "f a/.wh.. 1", "a/.wh..", ErrBadName},
		{"whiteout of the parent", "f a/.wh... 1", "a/.wh...", ErrBadName},
		{"below a whiteout", "d .wh.a\nf .wh.a/b", ".wh.a/b", ErrBadName},
		{"link to nothing", "h a b", "a", ErrNoLinkTarget},
		{"link to what comes later", "h a b\nf b 1", "a", ErrNoLinkTarget},
		{"link to what is gone", "f d/b 1\nf d 1\nh a d/b", "a", ErrNoLinkTarget},
		{"link to a folder", "d b\nh a b", "a", ErrNoLinkTarget},
		{"link to the root", "h a /", "a", ErrNoLinkTarget},
		{"link through a symlink", "f d/b 1\nl s d\nh a s/b", "a", ErrNoLinkTarget},
		{"link to a whiteout", "f .wh.b\nh a b", "a", ErrNoLinkTarget},
		{"link out of the root", "f b 1\nh a ../b", "a", ErrBadName},
		{"symlink too long", "l a " + strings.Repeat("x", 4096), "a", ErrBadEntry},
		{"too many bytes", "f a 1\nf b " + strings.Repeat("x", 100), "b", ErrTooLarge},
		{"too many bytes left out", "f a/.wh..wh.x " + strings.Repeat("x", 1<<20), "a/.wh..wh.x", ErrTooLarge},
		{"too many entries", "f 1\nf 2\nf 3\nf 4\nf 5\nf 6", "6", ErrTooManyEntries},
		{"too many parents", "f 1/2/3/4/5/6 1", "1/2/3/4/5/6", ErrTooManyEntries},
	} {
		t.Run(test.name, func(t *testing.T) {
			opts := LayerOptions{MaxBytes: 100, MaxEntries: 5}
			if test.want == ErrBadName { // deep, but refused for its name
				opts.MaxEntries = 0
			}
			_, _, err := layer(t, opts, parseTar(t, test.tar))
			var entry *EntryError
			if !errors.As(err, &entry) || !errors.Is(err, test.want) {
				t.Fatalf("got %v, want %v", err, test.want)
			}
			if len(err.Error()) > 600 {
				t.Errorf("a message of %d bytes", len(err.Error()))
			}
			if entry.Entry != test.entry {
				t.Errorf("names %q, want %q", entry.Entry, test.entry)
			}
		})
	}
}
