package sandbox

import (
	"errors"
	"slices"
	"time"
)

// unwind is a stack of undoings.
type unwind []func() error

// push takes what undoes something that has just been done.
func (u *unwind) push(undo func() error) { *u = append(*u, undo) }

// run undoes everything, last first. A fault does not stop it.
func (u *unwind) run() error {
	var errs []error
	for _, undo := range slices.Backward(*u) {
		errs = append(errs, undo())
	}
	*u = nil
	return errors.Join(errs...)
}

// stopwatch tells how long phases take.
type stopwatch struct {
	report func(phase string, took time.Duration)
	last   time.Time
}

func newStopwatch(report func(string, time.Duration)) *stopwatch {
	return &stopwatch{report, time.Now()}
}

// lap ends a phase and begins the next.
func (w *stopwatch) lap(phase string) {
	now := time.Now()
	w.report(phase, now.Sub(w.last))
	w.last = now
}
