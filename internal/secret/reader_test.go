package secret

import (
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
)

// A source gives its pieces one by one. To read when there are none would block for ever.
type source struct {
	t      *testing.T
	pieces []string
	ended  bool
	closed bool
}

func (s *source) Read(b []byte) (int, error) {
	if len(s.pieces) == 0 {
		if !s.ended {
			s.t.Error("the source was read although there was something to deliver")
		}
		return 0, io.EOF
	}
	n := copy(b, s.pieces[0])
	s.pieces = s.pieces[1:]
	return n, nil
}

func (s *source) Close() error {
	s.closed = true
	return nil
}

// What comes is handed on by the same read, but for what may be the beginning of a value.
func TestReaderHoldsBackLittle(t *testing.T) {
	const v = "sk-0123456789"
	set, placeholders := setOf(t, []string{v})
	s := &source{t: t}
	r := set.For("host").ResponseBody(s)
	buf := make([]byte, 1000)
	for _, step := range []struct {
		said []string
		want string
	}{
		{[]string{"data: one\n\n"}, "data: one\n\n"},
		{[]string{"data: s"}, "data: "},
		{[]string{"ilence\n\n"}, "silence\n\n"},
		{[]string{"data: " + v + "\n\n"}, "data: " + placeholders[0] + "\n\n"},
		{[]string{"x" + v}, "x" + placeholders[0]},
		{[]string{"data: sk-01"}, "data: "},
		{[]string{"2", "3", "57\n"}, "sk-012357\n"},
		{[]string{"s", "%6b", "-", "012345", "678", "9"}, placeholders[0]},
		{[]string{"100%"}, "100"},
		{[]string{" &am"}, "% "},
		{[]string{"p;", "lt;\n"}, "&amp;lt;\n"}, // <, escaped twice, could have begun no value; &am could
	} {
		s.pieces = step.said
		n, err := r.Read(buf)
		if got := string(buf[:n]); got != step.want || err != nil || len(s.pieces) > 0 {
			t.Errorf("%q: got %q, %v, with %q unread; want %q", step.said, got, err, s.pieces, step.want)
		}
	}
	s.pieces, s.ended = []string{"the end sk-"}, true
	if rest, err := io.ReadAll(r); string(rest) != "the end sk-" || err != nil {
		t.Errorf("at the end: got %q, %v", rest, err)
	}
	if err := r.Close(); err != nil || !s.closed {
		t.Errorf("not closed: %v", err)
	}
}

func TestReaderErrors(t *testing.T) {
	set, placeholders := setOf(t, []string{"sk-0123456789"})
	broken := errors.New("connection reset")
	for _, row := range []struct {
		source io.Reader
		want   string
		err    error
	}{
		{iotest.DataErrReader(strings.NewReader("x sk-0123456789")), "x " + placeholders[0], nil},
		{io.MultiReader(strings.NewReader("x sk-"), iotest.ErrReader(broken)), "x sk-", broken},
		{iotest.ErrReader(broken), "", broken},
		{nothing{}, "", io.ErrNoProgress},
	} {
		body := set.For("host").ResponseBody(io.NopCloser(row.source))
		got, err := io.ReadAll(iotest.OneByteReader(body))
		if string(got) != row.want || !errors.Is(err, row.err) {
			t.Errorf("got %q, %v; want %q, %v", got, err, row.want, row.err)
		}
		if n, err := body.Read(make([]byte, 1)); n != 0 || err == nil {
			t.Errorf("after the end: got %d, %v", n, err)
		}
	}
}

type nothing struct{}

func (nothing) Read([]byte) (int, error) { return 0, nil }

// However a host goes about it, no more is held back than the longest form of a value.
func TestReaderKeepsLittle(t *testing.T) {
	values := []string{"sk-012345678", `\\\\"\\\\"\\\\"`, "aaaaaaaaaaaa"}
	const longest = 2 * 15 * 12 * 12 // in hex, each digit escaped in 12 characters, of which each is so too
	set, _ := setOf(t, values)
	for _, begun := range []string{
		"sk-01234567", "&#0000000", "&#00000115;&#x00006b;", "&#00000115;", "a", "aaaaaaaaaaa%", `\`, `\\\\"`, `\\\\\"`, "%", "&", "%25", "%5c",
		`\u005c`, "&amp;#", `\ud834\`, "&&#00000035;&#00000049;&#00000049;",
	} {
		r := set.For("host").ResponseBody(io.NopCloser(iotest.OneByteReader(strings.NewReader(strings.Repeat(begun, 2*longest/len(begun)))))).(*reader)
		most := 0
		for r.err == nil {
			r.fill()
			most = max(most, len(r.scan.text)-r.passed)
		}
		if most > longest {
			t.Errorf("%q…: held back %d bytes", begun, most)
		}
	}
}

func TestResponseHeader(t *testing.T) {
	set, placeholders := setOf(t, []string{oddValue})
	h := http.Header{"Location": {"https://host/?k=" + inQuery()}, "Set-Cookie": {"a=b", "k=" + basic(oddValue)}, oddValue: {"x"}}
	set.Outside().ResponseHeader(h)
	if got := h.Get("Location"); strings.Contains(got, placeholders[0]) {
		t.Errorf("redacted outside of all scopes: %q", got)
	}
	set.For("host").ResponseHeader(h)
	if got, want := h.Get("Location"), "https://host/?k="+placeholders[0]; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if got, want := h["Set-Cookie"], []string{"a=b", "k=" + redacted(basic(oddValue), []string{oddValue}, placeholders)}; !slices.Equal(got, want) || strings.Count(got[1], placeholders[0]) != 1 {
		t.Errorf("got %q, want %q", got, want)
	}
	if _, ok := h[oddValue]; !ok {
		t.Error("a name was changed")
	}
	if got, err := io.ReadAll(set.For("host").ResponseMessage(strings.NewReader("a" + oddValue))); string(got) != "a"+placeholders[0] || err != nil {
		t.Errorf("message: got %q, %v", got, err)
	}
}
