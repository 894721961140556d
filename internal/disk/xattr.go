package disk

import (
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"strings"
)

const (
	xattrHeader = 12
	// maxXattrs is what all xattrs of one entry may take, names included: the most that listxattr and getxattr can hand out.
	maxXattrs = 64 << 10
)

// xattrPrefixes are the namespaces that the format has a number for.
var xattrPrefixes = []struct {
	prefix string
	index  byte
	whole  bool // the prefix is the name
}{
	{"user.", 1, false},
	{"system.posix_acl_access", 2, true},
	{"system.posix_acl_default", 3, true},
	{"trusted.", 4, false},
	{"security.", 6, false},
}

// encodeXattrs returns the xattrs among PAX records in EROFS's form, nil if there are none.
//
// Those by which overlayfs keeps its own books (trusted.overlay.*, user.overlay.*) are left out: a layer could else redirect one of its
// folders into another, or have a file take its content from elsewhere. Left out too is what no Linux file system would take:
// other namespaces, and user.* on what is neither file nor folder.
func encodeXattrs(records map[string]string, mode uint16) ([]byte, error) {
	var body []byte
	for _, key := range slices.Sorted(maps.Keys(records)) {
		name, ok := strings.CutPrefix(key, "SCHILY.xattr.")
		if !ok || strings.HasPrefix(name, "trusted.overlay.") || strings.HasPrefix(name, "user.overlay.") {
			continue
		}
		if t := mode & 0o170000; strings.HasPrefix(name, "user.") && t != modeRegular && t != modeFolder {
			continue
		}
		if len(name) > 255 || strings.IndexByte(name, 0) >= 0 {
			return nil, fmt.Errorf("%w: xattr %s: bad name", ErrBadEntry, quote(name))
		}
		body = appendXattr(body, name, records[key])
		if len(body) > maxXattrs {
			return nil, fmt.Errorf("%w: more than %d bytes of xattrs", ErrTooLarge, maxXattrs)
		}
	}
	return body, nil
}

// appendXattr appends one xattr to body, unless its namespace is unknown.
func appendXattr(body []byte, name, value string) []byte {
	for _, p := range xattrPrefixes {
		suffix, ok := strings.CutPrefix(name, p.prefix)
		if !ok || p.whole != (suffix == "") {
			continue
		}
		if body == nil {
			body = make([]byte, xattrHeader)
		}
		body = append(body, byte(len(suffix)), p.index)
		body = binary.LittleEndian.AppendUint16(body, uint16(len(value)))
		body = append(body, suffix...)
		body = append(body, value...)
		for len(body)%4 != 0 {
			body = append(body, 0)
		}
		return body
	}
	return body
}
