// Package examples_test runs the programs below this folder as their readers will: built,
// and with matchlock beside them.
package examples_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// place is where examples run: a home with the image busybox, and the programs.
type place struct {
	bin, home, matchlock string
}

func setUp(t *testing.T) *place {
	t.Helper()
	if os.Getenv("MATCHLOCK_TEST_VM") == "" {
		t.Skip("boots VMs: set MATCHLOCK_TEST_VM=1 (make test does)")
	}
	shared := os.Getenv("MATCHLOCK_TEST_HOME")
	if shared == "" {
		t.Fatal("MATCHLOCK_TEST_HOME is not set: run scripts/test-vm.sh")
	}
	program, err := filepath.Abs("../../bin/matchlock")
	if err != nil {
		t.Fatal(err)
	}
	p := &place{t.TempDir(), t.TempDir(), program}
	if err := os.Chmod(p.home, 0o700); err != nil {
		t.Fatal(err)
	}
	cache := filepath.Join(shared, "home", "cache")
	if err := os.MkdirAll(cache, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(cache, filepath.Join(p.home, "cache")); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-ldflags=-s -w", "-o", p.bin+"/", "./...").CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	p.mustRun(t, program, "image", "import", "busybox", filepath.Join(shared, "images", "busybox.tar"))
	return p
}

// run runs a program to its end, with an input, and returns all that it says.
func (p *place) run(t *testing.T, input, name string, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "MATCHLOCK_HOME="+p.home, "MATCHLOCK_HELPER="+p.matchlock, "IMAGE=busybox")
	cmd.Stdin = strings.NewReader(input)
	cmd.WaitDelay = time.Second // a supervisor of its own has the output no longer
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func (p *place) mustRun(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := p.run(t, "", name, args...); err != nil {
		t.Fatalf("%s %q: %v\n%s", filepath.Base(name), args, err, out)
	}
}

// Each example says what it is to say, finds its own result right, and leaves nothing.
func TestVMExamples(t *testing.T) {
	p := setUp(t)
	tests := map[string]struct {
		args  []string
		input string
		want  []string // of what it says
		code  int
	}{
		"start":    {want: []string{"hello from Linux, root\n"}},
		"stream":   {want: []string{"1: step 1\n2: step 2\n3: step 3\n", "no more\n"}},
		"terminal": {input: "stty size; exit 7\n", want: []string{"24 80\r\n"}, code: 7},
		"files":    {want: []string{"work/names\nwork/sorted\nwork/sorted/README\nwork/sorted/names\n"}},
		"fork":     {want: []string{": prepared copy 0\n", ": prepared copy 1\n", ": prepared\n"}},
		"network":  {want: []string{"one.test is reached\ntwo.test exit status 1\ntwo.test is reached\n", "denied name two.test", "--allow-host two.test", "allowed request two.test"}},
		"hooks":    {want: []string{"GET /v1/jobs: 200\n"}},
		"http":     {want: []string{"200 OK: hello from inside\n"}},
		"attach":   {args: []string{"web"}, want: []string{"web, made from busybox at "}},
	}
	folders, err := filepath.Glob("*/main.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range folders {
		name := filepath.Dir(file)
		t.Run(name, func(t *testing.T) {
			tt, ok := tests[name]
			if !ok {
				t.Fatal("it is in no test")
			}
			if name == "attach" {
				p.mustRun(t, p.matchlock, "run", "-d", "--name", "web", "busybox", "sleep", "600")
				// It fails where the sandbox does not run any more.
				defer p.mustRun(t, p.matchlock, "rm", "-f", "web")
				defer p.mustRun(t, p.matchlock, "exec", "web", "true")
			}
			out, err := p.run(t, tt.input, filepath.Join(p.bin, name), tt.args...)
			if code := exitCode(err); code != tt.code {
				t.Errorf("it ends with %d, want %d: %v", code, tt.code, err)
			}
			for _, want := range tt.want {
				if !strings.Contains(out, want) {
					t.Errorf("it does not say %q", want)
				}
			}
			if t.Failed() {
				t.Logf("it says\n%s", out)
			}
		})
		for _, kind := range []string{"state/sandboxes/*/*", "data/snapshots/*"} {
			if left, _ := filepath.Glob(filepath.Join(p.home, kind)); len(left) > 0 { // the patterns are good ones
				t.Errorf("%s has left %v", name, left)
			}
		}
	}
	t.Run("terminal, at one", func(t *testing.T) { atTerminal(t, p) })
}

// atTerminal holds that the shell has its terminal's size, and the terminal is afterwards as
// it was.
func atTerminal(t *testing.T, p *place) {
	line := fmt.Sprintf("stty rows 33 cols 99; stty -g; %s; s=$?; stty -g; exit $s", filepath.Join(p.bin, "terminal"))
	out, err := p.run(t, "stty size; exit 7\n", "script", "-qec", line, "/dev/null")
	if code := exitCode(err); code != 7 {
		t.Errorf("it ends with %d, want the shell's 7: %v", code, err)
	}
	if !strings.Contains(out, "33 99\r\n") {
		t.Error("the shell's terminal has not the size of ours")
	}
	var modes []string
	for line := range strings.Lines(out) {
		if strings.Count(line, ":") > 10 {
			modes = append(modes, strings.TrimSpace(line))
		}
	}
	if len(modes) != 2 || modes[0] != modes[1] {
		t.Errorf("the terminal's modes before and afterwards: %q", modes)
	}
	if t.Failed() {
		t.Logf("it says\n%s", out)
	}
}

// exitCode is that of a program; -1 if it did not run to its end.
func exitCode(err error) int {
	if err == nil {
		return 0
	}
	if exit, ok := err.(*exec.ExitError); ok {
		return exit.ExitCode()
	}
	return -1
}
