package api

import (
	"net/netip"
	"time"
)

// Status is where a sandbox is in its life.
type Status string

// The statuses.
const (
	StatusStarting   Status = "starting" // its machine is being made
	StatusRunning    Status = "running"
	StatusPaused     Status = "paused"     // it stands still
	StatusStopping   Status = "stopping"   // it has been asked to end
	StatusRestarting Status = "restarting" // it has ended, and will run again by itself
	StatusStopped    Status = "stopped"    // it has ended, and can be started again
	StatusDead       Status = "dead"       // its supervisor was killed; can be started again
)

// Alive tells whether a supervisor looks after the sandbox.
func (s Status) Alive() bool {
	switch s {
	case StatusStarting, StatusRunning, StatusPaused, StatusStopping, StatusRestarting:
		return true
	}
	return false
}

// Info is what is known of a sandbox: by its supervisor, and by everybody from
// its folder. Times that have not come yet are zero.
type Info struct {
	ID     string `json:"id"`   // 12 characters of [a-z0-9]
	Name   string `json:"name"` // unique among the sandboxes that exist
	Status Status `json:"status"`

	Image       string            `json:"image"` // as it was asked for
	ImageDigest string            `json:"image_digest,omitempty"`
	Command     []string          `json:"command"` // the first one; empty: none, it idles
	Labels      map[string]string `json:"labels,omitempty"`

	// Parent is the id of the sandbox that it goes on from; empty: none.
	Parent string `json:"parent,omitempty"`
	// Snapshot is the name of the snapshot by which it does; empty: none.
	Snapshot string `json:"snapshot,omitempty"`

	Created  time.Time `json:"created"`
	Started  time.Time `json:"started,omitzero"`  // when it was last ready for commands
	Finished time.Time `json:"finished,omitzero"` // when it last ended

	// ExitCode is the first command's status once it has ended: its own, 128+N
	// after death by signal N, 124 when its time ran out, 125 when it is not known.
	ExitCode *int `json:"exit_code,omitempty"`
	// Error says why it could not be started or ended without being asked to.
	Error string `json:"error,omitempty"`
	// Expired says that a limit of its life has ended it, which Error names.
	Expired bool `json:"expired,omitempty"`
	// Restarts is how often it has been started by its restart policy since somebody
	// started it.
	Restarts int `json:"restarts,omitempty"`

	// Ports are those of the host that lead to the sandbox's while it runs.
	Ports []PublishedPort `json:"ports,omitempty"`

	AutoRemove bool `json:"auto_remove"` // is removed when it ends
	Stdin      bool `json:"stdin"`       // the first command has an input
	Tty        bool `json:"tty"`         // and a terminal

	// PID is the supervisor's process id, for people to look at; that it is there
	// does not say that the sandbox runs.
	PID int `json:"pid,omitempty"`
}

// Ending tells whether a sandbox that is alive will not be for long: it was asked to end,
// or its first command has ended.
func (i *Info) Ending() bool {
	return i.Status == StatusStopping || i.Status.Alive() && i.Status != StatusRestarting && i.ExitCode != nil
}

// PublishedPort is a port of the host that leads to one of the guest.
type PublishedPort struct {
	Host      netip.AddrPort `json:"host"`
	GuestPort uint16         `json:"guest_port"`
	Protocol  string         `json:"protocol"` // tcp or udp
}
