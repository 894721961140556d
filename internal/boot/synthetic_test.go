package boot

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"github.com/ulikunitz/xz"
	"github.com/ulikunitz/xz/lzma"
)

// The files in this file are made by hand: small, and right where package boot looks.

const testRelease = "6.1.0-56-cloud-amd64"

// An elfSpec is a small ELF file.
type elfSpec struct {
	machine elf.Machine // default: x86-64
	notes   []byte      // a PT_NOTE segment
	interp  string      // a PT_INTERP segment
	modinfo string      // a section
	text    string      // just there
}

func (s elfSpec) bytes() []byte {
	const headerSize, progSize, sectionSize = 64, 56, 64
	if s.machine == 0 {
		s.machine = elf.EM_X86_64
	}
	var progs []elf.Prog64
	var sections []elf.Section64
	var body bytes.Buffer
	add := func(data []byte) (offset uint64) {
		offset = uint64(headerSize + 2*progSize + 3*sectionSize + body.Len())
		body.Write(data)
		return offset
	}
	if s.notes != nil {
		progs = append(progs, elf.Prog64{Type: uint32(elf.PT_NOTE), Off: add(s.notes), Filesz: uint64(len(s.notes))})
	}
	if s.interp != "" {
		progs = append(progs, elf.Prog64{Type: uint32(elf.PT_INTERP), Off: add([]byte(s.interp)), Filesz: uint64(len(s.interp))})
	}
	names := "\x00.shstrtab\x00.modinfo\x00"
	sections = append(sections, elf.Section64{},
		elf.Section64{Name: 1, Type: uint32(elf.SHT_STRTAB), Off: add([]byte(names)), Size: uint64(len(names))})
	if s.modinfo != "" {
		sections = append(sections, elf.Section64{Name: 11, Type: uint32(elf.SHT_PROGBITS), Off: add([]byte(s.modinfo)), Size: uint64(len(s.modinfo))})
	}
	add([]byte(s.text))

	header := elf.Header64{
		Type: uint16(elf.ET_EXEC), Machine: uint16(s.machine), Version: 1, Ehsize: headerSize,
		Phoff: headerSize, Phentsize: progSize, Phnum: uint16(len(progs)),
		Shoff: headerSize + 2*progSize, Shentsize: sectionSize, Shnum: uint16(len(sections)), Shstrndx: 1,
	}
	copy(header.Ident[:], elf.ELFMAG)
	header.Ident[elf.EI_CLASS], header.Ident[elf.EI_DATA], header.Ident[elf.EI_VERSION] = 2, 1, 1
	out := make([]byte, headerSize+2*progSize+3*sectionSize)
	place(out, header)
	place(out[headerSize:], progs)
	place(out[headerSize+2*progSize:], sections)
	return append(out, body.Bytes()...)
}

func place(out []byte, v any) {
	if _, err := binary.Encode(out, binary.LittleEndian, v); err != nil {
		panic(err)
	}
}

// elfNote is a note as it stands in a note segment.
func elfNote(name string, kind uint32, desc []byte) []byte {
	le := binary.LittleEndian
	b := le.AppendUint32(nil, uint32(len(name)+1))
	b = le.AppendUint32(b, uint32(len(desc)))
	b = le.AppendUint32(b, kind)
	b = padded(append(b, name+"\x00"...))
	return padded(append(b, desc...))
}

var pvhNotes = append(elfNote("GNU", 3, []byte("build id")), elfNote("Xen", 18, make([]byte, 8))...)

// testVmlinux is a vmlinux with a PVH entry, large enough that it is worth packing.
func testVmlinux() []byte {
	text := fmt.Sprintf("Linux version %%s Linux version %s (gcc) #1 SMP\n", testRelease)
	return elfSpec{notes: pvhNotes, text: text + string(make([]byte, 100_000))}.bytes()
}

// bzImageOf packs a kernel; pack nil leaves the payload as it is.
func bzImageOf(vmlinux []byte, pack func([]byte) []byte) []byte {
	payload := vmlinux
	if pack != nil {
		payload = pack(vmlinux)
	}
	if !isGzip(bytes.NewReader(payload)) {
		payload = binary.LittleEndian.AppendUint32(payload, uint32(len(vmlinux)))
	}
	const setup = 2 * 512
	b := make([]byte, setup+64)
	le := binary.LittleEndian
	b[0x1f1] = 1 // sectors of set-up code
	b[0x1fe], b[0x1ff] = 0x55, 0xaa
	copy(b[0x202:], "HdrS")
	le.PutUint16(b[0x206:], 0x20f)
	le.PutUint16(b[0x20e:], 0x100)
	copy(b[0x300:], testRelease+" (debian-kernel) #1 SMP\x00")
	le.PutUint32(b[0x248:], 64)
	le.PutUint32(b[0x24c:], uint32(len(payload)))
	return append(b, payload...)
}

// packed runs data through a compressor.
func packed(data []byte, open func(io.Writer) (io.WriteCloser, error)) []byte {
	var b bytes.Buffer
	w, err := open(&b)
	if err == nil {
		_, err = w.Write(data)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		panic(err)
	}
	return b.Bytes()
}

var packers = map[string]func([]byte) []byte{
	"gz": func(b []byte) []byte {
		return packed(b, func(w io.Writer) (io.WriteCloser, error) { return gzip.NewWriter(w), nil })
	},
	"xz": func(b []byte) []byte {
		return packed(b, func(w io.Writer) (io.WriteCloser, error) { return xz.NewWriter(w) })
	},
	"zst": func(b []byte) []byte {
		return packed(b, func(w io.Writer) (io.WriteCloser, error) { return zstd.NewWriter(w) })
	},
	"lz4": func(b []byte) []byte {
		return packed(b, func(w io.Writer) (io.WriteCloser, error) {
			z := lz4.NewWriter(w)
			return z, z.Apply(lz4.LegacyOption(true))
		})
	},
	"lzma": func(b []byte) []byte {
		return packed(b, func(w io.Writer) (io.WriteCloser, error) { return lzma.NewWriter(w) })
	},
}

// testModule is a module that says of itself what the arguments say.
func testModule(depends, softdep string) []byte {
	info := "license=GPL\x00depends=" + depends + "\x00vermagic=" + testRelease + " SMP mod_unload \x00"
	if softdep != "" {
		info = "softdep=" + softdep + "\x00" + info
	}
	return elfSpec{modinfo: info, text: "depends=decoy"}.bytes()
}

// testModules are those of Debian's kernel 6.1, by their paths in its package.
func testModules() map[string][]byte {
	return map[string][]byte{
		"kernel/drivers/virtio/virtio_ring.ko":  testModule("", ""),
		"kernel/drivers/virtio/virtio.ko":       testModule("virtio_ring", ""),
		"kernel/drivers/virtio/virtio_mmio.ko":  testModule("virtio,virtio_ring", ""),
		"kernel/drivers/char/virtio_console.ko": testModule("virtio,virtio_ring", ""),
		"kernel/drivers/block/virtio_blk.ko":    testModule("virtio,virtio_ring", ""),
		"kernel/net/core/failover.ko":           testModule("", ""),
		"kernel/drivers/net/net_failover.ko":    testModule("failover", ""),
		"kernel/drivers/net/virtio_net.ko":      testModule("virtio_ring,virtio,net-failover", ""),
		"kernel/drivers/net/unwanted.ko":        testModule("nowhere", ""),
		"kernel/lib/libcrc32c.ko":               testModule("", "pre: crc32c"),
		"kernel/fs/erofs/erofs.ko":              testModule("libcrc32c", ""),
		"kernel/fs/overlayfs/overlay.ko":        testModule("", ""),
		"kernel/fs/fuse/fuse.ko":                testModule("", ""),
		"modules.builtin":                       []byte("kernel/fs/ext4/ext4.ko\nkernel/crypto/crc32c_generic.ko\n"),
	}
}

// testModuleNames are the names that testModules gets in the initramfs.
var testModuleNames = []string{
	"modules/00-virtio_ring.ko", "modules/01-virtio.ko", "modules/02-virtio_mmio.ko", "modules/03-virtio_console.ko",
	"modules/04-virtio_blk.ko", "modules/05-libcrc32c.ko", "modules/06-erofs.ko", "modules/07-overlay.ko",
	"modules/later/08-failover.ko", "modules/later/09-net_failover.ko", "modules/later/10-virtio_net.ko", "modules/later/11-fuse.ko",
}

// writeTree lays files below dir.
func writeTree(t testing.TB, dir string, files map[string][]byte) {
	t.Helper()
	for name, data := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// installKernel lays a kernel and its modules below root, as its package would.
func installKernel(t testing.TB, root, release string) (path string) {
	t.Helper()
	rename := func(b []byte) []byte {
		if len(release) != len(testRelease) {
			t.Fatalf("release %q is not as long as %q", release, testRelease)
		}
		return bytes.ReplaceAll(b, []byte(testRelease), []byte(release))
	}
	files := map[string][]byte{
		"boot/vmlinuz-" + release: bzImageOf(rename(testVmlinux()), packers["lz4"]),
		"boot/config-" + release:  []byte("CONFIG_HZ_250=y\nCONFIG_HZ=250\n"),
	}
	files["boot/vmlinuz-"+release] = rename(files["boot/vmlinuz-"+release])
	for name, data := range testModules() {
		files["lib/modules/"+release+"/"+name] = rename(data)
	}
	writeTree(t, root, files)
	return filepath.Join(root, "boot/vmlinuz-"+release)
}

// A tarEntry is a file in a package; a link when it has a target.
type tarEntry struct {
	name, target string
	data         []byte
}

// debOf makes a package that holds the entries.
func debOf(ext string, pack func([]byte) []byte, entries ...tarEntry) []byte {
	var data bytes.Buffer
	w := tar.NewWriter(&data)
	for _, e := range entries {
		h := &tar.Header{Name: e.name, Mode: 0o644, Size: int64(len(e.data)), Typeflag: tar.TypeReg}
		if e.target != "" {
			h.Typeflag, h.Linkname = tar.TypeSymlink, e.target
		}
		if err := w.WriteHeader(h); err != nil {
			panic(err)
		}
		w.Write(e.data) // into memory
	}
	w.Close()
	contents := data.Bytes()
	if pack != nil {
		contents = pack(contents)
	}
	deb := []byte("!<arch>\n")
	for _, m := range []struct {
		name string
		data []byte
	}{{"debian-binary", []byte("2.0\n")}, {"control.tar.xz", []byte("odd")}, {"data.tar" + ext, contents}} {
		deb = fmt.Appendf(deb, "%-16s%-12d%-6d%-6d%-8s%-10d`\n", m.name, 0, 0, 0, "100644", len(m.data))
		deb = append(deb, m.data...)
		if len(m.data)%2 == 1 {
			deb = append(deb, '\n')
		}
	}
	return deb
}

// kernelDeb is Debian's package of a kernel.
func kernelDeb() []byte {
	entries := []tarEntry{
		{name: "./boot/vmlinuz-" + testRelease, data: bzImageOf(testVmlinux(), packers["lz4"])},
		{name: "./boot/config-" + testRelease, data: []byte("CONFIG_HZ=250\n")},
		{name: "./boot/System.map-" + testRelease, data: []byte("no")},
	}
	for name, data := range testModules() {
		entries = append(entries, tarEntry{name: "./lib/modules/" + testRelease + "/" + name, data: data})
	}
	return debOf(".xz", packers["xz"], entries...)
}

// testGuest is a program that could be /init.
func testGuest() []byte { return elfSpec{text: "guest"}.bytes() }

func section(content []byte) *io.SectionReader {
	return io.NewSectionReader(bytes.NewReader(content), 0, int64(len(content)))
}

func contentOf(s *io.SectionReader) string {
	content := make([]byte, s.Size())
	if _, err := s.ReadAt(content, 0); err != nil && err != io.EOF {
		panic(err)
	}
	return string(content)
}
