package agent

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"math"
	"path"
	"slices"

	"github.com/matchlock/matchlock/api"
	"github.com/matchlock/matchlock/internal/wire"
)

// MaxReadFile is the largest file, in bytes, that ReadFile returns.
const MaxReadFile = 64 << 20

// WriteFile replaces the file at an absolute path of the guest, as Upload does.
func (c *Client) WriteFile(ctx context.Context, path string, content []byte, mode uint32) error {
	return c.Upload(ctx, path, mode, bytes.NewReader(content))
}

// Upload replaces the file at an absolute path of the guest, as its root, by
// what r holds. The file appears whole or not at all: it is written beside its
// place and renamed. Missing parents are made 0755; mode 0 means 0644. A
// symbolic link is replaced, not followed; a folder is never replaced.
func (c *Client) Upload(ctx context.Context, path string, mode uint32, r io.Reader) error {
	if err := checkPath(path); err != nil {
		return err
	}
	var e wire.Encoder
	e.String(path)
	e.Uint32(mode)
	k, release, err := c.request(ctx, requestWrite, e.Encoded())
	if err != nil {
		return err
	}
	defer k.conn.Close()
	defer release()
	buf := make([]byte, chunk)
	for {
		n, readErr := r.Read(buf)
		if n > 0 {
			if k.send(frameData, buf[:n]) != nil {
				break // the guest has given up; its answer says why
			}
		}
		if readErr == io.EOF {
			k.send(frameEnd, nil) // likewise
			break
		}
		if readErr != nil {
			k.abort()
			return readErr
		}
	}
	if err := k.done(); err != nil {
		return cause(ctx, err)
	}
	return nil
}

// MkdirAll makes a folder at an absolute path of the guest, as its root, and
// the parents that are missing, with mode less the guest's umask. A folder that
// is there is left as it is.
func (c *Client) MkdirAll(ctx context.Context, path string, mode uint32) error {
	return c.order(ctx, requestMkdir, path, func(e *wire.Encoder) { e.Uint32(mode) })
}

// Remove removes the file or empty folder at an absolute path of the guest, or,
// if it is to be recursive, whatever is there with all that is below. Then
// nothing there is no error. No symbolic link is followed but those on the way
// to it. The root is not removed: that would be all that is mounted, too.
func (c *Client) Remove(ctx context.Context, name string, recursive bool) error {
	if path.Clean(name) == "/" {
		return fmt.Errorf("remove %q: is the root", name)
	}
	return c.order(ctx, requestRemove, name, func(e *wire.Encoder) { e.Bool(recursive) })
}

// order has the guest do something with a path, whose answer says only that it
// is done.
func (c *Client) order(ctx context.Context, kind byte, path string, more func(*wire.Encoder)) error {
	if err := checkPath(path); err != nil {
		return err
	}
	var e wire.Encoder
	e.String(path)
	more(&e)
	k, release, err := c.request(ctx, kind, e.Encoded())
	if err != nil {
		return err
	}
	defer k.abort()
	defer release()
	if err := k.done(); err != nil {
		return cause(ctx, err)
	}
	return nil
}

// ReadFile returns the content of a regular file of at most MaxReadFile bytes;
// for a larger one the error wraps ErrTooLarge.
func (c *Client) ReadFile(ctx context.Context, path string) ([]byte, error) {
	var content bytes.Buffer
	_, err := c.download(ctx, path, &content, MaxReadFile)
	if err != nil {
		return nil, err
	}
	return content.Bytes(), nil
}

// Download writes the content of a regular file of any size to w.
func (c *Client) Download(ctx context.Context, path string, w io.Writer) (api.FileInfo, error) {
	return c.download(ctx, path, w, math.MaxInt64)
}

func (c *Client) download(ctx context.Context, name string, w io.Writer, limit int64) (api.FileInfo, error) {
	var info api.FileInfo
	if err := checkPath(name); err != nil {
		return info, err
	}
	var e wire.Encoder
	e.String(name)
	e.Uint64(uint64(limit))
	k, release, err := c.request(ctx, requestRead, e.Encoded())
	if err != nil {
		return info, err
	}
	defer k.abort()
	defer release()
	info, err = k.info(name)
	if err != nil {
		return info, cause(ctx, err)
	}
	if info.Size > 0 { // else it is one of those that do not say
		limit = min(limit, info.Size)
	}
	for total := int64(0); ; {
		kind, payload, err := k.next()
		if err != nil {
			return info, cause(ctx, err)
		}
		switch kind {
		case frameEnd:
			return info, nil
		case frameData:
			if total += int64(len(payload)); total > limit {
				return info, fmt.Errorf("file %q: %w", name, ErrTooLarge)
			}
			if _, err := w.Write(payload); err != nil {
				return info, err
			}
		default:
			return info, errGuest
		}
	}
}

// Stat describes the file at path, following symbolic links.
func (c *Client) Stat(ctx context.Context, name string) (api.FileInfo, error) {
	return c.stat(ctx, name, true)
}

// Lstat describes the file at path; of a symbolic link, the link itself.
func (c *Client) Lstat(ctx context.Context, name string) (api.FileInfo, error) {
	return c.stat(ctx, name, false)
}

func (c *Client) stat(ctx context.Context, name string, follow bool) (api.FileInfo, error) {
	if err := checkPath(name); err != nil {
		return api.FileInfo{}, err
	}
	var e wire.Encoder
	e.String(name)
	e.Bool(follow)
	k, release, err := c.request(ctx, requestStat, e.Encoded())
	if err != nil {
		return api.FileInfo{}, err
	}
	defer k.abort()
	defer release()
	info, err := k.info(name)
	if err != nil {
		return api.FileInfo{}, cause(ctx, err)
	}
	return info, nil
}

// info reads the attributes of the file at a path.
func (k *call) info(name string) (api.FileInfo, error) {
	kind, payload, err := k.next()
	if err != nil {
		return api.FileInfo{}, err
	}
	if kind != frameInfo {
		return api.FileInfo{}, errGuest
	}
	d := wire.NewDecoder(payload)
	info := decodeAttributes(d, path.Base(name))
	if d.Done() != nil {
		return api.FileInfo{}, errGuest
	}
	return info, nil
}

// ListFiles returns the entries of a folder in name order, without "." and
// "..". Of a folder that is too large to hold the error wraps ErrTooLarge.
func (c *Client) ListFiles(ctx context.Context, path string) ([]api.FileInfo, error) {
	if err := checkPath(path); err != nil {
		return nil, err
	}
	var e wire.Encoder
	e.String(path)
	k, release, err := c.request(ctx, requestList, e.Encoded())
	if err != nil {
		return nil, err
	}
	defer k.abort()
	defer release()
	files := []api.FileInfo{}
	for total := 0; ; {
		kind, payload, err := k.next()
		if err != nil {
			return nil, cause(ctx, err)
		}
		if kind == frameEnd {
			break
		}
		if kind != frameEntries || len(payload) == 0 {
			return nil, errGuest
		}
		total += len(payload)
		if files, err = appendEntries(files, payload); err != nil {
			return nil, fmt.Errorf("%w: %w", errGuest, err)
		}
		if len(files) > maxListed || total > maxListedBytes {
			return nil, fmt.Errorf("folder %q: %w", path, ErrTooLarge)
		}
	}
	slices.SortFunc(files, func(a, b api.FileInfo) int { return cmp.Compare(a.Name, b.Name) })
	return files, nil
}

func appendEntries(files []api.FileInfo, payload []byte) ([]api.FileInfo, error) {
	d := wire.NewDecoder(payload)
	for d.Err() == nil && d.Left() > 0 {
		files = append(files, decodeEntry(d))
	}
	return files, d.Err()
}
