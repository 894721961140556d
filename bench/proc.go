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

// mappedMiB sums up a field of a process's smaps, proc(5): over the mappings
// whose names are the guest's memory, and over all others.
func mappedMiB(smaps io.Reader, field string, isGuest func(name string) bool) (guest, others float64, err error) {
	sum := &others
	lines := bufio.NewScanner(smaps)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		switch {
		case len(fields) == 0:
		case !strings.HasSuffix(fields[0], ":"): // ADDRESSES MODE OFFSET DEVICE INODE [NAME]
			sum = &others
			if len(fields) > 5 && isGuest(fields[5]) {
				sum = &guest
			}
		case fields[0] == field+":":
			kB, err := strconv.ParseFloat(fields[1], 64)
			if err != nil {
				return 0, 0, err
			}
			*sum += kB / 1024 // as the sizes in flags have it
		}
	}
	return guest, others, lines.Err()
}

// mapped is mappedMiB of a process by its id.
func mapped(pid int, field string) (guest, others float64, err error) {
	smaps, err := os.Open(fmt.Sprintf("/proc/%d/smaps", pid))
	if err != nil {
		return 0, 0, err
	}
	defer smaps.Close()
	if guest, others, err = mappedMiB(smaps, field, isGuestMemory); err != nil {
		err = fmt.Errorf("process %d: %w", pid, err)
	}
	return guest, others, err
}
