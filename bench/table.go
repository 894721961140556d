package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strconv"
)

// A result is a line of the table. -json prints it as it is.
type result struct {
	Benchmark string  `json:"benchmark"`
	What      string  `json:"what"`
	Unit      string  `json:"unit"`
	Median    float64 `json:"median"`
	Min       float64 `json:"min"`
	Max       float64 `json:"max"`
	N         int     `json:"n"`

	// Ratio is how many times this line's median the first one's is. Where there
	// is one, the limit is its.
	Ratio float64 `json:"ratio,omitempty"`
	Limit float64 `json:"limit,omitempty"`
	Met   *bool   `json:"met,omitempty"` // nil: no limit

	Skipped string `json:"skipped,omitempty"` // why there are no values
}

// results sums up what was measured.
func results(b benchmark, m *meter) []result {
	var all []result
	for i, l := range b.lines {
		if why := m.skipped[i]; why != "" {
			all = append(all, result{Benchmark: b.name, What: l.what, Unit: cmp.Or(l.unit, b.unit), Limit: l.limit, Skipped: why})
			continue
		}
		values := slices.Sorted(slices.Values(m.samples[i]))
		r := result{
			Benchmark: b.name, What: l.what, Unit: cmp.Or(l.unit, b.unit),
			Median: median(values), Min: values[0], Max: values[len(values)-1], N: len(values),
			Limit: l.limit,
		}
		limited := r.Median
		if i > 0 && !l.part {
			r.Ratio = all[0].Median / r.Median
			limited = r.Ratio
		}
		if l.limit > 0 {
			met := limited <= l.limit
			r.Met = &met
		}
		all = append(all, r)
	}
	return all
}

// median wants its values sorted, and at least one.
func median(sorted []float64) float64 {
	middle := len(sorted) / 2
	if len(sorted)%2 == 1 {
		return sorted[middle]
	}
	return (sorted[middle-1] + sorted[middle]) / 2
}

func printJSON(w io.Writer, all []result) error {
	lines := json.NewEncoder(w)
	for _, r := range all {
		if err := lines.Encode(r); err != nil {
			return err
		}
	}
	return nil
}

const rowFormat = "%-12s %-50s %12s  %-17s %4s %8s  %s\n"

func printHeading(w io.Writer) {
	fmt.Fprintf(w, rowFormat, "", "", "median", "min–max", "n", "ratio", "asked")
}

func printTable(w io.Writer, all []result) error {
	name := all[0].Benchmark
	for _, r := range all {
		columns := []any{name, r.What, digits(r.Median) + " " + r.Unit, digits(r.Min) + "–" + digits(r.Max), strconv.Itoa(r.N), r.ratio(), r.asked()}
		if r.Skipped != "" {
			columns = []any{name, r.What, "–", "", "", "", r.Skipped}
		}
		if _, err := fmt.Fprintf(w, rowFormat, columns...); err != nil {
			return err
		}
		name = ""
	}
	return nil
}

func (r result) ratio() string {
	if r.Ratio == 0 {
		return ""
	}
	return digits(r.Ratio) + "×"
}

func (r result) asked() string {
	if r.Met == nil {
		return ""
	}
	unit, verdict := " "+r.Unit, ""
	if r.Ratio != 0 {
		unit = "×"
	}
	if !*r.Met {
		verdict = "  MISSED"
	}
	return fmt.Sprintf("≤ %.3g%s%s", r.Limit, unit, verdict)
}

// digits writes three of them that tell something.
func digits(v float64) string {
	switch {
	case v >= 100:
		return strconv.FormatFloat(v, 'f', 0, 64)
	case v >= 10:
		return strconv.FormatFloat(v, 'f', 1, 64)
	}
	return strconv.FormatFloat(v, 'f', 2, 64)
}
