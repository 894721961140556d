package qemu

import (
	"testing"
	"time"
)

func TestTSCRate(t *testing.T) {
	const ms = time.Millisecond
	tests := map[string]struct {
		moments []moment
		want    uint64 // 0: an error
	}{
		"steady":            {[]moment{{5, 0}, {2_500_005, ms}, {7_500_005, 3 * ms}}, 2_500_000},
		"nearly":            {[]moment{{0, 0}, {2_501_000, ms}, {5_000_000, 2 * ms}}, 2_500_000},
		"unsteady":          {[]moment{{0, 0}, {2_502_000, ms}, {5_000_000, 2 * ms}}, 0},
		"counter stood":     {[]moment{{9, 0}, {9, ms}, {9, 2 * ms}}, 0},
		"counter went back": {[]moment{{9_000_000, 0}, {5, ms}, {10, 2 * ms}}, 0},
		"clock stood":       {[]moment{{0, ms}, {2_500_000, ms}, {5_000_000, ms}}, 0},
	}
	for name, test := range tests {
		if got, err := tscRate(test.moments); got != test.want || (err == nil) != (test.want != 0) {
			t.Errorf("%s: got %d, %v", name, got, err)
		}
	}
}
