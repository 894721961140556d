package jail

import (
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
)

func TestHierarchies(t *testing.T) {
	const (
		memory  = "40 30 0:35 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n"
		cpu     = "41 30 0:36 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:7 - cgroup cgroup rw,cpu,cpuacct\n"
		other   = "42 30 0:37 / /sys/fs/cgroup/freezer rw - cgroup cgroup rw,freezer\n45 30 0:40 / /tmp rw - tmpfs tmpfs rw\n"
		unified = "43 30 0:38 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
		part    = "44 30 0:38 /docker/1 /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n"
	)
	tests := map[string]struct{ cgroups, mounts, want string }{
		"version 1":  {"5:memory:/a\n2:cpu,cpuacct:/\n4:freezer:/\n", memory + cpu + other, "[{v1 [memory] /sys/fs/cgroup/memory /sys/fs/cgroup/memory/a} {v1 [cpu] /sys/fs/cgroup/cpu,cpuacct /sys/fs/cgroup/cpu,cpuacct}]"},
		"version 2":  {"0::/user.slice/s.scope\n", unified, "[{v2 [] /sys/fs/cgroup /sys/fs/cgroup/user.slice/s.scope}]"},
		"hybrid":     {"3:memory:/a\n0::/\n", memory + unified, "[{v1 [memory] /sys/fs/cgroup/memory /sys/fs/cgroup/memory/a} {v2 [] /sys/fs/cgroup /sys/fs/cgroup}]"},
		"a part":     {"0::/docker/1/x\n", part, "[{v2 [] /sys/fs/cgroup /sys/fs/cgroup/x}]"},
		"other part": {"0::/docker/2\n", part, "[]"},
		"none":       {"", other, "[]"},
		"nonsense":   {":\n::\nx", "-\n - \n - cgroup2\na b c d e - cgroup2 x\n", "[]"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			if got := fmt.Sprint(hierarchies(test.cgroups, test.mounts)); got != test.want {
				t.Errorf("got %s, want %s", got, test.want)
			}
		})
	}
}

// A process is in a group of its own, of which nothing is left when it has ended.
func TestCgroup(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	program := inside(t)
	output, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer output.Close()
	p, err := Start(&Config{First: open(t, program), Program: program, Args: []string{"sleep"}, Output: output, Memory: 1 << 30, Processes: 64, CPUs: 2})
	if err != nil {
		t.Fatal(err)
	}
	p.Ready()
	groups, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", p.Process.Pid))
	p.Process.Kill()
	p.Wait()
	p.Close()
	if p.group == nil {
		t.Skip(p.Missing) // none is to be had here
	}
	if err != nil || !slices.Contains(p.Applied, "cgroup "+p.group.version) {
		t.Errorf("held by %v, missing %v (%v)", p.Applied, p.Missing, err)
	}
	for _, folder := range p.group.folders {
		if name := folder[strings.LastIndex(folder, "/"):]; !strings.Contains(string(groups), name) {
			t.Errorf("it is not in %s:\n%s", name, groups)
		}
		if _, err := os.Stat(folder); !os.IsNotExist(err) {
			t.Errorf("%s: %v", folder, err)
		}
	}
}

// What a supervisor leaves that is killed is removed by the next; what another holds is
// not.
func TestSweep(t *testing.T) {
	c := &Config{Memory: 1 << 30, Processes: 64, CPUs: 2}
	held, err := c.newCgroup()
	if err != nil {
		t.Skip("no group is to be had here:", err)
	}
	defer held.remove()
	left, err := c.newCgroup()
	if err != nil {
		t.Fatal(err)
	}
	for _, lock := range left.locks {
		lock.Close() // as its end would
	}
	Sweep()
	for _, folder := range left.folders {
		if _, err := os.Stat(folder); !os.IsNotExist(err) {
			t.Errorf("%s is still there (%v)", folder, err)
		}
	}
	for _, folder := range held.folders {
		if _, err := os.Stat(folder); err != nil {
			t.Errorf("what is held is gone: %v", err)
		}
	}
}
