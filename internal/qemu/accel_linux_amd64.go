package qemu

import (
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	kvmGetVCPUMmapSize     = 0xAE04
	kvmSetUserMemoryRegion = 0x4020AE46
	kvmSetTSSAddr          = 0xAE47
	kvmRun                 = 0xAE80
	kvmSetRegs             = 0x4090AE82
	kvmGetSregs            = 0x8138AE83
	kvmSetSregs            = 0x4138AE84
)

// Fields of struct kvm_run, by offset.
const (
	runImmediateExit = 1 // u8
	runExitReason    = 8 // u32
	runSuberror      = 32

	exitHLT           = 5
	exitInternalError = 17
)

// probeCode is what the vCPU runs in real mode from address 0: a loop that
// tells hardware from an interpreter, and the two instructions at which
// interpreters give up.
var probeCode = []byte{
	0x66, 0xB9, 0x40, 0x42, 0x0F, 0x00, // mov ecx, 1000000
	0x66, 0x49, // dec ecx
	0x75, 0xFC, // jnz the dec
	0x0F, 0xAE, 0x06, 0x00, 0x02, // fxsave [0x200]
	0x0F, 0xAE, 0x0E, 0x00, 0x02, // fxrstor [0x200]
	0xF4, // hlt
}

type kvmUserMemoryRegion struct {
	slot, flags             uint32
	guestAddr, size, memory uint64
}

type kvmRegs struct {
	rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp uint64
	r8, r9, r10, r11, r12, r13, r14, r15   uint64
	rip, rflags                            uint64
}

type kvmSregs struct {
	cs                                  kvmSegment
	otherSegments                       [7]kvmSegment
	descriptorTables                    [2][2]uint64
	cr0, cr2, cr3, cr4, cr8, efer, apic uint64
	interrupts                          [4]uint64
}

type kvmSegment struct {
	base     uint64
	limit    uint32
	selector uint16
	rest     [10]byte
}

// probeVCPU has a vCPU of vm run probeCode.
func probeVCPU(ctx context.Context, kvm, vm *os.File) error {
	return runCode(ctx, kvm, vm, probeCode)
}

// runCode runs code on a vCPU of vm until it halts.
func runCode(ctx context.Context, kvm, vm *os.File, code []byte) error {
	const pageSize = 4096
	memory, err := unix.Mmap(-1, 0, pageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return fmt.Errorf("guest memory: %w", err)
	}
	defer unix.Munmap(memory)
	copy(memory, code)
	region := kvmUserMemoryRegion{size: pageSize, memory: uint64(uintptr(unsafe.Pointer(&memory[0])))}
	if err := ioctlStruct(vm, kvmSetUserMemoryRegion, unsafe.Pointer(&region), "KVM_SET_USER_MEMORY_REGION"); err != nil {
		return err
	}
	// Older Intel processors need three pages of their own for real mode; here
	// is where QEMU puts them.
	if _, err := ioctl(vm, kvmSetTSSAddr, 0xFEFFD000); err != nil {
		return fmt.Errorf("KVM_SET_TSS_ADDR: %w", err)
	}

	vcpu, err := ioctlFile(vm, kvmCreateVCPU, "KVM_CREATE_VCPU")
	if err != nil {
		return err
	}
	defer vcpu.Close()
	var sregs kvmSregs
	if err := ioctlStruct(vcpu, kvmGetSregs, unsafe.Pointer(&sregs), "KVM_GET_SREGS"); err != nil {
		return err
	}
	sregs.cs.base, sregs.cs.selector = 0, 0
	sregs.cr0 = 1 << 4 // ET, always set; real mode, caches on
	sregs.cr4 = 1 << 9 // OSFXSR
	if err := ioctlStruct(vcpu, kvmSetSregs, unsafe.Pointer(&sregs), "KVM_SET_SREGS"); err != nil {
		return err
	}
	regs := kvmRegs{rflags: 1 << 1} // the bit that is always set
	if err := ioctlStruct(vcpu, kvmSetRegs, unsafe.Pointer(&regs), "KVM_SET_REGS"); err != nil {
		return err
	}
	size, err := ioctl(kvm, kvmGetVCPUMmapSize, 0)
	if err != nil {
		return fmt.Errorf("KVM_GET_VCPU_MMAP_SIZE: %w", err)
	}
	run, err := unix.Mmap(int(vcpu.Fd()), 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("struct kvm_run: %w", err)
	}
	defer unix.Munmap(run)
	return runUntil(ctx, vcpu, run)
}

// runUntil returns nil when the vCPU halts in time. Beyond that it is kicked
// out of the guest the way VMMs do it: immediate_exit lets KVM_RUN not begin
// again, a signal interrupts the one under way. SIGURG is a signal that Go's
// runtime sends its own threads all the time and so takes well.
func runUntil(ctx context.Context, vcpu *os.File, run []byte) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	thread := unix.Gettid()
	limited, cancel := context.WithTimeout(ctx, probeDeadline)
	defer cancel()
	kicked := make(chan struct{})
	stop := context.AfterFunc(limited, func() {
		defer close(kicked)
		run[runImmediateExit] = 1
		unix.Tgkill(unix.Getpid(), thread, unix.SIGURG) // the thread is ours until kicked is closed
	})
	defer func() {
		if !stop() {
			<-kicked // run and the thread are given up only after
		}
	}()

	for {
		_, err := ioctl(vcpu, kvmRun, 0)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case limited.Err() != nil:
			return &vcpuError{fmt.Sprintf("a loop of a million steps took more than %v", probeDeadline)}
		case err == unix.EINTR:
			continue // some other signal
		case err != nil:
			return &vcpuError{"KVM_RUN: " + err.Error()}
		}
		switch reason := binary.NativeEndian.Uint32(run[runExitReason:]); reason {
		case exitHLT:
			return nil
		case exitInternalError:
			return &vcpuError{fmt.Sprintf("KVM internal error, suberror %d", binary.NativeEndian.Uint32(run[runSuberror:]))}
		default:
			return &vcpuError{fmt.Sprintf("unexpected exit, reason %d", reason)}
		}
	}
}
