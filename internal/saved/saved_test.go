package saved

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/matchlock/matchlock/internal/disk"
	"github.com/matchlock/matchlock/internal/hostfs"
	"github.com/matchlock/matchlock/vm"
)

// about is an owner's record.
type about struct {
	Of    string `json:"of"`
	Count int    `json:"count"`
}

// What testMachine has, and where.
const (
	memorySize, memoryAt, memoryText = 64 << 20, 20 << 20, "what the guest remembers"
	diskSize, diskAt, diskText       = 16 << 20, 4096, "files"
	stateText                        = "registers"
)

// testMachine is a machine that stands still, with a disk of two layers: an image and an overlay,
// neither of which is written to any more.
func testMachine(t testing.TB) *vm.Snapshot {
	t.Helper()
	dir := t.TempDir()
	file := func(name string, size int64, content string, at int64) *os.File {
		f, err := os.Create(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if err := f.Truncate(size); err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt([]byte(content), at); err != nil {
			t.Fatal(err)
		}
		return f
	}
	overlay, err := disk.CreateOverlay(filepath.Join(dir, "overlay"), diskSize)
	if err != nil {
		t.Fatal(err)
	}
	m := &vm.Snapshot{
		Memory:   file("guest-memory", memorySize, memoryText, memoryAt),
		State:    file("device-state", 0, stateText, 0),
		Disk:     []*os.File{file("upper", diskSize, diskText, diskAt), overlay},
		Requires: json.RawMessage(`{"qemu":"7.2"}`),
	}
	t.Cleanup(func() { m.Close() })
	for _, f := range m.Disk {
		if err := f.Chmod(0o400); err != nil {
			t.Fatal(err)
		}
	}
	return m
}

// makeTest makes a machine of that name in a new folder.
func makeTest(t testing.TB, name string) (folder, dir string) {
	t.Helper()
	folder = filepath.Join(t.TempDir(), "saved")
	if err := Make(t.Context(), folder, name, testMachine(t), about{"test", 1}); err != nil {
		t.Fatal(err)
	}
	return folder, filepath.Join(folder, name)
}

// checkMachine opens a machine and looks for what testMachine has.
func checkMachine(t testing.TB, dir string) {
	t.Helper()
	var a about
	m, err := Open(t.Context(), dir, &a)
	if err != nil {
		t.Errorf("Open: %v", err)
		return
	}
	defer m.Close()
	if a != (about{"test", 1}) || string(m.Requires) != `{"qemu":"7.2"}` {
		t.Errorf("about it: %+v, it requires %s", a, m.Requires)
	}
	if len(m.Disk) != 2 {
		t.Errorf("a disk of %d layers", len(m.Disk))
		return
	}
	for i, want := range []struct {
		file *os.File
		size int64
		text string
		at   int64
		mode fs.FileMode
	}{
		{m.Memory, memorySize, memoryText, memoryAt, 0o600},
		{m.State, int64(len(stateText)), stateText, 0, 0o600},
		{m.Disk[0], diskSize, diskText, diskAt, 0o400},
		{m.Disk[1], 4 << 16, "QFI\xfb", 0, 0o400},
	} {
		info, err := want.file.Stat()
		if err != nil {
			t.Fatal(err)
		}
		if info.Size() != want.size || info.Mode().Perm() != want.mode {
			t.Errorf("%s has %d bytes and mode %v, want %d and %v", fileName(i), info.Size(), info.Mode(), want.size, want.mode)
		}
		got := make([]byte, len(want.text))
		if _, err := want.file.ReadAt(got, want.at); err != nil || string(got) != want.text {
			t.Errorf("%s has %q (%v), want %q", fileName(i), got, err, want.text)
		}
	}
}

func contents(t testing.TB, folder string) (names []string) {
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

func checkContents(t testing.TB, folder string, want ...string) {
	t.Helper()
	if got := contents(t, folder); !slices.Equal(got, want) {
		t.Errorf("the folder has %q, want %q", got, want)
	}
}

// bootAnew changes what is known of a machine to what it would be after a boot of the host.
func bootAnew(t *testing.T, dir string) {
	t.Helper()
	r, err := readRecord(dir)
	if err != nil {
		t.Fatal(err)
	}
	r.BootID = "another"
	for i := range r.Files {
		r.Files[i].Inode++
	}
	if err := r.write(dir); err != nil {
		t.Fatal(err)
	}
}

func TestMake(t *testing.T) {
	folder := filepath.Join(t.TempDir(), "saved")
	m := testMachine(t)
	if err := Make(t.Context(), folder, "one", m, about{"test", 1}); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(folder, "one")
	checkMachine(t, dir)
	for i, f := range m.Disk {
		ours, err := f.Stat()
		if err != nil {
			t.Fatal(err)
		}
		its, err := os.Stat(filepath.Join(dir, fileName(2+i)))
		if err != nil {
			t.Fatal(err)
		}
		if !os.SameFile(ours, its) {
			t.Errorf("%s is a copy", fileName(2+i))
		}
	}
	if err := Make(t.Context(), folder, "one", m, about{"other", 2}); !errors.Is(err, fs.ErrExist) {
		t.Errorf("another of the name: %v", err)
	}
	checkMachine(t, dir)
	checkContents(t, folder, "one")

	// A machine that goes on from it gives its disk more names.
	if err := os.Link(filepath.Join(dir, "disk-0"), filepath.Join(t.TempDir(), "upper.ext4")); err != nil {
		t.Fatal(err)
	}
	checkMachine(t, dir)
	for _, bad := range []string{"", ".", "..", ".new-x", "a/b", "-x", strings.Repeat("x", 129), "a\nb"} {
		if err := Make(t.Context(), folder, bad, m, nil); err == nil {
			t.Errorf("made one of the name %q", bad)
		}
	}
}

// TestReplace has a machine be written to that a template is made of.
func TestReplace(t *testing.T) {
	folder := filepath.Join(t.TempDir(), "saved")
	m := testMachine(t)
	if err := m.Disk[0].Chmod(0o600); err != nil {
		t.Fatal(err)
	}
	for i := range 2 {
		if err := Replace(t.Context(), folder, "one", m, about{"test", i}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := m.Disk[0].WriteAt([]byte("other"), diskAt); err != nil {
		t.Fatal(err)
	}
	checkMachine(t, filepath.Join(folder, "one"))
	checkContents(t, folder, "one")
}

// TestDamage has a machine be damaged in every way, of which some only the sums tell.
func TestDamage(t *testing.T) {
	write := func(at int64, text string) func(*testing.T, string) {
		return func(t *testing.T, path string) {
			if err := os.Chmod(path, 0o600); err != nil {
				t.Fatal(err)
			}
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
		"memory truncated":             {"memory", truncate, false, "memory: it was changed"},
		"memory flipped":               {"memory", write(memoryAt, "W"), false, "memory: it was changed"},
		"memory flipped, after a boot": {"memory", write(memoryAt, "W"), true, "memory: it is damaged"},
		"a page more, after a boot":    {"memory", write(40<<20, "W"), true, "memory: it is damaged"},
		"disk flipped":                 {"disk-0", write(diskAt, "F"), false, "disk-0: it was changed"},
		"disk flipped, after a boot":   {"disk-0", write(diskAt, "F"), true, "disk-0: it is damaged"},
		"layer truncated":              {"disk-1", truncate, true, "disk-1: it was changed"},
		"state truncated":              {"state", truncate, false, "state: it is damaged"},
		"state flipped":                {"state", write(0, "R"), false, "state: it is damaged"},
		"record damaged":               {recordName, write(0, "x"), false, "record.json: invalid character"},
		"another format":               {recordName, write(0, `{"format":2}   `), false, "record.json: "},
	} {
		t.Run(name, func(t *testing.T) {
			_, dir := makeTest(t, "one")
			damage.do(t, filepath.Join(dir, damage.file))
			if damage.reboot {
				bootAnew(t, dir)
			}
			if m, err := Open(t.Context(), dir, nil); m != nil || err == nil || !strings.Contains(err.Error(), damage.want) {
				t.Errorf("Open: %v, %v; want %q in the error", m, err, damage.want)
			}
			if err := Verify(t.Context(), dir); err == nil {
				t.Error("Verify finds nothing")
			}
		})
	}
}

// TestOpenAfterBoot: one that is sound is used after a boot of the host, and its sums are asked for
// once.
func TestOpenAfterBoot(t *testing.T) {
	_, dir := makeTest(t, "one")
	bootAnew(t, dir)
	if err := Verify(t.Context(), dir); err != nil {
		t.Errorf("Verify: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Open(ctx, dir, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("Open after the end: %v", err)
	}
	for range 2 {
		checkMachine(t, dir)
		if r, err := readRecord(dir); err != nil || r.BootID != hostfs.BootID() {
			t.Errorf("the record says %+v, %v", r, err)
		}
	}
	// As cheap as it is now, it does not see what Verify sees.
	r, err := readRecord(dir)
	if err != nil {
		t.Fatal(err)
	}
	r.Files[0].Sum = "no more"
	if err := r.write(dir); err != nil {
		t.Fatal(err)
	}
	checkMachine(t, dir)
	if err := Verify(t.Context(), dir); err == nil {
		t.Error("Verify does not look at sums")
	}
}

func TestOpenNothing(t *testing.T) {
	folder, dir := makeTest(t, "one")
	if err := Remove(dir); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), dir, nil); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Open: %v", err)
	}
	if err := Verify(t.Context(), dir); err != nil {
		t.Errorf("Verify: %v", err)
	}
	if err := Remove(dir); err != nil {
		t.Errorf("Remove: %v", err)
	}
	checkContents(t, folder)
}

// TestAtOnce has many make the same one: one does, and nothing else is left.
func TestAtOnce(t *testing.T) {
	for name, test := range map[string]struct {
		make func(ctx context.Context, folder, name string, m *vm.Snapshot, about any) error
		lost func(error) bool
		most int
	}{
		"make":    {Make, func(err error) bool { return errors.Is(err, ErrBeingMade) || errors.Is(err, fs.ErrExist) }, 1},
		"replace": {Replace, func(err error) bool { return errors.Is(err, ErrBeingMade) }, 8},
	} {
		t.Run(name, func(t *testing.T) {
			folder := filepath.Join(t.TempDir(), "saved")
			// What a maker left that was killed.
			left := filepath.Join(folder, makingPrefix+"one")
			if err := os.MkdirAll(left, 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(left, memoryName), []byte("half"), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(folder, 0o700); err != nil {
				t.Fatal(err)
			}
			var all sync.WaitGroup
			var mu sync.Mutex
			made := 0
			for range 8 {
				m := testMachine(t)
				all.Go(func() {
					if err := test.make(t.Context(), folder, "one", m, about{"test", 1}); err != nil {
						if !test.lost(err) {
							t.Error(err)
						}
						return
					}
					mu.Lock()
					defer mu.Unlock()
					made++
				})
			}
			all.Wait()
			if made == 0 || made > test.most {
				t.Errorf("%d made it", made)
			}
			checkContents(t, folder, "one")
			checkMachine(t, filepath.Join(folder, "one"))
		})
	}
}

// TestMakeFails leaves nothing.
func TestMakeFails(t *testing.T) {
	folder := filepath.Join(t.TempDir(), "saved")
	for name, spoil := range map[string]func(*vm.Snapshot){
		"closed":      func(m *vm.Snapshot) { m.Disk[1].Close() },
		"no memory":   func(m *vm.Snapshot) { m.Memory = nil },
		"no disk":     func(m *vm.Snapshot) { m.Disk = nil },
		"many layers": func(m *vm.Snapshot) { m.Disk = slices.Repeat(m.Disk[:1], MaxLayers+1) },
	} {
		m := testMachine(t)
		spoil(m)
		if err := Make(t.Context(), folder, "one", m, nil); err == nil {
			t.Errorf("%s: no error", name)
		}
		checkContents(t, folder)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Make(ctx, folder, "one", testMachine(t), nil); !errors.Is(err, context.Canceled) {
		t.Errorf("after the end: %v", err)
	}
	checkContents(t, folder)
}

func TestRemains(t *testing.T) {
	folder, dir := makeTest(t, "one")
	if err := RemoveRemains(filepath.Join(folder, "nowhere")); err != nil {
		t.Errorf("where there is nothing: %v", err)
	}
	for _, left := range []string{makingPrefix + "two", deadPrefix + "three", deadPrefix + "one"} {
		if err := os.MkdirAll(filepath.Join(folder, left, "file"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	lock, err := lockMaking(filepath.Join(folder, makingPrefix+"four"))
	if err != nil {
		t.Fatal(err)
	}
	if err := RemoveRemains(folder); err != nil {
		t.Error(err)
	}
	checkContents(t, folder, makingPrefix+"four", "one")
	lock.Close()
	// A removal that was killed does not keep another from being one.
	if err := os.MkdirAll(filepath.Join(folder, deadPrefix+"one", "file"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := Remove(dir); err != nil {
		t.Error(err)
	}
	checkContents(t, folder, makingPrefix+"four")
}

func TestList(t *testing.T) {
	if got, err := List[about](filepath.Join(t.TempDir(), "nowhere")); len(got) != 0 || err != nil {
		t.Errorf("where there is none: %v, %v", got, err)
	}
	folder, dir := makeTest(t, "old")
	if err := Make(t.Context(), folder, "young", testMachine(t), about{"test", 2}); err != nil {
		t.Fatal(err)
	}
	hour := time.Now().Add(-time.Hour)
	if err := os.Chtimes(filepath.Join(dir, recordName), hour, hour); err != nil {
		t.Fatal(err)
	}
	if err := Verify(t.Context(), dir); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(folder, makingPrefix+"x"), 0o700); err != nil {
		t.Fatal(err)
	}
	got, err := List[about](folder)
	if err != nil || len(got) != 2 {
		t.Fatalf("List: %v, %v", got, err)
	}
	for i := range got {
		if got[i].Size < 4096 || got[i].Size > 1<<20 {
			t.Errorf("%s takes %d bytes", got[i].Name, got[i].Size)
		}
		if ago := time.Since(got[i].Used) - time.Duration(i)*time.Hour; ago < 0 || ago > time.Minute {
			t.Errorf("%s was used %v", got[i].Name, got[i].Used)
		}
		got[i].Size, got[i].Used = 0, time.Time{}
	}
	requires := json.RawMessage(`{"qemu":"7.2"}`)
	want := []Entry[about]{
		{Name: "young", About: about{"test", 2}, Requires: requires},
		{Name: "old", About: about{"test", 1}, Requires: requires},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	checkMachine(t, dir) // which counts as use
	if e, err := Describe[about](dir); err != nil || time.Since(e.Used) > time.Minute {
		t.Errorf("Describe: %+v, %v", e, err)
	}
	if err := os.WriteFile(filepath.Join(dir, recordName), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if e, err := Describe[about](dir); err != nil || e.Damage == nil || !strings.HasPrefix(e.Damage.Error(), "record.json: invalid character") {
		t.Errorf("with a damaged record: %+v, %v", e, err)
	}
}

// BenchmarkOpen opens what was written since the host booted, as a start from a template does.
func BenchmarkOpen(b *testing.B) {
	_, dir := makeTest(b, "one")
	for b.Loop() {
		m, err := Open(b.Context(), dir, nil)
		if err != nil {
			b.Fatal(err)
		}
		m.Close()
	}
}

// FuzzRecord has a record say anything: it is refused, or is of a machine's files alone.
func FuzzRecord(f *testing.F) {
	folder := f.TempDir()
	if err := Make(f.Context(), folder, "one", testMachine(f), about{"test", 1}); err != nil {
		f.Fatal(err)
	}
	dir := filepath.Join(folder, "one")
	text, err := os.ReadFile(filepath.Join(dir, recordName))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Add([]byte(strings.Replace(string(text), `"name":"`, `"name":"../`, 1)))
	f.Fuzz(func(t *testing.T, text []byte) {
		if err := os.WriteFile(filepath.Join(dir, recordName), text, 0o600); err != nil {
			t.Fatal(err)
		}
		r, err := readRecord(dir)
		if err != nil {
			return
		}
		for _, file := range r.Files {
			if strings.ContainsRune(file.Name, '/') {
				t.Errorf("file %q", file.Name)
			}
		}
		var a about
		if m, err := Open(t.Context(), dir, &a); err == nil {
			m.Close()
		}
	})
}
