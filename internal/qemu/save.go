package qemu

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"github.com/matchlock/matchlock/internal/disk"
	"github.com/matchlock/matchlock/vm"
)

// There is one way to save a machine, for templates, for snapshots, for forks,
// and to hand it from one process to another. Its memory is a private mapping of
// a file: of an empty one while it boots, of what it began from later. What it
// has written since is read out of the process, and makes together with that file
// a new one. The devices' state is some kilobytes. The disk goes on in a new
// layer.
//
// What is copied while the guest runs on is most of it; in the pause it is
// compared, and what has changed meanwhile is copied again.

// stateSet is the descriptor set through which QEMU writes the devices' state.
const stateSet = 900

// saving is a machine on its way into files.
type saving struct {
	qmp    *qmp
	pages  *guestPages
	memory *memoryImage
	state  *os.File
}

// beginSaving prepares what the pause needs.
func (h *hypervisor) beginSaving(ctx context.Context, i *instance) (_ *saving, err error) {
	s := &saving{qmp: i.qmp}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	if s.memory, err = newMemoryImage(h.memory, disk.CopySparse); err != nil {
		return nil, fmt.Errorf("guest memory: %w", err)
	}
	if s.pages, err = openGuestPages(i.process.os.Pid, h.memory); err != nil {
		return nil, err
	}
	if s.state, err = memoryFile("device-state"); err != nil {
		return nil, err
	}
	writer, err := reopen(s.state, os.O_WRONLY)
	if err != nil {
		return nil, err
	}
	defer writer.Close()
	return s, s.qmp.Execute(ctx, "add-fd", map[string]any{"fdset-id": stateSet}, writer, nil)
}

// copyAhead copies the guest's pages while it runs. Most are then what they will
// be in the pause.
func (s *saving) copyAhead() error {
	regions, err := s.pages.written()
	if err != nil {
		return err
	}
	if err := s.pages.each(regions, s.memory.write); err != nil {
		return err
	}
	s.memory.touch(regions)
	return nil
}

// pauseTime bounds each step of a pause: a guest that stands still is worse than
// a snapshot that is not made.
const pauseTime = 10 * time.Second

// pause stops the guest and takes the rest. After an error it stands still too.
func (s *saving) pause(ctx context.Context) error {
	if err := s.qmp.Execute(ctx, "stop", nil, nil, nil); err != nil {
		return err
	}
	regions, err := s.pages.written()
	if err != nil {
		return err
	}
	if err := s.pages.each(regions, s.memory.update); err != nil {
		return err
	}
	// In spite of its name it serves any machine: the state of all devices, without
	// the memory. Live would leave the disks unsaved.
	return s.qmp.Execute(ctx, "xen-save-devices-state", map[string]any{
		"filename": fmt.Sprintf("/dev/fdset/%d", stateSet), "live": false,
	}, nil, nil)
}

// resume has the guest go on, whatever came of the pause.
func (s *saving) resume(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), pauseTime)
	defer cancel()
	return s.qmp.Execute(ctx, "cont", nil, nil, nil)
}

// take returns the files. They are the caller's.
func (s *saving) take() (memory, state *os.File, err error) {
	if memory, err = s.memory.seal(); err != nil {
		return nil, nil, err
	}
	state, s.state = s.state, nil
	return memory, state, nil
}

func (s *saving) close() {
	if s.pages != nil {
		s.pages.close()
	}
	if s.memory != nil {
		s.memory.close()
	}
	if s.state != nil {
		s.state.Close()
	}
}

// Snapshot implements machine.Snapshotter.
func (h *hypervisor) Snapshot(ctx context.Context, o vm.SnapshotOptions, paused bool, hold func(context.Context) (release func() error, err error)) (_ *vm.Snapshot, err error) {
	h.settling.Lock()
	defer h.settling.Unlock()
	h.mu.Lock()
	i := h.current
	h.mu.Unlock()
	upper := h.upper()
	switch {
	case i == nil:
		return nil, net.ErrClosed
	case upper == nil:
		return nil, fmt.Errorf("a snapshot of a machine without an overlay: %w", errors.ErrUnsupported)
	case !o.CopyDisks && o.Still == nil && h.writesOthers():
		return nil, fmt.Errorf("a snapshot of a machine with a disk of its user's: %w", errors.ErrUnsupported)
	}
	s, err := h.beginSaving(ctx, i)
	if err != nil {
		return nil, err
	}
	defer s.close()
	defer i.removeSet(ctx, stateSet)
	if err := s.copyAhead(); err != nil {
		return nil, err
	}
	var copies diskCopies
	if o.CopyDisks {
		copies, err = h.copyDisks(ctx, i)
		defer copies.close()
		if err != nil {
			return nil, err
		}
	}
	grown, err := i.growDisk(ctx, upper)
	if err != nil {
		return nil, fmt.Errorf("disk: %w", err)
	}
	pauseCtx, cancel := context.WithTimeoutCause(context.WithoutCancel(ctx), pauseTime, errors.New("it takes too long"))
	defer cancel()
	goOn := func() error { return nil }
	if !paused {
		release, err := hold(pauseCtx)
		if err != nil {
			return nil, errors.Join(err, grown.undo(ctx))
		}
		goOn = func() error { return errors.Join(s.resume(ctx), release()) }
	}
	began := time.Now()
	if err = s.pause(pauseCtx); err == nil {
		err = copies.part(pauseCtx)
	}
	if err == nil && o.Still != nil {
		err = o.Still()
	}
	if err == nil {
		err = grown.switchOver(pauseCtx)
	}
	if err = errors.Join(err, goOn()); err != nil {
		return nil, errors.Join(err, grown.undo(ctx))
	}
	h.log.Info("made a snapshot", "stood_still", time.Since(began).Round(time.Microsecond*100))
	frozen := len(upper.layers)
	if err := grown.done(ctx); err != nil {
		return nil, err
	}
	snapshot := &vm.Snapshot{Extra: copies.take(h.config.ExtraDisks)}
	defer func() {
		if err != nil {
			snapshot.Close()
		}
	}()
	for _, l := range upper.layers[:frozen] {
		file, err := os.Open(l.path)
		if err != nil {
			return nil, err
		}
		snapshot.Disk = append(snapshot.Disk, file)
	}
	snapshot.Requires = h.requirements()
	if snapshot.Memory, snapshot.State, err = s.take(); err != nil {
		return nil, err
	}
	if len(upper.layers) > maxLayers {
		h.background.Go(func() { h.flatten(i, upper) })
	}
	return snapshot, nil
}

// writesOthers tells whether the machine writes to a disk that others have.
func (h *hypervisor) writesOthers() bool {
	for _, d := range h.config.ExtraDisks {
		if !d.ReadOnly {
			return true
		}
	}
	return false
}

// growth is a new layer on its way to the top of a disk.
type growth struct {
	instance *instance
	device   *blockDevice
	layer    diskLayer
	file     string // the node of the layer's file
	set      int    // of its descriptors
	in       bool   // it is the top
}

// growDisk has QEMU know a new layer, which nothing uses yet.
func (i *instance) growDisk(ctx context.Context, d *blockDevice) (g *growth, err error) {
	g = &growth{instance: i, device: d}
	defer func() {
		if err != nil {
			err = errors.Join(err, g.undo(ctx))
		}
	}()
	if g.layer, err = addLayer(d.layers); err != nil {
		return g, err
	}
	n, _ := layerNumber(d.layers[0].path, g.layer.path)
	g.layer.node, g.file, g.set = nodeName(d.serial, n), fileNode(d.serial, n), layerSet(d.index, n)
	// Its own descriptors, and one for the present top to be frozen by.
	if err := i.addToSet(ctx, g.set, g.layer.file, os.O_RDWR); err != nil {
		return g, err
	}
	if err := i.addToSet(ctx, g.set, g.layer.file, os.O_RDONLY); err != nil {
		return g, err
	}
	top := d.top()
	topNumber, _ := layerNumber(d.layers[0].path, top.path)
	if err := i.addToSet(ctx, layerSet(d.index, topNumber), top.file, os.O_RDONLY); err != nil {
		return g, err
	}
	cache := map[string]any{"no-flush": true}
	if err := i.qmp.Execute(ctx, "blockdev-add", map[string]any{
		"driver": "file", "node-name": g.file, "filename": fmt.Sprintf("/dev/fdset/%d", g.set), "locking": "off", "cache": cache,
	}, nil, nil); err != nil {
		return g, err
	}
	return g, i.qmp.Execute(ctx, "blockdev-add", map[string]any{
		"driver": "qcow2", "node-name": g.layer.node, "file": g.file, "backing": nil, "cache": cache,
	}, nil, nil)
}

// switchOver freezes the present top and has the guest write to the layer.
func (g *growth) switchOver(ctx context.Context) error {
	err := g.instance.qmp.Execute(ctx, "blockdev-snapshot", map[string]any{"node": g.device.top().node, "overlay": g.layer.node}, nil, nil)
	g.in = err == nil
	return err
}

// done leaves the process no descriptor by which a frozen layer can be written.
func (g *growth) done(ctx context.Context) error {
	top := g.device.top()
	n, _ := layerNumber(g.device.layers[0].path, top.path)
	g.instance.removeSet(ctx, layerSet(g.device.index, n))
	frozen, err := os.OpenFile(top.path, os.O_RDONLY, 0)
	if err != nil {
		return err
	}
	top.file.Close()
	top.file = frozen
	g.device.layers = append(g.device.layers, g.layer)
	return os.Chmod(top.path, 0o400)
}

// undo forgets a layer that the guest does not write to. One that it does write
// to stays, as done has it.
func (g *growth) undo(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), pauseTime)
	defer cancel()
	if g.in {
		return g.done(ctx)
	}
	if g.layer.file == nil {
		return nil
	}
	for _, node := range []string{g.layer.node, g.file} {
		if node != "" {
			_ = g.instance.qmp.Execute(ctx, "blockdev-del", map[string]any{"node-name": node}, nil, nil) // it may not be there
		}
	}
	g.instance.removeSet(ctx, g.set)
	return errors.Join(g.layer.file.Close(), os.Remove(g.layer.path))
}

// addToSet hands QEMU a descriptor of file in a mode.
func (i *instance) addToSet(ctx context.Context, set int, file *os.File, mode int) error {
	opened, err := reopen(file, mode)
	if err != nil {
		return err
	}
	defer opened.Close()
	return i.qmp.Execute(ctx, "add-fd", map[string]any{"fdset-id": set}, opened, nil)
}

// removeSet has QEMU close the descriptors of a set; what it uses it has copies
// of.
func (i *instance) removeSet(ctx context.Context, set int) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), pauseTime)
	defer cancel()
	_ = i.qmp.Execute(ctx, "remove-fd", map[string]any{"fdset-id": set}, nil, nil) // it may not be there
}

// takeSnapshot makes the machine one that goes on from a snapshot.
func (h *hypervisor) takeSnapshot(s *vm.Snapshot) error {
	if err := h.checkRequirements(s.Requires); err != nil {
		return err
	}
	if !h.config.OverlayEnabled {
		return fmt.Errorf("a snapshot of a machine without an overlay: %w", errors.ErrUnsupported)
	}
	if err := adoptLayers(h.config.OverlayUpperPath, s.Disk); err != nil {
		return fmt.Errorf("disk: %w", err)
	}
	h.snapshot = new(vm.Snapshot)
	for from, to := range map[*os.File]**os.File{s.Memory: &h.snapshot.Memory, s.State: &h.snapshot.State} {
		var err error
		if *to, err = duplicateFD(int(from.Fd()), from.Name()); err != nil {
			return err
		}
	}
	return nil
}

// startSnapshot goes on from the snapshot.
func (h *hypervisor) startSnapshot(ctx context.Context) error {
	h.memory, h.snapshot.Memory = h.snapshot.Memory, nil
	if err := h.goOnFrom(ctx, io.NewSectionReader(h.snapshot.State, 0, maxState)); err != nil {
		return fmt.Errorf("the snapshot cannot go on: %w", err)
	}
	return nil
}
