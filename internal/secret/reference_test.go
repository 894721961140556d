package secret

import (
	"cmp"
	"encoding/base64"
	"encoding/hex"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// The reference says slowly and simply what the scanner should: every place is read in every way.

// A reading is what text at some place may stand for, and in how many bytes.
type reading struct {
	text string // one character, or a byte of one
	n    int
}

var escapeForms = []*regexp.Regexp{
	regexp.MustCompile(`^%([0-9a-fA-F]{2})$`),
	regexp.MustCompile(`^\\x([0-9a-fA-F]{2})$`),
	regexp.MustCompile(`^\\u([0-9a-fA-F]{4})$`),
	regexp.MustCompile(`^\\u([dD][89abAB][0-9a-fA-F]{2})\\u([dD][c-fC-F][0-9a-fA-F]{2})$`),
	regexp.MustCompile(`^&#[xX]([0-9a-fA-F]{1,8});$`),
	regexp.MustCompile(`^&#([0-9]{1,8});$`),
}

var escapeNames = map[string]string{
	`\"`: `"`, `\'`: `'`, `\\`: `\`, `\/`: `/`, `\t`: "\t",
	"&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": `"`, "&apos;": "'",
}

// escapeBegins spares sequences that cannot be the beginning of an escape.
var escapeBegins = regexp.MustCompile(`^(%[0-9a-fA-F]{0,2}|&#?|&#[0-9]{0,8};?|&#[xX][0-9a-fA-F]{0,8};?|&[a-z]{1,4};?|` +
	`\\(|["'\\/t]|x[0-9a-fA-F]{0,2}|u[0-9a-fA-F]{0,4}|u[0-9a-fA-F]{4}\\(u[0-9a-fA-F]{0,4})?))?$`)

const longestEscape = 12 // &#x00000041; and \ud834\udd1e

// unescape returns what an escape may stand for.
func unescape(s string) []string {
	if c, ok := escapeNames[s]; ok {
		return []string{c}
	}
	for i, form := range escapeForms {
		m := form.FindStringSubmatch(s)
		if m == nil {
			continue
		}
		base := 16
		if i == 5 {
			base = 10
		}
		n, _ := strconv.ParseUint(m[1], base, 32)
		r := rune(n)
		switch {
		case i == 0:
			return []string{string([]byte{byte(r)})}
		case i == 2 && utf16.IsSurrogate(r) || n > utf8.MaxRune:
			return nil
		case i == 3:
			low, _ := strconv.ParseUint(m[2], 16, 32)
			return []string{string(utf16.DecodeRune(r, rune(low)))}
		case r >= utf8.RuneSelf && r <= 0xff:
			return []string{string(r), string([]byte{byte(r)})}
		}
		return []string{string(r)}
	}
	return nil
}

// readings returns all for the beginning of text, with escapes of the given depth.
func readings(text string, depth int) []reading {
	if text == "" {
		return nil
	}
	found := []reading{{text[:1], 1}}
	if depth > 0 && strings.ContainsRune(`%\&`, rune(text[0])) {
		for _, whole := range sequences(text, depth-1, longestEscape) {
			for _, c := range unescape(whole.text) {
				found = append(found, reading{c, whole.n})
			}
		}
	}
	return found
}

// sequences returns readings of up to length ASCII characters at the beginning of text, which might be an escape.
func sequences(text string, depth, length int) []reading {
	var found []reading
	var extend func(reading)
	extend = func(so reading) {
		if !escapeBegins.MatchString(so.text) {
			return
		}
		found = append(found, so)
		if len(so.text) == length {
			return
		}
		for _, r := range readings(text[so.n:], depth) {
			if len(r.text) == 1 && r.text[0] < utf8.RuneSelf {
				extend(reading{so.text + r.text, so.n + r.n})
			}
		}
	}
	extend(reading{})
	return found
}

// A hit is a place where a value is.
type hit struct {
	start, end int
	which      int
}

// hits returns all places where one of the values is in the text, in any form.
func hits(text string, values []string) []hit {
	at := make([][]reading, len(text))
	for i := range len(text) {
		at[i] = readings(text[i:], 2)
	}
	var found []hit
	for which, v := range values {
		looked := map[string]func(byte) byte{
			v:                             func(c byte) byte { return c },
			hex.EncodeToString([]byte(v)): func(c byte) byte { return strings.ToLower(string([]byte{c}))[0] },
		}
		for before, first := range []int{0, 2, 3} { // the first character without a bit of what is before
			encoded := base64.RawStdEncoding.EncodeToString([]byte(strings.Repeat("\x00", before) + v))
			if (before+len(v))%3 != 0 {
				encoded = encoded[:len(encoded)-1] // has bits of what is behind
			}
			looked[encoded[first:]] = func(c byte) byte { return strings.NewReplacer("-", "+", "_", "/").Replace(string([]byte{c}))[0] }
		}
		for pattern, fold := range looked {
			for start := range len(text) {
				ends := map[int]bool{}
				seen := map[[2]int]bool{}
				var match func(i, j int)
				match = func(i, j int) {
					if i == len(pattern) {
						ends[j] = true
						return
					}
					if j == len(text) || seen[[2]int{i, j}] {
						return
					}
					seen[[2]int{i, j}] = true
					if text[j] == '+' && pattern[i] == ' ' {
						match(i+1, j+1)
					}
					for _, r := range at[j] {
						c := r.text
						if len(c) == 1 && c[0] < utf8.RuneSelf {
							c = string([]byte{fold(c[0])})
						}
						if strings.HasPrefix(pattern[i:], c) {
							match(i+len(c), j+r.n)
						}
					}
				}
				match(0, start)
				for end := range ends {
					found = append(found, hit{start, end, which})
				}
			}
		}
	}
	slices.SortFunc(found, func(a, b hit) int {
		return cmp.Or(cmp.Compare(a.start, b.start), cmp.Compare(b.end, a.end), cmp.Compare(a.which, b.which))
	})
	return found
}

// redacted is the text with placeholders for the values.
func redacted(text string, values, placeholders []string) string {
	var b strings.Builder
	at := 0
	for _, h := range hits(text, values) {
		if h.start >= at {
			b.WriteString(text[at:h.start])
			b.WriteString(placeholders[h.which])
		}
		at = max(at, h.end)
	}
	b.WriteString(text[at:])
	return b.String()
}
