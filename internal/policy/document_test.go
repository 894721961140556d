package policy

import (
	"errors"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/matchlock/matchlock/api"
	"github.com/matchlock/matchlock/internal/document"
	"github.com/matchlock/matchlock/internal/document/documenttest"
)

const everything = `
presets: [pypi]
allow:
  - "*.example.com:443"   # why
  - 10.0.0.0/8:5432
  - '[fd00::1]:22'
deny: [bad.example.com]
allow_private: true
host_ports: [5432, "80:8080"]
publish: ["8080:80"]
resolve: ["api.test:127.0.0.1"]
add_hosts: ["db:fd00::5"]
dns: [1.1.1.1]
dns_mode: real
mtu: 1400
intercept: true
splice: [pinned.test]
upstream_ca: [ca.pem]
upstream_proxy: http://proxy.test:3128
none: false
hooks:
  - name: no-writes
    phase: before
    hosts: ["*.example.com"]
    methods: [DELETE]
    path: /v1/**
    action: block
  - action: mutate
    set_headers: {X-Level: 7}
    replace: [{find: a, replace: b}]
secrets: ["T@api.example.com=env:X"]
secret_in: ["T=query"]
`

func TestParse(t *testing.T) {
	d, err := Parse([]byte(everything), "p.yaml")
	if err != nil {
		t.Fatal(err)
	}
	c := config(t, "allow *.example.com:443", "allow 10.0.0.0/8:5432", "allow [fd00::1]:22", "deny bad.example.com", "allow-private",
		"host-port 5432", "host-port 80:8080", "resolve api.test:127.0.0.1", "add-host db:fd00::5", "intercept", "splice pinned.test",
		"secret T@api.example.com=env:X")
	want := Document{Presets: []string{"pypi"}, Network: c.Network, Secrets: c.Secrets, SecretIn: []api.SecretPlaces{{Name: "T", Query: true}}}
	want.Publish = []api.Publish{{HostPort: 8080, GuestPort: 80}}
	want.DNS, want.DNSMode, want.MTU = d.DNS, "real", 1400
	want.UpstreamCA, want.UpstreamProxy = []string{"ca.pem"}, "http://proxy.test:3128"
	want.Hooks = []api.Hook{
		{Name: "no-writes", Phase: api.HookBefore, Hosts: []string{"*.example.com"}, Methods: []string{"DELETE"}, Path: "/v1/**", Action: api.HookBlock},
		{Action: api.HookMutate, SetHeaders: map[string]string{"X-Level": "7"}, Replace: []api.Replacement{{Find: "a", Replace: "b"}}},
	}
	if diff := cmp.Diff(want, d, cmpopts.EquateComparable(d.DNS[0])); diff != "" || d.DNS[0].String() != "1.1.1.1" {
		t.Errorf("Parse (-want +got):\n%s", diff)
	}
	for _, empty := range []string{"", "# nothing\n", "allow:\n", "---\n"} {
		if d, err := Parse([]byte(empty), "p.yaml"); err != nil || len(d.Allow) > 0 {
			t.Errorf("%q: %+v, %v", empty, d, err)
		}
	}
}

func TestParseFaults(t *testing.T) {
	for text, want := range map[string][]string{
		"alow: []":                                    {`p.yaml:1: unknown key "alow"`},
		"allow: []\nsecrts: []\nx: 1":                 {`p.yaml:2: unknown key "secrts"`, `p.yaml:3: unknown key "x"`},
		"allow:\n- a.example\n- a..b:0\n- c:x":        {`p.yaml:3: rule "a..b:0"`, `p.yaml:4: rule "c:x"`},
		"allow: a.example":                            {`p.yaml:1: want a list`},
		"allow: [{a: b}]":                             {`p.yaml:1: want a text`},
		"allow: [null]":                               {`p.yaml:1: nothing in a list`},
		"allow: [~]":                                  {`p.yaml:1: nothing in a list`},
		"allow:\n- &x a.example\n- *x":                {`p.yaml:2: anchors`, `p.yaml:3: anchors`},
		"allow: &x [a.example]\ndeny: *x":             {`anchors`},
		"hooks: [{action: block, <<: {a: b}}]":        {`unknown key "<<"`},
		"allow: [!!str a]":                            {`tags are not taken`},
		"!!map {allow: []}":                           {`tags are not taken`},
		"mtu: 1\nmtu: 2":                              {`p.yaml:2: key "mtu" stands there twice`},
		"mtu: 0x5dc":                                  {`want a number`},
		"mtu: 99999999999":                            {`want a number`},
		"mtu: '1400'":                                 {`want a number`},
		"intercept: yes please":                       {`want true or false`},
		"intercept: 'true'":                           {`want true or false`},
		"[allow]":                                     {`want keys`},
		"allow: []\n---\nallow: ['*']":                {`more than one document`},
		"allow: [":                                    {`p.yaml: yaml: line`},
		"presets: [pipy]":                             {`preset "pipy"`},
		"hooks: [{hosts: [a], verb: x}]":              {`unknown key "verb"`},
		"add_hosts: [db]":                             {`want NAME:IP`},
		"secrets: ['T@a.example=hunter2']":            {`a value is not taken`},
		strings.Repeat("#", document.MaxSize+1):       {`larger than`},
		"x: 1\n" + strings.Repeat("- a\n", 40):        {`p.yaml`},
		"hooks:\n" + strings.Repeat("- {x: 1}\n", 40): {`and 20 faults more`},
	} {
		d, err := Parse([]byte(text), "p.yaml")
		if err == nil {
			t.Errorf("%.60q: no fault: %+v", text, d)
			continue
		}
		for _, want := range want {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%.60q: %v, want %q in it", text, err, want)
			}
		}
		if strings.Contains(err.Error(), "hunter2") {
			t.Errorf("the error repeats a value: %v", err)
		}
	}
	var hinted interface{ Hint() string }
	if _, err := Parse([]byte("alow: []"), "p"); !errors.As(err, &hinted) || !strings.Contains(hinted.Hint(), "allow_private") {
		t.Errorf("%v: no hint", err)
	}
}

// What costs a YAML parser time or memory is refused soon.
func TestParseBombs(t *testing.T) {
	laughs := "a0: &a0 [lol]\n"
	for i := range 30 {
		n := string(rune('a' + i/10))
		laughs += "k" + n + string(rune('0'+i%10)) + ": &b" + n + string(rune('0'+i%10)) + " [*a0,*a0,*a0,*a0]\n"
	}
	for _, text := range []string{laughs, strings.Repeat("[", document.MaxSize), strings.Repeat("{a: ", document.MaxSize/4), strings.Repeat("- ", document.MaxSize/2), strings.Repeat("a: b\n", document.MaxSize/5)} {
		begin := time.Now()
		if _, err := Parse([]byte(text), "p.yaml"); err == nil || len(err.Error()) > 10_000 {
			t.Errorf("%.20q: %.200v", text, err)
		}
		if took := time.Since(begin); took > 20*time.Second {
			t.Errorf("%.20q: took %s", text, took)
		}
	}
}

// TestMerge sees to it that no field of a document is left behind.
func TestMerge(t *testing.T) {
	var d Document
	fill(reflect.ValueOf(&d).Elem())
	d.Presets = nil
	var c api.Config
	if err := d.Merge(&c); err != nil {
		t.Fatal(err)
	}
	got := Document{Network: c.Network, Secrets: c.Secrets, SecretIn: c.SecretIn}
	if !reflect.DeepEqual(got, d) {
		t.Errorf("merged %+v, want %+v", got, d)
	}

	c = *config(t, "allow flag.example")
	c.Network.MTU = 1400
	d, err := Parse([]byte("presets: [pypi]\nallow: [file.example]\nmtu: 9000\ndns_mode: real"), "p.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Merge(&c); err != nil {
		t.Fatal(err)
	}
	var hosts []string
	for _, r := range c.Network.Allow {
		hosts = append(hosts, r.Target)
	}
	if want := []string{"pypi.org", "files.pythonhosted.org", "file.example", "flag.example"}; !slices.Equal(hosts, want) || c.Network.MTU != 1400 || c.Network.DNSMode != api.DNSReal {
		t.Errorf("merged %q, MTU %d, mode %s", hosts, c.Network.MTU, c.Network.DNSMode)
	}
}

// fill gives every field something that is not its zero value.
func fill(v reflect.Value) {
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			if v.Field(i).CanSet() {
				fill(v.Field(i))
			}
		}
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		fill(v.Index(0))
	case reflect.String:
		v.SetString("x")
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int64:
		v.SetInt(1)
	case reflect.Uint16:
		v.SetUint(1)
	}
}

func TestPresets(t *testing.T) {
	want := []string{"anthropic", "debian", "github", "go", "npm", "openai", "pypi"}
	if got := Presets(); !slices.Equal(got, want) {
		t.Errorf("presets %q", got)
	}
	for _, name := range Presets() {
		n, err := Preset(name)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		for _, r := range n.Allow {
			if strings.Contains(r.Target, "*") || r.UDP || r.First != r.Last || r.First != 443 && !(name == "debian" && r.First == 80) {
				t.Errorf("%s: rule %q is wider than a preset's", name, r)
			}
		}
		only := api.Network{Allow: n.Allow}
		if len(n.Allow) == 0 || !reflect.DeepEqual(n, only) {
			t.Errorf("%s: %+v, want rules that allow and nothing else", name, n)
		}
		if _, err := Compile(&api.Config{Network: n}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if text, err := PresetText(name); err != nil || !strings.HasPrefix(string(text), "# ") {
			t.Errorf("%s does not say what it is for", name)
		}
	}
	var hinted interface{ Hint() string }
	if _, err := Preset("../schema"); !errors.As(err, &hinted) || !strings.Contains(hinted.Hint(), "pypi") {
		t.Errorf("an unknown one: %v", err)
	}
}

func TestSchema(t *testing.T) {
	documenttest.Schema(t, "schema.json", "A policy file of matchlock", reflect.TypeFor[Document](), ".", "../../api")
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(everything))
	f.Add([]byte("allow:\n- &x a\n- *x"))
	f.Add([]byte("hooks: [{<<: {action: x}}]"))
	f.Fuzz(func(t *testing.T, text []byte) {
		d, err := Parse(text, "p.yaml")
		if err != nil {
			return
		}
		var c api.Config
		if err := d.Merge(&c); err != nil {
			t.Fatal(err)
		}
		if p, err := Compile(&c); err == nil {
			p.Flow(Flow{Name: "a.example", Port: 443})
		}
	})
}
