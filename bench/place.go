package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/matchlock/matchlock/api"
	"github.com/matchlock/matchlock/sandbox"
)

// place is where the benchmarks find what they need and leave what they make.
// While there is one, MATCHLOCK_HOME is in it.
type place struct {
	matchlock string // the binary
	images    string // of the tests, kept
	kernels   string // of the tests' home, kept
	tools     string // of the tests, kept
	dir       string // removed by close
	busybox   string // the image's tar, in dir
}

// newPlace makes a home of its own for matchlock, with the image busybox in
// it. Kernels are taken from the tests' home.
func newPlace(ctx context.Context) (*place, error) {
	matchlock, err := filepath.Abs("bin/matchlock")
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(matchlock); errors.Is(err, fs.ErrNotExist) {
		return nil, errors.New("bin/matchlock is not here: `make build` makes it, in the top folder of the sources")
	}
	kept := os.Getenv("MATCHLOCK_TEST_HOME")
	if kept == "" {
		cache, err := os.UserCacheDir()
		if err != nil {
			return nil, err
		}
		kept = filepath.Join(cache, "matchlock-test")
	}
	kernels := filepath.Join(kept, "home", "cache", "kernels")
	if err := os.MkdirAll(kernels, 0o700); err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(kept, "bench-") // on that disk, not in memory
	if err != nil {
		return nil, err
	}
	p := &place{matchlock: matchlock, images: filepath.Join(kept, "images"), kernels: kernels, tools: filepath.Join(kept, "tools"), dir: dir, busybox: filepath.Join(dir, "busybox.tar")}
	if err := p.furnish(ctx); err != nil {
		p.close()
		return nil, err
	}
	return p, nil
}

func (p *place) furnish(ctx context.Context) error {
	home := filepath.Join(p.dir, "home")
	cache := filepath.Join(home, "cache")
	if err := os.MkdirAll(cache, 0o700); err != nil {
		return err
	}
	if err := os.Symlink(p.kernels, filepath.Join(cache, "kernels")); err != nil {
		return err
	}
	os.Setenv("MATCHLOCK_HOME", home)

	if err := run(ctx, "sh", "-c", `scripts/busybox-image.sh >"$0"`, p.busybox); err != nil {
		return err
	}
	return run(ctx, p.matchlock, "image", "import", "busybox", p.busybox)
}

// sandbox starts one of ours, by the library.
func (p *place) sandbox(ctx context.Context) (*sandbox.Sandbox, error) {
	return sandbox.Options{Helper: p.matchlock}.New(ctx, api.Config{Image: "busybox"})
}

func (p *place) close() {
	if err := os.RemoveAll(p.dir); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
	}
}

// describe tells in a line what the figures are of.
func (p *place) describe(ctx context.Context) string {
	version, err := exec.CommandContext(ctx, p.matchlock, "version").Output()
	if err != nil {
		version = []byte("matchlock")
	}
	load, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		load = []byte("unknown")
	}
	first, _, _ := bytes.Cut(version, []byte("\n"))
	before, _, _ := strings.Cut(string(load), " ")
	return fmt.Sprintf("%s; %d CPUs, load %s before", first, runtime.NumCPU(), before)
}

// run runs a command of which nothing but success is of interest.
func run(ctx context.Context, name string, args ...string) error {
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", filepath.Base(name), err, bytes.TrimSpace(out))
	}
	return nil
}

// idleSandbox is one that `matchlock run` supervises and whose command waits.
type idleSandbox struct {
	supervisor *exec.Cmd
	qemu       int    // process id
	release    string // of its kernel
	stdin      io.Closer
	stderr     *bytes.Buffer // complete after close
}

// idle starts one, with further flags of matchlock's, and returns when its
// command has answered.
func (p *place) idle(ctx context.Context, flags ...string) (*idleSandbox, error) {
	s := &idleSandbox{stderr: new(bytes.Buffer)}
	args := append([]string{"run", "-i"}, append(flags, "busybox", "sh", "-c", "uname -r && exec cat")...)
	s.supervisor = exec.CommandContext(ctx, p.matchlock, args...)
	s.supervisor.Stderr = s.stderr
	stdin, err := s.supervisor.StdinPipe()
	if err != nil {
		return nil, err
	}
	s.stdin = stdin
	stdout, err := s.supervisor.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := s.supervisor.Start(); err != nil {
		return nil, err
	}
	if _, err := fmt.Fscanln(stdout, &s.release); err != nil {
		return nil, errors.Join(fmt.Errorf("idle sandbox: %w", err), s.close())
	}
	if s.qemu, err = descendant(s.supervisor.Process.Pid, "qemu-system"); err != nil {
		return nil, errors.Join(err, s.close())
	}
	return s, nil
}

// close lets the command end and waits until the supervisor has.
func (s *idleSandbox) close() error {
	s.stdin.Close()
	if err := s.supervisor.Wait(); err != nil {
		return fmt.Errorf("idle sandbox: %w: %s", err, bytes.TrimSpace(s.stderr.Bytes()))
	}
	return nil
}
