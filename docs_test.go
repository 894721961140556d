package matchlock_test

import (
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// pages are what people read, and what docs links to.
func pages(t *testing.T) map[string]string {
	t.Helper()
	found := make(map[string]string)
	for _, pattern := range []string{"*.md", "docs/*.md"} {
		names, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			text, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			found[filepath.ToSlash(name)] = string(text)
		}
	}
	if len(found) < 10 {
		t.Fatalf("only %d pages found", len(found))
	}
	return found
}

var (
	link     = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	testName = regexp.MustCompile(`\b(?:Test|Fuzz)[A-Z]\w*`)
	testLink = regexp.MustCompile("\\[`((?:Test|Fuzz)\\w*)(/\\w+)?`\\]\\(([^)]+)\\)")
)

// Where a link leads to there is something.
func TestLinks(t *testing.T) {
	all := pages(t)
	for page, text := range all {
		for _, l := range link.FindAllStringSubmatch(text, -1) {
			to, heading, _ := strings.Cut(l[1], "#")
			if strings.Contains(to, ":") {
				continue // elsewhere
			}
			file := page
			if to != "" {
				file = path.Join(path.Dir(page), to)
			}
			if _, err := os.Stat(file); err != nil {
				t.Errorf("%s links to %s: %v", page, l[1], err)
			} else if heading != "" && !slices.Contains(headings(all[file]), heading) {
				t.Errorf("%s links to %s, and %s has no such heading", page, l[1], file)
			}
		}
	}
}

var notInAnchor = regexp.MustCompile(`[^\p{L}\p{N} _-]`)

// headings are those of a page as links name them.
func headings(text string) (anchors []string) {
	for line := range strings.Lines(text) {
		if title, ok := strings.CutPrefix(strings.TrimLeft(line, "#"), " "); ok && line[0] == '#' {
			title = notInAnchor.ReplaceAllString(strings.ToLower(strings.TrimSpace(title)), "")
			anchors = append(anchors, strings.ReplaceAll(title, " ", "-"))
		}
	}
	return anchors
}

// A test that a page names is there, and each attack of docs/security.md has one or says
// why it has none. What a page promises would be worth nothing otherwise.
func TestNamedTests(t *testing.T) {
	for page, text := range pages(t) {
		for _, l := range testLink.FindAllStringSubmatch(text, -1) {
			name, part, file := l[1], l[2], path.Join(path.Dir(page), l[3])
			source, err := os.ReadFile(file)
			if err != nil {
				t.Errorf("%s: %v", page, err)
				continue
			}
			// A script of testdata is a part of the test that runs them.
			if part != "" && path.Ext(file) == ".txtar" {
				if strings.TrimPrefix(part, "/") != strings.TrimSuffix(path.Base(file), ".txtar") {
					t.Errorf("%s: %s%s is not %s", page, name, part, file)
				}
				continue
			}
			if !strings.HasSuffix(file, "_test.go") || !strings.Contains("\n"+string(source), "\nfunc "+name+"(") {
				t.Errorf("%s: there is no %s in %s", page, name, file)
			}
		}
	}
	for _, name := range testName.FindAllString(testLink.ReplaceAllString(pages(t)["docs/security.md"], ""), -1) {
		t.Errorf("docs/security.md: %s is no link to it", name)
	}
	rows, header := 0, ""
	for line := range strings.Lines(pages(t)["docs/security.md"]) {
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		switch last := strings.TrimSpace(cells[len(cells)-1]); {
		case !strings.HasPrefix(line, "|"):
			header = ""
		case header == "":
			header = last
		case header == "tests" && !strings.HasPrefix(last, "--"):
			rows++
			if !testLink.MatchString(last) && !(last == "–" && strings.Contains(line, "no test of their own: ")) {
				t.Errorf("docs/security.md: no test holds %q", strings.TrimSpace(cells[0]))
			}
		}
	}
	if rows < 40 {
		t.Errorf("docs/security.md has %d rows with tests", rows)
	}
}
