package sandbox

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/matchlock/matchlock/internal/saved"
)

// What comes with a snapshot from elsewhere has to be what export writes, and may
// reach for nothing of this host.
func TestDecodeSent(t *testing.T) {
	const sandbox = `"id":"abcdefghijkl","name":"web","taken":"2026-01-02T03:04:05Z","image_digest":"sha256:0"`
	const image = `,"image":{"os":"linux","architecture":"amd64"}`
	lowers := []saved.ExtraFile{{Name: "lower-0"}, {Name: "lower-1"}}
	for name, test := range map[string]struct {
		about string
		extra []saved.ExtraFile
		want  string // "": it is taken
	}{
		"all":             {`{"sandbox":{` + sandbox + `,"config":{"image":"x"}}` + image + `}`, lowers, ""},
		"not JSON":        {`{`, lowers, "EOF"},
		"something more":  {`{"sandbox":{` + sandbox + `,"config":{"image":"x"},"more":1}` + image + `}`, lowers, "unknown field"},
		"more to do":      {`{"sandbox":{` + sandbox + `,"config":{"image":"x","run_on_host":"ls"}}` + image + `}`, lowers, "unknown field"},
		"no image":        {`{"sandbox":{` + sandbox + `,"config":{}}` + image + `}`, lowers, "image: none given"},
		"a disk":          {`{"sandbox":{` + sandbox + `,"config":{"image":"x","disks":["/etc/shadow:/mnt:ro"]}}` + image + `}`, lowers, "disks of this host"},
		"a name as path":  {`{"sandbox":{` + strings.Replace(sandbox, "web", "../web", 1) + `,"config":{"image":"x"}}` + image + `}`, lowers, `name "../web"`},
		"an id as path":   {`{"sandbox":{` + strings.Replace(sandbox, "abcdefghijkl", "../x", 1) + `,"config":{"image":"x"}}` + image + `}`, lowers, `name "../x"`},
		"layers reversed": {`{"sandbox":{` + sandbox + `,"config":{"image":"x"}}` + image + `}`, []saved.ExtraFile{lowers[1], lowers[0]}, `"lower-1" in the place of "lower-0"`},
		"another file":    {`{"sandbox":{` + sandbox + `,"config":{"image":"x"}}` + image + `}`, []saved.ExtraFile{{Name: "kernel-0"}}, "in the place of"},
	} {
		_, err := decodeSent(&saved.Arrival{About: json.RawMessage(test.about), Extra: test.extra})
		if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
			t.Errorf("%s: got %v, want %q", name, err, test.want)
		}
	}
}
