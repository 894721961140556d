package qemu

import (
	"context"
	"os"
	"path/filepath"
	"syscall"

	"github.com/matchlock/matchlock/internal/hostfs"
)

// What is remembered between starts, here and of QEMU's version, lies in small
// files of the cache directory. Losing one costs milliseconds, so no fault of
// theirs is ever an error of a start.

// hostFacts is what was found out about the host and holds until it boots
// anew. A file that is missing, damaged or of another boot knows nothing.
type hostFacts struct {
	BootID string   `json:"boot_id"`
	KVM    *kvmFact `json:"kvm,omitempty"`
	TSCKHz uint64   `json:"tsc_khz,omitempty"`
}

type kvmFact struct {
	Runs   bool   `json:"runs"`
	Reason string `json:"reason,omitempty"` // why not
}

// hostFactsPath is empty when nothing can be remembered: without a directory,
// or on a host that does not tell its boots apart.
func hostFactsPath(dir string) (path, bootID string) {
	id := hostfs.BootID()
	if id == "" || dir == "" {
		return "", ""
	}
	return filepath.Join(dir, "host.json"), id
}

func readHostFacts(dir string) hostFacts {
	path, bootID := hostFactsPath(dir)
	var f hostFacts
	if path == "" || hostfs.ReadRecord(path, &f) != nil || f.BootID != bootID {
		return hostFacts{BootID: bootID}
	}
	if !plausibleTSC(f.TSCKHz) {
		f.TSCKHz = 0
	}
	return f
}

// updateHostFacts has change add to what is known, by all processes, and
// returns the outcome, whether or not it could be written down.
func updateHostFacts(dir string, change func(*hostFacts)) hostFacts {
	path, _ := hostFactsPath(dir)
	if path != "" {
		if lock, err := lockHostFacts(dir); err == nil {
			defer lock.Close()
		}
	}
	f := readHostFacts(dir)
	change(&f)
	if path != "" {
		hostfs.WriteRecord(path, f) // without it the next start finds out anew
	}
	return f
}

// lockHostFacts keeps other processes from changing what is known in dir, which
// it makes when missing. It is held for the time of a few file operations.
func lockHostFacts(dir string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	return hostfs.Lock(context.Background(), filepath.Join(dir, "host.lock"), os.O_RDWR|os.O_CREATE, syscall.LOCK_EX)
}
