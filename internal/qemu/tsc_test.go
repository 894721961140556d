package qemu

import (
	"math"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"
)

func TestTSCRateIsSettledOnce(t *testing.T) {
	if runtime.GOARCH != "amd64" || !remembers {
		t.Skip("needs an amd64 host that tells its boots apart")
	}
	dir := filepath.Join(t.TempDir(), "cache")
	var rates [4]uint64 // as by that many processes at once
	var all sync.WaitGroup
	for i := range rates {
		all.Go(func() {
			var err error
			if rates[i], err = tscKHz(dir); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	for _, rate := range rates {
		if rate != rates[0] || !plausibleTSC(rate) {
			t.Fatalf("got %v", rates)
		}
	}
	start := time.Now()
	if again, err := tscKHz(dir); again != rates[0] || err != nil {
		t.Errorf("later: got %d, %v", again, err)
	}
	t.Logf("%d kHz, remembered in %v", rates[0], time.Since(start))

	// Another measurement shows the same within what a guest takes.
	elsewhere, err := tscKHz(t.TempDir())
	if off := math.Abs(float64(elsewhere)/float64(rates[0]) - 1); err != nil || off > 0.001 {
		t.Errorf("got %d and %d kHz, %v", elsewhere, rates[0], err)
	}

	updateHostFacts(dir, func(f *hostFacts) { f.TSCKHz = 7 })
	if rate, err := tscKHz(dir); !plausibleTSC(rate) {
		t.Errorf("a rate that cannot be: got %d, %v", rate, err)
	}
}
