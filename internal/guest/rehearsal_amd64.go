package guest

import "debug/elf"

const endingMachine = elf.EM_X86_64

// endingCode is exit_group(0).
var endingCode = []byte{
	0xb8, 0xe7, 0x00, 0x00, 0x00, // mov $231, %eax
	0x31, 0xff, // xor %edi, %edi
	0x0f, 0x05, // syscall
}
