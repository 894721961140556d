package qemu

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// guestPages is a QEMU process's private mapping of the file that its guest's
// memory began as: what the guest has written is the process's own, all else the
// file's.
type guestPages struct {
	pid     int
	start   uint64 // of the mapping, in the process
	size    uint64
	pagemap *os.File
}

// region is a part of the guest's memory: offsets, of whole pages.
type region struct{ from, to uint64 }

const pageSize = 4096 // of the architectures that there are

// openGuestPages finds the mapping of file in a process.
func openGuestPages(pid int, file *os.File) (*guestPages, error) {
	info, err := file.Stat()
	if err != nil {
		return nil, err
	}
	inode := info.Sys().(*syscall.Stat_t).Ino
	maps, err := os.ReadFile(procFile(pid, "maps"))
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(maps) == 0 {
		err = os.ErrProcessDone
	}
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(maps)) {
		var from, to, offset, lineInode uint64
		var mode, device string
		// proc_pid_maps(5)
		if n, _ := fmt.Sscanf(line, "%x-%x %s %x %s %d", &from, &to, &mode, &offset, &device, &lineInode); n == 6 &&
			lineInode == inode && offset == 0 && to-from == uint64(info.Size()) {
			pagemap, err := os.Open(procFile(pid, "pagemap"))
			if err != nil {
				return nil, err
			}
			return &guestPages{pid, from, to - from, pagemap}, nil
		}
	}
	return nil, fmt.Errorf("process %d does not map the guest's memory as one piece", pid)
}

func (g *guestPages) close() { g.pagemap.Close() }

// written returns the pages that are the process's own.
func (g *guestPages) written() ([]region, error) {
	regions, err := g.scan()
	if errors.Is(err, unix.ENOTTY) { // before Linux 6.7
		regions, err = g.readPagemap()
	}
	if err != nil {
		return nil, fmt.Errorf("the guest's pages: %w", err)
	}
	return regions, nil
}

// PAGEMAP_SCAN, Linux, Documentation/admin-guide/mm/pagemap.rst and
// include/uapi/linux/fs.h.
const (
	pagemapScan = 0xC0606610

	pageIsFile    = 1 << 2
	pageIsPresent = 1 << 3
	pageIsSwapped = 1 << 4
)

type pagemapScanArg struct {
	size, flags, start, end, walkEnd, vec, vecLen, maxPages               uint64
	categoryInverted, categoryMask, categoryAnyofMask, categoryReturnMask uint64
}

type pageRegion struct{ start, end, categories uint64 }

func (g *guestPages) scan() (regions []region, err error) {
	found := make([]pageRegion, 4096)
	var pin runtime.Pinner
	pin.Pin(&found[0])
	defer pin.Unpin()
	for at, end := g.start, g.start+g.size; at < end; {
		arg := pagemapScanArg{
			start: at, end: end, vec: uint64(uintptr(unsafe.Pointer(&found[0]))), vecLen: uint64(len(found)),
			// Not the file's, and in memory or swapped out.
			categoryInverted: pageIsFile, categoryMask: pageIsFile, categoryAnyofMask: pageIsPresent | pageIsSwapped, categoryReturnMask: pageIsFile,
		}
		arg.size = uint64(unsafe.Sizeof(arg))
		n, _, errno := unix.Syscall(unix.SYS_IOCTL, g.pagemap.Fd(), pagemapScan, uintptr(unsafe.Pointer(&arg)))
		if errno != 0 {
			return nil, errno
		}
		for _, r := range found[:n] {
			regions = appendRegion(regions, r.start-g.start, r.end-g.start)
		}
		if arg.walkEnd <= at {
			return nil, io.ErrNoProgress
		}
		at = arg.walkEnd
	}
	return regions, nil
}

// readPagemap is scan page by page. Of an entry bit 63 says that the page is in
// memory, 62 that it is swapped out, 61 that it is the file's (or shared).
func (g *guestPages) readPagemap() (regions []region, err error) {
	entries := make([]byte, g.size/pageSize*8)
	if _, err := g.pagemap.ReadAt(entries, int64(g.start/pageSize*8)); err != nil {
		return nil, err
	}
	for i := range uint64(len(entries) / 8) {
		entry := binary.NativeEndian.Uint64(entries[8*i:])
		if entry>>62 != 0 && entry>>61&1 == 0 {
			regions = appendRegion(regions, i*pageSize, (i+1)*pageSize)
		}
	}
	return regions, nil
}

// appendRegion adds what may go on from the last one.
func appendRegion(regions []region, from, to uint64) []region {
	if n := len(regions); n > 0 && regions[n-1].to == from {
		regions[n-1].to = to
		return regions
	}
	return append(regions, region{from, to})
}

const (
	pieceBytes   = 512 << 10 // read at once: what a processor's cache holds
	pieceRegions = 512       // IOV_MAX is 1024
	readers      = 2         // more were no faster
)

// pieces cuts regions into what is read at once.
func pieces(regions []region) (all [][]region) {
	var piece []region
	room := uint64(pieceBytes)
	for _, r := range regions {
		for r.from < r.to {
			to := min(r.to, r.from+room)
			piece = append(piece, region{r.from, to})
			room -= to - r.from
			r.from = to
			if room == 0 || len(piece) == pieceRegions {
				all = append(all, piece)
				piece, room = nil, pieceBytes
			}
		}
	}
	if len(piece) > 0 {
		all = append(all, piece)
	}
	return all
}

// each calls visit for the content of each region, or part of it, from several
// goroutines at once.
func (g *guestPages) each(regions []region, visit func(offset uint64, content []byte) error) error {
	work := make(chan []region)
	errs := make([]error, readers)
	var reading sync.WaitGroup
	for i := range errs {
		reading.Go(func() {
			buf := make([]byte, pieceBytes)
			for piece := range work {
				if errs[i] == nil {
					errs[i] = g.readPiece(piece, buf, visit)
				}
			}
		})
	}
	for _, piece := range pieces(regions) {
		work <- piece
	}
	close(work)
	reading.Wait()
	return errors.Join(errs...)
}

func (g *guestPages) readPiece(piece []region, buf []byte, visit func(uint64, []byte) error) error {
	remote := make([]unix.RemoteIovec, len(piece))
	var total uint64
	for i, r := range piece {
		remote[i] = unix.RemoteIovec{Base: uintptr(g.start + r.from), Len: int(r.to - r.from)}
		total += r.to - r.from
	}
	local := unix.Iovec{Base: &buf[0]}
	local.SetLen(int(total))
	n, err := unix.ProcessVMReadv(g.pid, []unix.Iovec{local}, remote, 0)
	if err != nil {
		return os.NewSyscallError("process_vm_readv", err)
	}
	if uint64(n) != total {
		return fmt.Errorf("process_vm_readv: %d of %d bytes", n, total)
	}
	for _, r := range piece {
		if err := visit(r.from, buf[:r.to-r.from]); err != nil {
			return err
		}
		buf = buf[r.to-r.from:]
	}
	return nil
}

// memoryImage is a file of a guest's memory while it is written.
type memoryImage struct {
	file   *os.File
	mapped []byte
}

// newMemoryImage makes one of the size of base and with its content.
func newMemoryImage(base *os.File, copyFile func(dst, src *os.File) error) (_ *memoryImage, err error) {
	info, err := base.Stat()
	if err != nil {
		return nil, err
	}
	m := new(memoryImage)
	defer func() {
		if err != nil {
			m.close()
		}
	}()
	fd, err := unix.MemfdCreate("guest-memory", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	m.file = os.NewFile(uintptr(fd), "guest-memory")
	if err := copyFile(m.file, base); err != nil {
		return nil, err
	}
	m.mapped, err = unix.Mmap(fd, 0, int(info.Size()), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	return m, os.NewSyscallError("mmap", err)
}

// write copies content to an offset while nobody waits for it.
func (m *memoryImage) write(offset uint64, content []byte) error {
	_, err := m.file.WriteAt(content, int64(offset))
	return err
}

// touch has the regions in this process's own tables, so that update meets no
// page for the first time.
func (m *memoryImage) touch(regions []region) {
	for _, r := range regions {
		unix.Madvise(m.mapped[r.from:r.to], unix.MADV_POPULATE_READ) // before Linux 5.14 it is slower
	}
}

// update copies those pages of content to an offset that are not there yet.
func (m *memoryImage) update(offset uint64, content []byte) error {
	there := m.mapped[offset : offset+uint64(len(content))]
	if bytes.Equal(there, content) {
		return nil
	}
	for i := 0; i < len(content); i += pageSize {
		if page := content[i : i+pageSize]; !bytes.Equal(there[i:i+pageSize], page) {
			copy(there[i:], page)
		}
	}
	return nil
}

// seal makes the file one that never changes again, and gives it away.
func (m *memoryImage) seal() (*os.File, error) {
	err := unix.Munmap(m.mapped)
	m.mapped = nil
	if err != nil {
		return nil, os.NewSyscallError("munmap", err)
	}
	if _, err := unix.FcntlInt(m.file.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_SEAL|unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_WRITE); err != nil {
		return nil, os.NewSyscallError("fcntl F_ADD_SEALS", err)
	}
	file := m.file
	m.file = nil
	return file, nil
}

// close drops what was not given away.
func (m *memoryImage) close() {
	if m.mapped != nil {
		unix.Munmap(m.mapped)
	}
	if m.file != nil {
		m.file.Close()
	}
}
