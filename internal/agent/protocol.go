package agent

import (
	"errors"
	"math"
	"path"
	"strings"
	"syscall"
	"time"

	"github.com/matchlock/matchlock/api"
	"github.com/matchlock/matchlock/internal/wire"
)

const (
	// answerTime is how long a guest may take for its first answer, and for each
	// piece of a file.
	answerTime = 30 * time.Second

	// killGrace lies between the request to end and SIGKILL.
	killGrace = 2 * time.Second

	// stdinWindow is how much input the guest holds for a command that does not
	// read it.
	stdinWindow = 256 << 10

	// chunk is how much of an output or a file goes into one frame.
	chunk = wire.MaxData
)

// The first frame of a stream.
const (
	requestExec      = iota + 1 // execRequest
	requestWrite                // path, mode; then data …, end
	requestRead                 // path, limit
	requestList                 // path
	requestStat                 // path, whether symbolic links are followed
	requestMkdir                // path, mode
	requestRemove               // path, whether with all that is below
	requestReadTree             // path, whether a symbolic link there is followed
	requestWriteTree            // path of the folder; then a tree
	requestRunning              // –
	requestResume               // id, whether there is an input; then as requestExec
	requestReadLayer            // whether user code stands still meanwhile; data …, end follow
)

// Frames that follow, host to guest.
const (
	frameStdin       = iota + 16 // bytes, within the window
	frameStdinEnd                // –
	frameSignal                  // number (1)
	frameResize                  // rows (4), columns (4)
	frameTerminate               // –
	frameCloseOutput             // frameStdout or frameStderr: nobody reads it any more
)

// Guest to host.
const (
	frameFailed      = iota + 32 // code (1), text: the request's end
	frameStarted                 // pid, id
	frameStdout                  // bytes
	frameStderr                  // bytes
	frameStdinTaken              // n: the window is n bytes wider
	frameStdinClosed             // – : nobody reads it any more
	frameExit                    // status, signal, nanoseconds: the request's end
	frameInfo                    // a file
	frameEntries                 // files
	frameCommands                // commands that run
)

// Both ways: a file's content, and trees. A tree is nodes; data … and a node's end
// follow one that has content; the end follows the last.
const (
	frameData    = iota + 64 // bytes
	frameEnd                 // – : that was all; from the guest: the request is done
	frameNode                // Node
	frameNodeEnd             // – : that was the node's content
)

// Limits of what is decoded.
const (
	maxPath    = 4095 // PATH_MAX less its NUL
	maxName    = 255
	maxArgs    = 1 << 17
	maxEnv     = 1 << 16
	maxUser    = 256
	maxMessage = 4096

	maxCommands = 1 << 16 // that run at once

	maxListed      = 1 << 20 // entries of one folder
	maxListedBytes = 64 << 20
)

// execRequest asks for a command.
type execRequest struct {
	args       []string
	dir        string
	env        map[string]string
	user       string
	stdin      bool // there is an input; else it is empty
	merged     bool // stderr goes where stdout goes
	tty        bool
	rows, cols uint16
}

func (r *execRequest) encode() []byte {
	var e wire.Encoder
	e.Strings(r.args)
	e.String(r.dir)
	e.Map(r.env)
	e.String(r.user)
	e.Bool(r.stdin)
	e.Bool(r.merged)
	e.Bool(r.tty)
	e.Uint32(uint32(r.rows)<<16 | uint32(r.cols))
	return e.Encoded()
}

func decodeExecRequest(payload []byte) (*execRequest, error) {
	d := wire.NewDecoder(payload)
	r := &execRequest{
		args:   d.Strings(maxArgs),
		dir:    d.String(maxPath),
		env:    d.Map(maxEnv),
		user:   d.String(maxUser),
		stdin:  d.Bool(),
		merged: d.Bool(),
		tty:    d.Bool(),
	}
	size := d.Uint32()
	r.rows, r.cols = uint16(size>>16), uint16(size)
	if err := d.Done(); err != nil {
		return nil, err
	}
	return r, r.check()
}

var errNUL = errors.New("NUL byte")

func (r *execRequest) check() error {
	if len(r.args) == 0 {
		return errors.New("no command")
	}
	if r.dir != "" {
		if err := checkPath(r.dir); err != nil {
			return err
		}
	}
	for _, arg := range r.args {
		if strings.Contains(arg, "\x00") {
			return pathError("argument", arg, errNUL)
		}
	}
	for key, value := range r.env {
		if key == "" || strings.ContainsAny(key, "=\x00") {
			return pathError("environment variable", key, errors.New("not a name"))
		}
		if strings.Contains(value, "\x00") {
			return pathError("environment variable", key, errNUL)
		}
	}
	return nil
}

// checkPath says whether p is a path of the guest that may be asked for.
func checkPath(p string) error {
	switch {
	case !path.IsAbs(p):
		return pathError("path", p, errors.New("not absolute"))
	case len(p) > maxPath:
		return pathError("path", p[:32]+"…", syscall.ENAMETOOLONG)
	case strings.Contains(p, "\x00"):
		return pathError("path", p, errNUL)
	}
	return nil
}

func encodeStarted(pid int, id uint64) []byte {
	var e wire.Encoder
	e.Uvarint(uint64(pid))
	e.Uvarint(id)
	return e.Encoded()
}

// An Exit is how a command ended.
type Exit struct {
	// Code is the exit status, or 128+Signal.
	Code int
	// Signal is the Linux number of the signal that ended the command, 0 if none did.
	Signal int
	// Duration is from the start of the process to its end, measured in the guest.
	Duration time.Duration
}

func (x *Exit) encode() []byte {
	var e wire.Encoder
	e.Uvarint(uint64(x.Code))
	e.Uvarint(uint64(x.Signal))
	e.Uvarint(uint64(max(x.Duration, 0)))
	return e.Encoded()
}

func decodeExit(payload []byte) (x Exit, err error) {
	d := wire.NewDecoder(payload)
	code, signal, duration := d.Uvarint(), d.Uvarint(), d.Uvarint()
	if code > 255 || signal > 127 || duration > math.MaxInt64 || signal > 0 && code != 128+signal {
		d.Fail(errors.New("impossible exit status"))
	}
	return Exit{int(code), int(signal), time.Duration(duration)}, d.Done()
}

// File types and bits of st_mode, as the guest's kernel has them.
const (
	modeType    = 0o170000
	modeDir     = 0o040000
	modeRegular = 0o100000
	modeSymlink = 0o120000
)

// Times beyond these cannot be written as RFC 3339: the years 1 to 9999.
const (
	minSeconds = -62135596800
	maxSeconds = 253402300799
)

// encodeAttributes appends what is known of a file beside its name.
func encodeAttributes(e *wire.Encoder, size int64, mode uint32, seconds, nanoseconds int64) {
	e.Varint(size)
	e.Uint32(mode)
	e.Varint(seconds)
	e.Varint(nanoseconds)
}

func decodeAttributes(d *wire.Decoder, name string) api.FileInfo {
	f := api.FileInfo{Name: name, Size: d.Varint(), Mode: d.Uint32()}
	f.ModTime = decodeModTime(d)
	f.IsDir = f.Mode&modeType == modeDir
	if f.Size < 0 {
		d.Fail(errors.New("negative file size"))
	}
	return f
}

func decodeModTime(d *wire.Decoder) time.Time {
	seconds, nanoseconds := d.Varint(), d.Varint()
	return time.Unix(min(max(seconds, minSeconds), maxSeconds), min(max(nanoseconds, 0), 999_999_999)).UTC()
}

// decodeEntry reads one file of a folder. Its name can be joined to the
// folder's path and stays in that folder.
func decodeEntry(d *wire.Decoder) api.FileInfo {
	name := d.String(maxName)
	if !isName(name) {
		d.Fail(errName)
	}
	return decodeAttributes(d, name)
}

var errName = errors.New("impossible file name")

// isName reports whether a file in a folder can have the name.
func isName(name string) bool {
	return name != "" && name != "." && name != ".." && len(name) <= maxName && !strings.ContainsAny(name, "/\x00")
}
