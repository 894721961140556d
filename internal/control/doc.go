// Package control answers how another process reaches the supervisor of a
// sandbox: by a unix socket in the sandbox's folder. It holds both ends of what
// is said there, Server for the supervisor and Client for everybody else, and
// knows nothing of what the methods mean.
//
// # The protocol
//
// A connection is one call. The server begins with a line of JSON, the hello:
//
//	{"version":1,"id":"k3v9x0a2b7qd"}
//
// The client answers with a request, a line of JSON too, at most 4 MiB long:
//
//	{"method":"stop","params":{"timeout":10}}
//
// and the server with what came of it:
//
//	{"result":{…}}
//	{"error":{"code":"no_such_method","message":"…","hint":"…"}}
//
// Some methods go on as a stream after a result: from then on both sides send
// frames of package wire. There are two kinds of streams. A Conn carries the bytes
// of one connection, with its half-closes and resets. An Attachment carries the
// records of a log and, the other way, input, signals and sizes of a terminal.
//
// A client that hangs up ends its call, not what the call was about. Both ends
// take a peer for one that can be killed at any moment, and every wait for one
// that is expected to answer has a deadline.
package control

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// Version is that of the protocol. A client speaks to servers of its own version
// and of the one before.
const Version = 1

// SocketName is the socket's in a sandbox's folder.
const SocketName = "control.sock"

const (
	maxRequest = 4 << 20          // bytes of a line: an environment and an argument vector fit
	maxAnswer  = 4 << 20          // bytes of a line
	lineTime   = 10 * time.Second // for a line that is due
	maxCalls   = 1024             // at once
)

// hello is the first line of a connection.
type hello struct {
	Version int    `json:"version"`
	ID      string `json:"id"` // the sandbox's
}

// request is a client's line.
type request struct {
	Method string          `json:"method"`
	Params json.RawMessage `json:"params,omitempty"`
}

// answer is a server's line.
type answer struct {
	Result json.RawMessage `json:"result,omitempty"`
	Error  *Error          `json:"error,omitempty"`
}

// Error is what a server says is wrong with a call.
type Error struct {
	Code     string `json:"code,omitempty"` // what a program can branch on
	Message  string `json:"message"`
	HintText string `json:"hint,omitempty"`
}

func (e *Error) Error() string { return e.Message }

// Hint is the way out, or "".
func (e *Error) Hint() string { return e.HintText }

// CodeNoSuchMethod is the Error.Code of a method that the server does not have.
const CodeNoSuchMethod = "no_such_method"

var (
	// ErrNotListening says that there is no server: none yet, or none any more.
	ErrNotListening = errors.New("its supervisor does not listen")
	// ErrSilent says that there is a server that does not answer in time.
	ErrSilent = errors.New("its supervisor does not answer")
)

// VersionError is a server that speaks another protocol.
type VersionError struct{ Server int }

func (e *VersionError) Error() string {
	return fmt.Sprintf("its supervisor speaks version %d of the control protocol, this program %d", e.Server, Version)
}

// Hint is the way out.
func (e *VersionError) Hint() string {
	return "stop the sandbox with the matchlock that started it, and start it anew with this one"
}
