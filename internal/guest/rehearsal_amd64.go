//go:build linux

package guest

import (
	"debug/elf"
	"encoding/binary"

	"golang.org/x/sys/unix"
)

const rehearsalMachine = elf.EM_X86_64

// callCode is a system call.
func callCode(number uint32, args ...uint32) (code []byte) {
	registers := [][]byte{{0xbf}, {0xbe}, {0xba}, {0x41, 0xba}} // mov $…, %edi, %esi, %edx, %r10d
	for i, arg := range args {
		code = binary.LittleEndian.AppendUint32(append(code, registers[i]...), arg)
	}
	code = binary.LittleEndian.AppendUint32(append(code, 0xb8), number) // mov $…, %eax
	return append(code, 0x0f, 0x05)                                     // syscall
}

// touchCode writes to a byte.
func touchCode(address uint32) []byte {
	return binary.LittleEndian.AppendUint32([]byte{0x88, 0x04, 0x25}, address) // mov %al, …
}

// heapCode makes a heap of some bytes and writes to its end.
func heapCode(size uint32) []byte {
	code := callCode(unix.SYS_BRK, 0)
	code = binary.LittleEndian.AppendUint32(append(code, 0x48, 0x8d, 0xb8), size) // lea …(%rax), %rdi
	code = append(code, callCode(unix.SYS_BRK)...)
	return append(code, 0x88, 0x40, 0xf8) // mov %al, -8(%rax)
}

// threadCode says where the thread's own variables are.
func threadCode(address uint32) []byte {
	const setFS = 0x1002 // ARCH_SET_FS of asm/prctl.h
	return callCode(unix.SYS_ARCH_PRCTL, setFS, address)
}
