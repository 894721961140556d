package disk

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// clone has dst share the blocks of src, if their file system knows how to.
func clone(dst, src *os.File) (done bool, err error) {
	err = control(dst, func(dst int) error {
		return control(src, func(src int) error { return unix.IoctlFileClone(dst, src) })
	})
	switch {
	case err == nil:
		return true, nil
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOTTY), errors.Is(err, unix.EXDEV), errors.Is(err, unix.EINVAL),
		errors.Is(err, unix.ENOSYS), errors.Is(err, unix.EPERM):
		return false, nil
	}
	return false, os.NewSyscallError("ioctl FICLONE", err)
}

// copyExtents copies what is data in the first size bytes.
func copyExtents(dst, src *os.File, size int64) error {
	return eachExtent(src, size, func(from, to int64) error { return copyExtent(dst, src, from, to) })
}

// eachExtent calls visit for what is data in the first size bytes, in order.
func eachExtent(f *os.File, size int64, visit func(from, to int64) error) error {
	for offset := int64(0); offset < size; {
		data, err := f.Seek(offset, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return nil // a hole up to the end
		} else if errors.Is(err, unix.EINVAL) {
			return visit(offset, size) // holes are not known
		} else if err != nil {
			return err
		}
		hole, err := f.Seek(data, unix.SEEK_HOLE)
		if err != nil {
			return err
		}
		hole = min(hole, size)
		if err := visit(data, hole); err != nil {
			return err
		}
		offset = hole
	}
	return nil
}

// copyExtent copies one extent within the kernel, or by hand where the kernel can not.
func copyExtent(dst, src *os.File, from, to int64) error {
	for from < to {
		in, out := from, from
		var n int
		err := control(dst, func(dst int) error {
			return control(src, func(src int) (err error) {
				n, err = unix.CopyFileRange(src, &in, dst, &out, int(min(to-from, 1<<30)), 0)
				return err
			})
		})
		if err != nil || n == 0 {
			return copyBytes(dst, src, from, to-from) // which tells what is wrong, if anything is
		}
		from += int64(n)
	}
	return nil
}

// control calls f with the descriptor of the file.
func control(file *os.File, f func(fd int) error) error {
	conn, err := file.SyscallConn()
	if err != nil {
		return err
	}
	var result error
	if err := conn.Control(func(fd uintptr) { result = f(int(fd)) }); err != nil {
		return err
	}
	return result
}
