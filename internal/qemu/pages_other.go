//go:build !linux

package qemu

import (
	"errors"
	"os"
)

// Nothing of this can be reached elsewhere than on Linux: Create refuses.

type (
	guestPages struct {
		pid         int
		start, size uint64
	}
	memoryImage struct{}
	region      struct{}
)

func openGuestPages(int, *os.File) (*guestPages, error) { return nil, errors.ErrUnsupported }

func (*guestPages) written() ([]region, error) { return nil, errors.ErrUnsupported }
func (*guestPages) each([]region, func(uint64, []byte) error) error {
	return errors.ErrUnsupported
}
func (*guestPages) close() {}

func newMemoryImage(*os.File, func(dst, src *os.File) error) (*memoryImage, error) {
	return nil, errors.ErrUnsupported
}

func (*memoryImage) write(uint64, []byte) error  { return errors.ErrUnsupported }
func (*memoryImage) update(uint64, []byte) error { return errors.ErrUnsupported }
func (*memoryImage) touch([]region)              {}
func (*memoryImage) seal() (*os.File, error)     { return nil, errors.ErrUnsupported }
func (*memoryImage) close()                      {}
