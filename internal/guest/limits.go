//go:build linux

package guest

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/matchlock/matchlock/api"
)

// maxOpenFiles is the most that user code may raise its limit of open files
// to; the limit itself stays the kernel's 1024, past which select(2) breaks.
const maxOpenFiles = 1 << 20

// limit is one resource limit.
type limit struct {
	name       string
	resource   int
	soft, hard uint64
}

// resources are the limits of getrlimit(2) by the names that ulimits have.
var resources = map[string]int{
	"as": unix.RLIMIT_AS, "core": unix.RLIMIT_CORE, "cpu": unix.RLIMIT_CPU, "data": unix.RLIMIT_DATA, "fsize": unix.RLIMIT_FSIZE,
	"locks": unix.RLIMIT_LOCKS, "memlock": unix.RLIMIT_MEMLOCK, "msgqueue": unix.RLIMIT_MSGQUEUE, "nice": unix.RLIMIT_NICE,
	"nofile": unix.RLIMIT_NOFILE, "nproc": unix.RLIMIT_NPROC, "rss": unix.RLIMIT_RSS, "rtprio": unix.RLIMIT_RTPRIO,
	"rttime": unix.RLIMIT_RTTIME, "sigpending": unix.RLIMIT_SIGPENDING, "stack": unix.RLIMIT_STACK,
}

func parseLimits(ulimits []api.Ulimit) ([]limit, error) {
	var limits []limit
	for _, u := range ulimits {
		resource, ok := resources[u.Name]
		if !ok || u.Soft > u.Hard {
			return nil, fmt.Errorf("ulimit %s=%d:%d: unknown, or the soft limit is above the hard one", u.Name, u.Soft, u.Hard)
		}
		limits = append(limits, limit{u.Name, resource, u.Soft, u.Hard})
	}
	return limits, nil
}

// allow raises PID 1's own hard limits as far as limits ask: commands inherit
// them, and may not raise any themselves.
func allow(limits []limit) error {
	for _, l := range limits {
		var now unix.Rlimit
		err := unix.Getrlimit(l.resource, &now)
		if err == nil && l.hard > now.Max {
			now.Max = l.hard
			// Not unix.Setrlimit: package syscall remembers what it set for files.
			err = syscall.Setrlimit(l.resource, &syscall.Rlimit{Cur: now.Cur, Max: now.Max})
		}
		if err != nil {
			return fmt.Errorf("ulimit %s=%d:%d: %w", l.name, l.soft, l.hard, err)
		}
	}
	return nil
}

// limitsName is the name under which this program sets limits and makes place
// for another. Limits belong to a process, not to a thread as restraints do, so
// a command that is to have some is started by way of this.
const limitsName = "matchlock-limits"

// limited returns the command that sets limits and then runs path as argv.
func limited(limits []limit, path string, argv []string) (string, []string) {
	args := []string{limitsName}
	for _, l := range limits {
		args = append(args, fmt.Sprintf("%d=%d:%d", l.resource, l.soft, l.hard))
	}
	return "/proc/self/exe", append(append(args, "--", path), argv...)
}

// runLimited is the other end of limited. It returns only an error.
func runLimited(args []string) error {
	for i, arg := range args {
		if arg == "--" && len(args) > i+2 {
			execute(args[i+1], args[i+2:])
		}
		resource, values, _ := strings.Cut(arg, "=")
		soft, hard, _ := strings.Cut(values, ":")
		r, err1 := strconv.Atoi(resource)
		cur, err2 := strconv.ParseUint(soft, 10, 64)
		most, err3 := strconv.ParseUint(hard, 10, 64)
		if err1 != nil || err2 != nil || err3 != nil {
			break
		}
		if err := unix.Setrlimit(r, &unix.Rlimit{Cur: cur, Max: most}); err != nil {
			return fmt.Errorf("limit %s: %w", arg, err)
		}
	}
	return fmt.Errorf("%s: this is matchlock's own", limitsName)
}

// execute makes place for the program at path, and ends the process as the
// agent would have ended the request if that cannot be.
func execute(path string, argv []string) {
	err := unix.Exec(path, argv, os.Environ())
	if errors.Is(err, unix.ENOEXEC) {
		unix.Exec("/bin/sh", append([]string{"/bin/sh", path}, argv[1:]...), os.Environ()) // its error would hide the other
	}
	fmt.Fprintf(os.Stderr, "matchlock: exec: %q: %v\n", path, err)
	if errors.Is(err, unix.ENOENT) {
		os.Exit(127)
	}
	os.Exit(126)
}
