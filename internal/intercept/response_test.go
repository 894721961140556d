package intercept

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/iotest"
)

// TestPiecesAreHandedOn says when what has come of a body goes out at once: always,
// but when there is nothing to wait for any more.
func TestPiecesAreHandedOn(t *testing.T) {
	for _, test := range []struct {
		name    string
		body    io.Reader
		length  int64 // that the server has announced; 0: none
		flushed bool
	}{
		{"all there is", strings.NewReader("all"), 3, false},
		{"all in pieces", iotest.OneByteReader(strings.NewReader("all")), 3, true},
		{"a length that nobody knows", strings.NewReader("all"), 0, true},
		{"less than announced", iotest.TimeoutReader(strings.NewReader("all")), 4, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			whole := new(lengthed)
			body := test.body
			if test.length > 0 {
				whole.ReadCloser, whole.left = io.NopCloser(test.body), test.length
				body = whole
			}
			w := httptest.NewRecorder()
			x := &exchange{w: w}
			err := x.copyBody(body, http.NewResponseController(w), whole.ended)
			if err != nil && !errors.Is(err, iotest.ErrTimeout) {
				t.Fatal(err)
			}
			if got := w.Body.String(); got != "all" || w.Flushed != test.flushed {
				t.Errorf("got %q, flushed: %t, want: %t", got, w.Flushed, test.flushed)
			}
		})
	}
}
