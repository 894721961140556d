package policy

import (
	"fmt"
	"slices"

	"github.com/matchlock/matchlock/api"
	"github.com/matchlock/matchlock/internal/document"
)

// A Document is what a policy file says, in YAML: the keys of api.Network, and those that follow here. Elements of its
// lists are the strings that flags take. schema.json is for editors.
type Document struct {
	// Presets are names that Preset knows.
	Presets []string `json:"presets,omitempty"`
	api.Network
	Secrets  []api.Secret       `json:"secrets,omitempty"`
	SecretIn []api.SecretPlaces `json:"secret_in,omitempty"`
}

// Parse reads a policy file of at most 1 MiB, which name is to stand for in errors. They name the line, and there may be
// several. An empty file says nothing. What is right by itself may be wrong in its place; api.Config.Validate and
// Compile judge that.
func Parse(text []byte, name string) (Document, error) {
	var d Document
	if err := document.Decode(text, name, &d); err != nil {
		return Document{}, err
	}
	for _, preset := range d.Presets {
		if _, err := Preset(preset); err != nil {
			return Document{}, fmt.Errorf("%s: %w", name, err)
		}
	}
	return d, nil
}

// Merge adds a document to a configuration that flags have made: lists are joined, what only one of them says holds,
// and where both say something the flags do.
func (d *Document) Merge(c *api.Config) error {
	var merged api.Config
	for _, name := range d.Presets {
		n, err := Preset(name)
		if err != nil {
			return err
		}
		merged.AddNetwork(n)
	}
	merged.AddNetwork(d.Network)
	merged.AddNetwork(c.Network)
	c.Network = merged.Network
	c.Secrets, c.SecretIn = slices.Concat(d.Secrets, c.Secrets), slices.Concat(d.SecretIn, c.SecretIn)
	return nil
}
