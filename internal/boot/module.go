package boot

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
)

const (
	maxModule  = 32 << 20 // one module, unpacked
	maxModinfo = 1 << 20  // its .modinfo section
	maxModules = 20_000   // files in one kernel's folder
)

// wanted are the drivers that a guest needs. Those that are not needed before its root is mounted are loaded when first
// used; a guest without them lacks something (its network, its workspace) but lives.
var wanted = []struct {
	name  string
	later bool
}{
	{"virtio_mmio", false},
	{"virtio_console", false},
	{"virtio_blk", false},
	{"erofs", false},
	{"ext4", false},
	{"overlay", false},
	{"virtio_net", true},
	{"fuse", true},
}

// A module is a kernel module as the guest gets it.
type module struct {
	name   string
	later  bool
	data   []byte // ELF, unpacked
	source stamp
}

// A moduleTree is the folder lib/modules/RELEASE. Names are as the kernel has them, with _ for -.
type moduleTree struct {
	release string
	files   map[string]string // name to path
	builtin map[string]bool
}

var moduleFile = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^([0-9A-Za-z_-]{1,64})\.ko(\.xz|\.zst|\.gz)?$`)
})

func moduleName(s string) string { return strings.ReplaceAll(s, "-", "_") }

// openModuleTree reads the names in dir. A tree that does not exist is an fs.ErrNotExist.
func openModuleTree(dir, release string) (*moduleTree, error) {
	t := &moduleTree{release: release, files: map[string]string{}, builtin: map[string]bool{}}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		// Of two with one name the last counts: updates/ comes after kernel/ and extra/, as depmod has it.
		if m := moduleFile().FindStringSubmatch(d.Name()); m != nil && d.Type().IsRegular() {
			t.files[moduleName(m[1])] = path
		}
		if len(t.files) > maxModules {
			return fmt.Errorf("more than %d modules", maxModules)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	// The kernel's build writes modules.builtin, one path a line.
	list, err := readTrusted(filepath.Join(dir, "modules.builtin"), maxConfig)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("modules.builtin: %w", err)
	}
	for line := range strings.Lines(string(list)) {
		if m := moduleFile().FindStringSubmatch(filepath.Base(strings.TrimSpace(line))); m != nil {
			t.builtin[moduleName(m[1])] = true
		}
	}
	return t, nil
}

// resolve returns the wanted modules and all that they depend on, each after what it depends on, those for later last.
// missing names the drivers that are neither there nor built in and can be done without.
func (t *moduleTree) resolve() (modules []module, missing []string, err error) {
	seen := map[string]bool{}
	for _, w := range wanted {
		_, exists := t.files[w.name]
		switch {
		case exists:
			modules, err = t.add(modules, seen, w.name, w.later)
			if err != nil {
				return nil, nil, err
			}
		case t.builtin[w.name]:
		case w.later:
			missing = append(missing, w.name)
		default:
			return nil, nil, fmt.Errorf("kernel %s has no %s, neither as a module nor built in", t.release, w.name)
		}
	}
	return modules, missing, nil
}

// add appends what name depends on, then name.
func (t *moduleTree) add(modules []module, seen map[string]bool, name string, later bool) ([]module, error) {
	if seen[name] || t.builtin[name] {
		return modules, nil
	}
	seen[name] = true // before what it depends on: a circle ends
	path, ok := t.files[name]
	if !ok {
		return nil, fmt.Errorf("module %s is missing", name)
	}
	data, source, err := readModule(path)
	if err != nil {
		return nil, fmt.Errorf("module %s: %w", path, err)
	}
	info, err := readModinfo(data)
	if err != nil {
		return nil, fmt.Errorf("module %s: %w", path, err)
	}
	if info.release != t.release {
		return nil, fmt.Errorf("module %s: made for kernel %q, not %q", path, info.release, t.release)
	}
	for _, soft := range info.soft { // often an alias, or what another module offers as well
		if _, ok := t.files[soft]; ok {
			if modules, err = t.add(modules, seen, soft, later); err != nil {
				return nil, err
			}
		}
	}
	for _, dep := range info.depends {
		if modules, err = t.add(modules, seen, dep, later); err != nil {
			return nil, fmt.Errorf("%w, which %s depends on", err, name)
		}
	}
	return append(modules, module{name: name, later: later, data: data, source: source}), nil
}

func readModule(path string) (data []byte, source stamp, err error) {
	f, info, err := openTrusted(path)
	if err != nil {
		return nil, stamp{}, err
	}
	defer f.Close()
	r, err := decompress(f)
	if err != nil {
		return nil, stamp{}, err
	}
	defer r.Close()
	data, err = readAll(r, maxModule)
	return data, stampFrom(path, info), err
}

// modinfo is what we need of a module's .modinfo section.
type modinfo struct {
	release string   // the first word of vermagic
	depends []string // modules that must be loaded before
	soft    []string // modules that should be, if they exist
}

// readModinfo reads the section .modinfo: key=value strings, each ended by NUL (include/linux/moduleparam.h).
func readModinfo(data []byte) (*modinfo, error) {
	f, err := elf.NewFile(bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	s := f.Section(".modinfo")
	if s == nil {
		return nil, errors.New("no .modinfo section")
	}
	text, err := readAll(s.Open(), maxModinfo)
	if err != nil {
		return nil, fmt.Errorf(".modinfo: %w", err)
	}
	info := new(modinfo)
	for entry := range bytes.SplitSeq(text, []byte{0}) {
		key, value, _ := strings.Cut(string(entry), "=")
		switch key {
		case "vermagic":
			info.release = firstWord([]byte(value))
		case "depends":
			for name := range strings.SplitSeq(value, ",") {
				if name != "" {
					info.depends = append(info.depends, moduleName(name))
				}
			}
		case "softdep": // "pre: a b post: c"
			pre := false
			for word := range strings.FieldsSeq(value) {
				if kind, ok := strings.CutSuffix(word, ":"); ok {
					pre = kind == "pre"
				} else if pre {
					info.soft = append(info.soft, moduleName(word))
				}
			}
		}
	}
	return info, nil
}

// readAll reads r, which may have limit bytes at most.
func readAll(r io.Reader, limit int64) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(b)) > limit {
		return nil, fmt.Errorf("more than %d bytes", limit)
	}
	return b, nil
}
