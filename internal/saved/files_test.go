package saved

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The owner's file is kept with a machine of any number of layers, and goes where it goes.
func TestOwnersFile(t *testing.T) {
	for layers := 1; layers <= 2; layers++ {
		m := testMachine(t)
		m.Disk = m.Disk[:layers]
		content := strings.Repeat("what the owner keeps\n", 5000)
		f, err := os.Create(filepath.Join(t.TempDir(), "any"))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteString(content); err != nil {
			t.Fatal(err)
		}
		m.Files = f
		here, there := filepath.Join(t.TempDir(), "saved"), filepath.Join(t.TempDir(), "saved")
		if err := Make(t.Context(), here, "one", m, nil); err != nil {
			t.Fatal(err)
		}
		archive := exported(t, filepath.Join(here, "one"), ExportOptions{Extra: []ExtraFile{extraFile(t, "lower-0")}})
		if err := Import(t.Context(), there, "one", bytes.NewReader(archive), Limits{}, nil); err != nil {
			t.Fatal(err)
		}
		for _, folder := range []string{here, there} {
			dir := filepath.Join(folder, "one")
			if err := Verify(t.Context(), dir); err != nil {
				t.Error(err)
			}
			back, err := Open(t.Context(), dir, nil)
			if err != nil {
				t.Fatal(err)
			}
			text, err := io.ReadAll(io.NewSectionReader(back.Files, 0, 1<<30))
			if err != nil || string(text) != content || len(back.Disk) != layers {
				t.Errorf("%d layers, want %d, and a file of %d bytes (%v), want %d", len(back.Disk), layers, len(text), err, len(content))
			}
			back.Close()
			if err := os.WriteFile(filepath.Join(dir, filesName), []byte("other"), 0o600); err == nil && Verify(t.Context(), dir) == nil {
				t.Error("a file that was changed is not told")
			}
		}
	}
}
