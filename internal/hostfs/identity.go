package hostfs

import (
	"os"
	"strings"
	"syscall"
)

// FileID tells a file from what it was before and from all others.
type FileID struct {
	Path   string `json:"path"`
	Size   int64  `json:"size"`
	Inode  uint64 `json:"inode"`
	Change int64  `json:"change"` // of content or attributes, in nanoseconds of Unix time
}

// Identify returns the FileID of what is at path now.
func Identify(path string) (FileID, error) {
	info, err := os.Stat(path)
	if err != nil {
		return FileID{}, err
	}
	return IdentityOf(path, info), nil
}

// IdentityOf is Identify for what os.Stat has told.
func IdentityOf(path string, info os.FileInfo) FileID {
	st := info.Sys().(*syscall.Stat_t)
	return FileID{path, info.Size(), st.Ino, changeTime(st)}
}

// BootID names this run of the host's kernel; empty on a host that does not tell its boots apart.
func BootID() string {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(id))
}
