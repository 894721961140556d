package sandbox

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/matchlock/matchlock/internal/wire"
)

func TestGuestFromHelper(t *testing.T) {
	guest := []byte("\x7fELF a guest\nbinary")
	var said bytes.Buffer
	if err := WriteGuest(&said, section(guest)); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name   string
		script string
		want   string // in the error; empty: the guest
	}{
		{"the guest", "cat " + said.String(), ""},
		{"another version", fmt.Sprintf("echo matchlock-guest wire %d bytes 3; echo abc", wire.Version+1), "its guest speaks version"},
		{"too short", fmt.Sprintf("echo matchlock-guest wire %d bytes 9; echo abc", wire.Version), "a guest binary of 4 bytes, 9 were promised"},
		{"too long", fmt.Sprintf("echo matchlock-guest wire %d bytes 2; echo abc", wire.Version), "2 were promised"},
		{"enormous", fmt.Sprintf("echo matchlock-guest wire %d bytes 99999999999", wire.Version), "a guest binary of 99999999999 bytes"},
		{"another program", "echo hello; echo world", "hands out no guest binary"},
		{"endless", "exec cat /dev/zero", "hands out no guest binary"},
		{"a failure", "echo oh >&2; exit 3", "exit status 3: oh"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			helper := filepath.Join(dir, "helper")
			data := filepath.Join(dir, "said")
			if err := os.WriteFile(data, said.Bytes(), 0o600); err != nil {
				t.Fatal(err)
			}
			script := "#!/bin/sh\n[ \"$1\" = " + HelperCommand + " ] || exit 9\n" + strings.ReplaceAll(tt.script, said.String(), data) + "\n"
			if err := os.WriteFile(helper, []byte(script), 0o700); err != nil {
				t.Fatal(err)
			}
			got, err := Options{Helper: helper}.guest(t.Context())
			if tt.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				if content, err := io.ReadAll(got); err != nil || !bytes.Equal(content, guest) {
					t.Errorf("guest = %q, %v; want %q", content, err, guest)
				}
				return
			}
			if !errors.Is(err, ErrNoHelper) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("guest = %v, %v; want ErrNoHelper with %q in it", got, err, tt.want)
			}
		})
	}
}

func TestFindHelper(t *testing.T) {
	t.Setenv("MATCHLOCK_HELPER", "/from/environment")
	if got, err := (Options{Helper: "/from/options"}).findHelper(); err != nil || got != "/from/options" {
		t.Errorf("findHelper = %q, %v; the option goes first", got, err)
	}
	if got, err := (Options{}).findHelper(); err != nil || got != "/from/environment" {
		t.Errorf("findHelper = %q, %v; MATCHLOCK_HELPER comes next", got, err)
	}
	dir := t.TempDir()
	t.Setenv("MATCHLOCK_HELPER", "")
	t.Setenv("PATH", dir)
	_, err := Options{}.guest(t.Context())
	var hinted interface{ Hint() string }
	if !errors.Is(err, ErrNoHelper) || !errors.As(err, &hinted) || !strings.Contains(hinted.Hint(), "MATCHLOCK_HELPER") {
		t.Errorf("without a helper: %v, want ErrNoHelper with a hint that names MATCHLOCK_HELPER", err)
	}
	onPath := filepath.Join(dir, "matchlock")
	if err := os.WriteFile(onPath, nil, 0o700); err != nil {
		t.Fatal(err)
	}
	if got, err := (Options{}).findHelper(); err != nil || got != onPath {
		t.Errorf("findHelper = %q, %v; want %q from PATH", got, err, onPath)
	}
}

func TestWriteGuestWithoutOne(t *testing.T) {
	if err := WriteGuest(&bytes.Buffer{}, nil); !errors.Is(err, ErrNoHelper) {
		t.Errorf("WriteGuest of nothing = %v, want ErrNoHelper", err)
	}
}

func FuzzParseHelper(f *testing.F) {
	var said bytes.Buffer
	if err := WriteGuest(&said, section([]byte("guest"))); err != nil {
		f.Fatal(err)
	}
	f.Add(said.Bytes())
	f.Add([]byte("matchlock-guest wire 1 bytes -1\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		guest, err := parseHelper(bytes.NewReader(data))
		if err == nil && (len(guest) == 0 || !bytes.HasSuffix(data, guest)) {
			t.Errorf("parseHelper(%q) = %q", data, guest)
		}
	})
}
