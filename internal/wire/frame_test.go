package wire

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
)

func TestFrames(t *testing.T) {
	var stream bytes.Buffer
	w := NewFrameWriter(&stream)
	frames := []string{"", "a", strings.Repeat("b", MaxData), "c"}
	for i, payload := range frames {
		var err error
		if i%2 == 0 {
			err = w.WriteFrame(byte(i), []byte(payload))
		} else {
			err = w.WriteFilled(byte(i), append(make([]byte, FrameHeader), payload...))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	r := NewFrameReader(iotest.HalfReader(&stream))
	for i, want := range frames {
		kind, payload, err := r.Next(MaxData)
		if err != nil || int(kind) != i || string(payload) != want {
			t.Errorf("frame %d: kind %d, %d bytes, %v", i, kind, len(payload), err)
		}
	}
	if _, _, err := r.Next(MaxData); err != io.EOF {
		t.Errorf("at the end: %v, want io.EOF", err)
	}
}

func TestFrameFaults(t *testing.T) {
	for name, test := range map[string]struct {
		stream string
		want   string
	}{
		"half a header":  {"\x01\x00\x00", "unexpected EOF"},
		"half a payload": {"\x01\x00\x00\x00\x05abc", "unexpected EOF"},
		"no payload":     {"\x01\x00\x00\x00\x05", "unexpected EOF"},
		"too long":       {"\x01\x00\x00\x00\x0babcdefghijk", "11 bytes, at most 10"},
		"huge":           {"\x01\xff\xff\xff\xff", "4294967295 bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			_, _, err := NewFrameReader(strings.NewReader(test.stream)).Next(10)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
}

// tearing passes on one byte less than it is given, once.
type tearing struct {
	bytes.Buffer
	torn bool
}

func (w *tearing) Write(p []byte) (int, error) {
	if w.torn {
		return w.Buffer.Write(p)
	}
	w.torn = true
	w.Buffer.Write(p[:len(p)-1])
	return len(p) - 1, io.ErrShortWrite
}

func TestNothingFollowsHalfAFrame(t *testing.T) {
	var w tearing
	f := NewFrameWriter(&w)
	for range 2 {
		if err := f.WriteFrame(1, []byte("abc")); !errors.Is(err, io.ErrShortWrite) {
			t.Errorf("got %v, want the first error", err)
		}
	}
	if n := w.Len(); n != FrameHeader+2 {
		t.Errorf("%d bytes were written, want %d", n, FrameHeader+2)
	}
}

func TestFramesDoNotMix(t *testing.T) {
	r, pipe := io.Pipe()
	w := NewFrameWriter(pipe)
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			for n := range 200 {
				w.WriteFrame(byte(i), bytes.Repeat([]byte{byte(i)}, n))
			}
		})
	}
	go func() { wg.Wait(); pipe.Close() }()
	f := NewFrameReader(r)
	for {
		kind, payload, err := f.Next(MaxData)
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Count(payload, []byte{kind}) != len(payload) {
			t.Fatalf("frame of kind %d holds %v", kind, payload)
		}
	}
}

func FuzzFrames(f *testing.F) {
	f.Add([]byte("\x01\x00\x00\x00\x03abc\x02\x00\x00\x00\x00"))
	f.Add([]byte("\x01\x7f\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, stream []byte) {
		r := NewFrameReader(bytes.NewReader(stream))
		var again bytes.Buffer
		w := NewFrameWriter(&again)
		for {
			kind, payload, err := r.Next(1000)
			if err != nil {
				break
			}
			w.WriteFrame(kind, payload)
		}
		if !bytes.HasPrefix(stream, again.Bytes()) {
			t.Errorf("read %q from %q", again.Bytes(), stream)
		}
	})
}
