package wire

import (
	"bufio"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
)

// Packets are for a byte stream whose two ends do not start at the same time:
// a host may take over a port on which its predecessor has written, and the
// guest read, half of something. So a packet's beginning can be found anywhere
// in the stream, as in SLIP (RFC 1055): it starts and ends with packetEnd, which
// does not occur inside, and carries a checksum. What is no whole packet is
// passed over.
const (
	packetEnd        = 0xC0
	packetEscape     = 0xDB
	packetEscapedEnd = 0xDC // follows packetEscape
	packetEscapedEsc = 0xDD // likewise
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// WritePacket writes one packet by one Write.
func WritePacket(w io.Writer, payload []byte) error {
	packet := make([]byte, 0, len(payload)+len(payload)/8+16)
	packet = append(packet, packetEnd)
	packet = appendEscaped(packet, payload)
	packet = appendEscaped(packet, binary.BigEndian.AppendUint32(nil, crc32.Checksum(payload, castagnoli)))
	packet = append(packet, packetEnd)
	_, err := w.Write(packet)
	return err
}

func appendEscaped(packet, p []byte) []byte {
	for _, b := range p {
		switch b {
		case packetEnd:
			packet = append(packet, packetEscape, packetEscapedEnd)
		case packetEscape:
			packet = append(packet, packetEscape, packetEscapedEsc)
		default:
			packet = append(packet, b)
		}
	}
	return packet
}

// A PacketReader finds packets in a stream, for one goroutine at a time.
type PacketReader struct {
	r   *bufio.Reader
	buf []byte
}

// NewPacketReader returns a reader of the packets in r.
func NewPacketReader(r io.Reader) *PacketReader {
	return &PacketReader{r: bufio.NewReader(r)}
}

var errNoPacket = errors.New("no packet among the bytes of the peer")

// Next returns the payload, of at most limit bytes, of the next packet, valid
// until the next call. A larger packet is passed over like a damaged one; after
// more than waste such bytes it gives up. After any error Next may be called again.
func (p *PacketReader) Next(limit, waste int) ([]byte, error) {
	for {
		size, err := p.fill(limit+crc32.Size, max(waste, 0))
		if err != nil {
			return nil, err
		}
		if payload, ok := p.payload(size); ok {
			return payload, nil
		}
		if waste -= max(size, 1); waste < -1 { // the packet's own beginning is one of nothing
			return nil, errNoPacket
		}
	}
}

// fill reads to the next packetEnd: at most room bytes into p.buf, unescaped. It
// returns how many there were.
func (p *PacketReader) fill(room, waste int) (size int, err error) {
	p.buf = p.buf[:0]
	escaped := false
	for {
		b, err := p.r.ReadByte()
		if err != nil {
			return 0, err
		}
		if b == packetEnd {
			if escaped {
				size++ // cut off: what there is must not look whole
			}
			return size, nil
		}
		if size++; size > room+waste {
			return 0, errNoPacket
		}
		switch {
		case escaped && b == packetEscapedEnd:
			b = packetEnd
		case escaped && b == packetEscapedEsc:
			b = packetEscape
		case b == packetEscape:
			escaped = true
			size-- // counted with the next
			continue
		}
		escaped = false
		if len(p.buf) < room {
			p.buf = append(p.buf, b)
		}
	}
}

// payload checks what fill has read.
func (p *PacketReader) payload(size int) ([]byte, bool) {
	if size != len(p.buf) || size < crc32.Size {
		return nil, false
	}
	payload, sum := p.buf[:size-crc32.Size], p.buf[size-crc32.Size:]
	return payload, crc32.Checksum(payload, castagnoli) == binary.BigEndian.Uint32(sum)
}
