package image

import (
	"strings"
	"testing"
)

func TestEventTask(t *testing.T) {
	layer := "sha256:" + strings.Repeat("0123456789abcdef", 4)
	for want, e := range map[string]Event{
		"layer 0123456789ab": {Layer: layer, State: Reading},
		"merge layers":       {Layer: layer, State: Merging},
		"root file system":   {Layer: "root file system", State: Ready},
		"sha256:short":       {Layer: "sha256:short", State: Reading},
	} {
		if got := e.Task(); got != want {
			t.Errorf("task of %+v is %q, want %q", e, got, want)
		}
	}
}
