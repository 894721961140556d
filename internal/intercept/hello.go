package intercept

import (
	"encoding/binary"
	"errors"
	"fmt"
)

const (
	// maxHello bounds a ClientHello in bytes. Post-quantum keys make it some 2 KiB;
	// crypto/tls takes 64 KiB where we terminate.
	maxHello     = 128 << 10
	maxRecord    = 1 << 14
	maxRecords   = 64 // of a ClientHello
	recordHeader = 5
)

// clientHello is what of a ClientHello decides about its flow.
type clientHello struct {
	serverName string   // as the guest wrote it; "": none
	protocols  []string // ALPN
	ech        bool     // encrypted_client_hello is there, a real one or GREASE
}

// more is an error that says that a ClientHello is not whole yet, and cannot be
// with fewer bytes than this.
type more int

func (m more) Error() string {
	return fmt.Sprintf("ClientHello of at least %d bytes is not whole", int(m))
}

var errHello = errors.New("malformed ClientHello")

// parseClientHello reads a ClientHello from the guest's first bytes, over as many
// TLS records as it spans. While it is not whole the error is more. What a server
// could read in two ways is an error.
func parseClientHello(b []byte) (*clientHello, error) {
	var message []byte
	at := 0
	for range maxRecords {
		size := 4
		if len(message) >= 4 {
			if message[0] != 1 {
				return nil, fmt.Errorf("%w: handshake message of type %d", errHello, message[0])
			}
			size += int(message[1])<<16 + int(message[2])<<8 + int(message[3])
			switch {
			case size > maxHello:
				return nil, fmt.Errorf("%w: %d bytes", errHello, size)
			case len(message) > size:
				return nil, fmt.Errorf("%w: more in its record", errHello)
			case len(message) == size:
				return parseHelloMessage(message[4:])
			}
		}
		// What is here of a header must be that of a record, or waiting is in vain.
		head := b[at:min(len(b), at+recordHeader)]
		if len(head) >= 1 && head[0] != 22 || len(head) >= 2 && head[1] != 3 {
			return nil, fmt.Errorf("%w: another record within", errHello)
		}
		if len(head) < recordHeader {
			return nil, more(at + recordHeader)
		}
		length := int(binary.BigEndian.Uint16(head[3:]))
		if length == 0 || length > maxRecord {
			return nil, fmt.Errorf("%w: record of %d bytes", errHello, length)
		}
		if at += recordHeader; len(b)-at < length {
			return nil, more(at + length)
		}
		message = append(message, b[at:at+length]...)
		at += length
	}
	return nil, fmt.Errorf("%w: in more than %d records", errHello, maxRecords)
}

// cursor reads a ClientHello's fields. After the first that is not there, ok is
// false.
type cursor struct {
	b  []byte
	ok bool
}

func (c *cursor) take(n int) []byte {
	if n > len(c.b) {
		c.b, c.ok = nil, false
		return nil
	}
	taken := c.b[:n]
	c.b = c.b[n:]
	return taken
}

func (c *cursor) number(bytes int) int {
	n := 0
	for _, b := range c.take(bytes) {
		n = n<<8 | int(b)
	}
	return n
}

// vector takes what a length of so many bytes stands before.
func (c *cursor) vector(lengthBytes int) *cursor {
	inner := c.take(c.number(lengthBytes))
	return &cursor{inner, c.ok}
}

// whole reports whether everything was there and nothing is left.
func (c *cursor) whole() bool { return c.ok && len(c.b) == 0 }

// parseHelloMessage reads RFC 8446, 4.1.2.
func parseHelloMessage(b []byte) (*clientHello, error) {
	c := &cursor{b, true}
	c.take(2 + 32) // version, random
	c.vector(1)    // session
	c.vector(2)    // cipher suites
	c.vector(1)    // compression methods
	hello := new(clientHello)
	if c.whole() {
		return hello, nil // before extensions were
	}
	extensions := c.vector(2)
	if !c.whole() {
		return nil, errHello
	}
	seen := make(map[int]bool)
	for len(extensions.b) > 0 {
		kind := extensions.number(2)
		body := extensions.vector(2)
		if !extensions.ok {
			return nil, errHello
		}
		if seen[kind] {
			return nil, fmt.Errorf("%w: extension %d twice", errHello, kind)
		}
		seen[kind] = true
		switch kind {
		case 0: // server_name, RFC 6066, 3
			list := body.vector(2)
			nameType := list.number(1)
			name := list.vector(2)
			if !body.whole() || !list.whole() || nameType != 0 || len(name.b) == 0 || len(name.b) > 255 {
				return nil, fmt.Errorf("%w: server name", errHello)
			}
			hello.serverName = string(name.b)
		case 16: // application_layer_protocol_negotiation, RFC 7301
			list := body.vector(2)
			for len(list.b) > 0 {
				protocol := list.vector(1)
				if !list.ok || len(protocol.b) == 0 {
					return nil, fmt.Errorf("%w: protocols", errHello)
				}
				hello.protocols = append(hello.protocols, string(protocol.b))
			}
			if !body.whole() || !list.ok || len(hello.protocols) == 0 {
				return nil, fmt.Errorf("%w: protocols", errHello)
			}
		case 0xfe0d: // encrypted_client_hello, RFC 9849
			hello.ech = true
		}
	}
	return hello, nil
}
