package disk

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// The same images as the kernel, the tools of erofs-utils and tar see them.

// mount mounts what the arguments say on a new folder, until the end of the test.
func mount(t *testing.T, args ...string) string {
	t.Helper()
	dir := t.TempDir()
	command(t, "mount", append(args, dir)...)
	t.Cleanup(func() { command(t, "umount", dir) })
	return dir
}

func mountImage(t *testing.T, f *os.File) string {
	t.Helper()
	command(t, "fsck.erofs", "--extract", f.Name())
	return mount(t, "-t", "erofs", "-o", "ro,loop", f.Name())
}

// walk reads what is below root through the kernel.
func walk(t *testing.T, root string) tree {
	t.Helper()
	got := make(tree)
	type inode struct{ dev, ino uint64 }
	inodes := make(map[inode]uint64)
	err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return &fs.PathError{Op: "lstat", Path: path, Err: err}
		}
		id := inode{st.Dev, st.Ino}
		if inodes[id] == 0 {
			inodes[id] = uint64(len(inodes) + 1)
		}
		n := node{
			Mode: uint16(st.Mode), UID: st.Uid, GID: st.Gid, Mtime: st.Mtim.Sec, Nsec: uint32(st.Mtim.Nsec),
			Nlink: uint32(st.Nlink), Inode: inodes[id], Xattrs: readAllXattrs(t, path),
		}
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			n.Data, n.Size = string(b), st.Size
		case unix.S_IFLNK:
			if n.Data, err = os.Readlink(path); err != nil {
				return err
			}
			n.Size = st.Size
		case unix.S_IFCHR, unix.S_IFBLK:
			major, minor := unix.Major(st.Rdev), unix.Minor(st.Rdev)
			n.Rdev = minor&0xff | major<<8 | minor&^0xff<<12
		}
		name, err := filepath.Rel(root, path)
		got[name] = n
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func readAllXattrs(t *testing.T, path string) map[string]string {
	t.Helper()
	buf := make([]byte, 64<<10)
	n, err := unix.Llistxattr(path, buf)
	if err != nil {
		t.Fatalf("%s: listxattr: %v", path, err)
	}
	if n == 0 {
		return nil
	}
	m := make(map[string]string)
	for name := range strings.SplitSeq(strings.TrimRight(string(buf[:n]), "\x00"), "\x00") {
		value := make([]byte, 64<<10)
		n, err := unix.Lgetxattr(path, name, value)
		if err != nil {
			t.Fatalf("%s: getxattr %s: %v", path, name, err)
		}
		m[name] = string(value[:n])
	}
	return m
}

// renumber gives inodes numbers in the order of their first names, so that two trees can be compared.
func (t tree) renumber() tree {
	numbers := make(map[uint64]uint64)
	for _, name := range t.paths() {
		n := t[name]
		if numbers[n.Inode] == 0 {
			numbers[n.Inode] = uint64(len(numbers) + 1)
		}
		n.Inode = numbers[n.Inode]
		t[name] = n
	}
	return t
}

func TestMountedImage(t *testing.T) {
	needVM(t)
	data, _ := dataTar(t)
	for name, b := range map[string][]byte{"attributes": attrTar(t), "data": data, "sparse": sparseTar(t, 16<<20)} {
		t.Run(name, func(t *testing.T) {
			f, _, err := layer(t, LayerOptions{}, b)
			if err != nil {
				t.Fatal(err)
			}
			want, err := readImage(f)
			if err != nil {
				t.Fatal(err)
			}
			got := walk(t, mountImage(t, f))
			if diff := cmp.Diff(want.renumber(), got.renumber()); diff != "" {
				t.Errorf("mounted (-own reader +kernel):\n%.4000s", diff)
			}
		})
	}
	for _, test := range oneLayer {
		if strings.Contains(test.tar, "d/d/") {
			continue // too deep below the mount point
		}
		t.Run(test.name, func(t *testing.T) {
			f, _, err := layer(t, LayerOptions{}, parseTar(t, test.tar))
			if err != nil {
				t.Fatal(err)
			}
			got := walk(t, mountImage(t, f))
			if diff := cmp.Diff(unindent(test.upper), unindent(got.String())); diff != "" {
				t.Errorf("mounted (-want +got):\n%s", diff)
			}
		})
	}
}

// TestAgainstTar compares images with what GNU tar makes of the same archives.
func TestAgainstTar(t *testing.T) {
	needVM(t)
	archives := map[string][]byte{"attributes": attrTar(t)}
	archives["data"], _ = dataTar(t)
	archives["system"] = []byte(command(t, "tar", "-C", "/", "-c", "--xattrs", "--xattrs-include=*", "--sort=name", "etc", "usr/bin", "usr/share/perl"))
	for name, b := range archives {
		t.Run(name, func(t *testing.T) {
			f, _, err := layer(t, LayerOptions{Base: true}, b)
			if err != nil {
				t.Fatal(err)
			}
			archive := filepath.Join(t.TempDir(), "layer.tar")
			if err := os.WriteFile(archive, b, 0o600); err != nil {
				t.Fatal(err)
			}
			// On tmpfs, for xattrs larger than a block.
			dir := mount(t, "-t", "tmpfs", "-o", "mode=0755", "tmpfs")
			command(t, "tar", "-x", "-p", "-C", dir, "--xattrs", "--xattrs-include=*", "--numeric-owner", "-f", archive)
			got, want := walk(t, mountImage(t, f)).renumber(), walk(t, dir).renumber()
			for name, w := range want {
				g, ok := got[name]
				delete(got, name)
				if g.Mtime == 0 && g.Mode&0o170000 == modeFolder {
					continue // not in the archive: made now by tar
				}
				for x := range w.Xattrs {
					if strings.Contains(x, ".overlay.") {
						delete(w.Xattrs, x)
					}
				}
				if diff := cmp.Diff(w, g); diff != "" || !ok {
					t.Errorf("%s (-tar +image):\n%.2000s", name, diff)
				}
			}
			for name := range got {
				t.Errorf("%s: not there by tar", name)
			}
		})
	}
}

func TestOverlay(t *testing.T) {
	needVM(t)
	for _, test := range stacks {
		t.Run(test.name, func(t *testing.T) {
			var lowers []string
			for i, lines := range test.layers {
				f, _, err := layer(t, LayerOptions{Base: i == 0}, parseTar(t, lines))
				if err != nil {
					t.Fatal(err)
				}
				lowers = append([]string{mountImage(t, f)}, lowers...)
			}
			dir := mount(t, "-t", "overlay", "-o", "ro,lowerdir="+strings.Join(lowers, ":"), "overlay")
			if diff := cmp.Diff(unindent(test.want), walk(t, dir).String()); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestFullDisk(t *testing.T) {
	needVM(t)
	dir := mount(t, "-t", "tmpfs", "-o", "size=1m", "tmpfs")
	full := func(name string, size int) {
		t.Helper()
		f, err := os.Create(filepath.Join(dir, "layer"))
		if err != nil {
			t.Fatal(err)
		}
		defer os.Remove(f.Name())
		defer f.Close()
		w := NewLayerWriter(f, LayerOptions{})
		err = w.AddTar(bytes.NewReader(parseTar(t, "f a "+strings.Repeat("x", size))))
		if err == nil {
			_, err = w.Close()
		}
		if !errors.Is(err, unix.ENOSPC) {
			t.Errorf("%s: got %v, want %v", name, err, unix.ENOSPC)
		}
	}
	full("while data arrives", 3<<20)
	full("at Close", 1<<20)

	if err := os.WriteFile(filepath.Join(dir, "rest"), make([]byte, 2<<20), 0o600); !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
	cache := t.TempDir()
	if err := CreateScratch(t.Context(), filepath.Join(dir, "disk"), 1<<30, cache); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("scratch disk: got %v, want %v", err, unix.ENOSPC)
	}
	if err := CreateScratch(t.Context(), filepath.Join(t.TempDir(), "disk"), 1<<30, dir); err == nil {
		t.Error("full cache: no error")
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.Name() != "rest" && e.Name() != "ext4.lock" {
			t.Errorf("left behind: %s", e.Name())
		}
	}
}
