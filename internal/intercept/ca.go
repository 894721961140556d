package intercept

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"sync"
	"time"
)

const (
	caLife   = 10 * 365 * 24 * time.Hour
	leafLife = 90 * 24 * time.Hour // clients take no leaf of more than 398 days
	// renewAhead before its end a leaf is minted anew: a connection may begin now.
	renewAhead = 7 * 24 * time.Hour
	// clockSkew is how far the guest's clock may be behind: that of a guest which
	// goes on from a snapshot is, until it is set.
	clockSkew = 48 * time.Hour

	maxLeaves = 1024 // kept
)

// CA signs what servers of terminated TLS show to the guest. Each sandbox has its
// own, whose key never leaves the host's memory but by Marshal. Any number of
// goroutines may use it.
type CA struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey

	// One key for all leaves: whoever could steal it could steal the CA's.
	leafKey *ecdsa.PrivateKey

	mu     sync.Mutex
	leaves map[string]*leaf
}

// leaf is a certificate, or who is there first is minting it.
type leaf struct {
	once sync.Once
	cert *tls.Certificate
	err  error
}

// CAName is the name of every sandbox's CA. OpenSSL finds a certificate by its
// name's hash, which the guest thus knows beforehand.
const CAName = "matchlock sandbox CA"

// NewCA makes a CA.
func NewCA() (*CA, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: CAName},
		NotBefore:             now.Add(-clockSkew),
		NotAfter:              now.Add(caLife),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	return newCA(der, key)
}

func newCA(der []byte, key *ecdsa.PrivateKey) (*CA, error) {
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("CA's certificate: %w", err)
	}
	if !cert.IsCA || !key.PublicKey.Equal(cert.PublicKey) {
		return nil, errors.New("CA's certificate is not that of its key")
	}
	leafKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	return &CA{cert: cert, key: key, leafKey: leafKey, leaves: make(map[string]*leaf)}, nil
}

// Marshal returns the CA with its key, in PEM, for ParseCA: for a snapshot, whose
// guest trusts it already. The caller sees to it that nobody else reads it.
func (ca *CA) Marshal() ([]byte, error) {
	key, err := x509.MarshalPKCS8PrivateKey(ca.key)
	if err != nil {
		return nil, err
	}
	return append(ca.PEM(), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})...), nil
}

// ParseCA reads what Marshal has returned.
func ParseCA(data []byte) (*CA, error) {
	var der []byte
	var key *ecdsa.PrivateKey
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		switch block.Type {
		case "CERTIFICATE":
			der = block.Bytes
		case "PRIVATE KEY":
			parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
			if err != nil {
				return nil, errors.New("CA's key: not in PKCS #8") // the cause may quote it
			}
			key, _ = parsed.(*ecdsa.PrivateKey)
		}
	}
	if der == nil || key == nil {
		return nil, errors.New("CA: no certificate with an ECDSA key")
	}
	return newCA(der, key)
}

// PEM is the certificate that the guest is to trust.
func (ca *CA) PEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.cert.Raw})
}

// leaf returns a certificate for a name or an address. The caller has asked the
// policy before: what is refused is never signed.
func (ca *CA) leaf(host string) (*tls.Certificate, error) {
	ca.mu.Lock()
	l := ca.leaves[host]
	if l != nil && l.cert != nil && time.Until(l.cert.Leaf.NotAfter) < renewAhead {
		l = nil
	}
	if l == nil {
		if len(ca.leaves) >= maxLeaves {
			for other := range ca.leaves { // any one will do: to mint it again takes 0.1 ms
				delete(ca.leaves, other)
				break
			}
		}
		l = new(leaf)
		ca.leaves[host] = l
	}
	ca.mu.Unlock()
	l.once.Do(func() {
		cert, err := ca.mint(host)
		ca.mu.Lock()
		defer ca.mu.Unlock()
		l.cert, l.err = cert, err
	})
	return l.cert, l.err
}

func (ca *CA) mint(host string) (*tls.Certificate, error) {
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{Organization: []string{"matchlock"}},
		NotBefore:             now.Add(-clockSkew),
		NotAfter:              now.Add(leafLife),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
	}
	if ip := net.ParseIP(host); ip != nil {
		template.IPAddresses = []net.IP{ip}
	} else {
		template.DNSNames = []string{host}
	}
	if template.NotAfter.After(ca.cert.NotAfter) {
		template.NotAfter = ca.cert.NotAfter
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.cert, ca.leafKey.Public(), ca.key)
	if err != nil {
		return nil, fmt.Errorf("certificate of %s: %w", host, err)
	}
	parsed, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("certificate of %s: %w", host, err)
	}
	return &tls.Certificate{Certificate: [][]byte{der, ca.cert.Raw}, PrivateKey: crypto.PrivateKey(ca.leafKey), Leaf: parsed}, nil
}

// newSerial returns 127 random bits, as a positive number of at most 16 bytes.
func newSerial() (*big.Int, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 126))
	if err != nil {
		return nil, err
	}
	return serial.SetBit(serial, 126, 1), nil
}
