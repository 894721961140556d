package intercept

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	"gvisor.dev/gvisor/pkg/tcpip"
)

func (v *visit) raw(port uint16, banner string) error {
	c, err := v.dial(v.ctx, "raw.test", port)
	if err != nil {
		return err
	}
	said := make([]byte, len(banner))
	if _, err := io.ReadFull(c, said); err != nil {
		return err
	}
	if string(said) != banner {
		v.Errorf("the server says %q", said)
	}
	for range 1 + v.IntN(4) {
		text := append([]byte{1}, v.text(1<<v.IntN(14))...)
		if _, err := c.Write(text); err != nil {
			return err
		}
		got := make([]byte, len(text))
		if _, err := io.ReadFull(c, got); err != nil {
			return err
		}
		if !bytes.Equal(got, text) {
			v.Errorf("raw: other bytes come back")
		}
	}
	return nil
}

// halfClosed says all, and is answered.
func (v *visit) halfClosed() error {
	c, err := v.dial(v.ctx, "raw.test", 7001)
	if err != nil {
		return err
	}
	text := append([]byte{1}, v.text(1<<v.IntN(18))...)
	if _, err := c.Write(text); err != nil {
		return err
	}
	if err := closeWrite(c); err != nil {
		return err
	}
	got, err := io.ReadAll(c)
	if err == nil && string(got) != fmt.Sprint(len(text)) {
		err = fmt.Errorf("%q of %d bytes come to the server", got, len(text)) // it may have been cut there
	}
	return err
}

func (v *visit) readAll(port uint16, want string) error {
	c, err := v.dial(v.ctx, "raw.test", port)
	if err != nil {
		return err
	}
	got, err := io.ReadAll(c)
	if err == nil && string(got) != want {
		err = fmt.Errorf("got %q", got)
	}
	return err
}

func (v *visit) udp(address netip.AddrPort) (net.Conn, error) {
	c, err := v.guest.DialUDP(address)
	if err != nil {
		return nil, err
	}
	v.conns.Lock()
	defer v.conns.Unlock()
	v.conns.all = append(v.conns.all, c)
	deadline, _ := v.ctx.Deadline()
	c.SetDeadline(deadline)
	return c, nil
}

func (v *visit) datagram(port uint16, silent bool) error {
	addr, err := v.address(v.ctx, "udp.test")
	if err != nil {
		return err
	}
	c, err := v.udp(netip.AddrPortFrom(addr, port))
	if err != nil {
		return err
	}
	b := make([]byte, 2000)
	for range 1 + v.IntN(4) {
		text := v.text(1 + v.IntN(1400))
		if _, err := c.Write(text); err != nil {
			return err
		}
		if silent {
			continue
		}
		n, err := c.Read(b)
		if err != nil {
			return err
		}
		if !bytes.Equal(b[:n], text) {
			v.Errorf("udp: %d bytes come back, and not the %d that were sent", n, len(text))
		}
	}
	return nil
}

// quic is refused where it would be allowed.
func (v *visit) quic() error {
	addr, err := v.address(v.ctx, "udp.test")
	if err != nil {
		return err
	}
	c, err := v.udp(netip.AddrPortFrom(addr, 443))
	if err != nil {
		return err
	}
	// gonet's Read does not wake up by an error.
	for ; err == nil && v.ctx.Err() == nil; wait(v.ctx, 20*time.Millisecond) {
		_, err = c.Write(v.text(1200))
	}
	return refusedIs(err)
}

func refusedIs(err error) error {
	if err != nil && strings.Contains(err.Error(), (&tcpip.ErrConnectionRefused{}).String()) || errors.Is(err, syscall.ECONNREFUSED) {
		return nil
	}
	return fmt.Errorf("not refused: %w", err)
}

func (v *visit) refusedBy(address netip.AddrPort) error {
	c, err := v.guest.DialTCP(v.ctx, address)
	if err == nil {
		c.Close()
		v.Errorf("%v lets the guest in", address)
		return nil
	}
	return refusedIs(err)
}

func (v *visit) refusedByName(name string, port uint16) error {
	addr, err := v.address(v.ctx, name)
	if err != nil {
		return err
	}
	return v.refusedBy(netip.AddrPortFrom(addr, port))
}

var soakDNS = netip.MustParseAddrPort("192.168.100.1:53")

// exchange asks by UDP, again if nothing comes.
func (v *visit) exchange(ctx context.Context, name string, kind dnsmessage.Type) (*dnsmessage.Message, error) {
	c, err := v.udp(soakDNS)
	if err != nil {
		return nil, err
	}
	b := make([]byte, 4096)
	query := v.message(name, kind)
	for ctx.Err() == nil {
		if _, err := c.Write(query); err != nil {
			return nil, err
		}
		c.SetReadDeadline(time.Now().Add(time.Second))
		n, err := c.Read(b)
		if err != nil {
			continue
		}
		m := new(dnsmessage.Message)
		if err := m.Unpack(b[:n]); err != nil {
			v.Errorf("%s: an answer of which this is so: %v", name, err)
			return nil, errors.New("no answer")
		}
		if m.ID == binary.BigEndian.Uint16(query) { // else it is to a visit that had this port before
			return m, nil
		}
	}
	return nil, ctx.Err()
}

func (v *visit) message(name string, kind dnsmessage.Type) []byte {
	m := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: uint16(v.IntN(1 << 16)), RecursionDesired: true},
		Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName(name + "."), Type: kind, Class: dnsmessage.ClassINET}},
	}
	b, err := m.Pack()
	if err != nil {
		panic(err)
	}
	return b
}

func (v *visit) query(name string, kind dnsmessage.Type, want dnsmessage.RCode) error {
	m, err := v.exchange(v.ctx, name, kind)
	if err != nil {
		return err
	}
	if m.RCode != want { // a rule may be away
		return fmt.Errorf("%v", m.RCode)
	}
	return nil
}

func (v *visit) queryTCP() error {
	t, err := v.guest.DialTCP(v.ctx, soakDNS)
	if err != nil {
		return err
	}
	c := v.keep(t)
	for range 1 + v.IntN(5) {
		query := v.message("plain.test", dnsmessage.TypeA)
		if _, err := c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(query))), query...)); err != nil {
			return err
		}
		var size [2]byte
		if _, err := io.ReadFull(c, size[:]); err != nil {
			return err
		}
		if _, err := io.ReadFull(c, make([]byte, binary.BigEndian.Uint16(size[:]))); err != nil {
			return err
		}
	}
	return nil
}

func (v *visit) garbage() error {
	c, err := v.udp(soakDNS)
	if err != nil {
		return err
	}
	for range 1 + v.IntN(20) {
		query := v.message("plain.test", dnsmessage.TypeA)
		for range v.IntN(8) {
			query[v.IntN(len(query))] = byte(v.IntN(256))
		}
		if _, err := c.Write(query[:1+v.IntN(len(query))]); err != nil {
			return err
		}
	}
	return nil
}
