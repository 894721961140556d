package qemu

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Names of accelerators, as QEMU and users write them.
const (
	accelAuto = "auto"
	accelKVM  = "kvm"
	accelTCG  = "tcg"
)

const kvmDevice = "/dev/kvm"

// probeDeadline is how long a vCPU may take for the probe's code. Hardware
// needs a few milliseconds on a busy host.
const probeDeadline = 200 * time.Millisecond

// Accel is what runs a guest's instructions, and why that.
type Accel struct {
	Name   string // "kvm" or "tcg"
	Reason string // for people
}

// A vcpuError tells that KVM is there and its vCPUs do not run.
type vcpuError struct{ reason string }

func (e *vcpuError) Error() string { return "no vCPU runs under /dev/kvm: " + e.reason }

// chooseAccel returns the accelerator for want, which is "auto", "kvm" or
// "tcg". What a vCPU showed is remembered in cacheDir until the host boots
// anew; whoever wants KVM and nothing else has it asked again.
func chooseAccel(ctx context.Context, want, cacheDir string) (Accel, error) {
	return kvmProbe{openKVM, runVCPU}.choose(ctx, want, cacheDir)
}

// A kvmProbe asks the host for KVM in two steps.
type kvmProbe struct {
	// open tells whether we may use the device at all. That changes with groups
	// and modules, and costs nothing to ask.
	open func() error
	// run has a vCPU work within probeDeadline.
	run func(context.Context) error
}

func (p kvmProbe) choose(ctx context.Context, want, cacheDir string) (Accel, error) {
	var err error
	switch want {
	case accelTCG:
		return Accel{accelTCG, "asked for"}, nil
	case accelKVM:
		err = p.ask(ctx, cacheDir)
	case accelAuto:
		err = p.recall(ctx, cacheDir)
	default:
		return Accel{}, fmt.Errorf("accelerator %q: not one of auto, kvm, tcg", want)
	}
	switch {
	case err == nil:
		return Accel{accelKVM, "a vCPU runs"}, nil
	case ctx.Err() != nil:
		return Accel{}, ctx.Err()
	case want == accelKVM:
		return Accel{}, fmt.Errorf("accelerator kvm: %w", err)
	}
	return Accel{accelTCG, err.Error()}, nil
}

// recall is ask, unless the answer is known.
func (p kvmProbe) recall(ctx context.Context, cacheDir string) error {
	if known := readHostFacts(cacheDir).KVM; known != nil {
		if err := p.open(); err != nil || known.Runs {
			return err
		}
		return &vcpuError{known.Reason}
	}
	return p.ask(ctx, cacheDir)
}

// ask remembers only what a vCPU itself has shown.
func (p kvmProbe) ask(ctx context.Context, cacheDir string) error {
	if err := p.open(); err != nil {
		return err
	}
	err := p.run(ctx)
	answer := &kvmFact{Runs: err == nil}
	if failed, ok := errors.AsType[*vcpuError](err); ok {
		answer.Reason = failed.reason
	} else if err != nil {
		return err
	}
	updateHostFacts(cacheDir, func(f *hostFacts) { f.KVM = answer })
	return err
}
