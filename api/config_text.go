package api

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
)

// This file has the text forms of what a flag or a line of a list says. The
// types that have one implement encoding.TextUnmarshaler, so that a JSON or
// YAML list takes the same strings. Parsing splits and converts; whether the
// parts make sense is for Config.Validate to say.

// Units of ParseSize for a number that names none.
const (
	MiB = 1 << 20
	GiB = 1 << 30
)

// ParseSize reads a size in bytes: "512m", "1g", "1.5GiB", all in powers of
// 1024. A bare number counts units, as in "512" for memory in MiB.
func ParseSize(text string, unit int64) (int64, error) {
	number := strings.TrimRight(text, "abgikmtABGIKMT")
	if suffix := strings.ToLower(text[len(number):]); suffix != "" {
		letter := strings.TrimSuffix(strings.TrimSuffix(suffix, "b"), "i")
		power := strings.Index("kmgt", letter) + 1
		switch {
		case suffix == "b":
			power = 0
		case len(letter) != 1 || power == 0:
			return 0, sizeError(text)
		}
		unit = 1 << (10 * power)
	}
	whole, fraction, hasPoint := strings.Cut(number, ".")
	if strings.Trim(whole+fraction, "0123456789") != "" || whole == "" || hasPoint && fraction == "" {
		return 0, sizeError(text)
	}
	n, err := strconv.ParseInt(whole, 10, 64)
	if err != nil || n > math.MaxInt64/unit {
		return 0, fmt.Errorf("size %q: too large", text)
	}
	size := n * unit
	if hasPoint {
		part, _ := strconv.ParseFloat("0."+fraction, 64) // digits only
		size += min(int64(part*float64(unit)), math.MaxInt64-size)
	}
	return size, nil
}

func sizeError(text string) error {
	return fmt.Errorf("size %q: want a number like 512m, 1g or 5GiB", text)
}

// FormatSize is a size as people read it, to three digits: "512 MiB".
func FormatSize(bytes int64) string {
	if bytes < 1<<10 {
		return fmt.Sprintf("%d B", bytes)
	}
	value, unit := float64(bytes), 0
	for value >= 999.5 && unit < 5 {
		value, unit = value/1024, unit+1
	}
	return fmt.Sprintf("%.3g %ciB", value, "KMGTP"[max(unit-1, 0)])
}

// UnmarshalText reads a disk, FILE:GUEST[:ro].
func (d *Disk) UnmarshalText(text []byte) error {
	rest, readOnly := strings.CutSuffix(string(text), ":ro")
	if !readOnly {
		rest = strings.TrimSuffix(rest, ":rw")
	}
	// The guest's path is after the last colon: a file's name may have some.
	i := strings.LastIndexByte(rest, ':')
	if i < 0 {
		return fmt.Errorf("disk %q: want FILE:GUEST[:ro]", text)
	}
	*d = Disk{File: rest[:i], Mount: rest[i+1:], ReadOnly: readOnly}
	return nil
}

// MarshalText is the form that UnmarshalText reads.
func (d Disk) MarshalText() ([]byte, error) {
	text := d.File + ":" + d.Mount
	if d.ReadOnly {
		return []byte(text + ":ro"), nil
	}
	return []byte(text + ":rw"), nil
}

// UnmarshalText reads a file system in memory, PATH[:SIZE], a bare size in MiB.
func (t *Tmpfs) UnmarshalText(text []byte) error {
	path, size, hasSize := strings.Cut(string(text), ":")
	*t = Tmpfs{Path: path}
	if !hasSize {
		return nil
	}
	var err error
	if t.Size, err = ParseSize(strings.TrimPrefix(size, "size="), MiB); err != nil {
		return fmt.Errorf("tmpfs %q: %w", path, err)
	}
	return nil
}

// MarshalText is the form that UnmarshalText reads.
func (t Tmpfs) MarshalText() ([]byte, error) {
	if t.Size == 0 {
		return []byte(t.Path), nil
	}
	return fmt.Appendf(nil, "%s:%db", t.Path, t.Size), nil
}

// ulimitNames are the limits of setrlimit(2).
var ulimitNames = []string{
	"as", "core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue", "nice",
	"nofile", "nproc", "rss", "rtprio", "rttime", "sigpending", "stack",
}

// UlimitNames are what a Ulimit may be of.
func UlimitNames() []string { return slices.Clone(ulimitNames) }

// UnmarshalText reads a limit, NAME=SOFT[:HARD]; without HARD both are SOFT, and
// "unlimited" or -1 is no limit.
func (u *Ulimit) UnmarshalText(text []byte) error {
	name, values, ok := strings.Cut(string(text), "=")
	if !ok {
		return fmt.Errorf("ulimit %q: want NAME=SOFT[:HARD]", text)
	}
	soft, hard, both := strings.Cut(values, ":")
	if !both {
		hard = soft
	}
	*u = Ulimit{Name: name}
	var errs [2]error
	u.Soft, errs[0] = parseLimit(soft)
	u.Hard, errs[1] = parseLimit(hard)
	if errors.Join(errs[:]...) != nil {
		return fmt.Errorf("ulimit %q: a limit is a number or \"unlimited\"", text)
	}
	return nil
}

func parseLimit(text string) (uint64, error) {
	if text == "unlimited" || text == "-1" {
		return math.MaxUint64, nil
	}
	return strconv.ParseUint(text, 10, 64)
}

// MarshalText is the form that UnmarshalText reads.
func (u Ulimit) MarshalText() ([]byte, error) {
	limit := func(n uint64) string {
		if n == math.MaxUint64 {
			return "unlimited"
		}
		return strconv.FormatUint(n, 10)
	}
	return []byte(u.Name + "=" + limit(u.Soft) + ":" + limit(u.Hard)), nil
}

// ParseHost reads a line for the hosts file, NAME:IP; the address may have
// brackets.
func ParseHost(text string) (HostIPMapping, error) {
	name, ip, ok := strings.Cut(text, ":")
	if !ok {
		return HostIPMapping{}, fmt.Errorf("host %q: want NAME:IP", text)
	}
	if inner, ok := strings.CutPrefix(ip, "["); ok {
		ip = strings.TrimSuffix(inner, "]")
	}
	return HostIPMapping{Host: name, IP: ip}, nil
}
