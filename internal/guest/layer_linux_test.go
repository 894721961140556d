package guest

import (
	"bytes"
	"testing"
	"time"
)

// TestWithoutRooms takes away what makeRoom adds, wherever it has come to be.
func TestWithoutRooms(t *testing.T) {
	room := string(filledRoom([]byte(certificate)))
	with := &trust{roots: []byte("roots\n")}
	for _, test := range []struct {
		trust         *trust
		content, want string
	}{
		{nil, "", ""},
		{nil, "theirs\n", "theirs\n"},
		{nil, "theirs\n" + room, "theirs\n"},
		{nil, string(blankRoom()), ""},
		{nil, "a\n" + room + "b\n" + room + "c\n", "a\nb\nc\n"},
		{nil, "a\n" + room[:len(room)-1], "a\n" + room[:len(room)-1]}, // not what we have written
		{with, "roots\n" + room, ""},
		{with, "roots\n" + room + "more\n", "roots\nmore\n"},
	} {
		content := []byte(test.content)
		if got := string(test.trust.withoutRooms(content)); got != test.want {
			t.Errorf("of %q remains %q, want %q", test.content, got, test.want)
		}
		if string(content) != test.content {
			t.Errorf("%q has become %q", test.content, content)
		}
	}
}

// TestWithoutOurs takes a certificate out of a keystore.
func TestWithoutOurs(t *testing.T) {
	before := keystoreOf(0, nil)
	with, err := keystoreWith(before, []byte("certificate"), time.Unix(1, 0))
	if err != nil {
		t.Fatal(err)
	}
	other := []byte("not a keystore")
	for _, test := range []struct{ content, want []byte }{{with, before}, {before, before}, {other, other}, {nil, nil}} {
		if got := withoutOurs(test.content); !bytes.Equal(got, test.want) {
			t.Errorf("of %q remains %q, want %q", test.content, got, test.want)
		}
	}
}
