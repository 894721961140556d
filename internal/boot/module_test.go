package boot

import (
	"bytes"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// resolveTree resolves what is wanted in a tree of the given files.
func resolveTree(t *testing.T, files map[string][]byte) (names, missing []string, err error) {
	t.Helper()
	dir := t.TempDir()
	writeTree(t, dir, files)
	tree, err := openModuleTree(dir, testRelease)
	if err != nil {
		t.Fatal(err)
	}
	modules, missing, err := tree.resolve()
	for _, m := range modules {
		if m.later {
			m.name = "later/" + m.name
		}
		if !bytes.HasPrefix(m.data, []byte("\x7fELF")) {
			t.Errorf("module %s is not unpacked", m.name)
		}
		names = append(names, m.name)
	}
	return names, missing, err
}

func TestResolveModules(t *testing.T) {
	debian := []string{"virtio_ring", "virtio", "virtio_mmio", "virtio_console", "virtio_blk", "libcrc32c", "erofs", "overlay",
		"later/failover", "later/net_failover", "later/virtio_net", "later/fuse"}
	tests := []struct {
		name    string
		change  func(files map[string][]byte)
		want    []string
		missing []string
		err     string
	}{
		{"Debian 12", func(map[string][]byte) {}, debian, nil, ""},
		{"Debian 13 packs them", func(files map[string][]byte) {
			for name, data := range maps.Clone(files) {
				if strings.HasSuffix(name, ".ko") {
					delete(files, name)
					files[name+".xz"] = packers["xz"](data)
				}
			}
		}, debian, nil, ""},
		{"others pack them otherwise", func(files map[string][]byte) {
			for _, pack := range []struct{ name, ext string }{{"kernel/fs/erofs/erofs.ko", "gz"}, {"kernel/fs/fuse/fuse.ko", "zst"}} {
				files[pack.name+"."+pack.ext] = packers[pack.ext](files[pack.name])
				delete(files, pack.name)
			}
		}, debian, nil, ""},
		{"names with dashes", func(files map[string][]byte) {
			files["kernel/x/virtio-ring.ko"] = files["kernel/drivers/virtio/virtio_ring.ko"]
			delete(files, "kernel/drivers/virtio/virtio_ring.ko")
		}, debian, nil, ""},
		{"soft dependency that exists", func(files map[string][]byte) {
			files["kernel/crypto/crc32c.ko"] = testModule("", "post: virtio_net")
		}, []string{"virtio_ring", "virtio", "virtio_mmio", "virtio_console", "virtio_blk", "crc32c", "libcrc32c", "erofs", "overlay",
			"later/failover", "later/net_failover", "later/virtio_net", "later/fuse"}, nil, ""},
		{"an update", func(files map[string][]byte) {
			files["updates/fuse.ko"] = testModule("virtio", "")
			files["kernel/fs/fuse/fuse.ko"] = testModule("nowhere", "")
		}, debian, nil, ""},
		{"a circle", func(files map[string][]byte) {
			files["kernel/drivers/virtio/virtio_ring.ko"] = testModule("virtio", "")
		}, debian, nil, ""},
		{"all built in", func(files map[string][]byte) {
			clear(files)
			var list strings.Builder
			for _, w := range wanted {
				list.WriteString("kernel/x/" + w.name + ".ko\n")
			}
			files["modules.builtin"] = []byte(list.String())
		}, nil, nil, ""},
		{"no network", func(files map[string][]byte) {
			delete(files, "kernel/drivers/net/virtio_net.ko")
		}, append(debian[:8:8], "later/fuse"), []string{"virtio_net"}, ""},

		{"no disks", func(files map[string][]byte) {
			delete(files, "kernel/drivers/block/virtio_blk.ko")
		}, nil, nil, "kernel " + testRelease + " has no virtio_blk, neither as a module nor built in"},
		{"nothing known", func(files map[string][]byte) { clear(files); files["modules.order"] = nil }, nil, nil, "has no virtio_mmio"},
		{"dependency gone", func(files map[string][]byte) {
			delete(files, "kernel/drivers/virtio/virtio_ring.ko")
		}, nil, nil, "module virtio_ring is missing, which virtio depends on, which virtio_mmio depends on"},
		{"of another kernel", func(files map[string][]byte) {
			files["kernel/fs/fuse/fuse.ko"] = bytes.Replace(testModule("", ""), []byte("=6.1."), []byte("=6.2."), 1)
		}, nil, nil, `fuse.ko: made for kernel "6.2.0-56-cloud-amd64", not "6.1.0-56-cloud-amd64"`},
		{"no ELF", func(files map[string][]byte) {
			files["kernel/fs/fuse/fuse.ko"] = []byte("garbage that is long enough to be a module's header, and some more of it")
		}, nil, nil, "fuse.ko: bad magic number"},
		{"no .modinfo", func(files map[string][]byte) {
			files["kernel/fs/fuse/fuse.ko"] = elfSpec{}.bytes()
		}, nil, nil, "fuse.ko: no .modinfo section"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			files := testModules()
			tt.change(files)
			names, missing, err := resolveTree(t, files)
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Errorf("got error %v, want %q", err, tt.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(names, tt.want); d != "" {
				t.Errorf("modules (-got +want):\n%s", d)
			}
			if d := cmp.Diff(missing, tt.missing); d != "" {
				t.Errorf("missing (-got +want):\n%s", d)
			}
		})
	}
}

func TestModuleWritableForOthers(t *testing.T) {
	path := filepath.Join(t.TempDir(), "fuse.ko")
	if err := os.WriteFile(path, testModule("", ""), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o666); err != nil {
		t.Fatal(err)
	}
	if _, _, err := readModule(path); err == nil || err.Error() != "others may write to it (mode 0666)" {
		t.Errorf("got error %v", err)
	}
}

func TestModuleNoFile(t *testing.T) {
	if _, _, err := readModule("/dev/zero"); err == nil || err.Error() != "not a regular file" {
		t.Errorf("got error %v", err)
	}
}

func TestNoModuleTree(t *testing.T) {
	if _, err := openModuleTree(filepath.Join(t.TempDir(), "none"), testRelease); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got error %v, want fs.ErrNotExist", err)
	}
}

func TestModuleTooLarge(t *testing.T) {
	if _, err := readModinfo(elfSpec{modinfo: strings.Repeat("x", maxModinfo+1)}.bytes()); err == nil || !strings.Contains(err.Error(), "more than") {
		t.Errorf("got error %v", err)
	}
}

func FuzzModinfo(f *testing.F) {
	f.Add(testModule("a,b-c", "pre: d e post: f"))
	f.Add(elfSpec{modinfo: "depends"}.bytes())
	f.Add(elfSpec{modinfo: "softdep=pre:\x00vermagic="}.bytes())
	f.Fuzz(func(t *testing.T, data []byte) {
		info, err := readModinfo(data)
		if err != nil {
			return
		}
		for _, name := range append(info.depends, info.soft...) {
			if name == "" || strings.ContainsAny(name, "\x00,-") && !strings.Contains(name, ",") {
				t.Errorf("depends on %q", name)
			}
		}
	})
}
