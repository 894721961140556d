package api

import (
	"encoding/json"
	"math"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// full has every field set.
var full = Config{
	Image: "debian:12", Pull: PullNever, Platform: "linux/" + runtime.GOARCH,
	Entrypoint: []string{}, Command: []string{"sh", "-c", "echo"}, Env: map[string]string{"A": "b=c"},
	User: "1000:staff", WorkDir: "/work", Timeout: 90 * time.Second,
	CPUs: 0.5, Memory: 1 << 30, DiskSize: 10 << 30,
	Disks:   []Disk{{File: "data:1.ext4", Mount: "/data", ReadOnly: true}},
	Tmpfs:   []Tmpfs{{Path: "/scratch", Size: 64 << 20}, {Path: "/more"}},
	Sockets: []Socket{{Host: "/tmp/agent:1", Guest: "/run/agent"}},
	ShmSize: 1 << 20, Hostname: "box", Network: Network{AddHosts: []HostIPMapping{{Host: "db", IP: "fd00::1"}}},
	CapAdd: []string{"NET_ADMIN"}, CapDrop: []string{"CHOWN"}, AllowSetuid: true, ReadOnly: true,
	Ulimits: []Ulimit{{Name: "nofile", Soft: 1024, Hard: math.MaxUint64}},
	Labels:  map[string]string{"owner": "ada"},
}

func TestConfigValidatesWhatIsFine(t *testing.T) {
	for _, c := range []Config{{Image: "busybox"}, Config{Image: "busybox"}.WithDefaults(), full} {
		if err := c.Validate(); err != nil {
			t.Errorf("Validate(%+v) = %v", c, err)
		}
	}
}

func TestConfigValidate(t *testing.T) {
	for _, tt := range []struct {
		name  string
		spoil func(*Config)
		want  string
	}{
		{"no image", func(c *Config) { c.Image = "" }, "image: none given"},
		{"pull policy", func(c *Config) { c.Pull = "sometimes" }, `pull policy "sometimes"`},
		{"platform", func(c *Config) { c.Platform = "linux/mips" }, `platform "linux/mips": this host runs linux/`},
		{"platform of another system", func(c *Config) { c.Platform = "windows/amd64" }, `platform "windows/amd64"`},
		{"environment name", func(c *Config) { c.Env = map[string]string{"A=B": ""} }, `environment variable "A=B"`},
		{"environment value", func(c *Config) { c.Env = map[string]string{"A": "\x00"} }, `environment variable "A"`},
		{"NUL in the command", func(c *Config) { c.Command = []string{"a\x00b"} }, "NUL in an argument"},
		{"empty command name", func(c *Config) { c.Command = []string{"", "x"} }, "its name is empty"},
		{"user without group", func(c *Config) { c.User = "ada:" }, `user "ada:"`},
		{"user of three parts", func(c *Config) { c.User = "a:b:c" }, `user "a:b:c"`},
		{"relative working directory", func(c *Config) { c.WorkDir = "work" }, `working directory "work": not an absolute path`},
		{"negative timeout", func(c *Config) { c.Timeout = -1 }, "timeout -1ns"},
		{"label", func(c *Config) { c.Labels = map[string]string{"a b": ""} }, `label "a b"`},
		{"negative CPUs", func(c *Config) { c.CPUs = -1 }, "CPUs -1: not a positive number"},
		{"CPUs not a number", func(c *Config) { c.CPUs = math.NaN() }, "CPUs NaN"},
		{"more CPUs than the host has", func(c *Config) { c.CPUs = float64(runtime.NumCPU()) + 0.1 }, "the host has"},
		{"infinite CPUs", func(c *Config) { c.CPUs = math.Inf(1) }, "the host has"},
		{"too little memory", func(c *Config) { c.Memory = 16 << 20 }, "memory 16 MiB: a guest needs at least 112 MiB to boot"},
		{"ragged memory", func(c *Config) { c.Memory = 512<<20 + 1 }, "not a multiple of 1 MiB"},
		{"negative memory", func(c *Config) { c.Memory = -1 << 20 }, "a guest needs at least"},
		{"tiny disk", func(c *Config) { c.DiskSize = 1 << 20 }, "disk size 1 MiB: at least 64 MiB"},
		{"ragged disk", func(c *Config) { c.DiskSize = 1<<30 + 1 }, "not a multiple of 4096"},
		{"shm", func(c *Config) { c.ShmSize = -1 }, "size of /dev/shm"},
		{"unknown ulimit", func(c *Config) { c.Ulimits = []Ulimit{{Name: "files"}} }, `ulimit "files": unknown; there are as,`},
		{"soft above hard", func(c *Config) { c.Ulimits = []Ulimit{{"nofile", 2, 1}} }, "above the hard one"},
		{"disk at /", func(c *Config) { c.Disks = []Disk{{File: "a", Mount: "/."}} }, "not an absolute path below /"},
		{"disk without a file", func(c *Config) { c.Disks = []Disk{{Mount: "/a"}} }, "no file"},
		{"two at one place", func(c *Config) { c.Disks, c.Tmpfs = []Disk{{File: "a", Mount: "/a"}}, []Tmpfs{{Path: "/a/"}} }, "tmpfs: /a is taken"},
		{"socket at no path", func(c *Config) { c.Sockets = []Socket{{Host: "/s", Guest: "s"}} }, `socket "/s": "s" is not an absolute path`},
		{"socket of nothing", func(c *Config) { c.Sockets = []Socket{{Guest: "/s"}} }, `socket for "/s": no path of the host`},
		{"socket with a long path", func(c *Config) { c.Sockets = []Socket{{Host: "/s", Guest: "/" + strings.Repeat("x", 107)}} }, `has 108 bytes, and a socket's address 107 at most`},
		{"two sockets at one place", func(c *Config) { c.Sockets = []Socket{{"/a", "/s"}, {"/b", "/s"}} }, `socket "/b": /s is taken`},
		{"many sockets", func(c *Config) { c.Sockets = make([]Socket, MaxSockets+1) }, "sockets: 17 of them, at most 16"},
		{"relative tmpfs", func(c *Config) { c.Tmpfs = []Tmpfs{{Path: "tmp"}} }, `tmpfs: "tmp"`},
		{"negative tmpfs", func(c *Config) { c.Tmpfs = []Tmpfs{{Path: "/tmp", Size: -1}} }, "size of -1 bytes"},
		{"hostname", func(c *Config) { c.Hostname = "a b" }, `hostname "a b"`},
		{"hostname with a line break", func(c *Config) { c.Hostname = "a\nb" }, `hostname "a\nb"`},
		{"host", func(c *Config) { c.Network.AddHosts = []HostIPMapping{{"a b", "1.2.3.4"}} }, `host "a b"`},
		{"host's address", func(c *Config) { c.Network.AddHosts = []HostIPMapping{{"db", "1.2.3"}} }, `"1.2.3" is not an IP address`},
		{"capability", func(c *Config) { c.CapAdd = []string{"NET_FLY"} }, `capability "NET_FLY": unknown`},
		{"privileged and restricted", func(c *Config) { c.Privileged = true; c.CapDrop = []string{"ALL"} }, "privileged: lifts all"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := Config{Image: "busybox"}
			tt.spoil(&c)
			if err := c.Validate(); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Validate = %v, want %q in it", err, tt.want)
			}
		})
	}
}

func TestConfigValidateReportsAll(t *testing.T) {
	c := Config{CPUs: -1, Memory: 1, Hostname: "/"}
	joined, ok := c.Validate().(interface{ Unwrap() []error })
	if !ok || len(joined.Unwrap()) != 4 {
		t.Errorf("Validate = %v, want four errors joined: image, CPUs, memory, hostname", c.Validate())
	}
}

func TestConfigJSON(t *testing.T) {
	data, err := json.Marshal(full)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`"disks":["data:1.ext4:/data:ro"]`, `"tmpfs":["/scratch:67108864b","/more"]`, `"sockets":["/tmp/agent:1:/run/agent"]`, `"ulimits":["nofile=1024:unlimited"]`,
		`"timeout":"1m30s"`, `"entrypoint":[]`, `"work_dir":"/work"`, `"memory":1073741824`,
	} {
		if !strings.Contains(string(data), want) {
			t.Errorf("JSON lacks %s: %s", want, data)
		}
	}
	var back Config
	if err := json.Unmarshal(data, &back); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(back, full); diff != "" {
		t.Errorf("after JSON (-got +want):\n%s", diff)
	}
	if data, err := json.Marshal(Config{Image: "a"}); err != nil || string(data) != `{"image":"a"}` {
		t.Errorf("JSON of a bare configuration = %s, %v", data, err)
	}
}

func TestConfigJSONRefuses(t *testing.T) {
	for _, tt := range []struct{ data, want string }{
		{`{"image":"a","read-only":true}`, "unknown field"},
		{`{"image":"a","timeout":"soon"}`, `"soon": want a duration`},
		{`{"image":"a","timeout":5}`, "timeout"},
		{`{"image":"a","ulimits":["nofile"]}`, "want NAME=SOFT[:HARD]"},
	} {
		c := Config{Image: "kept"}
		if err := json.Unmarshal([]byte(tt.data), &c); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("Unmarshal(%s) = %v, want %q in it", tt.data, err, tt.want)
		}
		if c.Image != "kept" {
			t.Errorf("Unmarshal(%s) failed and left %+v", tt.data, c)
		}
	}
}

func FuzzConfigJSON(f *testing.F) {
	data, err := json.Marshal(full)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(string(data))
	f.Add(`{"image":"a","disks":["a:/b"],"tmpfs":["/c:1m"],"ulimits":["core=0"],"timeout":"1h"}`)
	f.Fuzz(func(t *testing.T, data string) {
		var c Config
		if json.Unmarshal([]byte(data), &c) != nil || c.Validate() != nil {
			return
		}
		again, err := json.Marshal(c)
		if err != nil {
			t.Fatalf("what was read cannot be written: %v", err)
		}
		var back Config
		if err := json.Unmarshal(again, &back); err != nil {
			t.Fatalf("%s: %v", again, err)
		}
		once, errOnce := json.Marshal(back)
		if errOnce != nil || string(once) != string(again) {
			t.Fatalf("not stable: %s, then %s, %v", again, once, errOnce)
		}
	})
}

func TestWithDefaults(t *testing.T) {
	got := Config{Image: "a"}.WithDefaults()
	want := Config{Image: "a", Pull: PullMissing, CPUs: 1, Memory: 512 << 20, DiskSize: 5 << 30}
	if diff := cmp.Diff(got, want); diff != "" {
		t.Errorf("(-got +want):\n%s", diff)
	}
	if diff := cmp.Diff(full.WithDefaults(), full); diff != "" {
		t.Errorf("defaults in the place of what was given (-got +want):\n%s", diff)
	}
}
