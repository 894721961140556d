package qemu

import (
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"

	"github.com/matchlock/matchlock/internal/hostfs"
	"github.com/matchlock/matchlock/internal/jail"
	"github.com/matchlock/matchlock/internal/machine"
	"github.com/matchlock/matchlock/vm"
)

// ErrUnconfined is wrapped by the error of a start that would leave QEMU with more of
// the host than it may have.
var ErrUnconfined = jail.ErrTooLittle

// prepareJail acquires what it takes to confine QEMU.
func (b *Backend) prepareJail(ctx context.Context, h *hypervisor) (err error) {
	if h.path, err = filepath.EvalSymlinks(h.path); err != nil {
		return fmt.Errorf("jail: %w", err)
	}
	if h.parts, err = programParts(ctx, h.path, b.options.CacheDir); err != nil {
		return fmt.Errorf("jail: %w", err)
	}
	if b.options.Guest == nil {
		return errors.New("jail: no program for its first step")
	}
	guest, err := b.options.Guest(ctx)
	if err != nil {
		return err // which says what is missing: it is not the jail's alone
	}
	h.first = sync.OnceValues(func() (*os.File, error) {
		first, err := memoryFileOf("jail", io.NewSectionReader(guest, 0, guest.Size()))
		if err != nil {
			return nil, fmt.Errorf("jail: %w", err)
		}
		return first, nil
	})
	go h.first() // it takes a millisecond, in which there is other work
	return nil
}

// InspectJail confines a QEMU that does nothing but tell its version, and returns what
// held it.
func (b *Backend) InspectJail(ctx context.Context) (applied, missing []string, err error) {
	h := &hypervisor{config: &machine.Config{VMConfig: vm.VMConfig{ID: "diagnose"}, VCPUs: 1}}
	if h.path, err = findQEMU(); err != nil {
		return nil, nil, err
	}
	if err := b.prepareJail(ctx, h); err != nil {
		return nil, nil, err
	}
	first, err := h.first()
	if err != nil {
		return nil, nil, err
	}
	defer first.Close()
	output, err := memoryFile("output")
	if err != nil {
		return nil, nil, err
	}
	defer output.Close()
	var confined *jail.Process
	p, err := startProcess(func() (_ *exec.Cmd, err error) {
		if confined, err = jail.Start(h.confinement(first, &invocation{args: []string{"--version"}}, output)); err != nil {
			return nil, err
		}
		return confined.Cmd, nil
	})
	if err != nil {
		return nil, nil, err
	}
	defer confined.Close()
	defer p.kill()
	confined.Ready()
	select {
	case <-p.ended:
	case <-ctx.Done():
		return nil, nil, context.Cause(ctx)
	}
	if p.err != nil {
		said, _ := io.ReadAll(io.NewSectionReader(output, 0, maxVersionOutput))
		return nil, nil, fmt.Errorf("QEMU does not start in it: %w; it says %q", p.err, excerpt(said))
	}
	return confined.Applied, confined.Missing, nil
}

// Sweep removes what hypervisors have left that ended without their supervisors.
func Sweep() { jail.Sweep() }

// overheadMemory is how much QEMU itself may take beside the guest's memory and the
// code that it translates.
const overheadMemory = 512 << 20

// diskStacks is the room for the stacks of what a disk is asked at a time: 1 MiB for
// each of a queue's 256 places.
const diskStacks = 256 << 20

// threads is how many QEMU may have beside one for each processor: 64 for what waits
// for disks, and its own.
const threads = 96

// confinement is what QEMU is given of the host.
func (h *hypervisor) confinement(first *os.File, line *invocation, output *os.File) *jail.Config {
	c := &jail.Config{
		First: first, Program: h.path, Args: line.args, Files: line.files, Output: output,
		Paths: h.parts, ID: h.config.ID,
		Memory:    int64(h.config.MemoryMB)<<20 + runCache<<20 + overheadMemory,
		Stacks:    int64(len(h.disks)+1) * diskStacks,
		Processes: h.config.VCPUs + threads,
		CPUs:      h.config.CPUs + 1, // what serves disks and ports, and our own in the guest, works beside the user's
	}
	if h.accel.Name == accelKVM {
		c.Devices = []string{kvmDevice}
	}
	return c
}

// parts are the files that a QEMU opens when it starts, as they are remembered.
type parts struct {
	QEMU  hostfs.FileID   `json:"qemu"`
	Files []hostfs.FileID `json:"files"` // libraries and what finds them
	Data  []string        `json:"data"`  // folders of firmware
}

func (p *parts) paths() []string {
	paths := slices.Clone(p.Data)
	for _, f := range p.Files {
		paths = append(paths, f.Path)
	}
	return paths
}

// fits tells whether all files are still what they were.
func (p *parts) fits(program hostfs.FileID) bool {
	if p.QEMU != program || len(p.Files) == 0 {
		return false
	}
	for _, f := range p.Files {
		if now, err := hostfs.Identify(f.Path); err != nil || now != f {
			return false
		}
	}
	return true
}

// programParts finds what a QEMU opens by name: its libraries and those of its
// modules, and the folders of its firmware. It asks the dynamic linker and QEMU
// itself, unless the answers are remembered in cacheDir.
func programParts(ctx context.Context, path, cacheDir string) ([]string, error) {
	id, err := hostfs.Identify(path)
	if err != nil {
		return nil, err
	}
	cache := filepath.Join(cacheDir, "qemu-parts.json")
	var p parts
	if cacheDir != "" && hostfs.ReadRecord(cache, &p) == nil && p.fits(id) {
		return p.paths(), nil
	}
	p = parts{QEMU: id}
	ctx, cancel := context.WithTimeout(ctx, versionDeadline)
	defer cancel()
	libraries, err := sharedLibraries(ctx, path)
	if err != nil {
		return nil, err
	}
	for _, file := range libraries {
		id, err := hostfs.Identify(file)
		if err != nil {
			return nil, err
		}
		p.Files = append(p.Files, id)
	}
	folders, err := exec.CommandContext(ctx, path, "-L", "help").Output()
	if err != nil {
		return nil, fmt.Errorf("%s -L help: %w", path, err)
	}
	for folder := range strings.Lines(string(folders)) {
		folder = filepath.Clean(strings.TrimSpace(folder))
		if info, err := os.Stat(folder); err == nil && info.IsDir() && filepath.IsAbs(folder) {
			p.Data = append(p.Data, folder)
		}
	}
	if cacheDir != "" {
		hostfs.WriteRecord(cache, p) // without it the next start asks again
	}
	return p.paths(), nil
}

// linkerCache is where the dynamic linker looks first.
const linkerCache = "/etc/ld.so.cache"

// sharedLibraries lists the files of which the dynamic linker puts a QEMU together,
// its accelerators' among them.
func sharedLibraries(ctx context.Context, program string) (files []string, err error) {
	file, err := elf.Open(program)
	if err != nil {
		return nil, fmt.Errorf("%w: %s is no executable: %w", ErrUnconfined, program, err)
	}
	defer file.Close()
	linker := ""
	for _, p := range file.Progs {
		if p.Type == elf.PT_INTERP {
			name, err := io.ReadAll(io.LimitReader(p.Open(), 4096))
			if err != nil {
				return nil, err
			}
			linker = strings.TrimRight(string(name), "\x00")
		}
	}
	if linker == "" {
		return nil, nil // a static program
	}
	files = append(files, linker)
	if _, err := os.Stat(linkerCache); err == nil {
		files = append(files, linkerCache)
	}
	for _, of := range append(accelerators(program), program) {
		list, err := exec.CommandContext(ctx, linker, "--list", of).Output()
		if err != nil {
			return nil, fmt.Errorf("%s --list %s: %w", linker, of, err)
		}
		if of != program {
			files = append(files, of)
		}
		for line := range strings.Lines(string(list)) {
			if _, path, ok := strings.Cut(line, " => /"); ok {
				path, _, _ = strings.Cut("/"+path, " (")
				files = append(files, path)
			}
		}
	}
	slices.Sort(files)
	return slices.Compact(files), nil
}

// accelerators are the modules of a QEMU that packagers have taken apart, where it
// looks for them: in a folder qemu beside libraries.
func accelerators(program string) (modules []string) {
	architecture := map[string]string{"amd64": "x86_64", "arm64": "aarch64"}[runtime.GOARCH]
	prefix := filepath.Dir(filepath.Dir(program))
	for _, lib := range []string{"lib*", "lib/*"} {
		found, _ := filepath.Glob(filepath.Join(prefix, lib, "qemu", "accel-*-"+architecture+".so"))
		modules = append(modules, found...)
	}
	return modules
}
