package api

import (
	"io"
	"time"
)

// ExecOptions says how a command runs in the guest. The zero value is a
// command without input, as the guest's root, in "/", whose output is
// collected.
type ExecOptions struct {
	// WorkingDir is an absolute path in the guest; it is made (0755) when
	// missing. Empty: "/".
	WorkingDir string

	// Env is laid over the machine's environment.
	Env map[string]string

	// Args, when set, is the argument vector to run without a shell. Args[0]
	// is looked up in the command's PATH unless it has a slash. The command
	// string beside it must be empty.
	Args []string

	// User is name, uid, uid:gid or name:group as in the guest's passwd and
	// group files; a number need not be listed there. Empty: root.
	User string

	// Stdin is copied to the command until EOF. Nil: an empty input.
	Stdin io.Reader

	// Stdout and Stderr receive the output as it comes. A nil writer makes
	// that output part of the ExecResult, at most MaxCollected bytes each.
	Stdout, Stderr io.Writer
}

// MaxCollected is the most output, in bytes per stream, that an exec without
// writers collects. A command that writes more is killed.
const MaxCollected = 64 << 20

// ExecResult is how a command ended.
type ExecResult struct {
	// ExitCode is the exit status, or 128+N after death by signal N.
	ExitCode int `json:"exit_code"`

	// Stdout and Stderr hold what was collected: nothing where a writer was given.
	Stdout []byte `json:"stdout,omitempty"`
	Stderr []byte `json:"stderr,omitempty"`

	// Duration is from the start of the process to its end, measured in the guest.
	Duration time.Duration `json:"duration_ns"`
}

// FileInfo describes one file of the guest. All of it is the guest's word.
type FileInfo struct {
	Name    string    `json:"name"`
	Size    int64     `json:"size"`
	Mode    uint32    `json:"mode"` // st_mode: type and permission bits as in stat(2)
	ModTime time.Time `json:"mod_time"`
	IsDir   bool      `json:"is_dir"`
}

// HostIPMapping is one line of the guest's hosts file.
type HostIPMapping struct {
	Host string `json:"host"`
	IP   string `json:"ip"`
}
