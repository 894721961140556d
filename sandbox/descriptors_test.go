package sandbox

import "testing"

// A guest that opens all it can leaves its supervisor descriptors, whatever the limit.
func TestShare(t *testing.T) {
	for limit, want := range map[uint64][2]int{
		256: {128, 64}, 1024: {512, 256}, 4096: {2048, 1024}, 20_000: {8192, 4096},
		1 << 20: {8192, 4096}, ^uint64(0): {8192, 4096}, // the last is no limit
	} {
		files, flows := share(limit)
		if got := [2]int{files, flows}; got != want {
			t.Errorf("of %d: %v, want %v", limit, got, want)
		}
	}
}
