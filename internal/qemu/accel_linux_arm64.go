package qemu

import (
	"context"
	"os"
	"unsafe"
)

const (
	kvmARMVCPUInit        = 0x4020AEAE
	kvmARMPreferredTarget = 0x8020AEAF
)

// probeVCPU initialises a vCPU. More is not needed: KVM on arm64 owns EL2 of
// the hardware or does not load.
func probeVCPU(_ context.Context, _, vm *os.File) error {
	vcpu, err := ioctlFile(vm, kvmCreateVCPU, "KVM_CREATE_VCPU")
	if err != nil {
		return err
	}
	defer vcpu.Close()
	var target struct { // kvm_vcpu_init
		target   uint32
		features [7]uint32
	}
	if err := ioctlStruct(vm, kvmARMPreferredTarget, unsafe.Pointer(&target), "KVM_ARM_PREFERRED_TARGET"); err != nil {
		return err
	}
	if err := ioctlStruct(vcpu, kvmARMVCPUInit, unsafe.Pointer(&target), "KVM_ARM_VCPU_INIT"); err != nil {
		return &vcpuError{err.Error()}
	}
	return nil
}
