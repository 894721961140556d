package disk

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"

	"github.com/matchlock/matchlock/internal/hostfs"
)

// MinScratch is the smallest disk CreateScratch makes: room for the journal and a little more.
const MinScratch = 64 << 20

// MissingToolError tells that a program of the host is not installed.
type MissingToolError struct {
	Tool    string
	Package string // the Debian package that has it
	Err     error
}

func (e *MissingToolError) Error() string {
	return fmt.Sprintf("%s (Debian package %s): %v", e.Tool, e.Package, e.Err)
}

func (e *MissingToolError) Unwrap() error { return e.Err }

// CreateScratch makes path, which must not exist, an empty ext4 file system of size bytes, a multiple of 4096 and at least MinScratch. On the
// host it takes some hundred kilobytes until the guest writes. The guest has nothing to prepare; mounted with noinit_itable it leaves the tables
// of unused inodes alone as well.
//
// The first disk of each size is made by mkfs.ext4 and kept in cacheDir, an existing folder that other processes may use at the same time;
// the others are copies of it, so all of one size have the same UUID. If mkfs.ext4 is missing the error is a *MissingToolError.
func CreateScratch(ctx context.Context, path string, size int64, cacheDir string) error {
	if err := createScratch(ctx, path, size, cacheDir); err != nil {
		return fmt.Errorf("scratch disk: %w", err)
	}
	return nil
}

func createScratch(ctx context.Context, path string, size int64, cacheDir string) error {
	if err := checkSize(size); err != nil {
		return err
	}
	empty, err := openEmptyExt4(ctx, size, cacheDir)
	if err != nil {
		return err
	}
	defer empty.Close()
	disk, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	err = CopySparse(disk, empty)
	if closeErr := disk.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		os.Remove(path) // what went wrong before says more
	}
	return err
}

// ext4Version is to be raised when the arguments of mkfs.ext4 change.
const ext4Version = 1

// openEmptyExt4 opens the prepared file system of that size for reading. It is complete whenever it has its name.
func openEmptyExt4(ctx context.Context, size int64, cacheDir string) (*os.File, error) {
	name := filepath.Join(cacheDir, fmt.Sprintf("ext4-v%d-%d.img", ext4Version, size))
	if f, err := os.Open(name); !errors.Is(err, os.ErrNotExist) {
		return f, err
	}
	lock, err := hostfs.Lock(ctx, filepath.Join(cacheDir, "ext4.lock"), os.O_RDWR|os.O_CREATE, syscall.LOCK_EX)
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	if f, err := os.Open(name); !errors.Is(err, os.ErrNotExist) {
		return f, err // another process was first
	}
	// Under the lock, what has this name is the rest of a crash.
	part := name + ".part"
	if err = makeExt4(ctx, part, size, scratchFeatures, lock); err == nil {
		err = os.Rename(part, name)
	}
	if err != nil {
		os.Remove(part) // what went wrong before says more
		return nil, err
	}
	return os.Open(name)
}

// CreateVolume makes of file, which is empty and open for writing under its name, an ext4 file system of size bytes, as CreateScratch does but
// to last: its metadata has checksums. The tool has the file open too, and so a lock on it.
func CreateVolume(ctx context.Context, file *os.File, size int64) error {
	if err := checkSize(size); err != nil {
		return err
	}
	return makeExt4(ctx, file.Name(), size, volumeFeatures, file)
}

// Features of ext4 are named one by one, as later versions of the tool would turn on what a guest's kernel may not know. No resize_inode: these
// disks are never grown. No checksums where what lives for one sandbox is not worth the guest's time.
const (
	features        = "none,has_journal,extent,huge_file,flex_bg,64bit,dir_nlink,extra_isize,sparse_super,large_file,filetype,dir_index,ext_attr,"
	scratchFeatures = features + "uninit_bg"
	volumeFeatures  = features + "metadata_csum"
)

func checkSize(size int64) error {
	if size < MinScratch || size%blockSize != 0 {
		return fmt.Errorf("%d bytes: neither a multiple of %d nor at least %d", size, blockSize, MinScratch)
	}
	return nil
}

// makeExt4 makes an empty ext4 and has it on the disk when it returns. The tool holds the lock too, and so longer than a process
// that is killed meanwhile.
func makeExt4(ctx context.Context, path string, size int64, features string, lock *os.File) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close() // after Sync there is nothing left to fail
	if err := f.Truncate(size); err != nil {
		return err
	}
	program, err := findTool("mkfs.ext4", "e2fsprogs")
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, program, "-q", "-F",
		"-O", features,
		"-b", strconv.Itoa(blockSize), "-I", "256", "-i", "8192",
		"-J", "size=16", "-m", "0",
		"-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard,root_owner=0:0",
		path)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	cmd.ExtraFiles = []*os.File{lock}
	if err := cmd.Run(); ctx.Err() != nil {
		return context.Cause(ctx)
	} else if err != nil {
		return fmt.Errorf("%s: %w: %s", program, err, bytes.TrimSpace(stderr.Bytes()))
	}
	return f.Sync()
}

// findTool finds a system administrator's program, whose folder is not in everyone's PATH.
func findTool(tool, debianPackage string) (string, error) {
	for _, name := range []string{tool, "/usr/sbin/" + tool} {
		if path, err := exec.LookPath(name); err == nil {
			return path, nil
		}
	}
	return "", &MissingToolError{Tool: tool, Package: debianPackage, Err: exec.ErrNotFound}
}
