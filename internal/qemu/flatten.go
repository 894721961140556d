package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"
)

// maxLayers is how many files a disk may have before those between the lowest and
// the top become one with the top. Each costs a start its time, and each read that
// goes through it.
const maxLayers = 8

// flatten copies what lies between the lowest layer and the top into the top, while
// the guest runs. A snapshot waits for it. Those who share the layers keep them; if
// we are killed in the middle nothing is lost, for the top hides what it has.
func (h *hypervisor) flatten(i *instance, d *blockDevice) {
	h.settling.Lock()
	defer h.settling.Unlock()
	began, between := time.Now(), len(d.layers)-2
	if err := i.flatten(h.life, d); err != nil {
		if h.life.Err() == nil && !errors.Is(err, errQMPEnded) {
			h.log.Warn("the disk keeps its layers", "layers", len(d.layers), "error", err)
		}
		return
	}
	h.log.Info("made layers of the disk one", "layers", between, "took", time.Since(began).Round(time.Millisecond))
}

// flattenJob is what QEMU calls its job.
const flattenJob = "flatten"

func (i *instance) flatten(ctx context.Context, d *blockDevice) error {
	ended, cancel := i.qmp.Subscribe("BLOCK_JOB_COMPLETED", "BLOCK_JOB_CANCELLED")
	defer cancel()
	if err := i.qmp.Execute(ctx, "block-stream", map[string]any{
		"job-id": flattenJob, "device": d.top().node,
		"base-node":    d.layers[0].node, // without one it would read the whole disk
		"backing-file": "",               // a layer does not say what it lies over
	}, nil, nil); err != nil {
		return err
	}
	if err := awaitJob(ctx, ended); err != nil {
		return err
	}
	image, top := d.layers[0], *d.top()
	merged := d.layers[1 : len(d.layers)-1]
	d.layers = []diskLayer{image, top}
	var errs []error
	for n := len(merged) - 1; n >= 0; n-- { // from the top, for each keeps the one below
		l := merged[n]
		number, _ := layerNumber(image.path, l.path)
		for _, node := range []string{l.node, fileNode(d.serial, number)} {
			errs = append(errs, i.qmp.Execute(ctx, "blockdev-del", map[string]any{"node-name": node}, nil, nil))
		}
		i.removeSet(ctx, layerSet(d.index, number))
		errs = append(errs, l.file.Close(), os.Remove(l.path))
	}
	return errors.Join(errs...)
}

func awaitJob(ctx context.Context, ended <-chan qmpEvent) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case event, ok := <-ended:
		if !ok {
			return errQMPEnded
		}
		var job struct {
			Error string `json:"error"`
		}
		if err := event.decode(&job); err != nil {
			return err
		}
		if event.Name != "BLOCK_JOB_COMPLETED" || job.Error != "" {
			return fmt.Errorf("%s: %s", event.Name, job.Error)
		}
		return nil
	}
}
