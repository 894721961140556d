package sandbox

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/matchlock/matchlock/api"
	"github.com/matchlock/matchlock/internal/hostfs"
	"github.com/matchlock/matchlock/internal/state"
)

// volumeHome makes a home, and a mkfs.ext4 whose file systems are so as far as
// userDisk.check looks.
func volumeHome(t *testing.T) (Options, state.Home) {
	t.Helper()
	tools := t.TempDir()
	// The file is the last argument.
	const script = "#!/bin/sh\nfor file; do :; done\nprintf '\\123\\357' | dd of=\"$file\" bs=1 seek=1080 conv=notrunc 2>/dev/null\n"
	if err := os.WriteFile(filepath.Join(tools, "mkfs.ext4"), []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", tools+":"+os.Getenv("PATH"))
	o := Options{Home: filepath.Join(t.TempDir(), "home")}
	home, err := o.home()
	if err != nil {
		t.Fatal(err)
	}
	return o, home
}

func TestVolumes(t *testing.T) {
	o, home := volumeHome(t)
	if list, err := o.Volumes(); err != nil || len(list) != 0 {
		t.Errorf("Volumes of a new home = %v, %v", list, err)
	}
	v, err := o.CreateVolume(t.Context(), "data", 0)
	if err != nil {
		t.Fatal(err)
	}
	if v.Name != "data" || v.Size != api.DefaultVolumeSize || v.Used > 1<<20 || v.Path != filepath.Join(home.Volumes(), "data.ext4") || v.Users == nil {
		t.Errorf("CreateVolume = %+v", v)
	}
	if info, err := os.Stat(v.Path); err != nil || info.Mode() != 0o600 {
		t.Errorf("its file: %v, %v", info.Mode(), err)
	}
	if _, err := o.CreateVolume(t.Context(), "data", 0); !errors.Is(err, ErrVolumeTaken) {
		t.Errorf("a second of the name: %v", err)
	}
	if err := os.WriteFile(filepath.Join(home.Volumes(), "notes.txt"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	copied, err := o.CopyVolume(t.Context(), "data", "more")
	if err != nil {
		t.Fatal(err)
	}
	if copied.Name != "more" || copied.Size != v.Size || copied.Used > 1<<20 {
		t.Errorf("CopyVolume = %+v", copied)
	}
	if _, err := o.CopyVolume(t.Context(), "data", "more"); !errors.Is(err, ErrVolumeTaken) {
		t.Errorf("a copy onto another: %v", err)
	}
	out := filepath.Join(t.TempDir(), "image")
	if _, err := o.CopyVolume(t.Context(), "data", out); err != nil {
		t.Errorf("a copy to a file: %v", err)
	}
	if _, err := o.CopyVolume(t.Context(), out, "back"); err != nil {
		t.Errorf("a copy of a file: %v", err)
	}
	if _, err := o.CopyVolume(t.Context(), "/dev/null", "null"); err == nil || !strings.Contains(err.Error(), "not a regular file") {
		t.Errorf("a copy of a device: %v", err)
	}
	list, err := o.Volumes()
	if err != nil || len(list) != 3 || list[0].Name != "back" || list[1].Name != "data" || list[2].Name != "more" {
		t.Errorf("Volumes = %+v, %v", list, err)
	}
	if err := o.RemoveVolume(t.Context(), "data"); err != nil {
		t.Error(err)
	}
	if _, err := o.FindVolume("data"); !errors.Is(err, ErrNotFound) {
		t.Errorf("FindVolume of one that was removed: %v", err)
	}
	if err := o.RemoveVolume(t.Context(), "data"); !errors.Is(err, ErrNotFound) {
		t.Errorf("RemoveVolume of one that was removed: %v", err)
	}
	if _, err := o.CopyVolume(t.Context(), "data", "again"); !errors.Is(err, ErrNotFound) {
		t.Errorf("CopyVolume of one that was removed: %v", err)
	}
}

func TestVolumeNames(t *testing.T) {
	o, _ := volumeHome(t)
	for _, name := range []string{"", ".", "..", ".new-x", "a/b", "a\x00b", "-x", strings.Repeat("x", 65)} {
		if _, err := o.CreateVolume(t.Context(), name, 0); err == nil {
			t.Errorf("CreateVolume(%q) succeeds", name)
		}
		if err := o.RemoveVolume(t.Context(), name); err == nil || errors.Is(err, ErrNotFound) {
			t.Errorf("RemoveVolume(%q) = %v", name, err)
		}
	}
	if _, err := o.CreateVolume(t.Context(), "small", 1<<20); err == nil || !strings.Contains(err.Error(), "at least 64 MiB") {
		t.Errorf("a size of 1 MiB: %v", err)
	}
}

// Of several who make a volume at once one does, and the others do not touch it.
func TestVolumesAtOnce(t *testing.T) {
	o, home := volumeHome(t)
	var making sync.WaitGroup
	errs := make([]error, 8)
	for i := range errs {
		making.Go(func() { _, errs[i] = o.CreateVolume(t.Context(), "data", 0) })
	}
	making.Wait()
	made := 0
	for _, err := range errs {
		if err == nil {
			made++
		} else if !errors.Is(err, ErrVolumeTaken) {
			t.Error(err)
		}
	}
	if made != 1 {
		t.Errorf("%d have made it", made)
	}
	file, err := userDisk{path: volumePath(home, "data")}.open(t.Context(), home, "")
	if err != nil {
		t.Fatal(err)
	}
	file.Close()
}

// What was left by somebody who was killed is no volume, is no hindrance, and goes;
// what is being made stays.
func TestVolumeUnmade(t *testing.T) {
	o, home := volumeHome(t)
	if _, err := o.CreateVolume(t.Context(), "first", 0); err != nil {
		t.Fatal(err)
	}
	left := func(name string) string { return filepath.Join(home.Volumes(), makingPrefix+name+volumeSuffix) }
	for _, name := range []string{"killed", "data"} {
		if err := os.WriteFile(left(name), make([]byte, 4096), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := o.CreateVolume(t.Context(), "data", 0); err != nil {
		t.Error(err)
	}
	lock, err := hostfs.Lock(context.Background(), left("made"), os.O_RDWR|os.O_CREATE, syscall.LOCK_EX)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if _, err := o.CreateVolume(t.Context(), "made", 0); !errors.Is(err, ErrVolumeTaken) {
		t.Errorf("one that somebody makes: %v", err)
	}
	if list, err := o.Volumes(); err != nil || len(list) != 2 {
		t.Errorf("Volumes = %v, %v", list, err)
	}
	if _, err := o.GC(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(left("killed")); !os.IsNotExist(err) {
		t.Errorf("what was left is there: %v", err)
	}
	if _, err := os.Stat(left("made")); err != nil {
		t.Errorf("what is being made is gone: %v", err)
	}
}

// A snapshot wants a disk at each place where it had one, written to or not as then.
func TestCheckDisks(t *testing.T) {
	s := &Saved{record: savedRecord{Disks: []diskMark{{Mount: "/a", ReadOnly: true}, {Mount: "/b"}}}}
	volume := func(target string, mode api.MountMode) api.Mount {
		return api.Mount{Source: "v", Target: target, Mode: mode}
	}
	for name, test := range map[string]struct {
		config api.Config
		want   string // "": it will do
	}{
		"volumes":     {api.Config{Mounts: []api.Mount{volume("/b/", api.MountReadWrite), volume("/a", api.MountReadOnly)}}, ""},
		"and a file":  {api.Config{Disks: []api.Disk{{File: "/f", Mount: "/b"}}, Mounts: []api.Mount{volume("/a", api.MountReadOnly)}}, ""},
		"one missing": {api.Config{Mounts: []api.Mount{volume("/b", api.MountReadWrite)}}, "has a disk at /a, and none is given"},
		"written to":  {api.Config{Mounts: []api.Mount{volume("/b", api.MountReadWrite), volume("/a", api.MountReadWrite)}}, "cannot change"},
		"one more":    {api.Config{Mounts: []api.Mount{volume("/b", api.MountReadWrite), volume("/a", api.MountReadOnly), volume("/c", api.MountReadOnly)}}, "no further disks"},
	} {
		err := s.allows(&test.config)
		if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
			t.Errorf("%s: %v, want %q", name, err, test.want)
		}
	}
}

// The copies of disks are the last of the files that a saved sandbox is sent as.
func TestSavedFiles(t *testing.T) {
	names := []string{"memory", "state", "disk-0", "disk-1", "copy-1", "copy-3"}
	var files []*os.File
	for _, name := range names {
		f, err := os.Create(filepath.Join(t.TempDir(), name))
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, f)
	}
	const record = `{"disks":[{"mount":"/0","read_only":true},{"mount":"/1","copied":true},{"mount":"/2"},{"mount":"/3","copied":true}]}`
	s, err := OpenSaved([]byte(record), files)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if got := s.machine.Extra; len(got) != 4 || got[0] != nil || got[1] != files[4] || got[2] != nil || got[3] != files[5] {
		t.Errorf("the copies are %v", got)
	}
	for i, f := range s.Files() {
		if f != files[i] {
			t.Errorf("file %d is %s, want %s", i, filepath.Base(f.Name()), names[i])
		}
	}
	if _, err := OpenSaved([]byte(record), nil); err == nil {
		t.Error("without files it is opened")
	}
}

// What others have put where an image is to be made gets none of it.
func TestImageMadeByOthers(t *testing.T) {
	o, _ := volumeHome(t)
	if _, err := o.CreateVolume(t.Context(), "data", 0); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	secret := filepath.Join(dir, "secret")
	for name, put := range map[string]func(path string) error{
		"readable": func(path string) error { return errors.Join(os.WriteFile(path, nil, 0o600), os.Chmod(path, 0o644)) },
		"a fifo":   func(path string) error { return syscall.Mkfifo(path, 0o600) },
		"a link": func(path string) error {
			return errors.Join(os.WriteFile(secret, []byte("x"), 0o600), os.Link(secret, path))
		},
	} {
		planted := filepath.Join(dir, makingPrefix+"x.ext4")
		if err := put(planted); err != nil {
			t.Fatal(err)
		}
		if _, err := o.CopyVolume(t.Context(), "data", filepath.Join(dir, "x.ext4")); err == nil || !strings.Contains(err.Error(), "not ours alone") {
			t.Errorf("%s: %v", name, err)
		}
		os.Remove(planted)
	}
	if text, err := os.ReadFile(secret); err != nil || string(text) != "x" {
		t.Errorf("the file is %q (%v)", text, err)
	}
}
