package qemu

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"sync"
	"time"
)

const (
	bootTries = 3           // of a guest whose kernel hangs
	watchTime = time.Minute // that its boot may take: 3 s under TCG, ten times that on a busy host
)

// noTimer is what Linux says when it has given up its only timer; a moment later it
// waits for an interrupt that never comes. Under TCG it cannot be spared the
// measurement of its APIC's timer against the TSC (calibrate_APIC_clock in
// arch/x86/kernel/apic/apic.c), for which it polls both for a tenth of a second.
// Where the host does not let QEMU's thread run for as long, it finds that time over
// at once and the timer next to standing still.
//
// Who says so is the kernel. Nothing of the user's runs before the control port is open,
// after which nobody listens.
var noTimer = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`(?m)^(\[ *[0-9]+\.[0-9]{6}\] )?APIC (frequency too slow, disabling apic timer|timer disabled due to verification failure)\r?$`)
})

// Why a kernel hangs.
var (
	errNoTimer = errors.New("the guest's kernel found no timer, as happens on a busy host")
	errWatched = fmt.Errorf("the guest's kernel has not booted within %v", watchTime)
)

// bootGuest starts a process whose guest boots, and another in its place if the kernel
// of that finds no timer, or does not boot.
//
// The next one finds what the first has found. A guest mounts its disks when it is
// asked to, on the control port, so none was written to; memory was the process's own.
func (h *hypervisor) bootGuest(ctx context.Context) error {
	for try := 1; ; try++ {
		said, cancel := h.console.await(noTimer())
		i, err := h.startInstance(ctx, nil, false)
		var hangs error // why
		if err == nil && h.accel.Name == accelTCG {
			hangs, err = i.awaitKernel(ctx, said)
		}
		cancel()
		if err != nil || hangs == nil {
			return err
		}
		if try == bootTries {
			if hangs == errWatched {
				return nil // it may yet come: whoever speaks to it will see
			}
			return fmt.Errorf("the guest's kernel found no timer, in %d boots: the host is too busy", try)
		}
		h.log.Warn(hangs.Error() + "; it boots again")
		h.mu.Lock()
		over := i.process.over() // and so is the machine, as Wait tells
		i.trial = !over
		h.mu.Unlock()
		if over {
			return nil
		}
		if err := h.drop(i); err != nil {
			return err
		}
	}
}

// awaitKernel returns when the kernel has booted as far as the guest's control port, or
// hangs: because it has said so, or by the time that it takes. It also returns when the
// process has ended: whoever speaks to it will see.
func (i *instance) awaitKernel(ctx context.Context, saidNoTimer <-chan struct{}) (hangs, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, watchTime, errWatched)
	defer cancel()
	changes, unsubscribe := i.qmp.Subscribe("VSERPORT_CHANGE")
	defer unsubscribe()
	// It may have opened the port before the subscription.
	var sockets []struct {
		Label string `json:"label"`
		Open  bool   `json:"frontend-open"`
	}
	err = i.qmp.Execute(ctx, "query-chardev", nil, nil, &sockets)
	for _, s := range sockets {
		if s.Label == controlID && s.Open {
			return nil, nil
		}
	}
	for err == nil {
		select {
		case change, ok := <-changes:
			var port struct {
				ID   string `json:"id"`
				Open bool   `json:"open"`
			}
			if !ok || change.decode(&port) == nil && port.ID == controlID && port.Open {
				return nil, nil
			}
		case <-saidNoTimer:
			return errNoTimer, nil
		case <-ctx.Done():
			err = context.Cause(ctx)
		}
	}
	switch {
	case errors.Is(err, errWatched):
		return errWatched, nil
	case errors.Is(err, errQMPEnded):
		return nil, nil
	}
	return nil, fmt.Errorf("guest did not come up: %w", err)
}
