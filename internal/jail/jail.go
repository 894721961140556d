// Package jail confines a hypervisor's process: what a guest that has taken over
// its hypervisor can still reach.
//
// Start runs a program as the first and only process of namespaces of its own,
// without a network, in a root that holds what it was given and nothing else,
// without capabilities, and held to limits. What the kernel does not offer here is
// named in a Report; where too little is left of it, Start refuses.
//
// The last steps have to be taken by the process itself, before it becomes the
// program. Go cannot do so between fork and exec, so a small program is run first
// that ends in Main: cmd/matchlock-guest, which starts in a millisecond where ours
// takes 16.
package jail

import (
	"errors"
	"os"
	"os/exec"
)

// Config says what to run, and what of the host it is given.
type Config struct {
	First *os.File // the program that ends in Main, an executable

	Program string     // without symbolic links
	Args    []string   // without its name
	Files   []*os.File // its descriptors, from 3 on
	Output  *os.File   // its standard output and error

	// Paths are files and folders that it opens by name, read-only, Program itself not
	// among them.
	Paths []string
	// Devices are opened for it, when it opens them for reading and writing before
	// Ready. They need not be open to its user.
	Devices []string

	// ID names whom it runs for. Started by root, it has a user of its own, which
	// goes by that.
	ID        string
	Memory    int64 // bytes of its own that it may write to, and
	Stacks    int64 // bytes that it may have for stacks, which are never full
	Processes int   // and threads
	CPUs      float64
}

// A Report tells what holds a program.
type Report struct {
	Applied []string `json:"applied"`
	Missing []string `json:"missing,omitempty"` // each with the reason
}

// Process is a program that was started.
type Process struct {
	*exec.Cmd
	Report
	openings *openings
	group    *cgroup // nil: there is none
}

// Ready says that the program has opened by name what it will: from now on it opens no
// file for writing. The Report is complete then. It is called once, or not at all.
func (p *Process) Ready() {
	p.openings.close()
	p.settle()
}

// Close is for when the program has ended.
func (p *Process) Close() {
	p.openings.close()
	p.removeGroup()
}

// ErrTooLittle is wrapped by the error of a Start that refuses, since this kernel, or
// what we run in, offers neither namespaces nor Landlock.
var ErrTooLittle = errors.New("the hypervisor cannot be confined here")

// FirstName is what a program that ends in Main is called by Start (argv[0]).
const FirstName = "matchlock-jail"
