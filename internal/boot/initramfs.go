package boot

import (
	"bufio"
	"context"
	"crypto/sha256"
	"debug/elf"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/matchlock/matchlock/internal/hostfs"
)

// initramfsFormat is part of an initramfs's name: raise it when other bytes would come from the same input.
const initramfsFormat = 1

// checkGuest refuses early what the guest's kernel would refuse with a panic.
func checkGuest(guest *io.SectionReader, arch string) error {
	if guest == nil {
		return errors.New("guest program: none given")
	}
	f, err := elf.NewFile(guest)
	if err != nil {
		return fmt.Errorf("guest program: %w", err)
	}
	if f.Machine != machines[arch] {
		return fmt.Errorf("guest program: built for %v, not %s", f.Machine, arch)
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return errors.New("guest program: not static")
		}
	}
	return nil
}

// initramfs returns the initramfs of kernel k and o's guest, which it packs when the cache has none.
//
//	/init                        the guest
//	/dev/console                 where its kernel's messages and its own go
//	/modules/NN-NAME.ko          to be loaded in the order of their names
//	/modules/later/NN-NAME.ko    likewise, when first used
func (c *cache) initramfs(ctx context.Context, k *cachedKernel, o Options) (string, error) {
	if o.GuestSum == "" {
		guest := sha256.New()
		if _, err := io.Copy(guest, io.NewSectionReader(o.Guest, 0, o.Guest.Size())); err != nil {
			return "", fmt.Errorf("guest program: %w", err)
		}
		o.GuestSum = hex.EncodeToString(guest.Sum(nil))
	}
	sum := sha256.Sum256(fmt.Appendf(nil, "%d %s %s", initramfsFormat, o.GuestSum, k.Sum))
	path := filepath.Join(c.initramfsDir, hex.EncodeToString(sum[:16])+".cpio")
	entries := initramfsEntries(k, o.Guest)
	if info, err := os.Lstat(path); err == nil && info.Mode().IsRegular() && info.Size() == cpioSize(entries) && use(path) == nil {
		return path, nil
	}
	o.Progress("initramfs", 0, 0)
	err := hostfs.Replace(path, func(w io.Writer) error {
		b := bufio.NewWriterSize(w, 1<<20)
		if err := writeCpio(ctx, b, entries); err != nil {
			return err
		}
		return b.Flush()
	})
	if err != nil {
		return "", fmt.Errorf("initramfs: %w", err)
	}
	c.prune(c.initramfsDir, keepInitramfs)
	return path, nil
}

func initramfsEntries(k *cachedKernel, guest *io.SectionReader) []cpioEntry {
	entries := []cpioEntry{
		{name: "dev", mode: cpioDir | 0o755},
		{name: "dev/console", mode: cpioChar | 0o600, major: 5, minor: 1},
		{name: "init", mode: cpioFile | 0o755, size: guest.Size(), open: func() (io.ReadCloser, error) {
			return io.NopCloser(io.NewSectionReader(guest, 0, guest.Size())), nil
		}},
		{name: "modules", mode: cpioDir | 0o755},
		{name: "modules/later", mode: cpioDir | 0o755},
	}
	for _, f := range k.Modules {
		entries = append(entries, cpioEntry{name: f.Name, mode: cpioFile | 0o644, size: f.Size, open: func() (io.ReadCloser, error) {
			return os.Open(k.path(f.Name))
		}})
	}
	return append(entries,
		cpioEntry{name: "proc", mode: cpioDir | 0o755},
		cpioEntry{name: "sys", mode: cpioDir | 0o755},
	)
}

// A cpioEntry is a file in the newc form that the kernel unpacks (Documentation/driver-api/early-userspace/buffer-format.rst).
// Owner and time are 0, so that the same input gives the same bytes.
type cpioEntry struct {
	name         string
	mode         uint32
	major, minor uint32
	size         int64
	open         func() (io.ReadCloser, error) // nil when size is 0
}

const (
	cpioDir  = 0o040000
	cpioChar = 0o020000
	cpioFile = 0o100000

	cpioHeader  = 110 // the magic and 13 numbers of 8 digits
	cpioTrailer = "TRAILER!!!"
)

func align4(n int64) int64 { return (n + 3) &^ 3 }

// cpioSize is the length of the archive that writeCpio makes of entries.
func cpioSize(entries []cpioEntry) int64 {
	total := align4(cpioHeader + int64(len(cpioTrailer)) + 1)
	for _, e := range entries {
		total += align4(cpioHeader+int64(len(e.name))+1) + align4(e.size)
	}
	return total
}

func writeCpio(ctx context.Context, w io.Writer, entries []cpioEntry) error {
	for i, e := range entries {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := e.write(w, i+1); err != nil {
			return fmt.Errorf("%s: %w", e.name, err)
		}
	}
	return cpioEntry{name: cpioTrailer}.write(w, 0)
}

func (e cpioEntry) write(w io.Writer, inode int) error {
	links := 1
	if e.mode&cpioDir != 0 {
		links = 2
	}
	// Inode, mode, uid, gid, links, mtime, size, device of the file, device it is, name's length, checksum.
	name := e.name + "\x00"
	header := fmt.Appendf(nil, "070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%s",
		inode, e.mode, 0, 0, links, 0, e.size, 0, 0, e.major, e.minor, len(name), 0, name)
	if _, err := w.Write(padded(header)); err != nil || e.size == 0 {
		return err
	}
	r, err := e.open()
	if err != nil {
		return err
	}
	defer r.Close()
	n, err := io.Copy(w, io.LimitReader(r, e.size+1))
	if err != nil {
		return err
	}
	if n != e.size {
		return fmt.Errorf("size is not %d any more", e.size)
	}
	_, err = w.Write(make([]byte, align4(n)-n))
	return err
}

func padded(b []byte) []byte { return append(b, make([]byte, align4(int64(len(b)))-int64(len(b)))...) }
