package sandbox

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/matchlock/matchlock/api"
	"github.com/matchlock/matchlock/internal/fuse"
	"github.com/matchlock/matchlock/internal/hostfs"
	"github.com/matchlock/matchlock/internal/machine"
	"github.com/matchlock/matchlock/internal/workspace"
)

// files are what of the host's files the guest has: trees, joined to one, and who
// answers its questions about them.
type files struct {
	trees  []tree // in the guest's order
	server *fuse.Server

	applying sync.Mutex // held while an overlay changes by what is not the guest

	serving sync.WaitGroup // until the machine has ended
}

// tree is one of them.
type tree struct {
	savedPlace
	source  string             // the path on the host; empty: there is none
	memory  *workspace.Memory  // nil: it is not in memory
	overlay *workspace.Overlay // nil: it is none
	dir     string             // of the overlay, in the sandbox's folder
}

// savedPlace is where a tree is in the guest, and what it is. It stays as it is in what
// goes on from the sandbox.
type savedPlace struct {
	Target string        `json:"target"`
	Mode   api.MountMode `json:"mode"`
	File   bool          `json:"file,omitempty"` // else a folder
}

// fileServer is a machine whose guest can be offered files of the host.
type fileServer interface {
	ServeFiles(serve func(conn net.Conn, memory machine.Memory))
}

const (
	// attrValid is how long the guest may believe what it knows of a file that others may
	// change: they are seen within a second.
	attrValid = 900 * time.Millisecond
	// ownValid is the same where nobody else does.
	ownValid = time.Hour
)

// overlaysName is the folder, in a sandbox's, of what it has changed in overlays.
const overlaysName = "overlays"

// openFiles opens what is to be mounted: what the configuration says or, of a sandbox
// that goes on from another, what that had.
func (s *supervisor) openFiles() (err error) {
	var places []savedPlace
	var from *bundle
	if s.origin != nil {
		places = s.origin.record.Places
		if f := s.origin.machine.Files; f != nil && len(places) > 0 {
			if from, err = openBundle(f); err != nil {
				return err
			}
		}
	} else {
		for _, m := range withoutVolumes(s.config.Mounts) {
			places = append(places, savedPlace{Target: path.Clean(m.Target), Mode: m.Mode})
		}
	}
	if len(places) == 0 {
		return nil
	}
	f := &files{}
	var mounted []workspace.Mounted
	defer func() {
		if err != nil {
			for _, m := range mounted {
				err = errors.Join(err, m.FS.Close())
			}
		}
	}()
	for i, p := range places {
		t := tree{savedPlace: p}
		offered, err := s.openTree(&t, i, from)
		if err != nil {
			return fmt.Errorf("mount at %s: %w", t.Target, err)
		}
		mounted = append(mounted, workspace.Mounted{Name: strconv.Itoa(i), FS: offered})
		f.trees = append(f.trees, t)
	}
	router, err := workspace.NewRouter(mounted)
	if err != nil {
		return err
	}
	open, _ := descriptors()
	options := fuse.Options{Valid: attrValid, MaxNodes: maxNodes(s.config.Memory), MaxOpen: open}
	switch {
	case s.config.Coherent:
		options.Valid = 0
	case !slices.ContainsFunc(f.trees, func(t tree) bool { return t.Mode != api.MountMemory }):
		options.Valid = ownValid
	}
	f.server = fuse.NewServer(router, options)
	mounted = nil // are the server's
	if from != nil {
		if err := f.server.Load(from.open("nodes")); err != nil {
			return errors.Join(err, f.server.Close())
		}
	}
	s.files = f
	s.unwind.push(f.close)
	return nil
}

// checkReach makes sure that no socket and no disk lies in a folder that the guest may
// write to: a link in its place would have the guest reach another one of this host, a
// socket at its next connection.
func checkReach(c *api.Config) error {
	given := map[string]string{}
	for _, k := range c.Sockets {
		given[k.Host] = "socket"
	}
	for _, d := range c.Disks {
		given[d.File] = "disk"
	}
	var errs []error
	for _, m := range withoutVolumes(c.Mounts) {
		if m.Mode != api.MountReadWrite {
			continue
		}
		below := strings.TrimSuffix(m.Source, "/") + "/"
		for _, file := range slices.Sorted(maps.Keys(given)) {
			real := file
			if dir, err := filepath.EvalSymlinks(filepath.Dir(file)); err == nil {
				real = filepath.Join(dir, filepath.Base(file))
			}
			if strings.HasPrefix(file, below) || strings.HasPrefix(real, below) {
				errs = append(errs, &hintError{fmt.Errorf("%s %q: it lies in %s, where the sandbox could put a link to another one", given[file], file, m.Source),
					"move it out of there, or mount that with :ro or :overlay"})
			}
		}
	}
	return errors.Join(errs...)
}

// maxNodes is how many files a guest with so much memory can know: its kernel needs
// about a KiB for each.
func maxNodes(memory int64) int { return int(max(memory>>10, 64<<10)) }

// openTree opens what is to be at a place, the i-th.
func (s *supervisor) openTree(t *tree, i int, from *bundle) (workspace.FS, error) {
	at := slices.IndexFunc(s.config.Mounts, func(m api.Mount) bool { return !m.IsVolume() && path.Clean(m.Target) == t.Target })
	if at < 0 {
		return workspace.NewMissing(), nil // of a snapshot that came from elsewhere
	}
	m := s.config.Mounts[at]
	t.source = m.Source
	owner := workspace.Owner{UID: workspace.AnyOwner, GID: workspace.AnyOwner}
	if m.UID != nil {
		owner.UID = *m.UID
	}
	if m.GID != nil {
		owner.GID = *m.GID
	}
	var offered workspace.FS
	switch m.Mode {
	case api.MountMemory:
		t.memory = workspace.NewMemory(workspace.MemoryOptions{Owner: owner, Quota: m.Quota})
		if from != nil {
			if err := t.memory.Import(from.open(strconv.Itoa(i) + ".memory")); err != nil {
				return nil, err
			}
		}
		offered = t.memory
	default:
		info, err := os.Stat(m.Source)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", m.Source, pathless(err))
		}
		if s.origin == nil {
			t.File = !info.IsDir()
		} else if t.File == info.IsDir() {
			return nil, fmt.Errorf("%s: a folder in the place of a file, or a file in that of a folder", m.Source)
		}
		options := workspace.HostOptions{ReadOnly: m.Mode != api.MountReadWrite, Owner: owner, Exact: true}
		if m.Mode == api.MountReadWrite {
			options.Quota = m.Quota
		}
		if offered, err = workspace.OpenHost(m.Source, options); err != nil {
			return nil, err
		}
		if m.Mode == api.MountOverlay {
			overlay, err := s.openOverlay(t, i, from, offered, &m)
			if err != nil {
				return nil, errors.Join(err, offered.Close())
			}
			offered = overlay
		}
	}
	filtered, err := workspace.NewFilter(offered, m.Hide, m.Protect)
	if err == nil {
		offered = filtered
		var judged workspace.FS
		if judged, err = s.judge(t.Target, offered); err == nil {
			return judged, nil
		}
	}
	return nil, errors.Join(err, offered.Close())
}

// judge has what is done with a tree be judged, and told, where that is asked for.
func (s *supervisor) judge(target string, offered workspace.FS) (workspace.FS, error) {
	o := workspace.HookOptions{Rules: s.config.FileRules}
	for _, h := range s.options.FileHooks {
		if h.Mount == "" || path.Clean(h.Mount) == target {
			o.Hooks = append(o.Hooks, h.hook())
		}
	}
	if len(o.Rules)+len(o.Hooks) == 0 && !s.config.FileEvents {
		return offered, nil
	}
	if s.events != nil { // else it does not run: somebody looks at its overlay
		o.Events = func(e api.FileEvent) {
			if e.Verdict != api.Denied && !s.config.FileEvents {
				return
			}
			event := api.Event{Time: e.Time, Kind: api.EventFile, Op: e.Op, Path: path.Join(target, e.Path), Verdict: e.Verdict, Rule: e.Rule, Reason: e.Reason}
			if e.NewPath != "" {
				event.NewPath = path.Join(target, e.NewPath)
			}
			s.events.add(event)
		}
	}
	return workspace.NewHooks(offered, o)
}

// overlayName is the name of an overlay's folder. It goes by the place alone: in what
// goes on from a sandbox, mounts may come in another order, and some be missing.
func overlayName(target string) string {
	sum := sha256.Sum256([]byte(target))
	return hex.EncodeToString(sum[:8])
}

// openOverlay lays what the guest changes over a tree. It is in the sandbox's folder,
// and stays there when it is stopped.
func (s *supervisor) openOverlay(t *tree, i int, from *bundle, lower workspace.FS, m *api.Mount) (workspace.FS, error) {
	t.dir = s.dir.Path(overlaysName, overlayName(t.Target))
	if err := hostfs.Private(filepath.Dir(t.dir)); err != nil {
		return nil, err
	}
	if from != nil {
		for _, dir := range []string{t.dir, filepath.Join(t.dir, "data")} {
			if err := os.Mkdir(dir, 0o700); err != nil {
				return nil, err
			}
		}
		prefix := strconv.Itoa(i) + "/"
		err := from.extract(func(name string) string {
			if rest, ok := strings.CutPrefix(name, prefix); ok {
				return filepath.Join(t.dir, rest)
			}
			return ""
		})
		if err != nil {
			return nil, err
		}
	}
	var err error
	t.overlay, err = workspace.OpenOverlay(lower, t.dir, workspace.OverlayOptions{
		Quota: m.Quota, Kept: slices.Concat(m.Hide, m.Protect), Name: filepath.Base(m.Source),
	})
	return t.overlay, err
}

// mounts are where in the guest they are.
func (f *files) mounts() (mounts []api.GuestMount) {
	if f == nil {
		return nil
	}
	for _, t := range f.trees {
		mounts = append(mounts, api.GuestMount{Path: t.Target, File: t.File, ReadOnly: t.Mode == api.MountReadOnly})
	}
	return mounts
}

// places are what stays of them in what goes on from the sandbox.
func (f *files) places() (places []savedPlace) {
	if f == nil {
		return nil
	}
	for _, t := range f.trees {
		places = append(places, t.savedPlace)
	}
	return places
}

// save writes what the guest knows of its files, and those that are only its own. The
// guest stands still.
func (f *files) save(to *os.File) error {
	if !f.applying.TryLock() { // it may take long, and the guest would stand still
		return errors.New("its workspace is being applied or discarded")
	}
	defer f.applying.Unlock()
	b := &bundle{file: to}
	if err := b.addFrom("nodes", f.server.Save); err != nil {
		return err
	}
	for i, t := range f.trees {
		name := strconv.Itoa(i)
		var err error
		switch {
		case t.memory != nil:
			err = b.addFrom(name+".memory", t.memory.Export)
		case t.overlay != nil:
			err = addOverlay(b, name, t.dir)
		}
		if err != nil {
			return fmt.Errorf("mount at %s: %w", t.Target, err)
		}
	}
	return b.finish()
}

// addOverlay adds the files of an overlay.
func addOverlay(b *bundle, name, dir string) error {
	entries, err := os.ReadDir(filepath.Join(dir, "data"))
	if err != nil {
		return err
	}
	names := []string{"journal"}
	for _, e := range entries {
		names = append(names, "data/"+e.Name())
	}
	for _, n := range names {
		f, err := os.Open(filepath.Join(dir, n))
		if err == nil {
			err = errors.Join(b.add(name+"/"+n, f), f.Close())
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (f *files) close() error {
	f.serving.Wait()
	return f.server.Close()
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
