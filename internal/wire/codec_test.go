package wire

import (
	"maps"
	"slices"
	"strings"
	"testing"
)

func TestCodec(t *testing.T) {
	var e Encoder
	e.Uint8(200)
	e.Bool(true)
	e.Uint32(1 << 31)
	e.Uint64(1 << 63)
	e.Uvarint(300)
	e.Varint(-300)
	e.Blob([]byte{1, 2})
	e.String("ä")
	e.Strings([]string{"a", "", "c"})
	e.Map(map[string]string{"k": "v", "l": ""})

	d := NewDecoder(e.Encoded())
	if d.Uint8() != 200 || !d.Bool() || d.Uint32() != 1<<31 || d.Uint64() != 1<<63 || d.Uvarint() != 300 || d.Varint() != -300 {
		t.Error("numbers differ")
	}
	if b := d.Blob(2); !slices.Equal(b, []byte{1, 2}) {
		t.Errorf("blob %v", b)
	}
	if s := d.String(2); s != "ä" {
		t.Errorf("string %q", s)
	}
	if list := d.Strings(3); !slices.Equal(list, []string{"a", "", "c"}) {
		t.Errorf("strings %q", list)
	}
	if m := d.Map(2); !maps.Equal(m, map[string]string{"k": "v", "l": ""}) {
		t.Errorf("map %q", m)
	}
	if err := d.Done(); err != nil {
		t.Error(err)
	}
}

func TestDecoderFaults(t *testing.T) {
	for name, test := range map[string]struct {
		message string
		read    func(*Decoder)
		want    string
	}{
		"nothing":          {"", func(d *Decoder) { d.Uint8() }, "ends too early"},
		"short number":     {"abc", func(d *Decoder) { d.Uint32() }, "ends too early"},
		"short varint":     {"\xff", func(d *Decoder) { d.Uvarint() }, "ends too early"},
		"endless varint":   {strings.Repeat("\xff", 11), func(d *Decoder) { d.Uvarint() }, "malformed"},
		"bool":             {"\x02", func(d *Decoder) { d.Bool() }, "malformed"},
		"string too long":  {"\x05hello", func(d *Decoder) { d.String(4) }, "5 where at most 4"},
		"string cut":       {"\x05hell", func(d *Decoder) { d.String(10) }, "ends too early"},
		"huge length":      {"\xff\xff\xff\xff\xff\xff\xff\xff\x7f", func(d *Decoder) { d.Blob(1 << 40) }, "at most"},
		"too many strings": {"\x02\x00\x00", func(d *Decoder) { d.Strings(1) }, "2 where at most 1"},
		"more than there":  {"\x7f\x00", func(d *Decoder) { d.Strings(1000) }, "ends too early"},
		"key twice":        {"\x02\x01k\x00\x01k\x00", func(d *Decoder) { d.Map(2) }, "malformed"},
		"trailing":         {"\x01\x02", func(d *Decoder) { d.Uint8() }, "bytes after"},
	} {
		t.Run(name, func(t *testing.T) {
			d := NewDecoder([]byte(test.message))
			test.read(d)
			if err := d.Done(); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %q", err, test.want)
			}
			if n := d.Uint8(); n != 0 {
				t.Errorf("a read after the fault returned %d", n)
			}
		})
	}
}

func TestPrintable(t *testing.T) {
	for in, want := range map[string]string{
		"plain, ünïcode, 世界": "plain, ünïcode, 世界",
		"\x1b[2J\a\r\n\t":    "\uFFFD[2J\uFFFD\uFFFD\uFFFD\uFFFD",
		"gpj\u202Eexe.":      "gpj\uFFFDexe.",
		"\xff\x00":           "\uFFFD\uFFFD",
	} {
		if got := Printable(in); got != want {
			t.Errorf("Printable(%q) = %q, want %q", in, got, want)
		}
	}
}

// FuzzCodec: what was read without a fault is the same when it is written and
// read again, and no input makes the decoder hold more than a small multiple of it.
func FuzzCodec(f *testing.F) {
	var e Encoder
	encode(&e, 7, -1, []byte("b"), []string{"s", ""}, map[string]string{"k": "v"})
	f.Add(e.Encoded())
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0x7f})
	f.Fuzz(func(t *testing.T, message []byte) {
		d := NewDecoder(message)
		u, i, b, list, m := decode(d)
		if d.Done() != nil {
			return
		}
		var e Encoder
		encode(&e, u, i, b, list, m)
		d = NewDecoder(e.Encoded())
		u2, i2, b2, list2, m2 := decode(d)
		if err := d.Done(); err != nil {
			t.Fatal(err)
		}
		if u != u2 || i != i2 || !slices.Equal(b, b2) || !slices.Equal(list, list2) || !maps.Equal(m, m2) {
			t.Errorf("%q became %q", message, e.Encoded())
		}
	})
}

func encode(e *Encoder, u uint64, i int64, b []byte, list []string, m map[string]string) {
	e.Uvarint(u)
	e.Varint(i)
	e.Blob(b)
	e.Strings(list)
	e.Map(m)
}

func decode(d *Decoder) (u uint64, i int64, b []byte, list []string, m map[string]string) {
	return d.Uvarint(), d.Varint(), d.Blob(1000), d.Strings(100), d.Map(100)
}
