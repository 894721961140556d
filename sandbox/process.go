package sandbox

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/matchlock/matchlock/api"
	"github.com/matchlock/matchlock/internal/image"
)

// process is what a configuration and its image together say of the commands
// of a sandbox.
type process struct {
	Image      string        `json:"image"` // as it was asked for
	Argv       []string      `json:"argv"`  // of the first one; empty: nobody says
	User       string        `json:"user"`
	Dir        string        `json:"dir"`
	StopSignal int           `json:"stop_signal"` // Linux's number
	Timeout    time.Duration `json:"timeout"`     // of the first one; 0: none
}

// processOf joins the two as docker does: the configuration's word goes before
// the image's, the command follows the entry point, and an entry point that is
// given leaves the image's command unused.
func processOf(c *api.Config, img *image.Config) process {
	entrypoint, command := img.Entrypoint, img.Cmd
	if c.Entrypoint != nil {
		entrypoint, command = c.Entrypoint, nil
	}
	if len(c.Command) > 0 {
		command = c.Command
	}
	p := process{
		Image:      c.Image,
		Argv:       slices.Concat(entrypoint, command),
		User:       cmp.Or(c.User, img.User),
		Dir:        cmp.Or(c.WorkDir, img.WorkingDir, "/"),
		StopSignal: sigTERM,
		Timeout:    c.Timeout,
	}
	if n, err := ParseSignal(img.StopSignal); err == nil {
		p.StopSignal = n // an image's nonsense is no reason not to run it
	}
	if !strings.HasPrefix(p.Dir, "/") {
		p.Dir = "/" + p.Dir // as docker reads an image's relative one
	}
	return p
}

// environment is that of all commands: what the image says over what every
// sandbox has, and what the user says over that. The guest adds PATH, HOME,
// USER and TERM where nobody set them.
func environment(hostname string, img []string, user map[string]string) map[string]string {
	env := map[string]string{"HOSTNAME": hostname}
	for _, pair := range img {
		if key, value, ok := strings.Cut(pair, "="); ok && key != "" {
			env[key] = value
		}
	}
	maps.Copy(env, user)
	return env
}

// noCommand is ErrNoCommand for an image.
func noCommand(ref string) error {
	return &hintError{
		fmt.Errorf("image %q: %w", ref, ErrNoCommand),
		"say what to run after the image's name; a shell is most often /bin/sh",
	}
}
