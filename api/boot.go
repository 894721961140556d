package api

// BootData is what a sandbox adds to a started machine before any user code
// runs: everything that differs between two sandboxes of one shape. It never
// passes the kernel command line and is never written to a file.
type BootData struct {
	// Env is the environment of every exec, over VMConfig.Env and below
	// ExecOptions.Env.
	Env map[string]string

	// Hosts are added to the guest's hosts file.
	Hosts []HostIPMapping

	// CA is the certificate, in PEM, of who terminates TLS on the guest's link. It is
	// added to those that the image trusts. Nil: nobody does.
	CA []byte

	// Confinement is what user code is held to inside the guest.
	Confinement Confinement

	// Mounts are what of the host's files is mounted, by the service of files that the
	// host offers beside: the n-th is what that has under the name n.
	Mounts []GuestMount
	// User is whom files belong to whose owner the host leaves open, as Config.User has
	// it.
	User string

	// ReadOnlyRoot makes "/" read-only for user code.
	ReadOnlyRoot bool

	// Tmpfs are further file systems in the guest's memory.
	Tmpfs []Tmpfs

	// Sockets are the paths of unix sockets in the guest that lead to the host. In a
	// copy of a machine those that are not among them are closed.
	Sockets []string

	// ShmSize is the size of /dev/shm in bytes; 0 is 64 MiB.
	ShmSize int64

	// Ulimits are the resource limits of every exec.
	Ulimits []Ulimit
}

// Confinement narrows or widens the in-guest restrictions of user code. The
// zero value is the default: DefaultCapabilities, no_new_privs, the seccomp
// filter. A privileged machine ignores it.
type Confinement struct {
	// CapAdd and CapDrop name capabilities ("NET_RAW", "CAP_NET_RAW", "ALL").
	// What is dropped wins over what is added.
	CapAdd, CapDrop []string

	// AllowSetuid leaves no_new_privs off, so that set-id programs (sudo) work.
	AllowSetuid bool
}

// GuestMount is where in the guest something of the host's files is mounted.
type GuestMount struct {
	Path     string // absolute, made when missing
	Root     bool   // all that the service offers, not one of its names
	File     bool   // else a folder
	ReadOnly bool   // which the host holds to as well
}

// Tmpfs is a file system in the guest's memory.
type Tmpfs struct {
	Path string // absolute, made when missing
	Size int64  // bytes; 0 is half of the guest's memory
}

// Ulimit is one resource limit, as setrlimit(2) names it ("nofile", "nproc", "core" …).
type Ulimit struct {
	Name string
	Soft uint64
	Hard uint64 // at least Soft; math.MaxUint64 is unlimited
}
