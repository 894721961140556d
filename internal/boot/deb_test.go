package boot

import (
	"bytes"
	"io/fs"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// unpackInto unpacks a package into an empty folder and returns what it holds then.
func unpackInto(t testing.TB, deb []byte) (files map[string]string, err error) {
	t.Helper()
	root, err := os.OpenRoot(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	unpackErr := unpackDeb(bytes.NewReader(deb), root)
	files = map[string]string{}
	err = fs.WalkDir(root.FS(), ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := fs.ReadFile(root.FS(), path)
		files[path] = string(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files, unpackErr
}

func TestUnpackDeb(t *testing.T) {
	entry := func(name, data string) tarEntry { return tarEntry{name: name, data: []byte(data)} }
	entries := []tarEntry{
		entry("./boot/vmlinuz-6.1.0", "kernel"),
		entry("./boot/System.map-6.1.0", "map"),
		entry("./lib/modules/6.1.0/modules.builtin", "list"),
		entry("./lib/modules/6.1.0/modules.order", "order"),
		entry("./lib/modules/6.1.0/kernel/fs/fuse/fuse.ko", "fuse"),
		entry("./usr/lib/modules/6.1.0/kernel/fs/erofs/erofs.ko.xz", "erofs"),
		entry("./usr/share/doc/x.ko", "doc"),
		// Hostile ones:
		entry("../boot/vmlinuz-out", "out"),
		entry("/boot/vmlinuz-absolute", "out"),
		entry("./lib/modules/../../boot/config-moved", "allowed, since it stays inside"),
		entry("./lib/modules/../../../x.ko", "out"),
		{name: "./lib/modules/6.1.0/link.ko", target: "/etc/passwd"},
		{name: "./lib/modules/6.1.0/kernel/dir", target: "/tmp"},
		entry("./lib/modules/6.1.0/kernel/dir/through.ko", "inside"),
	}
	want := map[string]string{
		"boot/vmlinuz-6.1.0":                            "kernel",
		"boot/config-moved":                             "allowed, since it stays inside",
		"lib/modules/6.1.0/modules.builtin":             "list",
		"lib/modules/6.1.0/kernel/fs/fuse/fuse.ko":      "fuse",
		"lib/modules/6.1.0/kernel/fs/erofs/erofs.ko.xz": "erofs",
		"lib/modules/6.1.0/kernel/dir/through.ko":       "inside",
	}
	for _, tt := range []struct {
		ext  string
		pack func([]byte) []byte
	}{{"", nil}, {".gz", packers["gz"]}, {".xz", packers["xz"]}, {".zst", packers["zst"]}} {
		t.Run("data.tar"+tt.ext, func(t *testing.T) {
			got, err := unpackInto(t, debOf(tt.ext, tt.pack, entries...))
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(got, want); d != "" {
				t.Errorf("files (-got +want):\n%s", d)
			}
		})
	}
}

func TestUnpackDebCorrupt(t *testing.T) {
	good := func() []byte { return debOf("", nil, tarEntry{name: "./boot/vmlinuz-6.1.0", data: make([]byte, 2000)}) }
	const firstHeader, dataHeader = 8, 8 + 60 + 4 + 60 + 4
	sized := func(size string) []byte {
		b := good()
		copy(b[firstHeader+48:], size+"          "[:10-len(size)])
		return b
	}
	tests := []struct {
		name string
		deb  []byte
		want string
	}{
		{"empty", nil, "not a Debian package"},
		{"text", []byte("#!/bin/sh\necho no\n"), "not a Debian package"},
		{"magic alone", good()[:8], "no data in package"},
		{"half a header", good()[:40], "no data in package"},
		{"no data member", good()[:dataHeader], "no data in package"},
		{"negative size", sized("-1"), "bad header in package"},
		{"no size", sized("x"), "bad header in package"},
		{"size beyond the end", sized("9999999999"), "no data in package"},
		{"cut inside a file", good()[:dataHeader+60+700], "unexpected EOF"},
		{"twice the same", debOf("", nil, tarEntry{name: "boot/vmlinuz-1"}, tarEntry{name: "./boot/vmlinuz-1"}), "file exists"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := unpackInto(t, tt.deb)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got error %v, want %q", err, tt.want)
			}
		})
	}
}

func FuzzDeb(f *testing.F) {
	for ext, pack := range packers {
		f.Add(debOf("."+ext, pack, tarEntry{name: "./boot/vmlinuz-1", data: []byte("kernel")}, tarEntry{name: "./lib/modules/1/a.ko", target: "/"}))
	}
	f.Add(debOf("", nil, tarEntry{name: "usr/lib/modules/1/b.ko.xz"}))
	f.Fuzz(func(t *testing.T, deb []byte) {
		files, _ := unpackInto(t, deb) // it must neither panic nor leave the folder, which os.Root sees to
		for name := range files {
			if !debWanted().MatchString(name) {
				t.Errorf("unpacked %q", name)
			}
		}
	})
}
