package secret

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
)

// testSet is a set of n secrets, all in scope of every host but "out", and their values.
func testSet(t testing.TB, n int) (*Set, []Secret, []string) {
	random := rand.New(rand.NewPCG(1, 2))
	const letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	var secrets []Secret
	var values []string
	for i := range n {
		v := make([]byte, 40)
		for j := range v {
			v[j] = letters[random.IntN(len(letters))]
		}
		values = append(values, string(v))
		secrets = append(secrets, Secret{
			Name: fmt.Sprint("S", i), Placeholder: NewPlaceholder(), Value: value(t, string(v)),
			Hosts: func(host string) bool { return host != "out" }, Places: Places{Body: true},
		})
	}
	set, err := NewSet(secrets)
	if err != nil {
		t.Fatal(err)
	}
	return set, secrets, values
}

func BenchmarkStreams(b *testing.B) {
	const size = 8 << 20
	random := make([]byte, size)
	rand.NewChaCha8([32]byte{}).Read(random)
	html := strings.Repeat(`<li class="item"><a href="/wiki/Some_Page?a=1&amp;b=2%20c">Fish &amp; chips</a>, which is what
the people there are said to eat on every day of the week, is &#39;good&#39; &mdash; or so they say.</li>`+"\n", size/250)
	json := strings.Repeat(`{"id":12345,"name":"some name","text":"a \"quoted\" word\nand \u4e2d\u6587 \u0026 more","list":[1,2,3.5,null,true]},`, size/120)
	set, _, _ := testSet(b, 3)
	for _, text := range []struct {
		name string
		data []byte
	}{{"random", random}, {"html", []byte(html)}, {"json", []byte(json)}, {"escapes", bytes.Repeat([]byte(`\u4e2d`), size/6)}} {
		for _, direction := range []string{"response", "request"} {
			b.Run(direction+"/"+text.name, func(b *testing.B) {
				b.SetBytes(int64(len(text.data)))
				b.ReportAllocs()
				buf := make([]byte, 64<<10)
				for b.Loop() {
					src := io.NopCloser(struct{ io.Reader }{bytes.NewReader(text.data)})
					var r io.Reader = set.For("host").ResponseBody(src)
					if direction == "request" {
						r, _ = set.For("out").RequestBody("", src)
					}
					if _, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, r, buf); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}
