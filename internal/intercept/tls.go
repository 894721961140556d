package intercept

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"slices"
)

// Alerts, RFC 8446, 6.2.
const (
	alertHandshakeFailure = 40
	alertAccessDenied     = 49
	alertUnrecognizedName = 112
)

// serve has a flow both ends of which are connected, until it has ended.
func (f *flow) serve(guest *guestConn, server *upstreamConn) error {
	k, hello, early, err := f.sniff(guest, server)
	if err != nil {
		guest.Abort()
		return err
	}
	switch k {
	case isTLS:
		return f.serveTLS(guest, server, hello)
	case http1, http2:
		f.is("http", true)
		return f.serveHTTP(guest, k == http2, newOrigin(f, server, k == http2))
	}
	if len(early) > 0 {
		if _, err := guest.Write(early); err != nil {
			return err
		}
	}
	return f.relay(guest, server)
}

// relay passes the flow on as it is. That one side resets it is no failure.
func (f *flow) relay(guest *guestConn, server *upstreamConn) error {
	if err := relay(guest, server); err != nil {
		f.i.Logger.Debug("flow", "id", f.id, "error", err)
	}
	return nil
}

func (f *flow) serveTLS(guest *guestConn, server *upstreamConn, hello *clientHello) error {
	f.is("tls", false)
	if err := f.checkServerName(hello); err != nil {
		alert(guest, alertUnrecognizedName)
		return err
	}
	p := f.i.policy.Load()
	f.mu.Lock()
	name := f.name
	f.mu.Unlock()
	spliced := p.Spliced(name)
	switch {
	case hello.ech && spliced:
		alert(guest, alertAccessDenied)
		return &refusal{reason: "the server's name is encrypted (ECH), and may not be looked into", hint: "without --splice " + name}
	case !spliced && (hello.ech || p.Terminates(name) || f.hooked(f.host())):
		return f.terminate(guest, server, hello)
	}
	return f.relay(guest, server)
}

// host is the flow's name, or else its address.
func (f *flow) host() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.name != "" {
		return f.name
	}
	return f.destination.Addr().Unmap().String()
}

// named reports whether the guest has given a name.
func (f *flow) named() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.name != ""
}

// checkServerName compares the name in a ClientHello with the flow's.
func (f *flow) checkServerName(hello *clientHello) error {
	if !f.named() {
		return f.checkFree("TLS server name", hello.serverName)
	}
	if hello.serverName == "" {
		return &refusal{reason: fmt.Sprintf("TLS without a server name, to %s", f.host())}
	}
	return f.choose("TLS server name", hello.serverName)
}

// alert ends a TLS handshake with the reason that there is for it.
func alert(guest net.Conn, description byte) {
	// A guest that does not take it is reset all the same.
	_, _ = guest.Write([]byte{21, 3, 3, 0, 2, 2, description})
}

// terminate is both the server to the guest and a client to the server.
func (f *flow) terminate(guest *guestConn, server *upstreamConn, hello *clientHello) error {
	f.is("tls", true)
	protocols := []string{"http/1.1"}
	if hello.protocols != nil {
		protocols = slices.DeleteFunc(slices.Clone(hello.protocols), func(p string) bool { return p != "h2" && p != "http/1.1" })
		if len(protocols) == 0 {
			alert(guest, alertHandshakeFailure)
			return &refusal{reason: fmt.Sprintf("%.64q within TLS that is looked into: only HTTP can be", hello.protocols), hint: "--splice " + f.host()}
		}
	}
	serverName := f.host()
	if !f.named() && hello.serverName != "" {
		serverName = hello.serverName
	}
	o := newTLSOrigin(f, serverName, protocols)
	defer o.close()
	// The guest is offered what the server can do, so that what it does not know of
	// h2, or of h1, it need not know. A server that cannot be trusted is told of in
	// the answers to requests.
	o.connect(f.ctx, server)
	offer := protocols
	if o.err == nil {
		offer = []string{o.protocol()}
	}
	leaf, err := f.i.CA.leaf(serverName)
	if err != nil {
		return err
	}
	front := tls.Server(guest, &tls.Config{
		Certificates: []tls.Certificate{*leaf},
		NextProtos:   offer,
		// It would be of no use: the next flow has keys of its own.
		SessionTicketsDisabled: true,
	})
	ctx, cancel := context.WithTimeout(f.ctx, helloTime)
	defer cancel()
	if err := front.HandshakeContext(ctx); err != nil {
		return fmt.Errorf("TLS with the guest: %w", err)
	}
	f.is("https", true)
	return f.serveHTTP(front, front.ConnectionState().NegotiatedProtocol == "h2", o)
}
