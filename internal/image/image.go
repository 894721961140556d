// Package image keeps container images on this host: it pulls them from registries, imports them from archives, finds
// them again, and removes what nothing needs any more.
//
// The store is a folder in the standard OCI image layout, so that other tools can read it, and beside the blobs one
// EROFS file per layer, which is what a guest mounts:
//
//	oci-layout index.json      the layout's marker; the images by name
//	blobs/sha256/<digest>      manifests, configurations and layers as they were published, or EROFS files as they came
//	layers/<diff id>.erofs     the content of one layer
//	layers/merged-<chain id>.erofs  the content of several, of images with more than [MaxLayers]
//	verified/<digest>          a symbolic link that says which diff id the blob was seen to unpack to
//	tmp/<random>/              what is being written, locked by its writer
//	lock                       held shortly by whoever reads or changes what the store refers to
//
// Everything from outside is hostile: manifests, configurations, archives and the answers of registries are bounded,
// and nothing gets its final name before its size, its digest and its diff id are right. How a layer's tar becomes
// a file system is package disk's part; running an image is nobody's here.
//
// # Several processes
//
// Nothing in the store is ever changed in place: files are written under tmp/ and renamed. Whoever uses an image holds
// a shared flock on the blob of its manifest (a lease, [Image.Release] ends it); leases begin only under the store's
// lock held shared, and removal happens only under that lock held exclusively, sparing whatever a name or a lease
// refers to. A pull leases its manifest before it looks which layers are there already, so it needs no other protection.
// A lock dies with its process; so do leases and the claim on a folder in tmp/, which the next writer sweeps.
package image

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"
)

// MaxLayers is how many files an image's layers come in at the most: a machine has few disk slots. Of an image with
// more layers the lowest are merged into one file.
const MaxLayers = 8

// DefaultMaxBytes is how much an image may unpack to when the caller names no other limit.
const DefaultMaxBytes = 64 << 30

// Limits on what comes from outside. A manifest of 512 layers has about 100 KB.
const (
	maxManifestBytes = 4 << 20
	maxConfigBytes   = 8 << 20
	maxIndexBytes    = 64 << 20
	maxImageLayers   = 512
)

// Image is an image in the store, ready to run. It holds a lease: until Release its files stay where they are,
// whoever prunes or removes. The fields are not to be changed; goroutines may share them.
type Image struct {
	// Name is what the image is called in the store; empty when it was found by its digest and has no name.
	Name string
	// Digest of the manifest, "sha256:…". It names the exact image.
	Digest string
	// PulledDigest is what the registry's tag stood for: Digest, or the digest of the multi-platform index it was
	// chosen from. Empty for an imported image.
	PulledDigest string
	// Config says how the image wants to be run.
	Config Config
	// Layers are the files to mount, base first; at least 1, at most MaxLayers.
	Layers []Layer
	// Size is what the image's blobs take, in bytes; layers shared with other images count in full.
	Size int64
	// Stored is when the image got its name here.
	Stored time.Time

	lease *os.File
}

// Layer is one read-only file system of an image.
type Layer struct {
	Path   string // the file
	FSType string // "erofs"
	DiffID string // "sha256:…" of the layer's tar; of merged layers, their chain ID; of a file that came as it is, its own
}

// Release ends the lease. The image's files may be gone at any time after it. More calls do nothing.
func (i *Image) Release() error {
	if i == nil || i.lease == nil {
		return nil
	}
	lease := i.lease
	i.lease = nil
	return lease.Close()
}

// Config is the part of an image's configuration that matters for running it. Strings hold no NUL; otherwise they are
// whatever the image's author wrote.
type Config struct {
	Entrypoint   []string          `json:"entrypoint,omitempty"`
	Cmd          []string          `json:"cmd,omitempty"`
	Env          []string          `json:"env,omitempty"` // NAME=value
	User         string            `json:"user,omitempty"`
	WorkingDir   string            `json:"working_dir,omitempty"`
	StopSignal   string            `json:"stop_signal,omitempty"`
	Labels       map[string]string `json:"labels,omitempty"`
	ExposedPorts []string          `json:"exposed_ports,omitempty"` // "80/tcp", sorted
	Volumes      []string          `json:"volumes,omitempty"`       // sorted
	OS           string            `json:"os"`
	Architecture string            `json:"architecture"`
	Variant      string            `json:"variant,omitempty"`
	Author       string            `json:"author,omitempty"`
	Created      time.Time         `json:"created,omitzero"`
}

// Summary is one line of a list of images.
type Summary struct {
	Name         string    `json:"name"`
	Digest       string    `json:"digest"`
	PulledDigest string    `json:"pulled_digest,omitempty"`
	Platform     string    `json:"platform"` // "linux/amd64"
	Size         int64     `json:"size"`     // bytes of the blobs
	Created      time.Time `json:"created,omitzero"`
	Stored       time.Time `json:"stored,omitzero"`
	// Problem says why the image cannot be used, e.g. that a file is missing; else empty.
	Problem string `json:"problem,omitempty"`
}

// Event tells how far one layer has come.
type Event struct {
	Layer string `json:"layer"` // the blob's digest, or its name in the archive
	State State  `json:"state"`
	Done  int64  `json:"done"`  // bytes of the blob read so far
	Total int64  `json:"total"` // its size, -1 when unknown
}

// State is what is being done with a layer.
type State string

// A layer is reading until it is ready; one that was in the store already is only ever ready. Merging is told once, of
// the lowest layers together, with their chain ID for a name.
const (
	Reading State = "reading"
	Merging State = "merging"
	Ready   State = "ready"
)

// Progress is told what happens to each layer, about ten times a second. Calls never overlap; it should return soon.
type Progress func(Event)

// What callers branch on. The errors returned say more than these do.
var (
	ErrNotFound = errors.New("image not found")
	ErrInUse    = errors.New("in use by a sandbox")
	ErrTooLarge = errors.New("image too large")
	ErrDenied   = errors.New("registry denies access")
)

// SnapshotError is an image that a snapshot needs. It is an ErrInUse.
type SnapshotError struct{ Name string } // of the snapshot

func (e *SnapshotError) Error() string { return fmt.Sprintf("needed by snapshot %q", e.Name) }

func (e *SnapshotError) Is(target error) bool { return target == ErrInUse }

// Hint is the way out.
func (e *SnapshotError) Hint() string {
	return fmt.Sprintf("`matchlock snapshot rm %s` removes the snapshot", e.Name)
}

// NotFoundError is an image that is not where it was looked for. It is an ErrNotFound and an fs.ErrNotExist.
type NotFoundError struct {
	Ref  string
	Near []string // names in the store that look like it, best first
	Err  error    // what the registry said; nil when the image was looked for in the store
}

func (e *NotFoundError) Error() string {
	if e.Err != nil {
		return fmt.Sprintf("image %q not found: %v", e.Ref, e.Err)
	}
	return fmt.Sprintf("image %q not found", e.Ref)
}

func (e *NotFoundError) Is(target error) bool {
	return target == ErrNotFound || target == fs.ErrNotExist
}
func (e *NotFoundError) Unwrap() error { return e.Err }

// PlatformError is an image that exists, but not for the platform asked for.
type PlatformError struct {
	Want string   // "linux/arm64"
	Have []string // what the image offers
}

func (e *PlatformError) Error() string {
	return fmt.Sprintf("no image for %s: it offers %s", e.Want, strings.Join(e.Have, ", "))
}
