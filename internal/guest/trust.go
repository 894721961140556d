//go:build linux

package guest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/matchlock/matchlock/internal/agent"
)

// trust is the places at which programs look for whom to trust. Into each goes the
// certificate of the host's CA. Room for it is made while the machine is prepared,
// for to copy a bundle into the writable layer takes long; the certificate itself,
// another one in each sandbox, then takes the place of blanks.
type trust struct {
	rooms     []room
	keystores []string          // that the image has
	env       map[string]string // for programs that look nowhere by themselves
	roots     []byte            // that the bundle was made of, as the image has none
}

// room is where in a file the certificate goes. The file is mapped, and its pages
// are dirty: it is but copied there, while the first write to a disk is a long way
// through the kernel.
type room struct {
	path    string
	mapping []byte // whole pages; nil after release
	content []byte // of them what is the room
}

const (
	// sources are folders of certificates that a bundle is made anew of.
	debianSource = "/usr/local/share/ca-certificates"
	fedoraSource = "/etc/pki/ca-trust/source/anchors"
	sourceName   = "/matchlock.crt"

	// hashed is where OpenSSL finds the CA by its name alone: the hash is that of
	// intercept.CAName.
	hashed = "/etc/ssl/certs/c185044c.0"
)

// keystores are Java's.
var keystores = []string{
	"/etc/ssl/certs/java/cacerts",              // Debian
	"/etc/pki/ca-trust/extracted/java/cacerts", // Fedora
}

const (
	roomMark  = "# The CA of this sandbox's network.\n"
	roomBytes = 2048
	maxBundle = 4 << 20 // of a bundle that the image brings
)

// blankRoom is a room without a certificate.
func blankRoom() []byte { return filledRoom(nil) }

// filledRoom is a room with one.
func filledRoom(certificate []byte) []byte {
	content := append([]byte(roomMark), certificate...)
	return append(content, bytes.Repeat([]byte("\n"), roomBytes-len(content))...)
}

// prepareTrust makes room, in an image that nobody has run yet.
func prepareTrust(roots []byte) (*trust, error) {
	t := new(trust)
	bundle := ""
	seen := map[string]bool{}
	for _, path := range agent.Bundles() {
		real, err := filepath.EvalSymlinks(path)
		if err != nil || seen[real] {
			continue // an image has some of them
		}
		if err := t.makeRoom(real, nil); err != nil {
			return nil, err
		}
		seen[real] = true
		if bundle == "" {
			bundle = path
		}
	}
	if bundle == "" {
		bundle = agent.Bundles()[0]
		t.roots = bytes.Clone(roots) // they came in a request
		if err := t.makeRoom(bundle, roots); err != nil {
			return nil, err
		}
	}
	own := debianSource + sourceName
	if err := t.makeRoom(own, nil); err != nil {
		return nil, err
	}
	if isDir(fedoraSource) {
		if err := t.makeRoom(fedoraSource+sourceName, nil); err != nil {
			return nil, err
		}
	}
	if err := t.makeRoom(hashed, nil); err != nil {
		return nil, err
	}
	for _, path := range keystores {
		if _, err := os.Stat(path); err == nil {
			t.keystores = append(t.keystores, path)
		}
	}
	t.env = map[string]string{
		"SSL_CERT_FILE":       bundle, // OpenSSL, Go
		"REQUESTS_CA_BUNDLE":  bundle, // Python's requests, pip
		"CURL_CA_BUNDLE":      bundle,
		"GIT_SSL_CAINFO":      bundle,
		"AWS_CA_BUNDLE":       bundle,
		"CARGO_HTTP_CAINFO":   bundle,
		"NODE_EXTRA_CA_CERTS": own, // beside those that node brings
		"DENO_CERT":           own,
	}
	return t, nil
}

func isDir(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

// makeRoom makes room in a file. One that there is not is made, with content first.
func (t *trust) makeRoom(path string, content []byte) error {
	f, size, err := openBundle(path, os.O_RDWR)
	if errors.Is(err, fs.ErrNotExist) {
		if err = os.MkdirAll(filepath.Dir(path), 0o755); err == nil {
			f, err = os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o644)
		}
	}
	if err != nil {
		return fmt.Errorf("trusted certificates: %w", err)
	}
	defer f.Close()
	if size == 0 {
		if _, err := f.WriteAt(content, 0); err != nil {
			return err
		}
		size = int64(len(content))
	} else if content, err = io.ReadAll(io.NewSectionReader(f, 0, size)); err != nil {
		return err
	}
	// A sandbox that starts again has a room already.
	if at := bytes.Index(content, []byte(roomMark)); at >= 0 && len(content)-at >= roomBytes {
		return t.mapRoom(f, path, int64(at))
	}
	blank := blankRoom()
	if size > 0 && content[size-1] != '\n' {
		blank = append([]byte("\n"), blank...)
	}
	if _, err := f.WriteAt(blank, size); err != nil {
		return err
	}
	return t.mapRoom(f, path, size+int64(len(blank)-roomBytes))
}

// mapRoom maps the room at an offset in a file, and empties it.
func (t *trust) mapRoom(f *os.File, path string, offset int64) error {
	from := offset &^ int64(os.Getpagesize()-1)
	mapping, err := unix.Mmap(int(f.Fd()), from, int(offset-from)+roomBytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("trusted certificates: map %s: %w", path, err)
	}
	r := room{path, mapping, mapping[offset-from:]}
	copy(r.content, blankRoom())
	t.rooms = append(t.rooms, r)
	return nil
}

// openBundle opens a file of the image for what it should be.
func openBundle(path string, flags int) (*os.File, int64, error) {
	f, err := os.OpenFile(path, flags|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, 0, err
	}
	info, err := f.Stat()
	switch {
	case err != nil:
	case !info.Mode().IsRegular():
		err = fmt.Errorf("%s: not a file", path)
	case info.Size() > maxBundle:
		err = fmt.Errorf("%s: %d bytes, at most %d can be", path, info.Size(), maxBundle)
	default:
		return f, info.Size(), nil
	}
	f.Close()
	return nil, 0, err
}

// install has the guest trust a certificate. A copy, whose user code may have put
// other files there, may be given another one than it had.
func (t *trust) install(certificate []byte, isCopy bool) error {
	// To decode it would take longer than all else here.
	if !bytes.HasPrefix(certificate, []byte(pemBegin)) || bytes.Index(certificate, []byte(pemEnd)) != len(certificate)-len(pemEnd) ||
		len(roomMark)+len(certificate) > roomBytes {
		return errors.New("CA: not a certificate that there is room for")
	}
	if isCopy {
		return t.replace(certificate)
	}
	for _, r := range t.rooms {
		copy(r.content[len(roomMark):], certificate)
	}
	for _, path := range t.keystores {
		if err := addToKeystore(path, certificate); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
	}
	return nil
}

// release unmaps the rooms. A file system of which a file is mapped for writing
// cannot be made read-only; but to unmap one takes a while as well, so that it is
// done only where that may come.
func (t *trust) release() error {
	if t == nil {
		return nil
	}
	for i, r := range t.rooms {
		if r.mapping == nil {
			continue
		}
		if err := unix.Munmap(r.mapping); err != nil {
			return fmt.Errorf("trusted certificates: unmap %s: %w", r.path, err)
		}
		t.rooms[i] = room{path: r.path}
	}
	return nil
}

const (
	pemBegin = "-----BEGIN CERTIFICATE-----\n"
	pemEnd   = "-----END CERTIFICATE-----\n"
)

// replace puts the certificate in the place of another one. What is gone, or not
// what it was, is not missed by anybody.
func (t *trust) replace(certificate []byte) error {
	content := filledRoom(certificate)
	for _, r := range t.rooms {
		fill(r.path, content)
	}
	for _, path := range keystores {
		addToKeystore(path, certificate)
	}
	return nil
}

// fill writes the content of a room wherever in the file it is.
func fill(path string, content []byte) error {
	f, size, err := openBundle(path, os.O_RDWR|unix.O_NOFOLLOW)
	if err != nil {
		return err
	}
	defer f.Close()
	all, err := io.ReadAll(io.NewSectionReader(f, 0, size))
	if err != nil {
		return err
	}
	at := bytes.Index(all, []byte(roomMark))
	if at < 0 || len(all)-at < roomBytes {
		at = len(all)
	}
	_, err = f.WriteAt(content, int64(at))
	return err
}

// environment is what programs are told of it, unless they are told otherwise.
func (t *trust) environment(given map[string]string) map[string]string {
	env := map[string]string{}
	for key, value := range t.env {
		if _, ok := given[key]; !ok && !strings.ContainsRune(value, 0) {
			env[key] = value
		}
	}
	return env
}
