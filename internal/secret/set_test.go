package secret

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
)

func TestNewValue(t *testing.T) {
	for _, row := range []struct {
		value string
		ok    bool
	}{
		{strings.Repeat("x", MinValue), true},
		{strings.Repeat("x", MinValue-1), false},
		{strings.Repeat("x", MaxValue), true},
		{strings.Repeat("x", MaxValue+1), false},
		{oddValue, true},
		{"with\ta tab inside", true},
		{"with a newline\n", false},
		{"with\ra carriage return", false},
		{"with\x00a NUL inside", false},
		{"with\x1ban escape", false},
		{`with \\\\ four backslashes`, true},
		{`with \\\\\ five backslashes`, false},
		{" with a blank before", false},
		{"with a blank behind\t", false},
	} {
		v, err := NewValue([]byte(row.value))
		if (err == nil) != row.ok || v.IsZero() == row.ok {
			t.Errorf("NewValue(%.30q): %v", row.value, err)
		}
		if err != nil && strings.Contains(err.Error(), row.value) {
			t.Errorf("error %q holds the value", err)
		}
	}
}

func TestNewPlaceholder(t *testing.T) {
	a, b := NewPlaceholder(), NewPlaceholder()
	if a == b || !validPlaceholder(a) || !validPlaceholder(b) {
		t.Errorf("got %q and %q", a, b)
	}
}

func TestNewSet(t *testing.T) {
	everywhere := func(string) bool { return true }
	one := Secret{Name: "ONE", Placeholder: NewPlaceholder(), Value: value(t, "the first value"), Hosts: everywhere}
	two := Secret{Name: "TWO", Placeholder: NewPlaceholder(), Hosts: everywhere}
	with := func(s Secret, change func(*Secret)) Secret { change(&s); return s }
	for _, row := range []struct {
		secret Secret
		want   string
	}{
		{two, ""},
		{with(two, func(s *Secret) { s.Name = "" }), "without a name"},
		{with(two, func(s *Secret) { s.Name = "ONE" }), "given twice"},
		{with(two, func(s *Secret) { s.Hosts = nil }), "no scope"},
		{with(two, func(s *Secret) { s.Placeholder = one.Placeholder }), `placeholder of "ONE"`},
		{with(two, func(s *Secret) { s.Placeholder = "" }), "is none"},
		{with(two, func(s *Secret) { s.Placeholder = strings.ToUpper(two.Placeholder + "a") }), "is none"},
		{with(two, func(s *Secret) { s.Value = value(t, "x"+one.Placeholder) }), `placeholder of "ONE" in it`},
		{with(two, func(s *Secret) { s.Value = value(t, "x"+two.Placeholder) }), `placeholder of "TWO" in it`},
	} {
		_, err := NewSet([]Secret{one, row.secret})
		if row.want == "" && err != nil || row.want != "" && (err == nil || !strings.Contains(err.Error(), row.want)) {
			t.Errorf("got %v, want %q", err, row.want)
		}
	}
	// The first may hold the placeholder of the second as well.
	if _, err := NewSet([]Secret{with(one, func(s *Secret) { s.Value = value(t, "x"+two.Placeholder) }), two}); err == nil {
		t.Error("a value with the placeholder of a later secret was taken")
	}
}

func TestRotateAndRevoke(t *testing.T) {
	ph := NewPlaceholder()
	set, err := NewSet([]Secret{{Name: "KEY", Placeholder: ph, Hosts: func(h string) bool { return h == "in" }}})
	if err != nil {
		t.Fatal(err)
	}
	scope := set.For("in")
	if !scope.Any() || set.For("out").Any() || set.Outside().Any() {
		t.Error("Any is wrong")
	}
	send := func() (string, error) {
		h := http.Header{"X": {ph}}
		err := scope.Request(h, &url.URL{})
		return h.Get("X"), err
	}
	wantLeak := func(why string) {
		t.Helper()
		var leak *Leak
		if got, err := send(); !errors.As(err, &leak) || *leak != (Leak{"KEY", `header "X"`, why}) || got != ph {
			t.Errorf("got %q, %v; want a leak, %s", got, err, why)
		}
	}
	// A stream that lives through it all.
	source, host := io.Pipe()
	defer host.Close()
	stream := scope.ResponseBody(source)
	said := func(text string) string {
		go io.WriteString(host, text+"\n")
		buf := make([]byte, 1000)
		n, _ := stream.Read(buf)
		return string(buf[:n])
	}

	wantLeak("unbound")
	first, second := "the first value", "the second value"
	if got := said(first); got != first+"\n" {
		t.Errorf("what is no value was redacted: %q", got)
	}
	for _, v := range []string{first, second} {
		if err := set.Rotate("KEY", value(t, v)); err != nil {
			t.Fatal(err)
		}
		if got, err := send(); err != nil || got != v {
			t.Errorf("got %q, %v", got, err)
		}
		if got := said(v); got != ph+"\n" {
			t.Errorf("got %q of a stream that was there before", got)
		}
	}
	if err := set.Rotate("KEY", Value{}); err == nil {
		t.Error("was rotated to nothing")
	}
	if err := set.Rotate("KEY", value(t, "holds "+ph)); err == nil || strings.Contains(err.Error(), ph) {
		t.Errorf("was rotated to a value with its placeholder: %v", err)
	}
	if err := set.Rotate("OTHER", value(t, first)); err == nil {
		t.Error("a secret that is none was rotated")
	}
	if err := set.Revoke("KEY"); err != nil {
		t.Fatal(err)
	}
	wantLeak("revoked")
	if err := set.Rotate("KEY", value(t, "the third value")); err == nil {
		t.Error("was rotated after it was revoked")
	}
	if got, want := said(first+second), ph+ph+"\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// No value is in whatever fmt, encoding/json or log/slog make of what the package exports.
// Who rotates among a few values for months has only these looked for.
func TestRotateAgain(t *testing.T) {
	set, err := NewSet([]Secret{{Name: "KEY", Placeholder: NewPlaceholder(), Hosts: func(string) bool { return true }}})
	if err != nil {
		t.Fatal(err)
	}
	for n := range 100 {
		if err := set.Rotate("KEY", value(t, fmt.Sprint("value of secret ", n%3))); err != nil {
			t.Fatal(err)
		}
	}
	if old := set.state.Load().bound[0].old; len(old) != 3 {
		t.Errorf("%d old values are kept, of 3", len(old))
	}
	h := http.Header{"X": {"value of secret 0, value of secret 1, value of secret 2"}}
	if set.For("in").ResponseHeader(h); strings.Contains(h.Get("X"), "value") {
		t.Errorf("a value is not redacted: %q", h.Get("X"))
	}
}

func TestNothingPrintsValues(t *testing.T) {
	const v = "unmistakable-value"
	ph := NewPlaceholder()
	secret := Secret{Name: "KEY", Placeholder: ph, Value: value(t, v), Hosts: func(string) bool { return true }, Places: Places{Body: true}}
	set, err := NewSet([]Secret{secret})
	if err != nil {
		t.Fatal(err)
	}
	scope := set.For("host")
	request, _ := scope.RequestBody("", io.NopCloser(strings.NewReader("x")))
	response := scope.ResponseBody(io.NopCloser(strings.NewReader("x")))
	response.Read(make([]byte, 1))
	hidden := struct {
		v Value
		s Secret
		p *Set
		c *Scope
	}{secret.Value, secret, set, scope}
	for _, x := range []any{secret, &secret, secret.Value, &secret.Value, set, scope, *scope, request, response, hidden, &hidden,
		[]Value{secret.Value}, map[string]Value{"": secret.Value}, struct{ Value }{secret.Value}, &Leak{"KEY", "body", "unbound"}} {
		var log strings.Builder
		slog.New(slog.NewTextHandler(&log, nil)).Info("", "x", x)
		slog.New(slog.NewJSONHandler(&log, nil)).Info("", "x", x)
		encoded, _ := json.Marshal(x) // a func cannot be marshalled, which is as well
		texts := []string{log.String(), string(encoded)}
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%T", "%c"} {
			texts = append(texts, fmt.Sprintf(verb, x))
		}
		decimals := strings.Trim(fmt.Sprint([]byte(v)), "[]")
		for _, text := range texts {
			for _, seen := range append(formsOf(v), decimals, strings.ReplaceAll(fmt.Sprintf("% #x", v), " ", ", ")) {
				if strings.Contains(text, seen) {
					t.Errorf("%T is printed as %s", x, text)
				}
			}
		}
	}
	for _, text := range []string{fmt.Sprintf("%d", secret.Value), fmt.Sprintf("%#v", secret.Value), secret.Value.String()} {
		if text != "[secret]" {
			t.Errorf("a value is printed as %q", text)
		}
	}
	if encoded, err := json.Marshal(map[string]any{"v": secret.Value}); string(encoded) != `{"v":"[secret]"}` {
		t.Errorf("a value is marshalled as %s, %v", encoded, err)
	}
}

func TestConcurrentUse(t *testing.T) {
	set, secrets, values := testSet(t, 3)
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for i := range 50 {
				scope := set.For([]string{"host", "out"}[i%2])
				h := http.Header{"X": {secrets[0].Placeholder}}
				if err := scope.Request(h, &url.URL{}); (err == nil) != scope.Any() {
					t.Error(err)
				}
				if got := scope.ResponseText(values[1]); (got == secrets[1].Placeholder) != scope.Any() {
					t.Errorf("got %q", got)
				}
				if g == 0 {
					if err := set.Rotate("S2", value(t, fmt.Sprint("a new value ", i))); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	wg.Wait()
	if got := set.For("host").ResponseText(values[2] + " a new value 0 a new value 49"); got != strings.Repeat(secrets[2].Placeholder+" ", 2)+secrets[2].Placeholder {
		t.Errorf("got %q", got)
	}
}
