package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"
)

// settle is how long a sandbox is idle before it is looked at.
const settle = time.Second

// memory measures what the host has less when one more sandbox is there of a
// template that others are copies of: by the proportional shares of memory that
// several processes have, of all of them, before and after.
func memory(ctx context.Context, p *place, m *meter) (err error) {
	first, err := p.idle(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, first.close()) }()
	time.Sleep(settle)
	for m.loop() {
		further, err := memoryOfFurther(ctx, p, first)
		if err != nil {
			return err
		}
		m.record(0, further.guest+further.qemu+further.supervisor)
		m.record(1, further.guest)
		m.record(2, further.qemu)
		m.record(3, further.supervisor)
	}
	return nil
}

func memoryOfFurther(ctx context.Context, p *place, first *idleSandbox) (_ share, err error) {
	before, err := first.share()
	if err != nil {
		return share{}, err
	}
	further, err := p.idle(ctx)
	if err != nil {
		return share{}, err
	}
	defer func() { err = errors.Join(err, further.close()) }()
	time.Sleep(settle)
	after, err := first.share()
	if err != nil {
		return share{}, err
	}
	own, err := further.share()
	return share{
		own.guest + after.guest - before.guest, own.qemu + after.qemu - before.qemu, own.supervisor + after.supervisor - before.supervisor,
	}, err
}

// share is a sandbox's proportional share of memory, in MiB.
type share struct{ guest, qemu, supervisor float64 }

func (s *idleSandbox) share() (of share, err error) {
	if of.guest, of.qemu, err = mapped(s.qemu, "Pss"); err != nil {
		return of, err
	}
	if of.guest == 0 {
		return of, fmt.Errorf("process %d: no memory of a guest", s.qemu)
	}
	_, of.supervisor, err = mapped(s.supervisor.Process.Pid, "Pss")
	return of, err
}

// isGuestMemory tells it by what /proc calls its mapping in QEMU: a template's
// file, which in the jail is a mount of its own, or one without a name.
func isGuestMemory(name string) bool {
	return strings.HasPrefix(name, "/memfd:guest-memory") || name == "/" || filepath.Base(name) == "memory" && strings.Contains(name, "/templates/")
}
