package fuse

import (
	"context"
	"encoding/binary"
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/matchlock/matchlock/internal/workspace"
	"golang.org/x/sys/unix"
)

// BenchmarkLookup measures a question and its answer over a socket, as QEMU has one.
func BenchmarkLookup(b *testing.B) {
	dir := b.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o600); err != nil {
		b.Fatal(err)
	}
	host, err := workspace.OpenHost(dir, workspace.HostOptions{})
	if err != nil {
		b.Fatal(err)
	}
	tree, err := workspace.NewRouter([]workspace.Mounted{{Name: "0", FS: host}})
	if err != nil {
		b.Fatal(err)
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		b.Fatal(err)
	}
	unix.SetNonblock(fds[0], true)
	f := os.NewFile(uintptr(fds[0]), "")
	conn, err := net.FileConn(f)
	f.Close()
	if err != nil {
		b.Fatal(err)
	}
	s := NewServer(tree, Options{})
	done := make(chan error)
	go func() { done <- s.Serve(context.Background(), conn, nil) }()
	unix.Write(fds[1], greeting{}.append(nil))
	ask := func(node uint64, name string) uint64 {
		m := make([]byte, 0, 128)
		n := uint32(inHeaderSize + len(name) + 1)
		m = head{length: n}.append(m)
		m = binary.NativeEndian.AppendUint32(m, n)
		m = binary.NativeEndian.AppendUint32(m, opLookup)
		m = binary.NativeEndian.AppendUint64(m, 7)
		m = binary.NativeEndian.AppendUint64(m, node)
		m = append(m, make([]byte, 16)...)
		m = append(append(m, name...), 0)
		if _, err := unix.Write(fds[1], m); err != nil {
			b.Fatal(err)
		}
		var out [4096]byte
		if _, err := unix.Read(fds[1], out[:]); err != nil {
			b.Fatal(err)
		}
		return binary.NativeEndian.Uint64(out[frameHead+outHeaderSize:])
	}
	mount := ask(rootID, "0")
	for b.Loop() {
		ask(mount, "file")
	}
	unix.Close(fds[1])
	if err := <-done; err != nil {
		b.Fatal(err)
	}
}
