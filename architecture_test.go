// Package matchlock_test holds the source tree to ARCHITECTURE.md: who may
// import whom, and that every package says what it is for. It tests no behaviour.
package matchlock_test

import (
	"errors"
	"go/build"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/matchlock/matchlock"

// arrows is the map of ARCHITECTURE.md as data: for each package, which of ours
// and which modules beyond the standard library its code may import. Tests may
// import what they like. A new row or arrow is a design decision, and is made
// in ARCHITECTURE.md in the same commit: TestMap compares the two.
var arrows = map[string]struct{ ours, outside string }{
	"api":     {},
	"vm":      {ours: "api"},
	"sandbox": {ours: "api vm internal/agent internal/boot internal/control internal/disk internal/fuse internal/hostfs internal/image internal/intercept internal/logs internal/machine internal/names internal/netstack internal/policy internal/qemu internal/saved internal/secret internal/state internal/wire internal/workspace"},

	"cmd/matchlock":       {ours: "api sandbox vm internal/image internal/project internal/state", outside: "github.com/spf13/cobra github.com/spf13/pflag golang.org/x/sys golang.org/x/term"},
	"cmd/matchlock-guest": {ours: "internal/guest internal/jail"},

	"internal/wire":    {},
	"internal/agent":   {ours: "api internal/wire", outside: "golang.org/x/sys"},
	"internal/machine": {ours: "api vm internal/agent internal/hostfs internal/wire"},
	"internal/qemu":    {ours: "api vm internal/agent internal/disk internal/hostfs internal/jail internal/logs internal/machine internal/saved internal/wire", outside: "golang.org/x/sys"},
	"internal/guest":   {ours: "api internal/agent internal/fuse internal/seccomp internal/wire internal/workspace", outside: "golang.org/x/sys"},

	"internal/jail":    {ours: "internal/hostfs internal/seccomp", outside: "golang.org/x/sys"},
	"internal/seccomp": {outside: "golang.org/x/sys"},

	"internal/compress": {outside: "github.com/klauspost/compress github.com/ulikunitz/xz"},
	"internal/hostfs":   {},
	"internal/logs":     {},
	"internal/boot":     {ours: "internal/compress internal/hostfs", outside: "github.com/pierrec/lz4/v4 github.com/ulikunitz/xz"},
	"internal/disk":     {ours: "internal/hostfs", outside: "golang.org/x/sys"},
	"internal/image":    {ours: "internal/compress internal/disk internal/hostfs", outside: "github.com/google/go-containerregistry"},
	"internal/saved":    {ours: "vm internal/compress internal/disk internal/hostfs", outside: "github.com/klauspost/compress"},
	"internal/state":    {ours: "api internal/hostfs"},
	"internal/control":  {ours: "internal/hostfs internal/logs internal/wire"},
	"internal/secret":   {},

	"internal/fuse":                    {ours: "internal/workspace", outside: "golang.org/x/sys"},
	"internal/workspace":               {ours: "api internal/disk internal/hostfs", outside: "golang.org/x/sys"},
	"internal/workspace/workspacetest": {ours: "internal/workspace", outside: "golang.org/x/sys"},

	"internal/netstack": {outside: "gvisor.dev/gvisor"},
	"internal/testnet":  {outside: "gvisor.dev/gvisor"},

	"internal/names":                 {ours: "api internal/policy", outside: "golang.org/x/net"},
	"internal/intercept":             {ours: "api internal/names internal/policy internal/secret", outside: "github.com/andybalholm/brotli github.com/coder/websocket github.com/klauspost/compress"},
	"internal/policy":                {ours: "api internal/document", outside: "golang.org/x/net"},
	"internal/document":              {ours: "api", outside: "go.yaml.in/yaml/v3"},
	"internal/document/documenttest": {ours: "api internal/document"},
	"internal/project":               {ours: "api internal/document internal/hostfs internal/policy"},

	"bench":         {ours: "api sandbox"},
	"bench/client":  {},
	"examples/go/*": {ours: "api sandbox", outside: "golang.org/x/term"},
	"vm/vmtest":     {ours: "api vm internal/agent internal/machine internal/wire"},
}

func TestArrows(t *testing.T) {
	missing := maps.Clone(arrows)
	for _, goos := range []string{"linux", "darwin"} {
		for name, p := range packages(t, goos) {
			row := name
			if path.Dir(name) == "examples/go" {
				row = "examples/go/*" // they have one for all
			}
			delete(missing, row)
			may, ok := arrows[row]
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
	for name := range missing {
		t.Errorf("package %s is on the map and nowhere else: take out its row here and in ARCHITECTURE.md", name)
	}
}

// allowed reports whether a package may import it, given its row. The
// standard library is free to all; cgo, whose pseudo-package is "C", to none.
func allowed(imported, ours, outside string) bool {
	if local, ok := strings.CutPrefix(imported, module+"/"); ok {
		return slices.Contains(strings.Fields(ours), local)
	}
	if first, _, _ := strings.Cut(imported, "/"); !strings.Contains(first, ".") {
		return imported != "C"
	}
	return slices.ContainsFunc(strings.Fields(outside), func(m string) bool {
		return imported == m || strings.HasPrefix(imported, m+"/")
	})
}

func TestMap(t *testing.T) {
	page, err := os.ReadFile("ARCHITECTURE.md")
	if err != nil {
		t.Fatal(err)
	}
	missing := maps.Clone(arrows)
	for line := range strings.Lines(string(page)) {
		cells := strings.Split(line, " | ")
		name, ok := strings.CutPrefix(cells[0], "| `")
		if !ok || len(cells) != 4 {
			continue
		}
		name = strings.TrimSuffix(name, "`")
		if _, ok := missing[name]; !ok {
			t.Errorf("ARCHITECTURE.md has a row for %s, and arrows here none or the row stands twice", name)
		}
		delete(missing, name)
		if got, want := spellOut(cells[2]), strings.Fields(arrows[name].ours); !slices.Equal(got, want) {
			t.Errorf("ARCHITECTURE.md lets %s import %q, and arrows here %q", name, got, want)
		}
	}
	for name := range missing {
		t.Errorf("package %s has no row in ARCHITECTURE.md", name)
	}
}

// spellOut lists the packages in a cell: "api internal/{disk,wire}" is three,
// and "–" none.
func spellOut(cell string) []string {
	var names []string
	for _, word := range strings.Fields(strings.Trim(cell, "–")) {
		folder, list, _ := strings.Cut(strings.TrimSuffix(word, "}"), "{")
		for name := range strings.SplitSeq(list, ",") {
			names = append(names, folder+name)
		}
	}
	return names
}

func TestPackageComments(t *testing.T) {
	for name, p := range packages(t, "linux") {
		want := "Package " + p.Name + " "
		if p.Name == "main" {
			want = "Command " + path.Base(name) + " "
		}
		if !strings.HasPrefix(p.Doc, want) {
			t.Errorf("%s: package comment begins %q, want %q…", name, p.Doc, want)
		}
	}
}

// packages returns our packages that have code of their own on goos, beyond
// tests, by their path in the module. It reads the files itself where `go list`
// would be shorter: go test knows then when a cached result no longer holds.
func packages(t *testing.T, goos string) map[string]*build.Package {
	t.Helper()
	target := build.Default
	target.GOOS, target.CgoEnabled = goos, true

	found := make(map[string]*build.Package)
	err := filepath.WalkDir(".", func(dir string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.IsDir() || dir == "." {
			return err
		}
		if base := entry.Name(); base == "testdata" || base[0] == '.' || base[0] == '_' {
			return fs.SkipDir
		}
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return fs.SkipDir
		}
		p, err := target.ImportDir(dir, 0)
		var none *build.NoGoError
		if errors.As(err, &none) {
			return nil
		}
		if err == nil && len(p.GoFiles)+len(p.CgoFiles) > 0 {
			found[filepath.ToSlash(dir)] = p
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(found) == 0 {
		t.Fatal("no package found")
	}
	return found
}
