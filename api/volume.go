package api

import "time"

// DefaultVolumeSize is the size of a volume for which none is given, in bytes.
const DefaultVolumeSize = 10 << 30

// Volume is a disk that outlives the sandboxes that it is given to.
type Volume struct {
	Name string `json:"name"`
	// Size is how large a disk the guest sees, in bytes.
	Size int64 `json:"size"`
	// Used is what it takes on the host's disk, in bytes.
	Used int64 `json:"used"`
	// Changed is when it was last written to.
	Changed time.Time `json:"changed"`
	Path    string    `json:"path"` // of its file
	// Users are the sandboxes that have it now: one that writes, or any number that
	// only read.
	Users []VolumeUser `json:"users"`
}

// VolumeUser is a sandbox that has a volume.
type VolumeUser struct {
	Sandbox     string `json:"sandbox"` // its id
	SandboxName string `json:"sandbox_name"`
	Mount       string `json:"mount"` // in the guest
	ReadOnly    bool   `json:"read_only"`
}
