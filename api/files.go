package api

// FileChange is a difference between what a guest has made of a folder and the folder.
type FileChange struct {
	Path string         `json:"path"` // below the folder; empty: itself
	Kind FileChangeKind `json:"kind"`
	// Mode is st_mode, type and permissions, as it is with the guest; of what is deleted,
	// as it is on the host. What is in a deleted folder has no change of its own.
	Mode uint32 `json:"mode"`
	Size int64  `json:"size,omitempty"` // bytes of a file
	// Danger says why it is not put on the host unless that is asked for: a program there
	// could run it, or follow it elsewhere. Empty: no reason is known.
	Danger string `json:"danger,omitempty"`
	// Conflict says what has happened on the host since the guest's change began. Empty:
	// nothing.
	Conflict string `json:"conflict,omitempty"`
}

// FileChangeKind says what became of a file.
type FileChangeKind string

// The kinds.
const (
	FileAdded    FileChangeKind = "added"
	FileModified FileChangeKind = "modified"
	FileDeleted  FileChangeKind = "deleted"
)
