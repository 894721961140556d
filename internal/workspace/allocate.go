package workspace

import "syscall"

// The modes of fallocate(2) that trees know: to leave the size, to make a hole, to write
// zeros.
const (
	keepSize  = 0x01
	punchHole = 0x02
	zeroRange = 0x10
)

// The whences of SeekData.
const (
	seekData = 3
	seekHole = 4
)

// checkAllocate refuses what no File can allocate.
func checkAllocate(mode uint32, offset, length int64) error {
	switch {
	case offset < 0 || length <= 0:
		return syscall.EINVAL
	case offset+length < 0:
		return syscall.EFBIG
	}
	switch mode {
	case 0, keepSize, punchHole | keepSize, zeroRange, zeroRange | keepSize:
		return nil
	}
	return syscall.EOPNOTSUPP
}
