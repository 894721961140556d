//go:build linux

package main

import (
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"time"

	"github.com/matchlock/matchlock/internal/wire"
)

// attackFiles speaks for a kernel and its relay.
func attackFiles(duration time.Duration) error {
	p, err := openPort(wire.FilesPortName, new(atomic.Bool))
	if err != nil {
		return err
	}
	n := binary.NativeEndian
	hello := n.AppendUint64(nil, 0x6d61_7463_6866_7331)
	hello = n.AppendUint64(hello, 1<<40) // where slots are said to be, and no memory is
	hello = n.AppendUint64(hello, ^uint64(0)-100)
	hello = append(hello, make([]byte, 16+8)...)
	if _, err := p.Write(hello); err != nil {
		return err
	}
	// The root's folders are the mounts.
	if _, err := p.Write(request(opLookup, 1, []byte("0\x00"))); err != nil {
		return err
	}
	found := make([]byte, 16+16+128)
	if _, err := io.ReadFull(p, found); err != nil {
		return err
	}
	folder := n.Uint64(found[32:])
	verdicts := map[int32]int{} // by the number of the error, 0 for none
	var deaf atomic.Bool
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		b := make([]byte, 2<<20)
		for !deaf.Load() {
			head := b[:16]
			if _, err := io.ReadFull(p, head); err != nil {
				return
			}
			answer := b[:min(int(n.Uint32(head)), len(b))]
			if _, err := io.ReadFull(p, answer); err != nil {
				return
			}
			if len(answer) >= 8 {
				verdicts[-int32(n.Uint32(answer[4:]))]++
			}
		}
	}()
	asked := 0
	for end := time.Now().Add(duration); time.Now().Before(end); asked++ {
		if _, err := p.Write(forged(uint64(asked), folder)); err != nil {
			return err
		}
	}

	// Now without reading any answer, until that is too much for the host.
	deaf.Store(true)
	p.Write(request(opGetattr, 1, make([]byte, 16))) // for the last one to be read
	<-ended
	fmt.Println(asked, "requests; answers by errors:", verdicts)
	stuck := make(chan struct{})
	go func() {
		for range 200_000 {
			p.Write(request(opGetattr, 1, make([]byte, 16)))
		}
		close(stuck)
	}()
	select {
	case <-stuck:
		fmt.Println("it takes all without having its answers read")
	case <-time.After(duration):
	}
	return nil
}

const (
	opLookup  = 1
	opForget  = 2
	opGetattr = 3
	opSymlink = 6
	opMknod   = 8
	opMkdir   = 9
	opRename2 = 45
	opOpen    = 14
	opRead    = 15
	opWrite   = 16
	opReaddir = 28
	opCreate  = 35
)

// request is a message in a frame of its own.
func request(op uint32, node uint64, body []byte) []byte {
	n := binary.NativeEndian
	length := uint32(40 + len(body))
	b := make([]byte, 0, 16+length)
	for _, v := range []uint32{length, 0, 0, 0, length, op} { // the frame's head, and the message's
		b = n.AppendUint32(b, v)
	}
	b = n.AppendUint64(b, rand.Uint64())
	b = n.AppendUint64(b, node)
	return append(append(b, make([]byte, 16)...), body...)
}

// forged is a request that no kernel makes, or none in its right mind.
func forged(i, folder uint64) []byte {
	names := []string{"..", "../canary", "/etc/passwd", "a/../../canary", ".", "", "link", fmt.Sprint("f", i%20_000), strings.Repeat("n", 300), strings.Repeat("n", 255)}
	name := append([]byte(names[rand.IntN(len(names))]), 0)
	node := uint64(rand.IntN(50))
	if rand.IntN(4) == 0 {
		node = rand.Uint64()
	}
	fields := func(v ...uint32) (b []byte) {
		for _, v := range v {
			b = binary.NativeEndian.AppendUint32(b, v)
		}
		return b
	}
	const set = 0o6777 // set-uid and set-gid
	switch i % 14 {
	case 0:
		return request(opLookup, folder, name)
	case 1:
		return request(opLookup, node, name)
	case 2:
		return request(opForget, max(node, folder+1), fields(^uint32(0), ^uint32(0)))
	case 3:
		return request(opSymlink, folder, append(append([]byte("link"), 0), "../canary\x00"...))
	case 4: // a device
		return request(opMknod, folder, append(fields(0o060000|set, 0x801, 0, 0), name...))
	case 5:
		return request(opMkdir, folder, append(fields(set, 0), name...))
	case 6:
		return request(opRename2, folder, append(append(fields(uint32(folder), 0, rand.Uint32N(8), 0), name...), "../moved\x00"...))
	case 7:
		return request(opOpen, node, fields(rand.Uint32N(4), 0))
	case 8:
		return request(opRead, node, fields(0, 0, rand.Uint32(), rand.Uint32(), ^uint32(0), 0, 0, 0, 0, 0))
	case 9: // says that it brings more than it does
		return request(opWrite, node, append(fields(0, 0, 0, 0x7fff_ffff, ^uint32(0), 0, 0, 0, 0, 0), "hostile"...))
	case 10:
		return request(opReaddir, folder, fields(0, 0, rand.Uint32(), rand.Uint32(), ^uint32(0), 0, 0, 0, 0, 0))
	case 11, 12: // opened, and never closed
		return request(opCreate, folder, append(fields(2, 0o100000|set, 0, 0), fmt.Sprintf("f%d\x00", i%20_000)...))
	}
	return request(rand.Uint32N(60), node, garbage(rand.IntN(200)))
}
