package main

import (
	"bytes"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write docs/commands.md anew")

// docs/commands.md is what the program says.
func TestReference(t *testing.T) {
	const path = "../../docs/commands.md"
	var b bytes.Buffer
	writeReference(&b, (&app{}).command())
	if *update {
		if err := os.WriteFile(path, b.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, b.Bytes()) {
		t.Errorf("%s is not what the commands say (%v): go test ./cmd/matchlock -run Reference -update", path, err)
	}
}

// Man pages are read without a complaint, and say what help says.
func TestManPages(t *testing.T) {
	man, err := exec.LookPath("man")
	if err != nil {
		t.Skip("no man:", err)
	}
	dir := t.TempDir()
	for _, cmd := range allCommands((&app{}).command()) {
		name := strings.ReplaceAll(cmd.CommandPath(), " ", "-")
		path := filepath.Join(dir, name+".1")
		if err := os.WriteFile(path, manPage(cmd), 0o600); err != nil {
			t.Fatal(err)
		}
		read := exec.Command(man, "--warnings", "-Tutf8", "-l", path)
		read.Env = append(os.Environ(), "MANWIDTH=200", "LC_ALL=C.UTF-8", "MANROFFOPT=-c")
		var complaints bytes.Buffer
		read.Stderr = &complaints
		text, err := read.Output()
		if err != nil || complaints.Len() > 0 {
			t.Errorf("%s: %v: %s", name, err, complaints.String())
		}
		for line := range strings.Lines(helpOf(cmd)) {
			if line = strings.TrimSpace(line); line != "" && !bytes.Contains(text, []byte(line)) {
				t.Errorf("%s: %q is not in the page", name, line)
				break
			}
		}
	}
}
