package sandbox

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/matchlock/matchlock/api"
	"github.com/matchlock/matchlock/internal/hostfs"
	"github.com/matchlock/matchlock/internal/state"
	"github.com/matchlock/matchlock/internal/workspace"
	"github.com/matchlock/matchlock/vm"
)

// sandboxWithFiles is a sandbox that has folders of the host, and no machine. from is nil
// or what it goes on from.
func sandboxWithFiles(t *testing.T, home state.Home, from *Saved, mounts ...api.Mount) *supervisor {
	t.Helper()
	s := newSupervisor(Options{}, api.Config{Image: "x", Mounts: mounts})
	var err error
	if s.dir, err = state.Create(t.Context(), home.Sandboxes(), state.Record{}); err != nil {
		t.Fatal(err)
	}
	must(t, hostfs.WriteRecord(s.dir.Path(configName), s.config))
	if from != nil {
		s.origin = &origin{Saved: from}
	}
	if err := s.openFiles(); err != nil {
		t.Fatal(err)
	}
	return s
}

// at is the tree of a place.
func (f *files) at(t *testing.T, target string) tree {
	t.Helper()
	for _, tree := range f.trees {
		if tree.Target == target {
			return tree
		}
	}
	t.Fatalf("there is nothing at %s", target)
	return tree{}
}

func write(t *testing.T, fs workspace.FS, path, text string) {
	t.Helper()
	f, err := fs.Create(path, 0o644, workspace.Owner{})
	must(t, err)
	_, err = f.WriteAt([]byte(text), 0)
	must(t, err, f.Close())
}

// savedFiles is what goes on from a sandbox, its machine aside.
func savedFiles(t *testing.T, f *files) *Saved {
	t.Helper()
	to, err := os.Create(filepath.Join(t.TempDir(), "files"))
	must(t, err, f.save(to))
	t.Cleanup(func() { to.Close() })
	return &Saved{record: savedRecord{Places: f.places()}, machine: &vm.Snapshot{Files: to}}
}

// What a sandbox changed in a folder stays with that folder, in whatever order its copy
// is given them.
func TestOverlaysInAnotherOrder(t *testing.T) {
	root := t.TempDir()
	home, err := state.At(root)
	must(t, err, home.Open())
	a := api.Mount{Source: t.TempDir(), Target: "/a", Mode: api.MountOverlay}
	b := api.Mount{Source: t.TempDir(), Target: "/b", Mode: api.MountOverlay}
	first := sandboxWithFiles(t, home, nil, a, b)
	write(t, first.files.at(t, "/a").overlay, "of-a", "a")
	write(t, first.files.at(t, "/b").overlay, "of-b", "b")
	saved := savedFiles(t, first.files)
	must(t, first.files.close(), first.dir.Close())

	for name, mounts := range map[string][]api.Mount{"reversed": {b, a}, "one": {b}} {
		s := sandboxWithFiles(t, home, saved, mounts...)
		id := s.dir.Record().ID
		must(t, s.files.close(), s.dir.Update(func(r *state.Record) { r.Status = api.StatusStopped }), s.dir.Close())
		changes, err := Options{Home: root}.Overlay(id, "/b").Changes(t.Context())
		must(t, err)
		if len(changes) != 1 || changes[0].Path != "of-b" {
			t.Errorf("%s: changed is %v, want of-b alone", name, changes)
		}
	}
}

// A guest that may write to a folder leads no other mount out of it, by a link in the
// place of what the other one is of, when that is opened again.
func TestMountsInMounts(t *testing.T) {
	root := t.TempDir()
	home, err := state.At(root)
	must(t, err, home.Open())
	out, in := t.TempDir(), t.TempDir()
	must(t, os.WriteFile(filepath.Join(out, "file"), []byte("secret"), 0o600), os.WriteFile(filepath.Join(in, ".env"), nil, 0o600), os.Mkdir(filepath.Join(in, "dir"), 0o700))
	must(t, os.Symlink(in, out+"/link"))
	config, err := withWholePaths(api.Config{Image: "x", Mounts: []api.Mount{
		{Source: out + "/link", Target: "/in", Mode: api.MountReadWrite},
		{Source: out + "/link/.env", Target: "/in/.env", Mode: api.MountReadOnly},
		{Source: out + "/link/dir", Target: "/dir", Mode: api.MountOverlay},
	}}, nil)
	must(t, err)
	s := sandboxWithFiles(t, home, nil, config.Mounts...)
	saved := savedFiles(t, s.files)
	saved.record.Config = config
	must(t, s.files.close(), s.dir.Close())

	for name, to := range map[string]string{".env": out + "/file", "dir": out} {
		place := filepath.Join(in, name)
		must(t, os.Rename(place, place+".was"), os.Symlink(to, place))
		again, err := withWholePaths(saved.Config(), saved.record.Config.Mounts)
		must(t, err)
		k := newSupervisor(Options{}, again)
		k.dir, err = state.Create(t.Context(), home.Sandboxes(), state.Record{})
		must(t, err)
		k.origin = &origin{Saved: saved}
		if err := k.openFiles(); err == nil {
			t.Errorf("%s: a link out of the folder was followed", name)
			must(t, k.files.close())
		}
		must(t, k.dir.Close(), os.Remove(place), os.Rename(place+".was", place))
	}
}

// What a guest could put a link in the place of is no socket and no disk.
func TestCheckReach(t *testing.T) {
	dir := t.TempDir()
	inside, link := filepath.Join(dir, "in"), filepath.Join(dir, "link")
	must(t, os.Mkdir(inside, 0o700), os.Symlink(inside, link))
	for file, fine := range map[string]bool{
		inside + "/sub/x": false, link + "/x": false, dir + "/x": true, dir + "/inside": true,
	} {
		for _, mode := range []api.MountMode{api.MountReadWrite, api.MountReadOnly, api.MountOverlay} {
			mounts := []api.Mount{{Source: inside, Target: "/in", Mode: mode}}
			for _, c := range []api.Config{
				{Mounts: mounts, Sockets: []api.Socket{{Host: file, Guest: "/s"}}},
				{Mounts: mounts, Disks: []api.Disk{{File: file, Mount: "/d"}}},
			} {
				if err := checkReach(&c); (err == nil) != (fine || mode != api.MountReadWrite) {
					t.Errorf("%s beside %s, which is %s: %v", file, inside, mode, err)
				}
			}
		}
	}
}
