package secret

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"testing/iotest"
)

const testValue = `sk-a/b+c"d\e&f%g h<é>'𝄞12345`

func value(t testing.TB, s string) Value {
	t.Helper()
	v, err := NewValue([]byte(s))
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestSmoke(t *testing.T) {
	ph := NewPlaceholder()
	set, err := NewSet([]Secret{{Name: "A", Placeholder: ph, Value: value(t, testValue), Hosts: func(h string) bool { return h == "in" }, Places: Places{true, true, true}}})
	if err != nil {
		t.Fatal(err)
	}
	in, out := set.For("in"), set.For("out")
	u, _ := url.Parse("http://in/x/%53" + ph[1:] + "/y?k=" + ph + "&z")
	h := http.Header{"X": {"a " + ph + " b"}}
	var leak *Leak
	if err := out.Request(h, u); !errors.As(err, &leak) {
		t.Fatal(err)
	}
	if err := in.Request(h, u); err != nil {
		t.Fatal(err)
	}
	fmt.Println(h, u)
	for _, s := range []string{testValue, url.QueryEscape(testValue), url.PathEscape(testValue), fmt.Sprintf("%x", testValue)} {
		got, err := io.ReadAll(in.ResponseBody(io.NopCloser(iotest.OneByteReader(strings.NewReader("abc" + s + "def")))))
		if err != nil || string(got) != "abc"+ph+"def" {
			t.Errorf("%s: %s %v", s, got, err)
		}
	}
}
