//go:build !linux

package guest

import "errors"

// Main refuses: guests run Linux.
func Main() error { return errors.ErrUnsupported }
