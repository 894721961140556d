package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"path"
	"runtime"
	"slices"
	"strings"
	"time"
)

// Config is a sandbox as data: what the flags of a command line, a Go program
// or a file can say of it, in one schema. The zero value of a field means its
// default; only Image is required. In JSON names are in snake_case, sizes are
// bytes, and what has a flag of several parts is the flag's text.
type Config struct {
	// Image is a name in the image store, a name as docker expands it, or a digest.
	Image string `json:"image"`
	// Pull says when a registry is asked for it; empty is PullMissing.
	Pull PullPolicy `json:"pull,omitempty"`
	// Platform of the image, "linux/arm64"; empty is the host's. Only the host's can run.
	Platform string `json:"platform,omitempty"`

	// Entrypoint takes the place of the image's; not nil but empty, it clears it.
	// Either way the image's own command is not used then.
	Entrypoint []string `json:"entrypoint,omitzero"`
	// Command takes the place of the image's.
	Command []string `json:"command,omitempty"`
	// Env is laid over the image's environment.
	Env map[string]string `json:"env,omitempty"`
	// User is name, uid, uid:gid or name:group; empty is the image's, else root.
	User string `json:"user,omitempty"`
	// WorkDir is an absolute path, made when missing; empty is the image's, else "/".
	WorkDir string `json:"work_dir,omitempty"`
	// Timeout bounds the life of the first command; 0 does not.
	Timeout time.Duration `json:"-"` // see MarshalJSON

	// TTL bounds the life of the sandbox, from each of its starts on; it is stopped then.
	// 0 does not.
	TTL time.Duration `json:"-"`
	// IdleTimeout stops the sandbox when for so long nobody has had a command in it, but
	// for a first one that nobody is attached to, and no flow has carried a byte. The time
	// that it is paused does not count. 0 does not.
	IdleTimeout time.Duration `json:"-"`
	// Restart says whether the sandbox, if it is kept, runs again after its end; empty is
	// RestartNo. Its supervisor sees to that: see sandbox.Sandbox.Restart.
	Restart RestartPolicy `json:"restart,omitempty"`

	// CPUs is the share of processors; 0 is 1.
	CPUs float64 `json:"cpus,omitempty"`
	// Memory of the guest in bytes, a multiple of 1 MiB; 0 is 512 MiB.
	Memory int64 `json:"memory,omitempty" size:"MiB"`
	// DiskSize is the size in bytes, a multiple of 4096, of the disk that takes the
	// writes to "/"; 0 is 5 GiB. The host's disk is used only as it is written.
	DiskSize int64 `json:"disk_size,omitempty" size:"GiB"`
	// Mounts are folders and files of the host, volumes, and folders in memory, in
	// the guest.
	Mounts []Mount `json:"mounts,omitempty"`
	// Coherent has what others change in the host's folders be seen at once, not
	// within a second. It costs a question for each look.
	Coherent bool `json:"coherent,omitempty"`
	// FileRules allow and deny what the guest does with the files of its mounts; paths
	// are those in the mount.
	FileRules []FileRule `json:"file_rules,omitempty"`
	// FileEvents has what the guest changes in its mounts be among its events. What is
	// denied always is.
	FileEvents bool `json:"file_events,omitempty"`
	// Sockets are unix sockets of the host that the guest reaches, at most MaxSockets.
	Sockets []Socket `json:"sockets,omitempty"`
	// Disks are disk images of the host, attached and mounted.
	Disks []Disk `json:"disks,omitempty"`
	// Tmpfs are further file systems in the guest's memory.
	Tmpfs []Tmpfs `json:"tmpfs,omitempty"`
	// ShmSize is the size of /dev/shm in bytes; 0 is 64 MiB.
	ShmSize int64 `json:"shm_size,omitempty" size:"MiB"`

	// Hostname of the guest; empty is the sandbox's id.
	Hostname string `json:"hostname,omitempty"`
	// Network says what the guest can reach.
	Network Network `json:"network,omitzero"`
	// Secrets are what its requests may carry without its knowing.
	Secrets []Secret `json:"secrets,omitempty"`
	// SecretIn says where else than in headers.
	SecretIn []SecretPlaces `json:"secret_in,omitempty"`

	// Privileged lifts all restrictions inside the guest.
	Privileged bool `json:"privileged,omitempty"`
	// CapAdd, CapDrop and AllowSetuid are those of Confinement.
	CapAdd      []string `json:"cap_add,omitempty"`
	CapDrop     []string `json:"cap_drop,omitempty"`
	AllowSetuid bool     `json:"allow_setuid,omitempty"`
	// ReadOnly makes "/" read-only.
	ReadOnly bool `json:"read_only,omitempty"`
	// Ulimits are the resource limits of every command.
	Ulimits []Ulimit `json:"ulimits,omitempty"`

	// Labels are for the user to know sandboxes by.
	Labels map[string]string `json:"labels,omitempty"`
}

// PullPolicy says when a registry is asked for an image.
type PullPolicy string

// The pull policies.
const (
	PullMissing PullPolicy = "missing" // when the store does not have it
	PullAlways  PullPolicy = "always"  // whether the name means another image by now
	PullNever   PullPolicy = "never"   // what the store does not have is not found
)

// Disk is a disk image of the host in the guest: raw ext4.
type Disk struct {
	File     string // on the host
	Mount    string // in the guest: absolute, made when missing
	ReadOnly bool
}

// Defaults of Config, and its limits.
const (
	DefaultMemory   = 512 << 20 // Config.Memory, in bytes
	DefaultDiskSize = 5 << 30   // Config.DiskSize, in bytes
	MinDiskSize     = 64 << 20  // of it, in bytes

	// MinMemory leaves programs 30 MiB. Linux 6.1 of Debian with two processors, a network
	// and 60 layers panics in one boot of ten that has 96 MiB, and in none of 30 of these.
	MinMemory = 112 << 20

	maxHostname = 64 // HOST_NAME_MAX of Linux
	minMTU      = 576
	maxMTU      = 65520
	maxTimeout  = 366 * 24 * time.Hour
)

// WithDefaults returns the configuration with its defaults in the place of zero
// values. What only an image or a sandbox can tell stays empty.
func (c Config) WithDefaults() Config {
	orElse(&c.Pull, PullMissing)
	orElse(&c.CPUs, 1)
	orElse(&c.Memory, DefaultMemory)
	orElse(&c.DiskSize, DefaultDiskSize)
	return c
}

func orElse[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// Confinement is what the configuration holds user code to.
func (c *Config) Confinement() Confinement {
	return Confinement{CapAdd: c.CapAdd, CapDrop: c.CapDrop, AllowSetuid: c.AllowSetuid}
}

// Validate reports every fault of a configuration at once, as an errors.Join of
// one error each. It opens nothing: what the host lacks is found later.
func (c *Config) Validate() error {
	v := &faults{}
	c.validateCommand(v)
	c.validateResources(v)
	c.validateMounts(v)
	c.validateNetwork(v)
	c.validateSecrets(v)
	c.validateConfinement(v)
	return errors.Join(v.errs...)
}

// faults collects what is wrong.
type faults struct{ errs []error }

func (v *faults) add(format string, args ...any) {
	v.errs = append(v.errs, fmt.Errorf(format, args...))
}

func (c *Config) validateCommand(v *faults) {
	if c.Image == "" {
		v.add("image: none given")
	}
	if p := c.Pull; p != "" && p != PullMissing && p != PullAlways && p != PullNever {
		v.add("pull policy %q: neither missing, always nor never", p)
	}
	if arch := strings.TrimPrefix(c.Platform, "linux/"); c.Platform != "" && !strings.HasPrefix(arch+"/", runtime.GOARCH+"/") {
		v.add("platform %q: this host runs linux/%s", c.Platform, runtime.GOARCH)
	}
	for _, key := range sortedKeys(c.Env) {
		if key == "" || strings.ContainsAny(key, "=\x00") || strings.ContainsRune(c.Env[key], 0) {
			v.add("environment variable %q: a name without '=' is wanted, and no NUL", key)
		}
	}
	for _, arg := range slices.Concat(c.Entrypoint, c.Command) {
		if strings.ContainsRune(arg, 0) {
			v.add("command %q: NUL in an argument", arg)
		}
	}
	if argv := slices.Concat(c.Entrypoint, c.Command); len(argv) > 0 && argv[0] == "" {
		v.add("command: its name is empty")
	}
	if user, group, both := strings.Cut(c.User, ":"); c.User != "" &&
		(user == "" || both && (group == "" || strings.Contains(group, ":")) || strings.ContainsFunc(c.User, isControlOrBlank)) {
		v.add("user %q: want NAME, UID, UID:GID or NAME:GROUP", c.User)
	}
	if c.WorkDir != "" && !isGuestPath(c.WorkDir) {
		v.add("working directory %q: not an absolute path", c.WorkDir)
	}
	for name, d := range map[string]time.Duration{"timeout": c.Timeout, "time to live": c.TTL, "idle timeout": c.IdleTimeout} {
		if d < 0 || d > maxTimeout {
			v.add("%s %v: not between 0 and %v", name, d, maxTimeout)
		}
	}
	if err := c.Restart.Validate(); err != nil {
		v.add("%w", err)
	}
	for _, key := range sortedKeys(c.Labels) {
		if key == "" || strings.ContainsFunc(key, isControlOrBlank) {
			v.add("label %q: a name without blanks is wanted", key)
		}
	}
}

func (c *Config) validateResources(v *faults) {
	switch {
	case math.IsNaN(c.CPUs) || c.CPUs < 0:
		v.add("CPUs %v: not a positive number", c.CPUs)
	case math.Ceil(c.CPUs) > float64(runtime.NumCPU()):
		v.add("CPUs %v: the host has %d", c.CPUs, runtime.NumCPU())
	}
	switch {
	case c.Memory != 0 && c.Memory < MinMemory:
		v.add("memory %s: a guest needs at least %s to boot", FormatSize(c.Memory), FormatSize(MinMemory))
	case c.Memory%(1<<20) != 0:
		v.add("memory %d bytes: not a multiple of 1 MiB", c.Memory)
	}
	switch {
	case c.DiskSize != 0 && c.DiskSize < MinDiskSize:
		v.add("disk size %s: at least %s is needed", FormatSize(c.DiskSize), FormatSize(MinDiskSize))
	case c.DiskSize%4096 != 0:
		v.add("disk size %d bytes: not a multiple of 4096", c.DiskSize)
	}
	if c.ShmSize < 0 {
		v.add("size of /dev/shm: %d bytes", c.ShmSize)
	}
	for _, u := range c.Ulimits {
		if !slices.Contains(ulimitNames, u.Name) {
			v.add("ulimit %q: unknown; there are %s", u.Name, strings.Join(ulimitNames, ", "))
		} else if u.Soft > u.Hard {
			v.add("ulimit %s: the soft limit %d is above the hard one, %d", u.Name, u.Soft, u.Hard)
		}
	}
}

// validateMounts checks what is laid over the image's files.
func (c *Config) validateMounts(v *faults) {
	taken := map[string]bool{}
	mount := func(what, target string) {
		switch clean := path.Clean(target); {
		case !isGuestPath(target) || clean == "/" || strings.ContainsRune(target, ':'):
			v.add("%s: %q is not an absolute path below / without a colon", what, target)
		case taken[clean]:
			v.add("%s: %s is taken by another mount", what, clean)
		default:
			taken[clean] = true
		}
	}
	for _, d := range c.Disks {
		if d.File == "" || strings.ContainsRune(d.File, 0) {
			v.add("disk for %q: no file", d.Mount)
		}
		mount(fmt.Sprintf("disk %q", d.File), d.Mount)
	}
	for _, m := range c.Mounts {
		mount(fmt.Sprintf("mount %q", m.Source), m.Target)
		m.validate(v)
	}
	if len(c.FileRules) > maxPatterns {
		v.add("rules for files: %d, at most %d can be", len(c.FileRules), maxPatterns)
	}
	for _, r := range c.FileRules {
		if err := r.Validate(); err != nil {
			v.add("%w", err)
		}
	}
	for _, s := range c.Sockets {
		if s.Host == "" || strings.ContainsRune(s.Host, 0) {
			v.add("socket for %q: no path of the host", s.Guest)
		}
		mount(fmt.Sprintf("socket %q", s.Host), s.Guest)
		if len(s.Guest) > maxSocketPath {
			v.add("socket %q: its path in the guest has %d bytes, and a socket's address %d at most", s.Host, len(s.Guest), maxSocketPath)
		}
	}
	if len(c.Sockets) > MaxSockets {
		v.add("sockets: %d of them, at most %d can be", len(c.Sockets), MaxSockets)
	}
	for _, t := range c.Tmpfs {
		mount("tmpfs", t.Path)
		if t.Size < 0 {
			v.add("tmpfs %s: size of %d bytes", t.Path, t.Size)
		}
	}
}

func (c *Config) validateConfinement(v *faults) {
	if _, err := c.Confinement().CapabilitySet(); err != nil {
		v.add("%w", err)
	}
	if c.Privileged && (len(c.CapDrop) > 0 || len(c.CapAdd) > 0 || c.AllowSetuid) {
		v.add("privileged: lifts all restrictions, so capabilities and set-id programs cannot be chosen beside it")
	}
}

// isHostname tells whether a name can stand on a line of the guest's hosts file
// and on a kernel command line.
func isHostname(name string, limit int) bool {
	return name != "" && len(name) <= limit && !strings.ContainsFunc(name, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '.' || r == '_')
	})
}

// isGuestPath tells whether a path can name a place in the guest.
func isGuestPath(p string) bool {
	return strings.HasPrefix(p, "/") && len(p) < 4096 && !strings.ContainsRune(p, 0)
}

func isControlOrBlank(r rune) bool { return r <= ' ' || r == 0x7f }

func sortedKeys(m map[string]string) []string {
	keys := make([]string, 0, len(m))
	for key := range m {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	return keys
}

// configFields is Config without its methods, and configText what of it has
// another form in JSON.
type (
	configFields Config
	configText   struct {
		*configFields
		Timeout     durationText `json:"timeout,omitzero"`
		TTL         durationText `json:"ttl,omitzero"`
		IdleTimeout durationText `json:"idle_timeout,omitzero"`
	}
)

// MarshalJSON implements json.Marshaler.
func (c Config) MarshalJSON() ([]byte, error) {
	text := configText{(*configFields)(&c), durationText(c.Timeout), durationText(c.TTL), durationText(c.IdleTimeout)}
	// As it stands: who wants < and > escaped has the outermost encoder do it.
	var b bytes.Buffer
	encoder := json.NewEncoder(&b)
	encoder.SetEscapeHTML(false)
	err := encoder.Encode(text)
	return b.Bytes(), err
}

// UnmarshalJSON implements json.Unmarshaler. A key that Config does not have is
// an error: a misspelt restriction must not be passed over.
func (c *Config) UnmarshalJSON(data []byte) error {
	var read Config
	text := configText{configFields: (*configFields)(&read)}
	decoder := json.NewDecoder(strings.NewReader(string(data)))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&text); err != nil {
		return err
	}
	read.Timeout, read.TTL, read.IdleTimeout = time.Duration(text.Timeout), time.Duration(text.TTL), time.Duration(text.IdleTimeout)
	*c = read
	return nil
}

// durationText is a duration that is written as time.ParseDuration reads it.
type durationText time.Duration

func (d durationText) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

func (d *durationText) UnmarshalText(text []byte) error {
	parsed, err := time.ParseDuration(string(text))
	if err != nil {
		return fmt.Errorf("%q: want a duration like 90s or 2h", text)
	}
	*d = durationText(parsed)
	return nil
}
