package api

import (
	"fmt"
	"slices"
	"strings"
)

// capabilities lists Linux's capabilities by number (capabilities(7),
// include/uapi/linux/capability.h).
var capabilities = []string{
	"CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP",
	"LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER",
	"SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE",
	"SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP",
	"MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF",
	"CHECKPOINT_RESTORE",
}

// Capabilities are the names of Linux's capabilities.
func Capabilities() []string { return slices.Clone(capabilities) }

// DefaultCapabilities is what root holds in a guest unless the user says
// otherwise: Docker's default set without MKNOD, for the guest's raw disks are
// block devices that only the want of a device node keeps out of reach, and
// without AUDIT_WRITE.
var DefaultCapabilities = []string{
	"CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP",
	"NET_BIND_SERVICE", "NET_RAW", "SYS_CHROOT", "SETFCAP",
}

// CapabilitySet is the set of capabilities that c allows, bit N for capability N.
func (c Confinement) CapabilitySet() (uint64, error) {
	set, err := capabilityBits(DefaultCapabilities)
	if err != nil {
		return 0, err
	}
	add, err := capabilityBits(c.CapAdd)
	if err != nil {
		return 0, err
	}
	drop, err := capabilityBits(c.CapDrop)
	if err != nil {
		return 0, err
	}
	if slices.ContainsFunc(c.CapDrop, isAllCapabilities) {
		set = 0 // "drop ALL, add NET_RAW" is Docker's idiom for a short list
		if !slices.ContainsFunc(c.CapAdd, isAllCapabilities) {
			drop &^= add
		}
	}
	return (set | add) &^ drop, nil
}

func isAllCapabilities(name string) bool { return strings.EqualFold(name, "ALL") }

func capabilityBits(names []string) (uint64, error) {
	var set uint64
	for _, name := range names {
		if isAllCapabilities(name) {
			set |= 1<<len(capabilities) - 1
			continue
		}
		n := slices.Index(capabilities, strings.TrimPrefix(strings.ToUpper(name), "CAP_"))
		if n < 0 {
			return 0, fmt.Errorf("capability %q: unknown", name)
		}
		set |= 1 << n
	}
	return set, nil
}
