package secret

import (
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/iotest"
	"unicode/utf16"
	"unicode/utf8"
)

const oddValue = `sk/a+b"c\d&e%f <é>'𝄞`

// awkward are sets of values that are hard to find: full of what introduces escapes, like themselves, like each other.
var awkward = [][]string{
	{oddValue},
	{"abcdefghijkl", "abcdefghijklmnop", "ghijklmnopqrst"},
	{strings.Repeat(`\\\\x`, 3), `\\\\"\\\\/\\\\`},
	{`\\u0041\\u0042\\u0043`, "%25%25%25%25", "&amp;&amp;&amp;"},
	{"aaaaaaaaaaaaa", "abababababababa"},
	{"\xc3\xa9\xc3\xa9\xff\xfe\x80ÿÿÿÿÿ"},
	{"ABCDEFABCDEF+/", "616263646566616263"},
}

// escapers write a character (or a byte that is none) in one way each.
var escapers = []func(*rand.Rand, string) string{
	func(r *rand.Rand, c string) string { return c },
	func(r *rand.Rand, c string) string {
		var b strings.Builder
		for i := range len(c) {
			fmt.Fprintf(&b, []string{"%%%02x", "%%%02X"}[r.IntN(2)], c[i])
		}
		return b.String()
	},
	func(r *rand.Rand, c string) string {
		p, _ := utf8.DecodeRuneInString(c)
		switch {
		case p == utf8.RuneError && len(c) == 1:
			return fmt.Sprintf(`\u%04x`, c[0])
		case p > 0xffff:
			high, low := utf16.EncodeRune(p)
			return fmt.Sprintf(`\u%04x\u%04X`, high, low)
		case strings.Contains(`"\/'`, c) && r.IntN(2) == 0:
			return `\` + c
		case p < 0x100 && r.IntN(4) == 0:
			return fmt.Sprintf(`\x%02x`, p)
		}
		return fmt.Sprintf(`\u%04x`, p)
	},
	func(r *rand.Rand, c string) string {
		names := map[string]string{"&": "&amp;", "<": "&lt;", ">": "&gt;", `"`: "&quot;", "'": "&apos;"}
		p, _ := utf8.DecodeRuneInString(c)
		if p == utf8.RuneError && len(c) == 1 {
			p = rune(c[0])
		}
		switch name := names[c]; {
		case name != "" && r.IntN(2) == 0:
			return name
		case r.IntN(2) == 0:
			return fmt.Sprintf("&#%0*d;", r.IntN(9), p)
		}
		return fmt.Sprintf("&#%c%0*x;", "xX"[r.IntN(2)], r.IntN(9), p)
	},
}

// escape writes each character of text by itself or escaped, and some of the escapes' characters escaped again.
func escapeRandomly(r *rand.Rand, text string, rate float64, depth int) string {
	var b strings.Builder
	for text != "" {
		_, n := utf8.DecodeRuneInString(text)
		c := text[:n]
		text = text[n:]
		if r.Float64() < rate {
			c = escapers[r.IntN(len(escapers))](r, c)
			if depth > 1 && len(c) > 1 {
				c = escapeRandomly(r, c, rate/2, depth-1)
			}
		}
		b.WriteString(c)
	}
	return b.String()
}

// formsOf returns the value in each of the forms that are not character by character, with what is around in base64.
func formsOf(v string) []string {
	all := []string{v, hex.EncodeToString([]byte(v)), strings.ToUpper(hex.EncodeToString([]byte(v)))}
	for before := range 3 {
		for after := range 3 {
			text := []byte("<<"[:before] + v + ">>"[:after])
			all = append(all, base64.StdEncoding.EncodeToString(text), base64.RawURLEncoding.EncodeToString(text))
		}
	}
	return all
}

func randomValue(r *rand.Rand) string {
	alphabets := []string{"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_", `ab\"/%&+ <>'éÿ𝄞`, "ab"}
	letters := []rune(alphabets[r.IntN(len(alphabets))])
	v := "x"
	for len(v) < MinValue+r.IntN(30) {
		v += string(letters[r.IntN(len(letters))])
	}
	return v + "y"
}

func setOf(t testing.TB, values []string) (*Set, []string) {
	t.Helper()
	var secrets []Secret
	var placeholders []string
	for i, v := range values {
		ph := fmt.Sprintf("%s%032x", placeholderPrefix, i+0xabc)
		placeholders = append(placeholders, ph)
		secrets = append(secrets, Secret{Name: fmt.Sprint("S", i), Placeholder: ph, Value: value(t, v), Hosts: func(string) bool { return true }})
	}
	set, err := NewSet(secrets)
	if err != nil {
		t.Fatal(err)
	}
	return set, placeholders
}

func value(t testing.TB, s string) Value {
	t.Helper()
	v, err := NewValue([]byte(s))
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// read returns what a response body is for the guest, if it comes in the pieces that r gives.
func read(t testing.TB, set *Set, r io.Reader) string {
	t.Helper()
	got, err := io.ReadAll(set.For("host").ResponseBody(io.NopCloser(r)))
	if err != nil {
		t.Fatal(err)
	}
	return string(got)
}

// inPieces reads a text in pieces of random lengths.
type inPieces struct {
	r    *rand.Rand
	rest string
}

func (p *inPieces) Read(b []byte) (int, error) {
	if p.rest == "" {
		return 0, io.EOF
	}
	n := copy(b, p.rest[:min(len(p.rest), p.r.IntN(9))])
	p.rest = p.rest[n:]
	return n, nil
}

// Whatever form a value has, and wherever its text is split, all of it goes and nothing else.
func TestRedactForms(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for range 2 {
		v := randomValue(r)
		set, placeholders := setOf(t, []string{v})
		for _, form := range formsOf(v) {
			for _, escaped := range []string{form, escapeRandomly(r, form, 0.5, 1), escapeRandomly(r, form, 1, 2)} {
				text := "before " + escaped + " \n after"
				want := "before " + placeholders[0] + " \n after"
				if form != v && len(form)*3 != len(v)*6 { // base64 of neighbours, whose ends are not only the value's
					want = redacted(text, []string{v}, placeholders)
					if !strings.Contains(want, placeholders[0]) {
						t.Fatalf("%q: the reference does not see %q", v, text)
					}
				}
				for split := range text {
					got := read(t, set, io.MultiReader(strings.NewReader(text[:split]), strings.NewReader(text[split:])))
					if got != want {
						t.Fatalf("value %q: text %q split at %d:\ngot  %q\nwant %q", v, text, split, got, want)
					}
				}
				if got := read(t, set, iotest.OneByteReader(strings.NewReader(text))); got != want {
					t.Fatalf("value %q: text %q in bytes:\ngot  %q\nwant %q", v, text, got, want)
				}
			}
		}
	}
}

// noise returns a text full of values, of their beginnings and ends, and of what looks like escapes.
func noise(r *rand.Rand, values []string, length int) string {
	bits := []string{"%", `\`, "&", "&#", "&#x", `\u`, `\u00`, "%25", "&amp;", `\\`, "%5c", "%5Cu00", ";", "0", "41", "a", " ", "+", `\ud834`, "é"}
	var b strings.Builder
	for b.Len() < length {
		if r.IntN(3) == 0 {
			b.WriteString(bits[r.IntN(len(bits))])
			continue
		}
		all := formsOf(values[r.IntN(len(values))])
		form := all[r.IntN(len(all))]
		if r.IntN(3) == 0 {
			form = all[0]
		}
		text := escapeRandomly(r, form, []float64{0, 0.2, 1}[r.IntN(3)], 1+r.IntN(2))
		switch r.IntN(4) {
		case 0:
			text = text[:r.IntN(len(text))]
		case 1:
			text = text[r.IntN(len(text)):]
		}
		b.WriteString(text)
	}
	return b.String()
}

// The scanner says what the reference says, of everything, in whatever pieces.
func TestRedactReference(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	rounds := 3
	sets := awkward
	for range 10 {
		sets = append(sets, []string{randomValue(r), randomValue(r)})
	}
	for _, values := range sets {
		set, placeholders := setOf(t, values)
		for range rounds {
			text := noise(r, values, 300)
			want := redacted(text, values, placeholders)
			if left := hits(want, values); len(left) > 0 {
				t.Fatalf("values %q: text %q: %v is left in %q", values, text, left, want)
			}
			if got := set.For("host").ResponseText(text); got != want {
				t.Fatalf("values %q: text %q:\ngot  %q\nwant %q", values, text, got, want)
			}
			for range 10 {
				if got := read(t, set, &inPieces{r, text}); got != want {
					t.Fatalf("values %q: text %q in pieces:\ngot  %q\nwant %q", values, text, got, want)
				}
			}
		}
	}
}

func FuzzRedactSplits(f *testing.F) {
	r := rand.New(rand.NewPCG(7, 8))
	for i, values := range awkward {
		f.Add(uint8(i), noise(r, values, 60), uint64(i))
	}
	f.Fuzz(func(t *testing.T, which uint8, text string, seed uint64) {
		values := awkward[int(which)%len(awkward)]
		set, placeholders := setOf(t, values)
		text = text[:min(len(text), 200)]
		want := redacted(text, values, placeholders)
		if got := read(t, set, strings.NewReader(text)); got != want {
			t.Errorf("whole: got %q, want %q", got, want)
		}
		if got := read(t, set, iotest.OneByteReader(strings.NewReader(text))); got != want {
			t.Errorf("in bytes: got %q, want %q", got, want)
		}
		if got := read(t, set, &inPieces{rand.New(rand.NewPCG(seed, 0)), text}); got != want {
			t.Errorf("in pieces: got %q, want %q", got, want)
		}
	})
}
