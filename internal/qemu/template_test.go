package qemu

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/matchlock/matchlock/internal/hostfs"
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
	made, err := makeTemplate(folder, s, origin{}, memory, state, upper)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(made.close)
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
	if found, err := openTemplate(folder, s); found != nil || err != nil {
		t.Errorf("where there is none: %v, %v", found, err)
	}
	made := makeTestTemplate(t, folder, s)
	found, err := openTemplate(folder, s)
	if err != nil || found == nil {
		t.Fatalf("openTemplate = %v, %v", found, err)
	}
	defer found.close()
	for _, tt := range []*template{made, found} {
		got := make([]byte, 24)
		if _, err := tt.memory.ReadAt(got, 20<<20); err != nil || string(got) != "what the guest remembers" {
			t.Errorf("memory has %q, %v", got, err)
		}
		if string(tt.state) != "registers" {
			t.Errorf("state is %q", tt.state)
		}
		if _, err := tt.upper.ReadAt(got[:5], 4096); err != nil || string(got[:5]) != "files" {
			t.Errorf("upper has %q, %v", got[:5], err)
		}
	}
	if other, err := openTemplate(folder, shape{VCPUs: 2}); other != nil || err != nil {
		t.Errorf("for another shape: %v, %v", other, err)
	}
	if got := contents(t, folder); len(got) != 1 || got[0] != s.name() {
		t.Errorf("the folder has %q", got)
	}
}

// TestTemplateDamage has a template be damaged in every way: it is not used, the
// reason is told once, and another can be made.
func TestTemplateDamage(t *testing.T) {
	write := func(at int64, text string) func(*testing.T, string) {
		return func(t *testing.T, path string) {
			f, err := os.OpenFile(path, os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if _, err := f.WriteAt([]byte(text), at); err != nil {
				t.Fatal(err)
			}
		}
	}
	truncate := func(t *testing.T, path string) {
		if err := os.Truncate(path, 3); err != nil {
			t.Fatal(err)
		}
	}
	for name, damage := range map[string]struct {
		file   string
		do     func(*testing.T, string)
		reboot bool // as if the host had booted anew since it was made
		want   string
	}{
		"memory truncated":             {templateMemory, truncate, false, "memory: it was changed"},
		"memory flipped":               {templateMemory, write(20<<20, "W"), false, "memory: it was changed"},
		"memory flipped, after a boot": {templateMemory, write(20<<20, "W"), true, "memory: it is damaged"},
		"a page more, after a boot":    {templateMemory, write(40<<20, "W"), true, "memory: it is damaged"},
		"upper flipped, after a boot":  {templateUpper, write(4096, "F"), true, "upper: it is damaged"},
		"upper truncated":              {templateUpper, truncate, true, "upper: it was changed"},
		"state truncated":              {templateState, truncate, false, "state: it is damaged"},
		"state flipped":                {templateState, write(0, "R"), false, "state: it is damaged"},
		"record damaged":               {templateRecord, write(0, "x"), false, "invalid character"},
	} {
		t.Run(name, func(t *testing.T) {
			folder, s := templateFolder(t), shape{}
			made := makeTestTemplate(t, folder, s)
			damage.do(t, filepath.Join(made.dir, damage.file))
			if damage.reboot {
				bootAnew(t, made.dir)
			}
			found, err := openTemplate(folder, s)
			if found != nil || err == nil || !strings.Contains(err.Error(), damage.want) {
				t.Errorf("openTemplate = %v, %v; want %q in the error", found, err, damage.want)
			}
			if found, err := openTemplate(folder, s); found != nil || err != nil {
				t.Errorf("a second time: %v, %v", found, err)
			}
			makeTestTemplate(t, folder, s)
			if found, err = openTemplate(folder, s); err != nil {
				t.Fatal(err)
			}
			found.close()
		})
	}
}

// bootAnew changes what is known of a template to what it would be after a boot
// of the host.
func bootAnew(t *testing.T, dir string) {
	t.Helper()
	var r record
	path := filepath.Join(dir, templateRecord)
	if err := hostfs.ReadRecord(path, &r); err != nil {
		t.Fatal(err)
	}
	r.BootID = "another"
	if err := hostfs.WriteRecord(path, &r); err != nil {
		t.Fatal(err)
	}
}

// TestTemplateAfterBoot: one that is sound is used after a boot of the host, and
// its sums are asked for once.
func TestTemplateAfterBoot(t *testing.T) {
	folder, s := templateFolder(t), shape{}
	made := makeTestTemplate(t, folder, s)
	bootAnew(t, made.dir)
	for range 2 {
		found, err := openTemplate(folder, s)
		if err != nil || found == nil {
			t.Fatalf("openTemplate = %v, %v", found, err)
		}
		found.close()
		var r record
		if err := hostfs.ReadRecord(filepath.Join(made.dir, templateRecord), &r); err != nil || r.BootID == "another" {
			t.Errorf("the record says %q, %v", r.BootID, err)
		}
	}
}

// TestTemplateAtOnce has many make the same one: it is made, and nothing is left.
func TestTemplateAtOnce(t *testing.T) {
	folder, s := templateFolder(t), shape{}
	// What a maker left that was killed.
	left := filepath.Join(folder, newTemplatePrefix+s.name())
	if err := os.MkdirAll(left, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(left, templateMemory), []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(folder, 0o700); err != nil {
		t.Fatal(err)
	}
	memory, state, upper := machineFiles(t)
	var all sync.WaitGroup
	var mu sync.Mutex
	made := 0
	for range 8 {
		files := make([]*os.File, 3)
		for i, f := range []*os.File{memory, state, upper} {
			again, err := os.Open(f.Name())
			if err != nil {
				t.Fatal(err)
			}
			defer again.Close()
			files[i] = again
		}
		all.Go(func() {
			one, err := makeTemplate(folder, s, origin{}, files[0], files[1], files[2])
			if err != nil {
				if !errors.Is(err, ErrTemplateBeingMade) {
					t.Error(err)
				}
				return
			}
			one.close()
			mu.Lock()
			defer mu.Unlock()
			made++
		})
	}
	all.Wait()
	if made == 0 {
		t.Error("nobody made it")
	}
	if got := contents(t, folder); len(got) != 1 || got[0] != s.name() {
		t.Errorf("the folder has %q", got)
	}
	found, err := openTemplate(folder, s)
	if err != nil || found == nil {
		t.Fatalf("openTemplate = %v, %v", found, err)
	}
	found.close()
}

// TestTemplateThatCannotBeMade leaves nothing.
func TestTemplateThatCannotBeMade(t *testing.T) {
	folder := templateFolder(t)
	memory, state, upper := machineFiles(t)
	upper.Close()
	if _, err := makeTemplate(folder, shape{}, origin{}, memory, state, upper); err == nil {
		t.Error("it was made of a file that is closed")
	}
	if got := contents(t, folder); len(got) != 0 {
		t.Errorf("left: %q", got)
	}
}
