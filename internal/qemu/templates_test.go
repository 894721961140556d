package qemu

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestPruneTemplates(t *testing.T) {
	folder := templateFolder(t)
	if err := PruneTemplates(folder); err != nil {
		t.Errorf("where there are none: %v", err)
	}
	kept, old := shape{VCPUs: 1}, shape{VCPUs: 2}
	makeTestTemplate(t, folder, kept)
	unused := makeTestTemplate(t, folder, old)
	longAgo := time.Now().Add(-templateAge - time.Hour)
	if err := os.Chtimes(filepath.Join(unused.dir, templateRecord), longAgo, longAgo); err != nil {
		t.Fatal(err)
	}
	for _, left := range []string{newTemplatePrefix + "1", oldTemplatePrefix + "2", "no-record"} {
		if err := os.Mkdir(filepath.Join(folder, left), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := PruneTemplates(folder); err != nil {
		t.Fatal(err)
	}
	if got := contents(t, folder); len(got) != 1 || got[0] != kept.name() {
		t.Errorf("left: %q, want %q", got, kept.name())
	}
	// Whoever uses one that is removed goes on.
	got := make([]byte, 4)
	if _, err := unused.memory.ReadAt(got, 20<<20); err != nil || !bytes.Equal(got, []byte("what")) {
		t.Errorf("memory has %q, %v", got, err)
	}
}
