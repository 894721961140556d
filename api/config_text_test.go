package api

import (
	"math"
	"reflect"
	"strings"
	"testing"
)

func TestParseSize(t *testing.T) {
	for _, tt := range []struct {
		text string
		unit int64
		want int64
	}{
		{"512", MiB, 512 << 20},
		{"5", GiB, 5 << 30},
		{"0", GiB, 0},
		{"512m", GiB, 512 << 20},
		{"512M", GiB, 512 << 20},
		{"1g", MiB, 1 << 30},
		{"5GiB", MiB, 5 << 30},
		{"5gb", MiB, 5 << 30},
		{"2t", MiB, 2 << 40},
		{"64k", MiB, 64 << 10},
		{"100b", MiB, 100},
		{"1.5g", MiB, 3 << 29},
		{"0.5", GiB, 1 << 29},
		{"8388607T", MiB, 8388607 << 40},
	} {
		got, err := ParseSize(tt.text, tt.unit)
		if err != nil || got != tt.want {
			t.Errorf("ParseSize(%q, %d) = %d, %v; want %d", tt.text, tt.unit, got, err, tt.want)
		}
	}
	for _, text := range []string{
		"", "m", "-1", "+1", "1e3", "0x10", "1 g", "1.", ".5", "1.2.3", "12q", "1mm", "1gg", "1ib", "1kg", "1big",
		"inf", "nan", "9223372036854775807", "8388608t", "99999999999999999999",
	} {
		if got, err := ParseSize(text, MiB); err == nil || !strings.Contains(err.Error(), "size ") {
			t.Errorf("ParseSize(%q) = %d, %v; want an error that names the size", text, got, err)
		}
	}
}

func FuzzParseSize(f *testing.F) {
	for _, text := range []string{"512", "1.5g", "5GiB", "1e3", "8388608t", "0.9999999999999999t"} {
		f.Add(text, int64(MiB))
	}
	f.Fuzz(func(t *testing.T, text string, unit int64) {
		if unit < 1 {
			return
		}
		if size, err := ParseSize(text, unit); err == nil && size < 0 {
			t.Errorf("ParseSize(%q, %d) = %d", text, unit, size)
		}
	})
}

func TestFormatSize(t *testing.T) {
	for _, tt := range []struct {
		bytes int64
		want  string
	}{
		{0, "0 B"}, {1023, "1023 B"}, {1024, "1 KiB"}, {1536, "1.5 KiB"}, {96 << 20, "96 MiB"}, {5 << 30, "5 GiB"},
		{1000 << 20, "0.977 GiB"}, {math.MaxInt64, "8.19e+03 PiB"},
	} {
		if got := FormatSize(tt.bytes); got != tt.want {
			t.Errorf("FormatSize(%d) = %q, want %q", tt.bytes, got, tt.want)
		}
	}
}

func TestDiskText(t *testing.T) {
	for text, want := range map[string]Disk{
		"a.ext4:/data":       {File: "a.ext4", Mount: "/data"},
		"a.ext4:/data:ro":    {File: "a.ext4", Mount: "/data", ReadOnly: true},
		"a.ext4:/data:rw":    {File: "a.ext4", Mount: "/data"},
		"dir:a/b.ext4:/d:ro": {File: "dir:a/b.ext4", Mount: "/d", ReadOnly: true},
		"a.ext4:data":        {File: "a.ext4", Mount: "data"}, // Validate's business
	} {
		var got Disk
		if err := got.UnmarshalText([]byte(text)); err != nil || got != want {
			t.Errorf("%q = %+v, %v; want %+v", text, got, err, want)
		}
	}
	var d Disk
	if err := d.UnmarshalText([]byte("a.ext4")); err == nil || !strings.Contains(err.Error(), `disk "a.ext4"`) {
		t.Errorf("a disk without a place in the guest: %v", err)
	}
}

func TestTmpfsText(t *testing.T) {
	for text, want := range map[string]Tmpfs{
		"/run":            {Path: "/run"},
		"/run:64m":        {Path: "/run", Size: 64 << 20},
		"/run:64":         {Path: "/run", Size: 64 << 20},
		"/run:size=64m":   {Path: "/run", Size: 64 << 20}, // docker's form
		"/run:123456789b": {Path: "/run", Size: 123456789},
	} {
		var got Tmpfs
		if err := got.UnmarshalText([]byte(text)); err != nil || got != want {
			t.Errorf("%q = %+v, %v; want %+v", text, got, err, want)
		}
	}
	var m Tmpfs
	if err := m.UnmarshalText([]byte("/run:rw,noexec")); err == nil || !strings.Contains(err.Error(), `tmpfs "/run": size "rw,noexec"`) {
		t.Errorf("an option that is no size: %v", err)
	}
}

func TestUlimitText(t *testing.T) {
	for text, want := range map[string]Ulimit{
		"nofile=1024":               {"nofile", 1024, 1024},
		"nofile=1024:2048":          {"nofile", 1024, 2048},
		"core=0":                    {"core", 0, 0},
		"stack=8192:unlimited":      {"stack", 8192, math.MaxUint64},
		"memlock=-1":                {"memlock", math.MaxUint64, math.MaxUint64},
		"nproc=unlimited:unlimited": {"nproc", math.MaxUint64, math.MaxUint64},
	} {
		var got Ulimit
		if err := got.UnmarshalText([]byte(text)); err != nil || got != want {
			t.Errorf("%q = %+v, %v; want %+v", text, got, err, want)
		}
	}
	for _, text := range []string{"nofile", "nofile=", "nofile=many", "nofile=1:", "nofile=1:2:3", "nofile=-2"} {
		var u Ulimit
		if err := u.UnmarshalText([]byte(text)); err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("ulimit %q = %+v, %v; want an error that names it", text, u, err)
		}
	}
}

func TestParseHost(t *testing.T) {
	for text, want := range map[string]HostIPMapping{
		"db:10.0.0.1":  {"db", "10.0.0.1"},
		"db:fd00::1":   {"db", "fd00::1"},
		"db:[fd00::1]": {"db", "fd00::1"},
	} {
		if got, err := ParseHost(text); err != nil || got != want {
			t.Errorf("ParseHost(%q) = %+v, %v; want %+v", text, got, err, want)
		}
	}
	if _, err := ParseHost("db"); err == nil {
		t.Error("ParseHost without an address = nil")
	}
}

func FuzzTexts(f *testing.F) {
	for _, text := range []string{"a:/b:ro", "/run:64m", "nofile=1:unlimited", "db:[::1]", "", ":", "="} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		var disk, disk2 Disk
		if disk.UnmarshalText([]byte(text)) == nil {
			again, _ := disk.MarshalText()
			if disk2.UnmarshalText(again) != nil || disk2 != disk {
				t.Errorf("disk %q: %+v, then %+v", text, disk, disk2)
			}
		}
		var limit, limit2 Ulimit
		if limit.UnmarshalText([]byte(text)) == nil {
			again, _ := limit.MarshalText()
			if limit2.UnmarshalText(again) != nil || limit2 != limit {
				t.Errorf("ulimit %q: %+v, then %+v", text, limit, limit2)
			}
		}
		var tmpfs, tmpfs2 Tmpfs
		if tmpfs.UnmarshalText([]byte(text)) == nil {
			again, _ := tmpfs.MarshalText()
			if tmpfs2.UnmarshalText(again) != nil || tmpfs2 != tmpfs {
				t.Errorf("tmpfs %q: %+v, then %+v", text, tmpfs, tmpfs2)
			}
		}
		ParseHost(text)
	})
}

// A mount's text means that mount, whatever its folder is called.
func TestMountText(t *testing.T) {
	for _, m := range []Mount{
		{Source: "/a,hide=x:/w:rw", Target: "/b", Mode: MountOverlay},
		{Source: `/a\,b\\c\d`, Target: `/x,ro\`, Mode: MountReadOnly},
		{Source: "/a:/b:rw,", Target: "/c", Mode: MountReadWrite, Hide: []string{`\*`, "b:c"}, Quota: 5},
		{Target: "/m", Mode: MountMemory},
	} {
		text, err := m.MarshalText()
		if err != nil {
			t.Fatal(err)
		}
		var back Mount
		if err := back.UnmarshalText(text); err != nil || !reflect.DeepEqual(back, m) {
			t.Errorf("%+v became %s and %+v (%v)", m, text, back, err)
		}
	}
	var m Mount
	if err := m.UnmarshalText([]byte(`C:\a\b:/x`)); err != nil || m.Source != `C:\a\b` {
		t.Errorf(`C:\a\b is %q (%v)`, m.Source, err)
	}
}
