package boot

import (
	"bytes"
	"compress/gzip"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"sync"
)

// Limits on what a kernel file may claim. A kernel with debug information is several hundred megabytes.
const (
	maxKernel  = 2 << 30  // any kernel file
	maxVmlinux = 1 << 30  // what a bzImage may unpack to
	maxConfig  = 4 << 20  // a kernel's configuration
	maxNotes   = 64 << 10 // one note segment
)

// machines are the architectures we know, as ELF names them.
var machines = map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64}

// errNoKernel is the cause when a file is of no kind that boots.
var errNoKernel = errors.New("not a Linux kernel image (neither ELF vmlinux nor bzImage)")

// errCut is the cause when the end of a vmlinux is missing.
var errCut = errors.New("the file is cut short")

// A kernelImage is a kernel file, its kind told by its content, never by its name.
type kernelImage struct {
	io.ReaderAt
	size    int64
	kind    imageKind
	payload *io.SectionReader // of a bzImage: the compressed vmlinux, followed by its size unpacked
	release string            // of a bzImage
}

type imageKind string

// The kinds, by the name that such a file gets in the cache.
const (
	kindVmlinux imageKind = "vmlinux"
	kindBzImage imageKind = "bzImage"
	kindImage   imageKind = "Image" // arm64
)

func openImage(r io.ReaderAt, size int64, arch string) (*kernelImage, error) {
	if size > maxKernel {
		return nil, fmt.Errorf("%d bytes, more than a kernel has", size)
	}
	img := &kernelImage{ReaderAt: r, size: size}
	head := make([]byte, 1024)
	n, err := r.ReadAt(head, 0)
	if err != nil && err != io.EOF {
		return nil, err
	}
	head = head[:n]
	switch {
	case bytes.HasPrefix(head, []byte(elf.ELFMAG)):
		img.kind = kindVmlinux
		return img, checkELF(r, size, arch)
	case n >= 64 && string(head[56:60]) == "ARM\x64": // Documentation/arch/arm64/booting.rst
		img.kind = kindImage
		return img, checkArch("arm64", arch)
	case n >= 0x264 && head[0x1fe] == 0x55 && head[0x1ff] == 0xaa && string(head[0x202:0x206]) == "HdrS":
		img.kind = kindBzImage
		if err := checkArch("amd64", arch); err != nil {
			return nil, err
		}
		return img, img.readSetupHeader(head)
	}
	return nil, errNoKernel
}

// checkELF makes sure that a vmlinux is for arch and whole.
func checkELF(r io.ReaderAt, size int64, arch string) error {
	f, err := elf.NewFile(r)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errCut
	}
	if err != nil {
		return err
	}
	for _, p := range f.Progs {
		if p.Off > uint64(size) || p.Filesz > uint64(size)-p.Off {
			return errCut
		}
	}
	for name, machine := range machines {
		if f.Machine == machine {
			return checkArch(name, arch)
		}
	}
	return fmt.Errorf("built for %v, not %s", f.Machine, arch)
}

func checkArch(has, want string) error {
	if has != want {
		return fmt.Errorf("built for %s, not %s", has, want)
	}
	return nil
}

// readSetupHeader finds the release and the payload of a bzImage (Documentation/arch/x86/boot.rst, "The Real-Mode Kernel Header").
func (img *kernelImage) readSetupHeader(head []byte) error {
	le := binary.LittleEndian
	if version := le.Uint16(head[0x206:]); version < 0x208 {
		return fmt.Errorf("bzImage: boot protocol %d.%02d is older than 2.08", version>>8, version&0xff)
	}
	sectors := int64(head[0x1f1])
	if sectors == 0 {
		sectors = 4
	}
	setup := (sectors + 1) * 512 // the boot sector, then the set-up code
	if text := int64(le.Uint16(head[0x20e:])); text != 0 && text+0x200 < setup {
		b := make([]byte, min(256, setup-text-0x200))
		if _, err := img.ReadAt(b, text+0x200); err != nil {
			return fmt.Errorf("bzImage: version text: %w", err)
		}
		img.release = firstWord(b)
	}
	offset, length := int64(le.Uint32(head[0x248:])), int64(le.Uint32(head[0x24c:]))
	if length < 8 || setup+offset+length > img.size {
		return fmt.Errorf("bzImage: payload of %d bytes at %d lies outside the file of %d bytes", length, setup+offset, img.size)
	}
	img.payload = io.NewSectionReader(img, setup+offset, length)
	return nil
}

// unpacked is the size that the vmlinux of a bzImage has: the build appends it to every payload
// (of gzip it is the trailer, the same four bytes).
func (img *kernelImage) unpacked() (int64, error) {
	var tail [4]byte
	if _, err := img.payload.ReadAt(tail[:], img.payload.Size()-4); err != nil {
		return 0, err
	}
	size := int64(binary.LittleEndian.Uint32(tail[:]))
	if size > maxVmlinux {
		return 0, fmt.Errorf("bzImage: claims to unpack to %d bytes", size)
	}
	return size, nil
}

// writeVmlinux unpacks a bzImage.
func (img *kernelImage) writeVmlinux(w io.Writer) error {
	size, err := img.unpacked()
	if err != nil {
		return err
	}
	packed := io.NewSectionReader(img.payload, 0, img.payload.Size()-4)
	if isGzip(packed) {
		packed = img.payload
	}
	r, err := decompress(packed)
	if err != nil {
		return fmt.Errorf("bzImage: payload: %w", err)
	}
	defer r.Close()
	n, err := io.Copy(w, io.LimitReader(r, size+1))
	if err != nil {
		return fmt.Errorf("bzImage: payload: %w", err)
	}
	if n != size {
		return fmt.Errorf("bzImage: payload is not the %d bytes that it claims to be", size)
	}
	return nil
}

// hasPVH tells whether a vmlinux has the note XEN_ELFNOTE_PHYS32_ENTRY (18; include/xen/interface/elfnote.h): the entry
// point at which QEMU and Firecracker start an uncompressed kernel.
func hasPVH(r io.ReaderAt) (bool, error) {
	f, err := elf.NewFile(r)
	if err != nil {
		return false, err
	}
	for _, p := range f.Progs {
		if p.Type != elf.PT_NOTE || p.Filesz > maxNotes {
			continue
		}
		notes := make([]byte, p.Filesz)
		if _, err := p.ReadAt(notes, 0); err != nil {
			return false, fmt.Errorf("note segment: %w", err)
		}
		for len(notes) >= 12 {
			nameSize, descSize := uint64(f.ByteOrder.Uint32(notes)), uint64(f.ByteOrder.Uint32(notes[4:]))
			kind := f.ByteOrder.Uint32(notes[8:])
			notes = notes[12:]
			size := (nameSize+3)&^3 + (descSize+3)&^3
			if size > uint64(len(notes)) {
				break
			}
			if kind == 18 && nameSize == 4 && string(notes[:4]) == "Xen\x00" {
				return true, nil
			}
			notes = notes[size:]
		}
	}
	return false, nil
}

// releasePattern is strict since releases become names of folders.
var releasePattern = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^[0-9][0-9A-Za-z._+~-]{0,63}$`)
})

// findRelease reads the release out of an uncompressed kernel's banner.
func findRelease(r io.ReaderAt, size int64) (string, error) {
	banner := []byte("Linux version ")
	from := int64(0)
	for range 64 { // the words may stand elsewhere, too
		at, err := index(r, size, from, banner)
		if err != nil {
			return "", err
		}
		if at < 0 {
			break
		}
		from = at + int64(len(banner))
		b := make([]byte, 65)
		n, err := r.ReadAt(b, from)
		if err != nil && err != io.EOF {
			return "", err
		}
		if release := firstWord(b[:n]); releasePattern().MatchString(release) {
			return release, nil
		}
	}
	return "", errors.New("no Linux banner inside")
}

// findHZ reads CONFIG_HZ out of the configuration that a kernel built with CONFIG_IKCONFIG carries (kernel/configs.c);
// 0 when there is none.
func findHZ(r io.ReaderAt, size int64) int {
	at, err := index(r, size, 0, []byte("IKCFG_ST\x1f\x8b"))
	if err != nil || at < 0 {
		return 0
	}
	z, err := gzip.NewReader(io.NewSectionReader(r, at+8, size-at-8))
	if err != nil {
		return 0
	}
	z.Multistream(false)
	config, err := io.ReadAll(io.LimitReader(z, maxConfig))
	if err != nil {
		return 0
	}
	return configHZ(config)
}

func configHZ(config []byte) int {
	const key = "CONFIG_HZ="
	for line := range bytes.Lines(config) {
		if value, ok := bytes.CutPrefix(line, []byte(key)); ok {
			hz, err := strconv.Atoi(string(bytes.TrimSpace(value)))
			if err != nil || hz < 1 || hz > 10000 {
				return 0
			}
			return hz
		}
	}
	return 0
}

// index finds needle at or after from; -1 when it is not there.
func index(r io.ReaderAt, size, from int64, needle []byte) (int64, error) {
	buf := make([]byte, 1<<20)
	for at := from; at+int64(len(needle)) <= size; at += int64(len(buf) - len(needle) + 1) {
		n, err := r.ReadAt(buf[:min(int64(len(buf)), size-at)], at)
		if err != nil && err != io.EOF {
			return 0, err
		}
		if i := bytes.Index(buf[:n], needle); i >= 0 {
			return at + int64(i), nil
		}
	}
	return -1, nil
}

// firstWord is the text up to the first blank or NUL.
func firstWord(b []byte) string {
	if i := bytes.IndexAny(b, " \t\n\x00"); i >= 0 {
		b = b[:i]
	}
	return string(b)
}
