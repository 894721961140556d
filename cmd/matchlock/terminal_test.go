package main

import (
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
)

// What is typed passes, but for the keys that let go; however it is cut into reads.
func TestKeys(t *testing.T) {
	const ctrlP, ctrlQ = "\x10", "\x11"
	for _, tt := range []struct {
		name, sequence string
		reads          []string
		want           string
		pressed        bool
	}{
		{"nothing", ctrlP + ctrlQ, nil, "", false},
		{"other keys", ctrlP + ctrlQ, []string{"ls\r", "exit\r"}, "ls\rexit\r", false},
		{"at once", ctrlP + ctrlQ, []string{ctrlP + ctrlQ}, "", true},
		{"in two reads", ctrlP + ctrlQ, []string{ctrlP, ctrlQ}, "", true},
		{"after others", ctrlP + ctrlQ, []string{"ls" + ctrlP, ctrlQ + "gone"}, "ls", true},
		{"what follows is not passed", ctrlP + ctrlQ, []string{ctrlP + ctrlQ + "gone", "gone too"}, "", true},
		{"the first alone", ctrlP + ctrlQ, []string{ctrlP, "x"}, ctrlP + "x", false},
		{"the first and the end", ctrlP + ctrlQ, []string{"x" + ctrlP}, "x" + ctrlP, false},
		{"the second alone", ctrlP + ctrlQ, []string{ctrlQ}, ctrlQ, false},
		{"the first twice", ctrlP + ctrlQ, []string{ctrlP + ctrlP + ctrlQ}, ctrlP, true},
		{"the first thrice", ctrlP + ctrlQ, []string{ctrlP, ctrlP, ctrlP, "x"}, ctrlP + ctrlP + ctrlP + "x", false},
		{"that overlaps itself", "ppq", []string{"p", "p", "p", "q"}, "p", true},
		{"that overlaps itself, in vain", "ppq", []string{"pp", "xpp", "pq"}, "ppxp", true},
		{"that begins anew in the middle", "abac", []string{"ab", "ab", "ac"}, "ab", true},
		{"one key", "x", []string{"ab", "xc"}, "ab", true},
		{"of one key, twice", "pp", []string{"p", "q", "p", "p"}, "pq", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var in []io.Reader
			for _, r := range tt.reads {
				in = append(in, strings.NewReader(r))
			}
			pressed := 0
			k := &keys{in: io.MultiReader(in...), sequence: []byte(tt.sequence), pressed: func() { pressed++ }}
			got, err := io.ReadAll(iotest.OneByteReader(k))
			if string(got) != tt.want || err != nil || (pressed == 1) != tt.pressed || pressed > 1 {
				t.Errorf("passed %q, %v, pressed %d times; want %q, %v", got, err, pressed, tt.want, tt.pressed)
			}
		})
	}
	broken := errors.New("broken")
	k := &keys{in: io.MultiReader(strings.NewReader("ab"), iotest.ErrReader(broken)), sequence: []byte("x"), pressed: func() { t.Error("pressed") }}
	if got, err := io.ReadAll(k); string(got) != "ab" || err != broken {
		t.Errorf("of a terminal that breaks: %q, %v", got, err)
	}
}

func TestParseKeys(t *testing.T) {
	for text, want := range map[string]string{
		"":                     "",
		"ctrl-p,ctrl-q":        "\x10\x11",
		"ctrl-P,ctrl-Q":        "\x10\x11",
		"ctrl-p,ctrl-p,ctrl-q": "\x10\x10\x11",
		"a":                    "a",
		"a,ctrl-a,A":           "a\x01A",
		"ctrl-@,ctrl-[":        "\x00\x1b",
		"ctrl-\\,ctrl-],~":     "\x1c\x1d~",
		"ctrl-^,ctrl-_, ":      "\x1e\x1f ",
	} {
		if got, err := parseKeys(text); err != nil || string(got) != want {
			t.Errorf("parseKeys(%q) = %q, %v; want %q", text, got, err, want)
		}
	}
	for _, text := range []string{",", "a,", "ab", "ctrl-", "ctrl-pq", "ctrl-1", "ctrl-é", "é", "shift-p", "ctrl-p ctrl-q", "\x10", "\x7f"} {
		if got, err := parseKeys(text); err == nil {
			t.Errorf("parseKeys(%q) = %q", text, got)
		} else if !strings.Contains(err.Error(), "keys") || slices.Contains([]byte(err.Error()), '\n') {
			t.Errorf("parseKeys(%q): %v", text, err)
		}
	}
}
