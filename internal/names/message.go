package names

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"strings"

	"golang.org/x/net/dns/dnsmessage"
)

const (
	maxQuery = 4096 // bytes; a question with all options that clients know takes some hundred
	maxUDP   = 1232 // bytes of an answer, as DNS Flag Day 2020 has it
	minUDP   = 512  // RFC 1035
	maxEDE   = 180
	ttl      = 60 // seconds; a synthetic address stays anyway
)

// Of RFC 8914 and RFC 6891, which dnsmessage does not have.
const (
	optionEDE   = 15
	edeOther    = 0
	edeFiltered = 17
	rcodeBadVer = dnsmessage.RCode(16)
	typeSVCB    = dnsmessage.Type(64)
	typeHTTPS   = dnsmessage.Type(65)
)

// A question is what was asked, in a message of a guest.
type question struct {
	dnsmessage.Question
	header   dnsmessage.Header
	hasName  bool // Question was read
	hasOPT   bool
	size     int // bytes that the client takes over UDP
	fault    dnsmessage.RCode
	optFault bool
}

// parse returns no question at all where there is nobody to answer: what is too short, and what is an answer itself.
func parse(query []byte) (question, bool) {
	var (
		p   dnsmessage.Parser
		q   = question{size: minUDP}
		err error
	)
	if q.header, err = p.Start(query); err != nil || q.header.Response {
		return q, false
	}
	if q.header.OpCode != 0 {
		q.fault = dnsmessage.RCodeNotImplemented
		return q, true
	}
	q.fault = dnsmessage.RCodeFormatError
	if len(query) > maxQuery || binary.BigEndian.Uint16(query[4:]) != 1 { // the number of questions
		return q, true
	}
	if q.Question, err = p.Question(); err != nil {
		return q, true
	}
	q.hasName = true
	if errors.Join(p.SkipAllQuestions(), p.SkipAllAnswers(), p.SkipAllAuthorities()) != nil {
		return q, true
	}
	for {
		h, err := p.AdditionalHeader()
		if errors.Is(err, dnsmessage.ErrSectionDone) {
			break
		}
		if err != nil || h.Type == dnsmessage.TypeOPT && q.hasOPT {
			return q, true
		}
		if h.Type == dnsmessage.TypeOPT {
			q.hasOPT, q.size = true, int(h.Class)
			q.optFault = h.TTL>>16&0xff != 0 // its version
		}
		if p.SkipAdditional() != nil {
			return q, true
		}
	}
	q.fault = dnsmessage.RCodeSuccess
	if q.optFault {
		q.fault = rcodeBadVer
	}
	return q, true
}

// A reply is an answer being made.
type reply struct {
	question question
	limit    int // bytes
	code     dnsmessage.RCode
	answers  []dnsmessage.ResourceBody
	ede      uint16
	text     string // of the Extended DNS Error; empty: there is none
}

func (r *reply) address(addr netip.Addr) {
	if addr.Is4() {
		r.answers = append(r.answers, &dnsmessage.AResource{A: addr.As4()})
	}
}

// fail says what the host's resolver has said. A name without such a record exists none the less.
func (r *reply) fail(err error) {
	var dns *net.DNSError
	if errors.As(err, &dns) && dns.IsNotFound {
		if r.question.Type == dnsmessage.TypeA {
			r.code = dnsmessage.RCodeNameError
		}
		return
	}
	r.code, r.ede, r.text, r.answers = dnsmessage.RCodeServerFailure, edeOther, "matchlock: the host's resolver has no answer", nil
}

func (r *reply) pack() []byte {
	msg, err := r.build(r.answers, false)
	if err != nil || len(msg) > r.limit {
		msg, err = r.build(nil, true)
	}
	if err != nil {
		return nil
	}
	return msg
}

func (r *reply) build(answers []dnsmessage.ResourceBody, truncated bool) ([]byte, error) {
	asked := r.question.header
	b := dnsmessage.NewBuilder(make([]byte, 0, minUDP), dnsmessage.Header{
		ID: asked.ID, Response: true, OpCode: asked.OpCode, RecursionDesired: asked.RecursionDesired,
		// musl and Go take an empty answer from one who does not recurse for none at all.
		RecursionAvailable: true, Truncated: truncated, RCode: r.code & 0xf,
	})
	b.EnableCompression()
	if err := b.StartQuestions(); err != nil {
		return nil, err
	}
	if r.question.hasName {
		if err := b.Question(r.question.Question); err != nil {
			return nil, err
		}
	}
	if err := b.StartAnswers(); err != nil {
		return nil, err
	}
	h := dnsmessage.ResourceHeader{Name: r.question.Name, Class: dnsmessage.ClassINET, TTL: ttl}
	for _, answer := range answers {
		var err error
		switch body := answer.(type) {
		case *dnsmessage.AResource:
			err = b.AResource(h, *body)
		case *dnsmessage.PTRResource:
			err = b.PTRResource(h, *body)
		case *dnsmessage.TXTResource:
			err = b.TXTResource(h, *body)
		case *dnsmessage.MXResource:
			err = b.MXResource(h, *body)
		case *dnsmessage.SRVResource:
			err = b.SRVResource(h, *body)
		}
		if err != nil {
			return nil, err
		}
	}
	if r.question.hasOPT {
		if err := b.StartAdditionals(); err != nil {
			return nil, err
		}
		var (
			opt  dnsmessage.ResourceHeader
			body dnsmessage.OPTResource
		)
		if err := opt.SetEDNS0(maxUDP, r.code, false); err != nil {
			return nil, err
		}
		if r.text != "" {
			// Beside a name of 255 bytes it has this much room in the smallest answer.
			text := strings.ToValidUTF8(r.text[:min(len(r.text), maxEDE)], "")
			body.Options = []dnsmessage.Option{{Code: optionEDE, Data: append(binary.BigEndian.AppendUint16(nil, r.ede), text...)}}
		}
		if err := b.OPTResource(opt, body); err != nil {
			return nil, err
		}
	}
	return b.Finish()
}
