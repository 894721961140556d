package netstack_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"runtime"
	"testing"

	"github.com/matchlock/matchlock/internal/netstack"
)

var mtus = []int{1500, 65520}

const transfer = 64 << 20

// BenchmarkDownload is one connection by which the guest takes 64 MiB.
func BenchmarkDownload(b *testing.B) {
	for _, mtu := range mtus {
		b.Run(fmt.Sprint("mtu=", mtu), func(b *testing.B) {
			chunk := make([]byte, 128<<10)
			_, guest := start(b, netstack.Config{MTU: mtu}, netstack.Handler{TCP: func(_ context.Context, f *netstack.TCPFlow) {
				conn, err := f.Accept()
				if err != nil {
					return
				}
				defer conn.Close()
				for range transfer / len(chunk) {
					if _, err := conn.Write(chunk); err != nil {
						return
					}
				}
			}})
			b.SetBytes(transfer)
			for b.Loop() {
				conn, err := guest.DialTCP(b.Context(), far)
				if err != nil {
					b.Fatal(err)
				}
				if n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, conn, make([]byte, 128<<10)); n != transfer {
					b.Fatalf("%d bytes, %v", n, err)
				}
				conn.Close()
			}
		})
	}
}

// BenchmarkUpload is the other way round.
func BenchmarkUpload(b *testing.B) {
	for _, mtu := range mtus {
		b.Run(fmt.Sprint("mtu=", mtu), func(b *testing.B) {
			_, guest := start(b, netstack.Config{MTU: mtu}, netstack.Handler{TCP: func(_ context.Context, f *netstack.TCPFlow) {
				conn, err := f.Accept()
				if err != nil {
					return
				}
				defer conn.Close()
				io.CopyBuffer(struct{ io.Writer }{io.Discard}, conn, make([]byte, 128<<10))
				conn.Write([]byte{1})
			}})
			chunk := make([]byte, 128<<10)
			b.SetBytes(transfer)
			for b.Loop() {
				conn, err := guest.DialTCP(b.Context(), far)
				if err != nil {
					b.Fatal(err)
				}
				for range transfer / len(chunk) {
					if _, err := conn.Write(chunk); err != nil {
						b.Fatal(err)
					}
				}
				conn.CloseWrite()
				if _, err := conn.Read(make([]byte, 1)); err != nil {
					b.Fatal(err)
				}
				conn.Close()
			}
		})
	}
}

// BenchmarkConnect is a connection that is accepted, and closed by the guest.
func BenchmarkConnect(b *testing.B) {
	_, guest := start(b, netstack.Config{}, netstack.Handler{TCP: echo})
	for b.Loop() {
		conn, err := guest.DialTCP(b.Context(), far)
		if err != nil {
			b.Fatal(err)
		}
		conn.CloseWrite()
		io.Copy(io.Discard, conn)
		conn.Close()
	}
}

// BenchmarkIdle has a thousand connections open, and reports what one costs at
// both ends, the handler's goroutine included.
func BenchmarkIdle(b *testing.B) {
	const count = 1000
	_, guest := start(b, netstack.Config{}, netstack.Handler{TCP: echo})
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	for b.Loop() {
		conns := make([]net.Conn, count)
		for i := range conns {
			conn, err := guest.DialTCP(b.Context(), far)
			if err != nil {
				b.Fatal(err)
			}
			conns[i] = conn
		}
		runtime.GC()
		runtime.ReadMemStats(&after)
		b.ReportMetric(float64(after.HeapAlloc+after.StackInuse-before.HeapAlloc-before.StackInuse)/count, "B/conn")
		for _, conn := range conns {
			conn.Close()
		}
	}
}
