package agent

import (
	"errors"
	"io/fs"
	"slices"
	"strings"
	"testing"
)

const testPasswd = `root:x:0:0:root:/root:/bin/sh
# a comment
daemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin
bad line
worse:x:notanumber:1::/:
app:x:1000:1001:An App:/home/app:/bin/sh
1234:x:5:5:a name that is a number:/five:/bin/sh
other:x:1234:6::/six:/bin/sh
twin:x:1000:7::/seven:/bin/sh
nohome:x:8:8:::
+nis::::::
`

const testGroup = `root:x:0:
daemon:x:1:app,daemon
staff:x:50:daemon,app
wheel:x:10:root
app:x:1001:app
video:x:44:apple
short:x
`

func TestResolveUser(t *testing.T) {
	file := func(content string) func() ([]byte, error) {
		return func() ([]byte, error) { return []byte(content), nil }
	}
	for spec, want := range map[string]account{
		"":              {Credential{0, 0, []uint32{10}}, "root", "/root"},
		"root":          {Credential{0, 0, []uint32{10}}, "root", "/root"},
		"0":             {Credential{0, 0, []uint32{10}}, "root", "/root"},
		"app":           {Credential{1000, 1001, []uint32{1, 50}}, "app", "/home/app"},
		"1000":          {Credential{1000, 1001, []uint32{1, 50}}, "app", "/home/app"},
		"twin":          {Credential{1000, 7, nil}, "twin", "/seven"},
		"1234":          {Credential{5, 5, nil}, "1234", "/five"}, // the name goes before the number
		"4294967294":    {Credential{4294967294, 0, nil}, "", "/"},
		"app:staff":     {Credential{1000, 50, nil}, "app", "/home/app"},
		"app:77":        {Credential{1000, 77, nil}, "app", "/home/app"},
		"1:0":           {Credential{1, 0, nil}, "daemon", "/usr/sbin"},
		"99:staff":      {Credential{99, 50, nil}, "", "/"},
		"nohome":        {Credential{8, 8, nil}, "nohome", "/"},
		"nosuch":        {},
		"worse":         {},
		"app:nosuch":    {},
		"app:short":     {},
		":staff":        {},
		"app:":          {},
		"-1":            {},
		"4294967295":    {}, // means "unchanged" to the kernel
		"0x10":          {},
		"# a comment":   {},
		"app:staff:too": {},
	} {
		got, err := resolveUser(spec, file(testPasswd), file(testGroup))
		if want.home == "" {
			if !errors.Is(err, ErrUnknownUser) {
				t.Errorf("%q: got %v, %v; want ErrUnknownUser", spec, got, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%q: %v", spec, err)
			continue
		}
		if got.UID != want.UID || got.GID != want.GID || !slices.Equal(got.Groups, want.Groups) || got.name != want.name || got.home != want.home {
			t.Errorf("%q: got %+v, want %+v", spec, *got, want)
		}
	}
}

// Without the files a number will do, and root is root.
func TestResolveUserWithoutFiles(t *testing.T) {
	missing := func() ([]byte, error) { return nil, fs.ErrNotExist }
	for spec, want := range map[string][2]uint32{"": {0, 0}, "0": {0, 0}, "12": {12, 0}, "12:13": {12, 13}} {
		got, err := resolveUser(spec, missing, missing)
		if err != nil || got.UID != want[0] || got.GID != want[1] || got.home != "/" {
			t.Errorf("%q: got %+v, %v", spec, got, err)
		}
	}
	for _, spec := range []string{"root", "0:root"} {
		if _, err := resolveUser(spec, missing, missing); !errors.Is(err, ErrUnknownUser) || !strings.Contains(err.Error(), "not exist") {
			t.Errorf("%q: %v", spec, err)
		}
	}
}

func FuzzResolveUser(f *testing.F) {
	f.Add("app", testPasswd, testGroup)
	f.Add("1:2", ":::::::", ":::,")
	f.Fuzz(func(t *testing.T, spec, passwd, group string) {
		a, err := resolveUser(spec,
			func() ([]byte, error) { return []byte(passwd), nil },
			func() ([]byte, error) { return []byte(group), nil })
		if err == nil && (!strings.HasPrefix(a.home, "/") || a.UID == 1<<32-1 || a.GID == 1<<32-1) {
			t.Errorf("%q: %+v", spec, *a)
		}
	})
}
