package project

import (
	"crypto/sha256"
	"encoding"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"

	"github.com/matchlock/matchlock/api"
	"github.com/matchlock/matchlock/internal/document"
	"github.com/matchlock/matchlock/internal/hostfs"
)

// harmless are the keys that reach nothing but the guest, and folders of the project. All
// others wait until the file is trusted; so does what becomes a key one day, until somebody
// has thought about it. Mounts are looked at one by one.
var harmless = []string{
	"name", "image", "pull", "platform", "entrypoint", "command", "env", "user", "work_dir", "timeout", "ttl", "idle_timeout", "restart", "labels",
	"cpus", "memory", "disk_size", "shm_size", "tmpfs", "ulimits", "read_only", "cap_drop", "hostname",
	"coherent", "file_rules", "file_events",
	"network.none", "network.deny", "network.mtu", "network.dns_mode",
}

// Reaches lists what of the file counts only once that is trusted, a line each: its key and
// what it says. All of a file of another user's does: in a folder that many may write, like
// /tmp, its project is other people's files.
func (f *File) Reaches() (lines []string) {
	if f.owner != uint32(os.Geteuid()) && f.owner != 0 {
		lines = append(lines, fmt.Sprintf("owner: user %d", f.owner))
	}
	return f.reaches(lines, "", reflect.ValueOf(*f))
}

func (f *File) reaches(lines []string, prefix string, v reflect.Value) []string {
	for _, field := range document.Fields(v.Type()) {
		key, value := prefix+document.Key(field), v.FieldByIndex(field.Index)
		switch {
		case value.IsZero() || slices.Contains(harmless, key):
		case key == "mounts":
			for _, m := range f.Mounts {
				if _, inside := within(m.Source, f.folder()); !inside && m.Mode != api.MountMemory {
					lines = append(lines, key+": "+said(reflect.ValueOf(m)))
				}
			}
		case value.Kind() == reflect.Struct:
			lines = f.reaches(lines, key+".", value)
		case value.Kind() == reflect.Slice:
			for i := range value.Len() {
				lines = append(lines, key+": "+said(value.Index(i)))
			}
		default:
			lines = append(lines, key+": "+said(value))
		}
	}
	return lines
}

// said is a value as the file would say it.
func said(v reflect.Value) string {
	if text, ok := v.Interface().(encoding.TextMarshaler); ok {
		if b, err := text.MarshalText(); err == nil {
			return string(b)
		}
	}
	if h, ok := v.Interface().(api.HostIPMapping); ok {
		return h.Host + ":" + h.IP
	}
	return fmt.Sprintf("%+v", v.Interface())
}

// UntrustedError says that a file reaches further than it may as long as nobody trusts it.
type UntrustedError struct {
	Path  string
	Lines []string // see File.Reaches
}

func (e *UntrustedError) Error() string {
	var errs []error
	for _, line := range e.Lines {
		errs = append(errs, fmt.Errorf("%s: not trusted to say %s", e.Path, line))
	}
	return errors.Join(errs...).Error()
}

// Hint says how it comes to be trusted.
func (e *UntrustedError) Hint() string {
	return "read the file; `matchlock trust` has it count as it is now, until it is changed"
}

// digest is what is trusted of a file: where it is, for its paths mean something there, and
// all that it says, by itself and by the files of rules and certificates that it names.
func (f *File) digest() (string, error) {
	sum := sha256.New()
	parts := [][]byte{[]byte(f.path), f.content, f.rules}
	for _, path := range f.Network.UpstreamCA {
		text, err := hostfs.ReadLimited(path, document.MaxSize)
		if err != nil {
			return "", fmt.Errorf("%s: %w", f.path, err)
		}
		parts = append(parts, text)
	}
	for _, part := range parts {
		fmt.Fprintf(sum, "%d\n", len(part))
		sum.Write(part)
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}

// Store is the folder of what its user trusts: a file for each project.
type Store string

// record is what such a file holds.
type record struct {
	Path   string `json:"path"`
	Digest string `json:"digest"`
}

func (s Store) file(f *File) string {
	sum := sha256.Sum256([]byte(f.path))
	return filepath.Join(string(s), hex.EncodeToString(sum[:16])+".json")
}

// Check returns an *UntrustedError if a file has something to say that counts only once it
// is trusted, and is not.
func (s Store) Check(f *File) error {
	lines := f.Reaches()
	if len(lines) == 0 {
		return nil
	}
	digest, err := f.digest()
	if err != nil {
		return err
	}
	var trusted record
	err = hostfs.ReadRecord(s.file(f), &trusted)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if trusted.Path != f.path || trusted.Digest != digest {
		return &UntrustedError{f.path, lines}
	}
	return nil
}

// Trust has a file count as it is now.
func (s Store) Trust(f *File) error {
	digest, err := f.digest()
	if err != nil {
		return err
	}
	if err := hostfs.Private(string(s)); err != nil {
		return err
	}
	return hostfs.WriteRecord(s.file(f), record{f.path, digest})
}

// Revoke has a file not be trusted any more.
func (s Store) Revoke(f *File) error {
	err := os.Remove(s.file(f))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// Path is where the file is.
func (f *File) Path() string { return f.path }
