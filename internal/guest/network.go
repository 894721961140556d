//go:build linux

package guest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/matchlock/matchlock/internal/wire"
)

// prepareNetwork brings up the loopback and, where the machine has a link, eth0.
// Without one every destination is unreachable, said at once.
func prepareNetwork(p wire.Params) error {
	return withRTNetlink(func(rt *rtnetlink) error {
		loopback, err := interfaceIndex("lo")
		if err != nil {
			return err
		}
		rt.setUp(loopback, 0)
		if !hasLink(p) {
			rt.addUnreachable(loopback)
			return nil
		}
		if err := loadModules("/modules/later"); err != nil {
			return err
		}
		if _, err := waitFor(diskTimeout, func() (string, bool) {
			_, err = interfaceIndex("eth0")
			return "", err == nil
		}); err != nil {
			return fmt.Errorf("eth0: %w", err)
		}
		if err := offerNoIPv6(); err != nil {
			return err
		}
		return rt.setUpLink(linkOf(p))
	})
}

// offerNoIPv6 has the link, which is not up yet, and those to come go without: it is
// not served, and a second way out must not open by itself.
func offerNoIPv6() error {
	for _, link := range []string{"default", "eth0"} {
		err := os.WriteFile("/proc/sys/net/ipv6/conf/"+link+"/disable_ipv6", []byte("1"), 0)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

// changeNetwork gives eth0 another address than it was prepared with. Mostly it is
// the same, and nothing is left to do: the requests take a long time in a machine
// that begins as a copy.
func changeNetwork(prepared, p wire.Params) error {
	if !hasLink(p) || linkOf(prepared) == linkOf(p) {
		return nil
	}
	return withRTNetlink(func(rt *rtnetlink) error {
		eth0, err := interfaceIndex("eth0")
		if err != nil {
			return err
		}
		rt.removeAddress(eth0, prepared.Address) // and with the last one all routes
		return rt.setUpLink(linkOf(p))
	})
}

func hasLink(p wire.Params) bool { return !p.NoNetwork && p.Address.IsValid() }

// link is what eth0 is given.
type link struct {
	address netip.Prefix
	gateway netip.Addr
	mtu     int
}

func linkOf(p wire.Params) link { return link{p.Address, p.Gateway, p.MTU} }

func (rt *rtnetlink) setUpLink(l link) error {
	eth0, err := interfaceIndex("eth0")
	if err != nil {
		return err
	}
	rt.setUp(eth0, uint32(l.mtu))
	rt.addAddress(eth0, l.address)
	if l.gateway.IsValid() {
		rt.addDefaultRoute(eth0, l.gateway)
	}
	return nil
}

// withRTNetlink calls use, and returns its error or the first of rtnetlink's.
func withRTNetlink(use func(*rtnetlink) error) error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("rtnetlink: %w", err)
	}
	defer unix.Close(fd)
	rt := &rtnetlink{fd: fd}
	if err := use(rt); err != nil {
		return err
	}
	return rt.err
}

func interfaceIndex(name string) (uint32, error) {
	text, err := os.ReadFile("/sys/class/net/" + name + "/ifindex")
	if err != nil {
		return 0, err
	}
	index, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 32)
	return uint32(index), err
}

// rtnetlink speaks rtnetlink(7), one acknowledged request at a time. Its first
// error is kept, and nothing is asked after it.
type rtnetlink struct {
	fd  int
	err error
}

// setUp raises an interface; an MTU of 0 is left as it is.
func (rt *rtnetlink) setUp(index, mtu uint32) {
	header := asBytes(&unix.IfInfomsg{Index: int32(index), Flags: unix.IFF_UP, Change: unix.IFF_UP})
	var attrs []byte
	if mtu != 0 {
		attrs = attribute(attrs, unix.IFLA_MTU, binary.NativeEndian.AppendUint32(nil, mtu))
	}
	rt.request("link up", unix.RTM_NEWLINK, 0, header, attrs)
}

func (rt *rtnetlink) addAddress(index uint32, address netip.Prefix) {
	rt.address("address", unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_EXCL, index, address)
}

func (rt *rtnetlink) removeAddress(index uint32, address netip.Prefix) {
	rt.address("address, removed", unix.RTM_DELADDR, 0, index, address)
}

func (rt *rtnetlink) address(what string, kind, flags uint16, index uint32, address netip.Prefix) {
	header := asBytes(&unix.IfAddrmsg{Family: unix.AF_INET, Prefixlen: uint8(address.Bits()), Index: index})
	attrs := attribute(nil, unix.IFA_LOCAL, address.Addr().AsSlice())
	attrs = attribute(attrs, unix.IFA_ADDRESS, address.Addr().AsSlice())
	rt.request(what, kind, flags, header, attrs)
}

func (rt *rtnetlink) addDefaultRoute(index uint32, gateway netip.Addr) {
	header := asBytes(&unix.RtMsg{Family: unix.AF_INET, Table: unix.RT_TABLE_MAIN, Protocol: unix.RTPROT_BOOT, Type: unix.RTN_UNICAST})
	attrs := attribute(nil, unix.RTA_GATEWAY, gateway.AsSlice())
	attrs = attribute(attrs, unix.RTA_OIF, binary.NativeEndian.AppendUint32(nil, index))
	rt.request("default route", unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_EXCL, header, attrs)
}

func (rt *rtnetlink) addUnreachable(index uint32) {
	header := asBytes(&unix.RtMsg{Family: unix.AF_INET, Table: unix.RT_TABLE_MAIN, Protocol: unix.RTPROT_BOOT, Type: unix.RTN_UNREACHABLE})
	rt.request("unreachable default route", unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_EXCL, header, nil)
}

func (rt *rtnetlink) request(what string, kind, flags uint16, header, attrs []byte) {
	if rt.err != nil {
		return
	}
	if err := rt.exchange(kind, flags, append(header, attrs...)); err != nil {
		rt.err = fmt.Errorf("network: %s: %w", what, err)
	}
}

func (rt *rtnetlink) exchange(kind, flags uint16, body []byte) error {
	message := append(asBytes(&unix.NlMsghdr{
		Len:   uint32(unix.SizeofNlMsghdr + len(body)),
		Type:  kind,
		Flags: unix.NLM_F_REQUEST | unix.NLM_F_ACK | flags,
	}), body...)
	if err := unix.Sendto(rt.fd, message, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	answer := make([]byte, 4096)
	n, _, err := unix.Recvfrom(rt.fd, answer, 0)
	if err != nil {
		return err
	}
	if n < unix.SizeofNlMsghdr+4 || binary.NativeEndian.Uint16(answer[4:]) != unix.NLMSG_ERROR {
		return errors.New("rtnetlink: not an acknowledgement")
	}
	// The acknowledgement is an error number, negated; 0 is success.
	if errno := -int32(binary.NativeEndian.Uint32(answer[unix.SizeofNlMsghdr:])); errno != 0 {
		return unix.Errno(errno)
	}
	return nil
}

// attribute appends one attribute of rtnetlink(3), padded to four bytes.
func attribute(attrs []byte, kind uint16, value []byte) []byte {
	attrs = binary.NativeEndian.AppendUint16(attrs, uint16(unix.SizeofRtAttr+len(value)))
	attrs = binary.NativeEndian.AppendUint16(attrs, kind)
	attrs = append(attrs, value...)
	for len(attrs)%4 != 0 {
		attrs = append(attrs, 0)
	}
	return attrs
}

// asBytes copies a kernel structure without pointers.
func asBytes[T any](structure *T) []byte {
	return append([]byte(nil), unsafe.Slice((*byte)(unsafe.Pointer(structure)), unsafe.Sizeof(*structure))...)
}
