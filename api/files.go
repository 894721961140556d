package api

import (
	"fmt"
	"path"
	"slices"
	"strings"
	"time"
)

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

// FileOp is what a guest does with a file, as rules and hooks tell it apart.
type FileOp string

// The operations.
const (
	FileRead   FileOp = "read"   // of a file's bytes, or where a link leads
	FileWrite  FileOp = "write"  // of a file's bytes, its size too
	FileList   FileOp = "list"   // of a folder
	FileCreate FileOp = "create" // of whatever has a name
	FileDelete FileOp = "delete"
	FileRename FileOp = "rename" // both paths are judged
	FileLink   FileOp = "link"   // another name of a file; both paths are judged
	FileAttr   FileOp = "attr"   // a change of permissions, owners, times, xattrs
)

var fileOps = []FileOp{FileRead, FileWrite, FileList, FileCreate, FileDelete, FileRename, FileLink, FileAttr}

// FileRule allows or denies operations on files of a mount. The first one that is about
// an operation decides; what none is about is allowed. It looks at the paths that the
// operation names, not at what is in a folder that is renamed: what must stay as it is
// belongs into Mount.Protect. Its text is ACTION:OPS:PATTERN, like
// deny:write,create:**/*.lock.
type FileRule struct {
	Action FileAction
	Ops    []FileOp // none: all
	// Path is a pattern as Mount.Hide has them.
	Path string
}

// FileAction says what a rule does.
type FileAction string

// The actions.
const (
	FileAllow FileAction = "allow"
	FileDeny  FileAction = "deny"
)

// UnmarshalText reads ACTION:OPS:PATTERN. OPS are names with commas, or "*".
func (r *FileRule) UnmarshalText(text []byte) error {
	parts := strings.SplitN(string(text), ":", 3)
	if len(parts) != 3 {
		return fmt.Errorf("rule %q: want ACTION:OPS:PATTERN, like deny:write,create:**/*.lock", text)
	}
	*r = FileRule{Action: FileAction(parts[0]), Path: parts[2]}
	if parts[1] != "*" {
		for op := range strings.SplitSeq(parts[1], ",") {
			r.Ops = append(r.Ops, FileOp(op))
		}
	}
	return r.Validate()
}

// MarshalText is the form that UnmarshalText reads.
func (r FileRule) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// String is the rule's text.
func (r FileRule) String() string {
	ops := "*"
	if len(r.Ops) > 0 {
		names := make([]string, len(r.Ops))
		for i, op := range r.Ops {
			names[i] = string(op)
		}
		ops = strings.Join(names, ",")
	}
	return string(r.Action) + ":" + ops + ":" + r.Path
}

// Validate tells what is wrong with the rule.
func (r FileRule) Validate() error {
	if r.Action != FileAllow && r.Action != FileDeny {
		return fmt.Errorf("rule %q: action %q is none of allow, deny", r, r.Action)
	}
	for _, op := range r.Ops {
		if !slices.Contains(fileOps, op) {
			return fmt.Errorf("rule %q: %q is no operation", r, op)
		}
	}
	if !isPattern(r.Path) {
		return fmt.Errorf("rule %q: %q is no pattern", r, r.Path)
	}
	return nil
}

// isPattern tells whether a text is a pattern of paths, as Mount.Hide has them.
func isPattern(text string) bool {
	_, err := path.Match(text, "")
	return err == nil && strings.Trim(text, "/") != "" && len(text) <= 1024 && !strings.HasPrefix(text, "!") && strings.IndexByte(text, 0) < 0
}

// FileEvent tells of one operation that changed files, or was denied.
type FileEvent struct {
	Time    time.Time `json:"time"`
	Op      FileOp    `json:"op"`
	Path    string    `json:"path"`
	NewPath string    `json:"new_path,omitempty"` // of FileRename and FileLink
	Verdict Verdict   `json:"verdict"`
	// Rule is the text of the rule that denied it; empty: a hook did, or none did.
	Rule   string `json:"rule,omitempty"`
	Reason string `json:"reason,omitempty"` // a hook's error, or why it failed
}
