//go:build linux

package guest

import (
	"bytes"
	"crypto/sha1"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"io"
	"os"
	"time"
	"unicode/utf16"
)

// A Java keystore (JKS, version 2) is a header, entries, and a digest over both and
// the password; Java's own for the certificates it trusts is "changeit", and only
// keeps them from being changed by accident. Numbers are big-endian.
const (
	keystoreMagic    = 0xfeedfeed
	keystoreVersion  = 2
	keystoreTrusted  = 2 // the tag of an entry that is a certificate
	keystoreAlias    = "matchlock"
	keystorePassword = "changeit"
	keystoreWhitener = "Mighty Aphrodite"
)

var errNoKeystore = errors.New("neither a keystore in the form JKS, nor with the usual password")

// addToKeystore adds a certificate, in PEM, to those that Java trusts. A keystore of another
// kind is left as it is.
func addToKeystore(path string, certificate []byte) error {
	f, size, err := openBundle(path, os.O_RDWR)
	if err != nil {
		return err
	}
	defer f.Close()
	content, err := io.ReadAll(io.NewSectionReader(f, 0, size))
	if err != nil {
		return err
	}
	block, _ := pem.Decode(certificate)
	if block == nil {
		return errors.New("CA: not a certificate")
	}
	with, err := keystoreWith(content, block.Bytes, time.Now())
	if errors.Is(err, errNoKeystore) {
		return nil
	}
	if err == nil {
		_, err = f.WriteAt(with, 0)
	}
	return err
}

// keystoreWith returns a keystore with a certificate as its first entry. One that is
// there first under our alias gives way.
func keystoreWith(store, certificate []byte, now time.Time) ([]byte, error) {
	count, others, err := keystoreEntries(store)
	if err != nil {
		return nil, err
	}
	body := keystoreText(binary.BigEndian.AppendUint32(nil, keystoreTrusted), keystoreAlias)
	body = binary.BigEndian.AppendUint64(body, uint64(now.UnixMilli()))
	body = keystoreText(body, "X.509")
	body = binary.BigEndian.AppendUint32(body, uint32(len(certificate)))
	return keystoreOf(count+1, append(append(body, certificate...), others...)), nil
}

// keystoreEntries returns the entries of a keystore, and how many they are, without one
// that comes first under our alias.
func keystoreEntries(store []byte) (count uint32, body []byte, err error) {
	const head = 12
	if len(store) < head+sha1.Size || binary.BigEndian.Uint32(store) != keystoreMagic || binary.BigEndian.Uint32(store[4:]) != keystoreVersion {
		return 0, nil, errNoKeystore
	}
	count, body = binary.BigEndian.Uint32(store[8:]), store[head:len(store)-sha1.Size]
	if digest := keystoreDigest(store[:len(store)-sha1.Size]); !bytes.Equal(digest, store[len(store)-sha1.Size:]) {
		return 0, nil, errNoKeystore
	}
	start := keystoreText(binary.BigEndian.AppendUint32(nil, keystoreTrusted), keystoreAlias)
	const typed = 8 + 2 + len("X.509") // time, type
	if rest, ours := bytes.CutPrefix(body, start); ours && len(rest) >= typed+4 {
		n := binary.BigEndian.Uint32(rest[typed:])
		if uint64(n) > uint64(len(rest)-typed-4) {
			return 0, nil, errNoKeystore
		}
		body, count = rest[typed+4+int(n):], count-1
	}
	return count, body, nil
}

// keystoreOf returns the keystore of so many entries.
func keystoreOf(count uint32, body []byte) []byte {
	out := binary.BigEndian.AppendUint32(nil, keystoreMagic)
	out = binary.BigEndian.AppendUint32(out, keystoreVersion)
	out = binary.BigEndian.AppendUint32(out, count)
	out = append(out, body...)
	return append(out, keystoreDigest(out)...)
}

// keystoreText appends a text as java.io.DataOutput writes it.
func keystoreText(out []byte, text string) []byte {
	return append(binary.BigEndian.AppendUint16(out, uint16(len(text))), text...)
}

func keystoreDigest(content []byte) []byte {
	h := sha1.New()
	for _, unit := range utf16.Encode([]rune(keystorePassword)) {
		h.Write(binary.BigEndian.AppendUint16(nil, unit))
	}
	h.Write([]byte(keystoreWhitener))
	h.Write(content)
	return h.Sum(nil)
}
