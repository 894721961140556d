package qemu

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// What package saved calls the files of a template.
const (
	templateMemory = "memory"
	templateState  = "state"
	templateUpper  = "disk-0"
	templateRecord = "record.json"
)

// machineFiles are the memory, state and upper disk of a machine that stands still.
func machineFiles(t *testing.T) (memory, state, upper *os.File) {
	t.Helper()
	file := func(name string, size int64, content string, at int64) *os.File {
		f, err := os.Create(filepath.Join(t.TempDir(), name))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		if err := f.Truncate(size); err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt([]byte(content), at); err != nil {
			t.Fatal(err)
		}
		return f
	}
	return file("memory", 64<<20, "what the guest remembers", 20<<20), file("state", 0, "registers", 0), file("upper", 16<<20, "files", 4096)
}

// make makes a template in folder.
func makeTestTemplate(t *testing.T, folder string, s shape) *template {
	t.Helper()
	memory, state, upper := machineFiles(t)
	made, err := makeTemplate(t.Context(), folder, s, origin{}, memory, state, upper)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { made.Close() })
	return made
}

func templateFolder(t *testing.T) string {
	t.Helper()
	return filepath.Join(t.TempDir(), "templates")
}

func contents(t *testing.T, folder string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(folder)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func TestTemplate(t *testing.T) {
	folder, s := templateFolder(t), shape{VCPUs: 1}
	if found, err := openTemplate(t.Context(), folder, s); found != nil || err != nil {
		t.Errorf("where there is none: %v, %v", found, err)
	}
	made := makeTestTemplate(t, folder, s)
	found, err := openTemplate(t.Context(), folder, s)
	if err != nil || found == nil {
		t.Fatalf("openTemplate = %v, %v", found, err)
	}
	defer found.Close()
	for _, tt := range []*template{made, found} {
		got := make([]byte, 24)
		if _, err := tt.Memory.ReadAt(got, 20<<20); err != nil || string(got) != "what the guest remembers" {
			t.Errorf("memory has %q, %v", got, err)
		}
		if _, err := tt.State.ReadAt(got[:9], 0); err != nil || string(got[:9]) != "registers" {
			t.Errorf("state has %q, %v", got[:9], err)
		}
		if _, err := tt.Disk[0].ReadAt(got[:5], 4096); err != nil || string(got[:5]) != "files" {
			t.Errorf("upper has %q, %v", got[:5], err)
		}
	}
	if other, err := openTemplate(t.Context(), folder, shape{VCPUs: 2}); other != nil || err != nil {
		t.Errorf("for another shape: %v, %v", other, err)
	}
	if got := contents(t, folder); len(got) != 1 || got[0] != s.name() {
		t.Errorf("the folder has %q", got)
	}
}

// TestTemplateDamage: one that is damaged is not used, the reason is told once,
// and another can be made.
func TestTemplateDamage(t *testing.T) {
	folder, s := templateFolder(t), shape{}
	made := makeTestTemplate(t, folder, s)
	if err := os.Truncate(filepath.Join(made.dir, templateState), 3); err != nil {
		t.Fatal(err)
	}
	found, err := openTemplate(t.Context(), folder, s)
	if found != nil || err == nil || !strings.Contains(err.Error(), "template "+s.name()+": state: it is damaged") {
		t.Errorf("openTemplate = %v, %v", found, err)
	}
	if found, err := openTemplate(t.Context(), folder, s); found != nil || err != nil {
		t.Errorf("a second time: %v, %v", found, err)
	}
	makeTestTemplate(t, folder, s)
	if found, err = openTemplate(t.Context(), folder, s); err != nil || found == nil {
		t.Fatalf("after another was made: %v, %v", found, err)
	}
	found.Close()
}

// TestTemplateOfOld: what an older matchlock has left is ignored, and replaced.
func TestTemplateOfOld(t *testing.T) {
	folder, s := templateFolder(t), shape{}
	dir := filepath.Join(folder, s.name())
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(folder, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "template.json"), []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	if found, err := openTemplate(t.Context(), folder, s); found != nil || err != nil {
		t.Errorf("openTemplate = %v, %v", found, err)
	}
	makeTestTemplate(t, folder, s)
}

// TestTemplateInterrupted: an end is no reason to remove one.
func TestTemplateInterrupted(t *testing.T) {
	folder, s := templateFolder(t), shape{}
	makeTestTemplate(t, folder, s)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if found, err := openTemplate(ctx, folder, s); found != nil || !errors.Is(err, context.Canceled) {
		t.Errorf("after the end: %v, %v", found, err)
	}
	if found, err := openTemplate(t.Context(), folder, s); found == nil || err != nil {
		t.Errorf("openTemplate = %v, %v", found, err)
	} else {
		found.Close()
	}
}

// TestTemplateThatCannotBeMade leaves nothing.
func TestTemplateThatCannotBeMade(t *testing.T) {
	folder := templateFolder(t)
	memory, state, upper := machineFiles(t)
	upper.Close()
	if _, err := makeTemplate(t.Context(), folder, shape{}, origin{}, memory, state, upper); err == nil {
		t.Error("it was made of a file that is closed")
	}
	if got := contents(t, folder); len(got) != 0 {
		t.Errorf("left: %q", got)
	}
}
