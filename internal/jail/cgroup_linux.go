package jail

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/matchlock/matchlock/internal/hostfs"
)

// cgroup is a control group of one process, cgroups(7): with version 1 a folder for
// each controller, with version 2 one. It counts what the limits of setrlimit(2)
// do not: memory that is shared, and what the kernel keeps for a process.
type cgroup struct {
	version  string
	folders  []string
	locks    []*os.File // of the folders: while they are held, no Sweep removes them
	attached chan error
}

// controllers are those that are of use.
var controllers = []string{"memory", "pids", "cpu"}

// cgroupSlack is how much more than its own memory a process may cause.
const cgroupSlack = 256 << 20

const cgroupPeriod = 100000 // microseconds

// limits are the files of a controller, by version, and what is written there.
func (c *Config) limits(version, controller string) (file, value string) {
	memory, quota := strconv.FormatInt(c.Memory+cgroupSlack, 10), strconv.Itoa(int(c.CPUs*cgroupPeriod))
	switch version + controller {
	case "v1memory":
		return "memory.limit_in_bytes", memory
	case "v2memory":
		return "memory.max", memory
	case "v1cpu":
		return "cpu.cfs_quota_us", quota
	case "v2cpu":
		return "cpu.max", quota + " " + strconv.Itoa(cgroupPeriod)
	}
	return "pids.max", strconv.Itoa(c.Processes)
}

// A hierarchy is where this process is in one that is mounted.
type hierarchy struct {
	version     string
	controllers []string // of version 1
	root, own   string   // folders
}

// hierarchies finds them in what /proc/self has as cgroup and mountinfo.
func hierarchies(cgroups, mountinfo string) (found []hierarchy) {
	own := make(map[string]string) // by controller; version 2 is ""
	for line := range strings.Lines(cgroups) {
		if parts := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3); len(parts) == 3 {
			for controller := range strings.SplitSeq(parts[1], ",") {
				own[controller] = parts[2]
			}
		}
	}
	for line := range strings.Lines(mountinfo) {
		// proc_pid_mountinfo(5)
		before, after, _ := strings.Cut(line, " - ")
		fields, kind := strings.Fields(before), strings.Fields(after)
		if len(fields) < 5 || len(kind) < 3 {
			continue
		}
		h := hierarchy{version: "v2", root: fields[4]}
		path, ok := own[""]
		if kind[0] == "cgroup" {
			h.version = "v1"
			for option := range strings.SplitSeq(kind[2], ",") {
				if slices.Contains(controllers, option) {
					h.controllers = append(h.controllers, option)
					path, ok = own[option], true
				}
			}
			ok = ok && h.controllers != nil
		} else {
			ok = ok && kind[0] == "cgroup2"
		}
		if !ok {
			continue
		}
		// What is mounted may be a part of it.
		if path, ok = strings.CutPrefix(path, strings.TrimSuffix(fields[3], "/")); ok {
			h.own = filepath.Join(h.root, path)
			found = append(found, h)
		}
	}
	return found
}

// ownHierarchies finds those of this process.
func ownHierarchies() ([]hierarchy, error) {
	cgroups, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return nil, cause(err)
	}
	mountinfo, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, cause(err)
	}
	return hierarchies(string(cgroups), string(mountinfo)), nil
}

// parents are where a group can be made: beside the own one first, since a group of
// version 2 that has processes has no groups with limits.
func (h *hierarchy) parents() []string {
	if h.version == "v2" && h.own != h.root {
		return []string{filepath.Dir(h.own), h.own}
	}
	return []string{h.own}
}

// Sweep removes the groups of processes whose supervisors were killed.
func Sweep() {
	if found, err := ownHierarchies(); err == nil { // else there are none either
		sweep(found)
	}
}

func sweep(found []hierarchy) {
	for _, h := range found {
		for _, parent := range h.parents() {
			old, _ := filepath.Glob(filepath.Join(parent, cgroupPrefix+"*"))
			for _, folder := range old {
				if lock, err := lockFolder(folder); err == nil { // else it is in use
					syscall.Rmdir(folder)
					lock.Close()
				}
			}
		}
	}
}

func lockFolder(folder string) (*os.File, error) {
	return hostfs.Lock(context.Background(), folder, os.O_RDONLY|syscall.O_DIRECTORY, syscall.LOCK_EX|syscall.LOCK_NB)
}

// newCgroup makes a group for a process to come.
func (c *Config) newCgroup() (*cgroup, error) {
	found, err := ownHierarchies()
	if err != nil {
		return nil, err
	}
	sweep(found)
	var faults []string
	for _, version := range []string{"v2", "v1"} {
		g := &cgroup{version: version, attached: make(chan error, 1)}
		var err error
		for _, controller := range controllers {
			if err = g.limit(c, controller, found); err != nil {
				break
			}
		}
		if err == nil {
			return g, nil
		}
		g.remove()
		faults = append(faults, version+" "+err.Error())
	}
	return nil, errors.New(strings.Join(faults, ", "))
}

// limit sets the limit of a controller, in a folder that is made for it if there is
// none yet.
func (g *cgroup) limit(c *Config, controller string, found []hierarchy) error {
	file, value := c.limits(g.version, controller)
	write := func(folder string) error {
		return os.WriteFile(filepath.Join(folder, file), []byte(value), 0)
	}
	if g.version == "v2" && len(g.folders) > 0 {
		return cause(write(g.folders[0]))
	}
	err := errors.New("there is none")
	for _, h := range found {
		if h.version != g.version || h.version == "v1" && !slices.Contains(h.controllers, controller) {
			continue
		}
		if h.version == "v2" && h.own == h.root {
			// An error shows when the limit is set.
			_ = os.WriteFile(filepath.Join(h.root, "cgroup.subtree_control"), []byte("+memory +pids +cpu"), 0)
		}
		for _, parent := range h.parents() {
			var folder string
			var lock *os.File
			if folder, lock, err = makeFolder(parent); err != nil {
				continue
			}
			if err = cause(write(folder)); err == nil {
				g.folders, g.locks = append(g.folders, folder), append(g.locks, lock)
				return nil
			}
			unix.Rmdir(folder)
			lock.Close()
		}
	}
	return fmt.Errorf("%s: %w", controller, err)
}

const cgroupPrefix = "matchlock-"

// makeFolder makes a group and holds it.
func makeFolder(parent string) (folder string, lock *os.File, err error) {
	for range 10 {
		if folder, err = os.MkdirTemp(parent, cgroupPrefix+"*"); err != nil {
			break
		}
		if lock, err = lockFolder(folder); err != nil {
			continue // a Sweep came first
		}
		if _, err = os.Lstat(folder); err == nil {
			return folder, lock, nil
		}
		lock.Close() // and was done
	}
	return "", nil, cause(err)
}

// attach moves a process there. The kernel may take 10 ms for it, so it goes on by
// itself; attached tells its end.
func (g *cgroup) attach(pid int) {
	go func() {
		var errs []error
		for _, folder := range g.folders {
			errs = append(errs, os.WriteFile(filepath.Join(folder, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0))
		}
		g.attached <- errors.Join(errs...)
	}()
}

// remove is for when the process is gone.
func (g *cgroup) remove() {
	for _, folder := range g.folders {
		// The kernel may still be at it.
		for range 100 {
			if err := unix.Rmdir(folder); err != unix.EBUSY {
				break
			}
			time.Sleep(time.Millisecond)
		}
	}
	for _, lock := range g.locks {
		lock.Close()
	}
}
