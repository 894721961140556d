package qemu_test

import (
	"bytes"
	"path/filepath"
	"testing"

	"github.com/matchlock/matchlock/internal/saved"
)

// A machine with a disk of several layers is kept, sent through an archive, and goes on from what came.
func TestVMSavedSnapshot(t *testing.T) {
	config := overlayConfig(t, "original")
	original := started(t, backendOptions(t), config)
	shell(t, original, "echo one > /one; sync; echo memory > /tmp/file")
	second, secondConfig := copyOf(t, snapshotOf(t, original), config, "second")
	shell(t, second, "head -c 3000000 /dev/urandom > /big; echo two > /two; md5sum /big > /tmp/sum; sync")
	snapshot := snapshotOf(t, second)
	if len(snapshot.Disk) != 2 {
		t.Fatalf("the disk has %d layers", len(snapshot.Disk))
	}

	folder := filepath.Join(t.TempDir(), "saved")
	if err := saved.Make(t.Context(), folder, "one", snapshot, nil); err != nil {
		t.Fatal(err)
	}
	var archive bytes.Buffer
	if err := saved.Export(t.Context(), filepath.Join(folder, "one"), &archive, saved.ExportOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Logf("the archive has %d bytes", archive.Len())
	if err := saved.Import(t.Context(), folder, "two", &archive, saved.Limits{}, nil); err != nil {
		t.Fatal(err)
	}
	if err := saved.Remove(filepath.Join(folder, "one")); err != nil {
		t.Fatal(err)
	}
	for i := range 2 { // the second time, machines share the files
		came, err := saved.Open(t.Context(), filepath.Join(folder, "two"), nil)
		if err != nil {
			t.Fatal(err)
		}
		third, _ := copyOf(t, came, secondConfig, []string{"third", "fourth"}[i])
		came.Close()
		if got := shell(t, third, "cat /one /two /tmp/file; md5sum -c /tmp/sum"); got != "one\ntwo\nmemory\n/big: OK" {
			t.Errorf("it has %q", got)
		}
		shell(t, third, "echo mine > /one; sync")
	}
	if err := saved.Verify(t.Context(), filepath.Join(folder, "two")); err != nil {
		t.Error(err)
	}
	if got := shell(t, second, "cat /one"); got != "one" {
		t.Errorf("the machine that was kept has %q", got)
	}
}
