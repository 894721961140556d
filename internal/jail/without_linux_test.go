package jail

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/matchlock/matchlock/internal/seccomp"
)

// without has the kernel refuse calls to the rest of a test, and to what it starts, as
// one does that lacks them. The thread that this is put on ends with the test.
func without(t *testing.T, calls ...uint32) {
	t.Helper()
	runtime.LockOSThread()
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	f := seccomp.New()
	f.Deny(unix.EOPNOTSUPP, calls...)
	if err := f.Load(); err != nil {
		t.Fatal(err)
	}
}

// Namespaces alone hold what TestInside has them hold together with Landlock.
func TestWithoutLandlock(t *testing.T) {
	for _, w := range ways() {
		if w.flags == 0 {
			continue
		}
		t.Run(w.name, func(t *testing.T) {
			without(t, unix.SYS_LANDLOCK_CREATE_RULESET)
			testInside(t, w)
		})
	}
}

// What cannot be had is named, and where it is both namespaces and Landlock nothing runs.
func TestStartWithout(t *testing.T) {
	tests := []struct {
		name    string
		calls   []uint32
		held    []string // with "!": not by it
		missing string
		err     error
	}{
		{"nothing", nil, []string{"mount", "net", "landlock", "seccomp", "rlimits", "no_new_privs"}, "", nil},
		{"Landlock", []uint32{unix.SYS_LANDLOCK_CREATE_RULESET}, []string{"mount", "net", "!landlock", "seccomp", "rlimits", "no_new_privs"}, "landlock: ", nil},
		{"mounts", []uint32{unix.SYS_MOUNT}, []string{"!mount", "!net", "landlock", "seccomp", "rlimits", "no_new_privs"}, "user namespace: ", nil},
		{"either", []uint32{unix.SYS_MOUNT, unix.SYS_LANDLOCK_CREATE_RULESET}, nil, "", ErrTooLittle},
	}
	program := inside(t)
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			c := sleeper(t, program)
			without(t, test.calls...)
			p, err := Start(c)
			if !errors.Is(err, test.err) || (err == nil) != (test.err == nil) {
				t.Fatalf("got %v, want %v", err, test.err)
			}
			if err != nil {
				return
			}
			defer stop(p)
			for _, name := range test.held {
				name, not := strings.CutPrefix(name, "!")
				if slices.Contains(p.Applied, name) == not {
					t.Errorf("held by %v, %s is wrong", p.Applied, name)
				}
			}
			named := slices.ContainsFunc(p.Missing, func(m string) bool { return test.missing != "" && strings.HasPrefix(m, test.missing) })
			if named != (test.missing != "") {
				t.Errorf("missing %q, want one that begins %q", p.Missing, test.missing)
			}
		})
	}
}

// The same for an ordinary user.
func TestWithoutAsUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("the other tests are an ordinary user's already")
	}
	again(t, "^Test(WithoutLandlock|StartWithout|SwappedName)$")
}

// A file that it is given is what was opened, though its name leads elsewhere by the time
// when it is mounted read-only.
func TestSwappedName(t *testing.T) {
	program := inside(t)
	for _, w := range ways() {
		t.Run(w.name, func(t *testing.T) {
			dir := t.TempDir()
			name, secret := filepath.Join(dir, "disk"), filepath.Join(dir, "secret")
			for _, path := range []string{name, secret} {
				if err := os.WriteFile(path, nil, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			c := sleeper(t, program)
			disk := open(t, name)
			c.Files = []*os.File{disk}
			// The second is what /proc calls it from then on.
			if err := errors.Join(os.Remove(name), os.Symlink(secret, name), os.Symlink(secret, name+" (deleted)")); err != nil {
				t.Fatal(err)
			}
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			p, err := c.start(w)
			if err != nil {
				t.Fatal(err)
			}
			defer stop(p)
			want, err := disk.Stat()
			if err != nil {
				t.Fatal(err)
			}
			for n := firstFD; ; n++ {
				got, err := os.Stat(fmt.Sprintf("/proc/%d/fd/%d", p.Process.Pid, n))
				if n == firstFD && (err != nil || !os.SameFile(got, want)) {
					t.Errorf("it has another file (%v)", err)
				}
				if err != nil {
					break
				}
				if other, err := os.Stat(secret); err != nil || os.SameFile(got, other) {
					t.Errorf("descriptor %d is what the name leads to (%v)", n, err)
				}
			}
			if said := strings.Contains(fmt.Sprint(p.Missing), "read-only mount of descriptor 3"); said != (w.flags != 0) {
				t.Errorf("missing %q", p.Missing)
			}
		})
	}
}

// sleeper is a program that does nothing.
func sleeper(t *testing.T, program string) *Config {
	t.Helper()
	output, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { output.Close() })
	return &Config{First: open(t, program), Program: program, Args: []string{"sleep"}, Output: output, ID: t.Name(), Memory: 1 << 30, Processes: 64}
}

func stop(p *Process) {
	p.Process.Kill()
	p.Wait()
	p.Close()
}
