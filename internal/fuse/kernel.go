package fuse

// Operations, of include/uapi/linux/fuse.h. Those that are missing are answered
// with ENOSYS, after which the kernel does without.
const (
	opLookup      = 1
	opForget      = 2
	opGetattr     = 3
	opSetattr     = 4
	opReadlink    = 5
	opSymlink     = 6
	opMknod       = 8
	opMkdir       = 9
	opUnlink      = 10
	opRmdir       = 11
	opRename      = 12
	opLink        = 13
	opOpen        = 14
	opRead        = 15
	opWrite       = 16
	opStatfs      = 17
	opRelease     = 18
	opFsync       = 20
	opSetxattr    = 21
	opGetxattr    = 22
	opListxattr   = 23
	opRemovexattr = 24
	opInit        = 26
	opReaddir     = 28
	opFsyncdir    = 30
	opCreate      = 35
	opDestroy     = 38
	opBatchForget = 42
	opFallocate   = 43
	opReaddirplus = 44
	opRename2     = 45
	opLseek       = 46
)

// Capabilities of INIT.
const (
	initAsyncRead       = 1 << 0
	initBigWrites       = 1 << 5
	initAutoInvalData   = 1 << 12
	initDoReaddirplus   = 1 << 13
	initReaddirplusAuto = 1 << 14
	initParallelDirops  = 1 << 18
	initMaxPages        = 1 << 22
	initCacheSymlinks   = 1 << 23
	initNoOpendir       = 1 << 24
	initHandleKillprivs = 1 << 28 // version 2

	wanted = initAsyncRead | initBigWrites | initAutoInvalData | initDoReaddirplus | initReaddirplusAuto |
		initParallelDirops | initMaxPages | initCacheSymlinks | initNoOpendir | initHandleKillprivs
)

// Fields of SETATTR that count.
const (
	setMode        = 1 << 0
	setUID         = 1 << 1
	setGID         = 1 << 2
	setSize        = 1 << 3
	setAtime       = 1 << 4
	setMtime       = 1 << 5
	setAtimeNow    = 1 << 7
	setMtimeNow    = 1 << 8
	setKillSUIDGID = 1 << 11
)

const (
	writeKillSUIDGID = 1 << 2 // flag of WRITE
	openKeepCache    = 1 << 1 // flag in the answer to OPEN
)

// Sizes of the structures in bytes, and limits.
const (
	inHeaderSize  = 40
	outHeaderSize = 16
	entrySize     = 128
	direntSize    = 24

	maxName    = 255
	maxTarget  = 4095     // of a symbolic link
	maxXattr   = 64 << 10 // XATTR_SIZE_MAX
	maxForgets = 64 << 10

	// MaxIO is how much one READ or WRITE moves at most.
	MaxIO = 512 << 10
	// maxMessage is how long a message can be, headers included.
	maxMessage = MaxIO + 4096 - frameHead

	protocolMajor = 7
	protocolMinor = 38
	oldestMinor   = 31 // of Linux 5.4

	rootID = 1
)
