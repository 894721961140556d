package sandbox

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"
	"math"
	"path"
	"slices"
	"strings"

	"github.com/matchlock/matchlock/internal/agent"
	"github.com/matchlock/matchlock/vm"
)

const (
	// maxUnsized is the most that a file may hold which does not say how much it
	// does, to be put into a tar: that wants to know beforehand.
	maxUnsized = 1 << 20

	// maxTarFolders is the number of folders that a tar may have: each is kept
	// until its end, for then it gets its time and mode.
	maxTarFolders = 1 << 18
)

// TarOut writes a file of the guest, or a folder with all that is in it, to w
// as a tar archive (PAX). The names in it begin with the file's own, or "." for a
// path that ends in "/."; owners are the guest's numbers. Files that are neither
// folder, regular file nor symbolic link are left out; when all else is
// written the error is a *SkippedError.
func (f *FS) TarOut(ctx context.Context, guestPath string, w io.Writer) error {
	archive := tar.NewWriter(w)
	top := sourceName(guestPath)
	var skipped SkippedError
	err := f.client.ReadTree(ctx, guestPath, false, func(n agent.Node, r io.Reader) error {
		h := tarHeader(top, n)
		if h == nil {
			skipped.add(path.Join(guestPath, n.Path))
			return nil
		}
		if h.Typeflag == tar.TypeReg && h.Size == 0 {
			content, err := io.ReadAll(io.LimitReader(r, maxUnsized+1))
			if err != nil {
				return err
			}
			if len(content) > maxUnsized {
				return fmt.Errorf("%q does not say how much it holds: %w", path.Join(guestPath, n.Path), vm.ErrTooLarge)
			}
			h.Size, r = int64(len(content)), bytes.NewReader(content)
		}
		if err := archive.WriteHeader(h); err != nil {
			return err
		}
		_, err := io.Copy(archive, r)
		return err
	})
	if err == nil {
		err = archive.Close()
	}
	return skipped.after(pathError("tar", guestPath, err))
}

// tarHeader is a node's header in a tar whose names begin with top; nil: it has none.
func tarHeader(top string, n agent.Node) *tar.Header {
	h := &tar.Header{
		Format:  tar.FormatPAX,
		Name:    path.Join(top, n.Path),
		Mode:    int64(n.Mode & modeAll),
		Uid:     int(n.UID),
		Gid:     int(n.GID),
		ModTime: n.ModTime,
	}
	switch mode := fileMode(n.Mode); {
	case mode.IsDir():
		h.Typeflag, h.Name = tar.TypeDir, h.Name+"/"
	case n.Link != "":
		h.Typeflag, h.Linkname = tar.TypeLink, path.Join(top, n.Link)
	case mode.IsRegular():
		h.Typeflag, h.Size = tar.TypeReg, n.Size
	case mode.Type() == fs.ModeSymlink:
		h.Typeflag, h.Linkname = tar.TypeSymlink, n.Target
	default:
		return nil
	}
	return h
}

// TarIn extracts the tar archive in r into a folder of the guest that is there
// already. Owners, modes and times are the archive's; xattrs are not kept. What
// is in the way is replaced, but a folder never; one that is there gets what the
// archive says of it. A name that leads out of the folder is an error, and
// no symbolic link below it is followed: in the place of a folder it is one too.
//
// Devices, fifos and types that are not known are left out; when all else is
// extracted the error is a *SkippedError. Any other error leaves what was
// extracted before it.
func (f *FS) TarIn(ctx context.Context, r io.Reader, guestDir string) error {
	archive := tar.NewReader(r)
	var skipped SkippedError
	err := f.client.WriteTree(ctx, guestDir, func(put func(agent.Node, io.Reader) error) error {
		var folders []agent.Node
		for {
			h, err := archive.Next()
			if err == io.EOF {
				break
			}
			if err != nil {
				return fmt.Errorf("archive: %w", err)
			}
			n, err := tarNode(h)
			if err != nil {
				return fmt.Errorf("entry %q: %w", h.Name, err)
			}
			switch {
			case n.Mode&modeType == 0 && h.Typeflag != tar.TypeXGlobalHeader:
				skipped.add(h.Name)
				continue
			case n.Mode&modeType == 0, n.Path == ".":
				continue
			case n.Mode&modeType == modeDir:
				if len(folders) == maxTarFolders {
					return fmt.Errorf("more than %d folders: %w", maxTarFolders, vm.ErrTooLarge)
				}
				folders = append(folders, n)
				n.Mode |= 0o700 // as long as files are made in it
			}
			if err := put(n, archive); err != nil {
				return err
			}
		}
		for _, n := range slices.Backward(folders) {
			if err := put(n, nil); err != nil {
				return err
			}
		}
		return nil
	})
	return skipped.after(pathError("untar", guestDir, err))
}

// tarNode is the file that an entry of a tar stands for. It has no type when
// that is none of ours.
func tarNode(h *tar.Header) (n agent.Node, err error) {
	if n.Path, err = tarName(h.Name); err != nil {
		return n, err
	}
	if min(h.Uid, h.Gid) < 0 || max(h.Uid, h.Gid) > math.MaxUint32 {
		return n, fmt.Errorf("owner %d:%d: no such", h.Uid, h.Gid)
	}
	n.Mode, n.UID, n.GID, n.ModTime = uint32(h.Mode&modeAll), uint32(h.Uid), uint32(h.Gid), h.ModTime
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeCont, tar.TypeGNUSparse:
		n.Mode |= modeRegular
	case tar.TypeLink:
		n.Mode |= modeRegular
		n.Link, err = tarName(h.Linkname)
	case tar.TypeDir:
		n.Mode |= modeDir
	case tar.TypeSymlink:
		n.Mode |= modeSymlink
		n.Target = h.Linkname
	}
	return n, err
}

// tarName is a name in a tar as a path below the folder where it is extracted.
func tarName(name string) (string, error) {
	p := path.Clean(name)
	if path.IsAbs(p) || p == ".." || strings.HasPrefix(p, "../") {
		return "", fmt.Errorf("%q leads out of the folder", name)
	}
	return p, nil
}
