package guest

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// The program of a rehearsal is one, and ends at once.
func TestRehearsalProgram(t *testing.T) {
	path := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(path, elfProgram(), 0o700); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(path).CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("%v, and said %q", err, out)
	}
}
