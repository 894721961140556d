package sandbox

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/matchlock/matchlock/api"
	"github.com/matchlock/matchlock/internal/image"
)

// process is what a configuration and its image together say of the commands
// of a sandbox.
type process struct {
	argv       []string // of the first one; empty: nobody says
	user       string
	dir        string
	stopSignal int // Linux's number
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
		argv:       slices.Concat(entrypoint, command),
		user:       cmp.Or(c.User, img.User),
		dir:        cmp.Or(c.WorkDir, img.WorkingDir, "/"),
		stopSignal: sigTERM,
	}
	if n, err := parseSignal(img.StopSignal); err == nil {
		p.stopSignal = n // an image's nonsense is no reason not to run it
	}
	if !strings.HasPrefix(p.dir, "/") {
		p.dir = "/" + p.dir // as docker reads an image's relative one
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
