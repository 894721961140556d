package wire

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/nettest"
)

// pair returns both ends of a session over an in-memory connection.
func pair(t testing.TB) (*HostMux, *GuestMux) {
	a, b := net.Pipe()
	var host *HostMux
	var hostErr error
	var wg sync.WaitGroup
	wg.Go(func() { host, hostErr = NewHostMux(t.Context(), a, 7) })
	guest, err := NewGuestMux(t.Context(), b, 7)
	wg.Wait()
	if err := errors.Join(err, hostErr); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { host.Close(); guest.Close() })
	return host, guest
}

// streams returns both ends of a new stream.
func streams(t testing.TB, host *HostMux, guest *GuestMux) (hostEnd, guestEnd *Stream) {
	accepted := make(chan *Stream, 1)
	go func() {
		in, err := guest.Accept()
		if err != nil {
			accepted <- nil
			return
		}
		accepted <- in.Accept()
	}()
	conn, err := host.Dial(t.Context(), 5)
	if err != nil {
		t.Fatal(err)
	}
	return conn.(*Stream), <-accepted
}

func TestStreamIsConn(t *testing.T) {
	for _, reversed := range []bool{false, true} {
		t.Run(fmt.Sprintf("reversed=%v", reversed), func(t *testing.T) {
			nettest.TestConn(t, func() (net.Conn, net.Conn, func(), error) {
				host, guest := pair(t)
				a, b := streams(t, host, guest)
				stop := func() { a.Close(); b.Close(); host.Close(); guest.Close() }
				if reversed {
					a, b = b, a
				}
				return a, b, stop, nil
			})
		})
	}
}

func TestDialRefused(t *testing.T) {
	host, guest := pair(t)
	go func() {
		in, _ := guest.Accept()
		in.Refuse("nobody \x1b[31mlistens")
	}()
	_, err := host.Dial(t.Context(), 9)
	if !errors.Is(err, ErrRefused) {
		t.Fatalf("got %v, want ErrRefused", err)
	}
	if got, want := err.Error(), "guest port 9: refused by the guest: nobody \uFFFD[31mlistens"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	waitEmpty(t, &host.session)
	waitEmpty(t, &guest.session)
}

func TestOpenTravelsWithData(t *testing.T) {
	host, guest := pair(t)
	conn, err := host.Open(3)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(conn, "request"); err != nil { // before the guest accepts
		t.Fatal(err)
	}
	in, err := guest.Accept()
	if err != nil {
		t.Fatal(err)
	}
	s := in.Accept()
	buf := make([]byte, 7)
	if _, err := io.ReadFull(s, buf); err != nil || string(buf) != "request" {
		t.Fatalf("read %q, %v", buf, err)
	}
	io.WriteString(s, "answer")
	s.Close()
	if got, err := io.ReadAll(conn); err != nil || string(got) != "answer" {
		t.Fatalf("read %q, %v", got, err)
	}

	refused, _ := host.Open(4)
	in, _ = guest.Accept()
	in.Refuse("no")
	if _, err := refused.Read(buf); !errors.Is(err, ErrRefused) {
		t.Errorf("read after a refusal: %v", err)
	}
	if _, err := refused.Write(buf); !errors.Is(err, ErrRefused) {
		t.Errorf("write after a refusal: %v", err)
	}
}

func TestDialGivesUp(t *testing.T) {
	host, guest := pair(t)
	cause := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	result := make(chan error)
	go func() {
		_, err := host.Dial(ctx, 1)
		result <- err
	}()
	in, err := guest.Accept()
	if err != nil {
		t.Fatal(err)
	}
	cancel(cause)
	if err := <-result; !errors.Is(err, cause) {
		t.Errorf("got %v, want the context's cause", err)
	}
	// The guest accepts too late, and nothing is left of the stream.
	if _, err := in.Accept().Read(make([]byte, 1)); !errors.Is(err, ErrReset) {
		t.Errorf("guest's read: %v, want ErrReset", err)
	}
	waitEmpty(t, &host.session)
	waitEmpty(t, &guest.session)
}

func TestHalfClose(t *testing.T) {
	host, guest := pair(t)
	a, b := streams(t, host, guest)
	for _, end := range [][2]*Stream{{a, b}, {b, a}} {
		from, to := end[0], end[1]
		if _, err := from.Write([]byte("last words")); err != nil {
			t.Fatal(err)
		}
		if err := from.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(to); string(got) != "last words" || err != nil {
			t.Errorf("read %q, %v", got, err)
		}
		if _, err := from.Write([]byte("more")); !errors.Is(err, net.ErrClosed) {
			t.Errorf("write after CloseWrite: %v", err)
		}
	}
	waitEmpty(t, &host.session)
	waitEmpty(t, &guest.session)
}

func TestCloseDeliversWhatWasWritten(t *testing.T) {
	host, guest := pair(t)
	a, b := streams(t, host, guest)
	want := bytes.Repeat([]byte("0123456789abcdef"), 4096)
	go func() {
		b.Write(want)
		b.Close()
	}()
	got, err := io.ReadAll(a)
	if err != nil || !bytes.Equal(got, want) {
		t.Fatalf("read %d bytes, %v", len(got), err)
	}
	if _, err := a.Write(want); !errors.Is(err, ErrStopped) {
		t.Errorf("write to a closed peer: %v, want ErrStopped", err)
	}
	waitEmpty(t, &host.session)
}

func TestReset(t *testing.T) {
	host, guest := pair(t)
	a, b := streams(t, host, guest)
	blocked := make(chan error)
	go func() {
		_, err := a.Write(make([]byte, 2*fullWindow)) // more than fits
		blocked <- err
	}()
	b.Write([]byte("never read"))
	b.Reset()
	if err := <-blocked; !errors.Is(err, ErrReset) {
		t.Errorf("write: %v, want ErrReset", err)
	}
	if _, err := a.Read(make([]byte, 1)); !errors.Is(err, ErrReset) {
		t.Errorf("read: %v, want ErrReset", err)
	}
	waitEmpty(t, &host.session)
	waitEmpty(t, &guest.session)
}

// waitEmpty waits until the session has forgotten all its streams.
func waitEmpty(t *testing.T, m *session) {
	t.Helper()
	deadline := time.Now().Add(5 * time.Second)
	for {
		m.mu.Lock()
		n := len(m.streams)
		m.mu.Unlock()
		if n == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d streams are left", n)
		}
		time.Sleep(time.Millisecond)
	}
}

func TestEndOfConnectionWakesAll(t *testing.T) {
	for _, name := range []string{"host closes", "guest closes"} {
		t.Run(name, func(t *testing.T) {
			host, guest := pair(t)
			a, b := streams(t, host, guest)
			errs := make(chan error)
			go func() { _, err := a.Read(make([]byte, 1)); errs <- err }()
			go func() { _, err := b.Read(make([]byte, 1)); errs <- err }()
			go func() { _, err := a.Write(make([]byte, 2*fullWindow)); errs <- err }()
			go func() { _, err := guest.Accept(); errs <- err }()
			if name == "host closes" {
				host.Close()
			} else {
				guest.Close()
			}
			for range 4 {
				if err := <-errs; err == nil || errors.Is(err, io.EOF) {
					t.Errorf("got %v, want an error that is no end of file", err)
				}
			}
			<-host.Done()
			<-guest.Done()
			if _, err := host.Dial(t.Context(), 1); err == nil {
				t.Error("dial after the end succeeded")
			}
		})
	}
}

// One stream is full and nobody reads it; the others do not notice.
func TestStoppedReaderHoldsUpNobodyElse(t *testing.T) {
	host, guest := pair(t)
	_, full := streams(t, host, guest)
	full.SetWriteDeadline(time.Now().Add(50 * time.Millisecond))
	n, err := full.Write(make([]byte, 10*fullWindow))
	if n != fullWindow || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("wrote %d, %v; want the window, %d, and a time-out", n, err, fullWindow)
	}
	a, b := streams(t, host, guest)
	go func() {
		io.Copy(b, io.LimitReader(zeros{}, 4<<20))
		b.Close()
	}()
	if n, err := io.Copy(io.Discard, a); n != 4<<20 || err != nil {
		t.Errorf("other stream: %d bytes, %v", n, err)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }

type counter struct{ atomic.Int64 }

func (c *counter) Write(p []byte) (int, error) {
	c.Add(int64(len(p)))
	return len(p), nil
}

// A small answer overtakes what others have to send: a round trip beside eight
// saturated streams waits for one frame of each, not for their megabytes.
func TestTurns(t *testing.T) {
	host, guest := pair(t)
	var wg sync.WaitGroup
	var others counter
	for range 8 {
		a, b := streams(t, host, guest)
		wg.Go(func() { io.Copy(b, zeros{}) })
		wg.Go(func() { io.Copy(&others, a) })
	}
	a, b := streams(t, host, guest)
	go io.Copy(b, b)
	before := others.Load()
	const trips = 50
	buf := make([]byte, 1)
	for range trips {
		if _, err := a.Write(buf); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(a, buf); err != nil {
			t.Fatal(err)
		}
	}
	// Eight streams have at most one frame each ahead, and one batch is on its way.
	if got, most := (others.Load()-before)/trips, int64(20*maxBatch); got > most {
		t.Errorf("a round trip waited for %d bytes of others, want at most %d", got, most)
	}
	host.Close()
	guest.Close()
	wg.Wait()
}

func TestSlowReaderBoundsMemory(t *testing.T) {
	size := int64(256 << 20)
	if testing.Short() {
		size = 16 << 20
	}
	host, guest := pair(t)
	a, b := streams(t, host, guest)
	go func() {
		io.Copy(b, io.LimitReader(zeros{}, size))
		b.Close()
	}()
	var peak uint64
	var total int64
	buf := make([]byte, 128<<10)
	for i := 0; ; i++ {
		n, err := a.Read(buf)
		total += int64(n)
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if i%512 == 0 {
			time.Sleep(time.Millisecond)
			var mem runtime.MemStats
			runtime.ReadMemStats(&mem)
			peak = max(peak, mem.HeapInuse)
		}
	}
	if total != size {
		t.Errorf("read %d bytes, want %d", total, size)
	}
	if most := uint64(32 << 20); peak > most {
		t.Errorf("heap of %d MiB, want at most %d", peak>>20, most>>20)
	}
}

func TestManyStreamsKeepTheirDataApart(t *testing.T) {
	host, guest := pair(t)
	go func() { // an echo server
		for {
			in, err := guest.Accept()
			if err != nil {
				return
			}
			go func() {
				s := in.Accept()
				io.Copy(s, s)
				s.Close()
			}()
		}
	}()
	var wg sync.WaitGroup
	for i := range 40 {
		wg.Go(func() {
			conn, err := host.Dial(t.Context(), 1)
			if err != nil {
				t.Error(err)
				return
			}
			r := rand.New(rand.NewPCG(uint64(i), 1))
			want := make([]byte, r.IntN(3*fullWindow))
			for j := range want {
				want[j] = byte(r.Uint32())
			}
			go func() {
				for rest := want; len(rest) > 0; {
					n := min(len(rest), 1+r.IntN(100_000))
					conn.Write(rest[:n])
					rest = rest[n:]
				}
				conn.(*Stream).CloseWrite()
			}()
			got, err := io.ReadAll(conn)
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("stream %d: %d bytes of %d, %v", i, len(got), len(want), err)
			}
			conn.Close()
		})
	}
	wg.Wait()
	waitEmpty(t, &host.session)
	waitEmpty(t, &guest.session)
}

func TestTooManyStreams(t *testing.T) {
	host, guest := pair(t)
	for range MaxStreams {
		if _, err := host.Open(1); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := host.Open(1); !errors.Is(err, ErrTooManyStreams) {
		t.Errorf("got %v, want ErrTooManyStreams", err)
	}
	for range MaxStreams {
		in, err := guest.Accept()
		if err != nil {
			t.Fatal(err)
		}
		in.Refuse("")
	}
	waitEmpty(t, &host.session)
	conn, err := host.Open(1)
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
}

func TestHandshake(t *testing.T) {
	hello := func(version uint32, epoch uint64) []byte {
		b := binary.BigEndian.AppendUint32([]byte(helloMagic), version)
		return binary.BigEndian.AppendUint64(b, epoch)
	}
	for name, test := range map[string]struct {
		answer []byte
		want   string
	}{
		"version": {hello(Version+1, 7), "speaks version"},
		"epoch":   {hello(Version, 6), "epoch 6 in epoch 7"},
		"stale":   {append([]byte("half a frame"), hello(Version, 7)...), "no hello"},
		"silence": {nil, "deadline exceeded"},
		"half":    {hello(Version, 7)[:5], "deadline exceeded"},
	} {
		t.Run(name, func(t *testing.T) {
			a, b := net.Pipe()
			defer b.Close()
			go func() {
				io.ReadFull(b, make([]byte, helloSize))
				b.Write(test.answer)
			}()
			ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
			defer cancel()
			_, err := NewHostMux(ctx, a, 7)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %q", err, test.want)
			}
			if _, err := a.Write(nil); err == nil {
				t.Error("the connection was left open")
			}
		})
	}
}

// A guest that awaits its host has a session from the start, and hears of a host
// that is none when it asks for streams.
func TestAwaitHost(t *testing.T) {
	a, b := net.Pipe()
	guest := AwaitHost(b, 1)
	defer guest.Close()
	go a.Write(make([]byte, helloSize))
	if _, err := guest.Accept(); !errors.Is(err, ErrProtocol) || !strings.Contains(err.Error(), "handshake") {
		t.Errorf("got %v", err)
	}
	a, b = net.Pipe()
	guest = AwaitHost(b, 1)
	defer guest.Close()
	host, err := NewHostMux(t.Context(), a, 1)
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	if _, err := host.Open(5); err != nil {
		t.Fatal(err)
	}
	if in, err := guest.Accept(); err != nil || in.Port() != 5 {
		t.Errorf("got %v, %v", in, err)
	}
}

// newHostile returns a host's session with one stream that is asked for, and the
// connection at whose other end the test plays the guest.
func newHostile(t *testing.T) (*HostMux, *Stream, net.Conn) {
	a, b := net.Pipe()
	go func() {
		hello := make([]byte, helloSize)
		io.ReadFull(b, hello)
		b.Write(hello)
	}()
	host, err := NewHostMux(t.Context(), a, 1)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { host.Close(); b.Close() })
	s, err := host.Open(1)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(b, make([]byte, muxHeader+8)); err != nil {
		t.Fatal(err)
	}
	go io.Copy(io.Discard, b)
	return host, s.(*Stream), b
}

func frame(kind byte, id uint32, payload ...byte) []byte {
	b := binary.BigEndian.AppendUint32([]byte{kind}, id)
	b = binary.BigEndian.AppendUint32(b, uint32(len(payload)))
	return append(b, payload...)
}

func u32(n ...uint32) (b []byte) {
	for _, n := range n {
		b = binary.BigEndian.AppendUint32(b, n)
	}
	return b
}

func TestHostileGuest(t *testing.T) {
	accept := frame(kindAccept, 1, u32(1000)...)
	flood := make([]byte, 0, 2*fullWindow)
	for len(flood) <= fullWindow {
		flood = append(flood, frame(kindData, 1, make([]byte, 32000)...)...)
	}
	for name, test := range map[string]struct {
		bytes []byte
		want  error
	}{
		"open":                   {frame(kindOpen, 9, u32(1, 1)...), errDirection},
		"unknown kind":           {frame(77, 1), ErrProtocol},
		"unknown stream":         {frame(kindData, 2, 1), errUnknown},
		"stream 0":               {frame(kindReset, 0), errUnknown},
		"grant on future stream": {frame(kindGrant, 2, u32(1)...), errUnknown},
		"data before accept":     {frame(kindData, 1, 1), errOrder},
		"grant before accept":    {frame(kindGrant, 1, u32(1)...), errOrder},
		"fin before accept":      {frame(kindFin, 1), errOrder},
		"stop before accept":     {frame(kindStop, 1), errOrder},
		"second accept":          {append(accept, accept...), errOrder},
		"empty data":             {append(accept, frame(kindData, 1)...), errLength},
		"fin with payload":       {append(accept, frame(kindFin, 1, 1)...), errLength},
		"long reason":            {frame(kindReset, 1, make([]byte, maxReason+1)...), errLength},
		"short accept":           {frame(kindAccept, 1, 1), errLength},
		"huge accept":            {frame(kindAccept, 1, u32(1<<32-1)...), errWindow},
		"huge grant":             {append(accept, frame(kindGrant, 1, u32(maxWindow)...)...), errWindow},
		"data after fin":         {append(append(accept, frame(kindFin, 1)...), frame(kindData, 1, 1)...), errOrder},
		"two fins":               {append(append(accept, frame(kindFin, 1)...), frame(kindFin, 1)...), errOrder},
		"window exceeded":        {append(accept, flood...), errWindow},
		"huge length":            {append([]byte{kindData, 0, 0, 0, 1}, u32(1<<31)...), ErrProtocol},
		"half a header":          {[]byte{kindData, 0, 0}, io.ErrUnexpectedEOF},
		"half a frame":           {append([]byte{kindData, 0, 0, 0, 1}, 0, 0, 0, 9, 1, 2), io.ErrUnexpectedEOF},
	} {
		t.Run(name, func(t *testing.T) {
			host, s, guest := newHostile(t)
			go func() {
				guest.Write(test.bytes)
				if test.want == io.ErrUnexpectedEOF {
					guest.Close()
				}
			}()
			<-host.Done()
			if err := host.Err(); !errors.Is(err, test.want) {
				t.Errorf("session ended with %v, want %v", err, test.want)
			}
			if _, err := s.Write([]byte("x")); err == nil {
				t.Error("a write after the end succeeded")
			}
		})
	}
}

// A guest that sends its data byte by byte, or never ends streams that the host
// has closed, costs no more than its windows and its own streams.
func TestHostileGuestMemory(t *testing.T) {
	host, s, guest := newHostile(t)
	one := frame(kindData, 1, 'x')
	all := frame(kindAccept, 1, u32(0)...)
	for range fullWindow {
		all = append(all, one...)
	}
	if _, err := guest.Write(all); err != nil {
		t.Fatal(err)
	}
	guest.Write(frame(kindGrant, 1, u32(0)...)) // taken only after the frames before it
	host.mu.Lock()
	blocks, size := len(s.received.blocks), s.received.size
	host.mu.Unlock()
	if most := fullWindow/blockSize + 1; blocks > most {
		t.Errorf("%d bytes take %d blocks, want at most %d", size, blocks, most)
	}
	s.Close()
	for range MaxStreams - 1 {
		s, err := host.Open(1)
		if err != nil {
			t.Fatal(err)
		}
		s.Write([]byte("x")) // the open has been sent
		s.Close()
	}
	if _, err := host.Open(1); !errors.Is(err, ErrTooManyStreams) {
		t.Errorf("dial with all streams unanswered: %v, want ErrTooManyStreams", err)
	}
	host.mu.Lock()
	defer host.mu.Unlock()
	for _, s := range host.streams {
		if s.received.size > 0 {
			t.Fatal("a closed stream holds data")
		}
	}
}

// FuzzHost feeds a session whatever a guest may send: it ends, and holds no
// more than its windows.
func FuzzHost(f *testing.F) {
	f.Add(frame(kindAccept, 1, u32(10)...))
	f.Add(append(frame(kindAccept, 1, u32(10)...), frame(kindData, 1, 1, 2, 3)...))
	f.Add(append(frame(kindReset, 1, 'n', 'o'), frame(kindFin, 2)...))
	f.Add(append(frame(kindAccept, 3, u32(10)...), frame(kindStop, 3)...))
	f.Fuzz(func(t *testing.T, input []byte) {
		host := &HostMux{session{host: true, streams: make(map[uint32]*Stream)}}
		host.work.L = &host.mu
		var open []*Stream
		for i := range 4 {
			s, err := host.open(uint32(i))
			if err != nil {
				t.Fatal(err)
			}
			open = append(open, s)
		}
		host.mu.Lock()
		host.fill(make([]byte, 0, maxBatch)) // the opens have been sent
		host.mu.Unlock()
		open[1].Close()
		open[2].Reset()
		open[3].CloseWrite()
		r := bufio.NewReaderSize(bytes.NewReader(input), 2*maxBatch)
		for host.readFrame(r) == nil {
			host.mu.Lock()
			host.fill(make([]byte, 0, maxBatch))
			held := 0
			for _, s := range open {
				held += len(s.received.blocks) * blockSize
			}
			host.mu.Unlock()
			if most := len(open) * (fullWindow + blockSize); held > most {
				t.Fatalf("%d bytes are held, want at most %d", held, most)
			}
		}
	})
}

func BenchmarkThroughput(b *testing.B) {
	host, guest := pair(b)
	from, to := streams(b, host, guest)
	b.SetBytes(64 << 10)
	go func() {
		p := make([]byte, 64<<10)
		for range b.N {
			from.Write(p)
		}
		from.Close()
	}()
	io.Copy(io.Discard, to)
}

func BenchmarkRoundTrip(b *testing.B) {
	host, guest := pair(b)
	from, to := streams(b, host, guest)
	go io.Copy(to, to)
	p := make([]byte, 64)
	for b.Loop() {
		from.Write(p)
		io.ReadFull(from, p)
	}
}
