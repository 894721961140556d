//go:build linux

package main

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// What the host believes of the guest, and of its gateway.
var (
	guestMAC, gatewayMAC = []byte{0x52, 0x54, 0x00, 0x12, 0x34, 0x56}, []byte{0x52, 0x54, 0x00, 0x12, 0x34, 0x01}
	guestIP, gatewayIP   = []byte{192, 168, 100, 2}, []byte{192, 168, 100, 1}
	broadcast            = []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
)

func ioctl[T any](f *os.File, request uintptr, argument *T) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), request, uintptr(unsafe.Pointer(argument))); errno != 0 {
		return errno
	}
	return nil
}

// attackNetwork sends frames of all sorts as fast as it can.
func attackNetwork(duration time.Duration) error {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, 0)
	if err != nil {
		return err
	}
	socket := os.NewFile(uintptr(fd), "socket")
	request, err := unix.NewIfreq("eth0")
	if err != nil {
		return err
	}
	request.SetUint32(65535)
	mtu := unix.IoctlIfreq(fd, unix.SIOCSIFMTU, request)
	request.SetUint16(unix.IFF_UP)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, request); err != nil {
		return err
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFINDEX, request); err != nil {
		return err
	}
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Ifindex: int(request.Uint32()), Protocol: 0}); err != nil {
		return err
	}
	var frames [1024][]byte // made before, which takes longer than to send them
	for i := range frames {
		frames[i] = madeUp(i % 16)
	}
	sent, failed := 0, 0
	for end := time.Now().Add(duration); time.Now().Before(end); {
		for _, frame := range frames {
			if _, err := unix.Write(fd, frame); err != nil {
				failed++
			} else {
				sent++
			}
		}
	}
	fmt.Printf("%d frames sent, %d were too much for the driver, large ones: %v\n", sent, failed, mtu)
	return socket.Close()
}

func random(n int) []byte { return garbage(n) }

func ethernet(to, from []byte, kind uint16, payload []byte) []byte {
	b := append(append([]byte{}, to...), from...)
	return append(binary.BigEndian.AppendUint16(b, kind), payload...)
}

// packet is one of IPv4, from the guest's card.
func packet(from, to []byte, protocol byte, fragment uint16, payload []byte) []byte {
	h := []byte{0x45, 0}
	h = binary.BigEndian.AppendUint16(h, uint16(20+len(payload)))
	h = binary.BigEndian.AppendUint16(h, uint16(rand.Uint32())) // identification
	h = binary.BigEndian.AppendUint16(h, fragment)
	h = append(h, 64, protocol, 0, 0)
	h = append(append(h, from...), to...)
	sum := uint32(0)
	for i := 0; i < 20; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(h[i:]))
	}
	sum = sum&0xffff + sum>>16
	binary.BigEndian.PutUint16(h[10:], ^uint16(sum+sum>>16))
	return ethernet(gatewayMAC, guestMAC, 0x0800, append(h, payload...))
}

func segment(port uint16, flags byte) []byte {
	h := binary.BigEndian.AppendUint16(nil, uint16(rand.Uint32()))
	h = binary.BigEndian.AppendUint16(h, port)
	h = append(h, random(8)...)
	return append(h, 5<<4, flags, 0xff, 0xff, 0, 0, 0, 0)
}

func datagram(port uint16, payload []byte) []byte {
	h := binary.BigEndian.AppendUint16(nil, uint16(rand.Uint32()))
	h = binary.BigEndian.AppendUint16(h, port)
	h = binary.BigEndian.AppendUint16(h, uint16(8+len(payload)))
	return append(append(h, 0, 0), payload...)
}

func arp(op byte, mac, from, to []byte) []byte {
	b := append([]byte{0, 1, 8, 0, 6, 4, 0, op}, mac...)
	b = append(append(b, from...), broadcast...)
	return ethernet(broadcast, guestMAC, 0x0806, append(b, to...))
}

// madeUp is a frame, some of which a guest may send.
func madeUp(kind int) []byte {
	const moreFragments = 0x2000
	anywhere := append([]byte{byte(1 + rand.IntN(222))}, random(3)...)
	port := uint16(rand.Uint32())
	switch kind {
	case 0:
		return random(14 + rand.IntN(1500))
	case 1: // undersized
		return ethernet(gatewayMAC, guestMAC, 0x0800, nil)
	case 2: // oversized
		return packet(guestIP, anywhere, 17, 0, datagram(port, random(2000+rand.IntN(60_000))))
	case 3:
		return ethernet(gatewayMAC, random(6), 0x0800, random(60))
	case 4:
		return ethernet(random(6), guestMAC, 0x0800, random(60))
	case 5:
		return packet(random(4), anywhere, 6, 0, segment(port, 2))
	case 6:
		return packet(gatewayIP, guestIP, 6, 0, segment(port, 2))
	case 7: // says that it is the gateway
		return arp(2, guestMAC, gatewayIP, guestIP)
	case 8:
		return arp(1, random(6), random(4), random(4))
	case 9:
		return packet(guestIP, anywhere, 6, 0, segment(port, 2)) // SYN
	case 10:
		return packet(guestIP, anywhere, 6, 0, segment(port, byte(rand.Uint32())))
	case 11:
		return packet(guestIP, anywhere, 17, 0, datagram(port, random(100)))
	case 12:
		return packet(guestIP, gatewayIP, 17, 0, datagram(53, random(12+rand.IntN(500))))
	case 13: // never completed
		return packet(guestIP, anywhere, 17, moreFragments, random(1400))
	case 14:
		return packet(guestIP, gatewayIP, 1, 0, append([]byte{8, 0}, random(62)...))
	}
	return ethernet(gatewayMAC, guestMAC, uint16(rand.Uint32()), random(100))
}
