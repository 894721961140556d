package state

import (
	"errors"
	"path/filepath"
	"slices"

	"github.com/matchlock/matchlock/internal/hostfs"
)

// Home is where one user's things are. All of it may be deleted while nothing
// runs.
type Home struct {
	Data  string // images, snapshots, volumes, and a kernel of the user's own
	Cache string // kernels and what else can be had again
	State string // sandboxes
	// Config has what the user has written, or said. It need not be there.
	Config string

	root string // of all, where there is one
}

// Find returns the home that the environment names: the folders below
// MATCHLOCK_HOME, else those of the XDG base directory specification. It looks
// at no file.
func Find(getenv func(string) string) (Home, error) {
	if root := getenv("MATCHLOCK_HOME"); root != "" {
		return At(root)
	}
	user := getenv("HOME")
	dir := func(variable, fallback string) string {
		// The specification has relative paths ignored.
		if base := getenv(variable); filepath.IsAbs(base) {
			return filepath.Join(base, "matchlock")
		}
		return filepath.Join(user, fallback, "matchlock")
	}
	home := Home{
		Data:  dir("XDG_DATA_HOME", ".local/share"),
		Cache: dir("XDG_CACHE_HOME", ".cache"),
		State: dir("XDG_STATE_HOME", ".local/state"),

		Config: dir("XDG_CONFIG_HOME", ".config"),
	}
	for _, path := range home.folders() {
		if !filepath.IsAbs(path) {
			return Home{}, &hostfs.FolderError{Path: path, Fault: "cannot be placed: neither MATCHLOCK_HOME nor HOME is set", Fix: "set MATCHLOCK_HOME to a folder of yours"}
		}
	}
	return home, nil
}

// homeNames are the folders of a home that is below one root.
var homeNames = []string{"data", "cache", "state", "config"}

// At returns the home whose folders are all below root.
func At(root string) (Home, error) {
	root, err := filepath.Abs(root)
	if err != nil {
		return Home{}, err
	}
	sub := func(name string) string { return filepath.Join(root, name) }
	return Home{Data: sub(homeNames[0]), Cache: sub(homeNames[1]), State: sub(homeNames[2]), Config: sub(homeNames[3]), root: root}, nil
}

func (h Home) folders() []string { return []string{h.Data, h.Cache, h.State} }

// Open makes the folders that are missing and checks all of them, as
// hostfs.Private does.
func (h Home) Open() error {
	dirs := h.folders()
	if h.root != "" {
		dirs = append([]string{h.root}, dirs...)
	}
	for _, dir := range dirs {
		if err := hostfs.Private(dir); err != nil {
			return err
		}
	}
	return nil
}

// Reclaim takes from others the right to write folders of the home, as
// hostfs.Reclaim does, and returns those that it changed.
func (h Home) Reclaim() (changed []string, err error) {
	reclaim := func(dir string, ours func(string) bool) {
		done, e := hostfs.Reclaim(dir, ours)
		if done {
			changed = append(changed, dir)
		}
		err = errors.Join(err, e)
	}
	if h.root != "" {
		reclaim(h.root, func(name string) bool { return slices.Contains(homeNames, name) })
	}
	for _, dir := range append(h.folders(), h.Config, h.Trusted(), h.Images(), h.Snapshots(), h.Volumes(), filepath.Dir(h.Kernel()),
		h.Disks(), h.Templates(), filepath.Join(h.Cache, "kernels"), filepath.Join(h.Cache, "kernels", "sources"), filepath.Join(h.Cache, "initramfs"), h.Sandboxes()) {
		reclaim(dir, nil)
	}
	return changed, err
}

// OwnConfig is the user's own file, in the form of a project's.
func (h Home) OwnConfig() string { return filepath.Join(h.Config, "config.yaml") }

// Trusted is the folder of what project files the user trusts.
func (h Home) Trusted() string { return filepath.Join(h.Config, "trusted") }

// Images is the folder of the image store.
func (h Home) Images() string { return filepath.Join(h.Data, "images") }

// Snapshots is the folder of the snapshots' folders.
func (h Home) Snapshots() string { return filepath.Join(h.Data, "snapshots") }

// Volumes is the folder of the volumes' files.
func (h Home) Volumes() string { return filepath.Join(h.Data, "volumes") }

// Kernel is the file where a kernel of the user's own may be, in place of those
// in the cache. scripts/kernel.sh knows this path, too.
func (h Home) Kernel() string { return filepath.Join(h.Data, "kernel", "vmlinux") }

// Disks is the folder of the prepared empty disks.
func (h Home) Disks() string { return filepath.Join(h.Cache, "disks") }

// Templates is the folder of machines that have booted.
func (h Home) Templates() string { return filepath.Join(h.Cache, "templates") }

// Journal tells what became of sandboxes.
func (h Home) Journal() Journal { return Journal{filepath.Join(h.State, "events.jsonl")} }

// Sandboxes is the folder of the sandboxes' folders.
func (h Home) Sandboxes() string { return filepath.Join(h.State, "sandboxes") }
