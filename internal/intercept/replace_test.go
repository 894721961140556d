package intercept

import (
	"bytes"
	"testing"

	"github.com/matchlock/matchlock/api"
)

// FuzzReplace has a body come in two pieces: it is changed as one that comes whole.
func FuzzReplace(f *testing.F) {
	f.Add([]byte("data: one key\r\ndata:key\n\nevent: key\rdata: ke"), 20, []byte("key"), []byte("<>"))
	f.Add([]byte("aaa"), 2, []byte("aa"), []byte("b"))
	f.Fuzz(func(t *testing.T, body []byte, at int, find, instead []byte) {
		if len(find) == 0 || at < 0 || at > len(body) {
			return
		}
		whole, _ := replaceText(bytes.Clone(body), find, instead, true)
		first, kept := replaceText(bytes.Clone(body[:at]), find, instead, false)
		if len(kept) >= len(find) {
			t.Errorf("%d bytes are kept, to find %d", len(kept), len(find))
		}
		second, kept := replaceText(append(bytes.Clone(kept), body[at:]...), find, instead, true)
		if got := append(bytes.Clone(first), second...); !bytes.Equal(got, whole) || len(kept) > 0 {
			t.Errorf("%q in pieces becomes %q, %q left; whole %q", body, got, kept, whole)
		}

		replacements := []api.Replacement{{Find: string(find), Replace: string(instead)}}
		whole, end, err := replaceEvents(bytes.Clone(body), replacements)
		if err != nil {
			return
		}
		first, kept, err = replaceEvents(bytes.Clone(body[:at]), replacements)
		if err != nil {
			t.Fatal(err)
		}
		second, kept, err = replaceEvents(append(bytes.Clone(kept), body[at:]...), replacements)
		if got := append(bytes.Clone(first), second...); err != nil || !bytes.Equal(got, whole) || !bytes.Equal(kept, end) {
			t.Errorf("events %q in pieces become %q, %q left, %v; whole %q, %q left", body, got, kept, err, whole, end)
		}
	})
}
