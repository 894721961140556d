package sandbox

import (
	"encoding/base64"
	"encoding/json"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/matchlock/matchlock/api"
	"github.com/matchlock/matchlock/internal/image"
	"github.com/matchlock/matchlock/internal/policy"
	"github.com/matchlock/matchlock/internal/saved"
)

// What comes with a snapshot from elsewhere has to be what export writes, and may
// reach for nothing of this host.
func TestDecodeSent(t *testing.T) {
	const sandbox = `"id":"abcdefghijkl","name":"web","taken":"2026-01-02T03:04:05Z","image_digest":"sha256:0"`
	const image = `,"image":{"os":"linux","architecture":"amd64"}`
	sum := strings.Repeat("a5", 32)
	lowers := []saved.ExtraFile{{Name: "lower-0"}, {Name: "lower-1"}}
	for name, test := range map[string]struct {
		about string
		extra []saved.ExtraFile
		want  string // "": it is taken
	}{
		"all":                     {`{"sandbox":{` + sandbox + `,"config":{"image":"x"}}` + image + `}`, lowers, ""},
		"not JSON":                {`{`, lowers, "EOF"},
		"something more":          {`{"sandbox":{` + sandbox + `,"config":{"image":"x"},"more":1}` + image + `}`, lowers, "unknown field"},
		"more to do":              {`{"sandbox":{` + sandbox + `,"config":{"image":"x","run_on_host":"ls"}}` + image + `}`, lowers, "unknown field"},
		"no image":                {`{"sandbox":{` + sandbox + `,"config":{}}` + image + `}`, lowers, "image: none given"},
		"a disk":                  {`{"sandbox":{` + sandbox + `,"config":{"image":"x","disks":["/etc/shadow:/mnt:ro"]}}` + image + `}`, lowers, "disks of this host"},
		"a volume":                {`{"sandbox":{` + sandbox + `,"config":{"image":"x","mounts":["data:/data:rw"]}}` + image + `}`, lowers, "disks of this host"},
		"what was in a disk":      {`{"sandbox":{` + sandbox + `,"config":{"image":"x"},"disks":[{"mount":"/a","size":1,"sum":"` + sum + `"},{"mount":"/b","size":1,"sum":"` + sum + `"}]}` + image + `}`, lowers, ""},
		"disks reversed":          {`{"sandbox":{` + sandbox + `,"config":{"image":"x"},"disks":[{"mount":"/b","size":1,"sum":"` + sum + `"},{"mount":"/a","size":1,"sum":"` + sum + `"}]}` + image + `}`, lowers, "not a place"},
		"a disk's place":          {`{"sandbox":{` + sandbox + `,"config":{"image":"x"},"disks":[{"mount":"../a","size":1,"sum":"` + sum + `"}]}` + image + `}`, lowers, "not a place"},
		"a disk without a sum":    {`{"sandbox":{` + sandbox + `,"config":{"image":"x"},"disks":[{"mount":"/a","size":1}]}` + image + `}`, lowers, "does not say what was in it"},
		"a disk that is a file":   {`{"sandbox":{` + sandbox + `,"config":{"image":"x"},"disks":[{"mount":"/a","size":1,"sum":"` + sum + `","inode":7}]}` + image + `}`, lowers, "does not say what was in it"},
		"a disk that comes along": {`{"sandbox":{` + sandbox + `,"config":{"image":"x"},"disks":[{"mount":"/a","size":1,"sum":"` + sum + `","copied":true}]}` + image + `}`, lowers, "does not say what was in it"},
		"places":                  {`{"sandbox":{` + sandbox + `,"config":{"image":"x"},"places":[{"target":"/a","mode":"overlay"},{"target":"/b","mode":"memory"}]}` + image + `}`, lowers, ""},
		"no place":                {`{"sandbox":{` + sandbox + `,"config":{"image":"x"},"places":[{"target":"a","mode":"overlay"}]}` + image + `}`, lowers, "not an absolute path"},
		"a place twice":           {`{"sandbox":{` + sandbox + `,"config":{"image":"x"},"places":[{"target":"/a","mode":"overlay"},{"target":"/a/","mode":"ro"}]}` + image + `}`, lowers, "taken by another mount"},
		"a name as path":          {`{"sandbox":{` + strings.Replace(sandbox, "web", "../web", 1) + `,"config":{"image":"x"}}` + image + `}`, lowers, `name "../web"`},
		"an id as path":           {`{"sandbox":{` + strings.Replace(sandbox, "abcdefghijkl", "../x", 1) + `,"config":{"image":"x"}}` + image + `}`, lowers, `name "../x"`},
		"layers reversed":         {`{"sandbox":{` + sandbox + `,"config":{"image":"x"}}` + image + `}`, []saved.ExtraFile{lowers[1], lowers[0]}, `"lower-1" in the place of "lower-0"`},
		"another file":            {`{"sandbox":{` + sandbox + `,"config":{"image":"x"}}` + image + `}`, []saved.ExtraFile{{Name: "kernel-0"}}, "in the place of"},
	} {
		_, err := decodeSent(&saved.Arrival{About: json.RawMessage(test.about), Extra: test.extra})
		if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
			t.Errorf("%s: got %v, want %q", name, err, test.want)
		}
	}
}

// A stranger's snapshot opens nothing that is not public, by whatever way its network
// has to do so, and brings no key along.
func TestDisarm(t *testing.T) {
	addr := netip.MustParseAddr("10.0.0.1")
	rules := []api.Rule{{Target: "db"}, {Target: "web"}, {Target: "10.0.0.0/8"}}
	hosts := []api.HostIPMapping{{Host: "db", IP: addr.String()}, {Host: "web", IP: "9.9.9.9"}}
	r := savedRecord{Network: &networkRecord{CA: []byte("key")}}
	r.Config.Secrets = []api.Secret{{Name: "TOKEN", Hosts: []string{"db"}, Source: api.SecretFile, Where: "/etc/shadow"}}
	r.Config.Network = api.Network{
		Allow: slices.Clone(rules), AddHosts: slices.Clone(hosts), Resolve: hosts, AllowPrivate: true,
		HostPorts: []api.HostPort{{Port: 22, GuestPort: 22}}, Publish: []api.Publish{{GuestPort: 80}}, UpstreamCA: []string{"/etc/shadow"},
		UpstreamProxy: "http://127.0.0.1:8080", Hooks: []api.Hook{{Action: api.HookAsk, Socket: "/run/docker.sock"}}, DNS: []netip.Addr{addr}, Splice: []string{"web"},
	}
	opened := func() bool {
		p, err := policy.Compile(&r.Config)
		if err != nil {
			t.Fatal(err)
		}
		return p.Dial(policy.Flow{Name: "db", Port: 5432}, addr).Allow
	}
	if !opened() {
		t.Error("it was not open before")
	}
	r.Config.Sockets = []api.Socket{{Host: "/run/docker.sock", Guest: "/s"}}
	r.Config.Mounts = []api.Mount{
		{Source: "/etc", Target: "/etc", Mode: api.MountReadOnly}, {Target: "/default", Mode: api.MountMemory},
		{Target: "/huge", Mode: api.MountMemory, Quota: 1 << 50}, {Target: "/more", Mode: api.MountMemory},
	}
	r.disarm()
	var quotas []int64
	for _, m := range r.Config.Mounts {
		quotas = append(quotas, m.Quota)
	}
	if want := []int64{256 << 20, 4<<30 - 256<<20, 1}; !slices.Equal(quotas, want) {
		t.Errorf("its folders hold %d bytes, want %d", quotas, want)
	}
	if opened() {
		t.Error("a private address is open")
	}
	want := api.Network{Allow: rules[:2], AddHosts: hosts[1:]}
	if diff := cmp.Diff(want, r.Config.Network, cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("its network (-want +got):\n%s", diff)
	}
	if len(r.Config.Secrets) > 0 || len(r.Config.Sockets) > 0 || r.Network.CA != nil {
		t.Error("it has secrets, sockets, or a CA that others know")
	}
}

// What leaves this host says nothing that only this host is to know.
func TestSend(t *testing.T) {
	r := savedRecord{Network: &networkRecord{CA: []byte("hunter2")}}
	r.Config.Secrets = []api.Secret{{Name: "TOKEN", Hosts: []string{"web"}, Source: api.SecretCommand, Where: "pass hunter2"}}
	r.Config.Sockets = []api.Socket{{Host: "/run/hunter2", Guest: "/s"}}
	r.Config.Mounts = []api.Mount{{Source: "/home/hunter2", Target: "/src", Mode: api.MountReadWrite}}
	r.Config.Network = api.Network{
		Allow: []api.Rule{{Target: "kept.example"}}, UpstreamProxy: "http://user:hunter2@proxy:3128", UpstreamCA: []string{"/home/hunter2/ca.pem"},
		Hooks: []api.Hook{{Action: api.HookAsk, Socket: "/run/hunter2"}},
	}
	text, err := json.Marshal(send(r, image.Config{}))
	if err != nil {
		t.Fatal(err)
	}
	for _, secret := range []string{"hunter2", base64.StdEncoding.EncodeToString([]byte("hunter2"))} {
		if strings.Contains(string(text), secret) {
			t.Errorf("%q is in %s", secret, text)
		}
	}
	if !strings.Contains(string(text), "kept.example") {
		t.Errorf("no rule is in %s", text)
	}
}
