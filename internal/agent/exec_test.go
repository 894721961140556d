//go:build linux

package agent

import (
	"testing"

	"github.com/matchlock/matchlock/api"
)

func TestExec(t *testing.T) {
	c := newPair(t)
	for name, test := range map[string]struct {
		command        string
		opts           api.ExecOptions
		status         int
		stdout, stderr string
	}{
		"output":          {command: "echo out; echo err >&2", stdout: "out\n", stderr: "err\n"},
		"status":          {command: "exit 7", status: 7},
		"signal":          {command: "kill -TERM $$", status: 128 + 15},
		"args":            {opts: api.ExecOptions{Args: []string{"printf", "%s|", "a b", "", "$HOME"}}, stdout: "a b||$HOME|"},
		"environment":     {command: "echo $BASE $X", opts: api.ExecOptions{Env: map[string]string{"X": "1"}}, stdout: "base 1\n"},
		"environment won": {command: "echo $BASE", opts: api.ExecOptions{Env: map[string]string{"BASE": "mine"}}, stdout: "mine\n"},
		"not found": {opts: api.ExecOptions{Args: []string{"no-such-program"}}, status: 127,
			stderr: "matchlock: exec: \"no-such-program\": not found in PATH\n"},
		"no file": {opts: api.ExecOptions{Args: []string{"/no/such"}}, status: 127,
			stderr: "matchlock: exec: \"/no/such\": no such file or directory\n"},
		"not executable": {opts: api.ExecOptions{Args: []string{"/etc/passwd"}}, status: 126,
			stderr: "matchlock: exec: \"/etc/passwd\": permission denied\n"},
		"folder": {opts: api.ExecOptions{Args: []string{"/etc"}}, status: 126,
			stderr: "matchlock: exec: \"/etc\": permission denied\n"},
		"empty input": {command: "cat; echo done", stdout: "done\n"},
	} {
		t.Run(name, func(t *testing.T) {
			result, err := c.Exec(t.Context(), test.command, &test.opts)
			if err != nil {
				t.Fatal(err)
			}
			if result.ExitCode != test.status || string(result.Stdout) != test.stdout || string(result.Stderr) != test.stderr {
				t.Errorf("status %d, stdout %q, stderr %q; want %d, %q, %q",
					result.ExitCode, result.Stdout, result.Stderr, test.status, test.stdout, test.stderr)
			}
		})
	}
}
