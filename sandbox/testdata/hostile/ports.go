//go:build linux

package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/matchlock/matchlock/api"
	"github.com/matchlock/matchlock/internal/agent"
	"github.com/matchlock/matchlock/internal/wire"
)

// orders is a FIFO, and obeyed a file that is there when the last one is.
const (
	orders = "/orders"
	obeyed = "/obeyed"
)

// give gives an order, and returns when it is obeyed.
func give(order string) error {
	os.Remove(obeyed)
	if err := os.WriteFile(orders, []byte(order+"\n"), 0); err != nil {
		return err
	}
	for range 200 {
		if _, err := os.Stat(obeyed); err == nil {
			return nil
		}
		time.Sleep(10 * time.Millisecond)
	}
	return errors.New("nobody obeys")
}

// guest is PID 1's: a guest as any other, until it is ordered something.
type guest struct {
	server        *agent.Server
	control, data *port
	silent        atomic.Bool
	streams       atomic.Value // "", or what becomes of those that the host opens
}

// What the host asks for is done, and is nothing.
func (g *guest) Prepared() bool                   { return true }
func (g *guest) IsSetUp() bool                    { return false }
func (g *guest) Prepare(*agent.Preparation) error { return nil }
func (g *guest) Renew(*agent.Setup) error         { return nil }
func (g *guest) Boot(b *api.BootData) error       { return g.harm(b.Env["HOSTILE"]) }
func (g *guest) SetClock(time.Time) error         { return nil }
func (g *guest) Freeze() error                    { return nil }
func (g *guest) Thaw(time.Time) error             { return nil }
func (g *guest) Reset(uint64) error               { return nil }
func (g *guest) PowerOff() error                  { return errors.New("no") }
func (g *guest) Setup(*agent.Setup) error         { return nil }

// obey takes orders.
func (g *guest) obey() {
	for {
		text, err := os.ReadFile(orders)
		if err != nil {
			fmt.Println("orders:", err)
			return
		}
		for harm := range strings.Lines(string(text)) {
			if err := g.harm(strings.TrimSpace(harm)); err != nil {
				fmt.Println("order:", err)
			}
			os.WriteFile(obeyed, nil, 0o600)
		}
	}
}

// harm begins what it is told.
func (g *guest) harm(order string) error {
	switch order {
	case "":
	case "silent": // reads nothing and says nothing, on any port
		go func() {
			time.Sleep(200 * time.Millisecond) // the present answer is given
			g.silent.Store(true)
		}()
	case "reset", "refuse", "deaf", "late": // for a while
		g.streams.Store(order)
		time.AfterFunc(2*time.Second, func() { g.streams.Store("") })
	case "data-valid": // frames that mean nothing
		go flood(g.data, 2*time.Second, repeated(256, frame(kindGrant, 1, 0, 0, 0, 0)))
	case "data-half":
		go g.data.half(frame(kindData, 1, make([]byte, 30_000)...)[:100])
	case "data-garbage":
		go flood(g.data, time.Minute, garbage(32<<10))
	case "data-length":
		go flood(g.data, time.Minute, append(binary.BigEndian.AppendUint32([]byte{kindData, 0, 0, 0, 1}, 1<<32-1), make([]byte, 1024)...))
	case "data-streams":
		go func() {
			for i := range uint32(100_000) {
				if _, err := g.data.Write(frame(kindOpen, 1_000_000+i, 0, 0, 0, 1, 0, 1, 0, 0)); err != nil {
					return
				}
			}
		}()
	case "control-garbage": // and packets of nothing
		go flood(g.control, time.Minute, append(garbage(32<<10), repeated(32<<10, []byte{0xc0})...))
	default:
		return errors.New("no such harm")
	}
	return nil
}

// serveStreams is the agent's Serve, unless other orders were given.
func (g *guest) serveStreams() {
	g.streams.Store("")
	mux := wire.AwaitHost(g.data, 0)
	for {
		in, err := mux.Accept()
		if err != nil {
			fmt.Println("streams:", err)
			return
		}
		switch g.streams.Load() {
		case "reset":
			go in.Accept().Reset()
		case "refuse":
			in.Refuse("because\x1b[2J\n")
		case "deaf":
			in.Accept()
		case "late":
			time.AfterFunc(3*time.Second, func() { g.server.ServeConn(in.Accept()) })
		default:
			go g.server.ServeConn(in.Accept())
		}
	}
}

// The frames of internal/wire.
const (
	kindOpen  = 1
	kindData  = 3
	kindGrant = 4
)

func frame(kind byte, id uint32, payload ...byte) []byte {
	b := binary.BigEndian.AppendUint32([]byte{kind}, id)
	b = binary.BigEndian.AppendUint32(b, uint32(len(payload)))
	return append(b, payload...)
}

func repeated(n int, b []byte) []byte { return []byte(strings.Repeat(string(b), n)) }

func garbage(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rand.Uint32())
	}
	return b
}

// flood writes the same again and again.
func flood(w io.Writer, duration time.Duration, b []byte) {
	for end := time.Now().Add(duration); time.Now().Before(end); {
		if _, err := w.Write(b); err != nil {
			return
		}
	}
}

// port is a port to the host.
type port struct {
	file    *os.File
	silent  *atomic.Bool
	writing sync.Mutex
}

func openPort(name string, silent *atomic.Bool) (*port, error) {
	for range 1000 {
		names, _ := filepath.Glob("/sys/class/virtio-ports/*/name")
		for _, path := range names {
			if text, err := os.ReadFile(path); err == nil && strings.TrimSpace(string(text)) == name {
				file, err := os.OpenFile("/dev/"+filepath.Base(filepath.Dir(path)), os.O_RDWR, 0)
				return &port{file: file, silent: silent}, err
			}
		}
		time.Sleep(10 * time.Millisecond)
	}
	return nil, fmt.Errorf("no port %s", name)
}

func (p *port) stop() {
	for p.silent.Load() {
		time.Sleep(time.Hour)
	}
}

// Read takes a host that is not connected for one that says nothing.
func (p *port) Read(b []byte) (int, error) {
	for {
		p.stop()
		n, err := p.file.Read(b)
		p.stop()
		if n > 0 || err != io.EOF {
			return n, err
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func (p *port) Write(b []byte) (int, error) {
	p.stop()
	p.writing.Lock()
	defer p.writing.Unlock()
	return p.file.Write(b)
}

// half writes b, and nothing is written after it.
func (p *port) half(b []byte) {
	p.writing.Lock()
	p.file.Write(b)
}

func (p *port) Close() error { return p.file.Close() }
