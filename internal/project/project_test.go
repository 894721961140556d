package project

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/matchlock/matchlock/api"
	"github.com/matchlock/matchlock/internal/document/documenttest"
)

func TestSchema(t *testing.T) {
	documenttest.Schema(t, "schema.json", "A project of matchlock", reflect.TypeFor[File](), ".", "../../api")
}

// folder makes a project with a file that says text, and what else there is.
func folder(t *testing.T, text string) (dir string) {
	t.Helper()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	put(t, dir, Name, text)
	if err := os.Mkdir(filepath.Join(dir, "src"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/etc", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	return dir
}

func put(t *testing.T, dir, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, dir string) *File {
	t.Helper()
	f, err := Read(filepath.Join(dir, Name))
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func TestRead(t *testing.T) {
	dir := folder(t, `
name: web
image: debian:12
command: [make, test]
env: {A: "1", B: two}
timeout: 90s
cpus: 1.5
memory: 1g
disk_size: 2
mounts: ["./src:/src", ".:/work:overlay", ":/tmp/x:memory", "./matchlock.yaml:/project"]
tmpfs: ["/scratch:20m"]
labels: {team: a}
`)
	f := read(t, dir)
	if f.Name != "web" || f.Image != "debian:12" || !slices.Equal(f.Command, []string{"make", "test"}) || f.Env["B"] != "two" || f.Config.Timeout != 90*time.Second ||
		f.CPUs != 1.5 || f.Memory != 1<<30 || f.DiskSize != 2<<30 || f.Tmpfs[0].Size != 20<<20 {
		t.Errorf("read %+v", f.Config)
	}
	if got := f.Mounts[0]; got.Source != filepath.Join(dir, "src") || got.Mode != api.MountReadWrite || got.Protect != nil {
		t.Errorf("a folder in the project: %+v", got)
	}
	if got := f.Mounts[1]; got.Source != dir || !slices.Equal(got.Protect, []string{"/" + Name}) {
		t.Errorf("the project's folder: %+v", got)
	}
	if got := f.Mounts[3]; got.Mode != api.MountReadOnly {
		t.Errorf("the file itself: %+v", got)
	}
	if lines := f.Reaches(); lines != nil {
		t.Errorf("reaches %q", lines)
	}
	if err := Store(t.TempDir()).Check(f); err != nil {
		t.Error(err)
	}
}

func TestFaults(t *testing.T) {
	for text, want := range map[string]string{
		"image: a\nimages: b\n":              Name + `:2: unknown key "images"`,
		"memory: lots\n":                     Name + ":1: size",
		"memory: 0\n":                        "nothing is no size",
		"timeout: 5\n":                       "want a duration",
		"cpus: many\n":                       "want a number",
		"timeout_ns: 5\n":                    "unknown key",
		"mounts: [\"./none:/x\"]\n":          "no such file",
		"policy: none.yaml\n":                "no such file",
		"env: [A]\n":                         "want keys with values",
		"network: {allow: [\"a:b:c:d\"]}\n":  Name + ":1:",
		"secrets: [\"T@a.example=value\"]\n": "a value is not taken",
	} {
		dir := folder(t, text)
		_, err := Read(filepath.Join(dir, Name))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
}

// What reaches beyond the project is refused as long as it is not trusted, line by line,
// and what is not known to be harmless is among it.
func TestTrust(t *testing.T) {
	text := `
image: debian:12
mounts: ["./link:/etc", "../:/up:ro", "data:/data", "./src:/src"]
disks: ["disk.img:/disk"]
secrets: ["TOKEN@api.example"]
secret_in: ["TOKEN=query"]
sockets: ["/run/docker.sock:/docker.sock"]
privileged: true
cap_add: [SYS_ADMIN]
allow_setuid: true
presets: [pypi]
policy: rules.yaml
network:
  allow: ["*"]
  deny: ["b.example"]
  allow_private: true
  host_ports: ["22"]
  publish: ["8080:80"]
  resolve: ["a.example:127.0.0.1"]
  add_hosts: ["a.example:10.0.0.1"]
  dns: ["10.0.0.1"]
  splice: ["a.example"]
  upstream_ca: ["ca.pem"]
  upstream_proxy: "http://proxy.example:3128"
  intercept: true
  hooks: [{action: block}]
`
	dir := folder(t, text)
	put(t, dir, "rules.yaml", "allow: [a.example]\n")
	put(t, dir, "ca.pem", "one")
	f, store := read(t, dir), Store(filepath.Join(t.TempDir(), "trusted"))
	err := store.Check(f)
	untrusted, ok := errors.AsType[*UntrustedError](err)
	if !ok {
		t.Fatalf("got %v", err)
	}
	for _, want := range []string{
		"mounts: /etc:/etc", "mounts: " + filepath.Dir(dir), "mounts: data:/data", "disks: ", "secrets: TOKEN@api.example", "secret_in: ", "sockets: /run/docker.sock",
		"privileged: true", "cap_add: SYS_ADMIN", "allow_setuid: true", "presets: pypi", "policy: " + dir, "network.allow: *", "network.allow_private: true",
		"network.host_ports: 22", "network.publish: ", "network.resolve: a.example:127.0.0.1", "network.add_hosts: ", "network.dns: 10.0.0.1", "network.splice: ",
		"network.upstream_ca: ", "network.upstream_proxy: ", "network.intercept: true", "network.hooks: ",
	} {
		if !slices.ContainsFunc(untrusted.Lines, func(line string) bool { return strings.HasPrefix(line, want) }) {
			t.Errorf("%q is not told of: %q", want, untrusted.Lines)
		}
	}
	if len(untrusted.Lines) != 24 {
		t.Errorf("%d lines: %q", len(untrusted.Lines), untrusted.Lines)
	}

	trusted := func(want bool) {
		t.Helper()
		if err := store.Check(read(t, dir)); (err == nil) != want {
			t.Errorf("got %v, want trusted %v", err, want)
		}
	}
	if err := store.Trust(f); err != nil {
		t.Fatal(err)
	}
	trusted(true)
	for name, was := range map[string]string{Name: text, "rules.yaml": "allow: [a.example]\n", "ca.pem": "one"} {
		put(t, dir, name, was+"\n")
		trusted(false)
		put(t, dir, name, was)
		trusted(true)
	}
	if err := store.Revoke(f); err != nil {
		t.Fatal(err)
	}
	trusted(false)

	// The same file is not trusted elsewhere.
	if err := store.Trust(f); err != nil {
		t.Fatal(err)
	}
	other := folder(t, text)
	put(t, other, "rules.yaml", "allow: [a.example]\n")
	put(t, other, "ca.pem", "one")
	if err := store.Check(read(t, other)); err == nil {
		t.Error("a copy of what is trusted is trusted")
	}
}

// A file of another user's is not ours to believe.
func TestOwner(t *testing.T) {
	f := read(t, folder(t, "image: debian:12\n"))
	if lines := f.Reaches(); lines != nil {
		t.Errorf("reaches %q", lines)
	}
	f.owner = 4711
	if err := Store(t.TempDir()).Check(f); err == nil || !strings.Contains(err.Error(), "owner: user 4711") {
		t.Errorf("got %v", err)
	}
}

func TestTemplate(t *testing.T) {
	for _, file := range []string{"", "go.mod", "package.json", "Cargo.toml"} {
		dir := folder(t, "")
		if file != "" {
			put(t, dir, file, "")
		}
		put(t, dir, Name, Template(dir, ""))
		f := read(t, dir)
		if f.Image == "" || len(f.Mounts) != 1 || f.WorkDir != "/workspace" {
			t.Errorf("%s: %+v", file, f.Config)
		}
		if err := f.Config.Validate(); err != nil {
			t.Errorf("%s: %v", file, err)
		}
		if c, err := f.Laid(); err != nil || (len(f.Presets) > 0) != (len(c.Network.Allow) > 0) {
			t.Errorf("%s: %+v (%v)", file, c.Network, err)
		}
	}
}

func FuzzRead(f *testing.F) {
	f.Add([]byte("image: a\nnetwork: {allow: ['*']}\nmounts: ['.:/x,protect=y']\ntimeout: 5s\n"))
	f.Add([]byte("memory: 1.5g\ncpus: .5\nhooks: [{}]"))
	f.Fuzz(func(t *testing.T, text []byte) {
		dir := t.TempDir()
		put(t, dir, Name, string(text))
		file, err := Read(filepath.Join(dir, Name))
		if err != nil {
			return
		}
		file.Reaches()
		if err := Store(dir).Check(file); err == nil && len(file.Network.Allow) > 0 {
			t.Errorf("nobody trusts it, and it allows %v", file.Network.Allow)
		}
	})
}
