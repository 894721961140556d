package main

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const examplesFolder = "../../examples/go"

// The programs of examples/go are built, and run as their readers will, with matchlock
// to find and an image. Each says what it is to say, finds its own result right, and leaves
// nothing.
func TestVMExamples(t *testing.T) {
	m := install(t)
	bin := t.TempDir()
	build := exec.CommandContext(t.Context(), "go", "build", "-ldflags=-s -w", "-o", bin+"/", "./...")
	build.Dir = examplesFolder
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	run := func(t *testing.T, input, program string, args ...string) result {
		t.Helper()
		cmd := (&installed{program: program, home: m.home}).command(t, args...)
		cmd.Env = append(cmd.Env, "MATCHLOCK_HELPER="+m.program, "IMAGE=busybox")
		cmd.Stdin = strings.NewReader(input)
		return ended(t, cmd)
	}

	tests := map[string]struct {
		args   []string
		input  string
		says   []string
		status int
	}{
		"start":    {says: []string{"hello from Linux, root\n"}},
		"stream":   {says: []string{"1: step 1\n2: step 2\n3: step 3\n"}},
		"terminal": {input: "stty size; exit 7\n", says: []string{"24 80\r\n"}, status: 7},
		"files":    {says: []string{"work/names\nwork/sorted\nwork/sorted/README\nwork/sorted/names\n"}},
		"fork":     {says: []string{": prepared copy 0\n", ": prepared copy 1\n", ": prepared\n"}},
		"network": {says: []string{
			"one.test is reached\ntwo.test exit status 1\ntwo.test is reached\n",
			"denied name two.test", "--allow-host two.test", "allowed request two.test",
		}},
		"hooks":  {says: []string{"GET /v1/jobs: 200\n"}},
		"http":   {says: []string{"200 OK: hello from inside\n"}},
		"attach": {args: []string{"web"}, says: []string{"web, made from busybox at "}},
	}
	programs, err := filepath.Glob(filepath.Join(examplesFolder, "*", "main.go"))
	if err != nil {
		t.Fatal(err)
	}
	if len(programs) != len(tests) {
		t.Errorf("%d programs, and %d tests", len(programs), len(tests))
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			defer func() {
				if err := remainsAtLast(m.home); err != nil {
					t.Error(err)
				}
				if left, err := filepath.Glob(filepath.Join(m.home, "data", "snapshots", "*")); err != nil || len(left) > 0 {
					t.Errorf("left behind: %q, %v", left, err)
				}
			}()
			if name == "attach" {
				m.mustRun(t, "run", "-d", "--name", "web", "busybox", "sleep", "600")
				defer m.mustRun(t, "rm", "--force", "web")
				defer m.mustRun(t, "exec", "web", "true") // it runs still
			}
			r := run(t, tt.input, filepath.Join(bin, name), tt.args...)
			if r.status != tt.status {
				t.Errorf("status %d, want %d", r.status, tt.status)
			}
			for _, want := range tt.says {
				if !strings.Contains(r.stdout+r.stderr, want) {
					t.Errorf("it does not say %q", want)
				}
			}
			if t.Failed() {
				t.Logf("it says\n%s%s\n%s", r.stdout, r.stderr, r.call)
			}
		})
	}

	// At a terminal the shell has its size, and it is afterwards as it was.
	t.Run("terminal, at one", func(t *testing.T) {
		line := fmt.Sprintf("stty rows 33 cols 99; stty -g; %s; s=$?; stty -g; exit $s", filepath.Join(bin, "terminal"))
		r := run(t, "stty size; exit 7\n", "script", "-qec", line, "/dev/null")
		if r.status != 7 || !strings.Contains(r.stdout, "33 99\r\n") {
			t.Errorf("status %d; want 7, and 33 rows of 99 columns", r.status)
		}
		var modes []string
		for line := range strings.Lines(r.stdout) {
			if strings.Count(line, ":") > 10 {
				modes = append(modes, strings.TrimSpace(line))
			}
		}
		if len(modes) != 2 || modes[0] != modes[1] {
			t.Errorf("the terminal's modes before and afterwards: %q", modes)
		}
		if t.Failed() {
			t.Logf("it says\n%s%s", r.stdout, r.stderr)
		}
	})
}
