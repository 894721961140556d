package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// A guest that is busy takes of the host's processors what it was given.
func TestVMCPUs(t *testing.T) {
	m := install(t)
	m.mustRun(t, "run", "-d", "--name", "box", "--cpus", "0.5", "busybox", "sh", "-c", "while :; do :; done")
	machines := m.machines(t)
	if len(machines) != 1 {
		t.Fatalf("there are machines %v, want one", machines)
	}
	time.Sleep(time.Second) // it has translated by then what it does
	// What a process gets that takes all it can says how busy the host is.
	greedy := exec.Command("sh", "-c", "while :; do :; done")
	if err := greedy.Start(); err != nil {
		t.Fatal(err)
	}
	const span = 6 * time.Second
	before := processorTime(t, machines[0])
	time.Sleep(span)
	share := float64(processorTime(t, machines[0])-before) / float64(span)
	free := float64(processorTime(t, greedy.Process.Pid)) / float64(span)
	greedy.Process.Kill()
	greedy.Wait()
	t.Logf("%.2f of a processor, of which there was %.2f", share, free)
	if share < 0.4*min(free, 1) || share > 0.65 {
		t.Errorf("took %.2f of a processor, want 0.5", share)
	}
	m.mustRun(t, "rm", "-f", "box")
	m.leavesNothing(t)
}

// processorTime is what a process has taken, of all processors.
func processorTime(t *testing.T, pid int) time.Duration {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	// proc_pid_stat(5): utime and stime are the 12th and 13th after the name, in 1/100 s.
	fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
	total := 0
	for _, field := range fields[11:13] {
		n, err := strconv.Atoi(field)
		if err != nil {
			t.Fatal(err)
		}
		total += n
	}
	return time.Duration(total) * 10 * time.Millisecond
}

// A supervisor that root has started has what it needs of root's powers.
func TestVMSupervisorCapabilities(t *testing.T) {
	m := install(t)
	m.mustRun(t, "run", "-d", "--name", "box", "busybox")
	supervisors := m.supervisors(t)
	if len(supervisors) != 1 {
		t.Fatalf("there are supervisors %v, want one", supervisors)
	}
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", supervisors[0]))
	if err != nil || len(tasks) == 0 {
		t.Fatal(tasks, err)
	}
	var want uint64
	for _, c := range kept {
		want |= 1 << c
	}
	for _, task := range tasks {
		text, err := os.ReadFile(task)
		if err != nil {
			t.Fatal(err)
		}
		for _, set := range []string{"CapPrm", "CapEff"} {
			_, value, _ := strings.Cut(string(text), set+":")
			if got, err := strconv.ParseUint(strings.Fields(value)[0], 16, 64); err != nil || got&^want != 0 {
				t.Errorf("%s: %s is %x (%v), and of use is %x", task, set, got, err, want)
			}
		}
		if !strings.Contains(string(text), "\nNoNewPrivs:\t1\n") { // nor does what it runs get more
			t.Errorf("%s: no_new_privs is not set", task)
		}
	}
	m.mustRun(t, "rm", "-f", "box")
	m.leavesNothing(t)
}
