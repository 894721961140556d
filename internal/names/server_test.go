package names

import (
	"context"
	"encoding/binary"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/matchlock/matchlock/api"
	"github.com/matchlock/matchlock/internal/policy"
)

// query makes one as stub resolvers do; size 0 leaves EDNS away.
func query(t testing.TB, name string, typ dnsmessage.Type, size int) []byte {
	t.Helper()
	n, err := dnsmessage.NewName(name)
	if err != nil {
		t.Fatal(err)
	}
	m := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: 0x1234, RecursionDesired: true},
		Questions: []dnsmessage.Question{{Name: n, Type: typ, Class: dnsmessage.ClassINET}},
	}
	if size > 0 {
		var h dnsmessage.ResourceHeader
		if err := h.SetEDNS0(size, dnsmessage.RCodeSuccess, true); err != nil {
			t.Fatal(err)
		}
		m.Additionals = []dnsmessage.Resource{{Header: h, Body: &dnsmessage.OPTResource{}}}
	}
	return pack(t, m)
}

func pack(t testing.TB, m dnsmessage.Message) []byte {
	t.Helper()
	b, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// reading reads an answer to a question, and fails where it is none.
func reading(t testing.TB, query, answer []byte) dnsmessage.Message {
	t.Helper()
	var q, m dnsmessage.Message
	if err := m.Unpack(answer); err != nil {
		t.Fatalf("answer: %v", err)
	}
	if err := q.Unpack(query); err != nil {
		t.Fatal(err)
	}
	if m.ID != q.ID || !m.Response || !m.RecursionAvailable || !slices.Equal(m.Questions, q.Questions) {
		t.Errorf("no answer to the question: %+v", m.Header)
	}
	return m
}

// extendedError is the code and text of an Extended DNS Error; -1: there is none.
func extendedError(m dnsmessage.Message) (int, string) {
	for _, r := range m.Additionals {
		if opt, ok := r.Body.(*dnsmessage.OPTResource); ok {
			for _, o := range opt.Options {
				if o.Code == optionEDE && len(o.Data) >= 2 {
					return int(binary.BigEndian.Uint16(o.Data)), string(o.Data[2:])
				}
			}
		}
	}
	return -1, ""
}

type heard struct{ events []api.Event }

func (h *heard) event(e api.Event) { h.events = append(h.events, e) }

// server answers by rules, and asks a DNS server on loopback.
func server(t testing.TB, n *api.Network) (*Server, *heard, *upstream) {
	t.Helper()
	p, err := policy.Compile(&api.Config{Network: *n})
	if err != nil {
		t.Fatal(err)
	}
	r, err := NewResolver(n)
	if err != nil {
		t.Fatal(err)
	}
	up := newUpstream(t)
	r.net = ask([]netip.AddrPort{up.addr})
	h := &heard{}
	return &Server{Table: NewTable(), Mode: n.DNSMode, Permit: p.Name, Resolver: r, Event: h.event}, h, up
}

func rules(t testing.TB, texts ...string) []api.Rule {
	t.Helper()
	var rs []api.Rule
	for _, text := range texts {
		var r api.Rule
		if err := r.UnmarshalText([]byte(text)); err != nil {
			t.Fatal(err)
		}
		rs = append(rs, r)
	}
	return rs
}

// An upstream is a DNS server on loopback that answers out of a map and counts what it is asked.
type upstream struct {
	addr  netip.AddrPort
	asked chan string
	mu    sync.Mutex
	zone  map[string][]dnsmessage.ResourceBody // by "TypeA name."
}

func (u *upstream) has(question string, bodies ...dnsmessage.ResourceBody) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.zone[question] = append(u.zone[question], bodies...)
}

func (u *upstream) records(question string) []dnsmessage.ResourceBody {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.zone[question]
}

func newUpstream(t testing.TB) *upstream {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	u := &upstream{addr: conn.LocalAddr().(*net.UDPAddr).AddrPort(), asked: make(chan string, 1000), zone: map[string][]dnsmessage.ResourceBody{}}
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 4096)
		for {
			n, from, err := conn.ReadFrom(buf)
			if err != nil {
				return
			}
			var m dnsmessage.Message
			if m.Unpack(buf[:n]) != nil || len(m.Questions) != 1 {
				continue
			}
			q := m.Questions[0]
			u.asked <- q.Type.String() + " " + q.Name.String()
			m.Response, m.RecursionAvailable, m.Additionals = true, true, nil
			for _, body := range u.records(q.Type.String() + " " + q.Name.String()) {
				m.Answers = append(m.Answers, dnsmessage.Resource{Header: dnsmessage.ResourceHeader{Name: q.Name, Class: q.Class, TTL: 1}, Body: body})
			}
			if len(m.Answers) == 0 && strings.HasPrefix(q.Name.String(), "missing.") {
				m.RCode = dnsmessage.RCodeNameError
			}
			if reply, err := m.Pack(); err == nil {
				_, _ = conn.WriteTo(reply, from) // a lost answer fails the test that waits for it
			}
		}
	}()
	t.Cleanup(func() { conn.Close(); <-done })
	return u
}

func (u *upstream) wasAsked() []string {
	var all []string
	for len(u.asked) > 0 {
		all = append(all, <-u.asked)
	}
	return all
}

func TestAnswer(t *testing.T) {
	s, h, up := server(t, &api.Network{
		Allow:     rules(t, "pypi.org:443", "*.example.com", "db:5432"),
		Deny:      rules(t, "bad.example.com"),
		HostPorts: []api.HostPort{{Port: 80, GuestPort: 80}},
	})
	s.Table.Fix("db", netip.MustParseAddr("10.0.0.5"))
	s.Table.Fix(api.HostGateway, netip.MustParseAddr("192.168.100.1"))
	const nx = dnsmessage.RCodeNameError
	for _, tt := range []struct {
		name string
		typ  dnsmessage.Type
		code dnsmessage.RCode
		want string // addresses or names
	}{
		{"pypi.org.", dnsmessage.TypeA, 0, "198.18.0.1"},
		{"PyPI.org.", dnsmessage.TypeA, 0, "198.18.0.1"}, // 0x20
		{"a.example.com.", dnsmessage.TypeA, 0, "198.18.0.2"},
		{"pypi.org.", dnsmessage.TypeA, 0, "198.18.0.1"},
		{"pypi.org.", dnsmessage.TypeAAAA, 0, ""},
		{"pypi.org.", typeHTTPS, 0, ""},
		{"pypi.org.", typeSVCB, 0, ""},
		{"pypi.org.", dnsmessage.TypeNS, 0, ""},
		{"pypi.org.", dnsmessage.TypeALL, dnsmessage.RCodeRefused, ""},
		{"pypi.org.", dnsmessage.TypeAXFR, dnsmessage.RCodeRefused, ""},
		{"example.com.", dnsmessage.TypeA, nx, ""},
		{"bad.example.com.", dnsmessage.TypeA, nx, ""},
		{"pypi.org.example.org.", dnsmessage.TypeA, nx, ""},                                // a search list
		{"c2VjcmV0.0001.tunnel.evil.example.", dnsmessage.TypeTXT, nx, ""},                 // a tunnel
		{strings.Repeat("a", 63) + ".evil.example.", dnsmessage.TypeA, nx, ""},             // the same
		{"4.3.2.1.in-addr.arpa.", dnsmessage.TypePTR, nx, ""},                              // not told
		{"c2VjcmV0.in-addr.arpa.", dnsmessage.TypeTXT, nx, ""},                             // a tunnel that looks like it
		{"1.0.18.198.in-addr.arpa.", dnsmessage.TypePTR, 0, "pypi.org."},                   //
		{"9.0.18.198.in-addr.arpa.", dnsmessage.TypePTR, nx, ""},                           //
		{"1.0.18.198.in-addr.arpa.", dnsmessage.TypeTXT, 0, ""},                            //
		{"1.0.0.127.in-addr.arpa.", dnsmessage.TypePTR, 0, "localhost."},                   //
		{"1.100.168.192.in-addr.arpa.", dnsmessage.TypePTR, 0, "host.matchlock.internal."}, //
		{"localhost.", dnsmessage.TypeA, 0, "127.0.0.1"},
		{"x.localhost.", dnsmessage.TypeAAAA, 0, ""},
		{"db.", dnsmessage.TypeA, 0, "10.0.0.5"},
		{"host.matchlock.internal.", dnsmessage.TypeA, 0, "192.168.100.1"},
		{"other.matchlock.internal.", dnsmessage.TypeA, nx, ""},
		{".", dnsmessage.TypeNS, nx, ""},
		{"0x7f.1.", dnsmessage.TypeA, nx, ""},
		{"2130706433.", dnsmessage.TypeA, nx, ""},
		{"127.0.0.1.", dnsmessage.TypeA, nx, ""},
	} {
		for _, tcp := range []bool{false, true} {
			q := query(t, tt.name, tt.typ, 1232)
			m := reading(t, q, s.Answer(t.Context(), q, tcp))
			var got []string
			for _, r := range m.Answers {
				switch body := r.Body.(type) {
				case *dnsmessage.AResource:
					got = append(got, netip.AddrFrom4(body.A).String())
				case *dnsmessage.PTRResource:
					got = append(got, body.PTR.String())
				}
			}
			if m.RCode != tt.code || strings.Join(got, " ") != tt.want || m.Truncated {
				t.Errorf("%s %s: %s %q, want %s %q", tt.typ, tt.name, m.RCode, got, tt.code, tt.want)
			}
			code, text := extendedError(m)
			if filtered := tt.code == nx && !strings.HasSuffix(tt.name, ".arpa."); filtered != (code == edeFiltered && text != "") {
				t.Errorf("%s %s: extended error %d %q", tt.typ, tt.name, code, text)
			}
		}
	}
	if asked := up.wasAsked(); len(asked) > 0 {
		t.Errorf("left the host: %q", asked)
	}
	count := map[api.Verdict]int{}
	for _, e := range h.events {
		count[e.Verdict]++
		if e.Kind != api.EventName || e.Verdict == api.Denied && e.Reason == "" {
			t.Errorf("event %+v", e)
		}
	}
	if count[api.Allowed] != 2 || count[api.Denied] < 6 {
		t.Errorf("events: %v", count)
	}
}

func TestRefusalSaysWhy(t *testing.T) {
	s, h, _ := server(t, &api.Network{})
	q := query(t, "pypi.org.", dnsmessage.TypeA, 512)
	answer := s.Answer(t.Context(), q, false)
	if code, text := extendedError(reading(t, q, answer)); code != edeFiltered || text != "matchlock: no rule allows it; --allow-host pypi.org would" {
		t.Errorf("extended error %d %q", code, text)
	}
	plain := query(t, "pypi.org.", dnsmessage.TypeA, 0)
	if m := reading(t, plain, s.Answer(t.Context(), plain, false)); m.RCode != dnsmessage.RCodeNameError || len(m.Additionals) > 0 {
		t.Errorf("without EDNS: %+v", m)
	}
	if len(h.events) != 1 || h.events[0].Hint != "--allow-host pypi.org" || h.events[0].Name != "pypi.org" {
		t.Errorf("events: %+v", h.events)
	}
	// The longest name, in the smallest answer.
	long := query(t, strings.Repeat(strings.Repeat("a", 63)+".", 3)+strings.Repeat("a", 61)+".", dnsmessage.TypeA, 512)
	if answer := s.Answer(t.Context(), long, false); len(answer) > 512 || reading(t, long, answer).Truncated {
		t.Errorf("%d bytes", len(answer))
	}
}

func TestMalformedQueries(t *testing.T) {
	s, _, _ := server(t, &api.Network{Allow: rules(t, "*")})
	good := query(t, "a.example.", dnsmessage.TypeA, 1232)
	change := func(f func(b []byte) []byte) []byte { return f(slices.Clone(good)) }
	for name, tt := range map[string]struct {
		query []byte
		code  dnsmessage.RCode
	}{
		"two questions":   {change(func(b []byte) []byte { b[5] = 2; return b }), dnsmessage.RCodeFormatError},
		"no question":     {change(func(b []byte) []byte { b[5] = 0; return b }), dnsmessage.RCodeFormatError},
		"an update":       {change(func(b []byte) []byte { b[2] |= 5 << 3; return b }), dnsmessage.RCodeNotImplemented},
		"cut off":         {good[:20], dnsmessage.RCodeFormatError},
		"no additional":   {good[:len(good)-11], dnsmessage.RCodeFormatError},
		"a later EDNS":    {change(func(b []byte) []byte { b[len(b)-5] = 1; return b }), 0}, // BADVERS is 16: the lower bits are 0
		"a pointer loop":  {append(slices.Clone(good[:12]), 0xc0, 12, 0, 1, 0, 1), dnsmessage.RCodeFormatError},
		"a dot in a part": {append(slices.Clone(good[:12]), 3, 'a', '.', 'b', 0, 0, 1, 0, 1), dnsmessage.RCodeFormatError},
		"too long":        {append(slices.Clone(good), make([]byte, maxQuery)...), dnsmessage.RCodeFormatError},
		"of chaos":        {change(func(b []byte) []byte { b[12+11+3] = 3; return b }), dnsmessage.RCodeRefused},
	} {
		var m dnsmessage.Message
		if err := m.Unpack(s.Answer(t.Context(), tt.query, false)); err != nil {
			t.Errorf("%s: %v", name, err)
		} else if m.RCode != tt.code || len(m.Answers) > 0 || m.ID != 0x1234 {
			t.Errorf("%s: %+v, want %s", name, m, tt.code)
		}
	}
	for name, query := range map[string][]byte{"nothing": nil, "half a header": good[:11], "an answer": change(func(b []byte) []byte { b[2] |= 0x80; return b })} {
		if answer := s.Answer(t.Context(), query, false); answer != nil {
			t.Errorf("%s is answered", name)
		}
	}
}

func TestRecordsOfOthers(t *testing.T) {
	s, h, up := server(t, &api.Network{Allow: rules(t, "*.example.com")})
	for i := range 20 {
		up.has("TypeTXT t.example.com.", &dnsmessage.TXTResource{TXT: []string{strings.Repeat("x", 20), string(rune('a' + i))}})
	}
	up.has("TypeTXT long.example.com.", &dnsmessage.TXTResource{TXT: []string{strings.Repeat("y", 255), strings.Repeat("z", 255)}})
	up.has("TypeMX m.example.com.",
		&dnsmessage.MXResource{Pref: 10, MX: dnsmessage.MustNewName("mail.other.example.")},
		&dnsmessage.MXResource{Pref: 20, MX: dnsmessage.MustNewName("127.0.0.1.")},
	)
	up.has("TypeSRV _x._tcp.example.com.", &dnsmessage.SRVResource{Port: 5222, Target: dnsmessage.MustNewName("xmpp.example.com.")})
	ask := func(name string, typ dnsmessage.Type, size int, tcp bool) dnsmessage.Message {
		t.Helper()
		q := query(t, name, typ, size)
		answer := s.Answer(t.Context(), q, tcp)
		if limit := max(512, min(size, 1232)); !tcp && len(answer) > limit {
			t.Errorf("%s: %d bytes, the limit is %d", name, len(answer), limit)
		}
		return reading(t, q, answer)
	}
	if m := ask("t.example.com.", dnsmessage.TypeTXT, 0, true); len(m.Answers) != 16 || m.Answers[1].Body.(*dnsmessage.TXTResource).TXT[0] != strings.Repeat("x", 20)+"b" {
		t.Errorf("TXT: %d answers", len(m.Answers))
	}
	if m := ask("t.example.com.", dnsmessage.TypeTXT, 0, false); !m.Truncated || len(m.Answers) != 0 {
		t.Errorf("TXT in 512 bytes: truncated %t, %d answers", m.Truncated, len(m.Answers))
	}
	if m := ask("t.example.com.", dnsmessage.TypeTXT, 65535, false); m.Truncated || len(m.Answers) != 16 {
		t.Errorf("TXT with EDNS: truncated %t, %d answers", m.Truncated, len(m.Answers))
	}
	if m := ask("long.example.com.", dnsmessage.TypeTXT, 1232, false); len(m.Answers) != 1 || len(m.Answers[0].Body.(*dnsmessage.TXTResource).TXT) != 2 {
		t.Errorf("a long TXT: %+v", m.Answers)
	}
	if m := ask("m.example.com.", dnsmessage.TypeMX, 0, false); len(m.Answers) != 1 || m.Answers[0].Body.(*dnsmessage.MXResource).MX.String() != "mail.other.example." || len(m.Additionals) > 0 {
		t.Errorf("MX: %+v", m)
	}
	if m := ask("_x._tcp.example.com.", dnsmessage.TypeSRV, 0, false); len(m.Answers) != 1 || m.Answers[0].Body.(*dnsmessage.SRVResource).Port != 5222 {
		t.Errorf("SRV: %+v", m)
	}
	// A target without a rule is no way for the guest, nor is a service that no rule names: it goes on without them.
	up.has("TypeSRV _y._tcp.example.com.", &dnsmessage.SRVResource{Port: 443, Target: dnsmessage.MustNewName("cdn.other.example.")})
	if m := ask("_y._tcp.example.com.", dnsmessage.TypeSRV, 0, false); m.RCode != 0 || len(m.Answers) > 0 {
		t.Errorf("SRV that leads elsewhere: %+v", m)
	}
	alone, told, _ := server(t, &api.Network{Allow: rules(t, "web.test")})
	for name, refusals := range map[string]int{"_https._tcp.web.test.": 0, "_https._tcp.other.test.": 1, "a._tcp.web.test.": 1} {
		told.events = nil
		q := query(t, name, dnsmessage.TypeSRV, 0)
		if m := reading(t, q, alone.Answer(t.Context(), q, false)); m.RCode != dnsmessage.RCodeNameError || len(told.events) != refusals {
			t.Errorf("%s: %+v, %d events, want %d", name, m, len(told.events), refusals)
		}
	}
	if m := ask("missing.example.com.", dnsmessage.TypeTXT, 0, false); m.RCode != 0 || len(m.Answers) > 0 {
		t.Errorf("none: %+v", m)
	}
	up.wasAsked()
	if m := ask("c2VjcmV0.evil.example.", dnsmessage.TypeTXT, 0, false); m.RCode != dnsmessage.RCodeNameError || len(up.wasAsked()) > 0 {
		t.Errorf("TXT of a name that no rule allows: %+v", m)
	}
	if len(h.events) == 0 || h.events[0].Reason != "its TXT records" || h.events[0].Verdict != api.Allowed {
		t.Errorf("events: %+v", h.events)
	}
}

func TestRealMode(t *testing.T) {
	s, _, up := server(t, &api.Network{Allow: rules(t, "*"), DNSMode: api.DNSReal,
		Resolve: []api.HostIPMapping{{Host: "api.test", IP: "127.0.0.1"}}})
	s.Table.Fix(api.HostGateway, netip.MustParseAddr("192.168.100.1"))
	a := func(texts ...string) (bodies []dnsmessage.ResourceBody) {
		for _, text := range texts {
			bodies = append(bodies, &dnsmessage.AResource{A: netip.MustParseAddr(text).As4()})
		}
		return bodies
	}
	up.has("TypeA a.example.", a("93.184.216.34", "127.0.0.1", "198.18.0.1", "0.0.0.0", "224.0.0.1", "192.168.100.1", "10.0.0.1")...)
	up.has("TypeA b.example.", a("93.184.216.34")...)
	up.has("TypeA rebind.example.", a("127.0.0.1")...)
	for _, tt := range []struct{ name, want string }{
		{"a.example.", "93.184.216.34 10.0.0.1"},
		{"b.example.", "93.184.216.34"},
		{"rebind.example.", "198.18.0.1"}, // whose flows the policy refuses
		{"api.test.", "198.18.0.2"},
		{"missing.example.", ""},
	} {
		q := query(t, tt.name, dnsmessage.TypeA, 1232)
		m := reading(t, q, s.Answer(t.Context(), q, false))
		var got []string
		for _, r := range m.Answers {
			got = append(got, netip.AddrFrom4(r.Body.(*dnsmessage.AResource).A).String())
		}
		slices.Sort(got)
		want := strings.Fields(tt.want)
		slices.Sort(want)
		if !slices.Equal(got, want) || (len(want) == 0) != (m.RCode == dnsmessage.RCodeNameError) {
			t.Errorf("%s: %s %q, want %q", tt.name, m.RCode, got, want)
		}
	}
	if got := s.Table.Names(netip.MustParseAddr("::ffff:93.184.216.34")); !slices.Equal(got, []string{"a.example", "b.example"}) {
		t.Errorf("names %q", got)
	}
	if got := s.Table.Names(netip.MustParseAddr("192.168.100.1")); !slices.Equal(got, []string{api.HostGateway}) {
		t.Errorf("the gateway's names: %q", got)
	}
}

func FuzzAnswer(f *testing.F) {
	f.Add(query(f, "a.example.", dnsmessage.TypeA, 1232), true)
	f.Add(query(f, "1.0.18.198.in-addr.arpa.", dnsmessage.TypePTR, 0), false)
	f.Add(query(f, "evil.example.", dnsmessage.TypeTXT, 512), false)
	f.Fuzz(func(t *testing.T, q []byte, tcp bool) {
		p, err := policy.Compile(&api.Config{Network: api.Network{Allow: []api.Rule{{Target: "*.example"}}}})
		if err != nil {
			t.Fatal(err)
		}
		s := &Server{Table: NewTable(), Permit: p.Name, Event: func(api.Event) {}, Resolver: &Resolver{net: &net.Resolver{
			PreferGo: true,
			Dial:     func(context.Context, string, string) (net.Conn, error) { return nil, net.ErrClosed },
		}}}
		answer := s.Answer(t.Context(), q, tcp)
		if answer == nil {
			return
		}
		var m dnsmessage.Message
		if err := m.Unpack(answer); err != nil {
			t.Fatalf("answer %x: %v", answer, err)
		}
		if !m.Response || m.ID != binary.BigEndian.Uint16(q) || !tcp && len(answer) > maxUDP {
			t.Errorf("answer %+v of %d bytes", m.Header, len(answer))
		}
	})
}
