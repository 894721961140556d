package guest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const certificate = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"

// TestRooms makes room in bundles of several shapes, and fills it twice: as a
// sandbox does that starts, and as one that starts again.
func TestRooms(t *testing.T) {
	for name, before := range map[string]string{"a bundle": "one\n", "no last line feed": "one", "nothing": "", "missing": "-"} {
		path := filepath.Join(t.TempDir(), "certs", "bundle.crt")
		if before != "-" {
			os.MkdirAll(filepath.Dir(path), 0o755)
			if err := os.WriteFile(path, []byte(before), 0o644); err != nil {
				t.Fatal(err)
			}
		} else {
			before = "roots\n"
		}
		for _, der := range []string{"AAAA", "BBBB"} {
			tr := new(trust)
			if err := tr.makeRoom(path, []byte(strings.TrimPrefix(before, "one"))); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if err := tr.install([]byte(strings.Replace(certificate, "AAAA", der, 1)), false); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if err := errors.Join(tr.release(), tr.release()); err != nil || tr.rooms[0].mapping != nil {
				t.Fatalf("%s: unmapped twice: %v", name, err)
			}
		}
		got, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		first := strings.TrimSuffix(before, "\n")
		if first != "" {
			first += "\n"
		}
		want := first + roomMark + strings.Replace(certificate, "AAAA", "BBBB", 1)
		if string(bytes.TrimRight(got, "\n"))+"\n" != want || len(got) != len(first)+roomBytes {
			t.Errorf("%s: %d bytes, %q; want %q and blanks", name, len(got), got, want)
		}
	}
}

// TestRoomsOfCopies has user code replace the bundle, as update-ca-certificates
// does, and take another one away, before a copy is given a CA of its own.
func TestRoomsOfCopies(t *testing.T) {
	dir := t.TempDir()
	replaced, gone := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	tr := new(trust)
	for _, path := range []string{replaced, gone} {
		if err := tr.makeRoom(path, []byte("roots\n")); err != nil {
			t.Fatal(err)
		}
	}
	if err := tr.install([]byte(certificate), false); err != nil {
		t.Fatal(err)
	}
	old, err := os.ReadFile(replaced)
	if err == nil {
		err = os.WriteFile(replaced, append([]byte("others came first\n"), old...), 0o644)
	}
	if err := errors.Join(err, os.Remove(gone)); err != nil {
		t.Fatal(err)
	}
	if err := tr.install([]byte(strings.Replace(certificate, "AAAA", "BBBB", 1)), true); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(replaced)
	if err != nil || !strings.HasPrefix(string(got), "others came first\nroots\n"+roomMark) ||
		!strings.Contains(string(got), "BBBB") || strings.Contains(string(got), "AAAA") {
		t.Errorf("after the copy's CA the bundle is %q, %v", got, err)
	}
	for _, bad := range []string{"", "no certificate", certificate + "more", strings.Replace(certificate, "AAAA", strings.Repeat("A", 4096), 1)} {
		if err := tr.install([]byte(bad), false); err == nil {
			t.Errorf("%.40q was installed", bad)
		}
	}
}

func TestBundlesThatAreNone(t *testing.T) {
	dir := t.TempDir()
	large := filepath.Join(dir, "large")
	if err := errors.Join(os.WriteFile(large, nil, 0o600), os.Truncate(large, maxBundle+1)); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{dir, "/dev/null", large} {
		if err := new(trust).makeRoom(path, nil); err == nil {
			t.Errorf("room was made in %s", path)
		}
	}
}

// TestKeystore adds to a keystore as the JDK describes its form, and takes nothing
// for one that is none.
func TestKeystore(t *testing.T) {
	empty := binary.BigEndian.AppendUint32(nil, keystoreMagic)
	empty = binary.BigEndian.AppendUint32(empty, keystoreVersion)
	empty = binary.BigEndian.AppendUint32(empty, 0)
	empty = append(empty, keystoreDigest(empty)...)
	now := time.UnixMilli(1700000000000)
	one, err := keystoreWith(empty, []byte("DER of the first"), now)
	if err != nil {
		t.Fatal(err)
	}
	want := "\xfe\xed\xfe\xed\x00\x00\x00\x02\x00\x00\x00\x01\x00\x00\x00\x02\x00\x09matchlock\x00\x00\x01\x8b\xcf\xe5\x68\x00\x00\x05X.509\x00\x00\x00\x10DER of the first"
	if got := string(one[:len(one)-20]); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	again, err := keystoreWith(one, []byte("DER of another"), now)
	if err != nil || bytes.Contains(again, []byte("first")) || binary.BigEndian.Uint32(again[8:]) != 1 {
		t.Errorf("with another of ours in the first one's place: %q, %v", again, err)
	}
	flipped := bytes.Clone(one)
	flipped[30] ^= 1
	for _, bad := range [][]byte{nil, one[:20], flipped, []byte("-----BEGIN CERTIFICATE-----xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx")} {
		if _, err := keystoreWith(bad, []byte("DER"), now); !errors.Is(err, errNoKeystore) {
			t.Errorf("%.20q: %v, want errNoKeystore", bad, err)
		}
	}
}

func FuzzKeystore(f *testing.F) {
	empty := append([]byte("\xfe\xed\xfe\xed\x00\x00\x00\x02\x00\x00\x00\x00"), make([]byte, 20)...)
	f.Add(empty)
	f.Fuzz(func(t *testing.T, body []byte) {
		// The digest is right, so that what comes before it is looked at.
		store := append(bytes.Clone(body), keystoreDigest(body)...)
		if with, err := keystoreWith(store, []byte("DER"), time.Now()); err == nil {
			if _, err := keystoreWith(with, []byte("DER"), time.Now()); err != nil {
				t.Errorf("what we have written: %v", err)
			}
		}
	})
}
