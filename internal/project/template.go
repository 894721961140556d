package project

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// kinds are projects as their files tell them, with the image and the rules that such a
// project needs to build. The first that fits is it.
var kinds = []struct{ file, image, preset string }{
	{"go.mod", "golang:1.26", "go"},
	{"package.json", "node:24", "npm"},
	{"pyproject.toml", "python:3.13", "pypi"},
	{"requirements.txt", "python:3.13", "pypi"},
	{"Cargo.toml", "rust:1", ""},
	{"", "debian:12", ""},
}

// Template is a file for a project to begin with, by what is in its folder; image, unless
// empty, is the sandbox's.
func Template(folder, image string) string {
	kind := kinds[len(kinds)-1]
	for _, k := range kinds {
		if _, err := os.Stat(filepath.Join(folder, k.file)); err == nil && k.file != "" {
			kind = k
			break
		}
	}
	if image != "" {
		kind.image = strconv.Quote(image)
	}
	rules := `# What it may reach, once ` + "`matchlock trust`" + ` was said: by name, or by preset.
# presets: [debian]
# network:
#   allow: ["api.example.com:443"]
`
	if kind.preset != "" {
		rules = strings.Replace(rules, "# presets: [debian]", "presets: ["+kind.preset+"]", 1)
	}
	return fmt.Sprintf(`# The sandbox of this project: `+"`matchlock run`"+` starts it, with a terminal if there is one.
image: %s
command: [sh]

# The project's folder is at /workspace. What is changed there is kept beside it:
# see `+"`matchlock workspace diff`"+`, or write "rw" to have it changed here.
mounts: [".:/workspace:overlay"]
work_dir: /workspace

# cpus: 2
# memory: 2g

%s
# Keys that its requests carry and it never sees, from this host's environment:
# secrets: ["API_TOKEN@api.example.com"]
`, kind.image, rules)
}
