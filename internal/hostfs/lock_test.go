package hostfs

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
)

func TestLock(t *testing.T) {
	const (
		shared, exclusive = syscall.LOCK_SH, syscall.LOCK_EX

		none = 0
	)
	for _, tt := range []struct {
		name      string
		held, how int
		free      bool
	}{
		{"nobody holds it", none, exclusive, true},
		{"shared by two", shared, shared, true},
		{"shared and exclusive", shared, exclusive, false},
		{"exclusive and shared", exclusive, shared, false},
		{"exclusive twice", exclusive, exclusive, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "lock")
			// The lock is per open file, so that one process excludes itself as it would another.
			if tt.held != none {
				defer mustLock(t, file, tt.held).Close()
			}
			f, err := Lock(t.Context(), file, os.O_RDWR|os.O_CREATE, tt.how|syscall.LOCK_NB)
			if tt.free {
				must(t, err, f.Close())
			} else if !errors.Is(err, syscall.EWOULDBLOCK) {
				t.Errorf("Lock of what is held = %v, want EWOULDBLOCK", err)
			}
		})
	}
}

func TestLockOpens(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "lock")
	if _, err := Lock(t.Context(), file, os.O_RDONLY, syscall.LOCK_SH); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Lock of what is not there = %v, want %v", err, fs.ErrNotExist)
	}
	must(t, mustLock(t, file, syscall.LOCK_EX).Close())
	info, err := os.Stat(file)
	must(t, err)
	if info.Mode() != 0o600 {
		t.Errorf("the file made has mode %v, want -rw-------", info.Mode())
	}
	folder, err := Lock(t.Context(), dir, os.O_RDONLY, syscall.LOCK_EX)
	must(t, err)
	must(t, folder.Close())
}

// Those who want a lock at once have it one after the other, whether their waits can be cancelled or not.
func TestLockExcludes(t *testing.T) {
	file := filepath.Join(t.TempDir(), "lock")
	var all sync.WaitGroup
	var inside atomic.Int32
	for _, ctx := range []context.Context{t.Context(), t.Context(), context.Background(), context.Background()} {
		all.Go(func() {
			for range 25 {
				f, err := Lock(ctx, file, os.O_RDWR|os.O_CREATE, syscall.LOCK_EX)
				if err != nil {
					t.Error(err)
					return
				}
				if n := inside.Add(1); n != 1 {
					t.Errorf("%d have the lock", n)
				}
				runtime.Gosched()
				inside.Add(-1)
				f.Close()
			}
		})
	}
	all.Wait()
}

func TestLockCancelled(t *testing.T) {
	file := filepath.Join(t.TempDir(), "lock")
	defer mustLock(t, file, syscall.LOCK_EX).Close()
	cause := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	got := make(chan error)
	go func() {
		_, err := Lock(ctx, file, os.O_RDWR, syscall.LOCK_SH)
		got <- err
	}()
	cancel(cause)
	if err := <-got; err != cause {
		t.Errorf("Lock = %v, want the cause of the cancelling", err)
	}
}

func mustLock(t *testing.T, path string, how int) *os.File {
	t.Helper()
	f, err := Lock(t.Context(), path, os.O_RDWR|os.O_CREATE, how)
	must(t, err)
	return f
}
