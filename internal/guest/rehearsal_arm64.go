//go:build linux

package guest

import (
	"debug/elf"
	"encoding/binary"

	"golang.org/x/sys/unix"
)

const rehearsalMachine = elf.EM_AARCH64

func instructions(words ...uint32) (code []byte) {
	for _, w := range words {
		code = binary.LittleEndian.AppendUint32(code, w)
	}
	return code
}

// setCode sets a register.
func setCode(register, value uint32) []byte {
	return instructions(0x52800000|value&0xffff<<5|register, 0x72a00000|value>>16<<5|register) // movz, movk
}

// callCode is a system call.
func callCode(number uint32, args ...uint32) (code []byte) {
	for i, arg := range args {
		code = append(code, setCode(uint32(i), arg)...)
	}
	return append(append(code, setCode(8, number)...), instructions(0xd4000001)...) // svc #0
}

// touchCode writes to a byte.
func touchCode(address uint32) []byte {
	return append(setCode(9, address), instructions(0x39000120)...) // strb w0, [x9]
}

// heapCode makes a heap of some bytes, a multiple of 4096, and writes to its end.
func heapCode(size uint32) []byte {
	code := append(callCode(unix.SYS_BRK, 0), instructions(0x91400000|size>>12<<10)...) // add x0, x0, #…
	code = append(code, callCode(unix.SYS_BRK)...)
	return append(code, instructions(0xd1002009, 0x39000120)...) // sub x9, x0, #8; strb w0, [x9]
}

// threadCode is nothing: the register of a thread's own variables is the program's to set.
func threadCode(uint32) []byte { return nil }
