package workspace

import (
	"strings"
	"testing"
)

func TestUnified(t *testing.T) {
	numbers := func(skip ...int) string {
		var b strings.Builder
		for i := range 30 {
			b.WriteString("line ")
			for _, s := range skip {
				if s == i {
					b.WriteString("changed ")
				}
			}
			b.WriteByte(byte('a' + i%26))
			b.WriteString("\n")
		}
		return b.String()
	}
	for _, test := range []struct{ name, a, b, want string }{
		{"same", "a\nb\n", "a\nb\n", ""},
		{"from nothing", "", "a\nb\n", "@@ -0,0 +1,2 @@\n+a\n+b\n"},
		{"to nothing", "a\n", "", "@@ -1,1 +0,0 @@\n-a\n"},
		{"one line", "a\nb\nc\n", "a\nx\nc\n", "@@ -1,3 +1,3 @@\n a\n-b\n+x\n c\n"},
		{"last line feed", "a", "a\n", "@@ -1,1 +1,1 @@\n-a\n\\ No newline at end of file\n+a\n"},
		{"two hunks", numbers(), numbers(3, 20), "@@ -1,7 +1,7 @@\n line a\n line b\n line c\n-line d\n+line changed d\n line e\n line f\n line g\n" +
			"@@ -18,7 +18,7 @@\n line r\n line s\n line t\n-line u\n+line changed u\n line v\n line w\n line x\n"},
		{"one hunk of two", numbers(), numbers(3, 10), "@@ -1,14 +1,14 @@\n line a\n line b\n line c\n-line d\n+line changed d\n line e\n line f\n line g\n line h\n line i\n line j\n-line k\n+line changed k\n line l\n line m\n line n\n"},
	} {
		if got := unified(lines([]byte(test.a)), lines([]byte(test.b))); got != test.want {
			t.Errorf("%s:\n%s\nwant\n%s", test.name, got, test.want)
		}
	}
	if got, want := quotePath("a/\x1b[2Jü\"\\x"), `"a/\033[2J\303\274\"\\x"`; got != want {
		t.Errorf("quoted %s, want %s", got, want)
	}
	if got := quotePath("a/plain file"); got != "a/plain file" {
		t.Errorf("quoted %s", got)
	}
}

// FuzzCompareLines has a diff lead from one text to the other.
func FuzzCompareLines(f *testing.F) {
	f.Add("a\nb\nc\n", "b\nd\nc\n")
	f.Add(strings.Repeat("x\n", 1200), strings.Repeat("y\n", 1200)) // more than is looked for
	f.Fuzz(func(t *testing.T, a, b string) {
		var olds, news strings.Builder
		for _, op := range compareLines(lines([]byte(a)), lines([]byte(b))) {
			if op.kind != '+' {
				olds.WriteString(op.line)
			}
			if op.kind != '-' {
				news.WriteString(op.line)
			}
		}
		if olds.String() != a || news.String() != b {
			t.Errorf("it leads from %q to %q, not from %q to %q", olds.String(), news.String(), a, b)
		}
		if hunks := unified(lines([]byte(a)), lines([]byte(b))); (hunks == "") != (a == b) {
			t.Errorf("hunks %q of %q and %q", hunks, a, b)
		}
	})
}
