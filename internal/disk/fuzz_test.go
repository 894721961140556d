package disk

import (
	"archive/tar"
	"bytes"
	"errors"
	"os"
	"testing"
)

// FuzzLayerWriter takes any bytes for two tars: what is not refused must become an image without a flaw, merged or not.
func FuzzLayerWriter(f *testing.F) {
	for _, test := range oneLayer {
		if len(test.tar) < 1000 {
			f.Add(parseTar(f, test.tar), []byte(nil))
		}
	}
	for _, test := range stacks {
		f.Add(parseTar(f, test.layers[0]), parseTar(f, test.layers[1]))
	}
	for _, e := range attrEntries {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		hdr := e.hdr
		hdr.Format = tar.FormatPAX
		if len(hdr.PAXRecords) < 3 {
			writeEntry(f, w, &hdr, "")
			f.Add(b.Bytes(), []byte(nil))
		}
	}
	file, err := os.CreateTemp(f.TempDir(), "")
	if err != nil {
		f.Fatal(err)
	}
	defer file.Close()
	f.Fuzz(func(t *testing.T, one, two []byte) {
		one, two = sealHeaders(one), sealHeaders(two)
		for _, base := range []bool{false, true} {
			if err := file.Truncate(0); err != nil {
				t.Fatal(err)
			}
			w := NewLayerWriter(file, LayerOptions{Base: base, MaxBytes: 1 << 20, MaxEntries: 1000, AllowNoEnd: true})
			err := w.AddTar(bytes.NewReader(one))
			if err == nil && base {
				err = w.AddTar(bytes.NewReader(two))
			}
			if err != nil {
				continue
			}
			info, err := w.Close()
			if err != nil {
				t.Fatalf("Close: %v", err)
			}
			tree, err := readImage(file)
			if err != nil {
				t.Fatalf("bad image: %v", err)
			}
			if info.Unpacked > 1<<20 || info.Entries > 1000 || len(tree) > 1001 {
				t.Errorf("more than allowed: %+v, %d names", info, len(tree))
			}
			for name, n := range tree {
				if err := checkNode(n, base); err != nil {
					t.Errorf("%q: %v", name, err)
				}
			}
		}
	})
}

// sealHeaders gives every block that could be a header the right checksum, which chance hardly would.
func sealHeaders(archive []byte) []byte {
	archive = bytes.Clone(archive)
	for b := archive; len(b) >= tarBlock; b = b[tarBlock:] {
		if string(b[257:262]) == "ustar" {
			setType(b, b[156])
		}
	}
	return archive
}

// checkNode tells what a layer must not be able to put into an image.
func checkNode(n node, base bool) error {
	for name, value := range n.Xattrs {
		ours := name == "trusted.overlay.opaque" && value == "y" && n.Mode&0o170000 == modeFolder && !base
		if bytes.Contains([]byte(name), []byte(".overlay.")) && !ours {
			return errors.New("xattr " + name)
		}
	}
	if base && n.Mode&0o170000 == modeChar && n.Rdev == 0 {
		return errors.New("a whiteout at the bottom")
	}
	return nil
}
