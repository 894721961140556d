package hostfs

import (
	"context"
	"io/fs"
	"os"
	"syscall"
	"time"
)

// lockPause is how long a wait that can be cancelled lets pass before it asks again.
const lockPause = 5 * time.Millisecond

// Lock opens a file, with flags and, should they make it, mode 0600, or a folder, and locks it as flock(2) does: how is
// LOCK_SH or LOCK_EX of package syscall. Closing the file gives the lock back; so does the end of the process, unless a
// child has inherited the file.
//
// Lock waits for whoever holds the lock until ctx ends, and then returns its cause. With LOCK_NB it waits for nobody: a
// lock that is held is the error syscall.EWOULDBLOCK, wrapped.
func Lock(ctx context.Context, path string, flags, how int) (*os.File, error) {
	f, err := os.OpenFile(path, flags, 0o600)
	if err != nil {
		return nil, err
	}
	if err := lock(ctx, f, how); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func lock(ctx context.Context, f *os.File, how int) error {
	wait := how&syscall.LOCK_NB == 0
	if ctx.Done() != nil {
		how |= syscall.LOCK_NB // a wait in the kernel could not be cancelled
	}
	for {
		err := syscall.Flock(int(f.Fd()), how)
		switch {
		case err == nil:
			return nil
		case err == syscall.EINTR:
		case err == syscall.EWOULDBLOCK && wait:
			select {
			case <-time.After(lockPause):
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		default:
			return &fs.PathError{Op: "flock", Path: f.Name(), Err: err}
		}
	}
}
