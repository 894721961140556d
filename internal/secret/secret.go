// Package secret answers one question: how does a program use a secret that it never sees? The guest holds a
// placeholder. On its way out to a host of the secret's scope the placeholder is replaced by the value; towards every
// other host it is a leak, and refused; on its way back the value is replaced by the placeholder.
//
//	set, err := secret.NewSet([]secret.Secret{{Name: "TOKEN", Placeholder: secret.NewPlaceholder(), Value: v, Hosts: hosts}})
//	scope := set.For("api.example.com")
//	err = scope.Request(req.Header, req.URL)            // *Leak: refuse the request
//	body, rewritten := scope.RequestBody(contentType, req.Body)
//	…
//	scope.ResponseHeader(resp.Header)
//	resp.Body = scope.ResponseBody(resp.Body)
//
// # What is found
//
// A placeholder that leaks, and a value that comes back, are found in these forms, at any place of a text, however it
// is split:
//
//   - as they are;
//   - with any of their characters escaped, in any mixture: percent (%41, + for a blank), JSON (\u0041, \x41, \/ and
//     the like, surrogate pairs), HTML (&amp; &lt; &gt; &quot; &apos; &#65; &#x41;, of at most 8 digits);
//   - with the characters of such an escape escaped once more, by any of the three (%2541, \\u0041, \u0026amp;);
//   - in hex, in base64 and base64url at all three alignments, and these with characters escaped as above.
//
// A code point from U+0080 to U+00FF is taken for the byte too, as programs do that read headers as Latin-1. Bytes are
// otherwise compared exactly. Not found is what was encoded on purpose: compressed, reversed, in base64 with line
// breaks, cut up and put together elsewhere.
//
// The package has no network and no files, decides no policy, and undoes no Content-Encoding: what it is given must
// be plain.
package secret

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
)

// Values are from MinValue to MaxValue bytes long: a shorter one would be found where it does not stand.
const (
	MinValue = 12
	MaxValue = 64 << 10
)

// hidden is what a Value says, whatever it is asked.
const hidden = "[secret]"

// A Value is what must not be seen. Whatever prints, logs or marshals it gets "[secret]". It is immutable; the zero
// Value is none.
type Value struct {
	// A function, since whatever walks data by reflection, fmt among it, follows pointers and ignores methods of what
	// lies in unexported fields; it finds no bytes here.
	reveal func() []byte
}

// NewValue makes a Value of a copy of b. It refuses what is too short or too long, and what cannot stand in a header:
// control characters other than the tab, and a blank at either end. It refuses 5 backslashes in a row too, which a host
// could make us read in so many ways that nothing else goes on. A newline that ends a file is for the caller to trim.
func NewValue(b []byte) (Value, error) {
	switch {
	case len(b) < MinValue:
		return Value{}, fmt.Errorf("value has %d bytes, the least is %d", len(b), MinValue)
	case len(b) > MaxValue:
		return Value{}, fmt.Errorf("value has more than %d bytes", MaxValue)
	}
	for _, c := range b {
		if c < ' ' && c != '\t' || c == 0x7f {
			return Value{}, errors.New("value has a control character (a line break?), which cannot stand in a header")
		}
	}
	if bytes.Contains(b, []byte(`\\\\\`)) {
		return Value{}, errors.New("value has 5 backslashes in a row; they can be read in too many ways")
	}
	if blank(b[0]) || blank(b[len(b)-1]) {
		return Value{}, errors.New("value begins or ends with a blank, which a header would lose")
	}
	kept := []byte(string(b))
	return Value{reveal: func() []byte { return kept }}, nil
}

func blank(c byte) bool { return c == ' ' || c == '\t' }

// IsZero reports whether there is no value.
func (v Value) IsZero() bool { return v.reveal == nil }

// bytes returns the value itself, not to be changed.
// Reveal returns the value itself, for a process that goes on where this one is.
func (v Value) Reveal() []byte { return slices.Clone(v.bytes()) }

func (v Value) bytes() []byte {
	if v.reveal == nil {
		return nil
	}
	return v.reveal()
}

func (Value) String() string               { return hidden }
func (Value) GoString() string             { return hidden }
func (Value) Format(f fmt.State, _ rune)   { fmt.Fprint(f, hidden) }
func (Value) LogValue() slog.Value         { return slog.StringValue(hidden) }
func (Value) MarshalJSON() ([]byte, error) { return []byte(`"` + hidden + `"`), nil }
func (Value) MarshalText() ([]byte, error) { return []byte(hidden), nil }

const (
	placeholderPrefix = "SANDBOX_SECRET_"
	placeholderDigits = 32
)

// NewPlaceholder returns a new placeholder, SANDBOX_SECRET_ and 32 hex digits, which nobody can guess.
func NewPlaceholder() string {
	var random [placeholderDigits / 2]byte
	rand.Read(random[:]) // never fails
	return placeholderPrefix + hex.EncodeToString(random[:])
}

// validPlaceholder reports whether NewPlaceholder could have made it.
func validPlaceholder(s string) bool {
	digits, ok := strings.CutPrefix(s, placeholderPrefix)
	return ok && len(digits) == placeholderDigits && strings.Trim(digits, "0123456789abcdef") == ""
}

// Places says where beyond headers a placeholder is replaced by the value.
type Places struct{ Query, Path, Body bool }

// A Secret is a value, what stands for it in the guest, and where it may go.
type Secret struct {
	Name        string
	Placeholder string
	Value       Value                  // zero: unbound, so the placeholder is refused everywhere until Rotate
	Hosts       func(host string) bool // the scope; is given normalised names, and may be called by several goroutines
	Places      Places
}
