package hostfs

import "syscall"

// changeTime is when a file's content or attributes were last changed, in nanoseconds of Unix time.
func changeTime(st *syscall.Stat_t) int64 { return st.Ctim.Nano() }
