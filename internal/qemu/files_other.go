//go:build !linux

package qemu

import (
	"errors"
	"io"
	"os"
)

// Nothing of this can be reached elsewhere than on Linux: Create refuses.

const socketStream, socketDatagram = 0, 0

func memoryCopy(_, _ string) (*os.File, error) { return nil, errors.ErrUnsupported }
func empty(*os.File) error                     { return errors.ErrUnsupported }
func guestMemory(int) (*os.File, error)        { return nil, errors.ErrUnsupported }
func socketPair(int, string) (ours, theirs *os.File, err error) {
	return nil, nil, errors.ErrUnsupported
}
func duplicateFD(int, string) (*os.File, error)        { return nil, errors.ErrUnsupported }
func reopen(*os.File, int) (*os.File, error)           { return nil, errors.ErrUnsupported }
func memoryFile(string) (*os.File, error)              { return nil, errors.ErrUnsupported }
func memoryFileOf(string, io.Reader) (*os.File, error) { return nil, errors.ErrUnsupported }
