package intercept

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/http"
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

	maxMethod = 64       // bytes
	maxLine   = 16 << 10 // bytes of a first line, behind which it is a request that is too long

	http2Preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
)

// methods begin a request if a path follows; of other words the whole line says.
var methods = []string{
	"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "QUERY",
	"PROPFIND", "PROPPATCH", "MKCOL", "COPY", "MOVE", "LOCK", "UNLOCK", "REPORT", "SEARCH", "PURGE",
}

// classify says what a guest speaks that says this first. What it has said once it
// does not take back when there is more: who could have it say "raw" by sending less
// at a time could have a server read a request that nobody has looked at.
func classify(b []byte) kind {
	switch {
	case len(b) == 0, len(b) == 1 && b[0] == 22:
		return unclear
	case b[0] == 22 && b[1] == 3:
		return isTLS
	case b[0] == 22:
		return raw
	}
	if n := min(len(b), len(http2Preface)); string(b[:n]) == http2Preface[:n] {
		if n == len(http2Preface) {
			return http2
		}
		return unclear
	}
	// Servers take blank lines before a request, and some blanks too.
	b = bytes.TrimLeft(b, "\r\n\t ")
	line, _, ended := bytes.Cut(b, []byte("\n"))
	i := bytes.IndexAny(line, " \t")
	if i < 0 {
		if !ended && len(line) <= maxMethod && (len(line) == 0 || isToken(string(line))) {
			return unclear
		}
		return raw
	}
	method, target := string(line[:i]), string(bytes.TrimLeft(line[i:], " \t"))
	switch {
	case !isToken(method) || len(method) > maxMethod:
		return raw
	case strings.EqualFold(method, http.MethodConnect):
		return http1
	case target == "" && !ended:
		return unclear
	case !ended && len(target) < len("http") && hasPrefixFold("http", target):
		return unclear
	case target == "" || target[0] != '/' && target[0] != '*' && !hasPrefixFold(target, "http"):
		return raw // no server takes it for a request
	case slices.Contains(methods, method):
		return http1
	}
	version := strings.LastIndexAny(target, " \t") + 1
	switch {
	case version > 0 && ended && hasPrefixFold(target[version:], "HTTP/"), len(line) > maxLine:
		return http1
	case ended:
		return raw
	}
	return unclear
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
