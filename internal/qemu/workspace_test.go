package qemu_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/matchlock/matchlock/api"
	"github.com/matchlock/matchlock/internal/fuse"
	"github.com/matchlock/matchlock/internal/wire"
	"github.com/matchlock/matchlock/internal/workspace"
	"github.com/matchlock/matchlock/vm"
)

// Who uses package vm alone serves the files of VMConfig.Workspace by a port.
func TestVMWorkspace(t *testing.T) {
	needVM(t)
	ctx := t.Context()
	config := overlayConfig(t, "workspace")
	config.Workspace, config.NoNetwork = "/work", true
	m, err := newBackend(t).Create(ctx, config)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close(ctx)
	if err := m.Start(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Exec(ctx, "true", nil); err == nil {
		t.Error("a command ran before Boot")
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "asked"), []byte("question"), 0o644); err != nil {
		t.Fatal(err)
	}
	tree, err := workspace.OpenHost(dir, workspace.HostOptions{})
	if err != nil {
		t.Fatal(err)
	}
	server := fuse.NewServer(tree, fuse.Options{})
	defer server.Close()
	conn, err := m.(vm.VsockDialer).DialVsock(wire.PortFiles)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(ctx, conn, nil) }()
	if err := m.(vm.Booter).Boot(ctx, &api.BootData{}); err != nil {
		t.Fatal(err)
	}
	// More than fits into the port's own messages, both ways.
	said, code := sh(t, m, nil, "cd /work && cat asked && seq 1 200000 >numbers && md5sum <numbers >sum && md5sum <numbers | cmp - sum && mv numbers answered")
	if code != 0 || said != "question" {
		t.Errorf("status %d, said %q", code, said)
	}
	if info, err := os.Stat(filepath.Join(dir, "answered")); err != nil || info.Size() != 1288895 {
		t.Errorf("the host has %v (%v), want 1288895 bytes", info, err)
	}
	if err := m.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	if err := <-served; err != nil {
		t.Errorf("serving ended with %v", err)
	}
}
