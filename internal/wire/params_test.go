package wire

import (
	"net/netip"
	"reflect"
	"strings"
	"testing"
)

func TestParamsRoundTrip(t *testing.T) {
	tests := map[string]Params{
		"nothing":    {},
		"no network": {NoNetwork: true, Hostname: "box", Root: Root{Lowers: []string{"erofs"}}},
		"everything": {
			Hostname: "box", Address: netip.MustParsePrefix("192.168.100.2/24"), Gateway: netip.MustParseAddr("192.168.100.1"),
			DNS: []netip.Addr{netip.MustParseAddr("8.8.8.8"), netip.MustParseAddr("8.8.4.4"), netip.MustParseAddr("2001:db8::1")},
			MTU: 9000, Root: Root{Lowers: []string{"erofs", "ext4"}},
			Disks: []Disk{{Mount: "/data"}, {Mount: "/with blank:and%colon\n", ReadOnly: true}},
			CPUs:  0.5, CID: 3, Privileged: true, Trust: true,
		},
	}
	for name, want := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := ParseParams(Params{}, want.String())
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(got, want) {
				t.Errorf("%s\ngot  %+v\nwant %+v", want, got, want)
			}
		})
	}
}

func TestParseParamsLaysOverBase(t *testing.T) {
	cmdline := "console=ttyS0 ip=10.0.0.2::10.0.0.1:255.0.0.0:old:eth0:off:1.1.1.1 matchlock.mtu=1400 matchlock.disk=/a:rw quiet"
	base, err := ParseParams(Params{}, cmdline)
	if err != nil {
		t.Fatal(err)
	}
	got, err := ParseParams(base, "matchlock.hostname=new matchlock.dns=9.9.9.9")
	if err != nil {
		t.Fatal(err)
	}
	want := Params{
		Hostname: "new", Address: netip.MustParsePrefix("10.0.0.2/8"), Gateway: netip.MustParseAddr("10.0.0.1"),
		DNS: []netip.Addr{netip.MustParseAddr("9.9.9.9")}, MTU: 1400, Disks: []Disk{{Mount: "/a"}},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

func TestParseParamsRefuses(t *testing.T) {
	for _, text := range []string{
		"matchlock.unheard=1", "matchlock.mtu=x", "matchlock.mtu=0", "matchlock.mtu=65536", "matchlock.cpus=NaN", "matchlock.cpus=-1",
		"matchlock.hostname=", "matchlock.hostname=a;b", "matchlock.hostname=" + strings.Repeat("a", 65),
		"matchlock.dns=8.8.8.8,", "matchlock.dns=fe80::1%eth0", "matchlock.root=squashfs", "matchlock.root=overlay:", "matchlock.root=overlay:erofs,xfs",
		"matchlock.root=overlay:" + strings.Repeat("erofs,", 8) + "erofs", "matchlock.disk=data:rw", "matchlock.disk=/data", "matchlock.disk=/%4:rw", "matchlock.disk=/%00:rw",
		"matchlock.privileged=yes", "matchlock.cid=4294967296", "ip=1.2.3.4", "ip=1.2.3.4:::255.0.255.0", "ip=x:::255.0.0.0", "ip=::1:::255.0.0.0",
		strings.Repeat("x", MaxParams+1),
	} {
		if got, err := ParseParams(Params{}, text); err == nil {
			t.Errorf("ParseParams(%.60q) = %+v, want an error", text, got)
		}
	}
}

// The encoder and the parser are held against each other: whatever is read
// back once is read back the same for ever.
func FuzzParams(f *testing.F) {
	f.Add("ip=192.168.100.2::192.168.100.1:255.255.255.0:box:eth0:off:8.8.8.8:8.8.4.4 matchlock.dns=8.8.8.8,8.8.4.4")
	f.Add("ip=off matchlock.root=overlay:erofs,ext4 matchlock.disk=/a%20b:ro matchlock.disk=/c:rw matchlock.cpus=0.5 matchlock.cid=3")
	f.Add("console=ttyS0 panic=-1 matchlock.privileged=1 matchlock.mtu=1500 matchlock.hostname=a.b-c_d")
	f.Fuzz(func(t *testing.T, text string) {
		p, err := ParseParams(Params{}, text)
		if err != nil {
			return
		}
		again, err := ParseParams(Params{}, p.String())
		if err != nil {
			t.Fatalf("%q was read as %+v, whose form %q is refused: %v", text, p, p.String(), err)
		}
		if !reflect.DeepEqual(p, again) {
			t.Fatalf("%q\nfirst  %+v\nsecond %+v", text, p, again)
		}
	})
}
