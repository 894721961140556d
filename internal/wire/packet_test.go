package wire

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
)

func packet(t testing.TB, payload string) string {
	var b bytes.Buffer
	if err := WritePacket(&b, []byte(payload)); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestPackets(t *testing.T) {
	all := make([]byte, 0, 512)
	for i := range 256 {
		all = append(all, byte(i), byte(i))
	}
	payloads := []string{"", "a", string(all), strings.Repeat("\xc0\xdb", 100)}
	var stream string
	for _, p := range payloads {
		stream += packet(t, p)
	}
	r := NewPacketReader(strings.NewReader(stream))
	for _, want := range payloads {
		got, err := r.Next(1000, 0)
		if err != nil || string(got) != want {
			t.Errorf("got %q, %v, want %q", got, err, want)
		}
	}
	if _, err := r.Next(1000, 0); err != io.EOF {
		t.Errorf("at the end: %v", err)
	}
}

// Whatever part of an older packet stands before it, a packet is found, and the
// part is not taken for one.
func TestPacketAfterGarbage(t *testing.T) {
	old, want := packet(t, "old \xc0\xdb request"), "new"
	for cut := range len(old) - 1 { // all but one end of it is whole
		for _, stale := range []string{old[:cut], old[cut+2:]} {
			r := NewPacketReader(strings.NewReader(stale + packet(t, want)))
			if got, err := r.Next(100, 1000); err != nil || string(got) != want {
				t.Fatalf("after %q: got %q, %v", stale, got, err)
			}
		}
	}
	r := NewPacketReader(strings.NewReader(packet(t, strings.Repeat("x", 200)) + packet(t, want)))
	if got, err := r.Next(100, 1000); err != nil || string(got) != want {
		t.Errorf("after too large a packet: got %q, %v", got, err)
	}
}

func TestEndlessGarbage(t *testing.T) {
	for name, bytes := range map[string]io.Reader{"noise": garbage{}, "nothing but zeros": zeros{}} {
		r := NewPacketReader(bytes)
		if _, err := r.Next(100, 1000); !errors.Is(err, errNoPacket) {
			t.Errorf("%s: %v, want errNoPacket", name, err)
		}
		if n := cap(r.buf); n > 1000 {
			t.Errorf("%s: %d bytes are held for packets of 100", name, n)
		}
	}
}

type garbage struct{}

func (garbage) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = byte(rand.Uint32())
	}
	return len(p), nil
}

func FuzzPackets(f *testing.F) {
	f.Add([]byte(packet(f, "a")), []byte("b"))
	f.Add([]byte("\xdb\xdd\xc0\xdb"), []byte("\xc0"))
	f.Fuzz(func(t *testing.T, stale, payload []byte) {
		if len(payload) > 1000 {
			return
		}
		r := NewPacketReader(io.MultiReader(bytes.NewReader(stale), strings.NewReader(packet(t, string(payload)))))
		var last []byte
		for {
			got, err := r.Next(1000, 1<<20)
			if err != nil {
				break
			}
			last = append(last[:0], got...)
		}
		if !bytes.Equal(last, payload) {
			t.Errorf("the last packet is %q, want %q", last, payload)
		}
	})
}
