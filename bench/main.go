// Command bench measures matchlock beside what one would compare it with.
//
//	go run ./bench [-run REGEXP] [-n N] [-json]
//
// Everything is measured in one run and takes turns, after one round to warm
// up, so that what else the machine does falls on all alike: read the ratios,
// not the milliseconds. It is no test: a limit that is missed is marked and
// fails nothing.
//
// It runs in the top folder of the sources, after `make build`, on Linux.
// Images that are slow to make are kept in MATCHLOCK_TEST_HOME, as they are for
// the tests; all else is gone when it ends.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"regexp"
	"slices"
	"syscall"
)

// benchmarks are all there are. A further one is an entry here and a function.
var benchmarks = []benchmark{
	{
		name: "start", unit: "ms", measure: start,
		lines: []line{
			{what: "`matchlock run busybox true`, a template's copy"},
			{what: "`podman run --rm` of it, with a network too", limit: 1},
			{what: "`matchlock run --cold busybox true`", limit: 0.1},
		},
	},
	{
		name: "nonet", unit: "ms", measure: startNone,
		lines: []line{
			{what: "`matchlock run --no-network busybox true`"},
			{what: "`podman run --rm --network none` of it", limit: 1.3},
			{what: "the first with `--no-jail`"},
		},
	},
	{
		name: "fork", unit: "ms", times: 2, measure: fork,
		lines: []line{
			{what: "a sandbox busy with 100 MiB stands still to be copied", limit: 60},
			{what: "its longest pause meanwhile, when it is not copied", part: true},
			{what: "all of the saving", part: true},
			{what: "one of 8 copies, as busy, until it answers", part: true, limit: 300},
			{what: "until it has run a command beside", part: true},
			{what: "all 8", part: true},
		},
	},
	{
		name: "cold", unit: "ms", measure: cold,
		lines: []line{
			{what: "`matchlock run --cold busybox true`"},
			{what: "bare boot of the same kernel, until it prints", limit: 2},
		},
	},
	{
		name: "exec", unit: "ms", times: 10, measure: execRoundTrip,
		lines: []line{
			{what: "/bin/true in a running sandbox", limit: 20},
			{what: "/bin/true on the host"},
		},
	},
	{
		name: "attach", unit: "ms", times: 3, measure: attached,
		lines: []line{
			{what: "`matchlock exec` of /bin/true, all of it"},
			{what: "the library's Attach and Command of it"},
			{what: "Command of it by the sandbox's own process"},
		},
	},
	{
		name: "ps", unit: "ms", times: 3, measure: ps,
		lines: []line{
			{what: "`matchlock ps -a` with 200 stopped sandboxes", limit: 100},
			{what: "`ls -lR` of their folders"},
		},
	},
	{
		name: "import", unit: "ms", measure: importLayer,
		lines: []line{
			{what: "`matchlock image import` of a 210 MB layer"},
			{what: "`umoci unpack`", limit: 0.4},
			{what: "`tar xzf`"},
		},
	},
	{
		name: "output", unit: "MB/s", measure: output,
		lines: []line{
			{what: "256 MiB written by a guest's command"},
			{what: "by the same command on the host"},
		},
	},
	{
		name: "download", unit: "ms", measure: download,
		lines: []line{
			{what: "64 MiB by HTTP into a guest"},
			{what: "into one on a link of gvproxy's", limit: 1},
		},
	},
	{
		name: "tls", unit: "ms", measure: terminated,
		lines: []line{
			{what: "64 MiB by HTTPS, ended on the way, into a guest"},
			{what: "into one on a link of gondolin's", limit: 0.67},
		},
	},
	{
		name: "latency", unit: "ms", measure: latency,
		lines: []line{
			{what: "a small request by HTTPS with a secret put in"},
			{what: "the same passed on unseen"},
			{what: "what it takes longer", part: true, limit: 1},
		},
	},
	{
		name: "idle", unit: "MiB", measure: connections,
		lines: []line{
			{what: "1000 idle connections cost the supervisor", limit: 100},
		},
	},
	{
		name: "files/write", unit: "ms", measure: fileTask("write"),
		lines: fileLines("256 MiB written to a file in a folder of the host", 1/0.7),
	},
	{
		name: "files/read", unit: "ms", measure: fileTask("read"),
		lines: fileLines("256 MiB read from one", 1/0.7),
	},
	{
		name: "files/status", unit: "ms", measure: fileTask("status"),
		lines: fileLines("`git status` of 10,000 files, the second", 1.5),
	},
	{
		name: "files/find", unit: "ms", measure: fileTask("find"),
		lines: fileLines("`find -type f` of 20,000 files, the first", 1.5),
	},
	{
		name: "files/stat", unit: "µs", measure: fileTask("stat"),
		lines: fileLines("stat of a file, the first", 0),
	},
	{
		name: "files/create", unit: "ms", measure: fileTask("create"),
		lines: fileLines("2000 files of 1 KiB made by tar", 2),
	},
	{
		name: "files/remove", unit: "ms", measure: fileTask("remove"),
		lines: fileLines("`rm -r` of them", 0),
	},
	{
		name: "memory", unit: "MiB", measure: memory,
		lines: []line{
			{what: "a further idle sandbox of a template", limit: 50},
			{what: "of it the guest's memory", part: true, limit: 10},
			{what: "of it QEMU's own", part: true},
			{what: "of it the supervisor", part: true},
		},
	},
	{
		name: "detached", unit: "MiB", measure: detached,
		lines: []line{
			{what: "the idle supervisor of a detached sandbox", limit: 25},
			{what: "its processor time in 10 s", unit: "ms", part: true, limit: idleTime},
			{what: "QEMU's and so the guest's in 10 s", unit: "ms", part: true, limit: idleGuestTime},
		},
	},
}

func main() {
	run := flag.String("run", "", "measure only what this `regexp` matches")
	n := flag.Int("n", 10, "`rounds` to count, after one to warm up")
	asJSON := flag.Bool("json", false, "print one JSON object for each line of the table")
	flag.Usage = func() {
		fmt.Fprintln(flag.CommandLine.Output(), "usage: bench [-run REGEXP] [-n N] [-json]")
		flag.PrintDefaults()
		for _, b := range benchmarks {
			fmt.Fprintf(flag.CommandLine.Output(), "%12s  %s\n", b.name, b.lines[0].what)
		}
	}
	flag.Parse()
	pattern, err := regexp.Compile(*run)
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(2)
	}
	selected := slices.DeleteFunc(slices.Clone(benchmarks), func(b benchmark) bool { return !pattern.MatchString(b.name) })
	if len(selected) == 0 || *n < 1 || flag.NArg() > 0 {
		flag.Usage()
		os.Exit(2)
	}
	// A client of a sandbox that hangs up raises it too: see what a write says.
	signal.Ignore(syscall.SIGPIPE)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	if !benchAll(ctx, selected, *n, *asJSON) {
		os.Exit(1)
	}
}

// benchAll measures and prints one after the other, and reports whether all
// could be measured.
func benchAll(ctx context.Context, selected []benchmark, n int, asJSON bool) bool {
	p, err := newPlace(ctx)
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		return false
	}
	defer p.close()
	show := printTable
	if asJSON {
		show = printJSON
	} else {
		fmt.Println(p.describe(ctx))
		printHeading(os.Stdout)
	}
	ok := true
	for _, b := range selected {
		m := newMeter(b, n)
		if err := b.measure(ctx, p, m); err != nil {
			fmt.Fprintf(os.Stderr, "bench: %s: %v\n", b.name, err)
			if ok = false; ctx.Err() != nil {
				break
			}
			continue
		}
		if err := show(os.Stdout, results(b, m)); err != nil {
			return false // nobody reads it
		}
	}
	return ok
}
