package qemu

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/matchlock/matchlock/internal/saved"
	"github.com/matchlock/matchlock/internal/wire"
)

// Settle implements machine.Settler.
//
// Under TCG the process that has booted a guest keeps what only the boot
// needed: the translation of code that never runs again and the kernel's
// image, 80 of its 120 MB. So a fresh process takes over. The guest's memory is
// taken out into a file; the state of its devices, some kilobytes, goes through
// a pipe; and the guest stands still for 100 ms. With the cache of translations
// empty, it can be large.
//
// This is also where a template is made: the process that takes over is then
// the first to begin from it.
func (h *hypervisor) Settle(ctx context.Context) (fresh bool, err error) {
	if h.accel.Name == accelTCG || h.copyable {
		fresh, err = h.replaceInstance(ctx)
	}
	// The guest runs from its own memory now, and never boots again.
	return fresh, errors.Join(err, empty(h.kernel), empty(h.initramfs))
}

// quietTime is how long a guest is left alone before a template is made of it, so
// that it is at rest: what its kernel and its agent's runtime put off would else be
// done anew by each copy.
const quietTime = 100 * time.Millisecond

func sleep(ctx context.Context, duration time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(duration):
		return nil
	}
}

func (h *hypervisor) replaceInstance(ctx context.Context) (fresh bool, err error) {
	h.settling.Lock()
	defer h.settling.Unlock()
	h.mu.Lock()
	old := h.current
	h.mu.Unlock()
	if h.copyable {
		if err := sleep(ctx, quietTime); err != nil {
			return false, err
		}
	}
	memory, state, err := h.takeOut(ctx, old)
	if err != nil {
		// Nothing is lost but memory: the old process goes on, if it can.
		h.log.Warn("the guest stays with the process that booted it", "error", err)
		if h.copyable {
			h.warm(false, err)
		}
		return false, nil
	}
	defer state.Close()
	var t *template
	if h.copyable {
		t = h.makeTemplate(ctx, memory, state)
	}
	if h.accel.Name != accelTCG {
		// Its process keeps nothing that is worth a change.
		if t != nil {
			t.Close()
		}
		return false, errors.Join(memory.Close(), old.qmp.Execute(ctx, "cont", nil, nil, nil))
	}
	h.memory.Close()
	h.memory = memory
	if t != nil {
		memory.Close()
		h.template, h.memory = t, t.Memory
	}
	return true, h.handOver(ctx, old, state)
}

// takeOut stops the guest and returns its memory and the state of its devices.
// After an error it runs on.
func (h *hypervisor) takeOut(ctx context.Context, i *instance) (memory, state *os.File, err error) {
	s, err := h.beginSaving(ctx, i)
	if err != nil {
		return nil, nil, err
	}
	defer s.close()
	if err = s.pause(ctx); err == nil {
		memory, state, err = s.take()
	}
	if err != nil {
		err = errors.Join(err, s.resume(ctx))
	}
	return memory, state, err
}

// makeTemplate makes a template of the guest, which stands still. Without one,
// nil, all goes on as it would have.
func (h *hypervisor) makeTemplate(ctx context.Context, memory, state *os.File) *template {
	began := time.Now()
	t, err := makeTemplate(ctx, h.templates, h.shape, h.origin, memory, state, h.upper().top().file)
	h.warm(err == nil, err)
	if err != nil {
		if !errors.Is(err, ErrTemplateBeingMade) {
			h.log.Warn("no template was made, so the next start is slow too", "error", err)
		}
		return nil
	}
	h.log.Info("made a template", "took", time.Since(began).Round(time.Millisecond))
	h.pruneTemplates()
	return t
}

// pruneTemplates makes room while the guest goes on, and until Close: after an
// upgrade there may be many that are of no use, and 60 MB and more each.
func (h *hypervisor) pruneTemplates() {
	h.background.Go(func() {
		if _, err := PruneTemplates(h.life, h.templates, false); err != nil && h.life.Err() == nil {
			h.log.Warn("removing old templates", "error", err)
		}
	})
}

// handOver ends the old process and has a fresh one go on from state.
func (h *hypervisor) handOver(ctx context.Context, old *instance, state *os.File) error {
	h.mu.Lock()
	if h.closed {
		h.mu.Unlock()
		return os.ErrClosed
	}
	h.current = nil // its end is not the machine's
	h.answered = false
	h.mu.Unlock()
	old.process.kill()
	old.awaitEnd()
	old.close()
	i, err := h.startInstance(ctx, io.NewSectionReader(state, 0, maxState), false)
	if err != nil {
		return err
	}
	return i.awaitRun(ctx)
}

// startCopy begins as a copy of the template. After an error nothing runs.
func (h *hypervisor) startCopy(ctx context.Context) error {
	h.memory = h.template.Memory
	if err := h.goOnFrom(ctx, io.NewSectionReader(h.template.State, 0, maxState)); err != nil {
		return err
	}
	h.warm(false, nil)
	h.log.Info("the guest begins as a copy of a template", "template", filepath.Base(h.template.dir))
	return nil
}

// goOnFrom starts a process whose guest goes on from its memory and a state. After
// an error nothing runs.
func (h *hypervisor) goOnFrom(ctx context.Context, state io.Reader) error {
	i, err := h.startInstance(ctx, state, true)
	if err != nil {
		return err
	}
	err = i.awaitRun(ctx)
	h.mu.Lock()
	over := i.process.over()
	if err == nil && !over {
		i.trial = false
	}
	h.mu.Unlock()
	if err == nil && over {
		err = errors.New("qemu ended at once")
	}
	if err != nil {
		err = errors.Join(err, h.drop(i))
		if said := h.console.lastLines(); said != "" {
			err = fmt.Errorf("%w; qemu said last: %s", err, said)
		}
		return err
	}
	return nil
}

// forgetTemplate makes the machine one that boots.
func (h *hypervisor) forgetTemplate(ctx context.Context) error {
	h.template.Close()
	err := saved.Remove(h.template.dir)
	h.template, h.memory = nil, nil
	if err != nil {
		h.log.Warn("removing a template", "error", err)
	}
	upper := h.upper()
	path := h.config.OverlayUpperPath
	if err := errors.Join(closeLayers(upper.layers), os.Remove(path), h.scratch(ctx)); err != nil {
		return err
	}
	upper.layers, err = openLayers(path)
	return err
}

// upper is the disk that takes the writes to an overlay.
func (h *hypervisor) upper() *blockDevice {
	for i := range h.disks {
		if h.disks[i].serial == wire.UpperSerial {
			return &h.disks[i]
		}
	}
	return nil
}

// awaitRun returns when the process has loaded the state that it was given, and
// its guest runs. One that cannot load it ends.
func (i *instance) awaitRun(ctx context.Context) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("the guest's devices were not loaded: %w", err)
		}
	}()
	ctx, cancel := context.WithTimeoutCause(ctx, greetingTime, fmt.Errorf("not within %v", greetingTime))
	defer cancel()
	resumed, unsubscribe := i.qmp.Subscribe("RESUME")
	defer unsubscribe()
	// It may have done so before the subscription.
	var now struct {
		Status string `json:"status"`
	}
	if err := i.qmp.Execute(ctx, "query-status", nil, nil, &now); err != nil || now.Status == "running" {
		return err
	}
	select {
	case _, ok := <-resumed:
		if !ok {
			return i.qmp.Err()
		}
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

const maxState = saved.MaxState
