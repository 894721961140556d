package api

import (
	"fmt"
	"strconv"
	"strings"
)

// Mount is something of the host in the guest: a folder, a file or a volume; or an
// empty folder in the host's memory. Its text is HOST:GUEST[:MODE][,OPTION…], see
// UnmarshalText.
type Mount struct {
	// Source is a path of the host, absolute or with a slash in it, "." or ".."; a
	// volume's name; or empty, of MountMemory. In a sandbox's own configuration paths
	// are absolute.
	Source string
	Target string // in the guest: absolute, made when missing
	Mode   MountMode
	// UID and GID are who owns in the guest what the host's user owns on the host; nil
	// is the user of the first command.
	UID, GID *uint32
	// Hide are patterns of what the guest does not see, and Protect of what it may not
	// change: .gitignore's, without "!". One without a slash matches at any depth.
	Hide, Protect []string
	// Quota in bytes bounds what the guest may add; 0 does not, but for MountMemory.
	Quota int64
}

// MountMode says what becomes of what the guest writes. A volume's is MountReadWrite
// or MountReadOnly.
type MountMode string

// The modes.
const (
	MountReadWrite MountMode = "rw"      // it is written on the host
	MountReadOnly  MountMode = "ro"      // it cannot be written
	MountOverlay   MountMode = "overlay" // it is kept beside, as long as the sandbox
	MountMemory    MountMode = "memory"  // it is gone with the guest; Source is empty
)

// IsVolume tells whether Source names a volume.
func (m *Mount) IsVolume() bool {
	return m.Source != "" && !strings.Contains(m.Source, "/") && m.Source != "." && m.Source != ".."
}

// maxPatterns bounds Hide and Protect.
const maxPatterns = 256

func (m *Mount) validate(v *faults) {
	what := fmt.Sprintf("mount %q", m.Source)
	switch m.Mode {
	case MountReadWrite, MountReadOnly:
	case MountOverlay:
		if m.IsVolume() {
			v.add("%s: a volume is rw or ro", what)
		}
	case MountMemory:
	default:
		v.add("%s: mode %q is none of rw, ro, overlay, memory", what, m.Mode)
	}
	if (m.Mode == MountMemory) != (m.Source == "") {
		v.add("%s: what is in memory has no path on the host, and all else has one", what)
	}
	if strings.ContainsRune(m.Source, 0) {
		v.add("%s: NUL in the path", what)
	}
	if m.IsVolume() {
		if !IsVolumeName(m.Source) {
			v.add("%s: a volume's name has letters, digits, '_', '.' and '-', at most 64; a path has a slash, like ./%s", what, m.Source)
		}
		if m.UID != nil || m.GID != nil || len(m.Hide)+len(m.Protect) > 0 || m.Quota != 0 {
			v.add("%s: a volume is a disk, which has no options but rw and ro", what)
		}
	}
	if m.Quota < 0 {
		v.add("%s: quota of %d bytes", what, m.Quota)
	}
	if len(m.Hide)+len(m.Protect) > maxPatterns {
		v.add("%s: more than %d patterns", what, maxPatterns)
	}
	for _, pattern := range append(append([]string{}, m.Hide...), m.Protect...) {
		if !isPattern(pattern) || strings.Contains(pattern, ",") {
			v.add("%s: %q is no pattern", what, pattern)
		}
	}
}

// IsVolumeName tells whether a volume can have the name.
func IsVolumeName(name string) bool {
	if name == "" || len(name) > 64 || strings.Trim(name[:1], ".-_") == "" {
		return false
	}
	return !strings.ContainsFunc(name, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '.' || r == '_')
	})
}

// UnmarshalText reads HOST:GUEST[:rw|ro|overlay|memory][,uid=N][,gid=N][,hide=GLOB][,protect=GLOB][,quota=SIZE];
// HOST is empty for what is in memory. Without a mode it is rw. hide and protect may
// be repeated. In a path, `\,` is a comma and `\\` a backslash.
func (m *Mount) UnmarshalText(text []byte) error {
	*m = Mount{Mode: MountReadWrite}
	places, options := cutPlaces(string(text))
	for _, mode := range []MountMode{MountReadWrite, MountReadOnly, MountOverlay, MountMemory} {
		if rest, ok := strings.CutSuffix(places, ":"+string(mode)); ok && strings.Contains(rest, ":") {
			m.Mode, places = mode, rest
			break
		}
	}
	// The guest's path is after the last colon: a folder's name may have some.
	i := strings.LastIndexByte(places, ':')
	if i < 0 {
		return fmt.Errorf("mount %q: want HOST:GUEST[:rw|ro|overlay]", text)
	}
	m.Source, m.Target = places[:i], places[i+1:]
	if !strings.HasPrefix(m.Target, "/") {
		return fmt.Errorf("mount %q: want HOST:GUEST[:rw|ro|overlay], with an absolute path of the guest", text)
	}
	if options == "" {
		return nil
	}
	for option := range strings.SplitSeq(options, ",") {
		key, value, _ := strings.Cut(option, "=")
		var err error
		switch key {
		case "uid":
			m.UID, err = parseID(value)
		case "gid":
			m.GID, err = parseID(value)
		case "hide":
			m.Hide = append(m.Hide, value)
		case "protect":
			m.Protect = append(m.Protect, value)
		case "quota":
			m.Quota, err = ParseSize(value, MiB)
		default:
			err = fmt.Errorf("option %q: none of uid, gid, hide, protect, quota", option)
		}
		if err != nil {
			return fmt.Errorf("mount %q: %w", text, err)
		}
	}
	return nil
}

// cutPlaces parts the paths, with the mode, from the options.
func cutPlaces(text string) (places, options string) {
	var b strings.Builder
	for i := 0; i < len(text); i++ {
		switch {
		case text[i] == ',':
			return b.String(), text[i+1:]
		case text[i] == '\\' && i+1 < len(text) && (text[i+1] == ',' || text[i+1] == '\\'):
			i++
		}
		b.WriteByte(text[i])
	}
	return b.String(), ""
}

// escapePlace is the other way round.
var escapePlace = strings.NewReplacer(`\`, `\\`, `,`, `\,`)

func parseID(text string) (*uint32, error) {
	n, err := strconv.ParseUint(text, 10, 32)
	if err != nil {
		return nil, fmt.Errorf("%q is no number of a user or group", text)
	}
	id := uint32(n)
	return &id, nil
}

// MarshalText is the form that UnmarshalText reads.
func (m Mount) MarshalText() ([]byte, error) {
	text := []byte(escapePlace.Replace(m.Source+":"+m.Target) + ":" + string(m.Mode))
	if m.UID != nil {
		text = fmt.Appendf(text, ",uid=%d", *m.UID)
	}
	if m.GID != nil {
		text = fmt.Appendf(text, ",gid=%d", *m.GID)
	}
	for _, pattern := range m.Hide {
		text = append(text, ",hide="+pattern...)
	}
	for _, pattern := range m.Protect {
		text = append(text, ",protect="+pattern...)
	}
	if m.Quota != 0 {
		text = fmt.Appendf(text, ",quota=%db", m.Quota)
	}
	return text, nil
}

// Socket is a unix socket of the host that the guest reaches by one of its own: a
// connection to that is one to the host's, byte for byte. Descriptors and credentials
// that processes send over unix sockets, see unix(7), stay on their side.
type Socket struct {
	Host  string // the path on the host; absolute in a sandbox's own configuration
	Guest string // the path in the guest: absolute, made with its folder when missing
}

// Limits of Config.Sockets.
const (
	MaxSockets    = 16
	maxSocketPath = 107 // bytes (unix(7), sun_path less its NUL)
)

// UnmarshalText reads a socket, HOST:GUEST.
func (s *Socket) UnmarshalText(text []byte) error {
	i := strings.LastIndexByte(string(text), ':')
	if i < 0 {
		return fmt.Errorf("socket %q: want HOST:GUEST", text)
	}
	// The guest's path is after the last colon: the host's may have some.
	*s = Socket{Host: string(text[:i]), Guest: string(text[i+1:])}
	return nil
}

// MarshalText is the form that UnmarshalText reads.
func (s Socket) MarshalText() ([]byte, error) { return []byte(s.Host + ":" + s.Guest), nil }
