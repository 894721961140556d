package sandbox_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/matchlock/matchlock/api"
	"github.com/matchlock/matchlock/sandbox"
)

// What the log says of how a guest came to be.
const (
	saysMade  = "made a template"
	saysCopy  = "begins as a copy of a template"
	saysFault = "a template cannot be used"
)

// warmPlace is a place with templates of its own.
type warmPlace struct {
	*place
	templates string
	config    api.Config
}

func newWarmPlace(t *testing.T) *warmPlace {
	p := newPlace(t)
	cache := filepath.Join(p.options.Home, "cache")
	shared, err := os.Readlink(cache)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(cache); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(cache, 0o700); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(shared)
	if err != nil {
		t.Fatal(err)
	}
	w := &warmPlace{place: p, templates: filepath.Join(cache, "templates")}
	for _, e := range entries {
		if path := filepath.Join(cache, e.Name()); path != w.templates {
			if err := os.Symlink(filepath.Join(shared, e.Name()), path); err != nil {
				t.Fatal(err)
			}
		}
	}
	w.config = api.Config{Image: p.image(t, "busybox.tar"), Pull: api.PullNever, Memory: 128 << 20}
	return w
}

// start starts a sandbox and returns what its log says as well.
func (w *warmPlace) start(t *testing.T, change func(*sandbox.Options, *api.Config)) (*sandbox.Sandbox, string) {
	t.Helper()
	var said syncBuffer
	options, config := w.options, w.config
	options.Logger = slog.New(slog.NewTextHandler(&said, nil))
	if change != nil {
		change(&options, &config)
	}
	sb, err := options.New(t.Context(), config)
	if err != nil {
		t.Fatalf("%v\n%s", err, said.String())
	}
	t.Cleanup(func() { sb.Close() })
	return sb, said.String()
}

// syncBuffer is for several goroutines.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func says(t *testing.T, said, want string) {
	t.Helper()
	if !strings.Contains(said, want) {
		t.Errorf("the log does not say %q:\n%s", want, said)
	}
}

// TestVMTemplate has sandboxes begin as copies of one template: in nothing that
// has to differ are two of them the same, and none knows of another.
func TestVMTemplate(t *testing.T) {
	w := newWarmPlace(t)
	first, said := w.start(t, nil)
	says(t, said, saysMade)
	var mu sync.Mutex
	all := []*sandbox.Sandbox{first}
	var starting sync.WaitGroup
	for range 3 {
		starting.Go(func() {
			sb, said := w.start(t, func(_ *sandbox.Options, c *api.Config) { c.Env = map[string]string{"OWN": "yes"} })
			says(t, said, saysCopy)
			mu.Lock()
			defer mu.Unlock()
			all = append(all, sb)
		})
	}
	starting.Wait()

	seen := map[string]int{}
	for i, sb := range all {
		for _, line := range []string{
			"head -c 16 /dev/urandom | od -An -tx1", "cat /proc/sys/kernel/random/uuid", "cat /proc/sys/kernel/random/boot_id",
			"hostname", "cat /etc/hostname /etc/hosts",
		} {
			got := output(t, sb, "sh", "-c", line)
			if other, ok := seen[line+got]; ok || got == "" {
				t.Errorf("%s is %q in sandboxes %d and %d", line, got, other, i)
			}
			seen[line+got] = i
		}
		now, err := strconv.ParseInt(output(t, sb, "date", "+%s"), 10, 64)
		if off := time.Since(time.Unix(now, 0)); err != nil || off < -2*time.Second || off > 3*time.Second {
			t.Errorf("the clock of sandbox %d is %v off, %v", i, off, err)
		}
		if got, want := output(t, sb, "sh", "-c", "echo $OWN"), map[bool]string{true: "", false: "yes"}[i == 0]; got != want {
			t.Errorf("its own environment is %q in sandbox %d", got, i)
		}
		if got := output(t, sb, "sh", "-c", "cat /here 2>/dev/null; echo "+strconv.Itoa(i)+" > /here; cat /here"); got != strconv.Itoa(i) {
			t.Errorf("sandbox %d has a file of another's: %q", i, got)
		}
	}

	// Of what was written nothing is in the template.
	sb, said := w.start(t, nil)
	says(t, said, saysCopy)
	if got := output(t, sb, "sh", "-c", "ls /here 2>/dev/null | wc -l; nproc; awk '/MemTotal/ {print $2 < 128*1024}' /proc/meminfo"); got != "0\n1\n1" {
		t.Errorf("a later one has %q", got)
	}
	// Another shape does not fit.
	_, said = w.start(t, func(_ *sandbox.Options, c *api.Config) { c.Memory = 160 << 20 })
	says(t, said, saysMade)
	sb, said = w.start(t, func(o *sandbox.Options, _ *api.Config) { o.Cold = true })
	if strings.Contains(said, saysCopy) || strings.Contains(said, saysMade) {
		t.Errorf("with Cold: %s", said)
	}
	if got := output(t, sb, "echo", "cold"); got != "cold" {
		t.Errorf("got %q", got)
	}
}

// TestVMTemplateFaults has a template be of no use in all ways: the sandbox
// starts in any case, and the next one fast.
func TestVMTemplateFaults(t *testing.T) {
	w := newWarmPlace(t)
	_, said := w.start(t, nil)
	says(t, said, saysMade)
	only := func() string {
		entries, err := os.ReadDir(w.templates)
		if err != nil || len(entries) != 1 {
			t.Fatalf("templates: %v, %v", entries, err)
		}
		return filepath.Join(w.templates, entries[0].Name())
	}
	for name, damage := range map[string]func(dir string) error{
		"memory truncated": func(dir string) error { return os.Truncate(filepath.Join(dir, "memory"), 1<<20) },
		"record missing":   func(dir string) error { return os.Remove(filepath.Join(dir, "record.json")) },
		// As another version's might be: its sum is right, and QEMU cannot load it.
		"state of something else": func(dir string) error {
			state := bytes.Repeat([]byte("state"), 1000)
			if err := os.WriteFile(filepath.Join(dir, "state"), state, 0o600); err != nil {
				return err
			}
			return changeRecord(dir, func(r map[string]any) {
				const block = 4096 // see package saved
				sum := sha256.New()
				binary.Write(sum, binary.BigEndian, int64(len(state)))
				for at := 0; at < len(state); at += block {
					binary.Write(sum, binary.BigEndian, int64(at))
					sum.Write(state[at:min(at+block, len(state))])
				}
				r["files"].([]any)[1].(map[string]any)["sum"] = hex.EncodeToString(sum.Sum(nil))
			})
		},
	} {
		t.Run(name, func(t *testing.T) {
			if err := damage(only()); err != nil {
				t.Fatal(err)
			}
			sb, said := w.start(t, nil)
			if name != "record missing" {
				says(t, said, saysFault)
			}
			if got := output(t, sb, "sh", "-c", "echo works > /x; cat /x"); got != "works" {
				t.Errorf("got %q", got)
			}
			sb, said = w.start(t, nil)
			if !strings.Contains(said, saysCopy) { // the fault showed too late to make another
				says(t, said, saysMade)
			}
			if got := output(t, sb, "echo", "again"); got != "again" {
				t.Errorf("got %q", got)
			}
			only()
		})
	}
}

// TestWarmRefuses: what has no template is not started for one.
func TestWarmRefuses(t *testing.T) {
	config := api.Config{Image: "nosuch", Disks: []api.Disk{{File: "/nosuch", Mount: "/data"}}}
	if made, err := (sandbox.Options{Home: t.TempDir()}).Warm(t.Context(), config); made || !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("with a disk: %v, %v; want %v", made, err, errors.ErrUnsupported)
	}
}

func changeRecord(dir string, change func(map[string]any)) error {
	path := filepath.Join(dir, "record.json")
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var r map[string]any
	if err := json.Unmarshal(data, &r); err != nil {
		return err
	}
	change(r)
	if data, err = json.Marshal(r); err != nil {
		return err
	}
	return os.WriteFile(path, data, 0o600)
}

// TestVMRestart: a sandbox that is started again has the disk it had, and boots
// for that.
func TestVMRestart(t *testing.T) {
	w := newWarmPlace(t)
	keep := func(o *sandbox.Options, _ *api.Config) { o.Name, o.Keep = "kept", true }
	for range 2 { // a cold one, then a copy
		sb, _ := w.start(t, keep)
		if got := output(t, sb, "sh", "-c", "echo mine > /x; cat /x"); got != "mine" {
			t.Errorf("got %q", got)
		}
		if err := sb.Close(); err != nil {
			t.Fatal(err)
		}
		again, err := w.options.Start(t.Context(), "kept")
		if err != nil {
			t.Fatal(err)
		}
		if got := output(t, again, "cat", "/x"); got != "mine" {
			t.Errorf("started again, /x has %q", got)
		}
		if err := again.Close(); err != nil {
			t.Fatal(err)
		}
		if err := w.options.Remove(t.Context(), "kept", false); err != nil {
			t.Fatal(err)
		}
	}
}
