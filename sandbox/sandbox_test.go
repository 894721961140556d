package sandbox

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/matchlock/matchlock/api"
	"github.com/matchlock/matchlock/internal/image"
	"github.com/matchlock/matchlock/internal/state"
	"github.com/matchlock/matchlock/vm"
)

// testHome makes a home with the image "busybox" in it, which has nothing but an
// empty /bin/sh, and a mkfs.ext4 that makes empty disks of empty files.
func testHome(t *testing.T) string {
	t.Helper()
	tools := t.TempDir()
	if err := os.WriteFile(filepath.Join(tools, "mkfs.ext4"), []byte("#!/bin/sh\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", tools+":"+os.Getenv("PATH"))
	root := filepath.Join(t.TempDir(), "home")
	home, err := state.At(root)
	if err != nil {
		t.Fatal(err)
	}
	if err := home.Open(); err != nil {
		t.Fatal(err)
	}
	store, err := image.Open(home.Images())
	if err != nil {
		t.Fatal(err)
	}
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	if err := w.WriteHeader(&tar.Header{Name: "bin/sh", Mode: 0o755, Typeflag: tar.TypeReg}); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	img, err := store.Import(t.Context(), "busybox", &archive, image.ImportOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := img.Release(); err != nil {
		t.Fatal(err)
	}
	return root
}

// brokenBackend is a vm.Backend that does not get far.
type brokenBackend struct {
	config *vm.VMConfig // of the last Create
	upper  os.FileInfo  // its scratch disk
	err    error
}

func (b *brokenBackend) Name() string { return "broken" }

func (b *brokenBackend) Create(_ context.Context, config *vm.VMConfig) (vm.Machine, error) {
	b.config = config
	b.upper, _ = os.Stat(config.OverlayUpperPath) // nil shows in the test
	return nil, b.err
}

// TestNewLeavesNothing has a sandbox fail at its last step but one: what was
// made before is gone.
func TestNewLeavesNothing(t *testing.T) {
	home := testHome(t)
	disk := ext4File(t)
	backend := &brokenBackend{err: errors.New("no machine today")}
	var phases []string
	options := Options{Home: home, Backend: backend, Timing: func(phase string, _ time.Duration) { phases = append(phases, phase) }}
	config := api.Config{
		Image: "busybox", Memory: 1 << 30, CPUs: 0.5, DiskSize: 64 << 20, Hostname: "box", Privileged: true,
		Disks: []api.Disk{{File: disk, Mount: "/data", ReadOnly: true}},
	}
	if _, err := options.New(t.Context(), config); !errors.Is(err, backend.err) {
		t.Fatalf("New = %v, want %v", err, backend.err)
	}

	got := backend.config
	if got.ExtraDisks[0].File == nil {
		t.Error("the disk is handed on without its lock")
	}
	got.ExtraDisks[0].File = nil
	if backend.upper == nil || backend.upper.Size() != 64<<20 {
		t.Errorf("the scratch disk was %v, want one of 64 MiB", backend.upper)
	}
	want := &vm.VMConfig{
		ID: got.ID, Hostname: "box", CPUs: 0.5, MemoryMB: 1024, Privileged: true,
		OverlayEnabled: true, OverlayLowerPaths: got.OverlayLowerPaths, OverlayLowerFSTypes: []string{"erofs"},
		OverlayUpperPath: filepath.Join(home, "state/sandboxes", got.ID, "upper.ext4"),
		LogPath:          filepath.Join(home, "state/sandboxes", got.ID, "console.log"),
		ExtraDisks:       []vm.DiskConfig{{HostPath: disk, GuestMount: "/data", ReadOnly: true}},
		Boot:             bootData(got.ID, &config, &image.Config{}, nil),
		UseInterception:  true,
		GatewayIP:        "192.168.100.1", GuestIP: "192.168.100.2", SubnetCIDR: "192.168.100.1/24",
		DNSServers: []string{"192.168.100.1"},
	}
	if block, _ := pem.Decode(got.Boot.CA); block == nil {
		t.Errorf("the CA is %q", got.Boot.CA)
	}
	want.Boot.CA = got.Boot.CA
	if diff := cmp.Diff(got, want); diff != "" {
		t.Errorf("machine asked for (-got +want):\n%s", diff)
	}

	entries, err := os.ReadDir(filepath.Join(home, "state/sandboxes"))
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) != 1 || entries[0].Name() != "lock" {
		t.Errorf("left in the folder of sandboxes: %v", entries)
	}
	held, err := userDisk{path: disk}.open(t.Context(), state.Home{}, "")
	if err != nil {
		t.Fatalf("the user's disk is still locked: %v", err)
	}
	held.Close()
	store, err := image.Open(filepath.Join(home, "data/images"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := store.Remove("busybox", image.Needs{}); err != nil {
		t.Errorf("the image is still leased: %v", err)
	}
	if got, want := strings.Join(phases, " "), "prepare image disks close"; got != want {
		t.Errorf("phases %q, want %q", got, want)
	}
}

func TestNewRefuses(t *testing.T) {
	home := testHome(t)
	for _, tt := range []struct {
		name    string
		config  api.Config
		options Options
		check   func(error) bool
	}{
		{"a faulty configuration", api.Config{}, Options{}, func(err error) bool { return strings.Contains(err.Error(), "image: none given") }},
		{"an unknown image", api.Config{Image: "nosuch", Pull: api.PullNever}, Options{}, func(err error) bool {
			fault, ok := errors.AsType[*ImageError](err)
			return ok && fault.Image == "nosuch" && errors.Is(err, ErrNotFound)
		}},
		{"no command", api.Config{Image: "busybox", Entrypoint: []string{}}, Options{NeedCommand: true}, func(err error) bool { return errors.Is(err, ErrNoCommand) }},
		{"a disk that is none", api.Config{Image: "busybox", Disks: []api.Disk{{File: "/dev/null", Mount: "/d"}}}, Options{}, func(err error) bool {
			return strings.Contains(err.Error(), "not a regular file")
		}},
		{"a machine without boot data", api.Config{Image: "busybox"}, Options{Backend: plainBackend{}}, func(err error) bool { return errors.Is(err, errors.ErrUnsupported) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.options.Home = home
			if _, err := tt.options.New(t.Context(), tt.config); err == nil || !tt.check(err) {
				t.Errorf("New = %v", err)
			}
			entries, err := os.ReadDir(filepath.Join(home, "state/sandboxes"))
			if err == nil && (len(entries) > 1 || len(entries) == 1 && entries[0].Name() != "lock") {
				t.Errorf("left in the folder of sandboxes: %v", entries)
			}
		})
	}
}

// plainBackend makes machines of the contract and no more.
type plainBackend struct{}

func (plainBackend) Name() string { return "plain" }

func (plainBackend) Create(context.Context, *vm.VMConfig) (vm.Machine, error) {
	return plainMachine{}, nil
}

// plainMachine panics when it is asked for anything but its end.
type plainMachine struct{ vm.Machine }

func (plainMachine) Close(context.Context) error { return nil }

func TestForeignImage(t *testing.T) {
	foreign := "s390x"
	if runtime.GOARCH == foreign {
		foreign = "amd64"
	}
	img := &image.Image{Config: image.Config{OS: "linux", Architecture: foreign}}
	err := checkArch("debian:12", img)
	if _, ok := errors.AsType[*image.PlatformError](err); !ok || !strings.Contains(err.Error(), `image "debian:12": no image for linux/`+runtime.GOARCH+": it offers linux/"+foreign) {
		t.Errorf("checkArch = %v", err)
	}
	if err := checkArch("debian:12", &image.Image{}); err != nil {
		t.Errorf("an image that does not say what it is for: %v", err)
	}
}

func TestUnwind(t *testing.T) {
	var u unwind
	var order []int
	first, second := errors.New("first"), errors.New("second")
	u.push(func() error { order = append(order, 1); return first })
	u.push(func() error { order = append(order, 2); return nil })
	u.push(func() error { order = append(order, 3); return second })
	err := u.run()
	if !errors.Is(err, first) || !errors.Is(err, second) {
		t.Errorf("run = %v, want both errors", err)
	}
	if diff := cmp.Diff(order, []int{3, 2, 1}); diff != "" {
		t.Errorf("order (-got +want):\n%s", diff)
	}
	if err := u.run(); err != nil || len(order) != 3 {
		t.Errorf("a second run = %v, and did %d things in all", err, len(order))
	}
}

func TestBootData(t *testing.T) {
	config := &api.Config{
		Env: map[string]string{"A": "b"}, Network: api.Network{AddHosts: []api.HostIPMapping{{Host: "db", IP: "10.0.0.1"}}},
		Sockets: []api.Socket{{Host: "/h", Guest: "/s"}}, CapDrop: []string{"ALL"}, AllowSetuid: true, ReadOnly: true, Tmpfs: []api.Tmpfs{{Path: "/t"}}, ShmSize: 5, Ulimits: []api.Ulimit{{Name: "core"}},
	}
	got := bootData("id", config, &image.Config{Env: []string{"B=c"}}, nil)
	want := &api.BootData{
		Env: map[string]string{"HOSTNAME": "id", "A": "b", "B": "c"}, Hosts: config.Network.AddHosts,
		Confinement: api.Confinement{CapDrop: []string{"ALL"}, AllowSetuid: true}, ReadOnlyRoot: true,
		Tmpfs: config.Tmpfs, Sockets: []string{"/s"}, ShmSize: 5, Ulimits: config.Ulimits,
	}
	if diff := cmp.Diff(got, want); diff != "" {
		t.Errorf("(-got +want):\n%s", diff)
	}
}

func TestTasks(t *testing.T) {
	var got []Progress
	tasks := newTasks(func(p Progress) { got = append(got, p) })
	layer := "sha256:" + strings.Repeat("0123456789abcdef", 4)
	tasks.layer(image.Event{Layer: layer, State: image.Reading, Done: 1, Total: 2})
	tasks.layer(image.Event{Layer: layer, State: image.Ready, Done: 2, Total: 2})
	tasks.update("fetch", 5, 0)
	tasks.end()
	want := []Progress{
		{Task: "layer 0123456789ab", Done: 1, Total: 2},
		{Task: "layer 0123456789ab", Done: 2, Total: 2, Ended: true},
		{Task: "fetch", Done: 5},
		{Task: "fetch", Ended: true},
	}
	if diff := cmp.Diff(got, want); diff != "" {
		t.Errorf("(-got +want):\n%s", diff)
	}
}
