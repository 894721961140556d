package boot

import (
	"bytes"
	"debug/elf"
	"io"
	"strings"
	"testing"
)

func TestBzImage(t *testing.T) {
	vmlinux := testVmlinux()
	packers := map[string]func([]byte) []byte{"none": nil, "gz": packers["gz"], "xz": packers["xz"], "zst": packers["zst"], "lz4": packers["lz4"], "lzma": packers["lzma"]}
	for name, pack := range packers {
		t.Run(name, func(t *testing.T) {
			file := bzImageOf(vmlinux, pack)
			img, err := openImage(bytes.NewReader(file), int64(len(file)), "amd64")
			if err != nil {
				t.Fatal(err)
			}
			if img.kind != kindBzImage || img.release != testRelease {
				t.Errorf("got %s of %q, want bzImage of %q", img.kind, img.release, testRelease)
			}
			var got bytes.Buffer
			if err := img.writeVmlinux(&got); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got.Bytes(), vmlinux) {
				t.Errorf("unpacked %d bytes, not the %d that were packed", got.Len(), len(vmlinux))
			}
		})
	}
}

// le writes a little-endian number of the width of v at an offset.
func le(file []byte, at int, v any) []byte {
	place(file[at:], v)
	return file
}

func TestBzImageCorrupt(t *testing.T) {
	good := func() []byte { return bzImageOf(testVmlinux(), packers["lz4"]) }
	size := len(good())
	tests := []struct {
		name string
		file []byte
		want string
	}{
		{"empty", nil, errNoKernel.Error()},
		{"text", []byte("#!/bin/sh\n"), errNoKernel.Error()},
		{"zeros", make([]byte, 4096), errNoKernel.Error()},
		{"boot sector alone", good()[:512], errNoKernel.Error()},
		{"no boot flag", le(good(), 0x1fe, uint16(0)), errNoKernel.Error()},
		{"old protocol", le(good(), 0x206, uint16(0x207)), "boot protocol 2.07 is older than 2.08"},
		{"payload far away", le(good(), 0x248, uint32(1<<32-1)), "lies outside the file"},
		{"payload too long", le(good(), 0x24c, uint32(size)), "lies outside the file"},
		{"payload of the greatest length", le(good(), 0x24c, uint32(1<<32-1)), "lies outside the file"},
		{"no payload", le(good(), 0x24c, uint32(0)), "lies outside the file"},
		{"set-up beyond the file", le(good(), 0x1f1, byte(255))[:size-3], "lies outside the file"},
		{"cut", good()[:size-100], "lies outside the file"},
		{"claims less", le(good(), size-4, uint32(10)), "payload is not the 10 bytes that it claims to be"},
		{"claims more", le(good(), size-4, uint32(1<<29)), "payload is not the 536870912 bytes that it claims to be"},
		{"claims too much", le(good(), size-4, uint32(1<<32-1)), "claims to unpack to 4294967295 bytes"},
		{"bad payload", le(good(), 1024+64+8, uint64(1<<64-1)), "bzImage: payload: "},
		{"wrong architecture", elfSpec{machine: elf.EM_AARCH64}.bytes(), "built for arm64, not amd64"},
		{"strange architecture", elfSpec{machine: elf.EM_S390}.bytes(), "built for EM_S390, not amd64"},
		{"half an ELF header", elfSpec{}.bytes()[:40], errCut.Error()},
		{"vmlinux without its section names", elfSpec{notes: pvhNotes}.bytes()[:400], errCut.Error()},
		{"vmlinux without the end of a segment", le(elfSpec{notes: pvhNotes}.bytes(), 64+32, uint64(1<<20)), errCut.Error()},
		{"arm64 Image", le(make([]byte, 64), 56, []byte("ARM\x64")), "built for arm64, not amd64"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			img, err := openImage(bytes.NewReader(tt.file), int64(len(tt.file)), "amd64")
			if err == nil {
				err = img.writeVmlinux(io.Discard)
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got error %v, want %q", err, tt.want)
			}
		})
	}
	t.Run("larger than any kernel", func(t *testing.T) {
		if _, err := openImage(bytes.NewReader(good()), maxKernel+1, "amd64"); err == nil {
			t.Error("got no error")
		}
	})
}

func TestPVH(t *testing.T) {
	tests := []struct {
		name  string
		notes []byte
		want  bool
	}{
		{"none", nil, false},
		{"as Linux has it", pvhNotes, true},
		{"other notes", elfNote("GNU", 18, []byte("8 bytes.")), false},
		{"other Xen note", elfNote("Xen", 1, []byte("8 bytes.")), false},
		{"name of the greatest length", le(elfNote("Xen", 18, nil), 0, uint32(1<<32-1)), false},
		{"content of the greatest length", le(elfNote("Xen", 18, nil), 4, uint32(1<<32-1)), false},
		{"cut", pvhNotes[:13], false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := hasPVH(bytes.NewReader(elfSpec{notes: tt.notes}.bytes()))
			if err != nil || got != tt.want {
				t.Errorf("got %v, %v, want %v", got, err, tt.want)
			}
		})
	}
}

func TestFindRelease(t *testing.T) {
	block := strings.Repeat("x", 1<<20)
	tests := []struct {
		name, text, want string
	}{
		{"at the start", "Linux version 6.1.0-rc3+ (gcc)", "6.1.0-rc3+"},
		{"across blocks", block[:len(block)-5] + "Linux version 6.1.0 x", "6.1.0"},
		{"at the end", block + "Linux version 6.1.0", "6.1.0"},
		{"after a decoy", "Linux version %s and Linux version 6.12.48+deb13-cloud-amd64 x", "6.12.48+deb13-cloud-amd64"},
		{"a path", "Linux version 6/../../etc x", ""},
		{"too long", "Linux version 6" + strings.Repeat(".1", 40), ""},
		{"nowhere", block, ""},
		{"cut", "Linux version", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := findRelease(strings.NewReader(tt.text), int64(len(tt.text)))
			if got != tt.want || (err == nil) != (tt.want != "") {
				t.Errorf("got %q, %v, want %q", got, err, tt.want)
			}
		})
	}
}

func TestFindHZ(t *testing.T) {
	gz := func(s string) string { return string(packers["gz"]([]byte(s))) }
	tests := []struct {
		name, text string
		want       int
	}{
		{"none", "nothing", 0},
		{"there", "...IKCFG_ST" + gz("CONFIG_HZ_100=y\nCONFIG_HZ=100\n") + "IKCFG_ED", 100},
		{"no HZ", "IKCFG_ST" + gz("CONFIG_X=y\n") + "IKCFG_ED", 0},
		{"not a number", "IKCFG_ST" + gz("CONFIG_HZ=fast\n") + "IKCFG_ED", 0},
		{"no clock", "IKCFG_ST" + gz("CONFIG_HZ=1000000\n") + "IKCFG_ED", 0},
		{"corrupt", "IKCFG_ST\x1f\x8bgarbage", 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := findHZ(strings.NewReader(tt.text), int64(len(tt.text))); got != tt.want {
				t.Errorf("got %d, want %d", got, tt.want)
			}
		})
	}
}

func FuzzImage(f *testing.F) {
	small := elfSpec{notes: pvhNotes, text: "Linux version 6.1.0 (x) IKCFG_ST\x1f\x8b"}.bytes()
	f.Add(small)
	for _, pack := range packers {
		f.Add(bzImageOf(small, pack))
	}
	f.Fuzz(func(t *testing.T, file []byte) {
		for arch := range machines {
			r := bytes.NewReader(file)
			img, err := openImage(r, int64(len(file)), arch)
			if err != nil {
				continue
			}
			if img.kind != kindBzImage {
				hasPVH(r)
				findHZ(r, img.size)
				if release, err := findRelease(r, img.size); err == nil && !releasePattern().MatchString(release) {
					t.Errorf("release %q", release)
				}
				continue
			}
			size, err := img.unpacked()
			if err != nil || size > 1<<20 { // a size that is claimed and true is no fault, but takes its time
				continue
			}
			var vmlinux bytes.Buffer
			if err := img.writeVmlinux(&vmlinux); err == nil && int64(vmlinux.Len()) != size {
				t.Errorf("unpacked %d bytes, not %d", vmlinux.Len(), size)
			}
		}
	})
}
