package workspace

import (
	"fmt"
	"strconv"
	"strings"
	"syscall"
)

// HostOptions say how a folder of the host is offered.
type HostOptions struct {
	// Exact takes a link in the path to the tree for an error. Who may write to a folder
	// on the way could have put it there.
	Exact bool
	// ReadOnly refuses every change with EROFS, and opens no file for writing.
	ReadOnly bool
	// Owner is whom files appear to belong to that are the host user's: the user of
	// this process, and for root the owner of the tree's root too. Those of others
	// appear as nobody's, 65534.
	Owner Owner
	// Quota bounds by how many bytes the tree may grow; 0 does not. What the host
	// itself adds is not counted, nor what was added before OpenHost. There is also no more
	// than a name, of whatever, for each 4096 of them, but for the first 1000.
	Quota int64
	Used  int64 // bytes of Quota that are taken from the beginning
	// Files bounds how many names may be added; 0 is DefaultFiles.
	Files int64
}

// DefaultFiles is how many files a tree may be given unless it is said.
const DefaultFiles = 1_000_000

// nobody owns what belongs to none that the guest knows.
var nobody = Owner{65534, 65534}

// recordName is the xattr of a host's file that keeps what the guest has asked for and
// the host's file does not get. The guest neither sees nor sets it.
const recordName = "user.matchlock"

// A record is what a file is to the guest beyond what it is on the host.
type record struct {
	// mode are the permissions that the guest has set, with set-id and sticky bits. It
	// holds as long as the host's file has the permissions that follow from it: when
	// somebody of the host changes these, his are the valid ones.
	mode    uint32
	hasMode bool

	owner    Owner
	hasOwner bool
}

// String is the form in the xattr: "mode=4755 owner=0:0", either of them.
func (r record) String() string {
	var fields []string
	if r.hasMode {
		fields = append(fields, fmt.Sprintf("mode=%o", r.mode))
	}
	if r.hasOwner {
		fields = append(fields, fmt.Sprintf("owner=%d:%d", r.owner.UID, r.owner.GID))
	}
	return strings.Join(fields, " ")
}

// hostMode are the permissions of a host's file, of a type, when the guest has set mode:
// no set-id and no sticky bits, and always those that we need.
func hostMode(typ, mode uint32) uint32 {
	if typ&syscall.S_IFMT == syscall.S_IFDIR {
		return mode&0o777 | 0o700
	}
	return mode&0o777 | 0o600
}

// maxRecord is more than any record takes.
const maxRecord = 64

// parseRecord reads a record. Of what it does not know it takes nothing: whoever may
// write the host's file may write its xattrs.
func parseRecord(text string) (record, bool) {
	var r record
	for field := range strings.FieldsSeq(text) {
		key, value, _ := strings.Cut(field, "=")
		switch key {
		case "mode":
			mode, err := strconv.ParseUint(value, 8, 32)
			if err != nil || mode > 0o7777 || r.hasMode {
				return record{}, false
			}
			r.mode, r.hasMode = uint32(mode), true
		case "owner":
			user, group, _ := strings.Cut(value, ":")
			uid, err := strconv.ParseUint(user, 10, 32)
			gid, err2 := strconv.ParseUint(group, 10, 32)
			if err != nil || err2 != nil || r.hasOwner {
				return record{}, false
			}
			r.owner, r.hasOwner = Owner{uint32(uid), uint32(gid)}, true
		default:
			return record{}, false
		}
	}
	return r, true
}
