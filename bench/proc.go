package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// descendant returns the process id of the one process below pid whose name
// begins with prefix.
func descendant(pid int, prefix string) (int, error) {
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return 0, err
	}
	type process struct {
		parent int
		name   string
	}
	processes := make(map[int]process)
	for _, path := range stats {
		stat, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended meanwhile
		}
		// "PID (NAME) STATE PARENT …", and a name may hold anything: proc(5).
		id, rest, _ := strings.Cut(string(stat), " (")
		end := strings.LastIndex(rest, ") ")
		fields := strings.Fields(rest[end+2:])
		own, _ := strconv.Atoi(id)
		parent, _ := strconv.Atoi(fields[1])
		processes[own] = process{parent, rest[:end]}
	}
	for id, p := range processes {
		if !strings.HasPrefix(p.name, prefix) {
			continue
		}
		for above := p.parent; above != 0; above = processes[above].parent {
			if above == pid {
				return id, nil
			}
		}
	}
	return 0, fmt.Errorf("no process %s… below process %d", prefix, pid)
}

// residentMiB sums up the resident memory of a process, given its smaps, proc(5),
// less that of the mapping named without, which must be there. "": of all.
func residentMiB(smaps io.Reader, without string) (float64, error) {
	var sum float64
	counts, found := true, without == ""
	lines := bufio.NewScanner(smaps)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		switch {
		case len(fields) == 0:
		case !strings.HasSuffix(fields[0], ":"): // ADDRESSES MODE OFFSET DEVICE INODE [NAME]
			counts = without == "" || len(fields) < 6 || fields[5] != without
			found = found || !counts
		case fields[0] == "Rss:" && counts:
			kB, err := strconv.ParseFloat(fields[1], 64)
			if err != nil {
				return 0, err
			}
			sum += kB / 1024 // as the sizes in flags have it
		}
	}
	if err := lines.Err(); err != nil {
		return 0, err
	}
	if !found {
		return 0, fmt.Errorf("no mapping %s", without)
	}
	return sum, nil
}
