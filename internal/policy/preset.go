package policy

import (
	"embed"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/matchlock/matchlock/api"
)

//go:embed presets/*.yaml
var presets embed.FS

// Presets are the names that Preset knows, sorted.
func Presets() []string {
	var names []string
	entries, _ := presets.ReadDir("presets") // embedded: it is there
	for _, entry := range entries {
		names = append(names, strings.TrimSuffix(entry.Name(), ".yaml"))
	}
	return names
}

// Preset returns the rules that a preset stands for, which has no more than that.
func Preset(name string) (api.Network, error) {
	if known := Presets(); !slices.Contains(known, name) {
		return api.Network{}, &Fault{fmt.Errorf("preset %q: there is none of that name", name), "there are " + strings.Join(known, ", ")}
	}
	text, err := PresetText(name)
	if err != nil {
		return api.Network{}, err
	}
	d, err := Parse(text, "preset "+name)
	return d.Network, err
}

// PresetText returns a preset as it was written, with the reason for each host. It is a policy file.
func PresetText(name string) ([]byte, error) {
	return presets.ReadFile(path.Join("presets", name+".yaml"))
}
