package intercept

import (
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestCA(t *testing.T) {
	ca, err := NewCA()
	if err != nil {
		t.Fatal(err)
	}
	text, err := ca.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	again, err := ParseCA(text)
	if err != nil {
		t.Fatal(err)
	}
	if string(again.PEM()) != string(ca.PEM()) || strings.Contains(string(ca.PEM()), "PRIVATE") {
		t.Error("another certificate, or more than that")
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca.PEM())
	for _, host := range []string{"web.test", "a_b.test", "192.0.2.1", "2001:db8::1"} {
		cert, err := again.leaf(host)
		if err != nil {
			t.Fatal(err)
		}
		// A guest whose clock is a day behind takes it too.
		for _, now := range []time.Time{time.Now(), time.Now().Add(-24 * time.Hour)} {
			if _, err := cert.Leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: host, CurrentTime: now}); err != nil {
				t.Errorf("%s: %v", host, err)
			}
		}
		if cert.Leaf.NotAfter.Sub(cert.Leaf.NotBefore) > 398*24*time.Hour || cert.Leaf.IsCA {
			t.Errorf("%s: %v", host, cert.Leaf.NotAfter)
		}
	}
}

func TestParseCA(t *testing.T) {
	ca, _ := NewCA()
	other, _ := NewCA()
	text, _ := ca.Marshal()
	foreign, _ := other.Marshal()
	_, key := pem.Decode(foreign)
	leaf, _ := ca.leaf("web.test")
	for name, in := range map[string][]byte{
		"nothing": nil, "no key": ca.PEM(), "no certificate": []byte(strings.TrimPrefix(string(text), string(ca.PEM()))),
		"another's key": append(ca.PEM(), key...), "garbage": []byte("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"),
		"a leaf": append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: leaf.Certificate[0]}), key...),
	} {
		if _, err := ParseCA(in); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}

func TestLeaves(t *testing.T) {
	ca, err := NewCA()
	if err != nil {
		t.Fatal(err)
	}
	// All at once: it is minted once.
	certs := make([]any, 20)
	var all sync.WaitGroup
	for i := range certs {
		all.Go(func() { certs[i], _ = ca.leaf("web.test") })
	}
	all.Wait()
	for _, c := range certs {
		if c != certs[0] {
			t.Fatal("minted twice")
		}
	}
	for i := range maxLeaves + 50 {
		if _, err := ca.leaf(fmt.Sprintf("n%d.test", i)); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(ca.leaves); n > maxLeaves {
		t.Errorf("%d leaves are kept", n)
	}
	// What ends soon is minted anew.
	old, _ := ca.leaf("old.test")
	old.Leaf.NotAfter = time.Now().Add(time.Hour)
	if renewed, _ := ca.leaf("old.test"); renewed == old {
		t.Error("a certificate that ends within the hour")
	}
}
