package agent

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/matchlock/matchlock/api"
	"github.com/matchlock/matchlock/internal/wire"
)

// The control port carries one request and its answer at a time, as packets.
// A request is its kind (1), a number (8) and a body; the answer is that number,
// whether it went well (1), and a body: of a hello what Hello has, of a failure
// its text. An answer with another number belongs to a request that nobody waits for
// any more.
const (
	controlHello = iota + 1
	controlPrepare
	controlSetup
	controlBoot
	controlClock
	controlReset
	controlPowerOff
	controlFreeze
	controlThaw
	controlRenew
)

const (
	maxControl = wire.MaxRequest // of a request
	maxAnswer  = 2 * maxMessage
	maxStale   = 1 << 20 // bytes that the host passes over before an answer
	maxList    = 4096    // hosts, limits and the like
	maxText    = 64 << 10

	// MaxRoots bounds Preparation.Roots, in bytes.
	MaxRoots = 1 << 20

	headerBytes = 9
)

// Hello is what a guest says of itself.
type Hello struct {
	Version  uint32 // wire.Version, as the guest has it
	Prepared bool   // Prepare has been called, maybe in the machine that this one is a copy of
	SetUp    bool   // so has Setup: it is to be made another by Renew
}

// Preparation is what all machines of a shape have in common, so that one of
// them can be prepared for all.
type Preparation struct {
	Params string // wire.Params in text form: the root, the share of processors, the privileges count
	Time   time.Time
	// Roots are certificates, in PEM, for an image that trusts nobody. Wanted where
	// a CA is to be added to them.
	Roots []byte
}

// Bundles are the files in which distributions have the certificates that they trust.
// The first one is made where an image has none.
func Bundles() []string {
	return []string{
		"/etc/ssl/certs/ca-certificates.crt",                // Debian, Alpine, Arch
		"/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem", // Fedora and its like
		"/etc/pki/tls/certs/ca-bundle.crt",                  // their older releases
		"/etc/ssl/ca-bundle.pem",                            // SUSE
		"/etc/ssl/cert.pem",                                 // what BSDs and libressl read
	}
}

func (p *Preparation) encode() []byte {
	var e wire.Encoder
	e.String(p.Params)
	encodeTime(&e, p.Time)
	e.Blob(p.Roots)
	return e.Encoded()
}

func decodePreparation(d *wire.Decoder) *Preparation {
	return &Preparation{Params: d.String(maxText), Time: decodeTime(d), Roots: optionalBlob(d, MaxRoots)}
}

// Setup is what a machine's configuration implies for its guest and, in a copy
// of a machine, everything that must not be what it was in the other.
type Setup struct {
	Hostname string
	Params   string // wire.Params in text form; empty: but for the name as in the Preparation
	Time     time.Time
	Entropy  []byte
	// MachineID is 32 hexadecimal digits, as machine-id(5) has it.
	MachineID string
	BootID    string // a UUID
	Env       map[string]string
	Hosts     []api.HostIPMapping
	Boot      *api.BootData // as Boot hands it over, in the same request; nil: that comes later, or not at all
}

func (s *Setup) encode() []byte {
	var e wire.Encoder
	e.String(s.Hostname)
	e.String(s.Params)
	encodeTime(&e, s.Time)
	e.Blob(s.Entropy)
	e.String(s.MachineID)
	e.String(s.BootID)
	e.Map(s.Env)
	encodeHosts(&e, s.Hosts)
	e.Bool(s.Boot != nil)
	if s.Boot != nil {
		encodeBoot(&e, s.Boot)
	}
	return e.Encoded()
}

func decodeSetup(d *wire.Decoder) *Setup {
	s := &Setup{
		Hostname:  d.String(maxName),
		Params:    d.String(maxText),
		Time:      decodeTime(d),
		Entropy:   d.Blob(maxText),
		MachineID: d.String(maxName),
		BootID:    d.String(maxName),
		Env:       d.Map(maxEnv),
		Hosts:     decodeHosts(d),
	}
	if d.Bool() {
		s.Boot = decodeBoot(d)
	}
	return s
}

func encodeBoot(e *wire.Encoder, b *api.BootData) {
	e.Map(b.Env)
	encodeHosts(e, b.Hosts)
	e.Blob(b.CA)
	e.Strings(b.Confinement.CapAdd)
	e.Strings(b.Confinement.CapDrop)
	e.Bool(b.Confinement.AllowSetuid)
	e.Uvarint(uint64(len(b.Mounts)))
	for _, m := range b.Mounts {
		e.String(m.Path)
		e.Bool(m.Root)
		e.Bool(m.File)
		e.Bool(m.ReadOnly)
	}
	e.String(b.User)
	e.Bool(b.ReadOnlyRoot)
	e.Uvarint(uint64(len(b.Tmpfs)))
	for _, t := range b.Tmpfs {
		e.String(t.Path)
		e.Varint(t.Size)
	}
	e.Strings(b.Sockets)
	e.Varint(b.ShmSize)
	e.Uvarint(uint64(len(b.Ulimits)))
	for _, u := range b.Ulimits {
		e.String(u.Name)
		e.Uint64(u.Soft)
		e.Uint64(u.Hard)
	}
}

func decodeBoot(d *wire.Decoder) *api.BootData {
	b := &api.BootData{Env: d.Map(maxEnv), Hosts: decodeHosts(d), CA: optionalBlob(d, maxText)}
	b.Confinement.CapAdd = d.Strings(maxList)
	b.Confinement.CapDrop = d.Strings(maxList)
	b.Confinement.AllowSetuid = d.Bool()
	for range d.Count(maxList) {
		b.Mounts = append(b.Mounts, api.GuestMount{Path: d.String(maxPath), Root: d.Bool(), File: d.Bool(), ReadOnly: d.Bool()})
	}
	b.User = d.String(maxName)
	b.ReadOnlyRoot = d.Bool()
	for range d.Count(maxList) {
		b.Tmpfs = append(b.Tmpfs, api.Tmpfs{Path: d.String(maxPath), Size: d.Varint()})
	}
	b.Sockets = d.Strings(api.MaxSockets)
	b.ShmSize = d.Varint()
	for range d.Count(maxList) {
		b.Ulimits = append(b.Ulimits, api.Ulimit{Name: d.String(maxName), Soft: d.Uint64(), Hard: d.Uint64()})
	}
	return b
}

// optionalBlob is nil for one that is empty.
func optionalBlob(d *wire.Decoder, limit int) []byte {
	if blob := d.Blob(limit); len(blob) > 0 {
		return blob
	}
	return nil
}

func encodeHosts(e *wire.Encoder, hosts []api.HostIPMapping) {
	e.Uvarint(uint64(len(hosts)))
	for _, h := range hosts {
		e.String(h.Host)
		e.String(h.IP)
	}
}

func decodeHosts(d *wire.Decoder) (hosts []api.HostIPMapping) {
	for range d.Count(maxList) {
		hosts = append(hosts, api.HostIPMapping{Host: d.String(maxName), IP: d.String(maxName)})
	}
	return hosts
}

func encodeTime(e *wire.Encoder, t time.Time) {
	e.Varint(t.Unix())
	e.Uint32(uint32(t.Nanosecond()))
}

func decodeTime(d *wire.Decoder) time.Time {
	seconds, nanoseconds := d.Varint(), d.Uint32()
	if nanoseconds >= 1e9 {
		d.Fail(errors.New("impossible time"))
	}
	return time.Unix(seconds, int64(nanoseconds))
}

// Control is the host's end of the control port. Its methods may be called by
// several goroutines at once; they take turns. Each waits as long as its
// context lasts: a guest may never answer. After a request that was given up the
// next one works.
type Control struct {
	conn net.Conn
	in   *wire.PacketReader
	turn chan struct{} // holds one value while a request is under way
	next uint64        // the number of the next request
}

// NewControl returns the host's end. It takes over conn, which must be a socket
// or the like that holds an answer while nobody reads it: after a request that
// was given up, the guest may be writing when the next one is written.
func NewControl(conn net.Conn) *Control {
	var number [8]byte
	rand.Read(number[:]) // an answer to a former host's request must not fit
	return &Control{
		conn: conn,
		in:   wire.NewPacketReader(conn),
		turn: make(chan struct{}, 1),
		next: binary.BigEndian.Uint64(number[:]),
	}
}

// Close closes the connection. A request under way fails.
func (c *Control) Close() error { return c.conn.Close() }

// Hello asks the guest who it is. A guest that is still booting answers later.
func (c *Control) Hello(ctx context.Context) (Hello, error) {
	answer, err := c.call(ctx, controlHello, nil)
	if err != nil {
		return Hello{}, err
	}
	d := wire.NewDecoder(answer)
	hello := Hello{Version: d.Uint32(), Prepared: d.Bool(), SetUp: d.Bool()}
	return hello, d.Done()
}

// Prepare has the guest do what is the same in all machines of a shape. It is
// called once, before Setup; between the two the machine may be copied.
func (c *Control) Prepare(ctx context.Context, p Preparation) error {
	_, err := c.call(ctx, controlPrepare, p.encode())
	return err
}

// Setup makes the guest what the machine's configuration says.
func (c *Control) Setup(ctx context.Context, s Setup) error {
	_, err := c.call(ctx, controlSetup, s.encode())
	return err
}

// Renew makes a guest that is a copy of one that was set up another: what two
// machines must not share it gets anew. User code in it must stand still: see
// Freeze. Of the Setup name, time, entropy and machine id count.
func (c *Control) Renew(ctx context.Context, s Setup) error {
	_, err := c.call(ctx, controlRenew, s.encode())
	return err
}

// Freeze has all user code stand still. When it returns nothing of it runs.
func (c *Control) Freeze(ctx context.Context) error {
	_, err := c.call(ctx, controlFreeze, nil)
	return err
}

// Thaw sets the clock and has user code go on.
func (c *Control) Thaw(ctx context.Context, t time.Time) error {
	var e wire.Encoder
	encodeTime(&e, t)
	_, err := c.call(ctx, controlThaw, e.Encoded())
	return err
}

// Boot hands over what must be in place before user code runs; in a copy that has
// been renewed it has the copied user code go on.
func (c *Control) Boot(ctx context.Context, b *api.BootData) error {
	var e wire.Encoder
	encodeBoot(&e, b)
	_, err := c.call(ctx, controlBoot, e.Encoded())
	return err
}

// SetClock sets the guest's wall clock.
func (c *Control) SetClock(ctx context.Context, t time.Time) error {
	var e wire.Encoder
	encodeTime(&e, t)
	_, err := c.call(ctx, controlClock, e.Encoded())
	return err
}

// Reset begins a new epoch on the data port: the guest closes it, which drops
// what is under way in both directions, and opens it anew for a session of that
// epoch. The host connects to it after that.
func (c *Control) Reset(ctx context.Context, epoch uint64) error {
	var e wire.Encoder
	e.Uint64(epoch)
	_, err := c.call(ctx, controlReset, e.Encoded())
	return err
}

// PowerOff has the guest write everything to its disks and end. The end of the
// connection may come in place of the answer.
func (c *Control) PowerOff(ctx context.Context) error {
	_, err := c.call(ctx, controlPowerOff, nil)
	return err
}

// call sends a request and waits for its answer. The answer is valid until the
// next call.
func (c *Control) call(ctx context.Context, kind byte, body []byte) ([]byte, error) {
	if len(body) > maxControl-headerBytes {
		return nil, fmt.Errorf("control request of %d bytes: %w to be sent", len(body), ErrTooLarge)
	}
	select {
	case c.turn <- struct{}{}:
		defer func() { <-c.turn }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	interrupted := make(chan struct{})
	release := context.AfterFunc(ctx, func() {
		c.conn.SetDeadline(time.Unix(1, 0))
		close(interrupted)
	})
	answer, err := c.exchange(kind, body)
	if !release() {
		<-interrupted
		c.conn.SetDeadline(time.Time{})
		if err != nil && !IsGuestError(err) {
			err = context.Cause(ctx)
		}
	}
	if err != nil && !IsGuestError(err) {
		err = fmt.Errorf("control port: %w", err)
	}
	return answer, err
}

func (c *Control) exchange(kind byte, body []byte) ([]byte, error) {
	number := c.next
	c.next++
	request := binary.BigEndian.AppendUint64([]byte{kind}, number)
	if err := wire.WritePacket(c.conn, append(request, body...)); err != nil {
		return nil, err
	}
	for waste := maxStale; ; {
		packet, err := c.in.Next(maxAnswer, waste)
		if err != nil {
			return nil, err
		}
		if waste -= len(packet) + headerBytes; waste < 0 { // nothing at all costs too
			return nil, errGuest
		}
		d := wire.NewDecoder(packet)
		if d.Uint64() != number || d.Err() != nil {
			continue // stale
		}
		failed := d.Bool()
		switch answer := d.Blob(maxAnswer); {
		case d.Done() != nil:
			return nil, errGuest
		case failed:
			return nil, decodeError(answer)
		default:
			return answer, nil
		}
	}
}

// A ControlHandler does in the guest what comes in by the control port: one
// request at a time.
type ControlHandler interface {
	Prepared() bool
	IsSetUp() bool
	Prepare(*Preparation) error
	Setup(*Setup) error
	Renew(*Setup) error
	Boot(*api.BootData) error
	SetClock(time.Time) error
	Freeze() error
	Thaw(time.Time) error

	// Reset begins a new epoch on the data port. It returns when that is closed
	// and open again.
	Reset(epoch uint64) error

	// PowerOff need not return. If it does, without an error, the host is told so
	// and ServeControl returns.
	PowerOff() error
}

// ServeControl is the guest's end of the control port. It returns nil after a
// PowerOff, else why the connection is of no more use.
func ServeControl(conn io.ReadWriter, h ControlHandler) error {
	in := wire.NewPacketReader(conn)
	for {
		request, err := in.Next(maxControl, 1<<62)
		if err != nil {
			return wrap("control port", err)
		}
		if len(request) < headerBytes {
			continue
		}
		kind, number, body := request[0], request[1:headerBytes], request[headerBytes:]
		answer, err := handleControl(h, kind, body)
		if err != nil {
			answer = encodeError(err)
		}
		var e wire.Encoder
		e.Uint64(binary.BigEndian.Uint64(number))
		e.Bool(err != nil)
		e.Blob(answer)
		if err := wire.WritePacket(conn, e.Encoded()); err != nil {
			return wrap("control port", err)
		}
		if kind == controlPowerOff && err == nil {
			return nil
		}
	}
}

func handleControl(h ControlHandler, kind byte, body []byte) (answer []byte, err error) {
	d := wire.NewDecoder(body)
	var act func() error
	switch kind {
	case controlHello:
		var e wire.Encoder
		e.Uint32(wire.Version)
		e.Bool(h.Prepared())
		e.Bool(h.IsSetUp())
		answer = e.Encoded()
		act = func() error { return nil }
	case controlPrepare:
		preparation := decodePreparation(d)
		act = func() error { return h.Prepare(preparation) }
	case controlSetup:
		setup := decodeSetup(d)
		act = func() error {
			err := h.Setup(setup)
			if err == nil && setup.Boot != nil {
				err = h.Boot(setup.Boot)
			}
			return err
		}
	case controlBoot:
		boot := decodeBoot(d)
		act = func() error { return h.Boot(boot) }
	case controlClock:
		t := decodeTime(d)
		act = func() error { return h.SetClock(t) }
	case controlReset:
		epoch := d.Uint64()
		act = func() error { return h.Reset(epoch) }
	case controlPowerOff:
		act = h.PowerOff
	case controlFreeze:
		act = h.Freeze
	case controlThaw:
		t := decodeTime(d)
		act = func() error { return h.Thaw(t) }
	case controlRenew:
		setup := decodeSetup(d)
		act = func() error { return h.Renew(setup) }
	default:
		return nil, errors.New("unknown control request")
	}
	if err := d.Done(); err != nil {
		return nil, wrap("control request", err)
	}
	return answer, act()
}
