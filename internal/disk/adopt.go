package disk

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Adopt makes path, which must not exist, a name of a file that nobody may write to, by its mode. Of others, and where it cannot be one, as on
// another file system, it makes a copy, with mode 0400.
func Adopt(path string, file *os.File) error {
	info, err := file.Stat()
	if err != nil {
		return err
	}
	if info.Mode()&0o222 != 0 {
		return copyAs(path, file)
	}
	err = unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", file.Fd()), unix.AT_FDCWD, path, unix.AT_SYMLINK_FOLLOW)
	if err == nil || errors.Is(err, unix.EEXIST) {
		return err
	}
	return copyAs(path, file)
}

func copyAs(path string, file *os.File) error {
	to, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o400)
	if err != nil {
		return err
	}
	return errors.Join(CopySparse(to, file), to.Close())
}
