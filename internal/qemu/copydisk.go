package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/matchlock/matchlock/vm"
)

// diskCopy is a copy of a disk of the user's on its way. QEMU copies what is there
// while the guest runs on and writes to both; when the guest stands still the copy
// is whole, and parts from the disk.
type diskCopy struct {
	instance *instance
	device   *blockDevice
	file     *os.File // without a name
	events   <-chan qmpEvent
	stop     func() // of events
	begun    bool   // there is a job
}

// diskCopies are those of a machine's disks, in their order.
type diskCopies []*diskCopy

// copySet is the set of descriptors of a disk's copy.
func copySet(index int) int { return 2000*1000 + index }

// copyNode is what QEMU calls the copy of a disk, and its job.
func copyNode(serial string) string { return serial + ".copy" }

// copyDisks has QEMU make copies of the user's disks that the machine writes to. It
// returns when all is in them that there was. What it returns is to be closed, after
// an error too.
func (h *hypervisor) copyDisks(ctx context.Context, i *instance) (copies diskCopies, err error) {
	first := len(h.disks) - len(h.config.ExtraDisks)
	for n := first; n < len(h.disks); n++ {
		if d := &h.disks[n]; !d.readOnly {
			c := &diskCopy{instance: i, device: d}
			copies = append(copies, c)
			if err := c.begin(ctx, h.dir); err != nil {
				return copies, fmt.Errorf("copy of disk %s: %w", d.serial, err)
			}
		}
	}
	for _, c := range copies {
		if err := c.await(ctx, "BLOCK_JOB_READY"); err != nil {
			return copies, fmt.Errorf("copy of disk %s: %w", c.device.serial, err)
		}
	}
	return copies, nil
}

// begin has QEMU copy, into a file in dir that has no name.
func (c *diskCopy) begin(ctx context.Context, dir string) error {
	info, err := c.device.top().file.Stat()
	if err != nil {
		return err
	}
	if c.file, err = os.CreateTemp(dir, "copy-"); err != nil {
		return err
	}
	if err := errors.Join(os.Remove(c.file.Name()), c.file.Truncate(info.Size())); err != nil {
		return err
	}
	c.events, c.stop = c.instance.qmp.Subscribe("BLOCK_JOB_READY", "BLOCK_JOB_COMPLETED", "BLOCK_JOB_CANCELLED")
	if err := c.instance.addToSet(ctx, copySet(c.device.index), c.file, os.O_RDWR); err != nil {
		return err
	}
	node := copyNode(c.device.serial)
	if err := c.instance.qmp.Execute(ctx, "blockdev-add", map[string]any{
		"driver": "file", "node-name": node, "filename": fmt.Sprintf("/dev/fdset/%d", copySet(c.device.index)),
		"locking": "off", "cache": map[string]any{"no-flush": true},
		"discard": "unmap", // so that what is zeros stays a hole
	}, nil, nil); err != nil {
		return err
	}
	if err := c.instance.qmp.Execute(ctx, "blockdev-mirror", map[string]any{
		"job-id": node, "device": c.device.top().node, "target": node, "sync": "full",
		"copy-mode": "write-blocking", // else a guest could write faster than is copied
	}, nil, nil); err != nil {
		return err
	}
	c.begun = true
	return nil
}

// await returns when the job tells that it has come to a point; another end of it is
// an error.
func (c *diskCopy) await(ctx context.Context, point string) error {
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case event, ok := <-c.events:
			if !ok {
				return errQMPEnded
			}
			var job struct {
				Device string `json:"device"` // the job's id
				Error  string `json:"error"`
			}
			if err := event.decode(&job); err != nil {
				return err
			}
			if job.Device != copyNode(c.device.serial) || event.Name == "BLOCK_JOB_READY" && event.Name != point {
				continue
			}
			if event.Name != "BLOCK_JOB_READY" {
				c.begun = false
			}
			if event.Name != point || job.Error != "" {
				return fmt.Errorf("%s: %s", event.Name, job.Error)
			}
			return nil
		}
	}
}

// part makes the copies what the disks are. The guest stands still.
func (c diskCopies) part(ctx context.Context) error {
	for _, c := range c {
		// Of a job that is ready this is its good end.
		if err := c.cancel(ctx, false); err != nil {
			return fmt.Errorf("copy of disk %s: %w", c.device.serial, err)
		}
		if err := c.await(ctx, "BLOCK_JOB_COMPLETED"); err != nil {
			return fmt.Errorf("copy of disk %s: %w", c.device.serial, err)
		}
	}
	return nil
}

func (c *diskCopy) cancel(ctx context.Context, force bool) error {
	return c.instance.qmp.Execute(ctx, "block-job-cancel", map[string]any{"device": copyNode(c.device.serial), "force": force}, nil, nil)
}

// take returns the copies' files in the order of the disks. They are the caller's.
func (c diskCopies) take(disks []vm.DiskConfig) []*os.File {
	if len(c) == 0 {
		return nil
	}
	files := make([]*os.File, len(disks))
	next := 0
	for i := range disks {
		if !disks[i].ReadOnly {
			files[i], c[next].file = c[next].file, nil
			next++
		}
	}
	return files
}

// close has QEMU forget the copies, whatever they have come to.
func (c diskCopies) close() {
	for _, c := range c {
		c.close()
	}
}

func (c *diskCopy) close() {
	ctx, cancel := context.WithTimeout(context.Background(), pauseTime)
	defer cancel()
	if c.begun && c.cancel(ctx, true) == nil {
		_ = c.await(ctx, "BLOCK_JOB_CANCELLED") // any end will do
	}
	if c.stop != nil {
		c.stop()
	}
	_ = c.instance.qmp.Execute(ctx, "blockdev-del", map[string]any{"node-name": copyNode(c.device.serial)}, nil, nil) // it may not be there
	c.instance.removeSet(ctx, copySet(c.device.index))
	if c.file != nil {
		c.file.Close()
	}
}
