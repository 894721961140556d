package agent

import (
	"errors"
	"io/fs"
	"strconv"

	"github.com/matchlock/matchlock/internal/wire"
)

var (
	// ErrTooLarge is wrapped by the error of a call whose result would be more
	// than it may hold in memory.
	ErrTooLarge = errors.New("too large")

	// ErrUnknownUser is wrapped by the error of a command for a user or group that
	// the guest's files do not list.
	ErrUnknownUser = errors.New("unknown user")

	// ErrCommandNotFound and ErrNotExecutable are wrapped by the error of Start
	// when the guest has no such program, or one that cannot be run. Exec reports
	// them as the exit status 127 or 126, as a shell does.
	ErrCommandNotFound = errors.New("command not found")
	ErrNotExecutable   = errors.New("not executable")
)

// A code is what of a guest's error a program can branch on.
type code uint8

const (
	codeOther code = iota
	codeNotExist
	codeExist
	codePermission
	codeTooLarge
	codeUnknownUser
	codeCommandNotFound
	codeNotExecutable
)

// sentinels are what the codes stand for.
var sentinels = [...]error{
	codeNotExist:        fs.ErrNotExist,
	codeExist:           fs.ErrExist,
	codePermission:      fs.ErrPermission,
	codeTooLarge:        ErrTooLarge,
	codeUnknownUser:     ErrUnknownUser,
	codeCommandNotFound: ErrCommandNotFound,
	codeNotExecutable:   ErrNotExecutable,
}

// codeOf finds the code of an error that a server is to send.
func codeOf(err error) code {
	for c := len(sentinels) - 1; c > 0; c-- {
		if errors.Is(err, sentinels[c]) {
			return code(c)
		}
	}
	return codeOther
}

// guestError is an error of the guest: its word, made fit to be shown. It is
// the sentinel of its code.
type guestError struct {
	code code
	text string
}

func (e *guestError) Error() string { return e.text }

func (e *guestError) Is(target error) bool {
	return e.code != codeOther && sentinels[e.code] == target
}

// exitStatus is the status with which a shell reports that a command could not
// be started; 0 for other errors.
func exitStatus(err error) int {
	switch {
	case errors.Is(err, ErrCommandNotFound):
		return 127
	case errors.Is(err, ErrNotExecutable):
		return 126
	}
	return 0
}

// IsGuestError reports whether err is the guest's answer to a request, which
// it has understood and refused, and not a fault of the way to it.
func IsGuestError(err error) bool {
	var guest *guestError
	return errors.As(err, &guest)
}

func encodeError(err error) []byte {
	text := err.Error()
	var e wire.Encoder
	e.Uint8(uint8(codeOf(err)))
	e.String(text[:min(len(text), maxMessage)])
	return e.Encoded()
}

// decodeError returns the guest's error, or that there is none to be understood.
func decodeError(payload []byte) error {
	d := wire.NewDecoder(payload)
	c, text := d.Uint8(), d.Text(maxMessage)
	if int(c) >= len(sentinels) {
		c = uint8(codeOther)
	}
	if err := d.Done(); err != nil {
		return wrap("guest's error", err)
	}
	return &guestError{code(c), text}
}

// withText is an error that says text and is also what.
type withText struct {
	text string
	what error
}

func (e *withText) Error() string { return e.text }
func (e *withText) Unwrap() error { return e.what }

// wrap and pathError do what fmt.Errorf would, on a path where package fmt
// costs the guest too much.
func wrap(thing string, err error) error {
	return &withText{thing + ": " + err.Error(), err}
}

func pathError(thing, name string, err error) error {
	return wrap(thing+" "+strconv.Quote(name), err)
}
