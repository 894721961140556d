package sandbox

import "io/fs"

// File types and bits of Linux's st_mode, whatever the host's system is (inode(7)).
const (
	modeType    = 0o170000
	modeRegular = 0o100000
	modeDir     = 0o040000
	modeSymlink = 0o120000
	modeAll     = 0o7777 // of the permission bits
)

// fileTypes and modeBits pair what st_mode says with what package io/fs does.
var (
	fileTypes = map[uint32]fs.FileMode{
		modeRegular: 0,
		modeDir:     fs.ModeDir,
		modeSymlink: fs.ModeSymlink,
		0o010000:    fs.ModeNamedPipe,
		0o020000:    fs.ModeDevice | fs.ModeCharDevice,
		0o060000:    fs.ModeDevice,
		0o140000:    fs.ModeSocket,
	}
	modeBits = map[uint32]fs.FileMode{0o4000: fs.ModeSetuid, 0o2000: fs.ModeSetgid, 0o1000: fs.ModeSticky}
)

// fileMode is an st_mode as package io/fs has it. A type that Linux does not
// have is irregular.
func fileMode(mode uint32) fs.FileMode {
	m, ok := fileTypes[mode&modeType]
	if !ok {
		m = fs.ModeIrregular
	}
	for bit, is := range modeBits {
		if mode&bit != 0 {
			m |= is
		}
	}
	return m | fs.FileMode(mode)&fs.ModePerm
}

// unixMode is the permission bits of m as st_mode has them.
func unixMode(m fs.FileMode) uint32 {
	mode := uint32(m.Perm())
	for bit, is := range modeBits {
		if m&is != 0 {
			mode |= bit
		}
	}
	return mode
}
