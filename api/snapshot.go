package api

import "time"

// Snapshot is what is known of a sandbox that was kept as it was at one moment,
// for others to go on from.
type Snapshot struct {
	Name    string    `json:"name"`
	Created time.Time `json:"created"`
	// Sandbox is the id of the sandbox, and SandboxName what it was called.
	Sandbox     string `json:"sandbox"`
	SandboxName string `json:"sandbox_name"`

	Image       string   `json:"image"` // as it was asked for
	ImageDigest string   `json:"image_digest"`
	Command     []string `json:"command"` // the first one, as the configuration has it
	// Labels are those that the sandbox had, which go on with it.
	Labels map[string]string `json:"labels,omitempty"`
	// Running says that the first command runs in it.
	Running bool `json:"running"`

	CPUs     float64 `json:"cpus"`
	Memory   int64   `json:"memory"`    // in bytes
	DiskSize int64   `json:"disk_size"` // in bytes
	// Size is what its files take on the host's disk, in bytes. What it shares with
	// the sandbox, and with those that go on from it, counts.
	Size int64 `json:"size"`

	// Disks are the volumes and disks of the user's that it had. They are not in it.
	Disks []SnapshotDisk `json:"disks,omitempty"`
	// Imported says that it came from elsewhere, as a file.
	Imported bool `json:"imported,omitempty"`
	// Damage says what is wrong with its files, as far as somebody looked.
	Damage string `json:"damage,omitempty"`
}

// SnapshotDisk is where a snapshot wants a disk with the content that it had then.
type SnapshotDisk struct {
	Mount    string `json:"mount"` // in the guest
	ReadOnly bool   `json:"read_only"`
}
