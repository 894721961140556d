package logs

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"time"
)

func TestParse(t *testing.T) {
	const stamp = "2026-11-26T15:04:05.123456789Z"
	at := time.Date(2026, 11, 26, 15, 4, 5, 123456789, time.UTC)
	for _, tt := range []struct {
		name, line string
		want       Record
	}{
		{"a line", stamp + " stdout F a line ", Record{at, "stdout", false, []byte("a line ")}},
		{"a part", stamp + " a-9 P  \x00\xff\r", Record{at, "a-9", true, []byte(" \x00\xff\r")}},
		{"an empty line", stamp + " stderr F ", Record{at, "stderr", false, []byte{}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, ok := parse([]byte(tt.line))
			if !ok || !got.Time.Equal(tt.want.Time) || got.Stream != tt.want.Stream || got.Partial != tt.want.Partial || !bytes.Equal(got.Content, tt.want.Content) {
				t.Errorf("parse = %+v, %v; want %+v", got, ok, tt.want)
			}
			if back := spell(got); back != tt.line {
				t.Errorf("written again it is %q, want %q", back, tt.line)
			}
		})
	}
	for name, line := range map[string]string{
		"nothing":             "",
		"no content":          stamp + " stdout F",
		"another tag":         stamp + " stdout X a",
		"two tags":            stamp + " stdout F:P a",
		"no stream":           stamp + "  F a",
		"a long stream":       stamp + " abcdefghijklmnopq F a",
		"a capital":           stamp + " Stdout F a",
		"milliseconds":        "2026-11-26T15:04:05.123Z stdout F a",
		"a comma":             "2026-11-26T15:04:05,123456789Z stdout F a",
		"another zone":        "2026-11-26T15:04:05.123456789+01:00 stdout F a",
		"the 31st of Nov.":    "2026-11-31T15:04:05.123456789Z stdout F a",
		"a letter for a 1":    "2026-11-26T15:04:05.l23456789Z stdout F a",
		"a single-digit hour": "2026-11-26T5:04:05.1234567890Z stdout F a",
	} {
		if r, ok := parse([]byte(line)); ok {
			t.Errorf("%s: parse = %+v, want nothing", name, r)
		}
	}
}

func TestNumber(t *testing.T) {
	for content, want := range map[string]uint64{
		"file 7": 7, "file 0": 0, "file -1": 0, "file": 0, "file 7 ": 0, "7": 0,
		"file 4611686018427387903": 1<<62 - 1, "file 4611686018427387904": 0,
	} {
		if got := (Record{Stream: Own, Content: []byte(content)}).number(); got != want {
			t.Errorf("number of %q = %d, want %d", content, got, want)
		}
	}
	for _, r := range []Record{{Stream: "stdout"}, {Stream: Own, Partial: true}} {
		if r.Content = []byte("file 7"); r.number() != 0 {
			t.Errorf("%+v numbers a file", r)
		}
	}
}

// spell is the line that a record is written as, without its end.
func spell(r Record) string {
	tag := byte('F')
	if r.Partial {
		tag = 'P'
	}
	return strings.TrimSuffix(string(appendRecord(nil, appendHead(nil, r.Time, r.Stream), tag, r.Content)), "\n")
}

// What is parsed is what was written, to the byte.
func FuzzParse(f *testing.F) {
	f.Add([]byte("2026-11-26T15:04:05.123456789Z stdout F a line"))
	f.Add([]byte("0000-01-01T00:00:00.+00000000Z 0 F "))
	f.Add([]byte("2026-02-29T24:00:60.000000000Z a P "))
	f.Fuzz(func(t *testing.T, line []byte) {
		if r, ok := parse(line); ok && spell(r) != string(line) {
			t.Errorf("%q was taken for %q", line, spell(r))
		}
	})
}

// must fails the test when any of the steps did.
func must(t testing.TB, steps ...error) {
	t.Helper()
	if err := errors.Join(steps...); err != nil {
		t.Fatal(err)
	}
}
