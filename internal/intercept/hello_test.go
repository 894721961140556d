package intercept

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"net"
	"slices"
	"strings"
	"testing"
	"time"
)

// captured is what crypto/tls says first.
func captured(tb testing.TB, config *tls.Config) []byte {
	tb.Helper()
	a, b := net.Pipe()
	defer b.Close()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		tls.Client(a, config).Handshake()
	}()
	defer func() { a.Close(); <-ended }()
	var all []byte
	for buffer := make([]byte, 1<<16); ; {
		n, err := b.Read(buffer)
		if err != nil {
			tb.Fatal(err)
		}
		all = append(all, buffer[:n]...)
		if _, err := parseClientHello(all); !errors.As(err, new(more)) {
			return all
		}
	}
}

// split makes records of at most n bytes of a hello in one.
func split(hello []byte, n int) []byte {
	var out []byte
	for part := range slices.Chunk(hello[5:], n) {
		out = append(out, 22, 3, 1)
		out = binary.BigEndian.AppendUint16(out, uint16(len(part)))
		out = append(out, part...)
	}
	return out
}

// withExtension adds an extension to a hello in one record.
func withExtension(hello []byte, kind uint16, body []byte) []byte {
	message := slices.Clone(hello[5:])
	at := 4 + 2 + 32
	at += 1 + int(message[at])
	at += 2 + int(binary.BigEndian.Uint16(message[at:]))
	at += 1 + int(message[at])
	binary.BigEndian.PutUint16(message[at:], binary.BigEndian.Uint16(message[at:])+uint16(4+len(body)))
	message = binary.BigEndian.AppendUint16(message, kind)
	message = binary.BigEndian.AppendUint16(message, uint16(len(body)))
	message = append(message, body...)
	message[1], message[2], message[3] = byte((len(message)-4)>>16), byte((len(message)-4)>>8), byte(len(message)-4)
	var out []byte
	for part := range slices.Chunk(message, maxRecord) {
		out = append(out, 22, 3, 1)
		out = binary.BigEndian.AppendUint16(out, uint16(len(part)))
		out = append(out, part...)
	}
	return out
}

func TestClientHello(t *testing.T) {
	plain := captured(t, &tls.Config{ServerName: "web.test", NextProtos: []string{"h2", "http/1.1"}})
	nameless := captured(t, &tls.Config{InsecureSkipVerify: true, ServerName: "192.0.2.1"})
	for name, tt := range map[string]struct {
		in       []byte
		server   string
		alpn     string
		ech, bad bool
	}{
		"plain":               {in: plain, server: "web.test", alpn: "h2 http/1.1"},
		"no name":             {in: nameless},
		"records of 50 bytes": {in: split(plain, 50), server: "web.test", alpn: "h2 http/1.1"},
		"60000 bytes":         {in: withExtension(plain, 21, make([]byte, 60000)), server: "web.test", alpn: "h2 http/1.1"},
		"ECH":                 {in: withExtension(plain, 0xfe0d, []byte{1}), server: "web.test", alpn: "h2 http/1.1", ech: true},
		"records of a byte":   {in: split(plain, 1), bad: true},
		"two names":           {in: withExtension(plain, 0, []byte{0, 4, 0, 0, 1, 'a'}), bad: true},
		"two in one":          {in: withExtension(nameless, 0, []byte{0, 8, 0, 0, 1, 'a', 0, 0, 1, 'b'}), bad: true},
		"a name of type 1":    {in: withExtension(nameless, 0, []byte{0, 4, 1, 0, 1, 'a'}), bad: true},
		"an empty name":       {in: withExtension(nameless, 0, []byte{0, 3, 0, 0, 0}), bad: true},
		"too much":            {in: withExtension(plain, 21, make([]byte, 0))[:10], bad: false},
		"a byte behind":       {in: append(slices.Clone(plain[:3]), append(binary.BigEndian.AppendUint16(nil, uint16(len(plain)-4)), append(slices.Clone(plain[5:]), 0)...)...), bad: true},
		"another handshake":   {in: []byte{22, 3, 1, 0, 4, 2, 0, 0, 0}, bad: true},
		"an empty record":     {in: []byte{22, 3, 1, 0, 0}, bad: true},
		"a record too long":   {in: []byte{22, 3, 1, 0x40, 1}, bad: true},
		"16 MB":               {in: []byte{22, 3, 1, 0, 4, 1, 255, 255, 255}, bad: true},
	} {
		t.Run(name, func(t *testing.T) {
			h, err := parseClientHello(tt.in)
			if len(tt.in) == 10 {
				if !errors.As(err, new(more)) {
					t.Fatal(err)
				}
				return
			}
			if tt.bad {
				if !errors.Is(err, errHello) {
					t.Fatalf("%+v, %v", h, err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if h.serverName != tt.server || strings.Join(h.protocols, " ") != tt.alpn || h.ech != tt.ech {
				t.Errorf("%+v", h)
			}
			// No part of it is whole, and each says truly how much is needed.
			for n := 0; n < len(tt.in); n += 1 + n/200 {
				var m more
				if _, err := parseClientHello(tt.in[:n]); !errors.As(err, &m) || int(m) <= n || int(m) > len(tt.in) {
					t.Fatalf("the first %d of %d bytes: %v", n, len(tt.in), err)
				}
			}
		})
	}
}

// FuzzClientHello compares with crypto/tls: what it would take must have the same
// name for us, or be refused.
func FuzzClientHello(f *testing.F) {
	plain := captured(f, &tls.Config{ServerName: "web.test", NextProtos: []string{"h2"}})
	f.Add(plain)
	f.Add(split(plain, 40))
	f.Add(withExtension(plain, 0xfe0d, []byte{1, 2}))
	f.Add(captured(f, &tls.Config{InsecureSkipVerify: true}))
	stop := errors.New("stop")
	f.Fuzz(func(t *testing.T, in []byte) {
		h, err := parseClientHello(in)
		if err != nil {
			return
		}
		var theirs *tls.ClientHelloInfo
		server := tls.Server(&readOnly{bytes.NewReader(in)}, &tls.Config{MinVersion: tls.VersionTLS10, GetConfigForClient: func(i *tls.ClientHelloInfo) (*tls.Config, error) {
			theirs = i
			return nil, stop
		}})
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		server.HandshakeContext(ctx)
		if theirs == nil {
			return // we may take more: what we splice is not ours to judge
		}
		// crypto/tls cuts a last dot off, which RFC 6066 forbids.
		if theirs.ServerName != strings.TrimSuffix(h.serverName, ".") {
			t.Errorf("we read %q, crypto/tls %q", h.serverName, theirs.ServerName)
		}
		if !slices.Equal(theirs.SupportedProtos, h.protocols) {
			t.Errorf("we read %q, crypto/tls %q", h.protocols, theirs.SupportedProtos)
		}
	})
}

// readOnly is a connection with no one behind it.
type readOnly struct{ *bytes.Reader }

func (*readOnly) Write(p []byte) (int, error)      { return len(p), nil }
func (*readOnly) Close() error                     { return nil }
func (*readOnly) LocalAddr() net.Addr              { return new(net.TCPAddr) }
func (*readOnly) RemoteAddr() net.Addr             { return new(net.TCPAddr) }
func (*readOnly) SetDeadline(time.Time) error      { return nil }
func (*readOnly) SetReadDeadline(time.Time) error  { return nil }
func (*readOnly) SetWriteDeadline(time.Time) error { return nil }
