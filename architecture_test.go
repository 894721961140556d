// Package matchlock_test holds the source tree to ARCHITECTURE.md: who may
// import whom, and that every package says what it is for. It tests no behaviour.
package matchlock_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/matchlock/matchlock"

// arrows is the map of ARCHITECTURE.md as data: for each package, which of ours
// and which modules beyond the standard library its code may import. Tests may
// import what they like. A new row or arrow is a design decision, and is made
// in ARCHITECTURE.md in the same commit.
var arrows = map[string]struct{ ours, outside string }{
	"api":     {},
	"vm":      {ours: "api"},
	"sandbox": {ours: "api vm internal/agent internal/boot internal/disk internal/image internal/machine internal/qemu internal/state internal/wire"},

	"cmd/matchlock":       {ours: "api sandbox internal/image internal/state", outside: "github.com/spf13/cobra"},
	"cmd/matchlock-guest": {ours: "internal/guest"},

	"internal/wire":    {},
	"internal/agent":   {ours: "api internal/wire", outside: "github.com/creack/pty"},
	"internal/machine": {ours: "api vm internal/agent internal/wire"},
	"internal/qemu":    {ours: "api vm internal/agent internal/disk internal/machine internal/wire", outside: "golang.org/x/sys"},
	"internal/guest":   {ours: "api internal/agent internal/wire", outside: "golang.org/x/sys"},

	"internal/boot":  {ours: "internal/wire", outside: "github.com/klauspost/compress github.com/pierrec/lz4/v4 github.com/ulikunitz/xz"},
	"internal/disk":  {outside: "golang.org/x/sys"},
	"internal/image": {ours: "api internal/disk", outside: "github.com/google/go-containerregistry github.com/klauspost/compress github.com/ulikunitz/xz"},
	"internal/state": {ours: "api", outside: "golang.org/x/sys"},

	"vm/vmtest": {ours: "api vm internal/agent internal/machine internal/wire"},
}

func TestArrows(t *testing.T) {
	for _, goos := range []string{"linux", "darwin"} {
		for _, p := range packages(t, goos) {
			name := strings.TrimPrefix(p.ImportPath, module+"/")
			may, ok := arrows[name]
			if !ok {
				t.Errorf("package %s is on no map: give it a row here and in ARCHITECTURE.md, in the same commit", name)
				continue
			}
			for _, imported := range p.Imports {
				if !allowed(imported, may.ours, may.outside) {
					t.Errorf("%s imports %s (GOOS=%s): do without, or allow it here and in ARCHITECTURE.md, in the same commit", name, imported, goos)
				}
			}
		}
	}
}

// allowed reports whether a package may import path, given its row. The
// standard library is free to all; cgo, whose pseudo-package is "C", to none.
func allowed(path, ours, outside string) bool {
	if local, ok := strings.CutPrefix(path, module+"/"); ok {
		return slices.Contains(strings.Fields(ours), local)
	}
	if first, _, _ := strings.Cut(path, "/"); !strings.Contains(first, ".") {
		return path != "C"
	}
	return slices.ContainsFunc(strings.Fields(outside), func(m string) bool {
		return path == m || strings.HasPrefix(path, m+"/")
	})
}

func TestPackageComments(t *testing.T) {
	for _, p := range packages(t, "linux") {
		want := "Package " + p.Name + " "
		if p.Name == "main" {
			want = "Command " + p.ImportPath[strings.LastIndexByte(p.ImportPath, '/')+1:] + " "
		}
		if !strings.HasPrefix(p.Doc, want) {
			t.Errorf("%s: package comment begins %q, want %q…", p.ImportPath, p.Doc, want)
		}
	}
}

// goPackage is what `go list -json` tells of a package, as far as needed here.
type goPackage struct {
	ImportPath string
	Name       string
	Doc        string
	GoFiles    []string
	CgoFiles   []string
	Imports    []string
}

// packages lists our packages that have code of their own on goos, beyond tests.
func packages(t *testing.T, goos string) []goPackage {
	t.Helper()
	// With -e a tree that does not compile is listed all the same: that is for
	// the compiler to report.
	list := exec.Command("go", "list", "-e", "-json=ImportPath,Name,Doc,GoFiles,CgoFiles,Imports", "./...")
	list.Env = append(os.Environ(), "GOOS="+goos, "CGO_ENABLED=1")
	list.Stderr = os.Stderr
	out, err := list.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var pkgs []goPackage
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p goPackage
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatalf("go list: %v", err)
		}
		if len(p.GoFiles)+len(p.CgoFiles) > 0 {
			pkgs = append(pkgs, p)
		}
	}
	if len(pkgs) == 0 {
		t.Fatal("go list names no package")
	}
	return pkgs
}
