//go:build !linux

package hostfs

import "syscall"

func changeTime(*syscall.Stat_t) int64 { return 0 }
