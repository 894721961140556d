package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"
)

// guestMemory is what /proc calls the mapping of the guest's memory in QEMU.
const guestMemory = "/memfd:guest-memory"

// settle is how long a sandbox is idle before it is looked at.
const settle = time.Second

// memory measures what a sandbox costs the host beside what its guest uses.
func memory(ctx context.Context, p *place, m *meter) error {
	for m.loop() {
		qemu, supervisor, err := residentOfIdle(ctx, p)
		if err != nil {
			return err
		}
		m.record(0, qemu+supervisor)
		m.record(1, qemu)
		m.record(2, supervisor)
	}
	return nil
}

func residentOfIdle(ctx context.Context, p *place) (qemu, supervisor float64, err error) {
	idle, err := p.idle(ctx)
	if err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, idle.close()) }()
	time.Sleep(settle)
	if qemu, err = resident(idle.qemu, guestMemory); err != nil {
		return 0, 0, err
	}
	supervisor, err = resident(idle.supervisor.Process.Pid, "")
	return qemu, supervisor, err
}

// resident is residentMiB of a process by its id.
func resident(pid int, without string) (float64, error) {
	smaps, err := os.Open(fmt.Sprintf("/proc/%d/smaps", pid))
	if err != nil {
		return 0, err
	}
	defer smaps.Close()
	mb, err := residentMiB(smaps, without)
	if err != nil {
		return 0, fmt.Errorf("process %d: %w", pid, err)
	}
	return mb, nil
}
