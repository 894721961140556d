package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/matchlock/matchlock/internal/hostfs"
	"github.com/matchlock/matchlock/internal/wire"
)

// ErrNoQEMU is wrapped by the error that names the program looked for and
// Debian's package that has it.
var ErrNoQEMU = errors.New("QEMU not found")

// A VersionError tells that a QEMU is too old.
type VersionError struct {
	Path          string
	Found, Needed string
}

func (e *VersionError) Error() string {
	return fmt.Sprintf("%s: QEMU %s is too old, %s or later is needed", e.Path, e.Found, e.Needed)
}

// The lowest version that is tested: Debian 12's.
const minMajor, minMinor = 7, 2

// findQEMU returns the program that MATCHLOCK_QEMU names, else the one on PATH
// that emulates the host's architecture.
func findQEMU() (path string, err error) {
	name, debianPackage := "qemu-system-x86_64", "qemu-system-x86"
	if runtime.GOARCH == "arm64" {
		name, debianPackage = "qemu-system-aarch64", "qemu-system-arm"
	}
	source := ""
	if named := os.Getenv("MATCHLOCK_QEMU"); named != "" {
		name, source = named, "MATCHLOCK_QEMU: "
	}
	path, err = exec.LookPath(name)
	if err != nil {
		return "", fmt.Errorf("%w: %s%w; Debian's package %s has it", ErrNoQEMU, source, err, debianPackage)
	}
	return filepath.Abs(path)
}

// checkVersion refuses a QEMU older than the lowest that is tested.
func checkVersion(ctx context.Context, path, cacheDir string) (version, error) {
	v, err := qemuVersion(ctx, path, cacheDir)
	if err == nil && (v.Major < minMajor || v.Major == minMajor && v.Minor < minMinor) {
		err = &VersionError{path, fmt.Sprintf("%d.%d", v.Major, v.Minor), fmt.Sprintf("%d.%d", minMajor, minMinor)}
	}
	return v, err
}

// A version is what QEMU says of itself. Text tells packagings of the same
// version apart as well: "7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)".
type version struct {
	Major int    `json:"major"`
	Minor int    `json:"minor"`
	Text  string `json:"text"`
}

// A versionFact is a version as it is remembered, with what tells that the
// program is still the one that was asked.
type versionFact struct {
	Path    string  `json:"path"`
	Size    int64   `json:"size"`
	Mtime   int64   `json:"mtime_ns"`
	Inode   uint64  `json:"inode"`
	Version version `json:"version"`
}

// qemuVersion runs path --version, unless it is remembered in cacheDir.
func qemuVersion(ctx context.Context, path, cacheDir string) (version, error) {
	info, err := os.Stat(path)
	if err != nil {
		return version{}, err
	}
	now := versionFact{Path: path, Size: info.Size(), Mtime: info.ModTime().UnixNano()}
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		now.Inode = st.Ino
	}
	cache := filepath.Join(cacheDir, "qemu-version.json")
	var known versionFact
	if cacheDir != "" && hostfs.ReadRecord(cache, &known) == nil && known.Version.Text != "" {
		now.Version = known.Version
		if known == now {
			return known.Version, nil
		}
	}
	if now.Version, err = askVersion(ctx, path); err != nil {
		return version{}, fmt.Errorf("%s --version: %w", path, err)
	}
	if cacheDir != "" {
		hostfs.WriteRecord(cache, now) // without it the next start asks again
	}
	return now.Version, nil
}

const (
	versionDeadline  = 10 * time.Second // QEMU takes 20 ms, and a cold disk its time
	maxVersionOutput = 4 << 10
)

func askVersion(ctx context.Context, path string) (version, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, versionDeadline, fmt.Errorf("no answer within %v", versionDeadline))
	defer cancel()
	cmd := exec.CommandContext(ctx, path, "--version")
	cmd.Env = []string{}
	// What was named as QEMU may be a script that waits for the real one.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second // for a grandchild that keeps the output open
	var out limitedBuffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		if len(out.data) > 0 {
			err = fmt.Errorf("%w; it says %q", err, excerpt(out.data))
		}
		return version{}, err
	}
	return parseVersion(out.data)
}

// A limitedBuffer keeps what comes first, and fails when that was not all.
type limitedBuffer struct{ data []byte }

func (b *limitedBuffer) Write(p []byte) (int, error) {
	room := maxVersionOutput - len(b.data)
	if room < len(p) {
		b.data = append(b.data, p[:room]...)
		return room, errors.New("too much output")
	}
	b.data = append(b.data, p...)
	return len(p), nil
}

var versionLine = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`(?m)^QEMU emulator version ((\d{1,4})\.(\d{1,4})\b[^\r\n]{0,200})`)
})

// parseVersion finds the version in what QEMU says of it.
func parseVersion(output []byte) (version, error) {
	m := versionLine().FindSubmatch(output)
	if m == nil {
		return version{}, fmt.Errorf("no version of QEMU in %q", excerpt(output))
	}
	major, _ := strconv.Atoi(string(m[2])) // four digits cannot fail
	minor, _ := strconv.Atoi(string(m[3]))
	return version{major, minor, wire.Printable(string(m[1]))}, nil
}

func excerpt(output []byte) string {
	return wire.Printable(string(output[:min(len(output), 200)]))
}
