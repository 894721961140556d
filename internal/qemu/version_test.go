package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// program writes a shell script to stand for QEMU.
func program(t *testing.T, path, script string) string {
	t.Helper()
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+script+"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestFindQEMU(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("PATH", dir)
	t.Setenv("MATCHLOCK_QEMU", "")
	_, err := findQEMU()
	if !errors.Is(err, ErrNoQEMU) || !errors.Is(err, exec.ErrNotFound) || !strings.Contains(err.Error(), "package qemu-system-") {
		t.Errorf("empty PATH: got %v", err)
	}

	for _, name := range []string{"qemu-system-x86_64", "qemu-system-aarch64"} {
		program(t, filepath.Join(dir, name), "")
	}
	if path, err := findQEMU(); err != nil || filepath.Dir(path) != dir {
		t.Errorf("on PATH: got %q, %v", path, err)
	}

	own := program(t, filepath.Join(dir, "own"), "")
	for _, named := range []string{own, "own"} {
		t.Setenv("MATCHLOCK_QEMU", named)
		if path, err := findQEMU(); err != nil || path != own {
			t.Errorf("MATCHLOCK_QEMU=%s: got %q, %v", named, path, err)
		}
	}

	t.Setenv("MATCHLOCK_QEMU", filepath.Join(dir, "missing"))
	if _, err := findQEMU(); !errors.Is(err, ErrNoQEMU) || !strings.Contains(err.Error(), "MATCHLOCK_QEMU: ") {
		t.Errorf("MATCHLOCK_QEMU names nothing: got %v", err)
	}
}

func TestParseVersion(t *testing.T) {
	tests := map[string]version{
		"QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)\nCopyright (c) 2003-2022": {7, 2, "7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)"},
		"QEMU emulator version 10.0.13\r\n":                   {10, 0, "10.0.13"},
		"a warning first\nQEMU emulator version 8.1.\x1b[31m": {8, 1, "8.1.\uFFFD[31m"},
		"QEMU emulator version 11.1":                          {11, 1, "11.1"},
		"":                                                    {},
		"QEMU emulator version seven":                         {},
		"QEMU emulator version 99999.1.0":                     {},
		"my QEMU emulator version 7.2.0":                      {},
	}
	for output, want := range tests {
		got, err := parseVersion([]byte(output))
		if diff := cmp.Diff(got, want); diff != "" || (err == nil) != (want != version{}) {
			t.Errorf("%q: %v\n%s", output, err, diff)
		}
	}
}

func TestCheckVersion(t *testing.T) {
	tests := map[string]bool{
		"6.9.9": false, "7.1.0": false, "7.2.0": true, "7.10.0": true, "8.0.0": true, "10.0.13": true,
	}
	dir := t.TempDir()
	for v, enough := range tests {
		path := program(t, filepath.Join(dir, "qemu-"+v), "echo QEMU emulator version "+v)
		_, err := checkVersion(t.Context(), path, "")
		if enough && err != nil || !enough && err == nil {
			t.Errorf("%s: got %v", v, err)
		}
		if tooOld, ok := errors.AsType[*VersionError](err); ok {
			want := VersionError{path, v[:3], "7.2"}
			if diff := cmp.Diff(*tooOld, want); diff != "" {
				t.Error(diff)
			}
		} else if err != nil {
			t.Errorf("%s: got %v", v, err)
		}
	}
}

func TestVersionIsRemembered(t *testing.T) {
	dir, cache := t.TempDir(), t.TempDir()
	asked := filepath.Join(dir, "asked")
	path := filepath.Join(dir, "qemu")
	install := func(v string) {
		program(t, path+".new", fmt.Sprintf("echo >>%s; echo QEMU emulator version %s", asked, v))
		if err := os.Rename(path+".new", path); err != nil {
			t.Fatal(err)
		}
	}
	expect := func(wantVersion string, wantAsked int) {
		t.Helper()
		v, err := qemuVersion(t.Context(), path, cache)
		if err != nil || v.Text != wantVersion {
			t.Errorf("got %+v, %v", v, err)
		}
		if lines, _ := os.ReadFile(asked); len(lines) != wantAsked {
			t.Errorf("asked %d times, want %d", len(lines), wantAsked)
		}
	}
	install("7.2.1")
	expect("7.2.1", 1)
	expect("7.2.1", 1)
	install("7.2.2") // of the same size
	expect("7.2.2", 2)
	expect("7.2.2", 2)
	for _, damage := range []string{"", "{", `{"path": 1}`, "null", strings.Repeat("[", 2<<20)} {
		if err := os.WriteFile(filepath.Join(cache, "qemu-version.json"), []byte(damage), 0o600); err != nil {
			t.Fatal(err)
		}
		os.Remove(asked)
		expect("7.2.2", 1)
	}
	if left, _ := filepath.Glob(filepath.Join(cache, ".new-*")); left != nil {
		t.Errorf("left behind: %v", left)
	}
}

func TestVersionOfWhatIsNoQEMU(t *testing.T) {
	tests := map[string]struct{ script, want string }{
		"other program": {"echo GNU bash, version 5.2", "GNU bash"},
		"fails":         {"echo libfoo.so: not found >&2; exit 127", "libfoo.so"},
		"never stops":   {"while echo QEMU emulator version 7.2.1; do :; done", `it says "QEMU emulator version 7.2.1`},
		"says too much": {"head -c 10000 /dev/zero; exit 0", "too much output"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			path := program(t, filepath.Join(t.TempDir(), "qemu"), test.script)
			_, err := qemuVersion(t.Context(), path, "")
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v", err)
			}
		})
	}
	if _, err := qemuVersion(t.Context(), filepath.Join(t.TempDir(), "gone"), ""); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing: got %v", err)
	}
}

func TestVersionContext(t *testing.T) {
	dir := t.TempDir()
	started := filepath.Join(dir, "started")
	if out, err := exec.Command("mkfifo", started).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	path := program(t, filepath.Join(dir, "qemu"), "echo >"+started+"; exec sleep 60")
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		os.ReadFile(started) // until the script is there
		cancel()
	}()
	if _, err := qemuVersion(ctx, path, ""); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}
