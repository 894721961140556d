package qemu

import (
	"context"
	"errors"
	"os"
	"testing"
	"time"
)

// What follows needs KVM's device alone: interpreted or not, a vCPU shows it.
func TestVCPU(t *testing.T) {
	if err := openKVM(); err != nil {
		t.Skip("needs KVM's device, which a host may lack: ", err)
	}
	run := func(ctx context.Context, code []byte) error {
		kvm, err := newKVM()
		if err != nil {
			t.Fatal(err)
		}
		defer kvm.Close()
		vm, err := ioctlFile(kvm, kvmCreateVM, "KVM_CREATE_VM")
		if err != nil {
			t.Fatal(err)
		}
		defer vm.Close()
		return runCode(ctx, kvm, vm, code)
	}
	halt, forever := []byte{0xF4}, []byte{0xEB, 0xFE} // hlt; jmp to itself
	open := descriptors(t)
	if err := run(t.Context(), halt); err != nil {
		t.Errorf("hlt: %v", err)
	}
	for name, code := range map[string][]byte{
		"triple fault": {0x0F, 0x0B}, // ud2, without a handler
		"output":       {0xE6, 0x10}, // out
	} {
		if _, ok := errors.AsType[*vcpuError](run(t.Context(), code)); !ok {
			t.Errorf("%s: no vcpuError", name)
		}
	}

	start := time.Now()
	if _, ok := errors.AsType[*vcpuError](run(t.Context(), forever)); !ok {
		t.Error("endless loop: no vcpuError")
	}
	if took := time.Since(start); took < probeDeadline {
		t.Errorf("endless loop: given up after %v", took)
	}

	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(probeDeadline/10, cancel)
	if err := run(ctx, forever); err != context.Canceled {
		t.Errorf("cancelled: %v", err)
	}
	cancel()
	if err := run(ctx, forever); err != context.Canceled {
		t.Errorf("cancelled before: %v", err)
	}
	if now := descriptors(t); now != open {
		t.Errorf("%d descriptors, %d before", now, open)
	}

	t.Logf("this host: %v", runVCPU(t.Context()))
}

func descriptors(t *testing.T) int {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}
