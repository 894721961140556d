package qemu

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"syscall"
)

// What is remembered between starts lies in small JSON files of the cache
// directory. Losing one costs milliseconds, so no fault of theirs is ever an
// error of a start.

const maxCacheFile = 64 << 10

// readCache decodes a file into v. When it fails v means nothing.
func readCache(path string, v any) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxCacheFile))
	if err != nil {
		return err
	}
	return json.Unmarshal(data, v)
}

// writeCache replaces a file as a whole; readers see the old or the new one.
func writeCache(path string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*") // 0600
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		os.Remove(f.Name()) // the first error tells more
	}
	return err
}

// lockCache keeps other processes from changing what is remembered in dir,
// which it makes when missing. It is held for the time of a few file operations.
func lockCache(dir string) (unlock func(), err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(dir, "host.lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		f.Close()
		return nil, err
	}
	return func() { f.Close() }, nil
}
