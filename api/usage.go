package api

import "time"

// Usage is what a sandbox takes of the host at a moment.
type Usage struct {
	ID   string    `json:"id"`
	Name string    `json:"name"`
	Time time.Time `json:"time"`

	// CPU is the processor time that its machine has taken since it began, of all
	// processors together.
	CPU time.Duration `json:"cpu_ns"`
	// Memory is the host's that is the machine's alone, in bytes; what copies of one
	// template share is not in it.
	Memory int64 `json:"memory"`
	// GuestMemory is what is in use in the guest, of GuestTotal, in bytes, as the guest
	// says; 0 of one that does not answer.
	GuestMemory int64 `json:"guest_memory"`
	GuestTotal  int64 `json:"guest_total"`
	// Disk is the room that its folder takes, in bytes.
	Disk int64 `json:"disk"`
	// Sent and Received are bytes that connections have carried from the guest and to it,
	// and Flows how many there are.
	Sent     int64 `json:"sent"`
	Received int64 `json:"received"`
	Flows    int   `json:"flows"`
}

// Process is a process of the guest, as the guest says.
type Process struct {
	PID    int    `json:"pid"`
	Parent int    `json:"parent"`
	User   string `json:"user"`  // the number, where the guest's passwd has no name
	State  string `json:"state"` // a letter, as ps(1) has it
	// CPU is the processor time that it has taken.
	CPU time.Duration `json:"cpu_ns"`
	// Memory is what it has of the guest's, in bytes.
	Memory  int64  `json:"memory"`
	Command string `json:"command"`
}

// Room is what things of one kind take of the host's disk.
type Room struct {
	Kind  string `json:"kind"`
	Count int    `json:"count"`
	Size  int64  `json:"size"` // bytes; what several share counts once
	// Free is what of it is not in use by what runs, and known to be, in bytes.
	Free int64 `json:"free"`
	// Command is that of matchlock that removes some; empty: all may be deleted while
	// nothing runs.
	Command string `json:"command,omitempty"`
}
