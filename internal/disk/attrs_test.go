package disk

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// acl is an access control list in the kernel's form: version 2, then tag, permissions and id of each entry.
const acl = "\x02\x00\x00\x00" +
	"\x01\x00\x06\x00\xff\xff\xff\xff" + "\x02\x00\x04\x00\xe8\x03\x00\x00" +
	"\x04\x00\x04\x00\xff\xff\xff\xff" + "\x10\x00\x04\x00\xff\xff\xff\xff" + "\x20\x00\x04\x00\xff\xff\xff\xff"

// capability is security.capability with cap_net_raw permitted and effective, revision 2.
const capability = "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"

func xattrs(nameValues ...string) map[string]string {
	m := make(map[string]string)
	for i := 0; i < len(nameValues); i += 2 {
		m["SCHILY.xattr."+nameValues[i]] = nameValues[i+1]
	}
	return m
}

// attrEntries have what a file can have apart from its data, and the form it takes in the image.
var attrEntries = []struct {
	hdr  tar.Header
	want node // without number of the inode
}{
	{
		tar.Header{Name: "./", Typeflag: tar.TypeDir, Mode: 0o711, Uid: 10, Gid: 20, ModTime: time.Unix(7, 0)},
		node{Mode: 0o40711, UID: 10, GID: 20, Mtime: 7},
	}, {
		tar.Header{Name: "setuid", Typeflag: tar.TypeReg, Mode: 0o4755, ModTime: time.Unix(1e9, 123456789)},
		node{Mode: 0o104755, Mtime: 1e9, Nsec: 123456789},
	}, {
		tar.Header{Name: "setgid", Typeflag: tar.TypeReg, Mode: 0o2711, ModTime: time.Unix(-1, 0)},
		node{Mode: 0o102711, Mtime: -1},
	}, {
		tar.Header{Name: "sticky", Typeflag: tar.TypeDir, Mode: 0o1777, ModTime: time.Unix(-2e9, 5e8)},
		node{Mode: 0o41777, Mtime: -2e9, Nsec: 5e8},
	}, {
		tar.Header{Name: "noaccess", Typeflag: tar.TypeReg, Mode: 0},
		node{Mode: 0o100000},
	}, {
		tar.Header{Name: "typed", Typeflag: tar.TypeReg, Mode: 0o100640},
		node{Mode: 0o100640},
	}, {
		tar.Header{Name: "owners", Typeflag: tar.TypeReg, Mode: 0o600, Uid: 1<<32 - 2, Gid: 65536, ModTime: time.Date(2100, 1, 2, 3, 4, 5, 0, time.UTC)},
		node{Mode: 0o100600, UID: 1<<32 - 2, GID: 65536, Mtime: 4102542245},
	}, {
		tar.Header{Name: "link", Typeflag: tar.TypeSymlink, Linkname: strings.Repeat("x", 4095), Mode: 0o600, Uid: 5},
		node{Mode: 0o120777, UID: 5, Size: 4095, Data: strings.Repeat("x", 4095)},
	}, {
		tar.Header{Name: "fifo", Typeflag: tar.TypeFifo, Mode: 0o622},
		node{Mode: 0o10622},
	}, {
		tar.Header{Name: "char", Typeflag: tar.TypeChar, Mode: 0o666, Devmajor: 4095, Devminor: 1<<20 - 1},
		node{Mode: 0o20666, Rdev: 1<<32 - 1},
	}, {
		tar.Header{Name: "block", Typeflag: tar.TypeBlock, Mode: 0o660, Devmajor: 8, Devminor: 0x12345},
		node{Mode: 0o60660, Rdev: 0x45 | 8<<8 | 0x123<<20},
	}, {
		tar.Header{Name: "zeroblock", Typeflag: tar.TypeBlock, Mode: 0o660},
		node{Mode: 0o60660},
	}, {
		tar.Header{Name: "xattrs", Typeflag: tar.TypeReg, Mode: 0o644, PAXRecords: xattrs(
			"user.empty", "", "user.nul", "a\x00b", "trusted.x", "t", "security.capability", capability,
			"system.posix_acl_access", acl, "user."+strings.Repeat("n", 250), strings.Repeat("v", 300))},
		node{Mode: 0o100644, Xattrs: map[string]string{
			"user.empty": "", "user.nul": "a\x00b", "trusted.x": "t", "security.capability": capability,
			"system.posix_acl_access": acl, "user." + strings.Repeat("n", 250): strings.Repeat("v", 300)}},
	}, {
		tar.Header{Name: "folderxattrs", Typeflag: tar.TypeDir, Mode: 0o755, PAXRecords: xattrs(
			"user.x", "1", "system.posix_acl_default", acl)},
		node{Mode: 0o40755, Xattrs: map[string]string{"user.x": "1", "system.posix_acl_default": acl}},
	}, {
		tar.Header{Name: "linkxattrs", Typeflag: tar.TypeSymlink, Linkname: "x", Mode: 0o777, PAXRecords: xattrs(
			"user.dropped", "1", "trusted.x", "2")},
		node{Mode: 0o120777, Size: 1, Data: "x", Xattrs: map[string]string{"trusted.x": "2"}},
	}, {
		tar.Header{Name: "overlay", Typeflag: tar.TypeDir, Mode: 0o755, PAXRecords: xattrs(
			"trusted.overlay.opaque", "y", "trusted.overlay.redirect", "/etc", "trusted.overlay.metacopy", "",
			"user.overlay.opaque", "y", "com.apple.provenance", "x", "system.nfs4_acl", "x", "user.", "x", "user.kept", "x")},
		node{Mode: 0o40755, Xattrs: map[string]string{"user.kept": "x"}},
	}, {
		tar.Header{Name: "large", Typeflag: tar.TypeReg, Mode: 0o644, PAXRecords: xattrs(
			"user.1", strings.Repeat("1", 30_000), "user.2", strings.Repeat("2", 30_000))},
		node{Mode: 0o100644, Xattrs: map[string]string{"user.1": strings.Repeat("1", 30_000), "user.2": strings.Repeat("2", 30_000)}},
	}, {
		tar.Header{Name: "largefolder", Typeflag: tar.TypeDir, Mode: 0o755, PAXRecords: xattrs("user.1", strings.Repeat("1", 60_000))},
		node{Mode: 0o40755, Xattrs: map[string]string{"user.1": strings.Repeat("1", 60_000)}},
	},
}

// attrTar is the tar of attrEntries.
func attrTar(t testing.TB) []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range attrEntries {
		hdr := e.hdr
		hdr.Format = tar.FormatPAX
		if hdr.ModTime.IsZero() {
			hdr.ModTime = time.Unix(0, 0)
		}
		writeEntry(t, w, &hdr, "")
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestAttributes(t *testing.T) {
	got, _ := mustRead(t, LayerOptions{}, attrTar(t))
	for _, e := range attrEntries {
		name := strings.TrimSuffix(e.hdr.Name, "/")
		n := got[name]
		n.Inode, n.Nlink = 0, 0
		if diff := cmp.Diff(e.want, n); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

func TestRefusedAttributes(t *testing.T) {
	for _, test := range []struct {
		name string
		hdr  tar.Header
		want error
	}{
		{"owner -1", tar.Header{Typeflag: tar.TypeReg, Uid: -1}, ErrBadEntry},
		{"owner nobody", tar.Header{Typeflag: tar.TypeReg, Uid: 1<<32 - 1}, ErrBadEntry},
		{"group too large", tar.Header{Typeflag: tar.TypeDir, Gid: 1 << 32}, ErrBadEntry},
		{"device too large", tar.Header{Typeflag: tar.TypeChar, Devmajor: 4096}, ErrBadEntry},
		{"minor too large", tar.Header{Typeflag: tar.TypeBlock, Devminor: 1 << 20}, ErrBadEntry},
		{"negative device", tar.Header{Typeflag: tar.TypeChar, Devmajor: -1}, ErrBadEntry},
		{"empty symlink", tar.Header{Typeflag: tar.TypeSymlink}, ErrBadEntry},
		{"unknown type", tar.Header{Typeflag: 'M'}, ErrBadEntry},
		{"too many xattrs", tar.Header{Typeflag: tar.TypeReg, PAXRecords: xattrs("user.a", strings.Repeat("x", 40_000), "user.b", strings.Repeat("x", 40_000))}, ErrTooLarge},
		{"too large an xattr", tar.Header{Typeflag: tar.TypeDir, PAXRecords: xattrs("user.a", strings.Repeat("x", 65_536))}, ErrTooLarge},
		{"too long an xattr name", tar.Header{Typeflag: tar.TypeReg, PAXRecords: xattrs("user."+strings.Repeat("x", 251), "")}, ErrBadEntry},
		{"too many xattrs at the root", tar.Header{Name: "./", Typeflag: tar.TypeDir, PAXRecords: xattrs("user.a", strings.Repeat("x", 3_000))}, ErrTooLarge},
	} {
		t.Run(test.name, func(t *testing.T) {
			if test.hdr.Name == "" {
				test.hdr.Name = "name"
			}
			var b bytes.Buffer
			w := tar.NewWriter(&b)
			hdr := test.hdr
			if hdr.PAXRecords == nil {
				hdr.Format = tar.FormatGNU // which can say everything
			}
			writeEntry(t, w, &hdr, "")
			_, _, err := layer(t, LayerOptions{}, b.Bytes())
			var entry *EntryError
			if !errors.Is(err, test.want) || !errors.As(err, &entry) || entry.Entry != test.hdr.Name {
				t.Errorf("got %v, want %v", err, test.want)
			}
		})
	}
}

// sizes are those at which the place of data changes: beside the inode (64 bytes, and xattrs) or not, in one block or more.
var sizes = []int{0, 1, 31, 32, 4031, 4032, 4033, 4095, 4096, 4097, 8128, 8129, 8191, 8192, 1<<20 - 1, 1 << 20, 1<<20 + 1, 3<<20 + 17}

// dataTar has a file of each of the sizes, with and without xattrs.
func dataTar(t testing.TB) (b []byte, want map[string]string) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	want = make(map[string]string)
	folder := func(name string) {
		writeEntry(t, w, &tar.Header{Name: name, Typeflag: tar.TypeDir, Mode: 0o755, ModTime: time.Unix(1, 0)}, "")
	}
	folder("./")
	for i, size := range sizes {
		// Not zeros, and not alike.
		data := strings.Repeat(fmt.Sprintf("%d:%d ", i, size), size)[:size]
		for _, x := range []int{0, 1, 5_000} {
			name := fmt.Sprintf("%d-%d", size, x)
			hdr := &tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(size)}
			if x > 0 {
				hdr.PAXRecords = xattrs("user.x", strings.Repeat("x", x))
			}
			writeEntry(t, w, hdr, data)
			want[name] = data
		}
		if size > 0 && size <= 4095 {
			name := fmt.Sprintf("link-%d", size)
			writeEntry(t, w, &tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: data, PAXRecords: xattrs("trusted.x", "x")}, "")
			want[name] = data
		}
	}
	// Folders whose lists are one block and more; of long names one block has 15.
	for _, n := range []int{14, 15, 16, 30, 31} {
		folder(fmt.Sprintf("folder-%d/", n))
		for i := range n {
			name := fmt.Sprintf("folder-%d/%0255d", n, i)
			writeEntry(t, w, &tar.Header{Name: name, Typeflag: tar.TypeReg}, "")
			want[name] = ""
		}
	}
	folder("many/")
	for i := range 3000 {
		name := fmt.Sprintf("many/%d", i*7919%3000)
		writeEntry(t, w, &tar.Header{Name: name, Typeflag: tar.TypeReg}, "")
		want[name] = ""
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes(), want
}

func TestData(t *testing.T) {
	b, want := dataTar(t)
	got, _ := mustRead(t, LayerOptions{}, b)
	for name, data := range want {
		if n, ok := got[name]; !ok || n.Data != data {
			t.Errorf("%s: %d bytes, want %d", name, len(n.Data), len(data))
		}
	}
	// However little comes at a time, and whatever follows the archive.
	f, _, err := layer(t, LayerOptions{}, b)
	if err != nil {
		t.Fatal(err)
	}
	again, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	w := NewLayerWriter(again, LayerOptions{})
	r := strings.NewReader(string(b) + "padding")
	if err := w.AddTar(iotest.HalfReader(r)); err != nil {
		t.Fatal(err)
	}
	if r.Len() > 0 {
		t.Errorf("%d bytes not read", r.Len())
	}
	if _, err := w.Close(); err != nil {
		t.Fatal(err)
	}
	one, err1 := os.ReadFile(f.Name())
	two, err2 := os.ReadFile(again.Name())
	if err1 != nil || err2 != nil || !bytes.Equal(one, two) {
		t.Errorf("the same tar gave different bytes: %d and %d (%v, %v)", len(one), len(two), err1, err2)
	}
}

func TestUUIDsDiffer(t *testing.T) {
	uuid := func(lines string) string {
		f, _, err := layer(t, LayerOptions{}, parseTar(t, lines))
		if err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 16)
		if _, err := f.ReadAt(b, superOffset+48); err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	seen := make(map[string]string)
	for _, lines := range []string{"", "f a", "f b", "f a 1", "f a 2", "d a", "f a/b"} {
		if other, ok := seen[uuid(lines)]; ok {
			t.Errorf("%q has the UUID of %q", lines, other)
		}
		seen[uuid(lines)] = lines
	}
}

// sparseTar has a file of size bytes with five of them in the middle, as GNU tar writes it.
func sparseTar(t *testing.T, size int64) []byte {
	t.Helper()
	at := size / 2
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	// PAX, sparse format 1.0: the map comes first in the data, padded to 512 bytes.
	sparseMap := fmt.Sprintf("2\n%d\n%d\n%d\n0\n", at, 5, size)
	data := sparseMap + strings.Repeat("\x00", 512-len(sparseMap)) + "there"
	hdr := &tar.Header{Name: "GNUSparseFile.0/pax", Typeflag: tar.TypeReg, Size: int64(len(data)), Mode: 0o644}
	if err := w.WriteHeader(hdr); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(w, data); err != nil {
		t.Fatal(err)
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	// The writer can not be told of sparse files, so the records that say it go before by hand.
	var records string
	for _, kv := range []string{"GNU.sparse.major=1", "GNU.sparse.minor=0", "GNU.sparse.name=pax", fmt.Sprintf("GNU.sparse.realsize=%d", size)} {
		line := fmt.Sprintf(" %s\n", kv)
		records += fmt.Sprintf("%d%s", len(line)+2, line)
	}
	var pre bytes.Buffer
	pw := tar.NewWriter(&pre)
	if err := pw.WriteHeader(&tar.Header{Name: "PaxHeaders.0/pax", Typeflag: tar.TypeReg, Size: int64(len(records))}); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(pw, records); err != nil {
		t.Fatal(err)
	}
	if err := pw.Flush(); err != nil {
		t.Fatal(err)
	}
	p := pre.Bytes()
	setType(p[:512], 'x')
	return append(p, append(b.Bytes(), make([]byte, 1024)...)...)
}

// setType changes the type of a header.
func setType(header []byte, t byte) {
	header[156] = t
	copy(header[148:156], "        ")
	sum := 0
	for _, c := range header[:512] {
		sum += int(c)
	}
	copy(header[148:156], fmt.Sprintf("%06o\x00 ", sum))
}

func TestSparseFiles(t *testing.T) {
	const size = 1 << 30
	f, info, err := layer(t, LayerOptions{}, sparseTar(t, size))
	if err != nil {
		t.Fatal(err)
	}
	if info.Unpacked != size {
		t.Errorf("unpacked %d, want %d", info.Unpacked, size)
	}
	if n := blocks(t, f.Name()); n > 1<<20 {
		t.Errorf("takes %d bytes on the disk", n)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	var b [7]byte
	if _, err := f.ReadAt(b[:], blockSize+size/2-1); err != nil || string(b[:]) != "\x00there\x00" {
		t.Errorf("got %q, %v", b, err)
	}
	for _, test := range []struct{ size, limit int64 }{{size, size - 1}, {1 << 44, 0}, {1 << 62, 0}} {
		_, _, err = layer(t, LayerOptions{MaxBytes: test.limit}, sparseTar(t, test.size))
		if !errors.Is(err, ErrTooLarge) {
			t.Errorf("%d bytes, limit %d: got %v, want %v", test.size, test.limit, err, ErrTooLarge)
		}
	}
}

func TestIgnoredEntries(t *testing.T) {
	b := parseTar(t, "f global\nf label\nf file 1")
	setType(b[0:512], tar.TypeXGlobalHeader)
	setType(b[512:1024], 'V')
	got, _ := mustRead(t, LayerOptions{}, b)
	if want := "f file 1\n"; got.String() != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestBrokenArchives(t *testing.T) {
	whole := parseTar(t, "f a 1\nf b "+strings.Repeat("x", 2000)+"\nl c "+strings.Repeat("y", 200))
	for n := range len(whole) - tarBlock {
		if near := (n + 1) % tarBlock; near > 2 && near != 100 {
			continue // around the ends of blocks, and within each
		}
		if _, _, err := layer(t, LayerOptions{}, whole[:n]); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("the first %d of %d bytes: %v", n, len(whole), err)
		}
	}
	for _, n := range []int{len(whole) - tarBlock, len(whole)} {
		if _, _, err := layer(t, LayerOptions{}, whole[:n]); err != nil {
			t.Errorf("the first %d of %d bytes: %v", n, len(whole), err)
		}
	}
	// No more than the padding of the last entry is missed when the end needs no mark.
	for _, n := range []int{0, tarBlock + 1, 2 * tarBlock, len(whole) - 1024} {
		if _, _, err := layer(t, LayerOptions{AllowNoEnd: true}, whole[:n]); err != nil {
			t.Errorf("the first %d of %d bytes, end not needed: %v", n, len(whole), err)
		}
	}
	for _, n := range []int{1, tarBlock, 2*tarBlock + 1, 3*tarBlock + 1999} {
		if _, _, err := layer(t, LayerOptions{AllowNoEnd: true}, whole[:n]); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("the first %d of %d bytes, end not needed: %v", n, len(whole), err)
		}
	}
	garbage := bytes.Clone(whole)
	garbage[1024+3]++
	if _, _, err := layer(t, LayerOptions{}, garbage); !errors.Is(err, tar.ErrHeader) || !strings.Contains(err.Error(), `"a"`) {
		t.Errorf("a broken header after a: %v", err)
	}
	// The word of a reader that verifies comes last, when it has seen all.
	bad := errors.New("wrong digest")
	w := NewLayerWriter(tempFile(t), LayerOptions{})
	if err := w.AddTar(io.MultiReader(bytes.NewReader(whole), iotest.ErrReader(bad))); err != bad {
		t.Errorf("got %v, want %v", err, bad)
	}
	if _, err := w.Close(); err != bad {
		t.Errorf("Close: got %v, want %v", err, bad)
	}
}

func tempFile(t testing.TB) *os.File {
	t.Helper()
	f, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func TestMisuse(t *testing.T) {
	b := parseTar(t, "f a 1")
	w := NewLayerWriter(tempFile(t), LayerOptions{})
	if err := w.AddTar(bytes.NewReader(b)); err != nil {
		t.Fatal(err)
	}
	if err := w.AddTar(bytes.NewReader(b)); err == nil {
		t.Error("two tars above others: no error")
	}
	w = NewLayerWriter(tempFile(t), LayerOptions{})
	if _, err := w.Close(); err != nil {
		t.Errorf("a layer of nothing: %v", err)
	}
	if _, err := w.Close(); err == nil {
		t.Error("closed twice: no error")
	}
	full := tempFile(t)
	if _, err := full.WriteString("x"); err != nil {
		t.Fatal(err)
	}
	if err := NewLayerWriter(full, LayerOptions{}).AddTar(bytes.NewReader(b)); err == nil {
		t.Error("a file that is not empty: no error")
	}
}
