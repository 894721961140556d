//go:build !linux

package sandbox

import (
	"errors"
	"time"
)

func processUsage(int) (time.Duration, int64, error) { return 0, 0, errors.ErrUnsupported }
