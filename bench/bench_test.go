package main

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestMeterForgetsTheFirstRound(t *testing.T) {
	m := newMeter(benchmark{times: 2, lines: make([]line, 1)}, 3)
	value := 0.0
	for m.loop() {
		m.record(0, value)
		value++
	}
	if diff := cmp.Diff([][]float64{{1, 2, 3, 4, 5, 6}}, m.samples); diff != "" {
		t.Errorf("samples of 2 × 3 rounds (-want +got):\n%s", diff)
	}
}

// measured is a meter of which a line without values was skipped.
func measured(samples ...[]float64) *meter {
	m := newMeter(benchmark{lines: make([]line, len(samples))}, 1)
	for i, values := range samples {
		if m.samples[i] = values; values == nil {
			m.skip(i, errors.New("it is not here"))
		}
	}
	return m
}

func TestTable(t *testing.T) {
	tests := []struct {
		name    string
		bench   benchmark
		samples [][]float64
		want    string
	}{
		{
			name:    "limit met, even count",
			bench:   benchmark{name: "start", unit: "ms", lines: []line{{what: "run"}, {what: "bare", limit: 2}}},
			samples: [][]float64{{4000, 1000, 3100, 2900}, {2000, 3000, 1000, 2000}},
			want: `
				start run 3000 ms 1000–4000 4
				bare 2000 ms 1000–3000 4 1.50× ≤ 2×`,
		},
		{
			name:    "ratio missed",
			bench:   benchmark{name: "import", unit: "ms", lines: []line{{what: "ours"}, {what: "theirs", limit: 0.4}}},
			samples: [][]float64{{50.04}, {100}},
			want: `
				import ours 50.0 ms 50.0–50.0 1
				theirs 100 ms 100–100 1 0.50× ≤ 0.4× MISSED`,
		},
		{
			name:    "one that is not here",
			bench:   benchmark{name: "start", unit: "ms", lines: []line{{what: "ours"}, {what: "theirs", limit: 2}}},
			samples: [][]float64{{50}, nil},
			want: `
				start ours 50.0 ms 50.0–50.0 1
				theirs – it is not here`,
		},
		{
			name:    "own limit missed, part without ratio",
			bench:   benchmark{name: "memory", unit: "MB", lines: []line{{what: "all", limit: 70}, {what: "of it", part: true}}},
			samples: [][]float64{{70.5, 80, 60}, {1.234, 1, 2}},
			want: `
				memory all 70.5 MB 60.0–80.0 3 ≤ 70 MB MISSED
				of it 1.23 MB 1.00–2.00 3`,
		},
		{
			name:    "part in another unit, limit met",
			bench:   benchmark{name: "idle", unit: "MB", lines: []line{{what: "all"}, {what: "time", unit: "ms", part: true, limit: 1}}},
			samples: [][]float64{{11}, {0.5}},
			want: `
				idle all 11.0 MB 11.0–11.0 1
				time 0.50 ms 0.50–0.50 1 ≤ 1 ms`,
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			var got strings.Builder
			err := printTable(&got, results(test.bench, measured(test.samples...)))
			if diff := cmp.Diff(strings.Fields(test.want), strings.Fields(got.String())); err != nil || diff != "" {
				t.Errorf("%v (-want +got):\n%s", err, diff)
			}
		})
	}
}

func TestJSON(t *testing.T) {
	b := benchmark{name: "exec", unit: "ms", lines: []line{{what: "guest", limit: 20}, {what: "host"}}}
	var got strings.Builder
	err := printJSON(&got, results(b, measured([]float64{8}, []float64{2})))
	want := `{"benchmark":"exec","what":"guest","unit":"ms","median":8,"min":8,"max":8,"n":1,"limit":20,"met":true}
{"benchmark":"exec","what":"host","unit":"ms","median":2,"min":2,"max":2,"n":1,"ratio":4}
`
	if diff := cmp.Diff(want, got.String()); err != nil || diff != "" {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
}

func TestBareArgs(t *testing.T) {
	const (
		boots    = `{"msg":"starting qemu","args":"-no-reboot -name x -M microvm,memory-backend=mem0,rtc=off -m 512 -cpu max -kernel /proc/self/fd/4 -append quiet panic=-1 -sandbox on"}`
		restores = `{"msg":"starting qemu","args":"-M microvm -m 512 -incoming defer"}`
	)
	got, err := bareArgs(strings.NewReader(strings.Join([]string{restores, boots, restores}, "\n")))
	want := []string{
		"-no-user-config", "-nodefaults", "-display", "none", "-no-reboot", "-serial", "stdio",
		"-M", "microvm,rtc=off", "-m", "512", "-cpu", "max", "-append", "quiet panic=-1",
	}
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
	if got, err := bareArgs(strings.NewReader(restores)); err == nil {
		t.Errorf("of a log without a boot: %q, want an error", got)
	}
}

const smaps = `7f0000000000-7f0020000000 rw-p 00000000 00:01 2055       /memfd:guest-memory (deleted)
Size:             524288 kB
Rss:              100000 kB
Pss:               50000 kB
VmFlags: rd wr mr mw me ac sd
7f0020000000-7f0020021000 rw-p 00000000 00:00 0
Rss:                1000 kB
Pss:                1000 kB
7f0030000000-7f0030021000 r-xp 00000000 08:01 77         /usr/lib/a library.so
Rss:                2000 kB
Pss:                 500 kB
7f0040000000-7f0040021000 rw-p 00000000 00:01 2055       /memfd:guest-memory-not (deleted)
Rss:                4000 kB
`

func TestMappedMiB(t *testing.T) {
	isGuest := func(name string) bool { return strings.HasPrefix(name, "/memfd:guest") }
	for _, test := range []struct {
		field         string
		guest, others float64 // kB
	}{{"Rss", 104000, 3000}, {"Pss", 50000, 1500}} {
		guest, others, err := mappedMiB(strings.NewReader(smaps), test.field, isGuest)
		if err != nil || guest != test.guest/1024 || others != test.others/1024 {
			t.Errorf("%s: %v and %v MiB, %v; want %v and %v kB", test.field, guest, others, err, test.guest, test.others)
		}
	}
	if guest, others, err := mappedMiB(strings.NewReader("Rss: much kB\n"), "Rss", isGuest); err == nil {
		t.Errorf("of much: %v and %v MiB", guest, others)
	}
}
