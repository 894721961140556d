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

func (h *hypervisor) replaceInstance(ctx context.Context) (fresh bool, err error) {
	h.settling.Lock()
	defer h.settling.Unlock()
	h.mu.Lock()
	old := h.current
	h.mu.Unlock()
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
	i, err := h.startInstance(ctx, resumes, false)
	if err != nil {
		return err
	}
	if err := i.load(ctx, io.NewSectionReader(state, 0, maxState)); err != nil {
		return fmt.Errorf("the guest's devices: %w", err)
	}
	return i.connectGuest(ctx, h.dir, true)
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
	i, err := h.startInstance(ctx, resumes, true)
	if err != nil {
		return err
	}
	err = i.load(ctx, state)
	if err == nil {
		err = i.connectGuest(ctx, h.dir, h.snapshot == nil)
	}
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
		return errors.Join(err, h.drop(i))
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

// loadPause lies between two questions whether the state has been loaded, which
// takes a few milliseconds.
const loadPause = time.Millisecond

// load gives a process that waits for it the state of the devices and has the
// guest run.
func (i *instance) load(ctx context.Context, state io.Reader) error {
	ours, theirs, err := os.Pipe()
	if err != nil {
		return err
	}
	defer theirs.Close()
	if err := i.qmp.Execute(ctx, "getfd", map[string]any{"fdname": "state"}, ours, nil); err != nil {
		return errors.Join(err, ours.Close())
	}
	ours.Close() // QEMU has its own
	if err := i.qmp.Execute(ctx, "migrate-incoming", map[string]any{"uri": "fd:state"}, nil, nil); err != nil {
		return err
	}
	if _, err := io.Copy(theirs, state); err != nil {
		return err
	}
	if err := theirs.Close(); err != nil {
		return err
	}
	for {
		var migration struct {
			Status string `json:"status"`
			Error  string `json:"error-desc"`
		}
		if err := i.qmp.Execute(ctx, "query-migrate", nil, nil, &migration); err != nil {
			return err
		}
		switch migration.Status {
		case "completed":
			return i.qmp.Execute(ctx, "cont", nil, nil, nil)
		case "failed", "cancelled":
			return fmt.Errorf("state not loaded: %s", migration.Error)
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(loadPause):
		}
	}
}

const maxState = saved.MaxState
