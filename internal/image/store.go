package image

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/matchlock/matchlock/internal/hostfs"
)

// Store is a folder of images. Any number of goroutines and processes may use one at once; it holds nothing open.
type Store struct {
	dir string

	// What tests change.
	idle  time.Duration // how long a registry's next bytes may take
	pause time.Duration // before the first attempt to go on with a blob; it doubles with each that fails
	hasty bool          // leaves out the syncing, by which what is in the store outlives a power failure
}

const layoutMarker = `{"imageLayoutVersion":"1.0.0"}`

// Open returns the store in dir, which is made if it is missing. It refuses a folder that belongs to another user
// or that others may write.
func Open(dir string) (*Store, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	if err := hostfs.Private(dir); err != nil {
		return nil, fmt.Errorf("image store: %w", err)
	}
	s := &Store{dir: dir, idle: time.Minute, pause: 200 * time.Millisecond}
	for _, sub := range []string{s.path("blobs"), s.path("blobs", "sha256"), s.path("layers"), s.path("verified"), s.path("tmp")} {
		if err := os.Mkdir(sub, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, fmt.Errorf("image store: %w", err)
		}
	}
	if err := s.mark(); err != nil {
		return nil, fmt.Errorf("image store: %w", err)
	}
	return s, nil
}

// mark makes the folder an OCI image layout.
func (s *Store) mark() error {
	if _, err := os.Stat(s.path("oci-layout")); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	lock, err := s.lock(syscall.LOCK_EX)
	if err != nil {
		return err
	}
	defer lock.Close()
	return s.replace("oci-layout", []byte(layoutMarker))
}

func (s *Store) path(elem ...string) string {
	return filepath.Join(append([]string{s.dir}, elem...)...)
}

func (s *Store) blobPath(digest v1.Hash) string     { return s.path("blobs", "sha256", digest.Hex) }
func (s *Store) layerPath(file string) string       { return s.path("layers", file) }
func (s *Store) verifiedPath(digest v1.Hash) string { return s.path("verified", digest.Hex) }

// lock takes the store's lock, syscall.LOCK_SH to read the index and begin leases, LOCK_EX to change the index or
// remove files. Closing the file gives it back. It is never held while data comes from outside.
func (s *Store) lock(how int) (io.Closer, error) {
	return flock(s.path("lock"), os.O_RDWR|os.O_CREATE, how)
}

// flock is hostfs.Lock for what nobody waits for long: the store's lock, and locks that are only tried or not yet shared.
func flock(path string, flags, how int) (*os.File, error) {
	return hostfs.Lock(context.Background(), path, flags, how)
}

// inUse reports whether anyone else holds a lock on the file.
func inUse(path string) (bool, error) {
	f, err := flock(path, os.O_RDONLY, syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	return false, f.Close()
}

// replace writes a small file of the store's top folder as a whole. The caller holds the lock exclusively.
func (s *Store) replace(file string, data []byte) error {
	return s.write(s.path("tmp"), s.path(file), data)
}

// write writes a small file aside, into the folder dir, and gives it the name path when it is whole.
func (s *Store) write(dir, path string, data []byte) error {
	f, err := os.CreateTemp(dir, filepath.Base(path)+"-")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // fails once it is renamed
	_, err = f.Write(data)
	if err := errors.Join(err, s.closeSynced(f)); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// closeSynced closes a file whose content is to outlive a power failure.
func (s *Store) closeSynced(f *os.File) error {
	var err error
	if !s.hasty {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// lockIndex takes the store's lock and reads the index.
func (s *Store) lockIndex(how int) (*v1.IndexManifest, io.Closer, error) {
	lock, err := s.lock(how)
	if err != nil {
		return nil, nil, err
	}
	index, err := s.readIndex()
	if err != nil {
		lock.Close()
		return nil, nil, err
	}
	return index, lock, nil
}

// readIndex returns what is in the store by name. The caller holds the lock.
func (s *Store) readIndex() (*v1.IndexManifest, error) {
	index := &v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex}
	data, err := readBounded(s.path("index.json"), maxIndexBytes)
	if errors.Is(err, fs.ErrNotExist) {
		return index, nil
	}
	if err != nil {
		return nil, fmt.Errorf("image store: %w", err)
	}
	if err := json.Unmarshal(data, index); err != nil {
		return nil, fmt.Errorf("image store: index.json: %w", err)
	}
	return index, nil
}

// writeIndex replaces the index. The caller holds the lock exclusively.
func (s *Store) writeIndex(index *v1.IndexManifest) error {
	data, err := json.MarshalIndent(index, "", "  ")
	if err != nil {
		return err
	}
	return s.replace("index.json", data)
}

// readBounded reads a file of at most limit bytes.
func readBounded(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := readAll(f, limit)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return data, nil
}

// readAll is io.ReadAll for what must not be longer than limit bytes.
func readAll(r io.Reader, limit int64) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err == nil && int64(len(data)) > limit {
		err = fmt.Errorf("more than %d bytes", limit)
	}
	return data, err
}

// session is one writer's folder below tmp/. Its lock says that the writer lives; the folder goes with end.
type session struct {
	*Store
	dir   string
	claim *os.File
}

// begin opens a session, and removes the folders of writers that died.
func (s *Store) begin() (*session, error) {
	// Exclusively, so that no other writer is between the making of its folder and the locking of it.
	lock, err := s.lock(syscall.LOCK_EX)
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	if _, err := s.sweep(); err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(s.path("tmp"), "")
	if err != nil {
		return nil, err
	}
	held, err := flock(dir, os.O_RDONLY, syscall.LOCK_EX)
	if err != nil {
		return nil, errors.Join(err, os.Remove(dir))
	}
	return &session{Store: s, dir: dir, claim: held}, nil
}

// sweep removes what dead writers left and returns how many bytes that were. The caller holds the lock exclusively.
func (s *Store) sweep() (freed int64, err error) {
	entries, err := os.ReadDir(s.path("tmp"))
	if err != nil {
		return 0, err
	}
	for _, entry := range entries {
		dir := s.path("tmp", entry.Name())
		if busy, err := inUse(dir); err != nil || busy {
			continue // in use, or gone this moment because its writer has ended
		}
		freed += diskUse(dir)
		if err := os.RemoveAll(dir); err != nil {
			return freed, err
		}
	}
	return freed, nil
}

func (w *session) end() {
	os.RemoveAll(w.dir) // what cannot be removed now, the next sweep finds
	w.claim.Close()
}

func (w *session) create(pattern string) (*os.File, error) {
	return os.CreateTemp(w.dir, pattern)
}

// putBlob stores a small blob.
func (w *session) putBlob(data []byte, mediaType types.MediaType) (v1.Descriptor, error) {
	desc := descriptorOf(data, mediaType)
	if old, err := readBounded(w.blobPath(desc.Digest), desc.Size); err == nil && bytes.Equal(old, data) {
		return desc, nil
	}
	return desc, w.write(w.dir, w.blobPath(desc.Digest), data)
}

func descriptorOf(data []byte, mediaType types.MediaType) v1.Descriptor {
	sum := sha256.Sum256(data)
	return v1.Descriptor{
		MediaType: mediaType,
		Size:      int64(len(data)),
		Digest:    v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(sum[:])},
	}
}

// diskUse sums the sizes of all regular files below a path. What cannot be read counts nothing.
func diskUse(path string) (n int64) {
	filepath.WalkDir(path, func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil
		}
		if info, err := d.Info(); err == nil && info.Mode().IsRegular() {
			n += info.Size()
		}
		return nil
	})
	return n
}
