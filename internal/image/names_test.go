package image

import (
	"slices"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

func TestExpand(t *testing.T) {
	digest := "sha256:" + strings.Repeat("0a", 32)
	for ref, want := range map[string]string{
		"debian":                             "docker.io/library/debian:latest",
		"debian:12":                          "docker.io/library/debian:12",
		"docker.io/debian:12":                "docker.io/library/debian:12",
		"index.docker.io/debian":             "docker.io/library/debian:latest",
		"me/tool":                            "docker.io/me/tool:latest",
		"ghcr.io/me/tool:v1":                 "ghcr.io/me/tool:v1",
		"localhost:5000/x":                   "localhost:5000/x:latest",
		"debian@" + digest:                   "docker.io/library/debian@" + digest,
		"debian:12@" + digest:                "docker.io/library/debian@" + digest,
		"Upper":                              "",
		"a b":                                "",
		"":                                   "",
		"debian@sha256:short":                "",
		"debian:" + strings.Repeat("x", 200): "",
	} {
		got, err := Expand(ref)
		if got != want || (err != nil) != (want == "") {
			t.Errorf("Expand(%q) = %q, %v, want %q", ref, got, err, want)
		}
	}
}

func TestNear(t *testing.T) {
	names := []string{"docker.io/library/debian:12", "alpine", "docker.io/library/alpine:3", "ghcr.io/me/alpaca:1", "busybox", "ab"}
	for ref, want := range map[string][]string{
		"alpin":     {"alpine", "docker.io/library/alpine:3"},
		"debain:12": {"docker.io/library/debian:12"},
		"bsybox":    {"busybox"},
		"python":    nil,
		"xy":        nil,
	} {
		if got := near(ref, names); !slices.Equal(got, want) {
			t.Errorf("near(%q) = %q, want %q", ref, got, want)
		}
	}
}

func TestPlatforms(t *testing.T) {
	for want, fits := range map[string][]string{
		"linux/amd64":    {"linux/amd64", "linux/amd64/v1"},
		"linux/arm64":    {"linux/arm64", "linux/arm64/v8"},
		"linux/arm64/v8": {"linux/arm64", "linux/arm64/v8"},
		"linux/arm/v6":   {"linux/arm/v6"},
		"linux/arm":      {"linux/arm", "linux/arm/v7"},
	} {
		w, err := parsePlatform(want)
		if err != nil {
			t.Fatal(err)
		}
		for _, have := range []string{"linux/amd64", "linux/amd64/v1", "linux/amd64/v3", "linux/arm64", "linux/arm64/v8", "linux/arm", "linux/arm/v6", "linux/arm/v7", "windows/amd64", "linux/386"} {
			h, err := v1.ParsePlatform(have)
			if err != nil {
				t.Fatal(err)
			}
			if got := runsOn(*h, w); got != slices.Contains(fits, have) {
				t.Errorf("runsOn(%s, %s) = %v", have, want, got)
			}
		}
	}
	for _, bad := range []string{"windows/amd64", "linux/", "/amd64", "linux/arm64/v8/x"} {
		if _, err := parsePlatform(bad); err == nil {
			t.Errorf("parsePlatform accepted %q", bad)
		}
	}
}

func TestStack(t *testing.T) {
	ids := func(s string) []v1.Hash { // one letter, one layer
		var out []v1.Hash
		for _, c := range s {
			out = append(out, digestOf([]byte(string(c))))
		}
		return out
	}
	// Capital letters cling.
	clings := func(id v1.Hash) bool { return slices.Contains(ids("ABCDEFGHIJ"), id) }
	tests := []struct{ layers, merged, single string }{
		{"a", "", "a"},
		{"abcdefgh", "", "abcdefgh"},
		{"abcdefghi", "ab", "cdefghi"},
		{"aebe", "", "abe"},
		{"aaaaaaaaa", "", "a"},
		{"abCd", "abC", "d"},
		{"Abcd", "", "Abcd"}, // nothing below
		{"abcD", "abcD", ""},
		{"aBcDe", "aBcD", "e"},
		{"aBcdefghi", "aB", "cdefghi"},
		{"abCdefghi", "abC", "defghi"},
	}
	for _, test := range tests {
		got := newStack(ids(test.layers), clings)
		if !slices.Equal(got.merged, ids(test.merged)) || !slices.Equal(got.single, ids(test.single)) {
			t.Errorf("%s: %d merged and %d single, want %q and %q", test.layers, len(got.merged), len(got.single), test.merged, test.single)
		}
	}
}

func TestChainID(t *testing.T) {
	// Computed with sha256sum, as the image specification says.
	one := v1.Hash{Algorithm: "sha256", Hex: strings.Repeat("1", 64)}
	two := v1.Hash{Algorithm: "sha256", Hex: strings.Repeat("2", 64)}
	if got := chainID([]v1.Hash{one}); got != one {
		t.Errorf("of one layer: %s", got)
	}
	if got, want := chainID([]v1.Hash{one, two}).Hex, "9932074217c35353d2e03a3f5a86549f7c67bfeb0ba53e23d69f4d4c8f7958f5"; got != want {
		t.Errorf("of two: %s, want %s", got, want)
	}
}

func TestChanges(t *testing.T) {
	tests := []struct {
		lines []string
		want  v1.Config
	}{
		{[]string{`CMD ["a", "b c"]`}, v1.Config{Cmd: []string{"a", "b c"}, Env: []string{"A=1"}}},
		{[]string{"cmd echo hi"}, v1.Config{Cmd: []string{"/bin/sh", "-c", "echo hi"}, Env: []string{"A=1"}}},
		{[]string{`ENTRYPOINT ["e"]`}, v1.Config{Entrypoint: []string{"e"}, Env: []string{"A=1"}}},
		{[]string{`CMD ["c"]`, `ENTRYPOINT ["e"]`}, v1.Config{Entrypoint: []string{"e"}, Cmd: []string{"c"}, Env: []string{"A=1"}}},
		{[]string{"USER me", "WORKDIR /src"}, v1.Config{User: "me", WorkingDir: "/src", Cmd: []string{"/bin/sh"}, Env: []string{"A=1"}}},
		{[]string{`ENV A=2 B="x y" C='z' D=q\ r`}, v1.Config{Cmd: []string{"/bin/sh"}, Env: []string{"A=2", "B=x y", "C=z", "D=q r"}}},
		{[]string{"ENV B an old form"}, v1.Config{Cmd: []string{"/bin/sh"}, Env: []string{"A=1", "B=an old form"}}},
	}
	for _, test := range tests {
		got := v1.Config{Cmd: []string{"/bin/sh"}, Env: []string{"A=1"}}
		changes, err := parseChanges(test.lines)
		if err != nil {
			t.Errorf("%q: %v", test.lines, err)
			continue
		}
		applyChanges(&got, changes)
		if string(toJSON(t, got)) != string(toJSON(t, test.want)) {
			t.Errorf("%q: %s, want %s", test.lines, toJSON(t, got), toJSON(t, test.want))
		}
	}
	for _, bad := range []string{"", "CMD", "RUN x", `CMD ["a"`, `CMD ["\u0000"]`, "ENV", "ENV A", "ENV =x", "ENV A=1 =2", `ENV A="x`, "WORKDIR src", "USER a\x00b"} {
		if _, err := parseChanges([]string{bad}); err == nil || !strings.Contains(err.Error(), "change ") {
			t.Errorf("%q: %v, want an error that names it", bad, err)
		}
	}
}
