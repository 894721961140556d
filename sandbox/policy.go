package sandbox

import (
	"context"
	"fmt"
	"os"

	"github.com/matchlock/matchlock/api"
	"github.com/matchlock/matchlock/internal/hostfs"
	"github.com/matchlock/matchlock/internal/policy"
)

// Presets are the names of rules that are ready for what agents most often need.
func Presets() []string { return policy.Presets() }

// maxPolicy bounds the files of rules in bytes.
const maxPolicy = 1 << 20

// ApplyPolicy adds what a file says (YAML, see docs/network.md; "" is none), and
// what presets do, to a configuration. A key that there is not is an error.
func ApplyPolicy(config *api.Config, path string, presets []string) error {
	var document policy.Document
	if path != "" {
		text, err := hostfs.ReadLimited(path, maxPolicy)
		if err != nil {
			return fmt.Errorf("policy: %w", err)
		}
		if document, err = policy.Parse(text, path); err != nil {
			return err
		}
	}
	document.Presets = append(document.Presets, presets...)
	return document.Merge(config)
}

type (
	// Explanation says what would become of a connection: its Name or Address, Port and
	// Protocol; Allow, for all of it; the verdicts, of the name in Resolved, of the flow in
	// Flow, of each address that is known in Dials; whether TLS would be Terminated or is
	// Spliced; and the names of the Secrets and Hooks that are about it.
	Explanation = policy.Explanation
	// Verdict is of one step: Allow, the Rule that decided if one did, else the Reason, and
	// as Hint the flag that would allow it.
	Verdict = policy.Verdict
)

// Explain says what would become of a connection to a URL, or to HOST[:PORT][/tcp|/udp],
// by a configuration's rules. Without a port it is 443. It resolves nothing and sends
// nothing.
func Explain(config api.Config, target string) (Explanation, error) {
	p, err := policy.Compile(&config)
	if err != nil {
		return Explanation{}, err
	}
	e, err := p.Explain(target)
	if config.Network.None && err == nil {
		none := Verdict{Reason: "there is no network"}
		e.Flow = none
		if e.Resolved != nil {
			e.Resolved = &none
		}
	}
	return e, err
}

// CheckUpstreamCA tells whether these are files of certificates that
// api.Network.UpstreamCA may name.
func CheckUpstreamCA(paths []string) error {
	_, err := upstreamRoots(paths)
	return err
}

// Config returns what a sandbox, running or not, was made of, with the rules that
// hold for it at present.
func (o Options) Config(ctx context.Context, ref string) (config api.Config, err error) {
	_, e, err := o.locate(ref)
	if err != nil {
		return config, err
	}
	err = hostfs.ReadRecord(e.Path+string(os.PathSeparator)+configName, &config)
	return config, err
}
