package secret

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"testing/iotest"
)

// exchange is two secrets, of which towards "host" one is in scope with all places and one, ELSE, is not; a third,
// HEAD, is in scope for headers only.
type exchange struct {
	*Set
	ph, elsewhere, head string
}

func newExchange(t testing.TB) exchange {
	t.Helper()
	x := exchange{ph: NewPlaceholder(), elsewhere: NewPlaceholder(), head: NewPlaceholder()}
	var err error
	x.Set, err = NewSet([]Secret{
		{Name: "KEY", Placeholder: x.ph, Value: value(t, oddValue), Places: Places{true, true, true}, Hosts: func(h string) bool { return h == "host" }},
		{Name: "ELSE", Placeholder: x.elsewhere, Value: value(t, "another value"), Hosts: func(h string) bool { return h == "elsewhere" }},
		{Name: "HEAD", Placeholder: x.head, Value: value(t, "in headers only"), Hosts: func(h string) bool { return h == "host" }},
	})
	if err != nil {
		t.Fatal(err)
	}
	return x
}

func parse(t testing.TB, s string) *url.URL {
	t.Helper()
	u, err := url.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func percentAll(s string) string {
	var b strings.Builder
	for i := range len(s) {
		fmt.Fprintf(&b, "%%%02X", s[i])
	}
	return b.String()
}

func basic(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }

func TestRequestHeaders(t *testing.T) {
	x := newExchange(t)
	for _, row := range []struct{ name, value, want string }{
		{"X-Key", x.ph, oddValue},
		{"X-Key", "a" + x.ph + x.ph + "b" + x.head, "a" + oddValue + oddValue + "b" + "in headers only"},
		{"X-Key", x.ph[:len(x.ph)-1], x.ph[:len(x.ph)-1]},
		{"X-Key", percentAll(x.ph), percentAll(x.ph)},
		{"X-Key", basic(x.ph), basic(x.ph)},
		{"X-Key", strings.ToLower(x.ph), strings.ToLower(x.ph)},
		{"X-Key", NewPlaceholder()[:20], ""},
		{"Authorization", "Bearer " + x.ph, "Bearer " + oddValue},
		{"Authorization", "Basic " + basic("user:"+x.ph), "Basic " + basic("user:"+oddValue)},
		{"Authorization", "basic  " + strings.TrimRight(basic(x.ph+":"), "=") + " ", "basic " + basic(oddValue+":")},
		{"Authorization", "Basic " + x.ph, "Basic " + oddValue},
		{"Authorization", "Basic " + basic("user:password"), "Basic " + basic("user:password")},
		{"Authorization", "Digest " + basic("user:"+x.ph), "Digest " + basic("user:"+x.ph)},
		{"Authorization", "Basic !" + basic("user:"+x.ph), "Basic !" + basic("user:"+x.ph)},
	} {
		if row.want == "" {
			row.want = row.value
		}
		h := http.Header{"Before": {"x"}, row.name: {"first", row.value}}
		if err := x.For("host").Trailer(h); err != nil {
			t.Errorf("%s: %s: %v", row.name, row.value, err)
		}
		if got := h[row.name]; got[0] != "first" || got[1] != row.want || h["Before"][0] != "x" {
			t.Errorf("%s: %s: got %q, want %q", row.name, row.value, got, row.want)
		}
	}
}

func TestRequestURL(t *testing.T) {
	x := newExchange(t)
	inPath, inQuery := url.PathEscape(oddValue), url.QueryEscape(oddValue)
	for _, row := range []struct{ url, want string }{
		{"https://host/" + x.ph + "/b?c=" + x.ph + "&d", "https://host/" + inPath + "/b?c=" + inQuery + "&d"},
		{"https://host/a%2Fb/%53" + x.ph[1:] + "?" + percentAll(x.ph), "https://host/a%2Fb/" + inPath + "?" + inQuery},
		{"https://host/" + x.head + "?" + x.head, ""},
		{"https://host/%2553" + x.ph[1:] + "?%2553" + x.ph[1:], ""},
		{"https://host/a?" + basic(x.ph), ""},
		{"https://host/a%2Fb;c?x=%zz&y=a+b;", ""},
	} {
		u := parse(t, row.url)
		if err := x.For("host").Request(http.Header{}, u); err != nil {
			t.Error(err)
		}
		if row.want == "" {
			row.want = row.url
		}
		if u.String() != row.want {
			t.Errorf("%s:\ngot  %s\nwant %s", row.url, u, row.want)
		}
		if again, err := url.Parse(u.String()); err != nil || again.Path != u.Path {
			t.Errorf("%s: its path is %q, and read again %q", u, u.Path, again.Path)
		}
	}
}

// A placeholder that is not for the host is refused wherever it is, in whatever form, and nothing has been changed.
func TestRequestLeaks(t *testing.T) {
	x := newExchange(t)
	r := rand.New(rand.NewPCG(9, 10))
	leak := func(err error, where, form string) {
		t.Helper()
		var leak *Leak
		if !errors.As(err, &leak) || *leak != (Leak{"ELSE", where, "out of scope"}) {
			t.Errorf("%s: got %v, want a leak in the %s", form, err, where)
			return
		}
		for _, never := range []string{x.elsewhere, x.ph, oddValue, "another value"} {
			if strings.Contains(err.Error(), never) {
				t.Errorf("the error says %s", err)
			}
		}
	}
	forms := formsOf(x.elsewhere)
	for _, form := range formsOf(x.elsewhere) {
		forms = append(forms, escapeRandomly(r, form, 0.5, 1), escapeRandomly(r, form, 1, 2))
	}
	forms = append(forms, percentAll(percentAll(x.elsewhere)))
	for _, form := range forms {
		for _, scope := range []*Scope{x.For("host"), x.Outside()} {
			h := http.Header{"A": {"x"}, "X-Key": {"first", "a" + form + "b"}}
			u := parse(t, "https://host/a?b")
			if scope.Any() {
				h["A"][0], u.RawQuery = x.ph, x.ph
			}
			before := h.Clone()
			leak(scope.Request(h, u), `header "X-Key"`, form)
			if fmt.Sprint(h) != fmt.Sprint(before) || strings.Contains(u.RawQuery, inQuery()) {
				t.Error("a request with a leak was changed")
			}
			leak(scope.Request(nil, &url.URL{RawQuery: "a=" + form}), "query", form)
			leak(scope.Request(nil, &url.URL{Path: "/" + form}), "path", form)
			leak(scope.Request(nil, &url.URL{Fragment: form}), "URL", form)
			leak(scope.Request(nil, &url.URL{User: url.User(form)}), "URL", form)
			leak(scope.Request(nil, &url.URL{Opaque: form}), "URL", form)
			leak(scope.Request(nil, &url.URL{Host: form}), "URL", form)
			for _, media := range []string{"", "application/json", "application/x-www-form-urlencoded; charset=utf-8"} {
				body, _ := scope.RequestBody(media, io.NopCloser(iotest.OneByteReader(strings.NewReader("a"+form+"b"))))
				got, err := io.ReadAll(body)
				leak(err, "body", form)
				if !strings.HasPrefix("a"+form, string(got)) || len(got) > len(form)/2 {
					t.Errorf("%q came through before the leak in %q was seen", got, form)
				}
			}
			_, err := io.ReadAll(scope.RequestMessage(strings.NewReader("a" + form)))
			leak(err, "message", form)
		}
	}
	scope := x.For("host")
	leak(scope.Trailer(http.Header{"Authorization": {"Basic " + basic("user:"+x.elsewhere)}}), `header "Authorization"`, "basic")
	leak(scope.Trailer(http.Header{"Authorization": {"Basic " + basic("user:"+percentAll(x.elsewhere))}}), `header "Authorization"`, "percent in basic")
	for _, name := range []string{x.elsewhere, http.CanonicalHeaderKey("x-" + x.elsewhere), strings.ToUpper(x.elsewhere), strings.ToLower(x.elsewhere), percentAll(x.elsewhere)} {
		leak(scope.Trailer(http.Header{name: {"x"}}), "header name", name)
	}
	leak(scope.Trailer(http.Header{http.CanonicalHeaderKey(x.ph): {x.elsewhere}}), "header", "under a placeholder")
	leak(scope.Trailer(http.Header{strings.Repeat("X", 1000): {x.elsewhere}}), "header", "under a long name")
}

func inQuery() string { return url.QueryEscape(oddValue) }

func TestRequestBody(t *testing.T) {
	x := newExchange(t)
	for _, row := range []struct{ media, text, want string }{
		{"text/plain", "a" + x.ph + "b" + x.ph, "a" + oddValue + "b" + oddValue},
		{"", x.ph, oddValue},
		{"", x.head, x.head},
		{"", percentAll(x.ph) + basic(x.ph), percentAll(x.ph) + basic(x.ph)},
		{"application/x-www-form-urlencoded", "a=" + x.ph + "&b=" + percentAll(x.ph), "a=" + inQuery() + "&b=" + inQuery()},
		{"Application/X-WWW-Form-Urlencoded;=", x.ph, inQuery()},
		{"application/json", `{"a":"` + x.ph + `"}`, `{"a":"sk/a+b\"c\\d&e%f <é>'𝄞"}`},
		{"application/ld+json; charset=utf-8", `"` + x.ph + `"`, `"sk/a+b\"c\\d&e%f <é>'𝄞"`},
	} {
		for split := range row.text {
			source := io.MultiReader(strings.NewReader(row.text[:split]), strings.NewReader(row.text[split:]))
			body, rewritten := x.For("host").RequestBody(row.media, io.NopCloser(source))
			got, err := io.ReadAll(body)
			if string(got) != row.want || err != nil || !rewritten {
				t.Fatalf("%s: %s: got %s, %v, %v; want %s", row.media, row.text, got, err, rewritten, row.want)
			}
			if strings.Contains(row.media, "json") {
				if err := json.Unmarshal(got, new(any)); err != nil {
					t.Errorf("%s: %v", got, err)
				}
			}
		}
	}
	if _, rewritten := x.For("elsewhere").RequestBody("", io.NopCloser(strings.NewReader("x"))); rewritten {
		t.Error("a body is rewritten that no place opens")
	}
	if body, rewritten := x.For("host").RequestBody("", http.NoBody); body != http.NoBody || rewritten {
		t.Error("no body became one")
	}
	if got, err := io.ReadAll(x.For("host").RequestMessage(strings.NewReader("a" + x.ph))); string(got) != "a"+oddValue || err != nil {
		t.Errorf("message: got %q, %v", got, err)
	}
}

// FuzzPercent: in a query a placeholder is found by the same rule as by a regular expression.
func FuzzPercent(f *testing.F) {
	x := newExchange(f)
	var rule strings.Builder
	for i := range len(x.ph) {
		fmt.Fprintf(&rule, "(?:%c|%%(?i:%02x))", x.ph[i], x.ph[i])
	}
	whole := regexp.MustCompile(rule.String())
	f.Add("a=@&b=%", uint64(0))
	f.Add("%25%2@%5", uint64(1<<63|5))
	f.Add("@@%53S", ^uint64(0))
	f.Fuzz(func(t *testing.T, text string, mask uint64) {
		var ph strings.Builder
		for i := range len(x.ph) {
			if mask>>i&1 == 0 {
				ph.WriteByte(x.ph[i])
			} else {
				fmt.Fprintf(&ph, []string{"%%%02x", "%%%02X"}[mask>>63], x.ph[i])
			}
		}
		text = strings.ReplaceAll(text[:min(len(text), 100)], "@", ph.String())
		u := &url.URL{RawQuery: text}
		if err := x.For("host").Request(nil, u); err != nil {
			t.Fatal(err)
		}
		if want := whole.ReplaceAllLiteralString(text, inQuery()); u.RawQuery != want {
			t.Errorf("%q: got %q, want %q", text, u.RawQuery, want)
		}
	})
}

// FuzzBasic: credentials come out as they were, but for the placeholder.
func FuzzBasic(f *testing.F) {
	x := newExchange(f)
	f.Add("user:@", uint8(0), "")
	f.Add("@:", uint8(1), " ")
	f.Add("\xff@@é", uint8(2), "=")
	f.Fuzz(func(t *testing.T, credentials string, encoding uint8, behind string) {
		credentials = strings.ReplaceAll(credentials[:min(len(credentials), 100)], "@", x.ph)
		encodings := []*base64.Encoding{base64.StdEncoding, base64.RawStdEncoding, base64.URLEncoding, base64.RawURLEncoding}
		sent := "Basic " + encodings[int(encoding)%len(encodings)].EncodeToString([]byte(credentials)) + behind
		h := http.Header{"Authorization": {sent}}
		if err := x.For("host").Trailer(h); err != nil {
			t.Fatal(err)
		}
		got := h.Get("Authorization")
		if strings.Trim(behind, " =\t") != "" { // it may be anything
			return
		}
		want := sent
		if replaced := strings.ReplaceAll(credentials, x.ph, oddValue); replaced != credentials {
			want = "Basic " + basic(replaced)
		}
		if got != want {
			t.Errorf("%q: got %q, want %q", sent, got, want)
		}
	})
}
