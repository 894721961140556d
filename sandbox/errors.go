package sandbox

import (
	"errors"
	"fmt"

	"github.com/matchlock/matchlock/internal/disk"
	"github.com/matchlock/matchlock/internal/image"
	"github.com/matchlock/matchlock/internal/qemu"
	"github.com/matchlock/matchlock/internal/state"
	"github.com/matchlock/matchlock/vm"
)

// What callers branch on, by errors.Is. The errors returned say more than these do.
var (
	// ErrNotFound says that there is no such image, sandbox, snapshot, volume, rule or
	// secret.
	ErrNotFound = errors.New("not found")
	// ErrNoCommand says that neither the configuration nor the image names a command.
	ErrNoCommand = errors.New("no command to run")
	// ErrNoHelper says that the guest's /init, which the program matchlock brings, is not to
	// be had: see Options.Helper.
	ErrNoHelper = errors.New("no guest binary")
	// ErrDiskInUse says that a sandbox has a volume, or a disk of the user's, already.
	ErrDiskInUse = errors.New("in use by a sandbox")
	// ErrNotRunning says that the sandbox has ended, or its guest has.
	ErrNotRunning = vm.ErrNotRunning
	// ErrRunning says that the sandbox runs, and must not for what was asked.
	ErrRunning = errors.New("sandbox is running")
	// ErrPaused says that the sandbox stands still, and must not for what was asked.
	ErrPaused = vm.ErrPaused
	// ErrNameTaken says that another sandbox has the name.
	ErrNameTaken = state.ErrNameTaken
	// ErrSnapshotTaken says that there is a snapshot of the name.
	ErrSnapshotTaken = errors.New("there is one already")
	// ErrVolumeTaken says that there is a volume of the name.
	ErrVolumeTaken = errors.New("there is one already")
	// ErrNoNetwork says that the sandbox has no network.
	ErrNoNetwork = errors.New("it has no network")
	// ErrTimeout says that a command was ended because its Cmd.Timeout ran out, which of
	// the first one is Config.Timeout.
	ErrTimeout = errors.New("timeout")
	// ErrTooLarge says that more would have to be held in memory than the method may.
	ErrTooLarge = vm.ErrTooLarge
)

// ImageError is an image that could not be had. It is ErrNotFound where there
// is none.
type ImageError struct {
	Image string // as it was asked for
	Err   error  // names the image
}

func (e *ImageError) Error() string { return e.Err.Error() }
func (e *ImageError) Unwrap() error { return e.Err }

// Is makes image.ErrNotFound, which importers of this package cannot see, ErrNotFound.
func (e *ImageError) Is(target error) bool {
	return target == ErrNotFound && errors.Is(e.Err, image.ErrNotFound)
}

// stateError is ErrRunning or ErrNotRunning of a sandbox.
type stateError struct {
	name, is string
	err      error
}

func (e *stateError) Error() string { return fmt.Sprintf("sandbox %q %s", e.name, e.is) }
func (e *stateError) Unwrap() error { return e.err }

func stillRunning(name string) error { return &stateError{name, "is running", ErrRunning} }

// hintError is an error whose way out is known.
type hintError struct {
	error
	hint string
}

func (e *hintError) Unwrap() error { return e.error }

// Hint is the way out, a phrase.
func (e *hintError) Hint() string { return e.hint }

// withHint adds the way out to errors of parts that imply it.
func withHint(err error) error {
	var (
		tool    *disk.MissingToolError
		version *qemu.VersionError
		differs *qemu.MismatchError
	)
	switch {
	case errors.As(err, &tool):
		return &hintError{err, installCommand(tool.Package)}
	case errors.As(err, &version):
		return &hintError{err, fmt.Sprintf("install QEMU %s or later (%s, where that is one), or name it in MATCHLOCK_QEMU", version.Needed, installCommand(qemuPackage))}
	case errors.As(err, &differs):
		return &hintError{err, "a snapshot goes on only where that is the same; make it anew from its image here"}
	case errors.Is(err, qemu.ErrUnconfined):
		return &hintError{err, "`matchlock run --no-jail` does without; what runs in the guest is then one fault of QEMU away from all that you may do"}
	case errors.Is(err, qemu.ErrNoQEMU):
		return &hintError{err, installCommand(qemuPackage) + ", or name one in MATCHLOCK_QEMU"}
	}
	return err
}
