package state

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/matchlock/matchlock/api"
)

func create(t *testing.T, sandboxes, name string) *Dir {
	t.Helper()
	d, err := Create(t.Context(), sandboxes, Record{Info: api.Info{Name: name, Status: api.StatusStarting, Created: time.Now()}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Remove() })
	return d
}

func TestLookup(t *testing.T) {
	sandboxes := filepath.Join(t.TempDir(), "sandboxes")
	first, second := create(t, sandboxes, "first"), create(t, sandboxes, "")
	for ref, want := range map[string]string{
		"first":              first.ID,
		first.ID:             first.ID,
		second.Record().Name: second.ID,
		second.ID[:11]:       second.ID,
		second.ID:            second.ID,
	} {
		if got := lookup(t, sandboxes, ref); got.ID != want {
			t.Errorf("Lookup(%q) = %s, want %s", ref, got.ID, want)
		}
	}
	// A name goes before an id, and an id before the beginning of one.
	third := create(t, sandboxes, first.ID[:3])
	if got := lookup(t, sandboxes, first.ID[:3]); got.ID != third.ID {
		t.Errorf("Lookup(%q) = %s, want the one of that name, %s", first.ID[:3], got.ID, third.ID)
	}

	var missing *NotFoundError
	if _, err := Lookup(sandboxes, "frist"); !errors.As(err, &missing) || missing.Near != "first" {
		t.Errorf("Lookup(frist) = %v, near %+v", err, missing)
	}
	if _, err := Lookup(sandboxes, ""); !errors.As(err, &missing) {
		t.Errorf("Lookup of nothing = %v", err)
	}
	var ambiguous *AmbiguousError
	entries := []Entry{{Record: Record{Info: api.Info{ID: "abc1", Name: "x"}}}, {Record: Record{Info: api.Info{ID: "abc2", Name: "y"}}}}
	if _, err := match(entries, "abc"); !errors.As(err, &ambiguous) || len(ambiguous.IDs) != 2 {
		t.Errorf("the beginning of two ids = %v", err)
	}
}

func TestNames(t *testing.T) {
	sandboxes := filepath.Join(t.TempDir(), "sandboxes")
	first := create(t, sandboxes, "first")
	if _, err := Create(t.Context(), sandboxes, Record{Info: api.Info{Name: "first"}}); !errors.Is(err, ErrNameTaken) {
		t.Errorf("a second sandbox called first: %v", err)
	}
	for _, name := range []string{"First", "-a", ".a", "a/b", "a b", strings.Repeat("a", 64)} {
		if _, err := Create(t.Context(), sandboxes, Record{Info: api.Info{Name: name}}); err == nil {
			t.Errorf("a sandbox could be called %q", name)
		}
		if err := first.Rename(t.Context(), name); err == nil {
			t.Errorf("a sandbox could be renamed to %q", name)
		}
	}
	if err := first.Rename(t.Context(), ""); err == nil {
		t.Error("a sandbox could be renamed to nothing")
	}
	second := create(t, sandboxes, "second")
	if err := second.Rename(t.Context(), "first"); !errors.Is(err, ErrNameTaken) {
		t.Errorf("Rename to a name that is taken = %v", err)
	}
	if err := second.Rename(t.Context(), "second"); err != nil {
		t.Errorf("Rename to its own name = %v", err)
	}
	if err := second.Rename(t.Context(), "third"); err != nil {
		t.Fatal(err)
	}
	if got := lookup(t, sandboxes, "third"); got.ID != second.ID {
		t.Errorf("third is %s, want %s", got.ID, second.ID)
	}
	if left := names(t, sandboxes); len(left) != 3 {
		t.Errorf("refused creations left something: %q", left)
	}
}

// TestNamesAtOnce has many ask for one name: one gets it.
func TestNamesAtOnce(t *testing.T) {
	sandboxes := filepath.Join(t.TempDir(), "sandboxes")
	var all sync.WaitGroup
	var mu sync.Mutex
	var got []*Dir
	for range 10 {
		all.Go(func() {
			d, err := Create(t.Context(), sandboxes, Record{Info: api.Info{Name: "mine"}})
			if err != nil {
				if !errors.Is(err, ErrNameTaken) {
					t.Error(err)
				}
				return
			}
			mu.Lock()
			defer mu.Unlock()
			got = append(got, d)
		})
	}
	all.Wait()
	if len(got) != 1 {
		t.Errorf("%d sandboxes have one name", len(got))
	}
}

func TestOpen(t *testing.T) {
	sandboxes := filepath.Join(t.TempDir(), "sandboxes")
	d := create(t, sandboxes, "kept")
	if _, err := Open(t.Context(), lookup(t, sandboxes, "kept")); !errors.Is(err, ErrAlive) {
		t.Errorf("Open of a living one = %v", err)
	}
	stale := lookup(t, sandboxes, "kept")
	stale.Status = api.StatusStopped // as somebody saw it who looked before it was started
	if _, err := Open(t.Context(), stale); !errors.Is(err, ErrAlive) {
		t.Errorf("Open of one that has been started since = %v", err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("enough"))
	if err := AwaitEnd(ctx, stale); err == nil || err.Error() != "enough" {
		t.Errorf("AwaitEnd of a living one = %v", err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if err := AwaitEnd(t.Context(), stale); err != nil {
		t.Errorf("AwaitEnd = %v", err)
	}
	again, err := Open(t.Context(), lookup(t, sandboxes, "kept"))
	if err != nil {
		t.Fatal(err)
	}
	if r := again.Record(); r.Name != "kept" || r.ID != d.ID {
		t.Errorf("the record is now %+v", r)
	}
	if err := again.Remove(); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), stale); err == nil {
		t.Error("Open of a removed one succeeds")
	}
	if err := AwaitEnd(t.Context(), stale); err != nil {
		t.Errorf("AwaitEnd of a removed one = %v", err)
	}
}

// TestProblem has a record that cannot be read: the sandbox is listed, found by
// its id, and not swept.
func TestProblem(t *testing.T) {
	for name, record := range map[string]string{
		"newer":   fmt.Sprintf(`{"version":%d,"auto_remove":true}`, RecordVersion+1),
		"damaged": `{"version":1,`,
		"none":    `{}`,
	} {
		t.Run(name, func(t *testing.T) {
			sandboxes := filepath.Join(t.TempDir(), "sandboxes")
			d := create(t, sandboxes, "x")
			if err := os.WriteFile(d.Path(recordName), []byte(record), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := d.Close(); err != nil {
				t.Fatal(err)
			}
			sweep(t, sandboxes)
			e := lookup(t, sandboxes, d.ID)
			if e.Problem == nil || e.Status != api.StatusDead {
				t.Errorf("it is %s, its problem %v", e.Status, e.Problem)
			}
		})
	}
}

// TestMigrations reads records of two earlier versions of an imagined program.
// A name that cannot be read may be any.
func TestUnreadName(t *testing.T) {
	sandboxes := filepath.Join(t.TempDir(), "sandboxes")
	d := create(t, sandboxes, "web")
	if err := os.Remove(d.Path(recordName)); err != nil {
		t.Fatal(err)
	}
	mkdir(t, d.Path(recordName)) // to read it is an error of the file system's
	_, err := Lookup(sandboxes, "web")
	if missing, ok := errors.AsType[*NotFoundError](err); !ok || missing.Unread == nil || !strings.Contains(err.Error(), "is a directory") {
		t.Errorf("Lookup = %v", err)
	}
	if _, err := Create(t.Context(), sandboxes, Record{Info: api.Info{Name: "web"}}); err == nil || !strings.Contains(err.Error(), "is a directory") {
		t.Errorf("Create = %v", err)
	}
	other, err := Create(t.Context(), sandboxes, Record{})
	if err != nil {
		t.Fatalf("without a name: %v", err)
	}
	other.Remove()
}

func TestMigrations(t *testing.T) {
	migrations := []func(map[string]json.RawMessage) error{
		func(fields map[string]json.RawMessage) error {
			fields["name"] = fields["title"]
			delete(fields, "title")
			return nil
		},
		func(fields map[string]json.RawMessage) error {
			fields["image"] = json.RawMessage(`"busybox"`)
			return nil
		},
	}
	for record, image := range map[string]string{
		`{"version":1,"title":"a"}`:                 "busybox",
		`{"version":2,"name":"a"}`:                  "busybox",
		`{"version":3,"name":"a","image":"debian"}`: "debian",
	} {
		r, err := decodeRecord([]byte(record), migrations)
		if err != nil || r.Name != "a" || r.Image != image || r.Version != 3 {
			t.Errorf("%s is read as %+v, %v", record, r, err)
		}
	}
	if _, err := decodeRecord([]byte(`{"version":4}`), migrations); !errors.Is(err, errNewer) {
		t.Errorf("a newer record: %v", err)
	}
}

// TestRecordVersion: the last migration leads to the version that is written.
func TestRecordVersion(t *testing.T) {
	if got := len(migrations) + 1; got != RecordVersion {
		t.Errorf("migrations lead to version %d, written is %d", got, RecordVersion)
	}
}

func FuzzDecodeRecord(f *testing.F) {
	f.Add([]byte(`{"version":1,"id":"abc","name":"quiet-otter","status":"running","created":"2026-11-26T15:04:05Z","exit_code":3}`))
	f.Add([]byte(`{"version":1e9}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := decodeRecord(data, migrations)
		if err == nil && r.Version != RecordVersion {
			t.Errorf("version %d was accepted", r.Version)
		}
	})
}
