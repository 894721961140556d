package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"
)

// downloadBytes is what the server answers with.
const downloadBytes = 64 << 20

// server is what guests get things from: on this host's loopback, in clear and by
// TLS. "/" is large, "/small" is small.
type server struct {
	http    http.Server
	plain   net.Listener
	secure  net.Listener
	ca      string // file of the certificate
	serving sync.WaitGroup
}

// serve starts it.
func (p *place) serve(ctx context.Context) (*server, error) {
	certificate, err := selfSigned(plainName, secretName)
	if err != nil {
		return nil, err
	}
	s := &server{ca: filepath.Join(p.dir, "server.pem")}
	if err := os.WriteFile(s.ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate.Certificate[0]}), 0o600); err != nil {
		return nil, err
	}
	content := make([]byte, downloadBytes)
	rand.Read(content) // nothing on the way can make it less
	mux := http.NewServeMux()
	mux.HandleFunc("/small", func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "small\n") })
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", strconv.Itoa(len(content)))
		w.Write(content)
	})
	s.http = http.Server{
		Handler:     mux,
		TLSConfig:   &tls.Config{Certificates: []tls.Certificate{certificate}},
		BaseContext: func(net.Listener) context.Context { return ctx },
		ErrorLog:    log.New(io.Discard, "", 0), // connections are cut when a guest ends
	}
	if s.plain, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		return nil, err
	}
	if s.secure, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		s.plain.Close()
		return nil, err
	}
	s.serving.Go(func() { s.http.Serve(s.plain) })
	s.serving.Go(func() { s.http.ServeTLS(s.secure, "", "") })
	return s, nil
}

func (s *server) plainURL(host string) string  { return urlOf("http", host, s.plain) }
func (s *server) secureURL(host string) string { return urlOf("https", host, s.secure) }

func urlOf(scheme, host string, l net.Listener) string {
	return fmt.Sprintf("%s://%s:%d/", scheme, host, l.Addr().(*net.TCPAddr).Port)
}

func (s *server) close() error {
	// One that has not been served yet is not known to the server.
	err := errors.Join(s.http.Close(), ignoreClosed(s.plain.Close()), ignoreClosed(s.secure.Close()))
	s.serving.Wait()
	return err
}

func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// selfSigned makes a certificate that is its own CA.
func selfSigned(names ...string) (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: names[0]}, DNSNames: names,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, err
}
