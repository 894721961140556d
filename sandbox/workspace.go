package sandbox

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/matchlock/matchlock/api"
	"github.com/matchlock/matchlock/internal/fuse"
	"github.com/matchlock/matchlock/internal/machine"
	"github.com/matchlock/matchlock/internal/workspace"
)

// files are what of the host's files the guest has: trees, joined to one, and who
// answers its questions about them.
type files struct {
	mounts []api.GuestMount // in the order of the trees
	server *fuse.Server

	serving sync.WaitGroup // until the machine has ended
}

// places are where in the guest they are.
func (f *files) places() []api.GuestMount {
	if f == nil {
		return nil
	}
	return f.mounts
}

func (f *files) close() error {
	f.serving.Wait()
	return f.server.Close()
}

// fileServer is a machine whose guest can be offered files of the host.
type fileServer interface {
	ServeFiles(serve func(conn net.Conn, memory machine.Memory))
}

// attrValid is how long the guest may believe what it knows of a file that others may
// change: they are seen within a second.
const attrValid = time.Second

// openFiles opens what is to be mounted.
func (s *supervisor) openFiles() (err error) {
	var mounted []workspace.Mounted
	f := &files{}
	defer func() {
		if err != nil {
			for _, m := range mounted {
				err = errors.Join(err, m.FS.Close())
			}
		}
	}()
	for _, m := range s.config.Mounts {
		if m.IsVolume() {
			continue
		}
		tree, isFile, err := s.openTree(m)
		if err != nil {
			return fmt.Errorf("mount %q: %w", m.Source, err)
		}
		mounted = append(mounted, workspace.Mounted{Name: strconv.Itoa(len(mounted)), FS: tree})
		f.mounts = append(f.mounts, api.GuestMount{Path: m.Target, File: isFile, ReadOnly: m.Mode == api.MountReadOnly})
	}
	if len(mounted) == 0 {
		return nil
	}
	router, err := workspace.NewRouter(mounted)
	if err != nil {
		return err
	}
	options := fuse.Options{Valid: attrValid, Logger: s.log}
	if s.config.Coherent {
		options.Valid = 0
	}
	f.server = fuse.NewServer(router, options)
	s.files = f
	s.unwind.push(f.close)
	return nil
}

// openTree opens what a mount names.
func (s *supervisor) openTree(m api.Mount) (tree workspace.FS, isFile bool, err error) {
	owner := workspace.Owner{UID: workspace.AnyOwner, GID: workspace.AnyOwner}
	if m.UID != nil {
		owner.UID = *m.UID
	}
	if m.GID != nil {
		owner.GID = *m.GID
	}
	info, err := os.Stat(m.Source)
	if err != nil {
		return nil, false, err
	}
	tree, err = workspace.OpenHost(m.Source, workspace.HostOptions{ReadOnly: m.Mode == api.MountReadOnly, Owner: owner, Quota: m.Quota})
	return tree, !info.IsDir(), err
}

// attachFiles has the guest's questions answered from the machine's start on.
func (s *supervisor) attachFiles() error {
	if s.files == nil {
		return nil
	}
	m, ok := s.guest().(fileServer)
	if !ok {
		return fmt.Errorf("mounts: %w", errors.ErrUnsupported)
	}
	m.ServeFiles(func(conn net.Conn, memory machine.Memory) {
		s.files.serving.Go(func() {
			if err := s.files.server.Serve(context.Background(), conn, memory); err != nil {
				s.log.Error("the guest's files are gone", "error", err)
			}
		})
	})
	return nil
}
