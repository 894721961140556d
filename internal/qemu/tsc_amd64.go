package qemu

import (
	"fmt"
	"time"
)

// readTSC reads the time stamp counter, in order with what stands around it.
func readTSC() uint64

// A moment is one point in time on two clocks.
type moment struct {
	tsc   uint64
	clock time.Duration
}

const (
	tscWindows = 4 // measured one after the other
	tscWindow  = 2500 * time.Microsecond
	tscTries   = 10
)

// measureTSC measures for about 10 ms, and again while the host is too busy to
// give two windows the same rate.
func measureTSC() (kHz uint64, err error) {
	start := time.Now()
	for range tscTries {
		moments := []moment{takeMoment(start)}
		for range tscWindows {
			time.Sleep(tscWindow)
			moments = append(moments, takeMoment(start))
		}
		if kHz, err = tscRate(moments); err == nil {
			return kHz, nil
		}
	}
	return 0, fmt.Errorf("rate of the time stamp counter: %w", err)
}

// takeMoment reads the clock between two readings of the counter, several
// times, and takes the reading that was disturbed least.
func takeMoment(start time.Time) moment {
	var best moment
	tightest := ^uint64(0)
	for range 16 {
		before := readTSC()
		clock := time.Since(start)
		after := readTSC()
		if width := after - before; width < tightest {
			tightest = width
			best = moment{before + width/2, clock}
		}
	}
	return best
}

// tscRate returns the rate over all moments if each window between two shows
// the same within 0.05 %: a guest takes 0.1 % without harm.
func tscRate(moments []moment) (kHz uint64, err error) {
	rate := func(from, to moment) float64 {
		return float64(to.tsc-from.tsc) / (to.clock - from.clock).Seconds() / 1e3
	}
	overall := rate(moments[0], moments[len(moments)-1])
	if !plausibleTSC(uint64(overall)) {
		return 0, fmt.Errorf("%.0f kHz cannot be", overall)
	}
	for i, m := range moments[1:] {
		if r := rate(moments[i], m); r < overall*0.9995 || r > overall*1.0005 {
			return 0, fmt.Errorf("unsteady: %.0f kHz and %.0f kHz", overall, r)
		}
	}
	return uint64(overall + 0.5), nil
}
