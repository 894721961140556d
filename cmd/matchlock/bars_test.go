package main

import (
	"io"
	"strings"
	"testing"
	"time"

	"github.com/matchlock/matchlock/sandbox"
)

func TestBar(t *testing.T) {
	for want, p := range map[string]sandbox.Progress{
		"layer 0123                       [                        ] 0 B of 1 KiB":   {Task: "layer 0123", Total: 1024},
		"layer 0123                       [============            ] 512 B of 1 KiB": {Task: "layer 0123", Done: 512, Total: 1024},
		"layer 0123                       [========================] 1 KiB of 1 KiB": {Task: "layer 0123", Done: 4096, Total: 1024},
		"kernel                           3 MiB":                                     {Task: "kernel", Done: 3 << 20},
		"\uFFFD[2Jowned                        0 B":                                  {Task: "\x1b[2Jowned", Total: -1},
	} {
		if got := bar(p); got != want {
			t.Errorf("bar of %+v:\ngot  %q\nwant %q", p, got, want)
		}
	}
}

func TestAgo(t *testing.T) {
	for want, d := range map[string]time.Duration{
		"just now": 59 * time.Second, "1 minute ago": 90 * time.Second, "59 minutes ago": time.Hour - 1,
		"1 hour ago": 90 * time.Minute, "2 days ago": 71 * time.Hour,
	} {
		if got := ago(d); got != want {
			t.Errorf("ago(%v) = %q, want %q", d, got, want)
		}
	}
}

// A terminal gets no more of a guest's text than text, however it is parted.
func TestLinesWriter(t *testing.T) {
	const text = "+ä€😀\tx\r\n-\x1b[2K\u202e\x9b\n"
	const want = "+ä€😀\tx\uFFFD\n-\uFFFD[2K\uFFFD\uFFFD\n"
	for step := 1; step <= len(text); step++ {
		var b strings.Builder
		w := &linesWriter{w: &b}
		for rest := text; rest != ""; {
			n := min(step, len(rest))
			if _, err := io.WriteString(w, rest[:n]); err != nil {
				t.Fatal(err)
			}
			rest = rest[n:]
		}
		if b.String() != want {
			t.Errorf("by %d: %q, want %q", step, b.String(), want)
		}
	}
}
