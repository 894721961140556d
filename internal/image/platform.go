package image

import (
	"cmp"
	"fmt"
	"runtime"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// parsePlatform reads "linux/arm64/v8", "linux/amd64" or "arm64"; empty is Linux on this host's processor.
func parsePlatform(s string) (v1.Platform, error) {
	p := v1.Platform{OS: "linux", Architecture: runtime.GOARCH}
	if s == "" {
		return p, nil
	}
	parts := strings.Split(s, "/")
	switch len(parts) {
	case 1:
		p.Architecture = parts[0]
	case 2, 3:
		p.OS, p.Architecture = parts[0], parts[1]
		p.Variant = strings.Join(parts[2:], "")
	}
	if len(parts) > 3 || p.OS == "" || p.Architecture == "" {
		return p, fmt.Errorf("platform %q: must be OS/ARCHITECTURE[/VARIANT]", s)
	}
	if p.OS != "linux" {
		return p, fmt.Errorf("platform %q: only linux can run", s)
	}
	return p, nil
}

// baseVariant is the variant that a plain architecture means.
var baseVariant = map[string]string{"arm64": "v8", "amd64": "v1", "arm": "v7"}

// runsOn reports whether what was built for "have" is what "want" asks for. An image that does not say what it was
// built for is taken at its user's word.
func runsOn(have, want v1.Platform) bool {
	variant := func(p v1.Platform) string { return cmp.Or(p.Variant, baseVariant[p.Architecture]) }
	return (have.OS == "" || have.OS == want.OS) &&
		(have.Architecture == "" || have.Architecture == want.Architecture && variant(have) == variant(want))
}

func platformString(p v1.Platform) string {
	if p.Architecture == "" && p.OS == "" {
		return "unknown"
	}
	s := p.OS + "/" + p.Architecture
	if p.Variant != "" {
		s += "/" + p.Variant
	}
	return s
}

// choose picks the image for a platform from an index.
func choose(index *v1.IndexManifest, want v1.Platform) (v1.Descriptor, error) {
	var have []string
	for _, d := range index.Manifests {
		if isAttestation(d) || !(d.MediaType.IsImage() || d.MediaType.IsIndex()) {
			continue
		}
		var platform v1.Platform // unknown: the image itself will tell
		if d.Platform != nil {
			platform = *d.Platform
		}
		if runsOn(platform, want) {
			return d, nil
		}
		have = append(have, platformString(platform))
	}
	if have == nil {
		return v1.Descriptor{}, fmt.Errorf("image index: no image in it")
	}
	return v1.Descriptor{}, &PlatformError{Want: platformString(want), Have: have}
}

// isAttestation tells what BuildKit adds beside the images: a statement of how one was built.
func isAttestation(d v1.Descriptor) bool {
	return d.Annotations["vnd.docker.reference.type"] != "" || d.Platform != nil && d.Platform.OS == "unknown"
}
