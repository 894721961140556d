package api

import (
	"net"
	"strconv"
	"strings"
	"time"
)

// Event tells what the guest did, or tried: on its network, one for each name it asked
// for, each flow, and each request that was looked into; and with files of the host. A connection through
// one of Config.Sockets is a flow, too. What became of the sandbox itself is told as well.
type Event struct {
	Time time.Time `json:"time"` // when it began
	Kind EventKind `json:"kind"`
	// Flow is a number by which events of one flow are known; 0: it belongs to none.
	Flow uint64 `json:"flow,omitempty"`

	// Name is what the guest asked for, as policy knows it: in lower case, without
	// the last dot; of a unix socket, the path in the guest. Empty: it gave an address.
	Name string `json:"name,omitempty"`
	// Address is what was dialled on the host's side, or, where nothing was, what the
	// guest wanted; of a unix socket, the path on the host.
	Address  string `json:"address,omitempty"`
	Port     uint16 `json:"port,omitempty"`
	Protocol string `json:"protocol,omitempty"` // tcp, udp, tls, http, https, websocket, unix

	Verdict Verdict `json:"verdict,omitempty"` // empty of EventLife
	// Rule is the text of the rule that decided; empty: there is none, or it was
	// something else, which Reason says.
	Rule   string `json:"rule,omitempty"`
	Reason string `json:"reason,omitempty"`
	// Hint is the flag that would have allowed it.
	Hint string `json:"hint,omitempty"`
	// Inspected says that what passed was looked into: it was not, or no longer,
	// encrypted for others' eyes.
	Inspected bool `json:"inspected"`

	Sent     int64   `json:"sent,omitempty"`     // bytes from the guest
	Received int64   `json:"received,omitempty"` // bytes to the guest
	Millis   float64 `json:"millis,omitempty"`   // from beginning to end

	Method string `json:"method,omitempty"`
	Path   string `json:"path,omitempty"` // without the query, as the guest wrote it; of EventFile, the file's in the guest
	Status int    `json:"status,omitempty"`
	// Secrets are the names of those that were put in.
	Secrets []string `json:"secrets,omitempty"`

	// Op is what was done with a file, and NewPath its other path, of FileRename and
	// FileLink; of EventFile alone.
	Op      FileOp `json:"op,omitempty"`
	NewPath string `json:"new_path,omitempty"`

	// Action is what became of the sandbox, Sandbox which one it is, and ExitCode that of
	// LifeEnded as Info.ExitCode has it; of EventLife alone.
	Action   LifeAction    `json:"action,omitempty"`
	Sandbox  *EventSandbox `json:"sandbox,omitempty"`
	ExitCode *int          `json:"exit_code,omitempty"`

	// Lost is the number of events that there was no room for; of EventLost alone.
	Lost int64 `json:"lost,omitempty"`
}

// EventSandbox is what was known of the sandbox of an event.
type EventSandbox struct {
	ID     string            `json:"id"`
	Name   string            `json:"name,omitempty"`
	Image  string            `json:"image,omitempty"`
	Labels map[string]string `json:"labels,omitempty"`
}

// Target is what the guest wanted: the name, or else the address, and the port if there
// is one; of a file, what was to be done and its paths; of a sandbox, what became of it.
// Empty: the event is about none.
func (e Event) Target() string {
	if e.Kind == EventLife {
		return string(e.Action)
	}
	if e.Kind == EventFile {
		return strings.TrimSpace(string(e.Op) + " " + e.Path + " " + e.NewPath)
	}
	what := e.Name
	if what == "" {
		what = e.Address
	}
	if e.Port != 0 {
		what = net.JoinHostPort(what, strconv.Itoa(int(e.Port)))
	}
	return what
}

// EventKind says what an event is about.
type EventKind string

// Verdict says what became of it.
type Verdict string

// Kinds of events, and verdicts.
const (
	EventName    EventKind = "name"    // the guest asked what a name's address is
	EventFlow    EventKind = "flow"    // a connection, or datagrams between two ports
	EventRequest EventKind = "request" // within a flow
	EventFrame   EventKind = "frame"   // something on the wire that does not belong there
	EventLost    EventKind = "lost"    // events that are missing here
	EventPolicy  EventKind = "policy"  // rules or secrets were changed
	EventFile    EventKind = "file"    // of a mount
	EventLife    EventKind = "life"    // of the sandbox

	Allowed Verdict = "allowed"
	Denied  Verdict = "denied"
	Failed  Verdict = "failed" // it was allowed, and did not work
)

// LifeAction says what became of a sandbox. An event's Reason says more.
type LifeAction string

// What becomes of sandboxes.
const (
	LifeCreated LifeAction = "created"
	LifeStarted LifeAction = "started" // it runs, after that or again
	LifePaused  LifeAction = "paused"
	LifeResumed LifeAction = "resumed"
	LifeCopied  LifeAction = "copied" // by a fork or a snapshot
	LifeRenamed LifeAction = "renamed"
	LifeUpdated LifeAction = "updated"
	LifeEnded   LifeAction = "ended"
	LifeRemoved LifeAction = "removed"
)
