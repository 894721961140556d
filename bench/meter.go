package main

import (
	"context"
	"time"
)

// A benchmark measures one thing that matchlock does, and other things beside.
type benchmark struct {
	name  string // what -run matches
	unit  string // of its values
	times int    // rounds for each that -n asks for; 0 is 1
	lines []line // ours first

	// measure records a value for each line while m.loop says so.
	measure func(ctx context.Context, p *place, m *meter) error
}

// A line is one of the things that a benchmark measures, and one of the table.
type line struct {
	what string
	part bool   // of our own value, or beside it: there is nothing to compare
	unit string // where it is not the benchmark's

	// limit is what is asked for: of the first line and of parts, the highest
	// median; of the others, the highest ratio of the first's median to theirs.
	// 0: nothing.
	limit float64
}

// A meter takes a benchmark's values, round by round. It is used like a
// testing.B: what stands before the loop is not measured.
type meter struct {
	round, rounds int         // the first is to warm up, and not among the rounds
	samples       [][]float64 // by line
	skipped       []string    // by line, why there are none
}

func newMeter(b benchmark, n int) *meter {
	return &meter{rounds: n * max(1, b.times), samples: make([][]float64, len(b.lines)), skipped: make([]string, len(b.lines))}
}

// loop begins a round and reports whether there is one.
func (m *meter) loop() bool {
	if m.round == 1 {
		clear(m.samples)
	}
	m.round++
	return m.round <= 1+m.rounds
}

// record adds a value to a line.
func (m *meter) record(line int, value float64) {
	m.samples[line] = append(m.samples[line], value)
}

// skip says why there will be no values of a line, which is no fault.
func (m *meter) skip(line int, why error) { m.skipped[line] = why.Error() }

// time adds to a line how many milliseconds f took.
func (m *meter) time(line int, f func() error) error {
	began := time.Now()
	err := f()
	m.record(line, milliseconds(time.Since(began)))
	return err
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
