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
		{"the image's word", api.Config{}, img, process{Argv: []string{"/entry", "-e", "cmd"}, User: "web", Dir: "/srv", StopSignal: 2}},
		{"a command", api.Config{Command: []string{"a", "b"}}, img, process{Argv: []string{"/entry", "-e", "a", "b"}, User: "web", Dir: "/srv", StopSignal: 2}},
		{"an entry point", api.Config{Entrypoint: []string{"x"}}, img, process{Argv: []string{"x"}, User: "web", Dir: "/srv", StopSignal: 2}},
		{"both", api.Config{Entrypoint: []string{"x"}, Command: []string{"a"}}, img, process{Argv: []string{"x", "a"}, User: "web", Dir: "/srv", StopSignal: 2}},
		{"entry point cleared", api.Config{Entrypoint: []string{}, Command: []string{"a"}}, img, process{Argv: []string{"a"}, User: "web", Dir: "/srv", StopSignal: 2}},
		{"nothing left", api.Config{Entrypoint: []string{}}, img, process{Argv: nil, User: "web", Dir: "/srv", StopSignal: 2}},
		{"user and folder", api.Config{User: "0:0", WorkDir: "/w"}, img, process{Argv: []string{"/entry", "-e", "cmd"}, User: "0:0", Dir: "/w", StopSignal: 2}},
		{"a bare image", api.Config{}, bare, process{Argv: []string{"/bin/sh"}, User: "", Dir: "/", StopSignal: 15}},
		{"an image's relative folder", api.Config{}, image.Config{WorkingDir: "srv"}, process{Argv: nil, User: "", Dir: "/srv", StopSignal: 15}},
		{"an image's nonsense signal", api.Config{}, image.Config{StopSignal: "SIGNONE"}, process{Argv: nil, User: "", Dir: "/", StopSignal: 15}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := processOf(&tt.config, &tt.image)
			if diff := cmp.Diff(got, tt.want); diff != "" {
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
