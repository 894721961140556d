package names

import (
	"context"
	"net/netip"
	"strconv"
	"strings"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/matchlock/matchlock/api"
	"github.com/matchlock/matchlock/internal/policy"
)

// A Server answers the guest's queries. Its fields are set before the first, all but Event; any number of goroutines
// may ask it then.
type Server struct {
	Table    *Table
	Mode     api.DNSMode // empty is api.DNSSynthetic
	Permit   func(name string) policy.Verdict
	Resolver *Resolver
	// Event is told each name that is refused, at most once a second, and each that is allowed, once. It must not block.
	Event func(api.Event)

	told limiter
}

// Answer returns the answer to a query that came over UDP, or over TCP, where it is without its length. Nil: there is
// none to give, the bytes are no query. Everything in the query is the guest's.
func (s *Server) Answer(ctx context.Context, query []byte, tcp bool) []byte {
	q, ok := parse(query)
	if !ok {
		return nil
	}
	r := &reply{question: q, limit: 65535}
	if !tcp {
		r.limit = max(minUDP, min(maxUDP, q.size))
	}
	if q.fault != dnsmessage.RCodeSuccess {
		r.code = q.fault
	} else {
		s.answer(ctx, r)
	}
	return r.pack()
}

func (s *Server) answer(ctx context.Context, r *reply) {
	asked := r.question.Name.String()
	switch r.question.Type {
	case dnsmessage.TypeALL, dnsmessage.TypeAXFR, 251: // IXFR
		r.code = dnsmessage.RCodeRefused
		return
	}
	if r.question.Class != dnsmessage.ClassINET {
		r.code = dnsmessage.RCodeRefused
		return
	}
	name, err := policy.Normalize(asked)
	if err != nil {
		s.refuse(r, "", policy.Verdict{Reason: "no host name: " + strconv.Quote(asked)})
		return
	}
	switch {
	case name == "localhost" || strings.HasSuffix(name, ".localhost"): // RFC 6761, §6.3: nobody else is asked
		if r.question.Type == dnsmessage.TypeA {
			r.address(netip.AddrFrom4([4]byte{127, 0, 0, 1}))
		}
		return
	case name == "arpa" || strings.HasSuffix(name, ".arpa"):
		s.reverse(r, name)
		return
	}
	verdict := s.Permit(name)
	if !verdict.Allow {
		if r.question.Type == dnsmessage.TypeSRV && s.Permit(service(name)).Allow {
			r.code = dnsmessage.RCodeNameError // apt asks so for every host, and then for its address: nothing was refused
			return
		}
		s.refuse(r, name, verdict)
		return
	}
	switch r.question.Type {
	case dnsmessage.TypeA:
		s.addresses(ctx, r, name, verdict)
	case dnsmessage.TypeTXT, dnsmessage.TypeMX, dnsmessage.TypeSRV:
		s.event(name, strings.TrimPrefix(r.question.Type.String(), "Type"), verdict)
		if err := s.records(ctx, r, name); err != nil {
			r.fail(err)
		}
	}
	// Others are withheld: AAAA, since the guest has no IPv6; HTTPS and SVCB, since they bring addresses and keys (ECH)
	// that no rule has seen. The name exists, and has none of them.
}

func (s *Server) addresses(ctx context.Context, r *reply, name string, verdict policy.Verdict) {
	if fixed := s.Table.host(name); len(fixed) > 0 {
		for _, addr := range fixed {
			r.address(addr)
		}
		return
	}
	if name == api.HostGateway {
		r.code = dnsmessage.RCodeNameError // no gateway was fixed
		return
	}
	if s.Mode == api.DNSReal {
		addrs, err := s.Resolver.Lookup(ctx, name)
		if err != nil {
			r.fail(err)
			return
		}
		if pinned := s.Table.Pin(name, addrs); len(pinned) > 0 {
			for _, addr := range pinned {
				r.address(addr)
			}
			s.event(name, "A", verdict)
			return
		}
		// Its addresses mean something else in the guest: it dials one that is ours, and the host's side goes there.
	}
	addr, fresh, err := s.Table.address(name)
	if err != nil {
		r.code, r.ede, r.text = dnsmessage.RCodeServerFailure, edeOther, err.Error()
		return
	}
	r.address(addr)
	if fresh {
		s.event(name, "A", verdict)
	}
}

// reverse answers for addresses from the table alone: the guest learns of no other.
func (s *Server) reverse(r *reply, name string) {
	addr, ok := reversed(name)
	var names []string
	switch {
	case ok && addr.IsLoopback():
		names = []string{"localhost"}
	case ok:
		names = s.Table.Names(addr)
	}
	if len(names) == 0 {
		r.code = dnsmessage.RCodeNameError
		return
	}
	if r.question.Type != dnsmessage.TypePTR {
		return
	}
	for _, name := range names[:min(len(names), maxRecords)] {
		if target, err := dnsmessage.NewName(name + "."); err == nil {
			r.answers = append(r.answers, &dnsmessage.PTRResource{PTR: target})
		}
	}
}

// reversed reads 4.3.2.1.in-addr.arpa.
func reversed(name string) (netip.Addr, bool) {
	text, ok := strings.CutSuffix(name, ".in-addr.arpa")
	parts := strings.Split(text, ".")
	if !ok || len(parts) != 4 {
		return netip.Addr{}, false
	}
	addr, err := netip.ParseAddr(parts[3] + "." + parts[2] + "." + parts[1] + "." + parts[0])
	return addr, err == nil
}

// service is the name that a service is of: web.test of _https._tcp.web.test.
func service(name string) string {
	for range 2 {
		if label, rest, ok := strings.Cut(name, "."); ok && strings.HasPrefix(label, "_") {
			name = rest
		}
	}
	return name
}

// records asks the host's resolver, and passes on no more than fits, and no address: a target is a name, which needs a
// rule of its own. A service that is where no rule leads is withheld: apt, for one, would not try the name itself then.
func (s *Server) records(ctx context.Context, r *reply, name string) error {
	switch r.question.Type {
	case dnsmessage.TypeTXT:
		texts, err := s.Resolver.txt(ctx, name)
		size := 0
		for _, text := range texts {
			if size += len(text); size > maxTXT || len(r.answers) == maxRecords {
				break
			}
			r.answers = append(r.answers, &dnsmessage.TXTResource{TXT: chunks(text)})
		}
		return err
	case dnsmessage.TypeMX:
		found, err := s.Resolver.mx(ctx, name)
		for _, mx := range found {
			if target, ok := target(mx.Host); ok && len(r.answers) < maxRecords {
				r.answers = append(r.answers, &dnsmessage.MXResource{Pref: mx.Pref, MX: target})
			}
		}
		return err
	default:
		found, err := s.Resolver.srv(ctx, name)
		for _, srv := range found {
			if target, ok := target(srv.Target); ok && s.Permit(hostOf(target)).Allow && len(r.answers) < maxRecords {
				r.answers = append(r.answers, &dnsmessage.SRVResource{Priority: srv.Priority, Weight: srv.Weight, Port: srv.Port, Target: target})
			}
		}
		return err
	}
}

// chunks cuts a text into the strings of a TXT record, of up to 255 bytes.
func chunks(text string) []string {
	var parts []string
	for len(text) > 255 {
		parts, text = append(parts, text[:255]), text[255:]
	}
	return append(parts, text)
}

// hostOf is a target as policy knows it.
func hostOf(target dnsmessage.Name) string { return strings.TrimSuffix(target.String(), ".") }

func target(host string) (dnsmessage.Name, bool) {
	name, err := policy.Normalize(host)
	if err != nil {
		return dnsmessage.Name{}, false
	}
	n, err := dnsmessage.NewName(name + ".")
	return n, err == nil
}

// refuse says that a name does not exist, and to who can read it, why.
func (s *Server) refuse(r *reply, name string, verdict policy.Verdict) {
	r.code, r.ede, r.text = dnsmessage.RCodeNameError, edeFiltered, "matchlock: "+verdict.Reason
	if verdict.Rule != "" {
		r.text += ": " + verdict.Rule
	}
	if verdict.Hint != "" {
		r.text += "; " + verdict.Hint + " would"
	}
	s.event(name, "", verdict)
}
