// Package project reads matchlock.yaml, by which a folder says what its sandbox is. Such a
// file may come from anywhere, with a repository that was cloned a minute ago: what of it
// reaches beyond the folder waits until somebody has trusted it.
package project

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/matchlock/matchlock/api"
	"github.com/matchlock/matchlock/internal/document"
	"github.com/matchlock/matchlock/internal/hostfs"
	"github.com/matchlock/matchlock/internal/policy"
)

// Name is what a project's file is called.
const Name = "matchlock.yaml"

// A File is what matchlock.yaml says: the keys of api.Config, and those that follow here.
// Elements of its lists are the strings that flags take. schema.json is for editors.
type File struct {
	// Name of the sandbox; empty is one that is made up.
	Name string `json:"name,omitempty"`
	api.Config
	// Timeout bounds the life of the first command.
	Timeout time.Duration `json:"timeout,omitempty"`
	// TTL bounds the life of the sandbox, from each of its starts on.
	TTL time.Duration `json:"ttl,omitempty"`
	// IdleTimeout stops the sandbox when it has been idle for so long.
	IdleTimeout time.Duration `json:"idle_timeout,omitempty"`
	// Presets are sets of rules that matchlock brings along.
	Presets []string `json:"presets,omitempty"`
	// Policy is a file of rules, secrets and hooks, beside this one.
	Policy string `json:"policy,omitempty"`

	path    string // of the file, absolute, without symbolic links
	content []byte
	rules   []byte // of Policy
	owner   uint32 // of the file
}

// Find returns the path of the project's file: path itself, Name in it if it is a folder,
// or, if path is empty, Name in the present folder or the nearest one above that has it.
func Find(path string) (string, error) {
	if path != "" {
		if info, err := os.Stat(path); err != nil {
			return "", err
		} else if info.IsDir() {
			path = filepath.Join(path, Name)
		}
		return path, nil
	}
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		path := filepath.Join(dir, Name)
		if _, err := os.Lstat(path); err == nil {
			return path, nil
		} else if !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", ErrNone
		}
		dir = parent
	}
}

// ErrNone says that there is no project here.
var ErrNone = errors.New("there is no " + Name + " in this folder, nor in one above it")

// Read reads a project's file. Its mounts are of absolute paths then, and the file itself
// cannot be changed by what runs in the sandbox.
func Read(path string) (*File, error) {
	f := &File{}
	var err error
	if f.path, err = filepath.Abs(path); err == nil {
		f.path, err = filepath.EvalSymlinks(f.path)
	}
	if err != nil {
		return nil, err
	}
	info, err := os.Stat(f.path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s: not a regular file", path)
	}
	f.owner = info.Sys().(*syscall.Stat_t).Uid
	if f.content, err = hostfs.ReadLimited(f.path, document.MaxSize); err != nil {
		return nil, err
	}
	if err := document.Decode(f.content, path, f); err != nil {
		return nil, err
	}
	f.Config.Timeout, f.Config.TTL, f.Config.IdleTimeout = f.Timeout, f.TTL, f.IdleTimeout
	if f.Policy != "" {
		f.Policy = f.beside(f.Policy)
		if f.rules, err = hostfs.ReadLimited(f.Policy, document.MaxSize); err != nil {
			return nil, fmt.Errorf("%s: policy: %w", path, err)
		}
	}
	for i, ca := range f.Network.UpstreamCA {
		f.Network.UpstreamCA[i] = f.beside(ca)
	}
	for i := range f.Disks {
		f.Disks[i].File = f.beside(f.Disks[i].File)
	}
	for i := range f.Mounts {
		if err := f.place(&f.Mounts[i]); err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
	}
	return f, nil
}

// ReadOwn reads the user's own file at path, in a folder that nobody else may write. Where
// there is none it says nothing.
func ReadOwn(path string) (*File, error) {
	f, err := Read(path)
	if errors.Is(err, fs.ErrNotExist) {
		return &File{}, nil
	} else if err != nil {
		return nil, err
	}
	return f, hostfs.Private(filepath.Dir(path))
}

func (f *File) folder() string { return filepath.Dir(f.path) }

// beside is a path as the file means it: from the folder that it is in.
func (f *File) beside(path string) string {
	if filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(f.folder(), path)
}

// place makes a mount's path what it is on the host, without symbolic links: these may
// lead anywhere, and the project has made them.
func (f *File) place(m *api.Mount) (err error) {
	if m.Source == "" || m.IsVolume() {
		return nil
	}
	if m.Source, err = filepath.EvalSymlinks(f.beside(m.Source)); err != nil {
		return err
	}
	if m.Source == f.path {
		m.Mode = api.MountReadOnly
	} else if below, ok := within(f.path, m.Source); ok && m.Mode != api.MountReadOnly {
		m.Protect = append(m.Protect, "/"+literally.Replace(below))
	}
	return nil
}

// literally is what a pattern has for a path.
var literally = strings.NewReplacer(`\`, `\\`, "*", `\*`, "?", `\?`, "[", `\[`)

// within tells whether a path is in a folder or is that itself, and where in it.
func within(path, folder string) (below string, ok bool) {
	if path == folder {
		return ".", true
	}
	return strings.CutPrefix(path, strings.TrimSuffix(folder, "/")+"/")
}

// Laid returns the configuration with the rules of presets and of the policy's file in it.
func (f *File) Laid() (api.Config, error) {
	var d policy.Document
	if f.rules != nil {
		var err error
		if d, err = policy.Parse(f.rules, f.Policy); err != nil {
			return api.Config{}, err
		}
	}
	d.Presets = append(d.Presets, f.Presets...)
	c := f.Config
	return c, d.Merge(&c)
}
