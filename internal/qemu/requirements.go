package qemu

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"strings"

	"github.com/matchlock/matchlock/internal/machine"
	"github.com/matchlock/matchlock/internal/wire"
)

// requirements are what must be the same where a snapshot goes on as where it was
// made. Kernel and guest binary are in its memory, so they need not be.
type requirements struct {
	Wire    int    `json:"wire"` // wire.Version, which its agent speaks
	QEMU    string `json:"qemu"` // its version: the form of the state is that of one
	Machine string `json:"machine"`
	Accel   string `json:"accel"`
	CPU     string `json:"cpu,omitempty"`     // the host's, where that is the guest's
	TSCKHz  uint64 `json:"tsc_khz,omitempty"` // by which the guest counts its time

	VCPUs    int `json:"vcpus"`
	MemoryMB int `json:"memory_mb"`
	Lowers   int `json:"lowers"`
	Disks    int `json:"disks"`
	MTU      int `json:"mtu"` // of the link; 0: there is none
}

// require fills in what this host and the machine's configuration offer.
func (h *hypervisor) require(v version) error {
	c := h.config
	h.needs = requirements{
		Wire: wire.Version, QEMU: v.Text, Machine: machineType, Accel: h.accel.Name, TSCKHz: h.tscKHz,
		VCPUs: c.VCPUs, MemoryMB: c.MemoryMB, Lowers: len(c.OverlayLowerPaths), Disks: len(c.ExtraDisks), MTU: linkMTU(c),
	}
	if h.accel.Name != accelKVM {
		return nil
	}
	info, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return err
	}
	h.needs.CPU = cpuOf(info)
	return nil
}

func linkMTU(c *machine.Config) int {
	if c.NoNetwork {
		return 0
	}
	return c.MTU
}

// cpuOf names a processor and, by a sum of them, its features and microcode.
func cpuOf(cpuinfo []byte) string {
	name, sum := "", sha256.New()
	for lines := bufio.NewScanner(bytes.NewReader(cpuinfo)); lines.Scan() && lines.Text() != ""; { // of the first one
		key, value, _ := strings.Cut(lines.Text(), ":")
		switch strings.TrimSpace(key) {
		case "model name":
			name = strings.TrimSpace(value)
		case "flags", "microcode", "stepping":
			sum.Write([]byte(lines.Text()))
		}
	}
	return name + " " + hex.EncodeToString(sum.Sum(nil)[:8])
}

// A MismatchError says why a snapshot cannot go on here.
type MismatchError struct {
	What      string // that differs
	Was, Here string
}

func (e *MismatchError) Error() string {
	return fmt.Sprintf("the snapshot was made with %s %s, here it is %s", e.What, e.Was, e.Here)
}

// tscTolerance is how far the rates of two hosts' counters may be apart, as a part
// of one: the guest's clocks go wrong by as much.
const tscTolerance = 1000

// checkRequirements compares what a snapshot says with what there is.
func (h *hypervisor) checkRequirements(said json.RawMessage) error {
	var r requirements
	if err := json.Unmarshal(said, &r); err != nil {
		return fmt.Errorf("what the snapshot requires: %w", err)
	}
	// Whether one is kept in reserve is the host's affair, and settled there.
	if whole := int(math.Ceil(h.config.CPUs)); r.VCPUs == whole || r.VCPUs == whole+1 {
		h.config.VCPUs, h.needs.VCPUs = r.VCPUs, r.VCPUs
	}
	here := h.needs
	for _, c := range []struct {
		what      string
		was, here any
	}{
		{"guest protocol", r.Wire, here.Wire}, {"QEMU", r.QEMU, here.QEMU}, {"machine", r.Machine, here.Machine},
		{"accelerator", r.Accel, here.Accel}, {"processor", r.CPU, here.CPU},
		{"processors:", r.VCPUs, here.VCPUs}, {"MiB of memory:", r.MemoryMB, here.MemoryMB},
		{"layers:", r.Lowers, here.Lowers}, {"disks:", r.Disks, here.Disks}, {"MTU", r.MTU, here.MTU},
	} {
		if c.was != c.here {
			return &MismatchError{c.what, wire.Printable(fmt.Sprint(c.was)), wire.Printable(fmt.Sprint(c.here))}
		}
	}
	if apart := max(r.TSCKHz, here.TSCKHz) - min(r.TSCKHz, here.TSCKHz); apart > here.TSCKHz/tscTolerance {
		return &MismatchError{"a time stamp counter of", fmt.Sprintf("%d kHz", r.TSCKHz), fmt.Sprintf("%d kHz", here.TSCKHz)}
	}
	return nil
}

func (h *hypervisor) requirements() json.RawMessage {
	text, err := json.Marshal(h.needs)
	if err != nil {
		panic(err) // of numbers and strings
	}
	return text
}
