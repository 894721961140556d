package api

import "time"

// Template is what is known of a machine that has booted and lies in the cache:
// sandboxes of its image and size begin as copies of it.
type Template struct {
	ID string `json:"id"` // 32 hexadecimal digits
	// Image is what was asked for when it was made. It serves other images of the
	// same layers too.
	Image       string `json:"image,omitempty"`
	ImageDigest string `json:"image_digest,omitempty"`

	CPUs     int    `json:"cpus"`      // whole ones
	Memory   int64  `json:"memory"`    // in bytes
	DiskSize int64  `json:"disk_size"` // in bytes
	Accel    string `json:"accel"`     // "kvm" or "tcg"

	Size int64     `json:"size"`          // on the host's disk, in bytes
	Used time.Time `json:"used,omitzero"` // the last time

	// Stale says why no sandbox begins as a copy of it any more: something that it
	// was made from is gone or has changed.
	Stale string `json:"stale,omitempty"`
	// Damage says what is wrong with its files, as far as somebody looked.
	Damage string `json:"damage,omitempty"`
}
