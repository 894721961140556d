package netstack

import (
	"context"
	"encoding/binary"
	"io"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/header"
)

const (
	dnsPort   = 53
	dnsHeader = 12 // bytes: less is no query

	// By TCP: what a connection may do (RFC 7766).
	dnsIdle    = 10 * time.Second
	dnsQueries = 1000
)

// beginQuery counts one more query and, unless it is part of a flow, one more
// handler.
func (s *Stack) beginQuery(handler bool) Reason {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closed:
		return closing
	case s.queries >= s.config.Limits.Queries:
		return QueryLimit
	}
	s.queries++
	if handler {
		s.handlers.Add(1)
	}
	return 0
}

func (s *Stack) endQuery() {
	s.mu.Lock()
	s.queries--
	s.mu.Unlock()
}

// answerDatagram answers a query that came by UDP. One that finds no room is
// dropped: its client asks again.
func (s *Stack) answerDatagram(id flowID, query []byte) {
	if reason := s.beginQuery(true); reason != 0 {
		s.notes.count(reason)
		return
	}
	go func() {
		defer s.handlers.Done()
		answer := s.handler.DNS(s.ctx, query, false)
		s.endQuery()
		if answer == nil {
			return
		}
		if room := s.config.MTU - header.IPv4MinimumSize - header.UDPMinimumSize; len(answer) > room {
			s.config.Logger.Error("DNS answer does not fit and was not truncated", "size", len(answer), "room", room)
			return
		}
		s.sendDatagram(id, answer)
	}()
}

// serveDNS answers the queries of a TCP connection, one after the other.
func (s *Stack) serveDNS(ctx context.Context, f *TCPFlow) {
	if s.handler.DNS == nil {
		return
	}
	conn, err := f.Accept()
	if err != nil {
		return
	}
	defer conn.Close()
	for range dnsQueries {
		conn.SetDeadline(time.Now().Add(dnsIdle))
		var size [2]byte
		if _, err := io.ReadFull(conn, size[:]); err != nil {
			return
		}
		query := make([]byte, binary.BigEndian.Uint16(size[:]))
		if len(query) < dnsHeader {
			conn.Abort()
			return
		}
		if _, err := io.ReadFull(conn, query); err != nil {
			return
		}
		if reason := s.beginQuery(false); reason != 0 {
			s.notes.count(reason)
			conn.Abort()
			return
		}
		answer := s.handler.DNS(ctx, query, true)
		s.endQuery()
		if answer == nil || len(answer) > 0xffff {
			conn.Abort() // without an answer the client would wait
			return
		}
		conn.SetDeadline(time.Now().Add(dnsIdle))
		message := binary.BigEndian.AppendUint16(make([]byte, 0, 2+len(answer)), uint16(len(answer)))
		if _, err := conn.Write(append(message, answer...)); err != nil {
			return
		}
	}
}
