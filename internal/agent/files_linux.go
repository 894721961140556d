package agent

import (
	"crypto/rand"
	"errors"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/matchlock/matchlock/internal/wire"
)

var errNotRegular = errors.New("not a regular file")

// regular is an open regular file. It stays outside the runtime's poller:
// among the files of /proc and /sys are some that would let a reader wait for
// ever, and answer EAGAIN when they are read without waiting.
type regular int

// openRegular opens a regular file for reading, following symbolic links.
// Whatever else is there is not opened: that can block, or have an effect.
func openRegular(path string) (regular, *unix.Stat_t, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return -1, nil, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	if err := checkRegular(&st); err != nil {
		return -1, nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err == nil {
		err = unix.Fstat(fd, &st) // of what it is now
		if err == nil {
			err = checkRegular(&st)
		}
		if err != nil {
			unix.Close(fd)
		}
	}
	if err != nil {
		return -1, nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return regular(fd), &st, nil
}

func checkRegular(st *unix.Stat_t) error {
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		return nil
	case unix.S_IFDIR:
		return unix.EISDIR
	}
	return errNotRegular
}

func (f regular) close() { unix.Close(int(f)) }

// readFull fills p. Fewer bytes, and no error, are the end of the file.
func (f regular) readFull(p []byte) (n int, err error) {
	for n < len(p) {
		m, err := unix.Read(int(f), p[n:])
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return n, err
		}
		if m == 0 {
			break
		}
		n += m
	}
	return n, nil
}

func decodePath(d *wire.Decoder) string {
	path := d.String(maxPath)
	if d.Err() == nil {
		if err := checkPath(path); err != nil {
			d.Fail(err)
		}
	}
	return path
}

// readFile sends a file's attributes and its content: of a file that grows what
// it had at the beginning, and never more than the limit asked for.
func (s *Server) readFile(out *wire.FrameWriter, d *wire.Decoder) error {
	path, limit := decodePath(d), d.Uint64()
	if err := d.Done(); err != nil {
		return wrap("read", err)
	}
	f, st, err := openRegular(path)
	if err != nil {
		return err
	}
	defer f.close()
	if uint64(st.Size) > limit {
		return pathError("file", path, ErrTooLarge)
	}
	if err := sendAttributes(out, st); err != nil {
		return err
	}
	total, err := s.sendContent(out, f, uint64(st.Size), limit)
	if err != nil {
		return &os.PathError{Op: "read", Path: path, Err: err}
	}
	if total > limit {
		return pathError("file", path, ErrTooLarge)
	}
	return out.WriteFrame(frameEnd, nil)
}

// sendContent sends what a file holds: of one that grows, no more than its size
// at the beginning. The files of /proc and /sys do not say how much they hold;
// their size is 0 and they are read to the end, or until it is more than limit.
func (s *Server) sendContent(out *wire.FrameWriter, f regular, size, limit uint64) (total uint64, err error) {
	frame := s.buffers.Get().(*[wire.FrameHeader + chunk]byte)
	defer s.buffers.Put(frame)
	space := frame[wire.FrameHeader:][:chunk&^4095] // some files of /proc want whole records
	for {
		p := space
		if size > 0 {
			p = p[:min(size-total, uint64(len(p)))]
		}
		n, err := f.readFull(p)
		if err != nil {
			return total, err
		}
		if total += uint64(n); n == 0 || total > limit {
			return total, nil
		}
		if err := out.WriteFilled(frameData, frame[:wire.FrameHeader+n]); err != nil {
			return total, err
		}
	}
}

func sendAttributes(out *wire.FrameWriter, st *unix.Stat_t) error {
	var e wire.Encoder
	encodeAttributes(&e, st.Size, st.Mode, int64(st.Mtim.Sec), int64(st.Mtim.Nsec))
	return out.WriteFrame(frameInfo, e.Encoded())
}

func (s *Server) stat(out *wire.FrameWriter, d *wire.Decoder) error {
	path, follow := decodePath(d), d.Bool()
	if err := d.Done(); err != nil {
		return wrap("stat", err)
	}
	stat := unix.Lstat
	if follow {
		stat = unix.Stat
	}
	var st unix.Stat_t
	if err := stat(path, &st); err != nil {
		return &os.PathError{Op: "stat", Path: path, Err: err}
	}
	return sendAttributes(out, &st)
}

func (s *Server) makeFolder(out *wire.FrameWriter, d *wire.Decoder) error {
	path, mode := decodePath(d), d.Uint32()
	if err := d.Done(); err != nil {
		return wrap("mkdir", err)
	}
	if err := os.MkdirAll(path, os.FileMode(mode&0o777)); err != nil {
		return err
	}
	return out.WriteFrame(frameEnd, nil)
}

func (s *Server) remove(out *wire.FrameWriter, d *wire.Decoder) error {
	path, recursive := decodePath(d), d.Bool()
	if err := d.Done(); err != nil {
		return wrap("remove", err)
	}
	remove := os.Remove
	if recursive {
		remove = os.RemoveAll
	}
	if err := remove(path); err != nil {
		return err
	}
	return out.WriteFrame(frameEnd, nil)
}

// listFiles sends the entries of a folder as the kernel orders them.
func (s *Server) listFiles(out *wire.FrameWriter, d *wire.Decoder) error {
	path := decodePath(d)
	if err := d.Done(); err != nil {
		return wrap("list", err)
	}
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	var e wire.Encoder
	for {
		names, err := f.Readdirnames(256)
		for _, name := range names {
			var st unix.Stat_t
			if err := unix.Fstatat(int(f.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
				if errors.Is(err, unix.ENOENT) {
					continue // removed in the meantime
				}
				return &os.PathError{Op: "stat", Path: path + "/" + name, Err: err}
			}
			e.String(name)
			encodeAttributes(&e, st.Size, st.Mode, int64(st.Mtim.Sec), int64(st.Mtim.Nsec))
			if len(e.Encoded()) > chunk/2 {
				if err := out.WriteFrame(frameEntries, e.Encoded()); err != nil {
					return err
				}
				e = wire.Encoder{}
			}
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
	}
	if len(e.Encoded()) > 0 {
		if err := out.WriteFrame(frameEntries, e.Encoded()); err != nil {
			return err
		}
	}
	return out.WriteFrame(frameEnd, nil)
}

// writeFile replaces a file by what the host sends: whole, under its name, or
// not at all. What was there before is replaced, a symbolic link too; a folder
// is left alone.
func (s *Server) writeFile(in *wire.FrameReader, out *wire.FrameWriter, d *wire.Decoder) (err error) {
	path, mode := decodePath(d), d.Uint32()
	if err := d.Done(); err != nil {
		return wrap("write", err)
	}
	if mode == 0 {
		mode = 0o644
	}
	cut := strings.LastIndexByte(path, '/')
	dir, name := path[:max(cut, 1)], path[cut+1:]
	if name == "" || name == "." || name == ".." {
		return &os.PathError{Op: "write", Path: path, Err: unix.EISDIR}
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	folder, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: dir, Err: err}
	}
	defer unix.Close(folder)
	err = replaceAt(folder, name, func(temp string) error {
		return receiveFile(in, frameEnd, folder, temp, func(fd int) error { return unix.Fchmod(fd, mode&0o7777) })
	})
	if err != nil {
		return &os.PathError{Op: "write", Path: path, Err: err}
	}
	return out.WriteFrame(frameEnd, nil)
}

// replaceAt has make create something under a name of no meaning in a folder,
// and gives it its name when it is whole. What was there before is replaced,
// unless it is a folder.
func replaceAt(folder int, name string, make func(temp string) error) error {
	var there unix.Stat_t // rename(2) will say so too, but after the whole transfer
	if unix.Fstatat(folder, name, &there, unix.AT_SYMLINK_NOFOLLOW) == nil && there.Mode&unix.S_IFMT == unix.S_IFDIR {
		return unix.EISDIR
	}
	temp := ".matchlock-" + rand.Text()
	err := make(temp)
	if err == nil {
		err = unix.Renameat(folder, temp, folder, name)
	}
	if err != nil {
		unix.Unlinkat(folder, temp, 0)
	}
	return err
}

// receiveFile creates a file in a folder and writes what the host sends, until
// a frame of kind end says that this was all. Then it has finish do the rest.
func receiveFile(in *wire.FrameReader, end byte, folder int, name string, finish func(fd int) error) error {
	fd, err := unix.Openat(folder, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close() // a second time where all is well
	if err := receiveContent(in, end, f); err != nil {
		return err
	}
	if err := finish(fd); err != nil {
		return err
	}
	return f.Close()
}

func receiveContent(in *wire.FrameReader, end byte, f *os.File) error {
	for {
		kind, payload, err := in.Next(wire.MaxData)
		switch {
		case err != nil:
			return err
		case kind == end:
			return nil
		case kind != frameData:
			return errFrame
		}
		if _, err := f.Write(payload); err != nil {
			return errors.Unwrap(err) // without the name, which means nothing
		}
	}
}

var errFrame = errors.New("unknown frame")
