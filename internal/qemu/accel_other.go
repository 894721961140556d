//go:build !linux || !(amd64 || arm64)

package qemu

import (
	"context"
	"errors"
	"fmt"
	"runtime"
)

func openKVM() error {
	return fmt.Errorf("KVM on %s/%s: %w", runtime.GOOS, runtime.GOARCH, errors.ErrUnsupported)
}

func runVCPU(context.Context) error { return openKVM() }
