package boot

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// fetch has apt fetch the package that Debian's linux-image-cloud-ARCH depends on, and converts the kernel in it.
// apt checks the package against the signed lists; nothing is installed, and root is not needed. The caller holds the lock.
func (f *finder) fetch(ctx context.Context) (*cachedKernel, error) {
	tmp, err := os.MkdirTemp(f.cache.kernelsDir, unfinished)
	if err != nil {
		return nil, fmt.Errorf("kernel cache: %w", err)
	}
	defer os.RemoveAll(tmp)
	p, err := findPackage(ctx, f.Arch)
	if err == nil {
		err = p.download(ctx, tmp, f.Progress)
	}
	if err != nil {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return nil, &NotFoundError{Arch: f.Arch, Err: err}
	}
	path, err := f.unpack(ctx, tmp)
	if err != nil {
		return nil, fmt.Errorf("package %s: %w", p, err)
	}
	k, err := f.convert(ctx, path, packageOrigin+p.String())
	if err != nil {
		return nil, fmt.Errorf("package %s: %w", p, err)
	}
	return k, nil
}

// unpack lays the package that was downloaded into tmp out in tmp/tree, and returns its kernel.
func (f *finder) unpack(ctx context.Context, tmp string) (kernel string, err error) {
	debs := list(tmp, "*.deb")
	if len(debs) != 1 {
		return "", fmt.Errorf("apt left %d files", len(debs))
	}
	deb, err := os.Open(debs[0])
	if err != nil {
		return "", err
	}
	defer deb.Close()
	info, err := deb.Stat()
	if err != nil {
		return "", err
	}
	tree := filepath.Join(tmp, "tree")
	if err := os.Mkdir(tree, 0o700); err != nil {
		return "", err
	}
	root, err := os.OpenRoot(tree)
	if err != nil {
		return "", err
	}
	defer root.Close()
	if err := unpackDeb(f.meter(ctx, "unpack package", deb, info.Size()), root); err != nil {
		return "", err
	}
	kernels := list(filepath.Join(tree, "boot"), "vmlinu*")
	if len(kernels) != 1 {
		return "", fmt.Errorf("%d kernels inside", len(kernels))
	}
	return kernels[0], nil
}

// A debianPackage is one that apt offers.
type debianPackage struct {
	name, version string
}

func (p debianPackage) String() string { return p.name + "=" + p.version }

// findPackage asks apt which kernel the metapackage stands for at present.
func findPackage(ctx context.Context, arch string) (p debianPackage, err error) {
	meta := "linux-image-cloud-" + arch
	fields, err := showPackage(ctx, meta)
	if err != nil {
		return p, err
	}
	// linux-image-6.1.0-56-cloud-amd64 (= 6.1.192-2)
	depends := regexp.MustCompile(`(linux-image-[0-9][0-9a-z.+~-]*-cloud-` + arch + `) \(= ([0-9A-Za-z.+:~-]+)\)`)
	m := depends.FindStringSubmatch(fields["Depends"])
	if m == nil {
		return p, fmt.Errorf("package %s depends on %q: no kernel", meta, fields["Depends"])
	}
	return debianPackage{name: m[1], version: m[2]}, nil
}

// showPackage returns the fields that fit in a line of what apt knows of a package.
func showPackage(ctx context.Context, name string) (map[string]string, error) {
	var out bytes.Buffer
	cmd, finish := aptCommand(ctx, "apt-cache", "show", "--no-all-versions", name)
	cmd.Stdout = &out
	if err := finish(cmd.Run()); err != nil {
		return nil, fmt.Errorf("package %s: %w", name, err)
	}
	fields := map[string]string{}
	for line := range strings.Lines(out.String()) {
		if key, value, ok := strings.Cut(strings.TrimSpace(line), ": "); ok && line[0] != ' ' {
			fields[key] = value
		}
	}
	return fields, nil
}

// download has apt lay the package into dir.
func (p debianPackage) download(ctx context.Context, dir string, progress func(string, int64, int64)) error {
	status, statusW, err := os.Pipe()
	if err != nil {
		return err
	}
	defer status.Close()
	// apt tells its progress on descriptor 3; as root it would drop to a user who cannot write to dir, and grumble.
	cmd, finish := aptCommand(ctx, "apt-get", "download", "-qq", "-o", "APT::Status-Fd=3", "-o", "APT::Sandbox::User=root", p.String())
	cmd.Dir = dir
	cmd.ExtraFiles = []*os.File{statusW}
	err = cmd.Start()
	statusW.Close()
	if err != nil {
		return fmt.Errorf("package %s: %w", p, finish(err))
	}
	defer context.AfterFunc(ctx, func() { status.Close() })() // whoever holds the other end
	lines := bufio.NewScanner(status)
	for lines.Scan() { // dlstatus:1:45.6789:Retrieving file 1 of 1
		fields := strings.SplitN(lines.Text(), ":", 4)
		if len(fields) < 4 || fields[0] != "dlstatus" {
			continue
		}
		if percent, err := strconv.ParseFloat(fields[2], 64); err == nil && percent >= 0 && percent <= 100 {
			progress("download kernel", int64(percent), 100) // asking apt for the size as well takes a second
		}
	}
	if err := finish(cmd.Wait()); err != nil {
		return fmt.Errorf("package %s: %w", p, err)
	}
	return nil
}

// aptCommand makes a command that ends with ctx, its children too. finish makes what it said the error that it ended with.
func aptCommand(ctx context.Context, name string, args ...string) (cmd *exec.Cmd, finish func(error) error) {
	var stderr bytes.Buffer
	cmd = exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C", "DEBIAN_FRONTEND=noninteractive")
	cmd.Stderr = &stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) } // it only downloads: nothing to put in order
	cmd.WaitDelay = 2 * time.Second
	return cmd, func(err error) error {
		said := strings.TrimSpace(stderr.String())
		if err == nil || said == "" {
			return err
		}
		last := said[strings.LastIndexByte(said, '\n')+1:]
		return errors.New(strings.TrimPrefix(last, "E: "))
	}
}
