//go:build !linux

package workspace

import (
	"errors"
	"fmt"
)

// OpenHost is not to be had here: it takes openat2(2) and descriptors by O_PATH.
func OpenHost(dir string, o HostOptions) (FS, error) {
	return nil, fmt.Errorf("%s: %w", dir, errors.ErrUnsupported)
}
