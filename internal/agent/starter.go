package agent

import (
	"os"
	"syscall"
)

// A Starter starts processes for a Server. Its Start may be called by several
// goroutines at once.
type Starter interface {
	// Start runs the program at path, which is not looked up, as the leader of a
	// session and process group of its own. It returns when the program has been
	// loaded; an error is, or wraps, the syscall.Errno that says why not.
	Start(path string, argv []string, attr *ProcAttr) (Process, error)
}

// A Preparer is a Starter that can do part of a Start before it is known what is
// to be started.
type Preparer interface {
	Starter

	// Prepare makes ready for a Start with just these Files. Any other Start undoes
	// it.
	Prepare(files []*os.File) error
}

// A Process is a started process and its group.
type Process interface {
	// PID is the process's number, and its group's.
	PID() int

	// Wait returns when the process has ended, how it ended. It is called once.
	Wait() (ExitStatus, error)

	// Signal sends a signal to all of the group. After the process's end the rest
	// of its group is still reached; os.ErrProcessDone says that there is none. A
	// process that has been given the same number since is never signalled.
	Signal(sig syscall.Signal) error
}

// An ExitStatus is how a process ended: with Code, or by Signal if that is not 0.
type ExitStatus struct {
	Code   int
	Signal syscall.Signal
}

// ProcAttr is what a process starts with.
type ProcAttr struct {
	Dir        string      // its working directory
	Env        []string    // KEY=VALUE
	Files      []*os.File  // its descriptors 0, 1, 2; the starter's to use only during Start
	Credential *Credential // nil: the starter's own
	TTY        bool        // Files[0] becomes its controlling terminal
}

// A Credential is who a process runs as.
type Credential struct {
	UID, GID uint32
	Groups   []uint32
}
