package sandbox

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/matchlock/matchlock/api"
	"github.com/matchlock/matchlock/internal/image"
)

func TestProcessOf(t *testing.T) {
	img := image.Config{Entrypoint: []string{"/entry", "-e"}, Cmd: []string{"cmd"}, User: "web", WorkingDir: "/srv", StopSignal: "SIGINT"}
	bare := image.Config{Cmd: []string{"/bin/sh"}}
	for _, tt := range []struct {
		name   string
		config api.Config
		image  image.Config
		want   process
	}{
		{"the image's word", api.Config{}, img, process{[]string{"/entry", "-e", "cmd"}, "web", "/srv", 2}},
		{"a command", api.Config{Command: []string{"a", "b"}}, img, process{[]string{"/entry", "-e", "a", "b"}, "web", "/srv", 2}},
		{"an entry point", api.Config{Entrypoint: []string{"x"}}, img, process{[]string{"x"}, "web", "/srv", 2}},
		{"both", api.Config{Entrypoint: []string{"x"}, Command: []string{"a"}}, img, process{[]string{"x", "a"}, "web", "/srv", 2}},
		{"entry point cleared", api.Config{Entrypoint: []string{}, Command: []string{"a"}}, img, process{[]string{"a"}, "web", "/srv", 2}},
		{"nothing left", api.Config{Entrypoint: []string{}}, img, process{nil, "web", "/srv", 2}},
		{"user and folder", api.Config{User: "0:0", WorkDir: "/w"}, img, process{[]string{"/entry", "-e", "cmd"}, "0:0", "/w", 2}},
		{"a bare image", api.Config{}, bare, process{[]string{"/bin/sh"}, "", "/", 15}},
		{"an image's relative folder", api.Config{}, image.Config{WorkingDir: "srv"}, process{nil, "", "/srv", 15}},
		{"an image's nonsense signal", api.Config{}, image.Config{StopSignal: "SIGNONE"}, process{nil, "", "/", 15}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := processOf(&tt.config, &tt.image)
			if diff := cmp.Diff(got, tt.want, cmp.AllowUnexported(process{})); diff != "" {
				t.Errorf("(-got +want):\n%s", diff)
			}
		})
	}
}

func TestEnvironment(t *testing.T) {
	got := environment("box", []string{"A=image", "B=image=twice", "C=", "nonsense", "=nothing"}, map[string]string{"A": "user", "D": ""})
	want := map[string]string{"HOSTNAME": "box", "A": "user", "B": "image=twice", "C": "", "D": ""}
	if diff := cmp.Diff(got, want); diff != "" {
		t.Errorf("(-got +want):\n%s", diff)
	}
	if got := environment("box", []string{"HOSTNAME=image"}, nil); got["HOSTNAME"] != "image" {
		t.Errorf("HOSTNAME is %q, the image's word is image", got["HOSTNAME"])
	}
}
