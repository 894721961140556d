package boot

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
)

const (
	maxDebTree    = 2 << 30 // bytes that a package may unpack to
	maxDebEntries = 200_000
)

// debWanted are the files of a kernel package that we use.
var debWanted = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^(boot/(vmlinu[xz]|config)-[^/]+|lib/modules/[^/]+/(modules\.builtin|(.*/)?[^/]+\.ko(\.xz|\.zst|\.gz)?))$`)
})

// unpackDeb lays the wanted files of a Debian package into root (deb(5)).
func unpackDeb(r io.Reader, root *os.Root) error {
	data, err := openDeb(r)
	if err != nil {
		return err
	}
	defer data.Close()
	archive := tar.NewReader(data)
	left := int64(maxDebTree)
	for range maxDebEntries {
		h, err := archive.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		name := path.Clean(h.Name)
		name = strings.TrimPrefix(name, "usr/") // where Debian 13 has lib/modules
		if h.Typeflag != tar.TypeReg || !filepath.IsLocal(name) || !debWanted().MatchString(name) {
			continue
		}
		if left -= h.Size; left < 0 {
			return fmt.Errorf("more than %d bytes", maxDebTree)
		}
		if err := unpackFile(root, name, archive); err != nil {
			return fmt.Errorf("entry %q: %w", h.Name, err)
		}
	}
	return fmt.Errorf("more than %d entries", maxDebEntries)
}

func unpackFile(root *os.Root, name string, r io.Reader) error {
	if err := root.MkdirAll(path.Dir(name), 0o700); err != nil {
		return err
	}
	f, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, r)
	if e := f.Close(); err == nil {
		err = e
	}
	return err
}

// openDeb returns the tar of files in a package: an ar archive of debian-binary, control.tar.* and data.tar.*.
func openDeb(r io.Reader) (io.ReadCloser, error) {
	magic := make([]byte, 8)
	if _, err := io.ReadFull(r, magic); err != nil || string(magic) != "!<arch>\n" {
		return nil, errors.New("not a Debian package")
	}
	for range 16 { // there are three members
		head := make([]byte, 60)
		if _, err := io.ReadFull(r, head); err != nil {
			return nil, fmt.Errorf("no data in package: %w", err)
		}
		size, err := strconv.ParseInt(strings.TrimRight(string(head[48:58]), " "), 10, 64)
		if err != nil || size < 0 || string(head[58:]) != "`\n" {
			return nil, errors.New("bad header in package")
		}
		if strings.HasPrefix(string(head), "data.tar") {
			return decompress(io.LimitReader(r, size))
		}
		if _, err := io.CopyN(io.Discard, r, size+size&1); err != nil {
			return nil, fmt.Errorf("no data in package: %w", err)
		}
	}
	return nil, errors.New("no data in package")
}
