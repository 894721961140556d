package agent

import (
	"bytes"
	"strconv"
	"strings"
)

// An account is whom a command runs as.
type account struct {
	Credential
	name string // empty: not listed
	home string
}

// resolveUser finds who spec means: name, uid, uid:gid or name:group. passwd
// and group return the guest's files of these names; they are asked for only
// when they are needed, and their absence matters only to a name.
//
// As Docker has it: a number need not be listed and then has group 0; a group
// that is given takes the place of all others; otherwise the user's further
// groups come from the group file. An empty spec is root.
func resolveUser(spec string, passwd, group func() ([]byte, error)) (*account, error) {
	user, groupName, hasGroup := strings.Cut(spec, ":")
	if user == "" && !hasGroup {
		user = "0"
	}
	users, passwdErr := passwd()
	a := &account{home: "/"}
	uid, isNumber := parseID(user)
	found := false
	for fields := range lines(users, 6) { // name:password:uid:gid:gecos:home:shell
		entryUID, ok1 := parseID(fields[2])
		entryGID, ok2 := parseID(fields[3])
		if !ok1 || !ok2 || fields[0] != user && !(isNumber && entryUID == uid) {
			continue
		}
		if fields[0] == user || !found {
			found = true
			a.UID, a.GID, a.name = entryUID, entryGID, fields[0]
			if strings.HasPrefix(fields[5], "/") {
				a.home = fields[5]
			}
		}
		if fields[0] == user {
			break // a name goes before a number
		}
	}
	if !found {
		if !isNumber {
			if passwdErr != nil {
				return nil, pathError("user", user, &withText{passwdErr.Error(), ErrUnknownUser})
			}
			return nil, pathError("user", user, &withText{"not in /etc/passwd", ErrUnknownUser})
		}
		a.UID = uid
	}

	if hasGroup {
		gid, isNumber := parseID(groupName)
		if !isNumber {
			groups, err := group()
			ok := false
			for fields := range lines(groups, 3) { // name:password:gid:members
				if fields[0] == groupName {
					gid, ok = parseID(fields[2])
					break
				}
			}
			if !ok {
				text := "not in /etc/group"
				if err != nil {
					text = err.Error()
				}
				return nil, pathError("group", groupName, &withText{text, ErrUnknownUser})
			}
		}
		a.GID = gid
		return a, nil
	}
	if a.name == "" {
		return a, nil
	}
	groups, _ := group() // an image without one has no further groups
	for fields := range lines(groups, 4) {
		if gid, ok := parseID(fields[2]); ok && gid != a.GID && listed(fields[3], a.name) && len(a.Groups) < maxGroups {
			a.Groups = append(a.Groups, gid)
		}
	}
	return a, nil
}

// maxGroups is the kernel's NGROUPS_MAX.
const maxGroups = 65536

// lines yields the fields of each line of a passwd or group file that has at
// least n of them.
func lines(file []byte, n int) func(yield func([]string) bool) {
	return func(yield func([]string) bool) {
		for line := range bytes.Lines(file) {
			line = bytes.TrimSpace(line)
			if len(line) == 0 || line[0] == '#' {
				continue
			}
			if fields := strings.Split(string(line), ":"); len(fields) >= n && !yield(fields) {
				return
			}
		}
	}
}

// parseID parses a uid or gid; the highest number means "none" to the kernel.
func parseID(s string) (uint32, bool) {
	n, err := strconv.ParseUint(s, 10, 32)
	return uint32(n), err == nil && n != 1<<32-1
}

// listed reports whether name is in a list joined by commas.
func listed(list, name string) bool {
	for member := range strings.SplitSeq(list, ",") {
		if member == name {
			return true
		}
	}
	return false
}
