package intercept

import (
	"bytes"
	"fmt"
	"io"
	"mime"

	"github.com/matchlock/matchlock/api"
)

const (
	replaceRead = 16 << 10 // bytes that are read at a time
	maxEvent    = 1 << 20  // bytes of a line of an event stream
)

// replaced makes replacements in a body, one after the other: in the data of
// events, if it is a stream of those.
func replaced(contentType string, body io.ReadCloser, replacements []api.Replacement) io.ReadCloser {
	if media, _, err := mime.ParseMediaType(contentType); err == nil && media == "text/event-stream" {
		return &changedBody{src: body, change: func(b []byte, _ bool) ([]byte, []byte, error) { return replaceEvents(b, replacements) }}
	}
	for _, r := range replacements {
		find, instead := []byte(r.Find), []byte(r.Replace)
		body = &changedBody{src: body, change: func(b []byte, end bool) ([]byte, []byte, error) {
			changed, rest := replaceText(b, find, instead, end)
			return changed, rest, nil
		}}
	}
	return body
}

// changedBody passes a body on as change makes it of what has come: what can be
// handed on, and what is kept until more has.
type changedBody struct {
	src    io.ReadCloser
	change func(b []byte, end bool) (out, kept []byte, err error)

	kept, out []byte
	err       error
}

func (c *changedBody) Read(p []byte) (int, error) {
	for len(c.out) == 0 {
		if c.err != nil {
			return 0, c.err
		}
		b := make([]byte, len(c.kept)+replaceRead)
		copy(b, c.kept)
		n, err := c.src.Read(b[len(c.kept):])
		c.err = err
		var fault error
		if c.out, c.kept, fault = c.change(b[:len(c.kept)+n], err == io.EOF); fault != nil {
			c.out, c.err = nil, fault
		} else if err == io.EOF {
			c.out = append(c.out, c.kept...)
		}
	}
	n := copy(p, c.out)
	c.out = c.out[n:]
	return n, nil
}

func (c *changedBody) Close() error { return c.src.Close() }

// replaceText keeps what may be the beginning of a find.
func replaceText(b, find, instead []byte, end bool) (out, kept []byte) {
	for {
		i := bytes.Index(b, find)
		if i < 0 {
			break
		}
		out = append(append(out, b[:i]...), instead...)
		b = b[i+len(find):]
	}
	n := 0
	if !end {
		for n = min(len(find)-1, len(b)); n > 0 && !bytes.HasPrefix(find, b[len(b)-n:]); n-- {
		}
	}
	return append(out, b[:len(b)-n]...), b[len(b)-n:]
}

// replaceEvents keeps a line that has not ended.
func replaceEvents(b []byte, replacements []api.Replacement) (out, kept []byte, err error) {
	for {
		i := bytes.IndexAny(b, "\r\n")
		if i < 0 {
			break
		}
		out = append(append(out, replaceData(b[:i], replacements)...), b[i])
		b = b[i+1:]
	}
	if len(b) > maxEvent {
		return nil, nil, fmt.Errorf("event with a line of more than %d bytes", maxEvent)
	}
	return out, b, nil
}

// replaceData changes a line of an event, if it has data.
func replaceData(line []byte, replacements []api.Replacement) []byte {
	data, ok := bytes.CutPrefix(line, []byte("data:"))
	if !ok {
		return line
	}
	for _, r := range replacements {
		data = bytes.ReplaceAll(data, []byte(r.Find), []byte(r.Replace))
	}
	return append([]byte("data:"), data...)
}
