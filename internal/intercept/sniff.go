package intercept

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"time"
)

// kind is what is spoken on a flow.
type kind int

const (
	unclear kind = iota
	raw          // neither of those below, and not looked into
	isTLS
	http1
	http2 // with prior knowledge
)

const (
	// helloTime bounds the time from a guest's first byte until it is clear what it
	// speaks, its ClientHello being whole.
	helloTime = 10 * time.Second
	// silence is how long a guest may say nothing on ports where it must speak first.
	silence = 5 * time.Minute

	maxLine = 16 << 10 // bytes of a first line, in which a request may be seen

	http2Preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
)

// methods begin a request, with a target behind them. A word that is none of these
// is a method if its line ends as a request's does.
var methods = []string{
	"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "CONNECT", "QUERY",
	"PROPFIND", "PROPPATCH", "MKCOL", "COPY", "MOVE", "LOCK", "UNLOCK", "REPORT", "SEARCH", "PURGE",
}

// classify says what a guest speaks that says this first.
func classify(b []byte) kind {
	if len(b) == 0 {
		return unclear
	}
	if b[0] == 22 {
		switch {
		case len(b) == 1:
			return unclear
		case b[1] == 3:
			return isTLS
		}
		return raw
	}
	if n := min(len(b), len(http2Preface)); string(b[:n]) == http2Preface[:n] {
		if n == len(http2Preface) {
			return http2
		}
		// Also a first line "PRI * HTTP/2.0" with something else behind it, or
		// nothing, is no other protocol's.
		return unclear
	}
	// Servers take blank lines before a request, and some blanks too.
	b = bytes.TrimLeft(b, "\r\n\t ")
	line, _, ended := bytes.Cut(b, []byte("\n"))
	method, target, ok := cutBlank(line)
	if ok && slices.Contains(methods, string(method)) {
		target = bytes.TrimLeft(target, " \t")
		switch {
		case method[0] == 'C' && string(method) == "CONNECT" && len(target) > 0:
			return http1
		case len(target) > 0 && strings.IndexByte("/*", target[0]) >= 0:
			return http1
		case hasPrefixFold(string(target), "http"):
			return http1
		}
	}
	// Any word, some target, and a version.
	if i := bytes.Index(bytes.ToUpper(line), []byte("HTTP/")); i > 0 && (line[i-1] == ' ' || line[i-1] == '\t') && ok {
		return http1
	}
	switch {
	case ended:
		return raw
	case bytes.ContainsFunc(line, func(c rune) bool { return c < ' ' && c != '\t' && c != '\r' || c == 0x7f || c == 0xfffd }):
		return raw // no text
	case len(b) > maxLine:
		return raw
	}
	return unclear
}

func cutBlank(b []byte) (before, after []byte, ok bool) {
	i := bytes.IndexAny(b, " \t")
	if i < 0 {
		return b, nil, false
	}
	return b[:i], b[i+1:], true
}

func hasPrefixFold(s, prefix string) bool {
	return len(s) >= len(prefix) && strings.EqualFold(s[:len(prefix)], prefix)
}

var sshBanner = []byte("SSH-")

// sniff reads what the guest says first, until it is clear what it speaks. What
// the server says before the guest has said anything is in early: who lets the
// server speak first speaks neither TLS nor HTTP.
func (f *flow) sniff(guest *guestConn, server net.Conn) (k kind, hello *clientHello, early []byte, err error) {
	defer guest.SetReadDeadline(time.Time{})
	port := f.destination.Port()
	if port == 80 || port == 443 {
		if err := guest.SetReadDeadline(time.Now().Add(silence)); err != nil {
			return 0, nil, nil, err
		}
	}
	var heard []byte         // not nil: the server has spoken, or ended
	var spoken chan struct{} // closed when heard is there, or will not be; nil: the server must wait
	if port != 80 {
		spoken = make(chan struct{})
		listening := make(chan struct{})
		go func() {
			defer close(listening)
			b := make([]byte, 2048)
			n, err := server.Read(b)
			if n > 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
				heard = b[:n]
			}
			close(spoken)
			if heard != nil {
				guest.SetReadDeadline(past)
			}
		}()
		defer func() {
			server.SetReadDeadline(past)
			<-listening
			server.SetReadDeadline(time.Time{})
			if heard != nil && err == nil {
				early = heard
				k, err = f.serverFirst(k, heard)
			}
		}()
	}
	serverSpoke := func() bool {
		select {
		case <-spoken:
			return heard != nil
		default:
			return false
		}
	}
	begun := false
	need := 0
	for {
		if len(guest.peeked) >= max(need, 1) {
			if k, hello, need, err = f.look(guest.peeked); k != unclear || err != nil {
				return k, hello, nil, err
			}
			if !begun {
				begun = true
				guest.SetReadDeadline(time.Now().Add(helloTime))
				if serverSpoke() { // its deadline has been overwritten
					return raw, nil, nil, nil
				}
			}
		}
		if err := guest.fill(); err != nil {
			if serverSpoke() {
				return raw, nil, nil, nil
			}
			switch {
			case errors.Is(err, os.ErrDeadlineExceeded) && begun:
				return 0, nil, nil, &refusal{reason: fmt.Sprintf("what the guest speaks is not clear after %v", helloTime)}
			case errors.Is(err, os.ErrDeadlineExceeded):
				return 0, nil, nil, fmt.Errorf("the guest says nothing for %v", silence)
			case len(guest.peeked) == 0 || classify(guest.peeked) == unclear && !f.isWeb():
				return raw, nil, nil, nil // its end is passed on too
			}
			return 0, nil, nil, fmt.Errorf("the guest ends within its first words: %w", err)
		}
	}
}

var past = time.Unix(1, 0)

// look says what the guest's first bytes are, or how many are needed to tell.
func (f *flow) look(b []byte) (k kind, hello *clientHello, need int, err error) {
	k = classify(b)
	port := f.destination.Port()
	switch {
	case k == unclear:
	case port == 80 && k != http1 && k != http2,
		port == 443 && k != isTLS && !(k == raw && bytes.HasPrefix(b, sshBanner)):
		return k, nil, 0, f.wrongPort()
	case k == isTLS:
		hello, err = parseClientHello(b)
		var m more
		if errors.As(err, &m) {
			return unclear, nil, int(m), nil
		}
		if err != nil {
			return k, nil, 0, &refusal{reason: err.Error()}
		}
	}
	return k, hello, 0, nil
}

func (f *flow) isWeb() bool { return f.destination.Port() == 80 || f.destination.Port() == 443 }

func (f *flow) wrongPort() error {
	if f.destination.Port() == 80 {
		return &refusal{reason: "not HTTP, on port 80"}
	}
	return &refusal{reason: "neither TLS nor SSH, on port 443"}
}

// serverFirst says what it means that the server has spoken, or ended, before it
// was clear what the guest speaks.
func (f *flow) serverFirst(k kind, heard []byte) (kind, error) {
	switch {
	case k != raw && len(heard) == 0:
		return k, errors.New("the server ends the connection")
	case k != raw:
		// Both at the same time. The server cannot have heard what the guest said.
		return k, errors.New("the server speaks before it was asked")
	case f.isWeb() && len(heard) == 0:
		return k, errors.New("the server ends the connection")
	case f.isWeb() && !bytes.HasPrefix(heard, sshBanner):
		return k, f.wrongPort()
	}
	return raw, nil
}
