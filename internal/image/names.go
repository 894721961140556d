package image

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/google/go-containerregistry/pkg/name"
)

// Expand returns the full form of a registry's image name, as docker expands it: "debian:12" is
// "docker.io/library/debian:12". A digest replaces a tag: "debian:12@sha256:…" is "docker.io/library/debian@sha256:…".
func Expand(ref string) (string, error) {
	parsed, err := parseRef(ref)
	if err != nil {
		return "", err
	}
	return fullName(parsed), nil
}

func parseRef(ref string, opts ...name.Option) (name.Reference, error) {
	parsed, err := name.ParseReference(ref, append(opts, name.WeakValidation)...)
	if err != nil {
		return nil, fmt.Errorf("image name %q: %w", ref, err)
	}
	return parsed, nil
}

func fullName(ref name.Reference) string {
	full := ref.Name()
	if rest, ok := strings.CutPrefix(full, name.DefaultRegistry+"/"); ok {
		return "docker.io/" + rest
	}
	return full
}

// CheckName reports why a local image cannot have a name. A name is 1 to 255 bytes of printable text without blanks;
// it does not begin like a flag, like a digest or like a path.
func CheckName(s string) error {
	bad := func(r rune) bool { return !unicode.IsPrint(r) || unicode.IsSpace(r) }
	switch {
	case s == "" || len(s) > 255:
		return fmt.Errorf("image name %.32q: must have 1 to 255 bytes", s)
	case !utf8.ValidString(s) || strings.ContainsFunc(s, bad):
		return fmt.Errorf("image name %q: has a blank or a character that does not print", s)
	case s[0] == '-' || strings.HasPrefix(s, "sha256:"):
		return fmt.Errorf("image name %q: would be taken for something else", s)
	case s[0] == '/' || s[0] == '.':
		return fmt.Errorf("image name %q: is the path of a file, not a name", s)
	}
	return nil
}

// near returns up to three of the names that look like ref, best first.
func near(ref string, names []string) []string {
	type candidate struct {
		name     string
		distance int
	}
	short := func(s string) string { // the part that people remember and mistype
		s = s[strings.LastIndexByte(s, '/')+1:]
		s, _, _ = strings.Cut(s, "@")
		s, _, _ = strings.Cut(s, ":")
		return s
	}
	var found []candidate
	for _, n := range names {
		if d := distance(short(ref), short(n)); d <= 2 && d < len(short(n)) {
			found = append(found, candidate{n, d})
		}
	}
	slices.SortFunc(found, func(a, b candidate) int {
		return cmp.Or(cmp.Compare(a.distance, b.distance), cmp.Compare(a.name, b.name))
	})
	var out []string
	for _, c := range found[:min(3, len(found))] {
		out = append(out, c.name)
	}
	return out
}

// distance counts the single-character edits between two names (Levenshtein).
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			replace := diagonal
			if a[i] != b[j] {
				replace++
			}
			diagonal = row[j+1]
			row[j+1] = min(replace, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
