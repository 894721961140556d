package qemu

import "testing"

func TestParseBlocks(t *testing.T) {
	const said = "Translation buffer state:\ngen code size       3262739/33550336\nTB count            8177\nTB avg target size  19 max=1148 bytes\n"
	if n, err := parseBlocks(said); n != 8177 || err != nil {
		t.Errorf("got %d, %v", n, err)
	}
	for _, text := range []string{"", "TB count", "TB count            many\n"} {
		if n, err := parseBlocks(text); err == nil {
			t.Errorf("of %q: %d", text, n)
		}
	}
}
