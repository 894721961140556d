package sandbox

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"

	"github.com/matchlock/matchlock/api"
	"github.com/matchlock/matchlock/internal/hostfs"
)

// lockDisk makes sure that a disk of the user's is what it is said to be and
// that no two sandboxes write to it at once; any number may read it. release
// gives it back.
func lockDisk(d api.Disk) (release func() error, err error) {
	mode, how := os.O_RDWR, syscall.LOCK_EX
	if d.ReadOnly {
		mode, how = os.O_RDONLY, syscall.LOCK_SH
	}
	// A fifo would wait for its writer.
	file, err := hostfs.Lock(context.Background(), d.File, mode|syscall.O_NONBLOCK, how|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		err = ErrDiskInUse
	}
	if err != nil {
		return nil, fmt.Errorf("disk %q: %w", d.File, pathless(err))
	}
	if err := checkExt4(file); err != nil {
		return nil, errors.Join(fmt.Errorf("disk %q: %w", d.File, err), file.Close())
	}
	return file.Close, nil
}

// The superblock of ext4 begins at 1024; its magic number is at offset 0x38 of
// it (Documentation/filesystems/ext4/super.rst).
const ext4MagicOffset = 1024 + 0x38

func checkExt4(file *os.File) error {
	info, err := file.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return errors.New("not a regular file")
	}
	var magic [2]byte
	if _, err := file.ReadAt(magic[:], ext4MagicOffset); err != nil && err != io.EOF {
		return pathless(err)
	}
	if !bytes.Equal(magic[:], []byte{0x53, 0xef}) {
		return &hintError{errors.New("not an ext4 file system"), "`mkfs.ext4 FILE` makes one, without partitions; it is attached as it is"}
	}
	return nil
}

// pathless takes the path from an error that names it by itself.
func pathless(err error) error {
	if e, ok := errors.AsType[*os.PathError](err); ok {
		return e.Err
	}
	return err
}
