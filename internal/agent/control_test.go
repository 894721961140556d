package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/matchlock/matchlock/api"
	"github.com/matchlock/matchlock/internal/wire"
)

// recorder is a ControlHandler that records what it is asked to do.
type recorder struct {
	mu    sync.Mutex
	calls []any
	err   error
	wait  chan struct{} // if set, SetClock waits for it
}

func (r *recorder) record(call any) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.calls = append(r.calls, call)
	return r.err
}

func (r *recorder) Prepared() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.calls) > 0
}

func (r *recorder) IsSetUp() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.calls) > 1
}

func (r *recorder) Prepare(p *Preparation) error { return r.record(*p) }
func (r *recorder) Setup(s *Setup) error         { return r.record(*s) }
func (r *recorder) Renew(s *Setup) error         { return r.record(s) }
func (r *recorder) Freeze() error                { return r.record("freeze") }
func (r *recorder) Thaw(t time.Time) error       { return r.record(t) }
func (r *recorder) Boot(b *api.BootData) error   { return r.record(*b) }
func (r *recorder) Reset(epoch uint64) error     { return r.record(epoch) }
func (r *recorder) PowerOff() error              { return r.record("power off") }
func (r *recorder) SetClock(t time.Time) error {
	if r.wait != nil {
		<-r.wait
	}
	return r.record(t)
}

func (r *recorder) last() any {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.calls[len(r.calls)-1]
}

// socketPair returns two connected sockets.
func socketPair(t *testing.T) (a, b net.Conn) {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if a, err = net.Dial("unix", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if b, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

// newControl returns a control port whose guest is h.
func newControl(t *testing.T, h ControlHandler) *Control {
	a, b := socketPair(t)
	served := make(chan struct{})
	go func() {
		defer close(served)
		ServeControl(b, h)
		b.Close()
	}()
	c := NewControl(a)
	t.Cleanup(func() { c.Close(); <-served })
	return c
}

func TestControl(t *testing.T) {
	r := new(recorder)
	c := newControl(t, r)
	if hello, err := c.Hello(t.Context()); err != nil || hello != (Hello{Version: wire.Version}) {
		t.Fatalf("got %v, %v", hello, err)
	}
	preparation := Preparation{Params: "matchlock.root=disk", Time: time.Unix(1234567890, 123), Roots: []byte("PEM")}
	if err := c.Prepare(t.Context(), preparation); err != nil || !reflect.DeepEqual(r.last(), preparation) {
		t.Errorf("got %+v, %v; want %+v", r.last(), err, preparation)
	}
	if hello, err := c.Hello(t.Context()); err != nil || hello != (Hello{Version: wire.Version, Prepared: true}) {
		t.Errorf("got %v, %v", hello, err)
	}
	setup := Setup{
		Hostname:  "x",
		Params:    "ip=1.2.3.4",
		Time:      time.Unix(1234567890, 987654321),
		Entropy:   []byte{0xC0, 0xDB, 0, 1},
		MachineID: "0123456789abcdef0123456789abcdef",
		BootID:    "01234567-89ab-4def-8123-456789abcdef",
		Env:       map[string]string{"A": "1", "B": ""},
		Hosts:     []api.HostIPMapping{{Host: "h", IP: "::1"}},
	}
	boot := api.BootData{
		CA:           []byte("PEM"),
		Env:          map[string]string{"LARGE": strings.Repeat("x", 1<<20)},
		Hosts:        []api.HostIPMapping{{Host: "a", IP: "1.1.1.1"}, {Host: "b", IP: "2.2.2.2"}},
		Confinement:  api.Confinement{CapAdd: []string{"NET_RAW"}, CapDrop: []string{"ALL"}, AllowSetuid: true},
		ReadOnlyRoot: true,
		Tmpfs:        []api.Tmpfs{{Path: "/t", Size: 5}, {Path: "/u"}},
		Sockets:      []string{"/a", "/b"},
		ShmSize:      1 << 40,
		Ulimits:      []api.Ulimit{{Name: "nofile", Soft: 1, Hard: 1<<64 - 1}},
	}
	if err := c.Setup(t.Context(), setup); err != nil || !reflect.DeepEqual(r.last(), setup) {
		t.Errorf("got %+v, %v; want %+v", r.last(), err, setup)
	}
	if err := c.Boot(t.Context(), &boot); err != nil || !reflect.DeepEqual(r.last(), boot) {
		t.Errorf("got %+v, %v; want %+v", r.last(), err, boot)
	}
	setup.Boot = &boot
	if err := c.Setup(t.Context(), setup); err != nil || !reflect.DeepEqual(r.last(), boot) {
		t.Errorf("got %+v, %v; want the set-up and then %+v", r.last(), err, boot)
	}
	r.err = errors.New("no")
	if err := c.Setup(t.Context(), setup); !IsGuestError(err) || !reflect.DeepEqual(r.last(), setup) {
		t.Errorf("got %+v, %v; want no boot data after a set-up that has failed", r.last(), err)
	}
	r.err = nil
	if err := c.SetClock(t.Context(), setup.Time); err != nil || !r.last().(time.Time).Equal(setup.Time) {
		t.Errorf("got %+v, %v; want %+v", r.last(), err, setup.Time)
	}
	if err := c.Reset(t.Context(), 8); err != nil || r.last() != uint64(8) {
		t.Errorf("got %+v, %v; want 8", r.last(), err)
	}
	r.err = errors.New("no \x1b[31mway")
	if err := c.Reset(t.Context(), 9); !IsGuestError(err) || err.Error() != "no \uFFFD[31mway" {
		t.Errorf("got %v, want the guest's error", err)
	}
	r.err = nil
	if err := c.PowerOff(t.Context()); err != nil || r.last() != "power off" {
		t.Errorf("got %v, %v", r.last(), err)
	}
	if _, err := c.Hello(t.Context()); err == nil {
		t.Error("the guest answers after it was powered off")
	}
}

// A request that was given up, and its late answer, do not disturb the next.
func TestControlGivenUp(t *testing.T) {
	r := &recorder{wait: make(chan struct{})}
	c := newControl(t, r)
	cause := errors.New("enough")
	ctx, cancel := context.WithTimeoutCause(t.Context(), 20*time.Millisecond, cause)
	defer cancel()
	if err := c.SetClock(ctx, time.Now()); !errors.Is(err, cause) {
		t.Errorf("got %v, want the context's cause", err)
	}
	result := make(chan error)
	go func() { result <- c.Reset(t.Context(), 5) }()
	ctx2, cancel2 := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel2()
	if err := c.Reset(ctx2, 6); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("waiting for its turn: %v, want a time-out", err)
	}
	close(r.wait)
	if err := <-result; err != nil {
		t.Error(err)
	}
	if _, err := c.Hello(t.Context()); err != nil {
		t.Error(err)
	}
}

// A host that takes over from one that died in the middle of a request, before a
// guest that was in the middle of an answer.
func TestControlAfterGarbage(t *testing.T) {
	var request bytes.Buffer
	wire.WritePacket(&request, append([]byte{controlPowerOff}, make([]byte, 20)...))
	for cut := range request.Len() - 1 {
		half := request.Bytes()[:cut]
		r := new(recorder)
		a, b := socketPair(t)
		a.Write(half)
		b.Write(half)
		io.ReadFull(a, make([]byte, cut/2)) // what the former host took of the answer
		served := make(chan struct{})
		go func() {
			defer close(served)
			ServeControl(b, r)
		}()
		hello, err := NewControl(a).Hello(t.Context())
		if err != nil || hello.Version != wire.Version {
			t.Errorf("cut at %d: %v, %v", cut, hello, err)
		}
		a.Close()
		<-served
		if len(r.calls) > 0 {
			t.Errorf("cut at %d: the guest was made to do %v", cut, r.calls)
		}
	}
}

func TestControlHostileGuest(t *testing.T) {
	packet := func(payload []byte) []byte {
		var b bytes.Buffer
		wire.WritePacket(&b, payload)
		return b.Bytes()
	}
	for name, test := range map[string]struct {
		answer func(number []byte) []byte
		want   string
	}{
		"endless garbage":  {func([]byte) []byte { return make([]byte, 2*maxStale) }, "no packet"},
		"endless answers":  {func([]byte) []byte { return bytes.Repeat(packet(make([]byte, 1000)), 2000) }, "impossible answer"},
		"endless ends":     {func([]byte) []byte { return bytes.Repeat([]byte{0xC0}, 2*maxStale) }, "no packet"},
		"endless nothing":  {func([]byte) []byte { return bytes.Repeat(packet(nil), maxStale/4) }, "impossible answer"},
		"cut":              {func(n []byte) []byte { return packet(append(n, 0)) }, "impossible answer"},
		"not a flag":       {func(n []byte) []byte { return packet(append(n, 9, 0)) }, "impossible answer"},
		"short hello":      {func(n []byte) []byte { return packet(append(n, 0, 1, 1)) }, "too early"},
		"malformed error":  {func(n []byte) []byte { return packet(append(n, 1, 1, 1)) }, "too early"},
		"unknown error":    {func(n []byte) []byte { return packet(append(n, 1, 3, 200, 1, 'x')) }, "x"},
		"too large answer": {func(n []byte) []byte { return packet(append(n, make([]byte, 2<<20)...)) }, "no packet"},
		"no answer":        {func([]byte) []byte { return nil }, "EOF"},
	} {
		t.Run(name, func(t *testing.T) {
			a, b := socketPair(t)
			go func() {
				defer b.Close()
				request, err := wire.NewPacketReader(b).Next(1000, 0)
				if err != nil {
					t.Error(err)
					return
				}
				b.Write(test.answer(bytes.Clone(request[1:headerBytes])))
			}()
			_, err := NewControl(a).Hello(t.Context())
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %q", err, test.want)
			}
			a.Close() // the guest may still be writing
		})
	}
}

func FuzzControlRequest(f *testing.F) {
	setup := Setup{Params: "a=b", Env: map[string]string{"A": "B"}, Hosts: []api.HostIPMapping{{Host: "a", IP: "b"}}}
	f.Add(byte(controlSetup), setup.encode())
	var boot wire.Encoder
	encodeBoot(&boot, &api.BootData{Tmpfs: []api.Tmpfs{{Path: "/"}}, Sockets: []string{"/s"}, Ulimits: []api.Ulimit{{Name: "x"}}})
	f.Add(byte(controlBoot), boot.Encoded())
	f.Fuzz(func(t *testing.T, kind byte, body []byte) {
		r := new(recorder)
		if _, err := handleControl(r, kind, body); err != nil || len(r.calls) == 0 {
			return
		}
		switch call := r.last().(type) { // what was understood means the same when it is said again
		case Setup:
			if again := decodeSetup(wire.NewDecoder(call.encode())); fmt.Sprint(*again) != fmt.Sprint(call) {
				t.Errorf("%+v became %+v", call, *again)
			}
		case api.BootData:
			var e wire.Encoder
			encodeBoot(&e, &call)
			if again := decodeBoot(wire.NewDecoder(e.Encoded())); !reflect.DeepEqual(*again, call) {
				t.Errorf("%+v became %+v", call, *again)
			}
		}
	})
}

func FuzzControlAnswer(f *testing.F) {
	f.Add([]byte("\xc0\x00\x00"))
	f.Fuzz(func(t *testing.T, answer []byte) {
		c := NewControl(&script{answer: bytes.NewReader(answer)})
		if hello, err := c.Hello(t.Context()); err == nil {
			t.Errorf("a guest that cannot know the number answered: %v", hello)
		}
	})
}

// script is a connection whose peer says something and listens to nothing.
type script struct {
	net.Conn
	answer io.Reader
}

func (s *script) Read(p []byte) (int, error)       { return s.answer.Read(p) }
func (s *script) Write(p []byte) (int, error)      { return len(p), nil }
func (s *script) Close() error                     { return nil }
func (s *script) SetDeadline(time.Time) error      { return nil }
func (s *script) SetReadDeadline(time.Time) error  { return nil }
func (s *script) SetWriteDeadline(time.Time) error { return nil }
