//go:build amd64 || arm64

package qemu

import (
	"context"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ioctls of Documentation/virt/kvm/api.rst, numbered in
// include/uapi/linux/kvm.h, that amd64 and arm64 share.
const (
	kvmGetAPIVersion = 0xAE00
	kvmCreateVM      = 0xAE01
	kvmCreateVCPU    = 0xAE41

	kvmAPIVersion = 12 // and will be for ever
)

// openKVM tells whether KVM's device may be used.
func openKVM() error {
	kvm, err := newKVM()
	if err != nil {
		return err
	}
	return kvm.Close()
}

func newKVM() (*os.File, error) {
	// The runtime's poller has no business with the device, so no os.OpenFile.
	fd, err := unix.Open(kvmDevice, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: kvmDevice, Err: err}
	}
	return os.NewFile(uintptr(fd), kvmDevice), nil
}

// runVCPU has a vCPU do real work. The device proves nothing: it opens and
// makes vCPUs on hosts whose KVM has no hardware beneath and interprets the
// guest's code, for ever or until it meets an instruction that it does not
// know. A *vcpuError tells that the vCPU did not run; any other error, that the
// question could not be put.
func runVCPU(ctx context.Context) error {
	kvm, err := newKVM()
	if err != nil {
		return err
	}
	defer kvm.Close()
	version, err := ioctl(kvm, kvmGetAPIVersion, 0)
	if err != nil {
		return fmt.Errorf("KVM_GET_API_VERSION: %w", err)
	}
	if version != kvmAPIVersion {
		return fmt.Errorf("KVM has API version %d, not %d", version, kvmAPIVersion)
	}
	vm, err := ioctlFile(kvm, kvmCreateVM, "KVM_CREATE_VM")
	if err != nil {
		return err
	}
	defer vm.Close()
	return probeVCPU(ctx, kvm, vm)
}

func ioctl(f *os.File, request, arg uintptr) (uintptr, error) {
	result, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), request, arg)
	if errno != 0 {
		return 0, errno
	}
	return result, nil
}

// ioctlStruct is for a request whose argument lies in our memory.
func ioctlStruct(f *os.File, request uintptr, arg unsafe.Pointer, name string) error {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), request, uintptr(arg))
	if errno != 0 {
		return fmt.Errorf("%s: %w", name, errno)
	}
	return nil
}

// ioctlFile is for a request with argument 0 that makes a descriptor.
func ioctlFile(f *os.File, request uintptr, name string) (*os.File, error) {
	fd, err := ioctl(f, request, 0)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return os.NewFile(fd, name), nil
}
